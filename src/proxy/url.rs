//! URLs of requests, and where a redirect leads (RFC 3986, section 5; RFC 9110, section 10.2.2).

use std::fmt;

use crate::http::{Authority, Host, Scheme, split_path};
use crate::net::Origin;

/// An absolute http or https URL. Path and query are kept byte for byte: signatures depend on it.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// The host.
    pub host: Host,
    /// The port, the scheme's own where none was given.
    pub port: u16,
    /// Path and query; begins with `/`.
    pub target: Box<str>,
}

impl Url {
    /// The path without the query.
    pub fn path(&self) -> &str {
        split_path(&self.target).0
    }

    /// The query, where there is one.
    pub fn query(&self) -> Option<&str> {
        split_path(&self.target).1
    }

    /// What is connected to.
    pub fn origin(&self) -> Origin {
        Origin { tls: self.scheme == Scheme::Https, host: self.host.clone(), port: self.port }
    }

    /// Whether credentials meant for `other` may be sent here.
    pub fn same_origin(&self, other: &Url) -> bool {
        self.scheme == other.scheme && self.host == other.host && self.port == other.port
    }

    /// The `Host` field's value: the port only where it is not the scheme's own.
    pub fn authority(&self) -> String {
        if self.port == self.scheme.default_port() {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Where `location` leads from here; `None` where it is no http or https URL, or none at all.
    pub fn resolve(&self, location: &[u8]) -> Option<Url> {
        let location = std::str::from_utf8(location).ok()?;
        if !location.bytes().all(|byte| byte.is_ascii_graphic()) || location.is_empty() {
            return None;
        }
        let location = location.split_once('#').map_or(location, |(before, _)| before);
        if let Some((scheme, rest)) = location.split_once("://")
            && !scheme.contains(['/', '?'])
        {
            return Url::at(Scheme::parse(&scheme.to_ascii_lowercase())?, rest);
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Url::at(self.scheme, rest);
        }
        if has_scheme(location) {
            return None;
        }
        let target = match location.as_bytes().first() {
            None => self.target.to_string(),
            Some(b'/') => tidy(location),
            Some(b'?') => format!("{}{location}", self.path()),
            Some(_) => {
                let folder = self.path().rsplit_once('/').map_or("", |(folder, _)| folder);
                tidy(&format!("{folder}/{location}"))
            }
        };
        Some(Url { target: target.into(), ..self.clone() })
    }

    fn at(scheme: Scheme, rest: &str) -> Option<Url> {
        let split = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(split);
        let authority = Authority::parse(authority).ok()?;
        let target = match target.as_bytes().first() {
            Some(b'/') => tidy(target),
            _ => format!("/{target}"),
        };
        let port = authority.port.unwrap_or(scheme.default_port());
        Some(Url { scheme, host: authority.host, port, target: target.into() })
    }
}

/// Scheme, host and port: signatures are in the query, and some registries redirect to paths that
/// are a token.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether a reference begins with a scheme (`data:`, `mailto:`): letters before the first colon.
fn has_scheme(location: &str) -> bool {
    let end = location.find([':', '/', '?']).unwrap_or(location.len());
    location[end..].starts_with(':')
        && location.starts_with(|first: char| first.is_ascii_alphabetic())
}

/// Takes `.` and `..` out of the path (RFC 3986, section 5.2.4); the query stays as it is.
fn tidy(target: &str) -> String {
    let split = target.find('?').unwrap_or(target.len());
    let (path, query) = target.split_at(split);
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." if last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        let base = Url {
            scheme: Scheme::Https,
            host: Host::parse("base.test").unwrap(),
            port: 443,
            target: "/".into(),
        };
        base.resolve(text.as_bytes()).unwrap()
    }

    fn whole(url: &Url) -> String {
        format!("{}://{}:{}{}", url.scheme.as_str(), url.host, url.port, url.target)
    }

    #[test]
    fn references_resolve_as_the_rfc_says() {
        let base = url("https://r.test/v2/a/blobs/x?old=1");
        for (location, expected) in [
            ("https://cdn.test/d?X=%2F+%3d&&Y", "https://cdn.test:443/d?X=%2F+%3d&&Y"),
            ("HTTP://CDN.test:8080/d", "http://cdn.test:8080/d"),
            ("https://cdn.test", "https://cdn.test:443/"),
            ("https://cdn.test?q=/..", "https://cdn.test:443/?q=/.."),
            ("//cdn.test/d", "https://cdn.test:443/d"),
            ("/d/e?f", "https://r.test:443/d/e?f"),
            ("y", "https://r.test:443/v2/a/blobs/y"),
            ("../y?z=../..", "https://r.test:443/v2/a/y?z=../.."),
            ("./", "https://r.test:443/v2/a/blobs/"),
            ("?new=2", "https://r.test:443/v2/a/blobs/x?new=2"),
            ("/a/../../b#c", "https://r.test:443/b"),
            ("/a//b", "https://r.test:443/a//b"),
            ("https://[::1]:5000/x", "https://[::1]:5000/x"),
            ("/x?u=https://other.test/", "https://r.test:443/x?u=https://other.test/"),
        ] {
            assert_eq!(whole(&base.resolve(location.as_bytes()).unwrap()), expected, "{location}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        let base = url("https://r.test/");
        for location in [
            "",
            "ftp://x/",
            "data:text/plain,x",
            "javascript:1",
            "https:///x",
            "https://u@h/",
            "https://h:99999/",
            "/with space",
            "/ctl\x01",
            "https://exa mple/",
            "//",
        ] {
            assert_eq!(base.resolve(location.as_bytes()), None, "{location}");
        }
        assert_eq!(base.resolve(b"/\xff"), None);
    }

    #[test]
    fn what_is_shown_has_neither_path_nor_query() {
        assert_eq!(format!("{:?}", url("https://cdn.test/tok?sig=secret")), "https://cdn.test");
        assert_eq!(url("http://cdn.test:8080/tok").to_string(), "http://cdn.test:8080");
    }
}
