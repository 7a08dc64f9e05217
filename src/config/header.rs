//! Header rules: which requests they are for, and what they put in.

use std::fmt;
use std::str::FromStr;

use super::pattern::HostPattern;
use super::value::digits;
use super::{Secret, value};

/// What a key under `headers` must look like, for errors.
pub(super) const EXPECTED: &str = "a host such as ghcr.io, *.docker.io or 192.0.2.1, without port, \
    or http://HOST:PORT for requests without TLS";

const PLAIN: &str = "http://";

const PLAIN_PORT: u16 = 80;

/// One key under `headers`. Names are RFC 9110 tokens and none that frames or routes a message;
/// values are visible ASCII, blanks and tabs.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderRule {
    /// The requests it is for.
    pub scope: HeaderScope,
    /// Fields that replace what the client sent; no name twice.
    pub set: Vec<HeaderField>,
    /// Fields that are added; no name twice.
    pub append: Vec<HeaderField>,
}

/// A header field of a rule.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderField {
    /// The name as it was written.
    pub name: String,
    /// The value; secret, since most are credentials.
    pub value: Secret,
}

impl HeaderField {
    /// Whether the value is a credential, by its name: masked in print, and not for the open wire.
    pub fn is_credential(&self) -> bool {
        value::is_secret_name(&self.name)
    }
}

/// The requests that a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderScope {
    /// The hosts.
    pub pattern: HostPattern,
    /// The port of requests without TLS, for which alone the rule is then; else the rule is for
    /// every port, since TLS proves the host on each of them.
    pub plain: Option<u16>,
}

impl fmt::Display for HeaderScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(port) = self.plain else { return self.pattern.fmt(f) };
        match self.pattern.as_str().contains(':') {
            true => write!(f, "{PLAIN}[{}]", self.pattern)?,
            false => write!(f, "{PLAIN}{}", self.pattern)?,
        }
        if port == PLAIN_PORT { Ok(()) } else { write!(f, ":{port}") }
    }
}

/// The text is no scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct NoScope;

impl FromStr for HeaderScope {
    type Err = NoScope;

    fn from_str(text: &str) -> Result<HeaderScope, NoScope> {
        let parse = |host: &str| host.parse::<HostPattern>().map_err(|_| NoScope);
        let Some(rest) = text.strip_prefix(PLAIN) else {
            return Ok(HeaderScope { pattern: parse(text)?, plain: None });
        };
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, digits(port).filter(|port| *port != 0).ok_or(NoScope)?)
            }
            _ => (rest, PLAIN_PORT),
        };
        // Without brackets it would be anybody's guess where the port begins (RFC 3986 3.2.2).
        if host.contains(':') && !host.starts_with('[') {
            return Err(NoScope);
        }
        Ok(HeaderScope { pattern: parse(host)?, plain: Some(port) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_read_and_printed() {
        for (text, printed, plain) in [
            ("GHCR.io", "ghcr.io", None),
            ("*.corp", "*.corp", None),
            ("::1", "::1", None),
            ("http://registry.corp", "http://registry.corp", Some(80)),
            ("http://*.corp:5000", "http://*.corp:5000", Some(5000)),
            ("http://*:80", "http://*", Some(80)),
            ("http://10.0.0.1:5000", "http://10.0.0.1:5000", Some(5000)),
            ("http://[2001:DB8::1]", "http://[2001:db8::1]", Some(80)),
            ("http://[::1]:5000", "http://[::1]:5000", Some(5000)),
        ] {
            let scope: HeaderScope = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((scope.to_string().as_str(), scope.plain), (printed, plain), "{text}");
            assert_eq!(printed.parse(), Ok(scope));
        }
        for text in [
            "",
            "http://",
            "http://:80",
            "http://a:",
            "http://a:0",
            "http://a:http",
            "http://a:65536",
            "http://a/",
            "http://::1",
            "http://::1:80",
            "https://a",
            "a:80",
        ] {
            assert_eq!(text.parse::<HeaderScope>(), Err(NoScope), "{text}");
        }
    }
}
