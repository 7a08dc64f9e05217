//! The parent proxy: its URL, its credentials, and what is reached without it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::prelude::{BASE64_STANDARD, Engine};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::Secret;
use super::pattern::HostPattern;
use super::value;

/// What a parent proxy must look like, for errors. The text found is not repeated in them: it
/// may hold a password.
pub(super) const EXPECTED: &str =
    "http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, special characters as %XX";

/// What an entry of `no_proxy` must look like, for errors.
pub(super) const EXPECTED_DIRECT: &str =
    "a host such as ghcr.io or *.corp.example, an address or a network such as 10.0.0.0/8";

/// An HTTP proxy through which upstreams are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentProxy {
    /// A host name, lower case, or an IP address without brackets.
    pub host: String,
    /// 80 where the URL names none.
    pub port: u16,
    /// For `Proxy-Authorization`.
    pub credentials: Option<Credentials>,
}

/// What a parent proxy wants to know of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Without `:`.
    pub user: String,
    /// May be empty.
    pub password: Secret,
}

impl Credentials {
    /// The value of `Proxy-Authorization` (RFC 7617 2).
    pub fn basic(&self) -> Secret {
        let pair = Zeroizing::new(format!("{}:{}", self.user, self.password.expose()));
        let encoded = Zeroizing::new(BASE64_STANDARD.encode(pair.as_bytes()));
        Secret::new(["Basic ", &encoded].concat())
    }
}

impl ParentProxy {
    /// `host:port` as a `Host` field or a dialled address has it, brackets around IPv6.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The URL with the password masked.
    pub(super) fn masked(&self) -> String {
        let user = match &self.credentials {
            Some(known) => format!("{}:***@", percent_encode(&known.user)),
            None => String::new(),
        };
        format!("http://{user}{}", self.authority())
    }
}

/// The text is no parent proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {EXPECTED}")]
pub struct NoParent;

impl FromStr for ParentProxy {
    type Err = NoParent;

    fn from_str(text: &str) -> Result<ParentProxy, NoParent> {
        let scheme = text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://"));
        let rest = text.get(7..).filter(|_| scheme.is_some()).ok_or(NoParent)?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user, address) = match rest.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, rest),
        };
        let (host, port) = split_port(address).ok_or(NoParent)?;
        let host: HostPattern = host.parse().map_err(|_| NoParent)?;
        if !host.is_exact() || port == 0 {
            return Err(NoParent);
        }
        let credentials = user.map(credentials).transpose()?;
        Ok(ParentProxy { host: host.as_str().to_owned(), port, credentials })
    }
}

fn split_port(address: &str) -> Option<(&str, u16)> {
    match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some((host, value::digits(port)?)),
        _ => Some((address, 80)),
    }
    .filter(|(host, _)| host.starts_with('[') || !host.contains(':'))
}

fn credentials(text: &str) -> Result<Credentials, NoParent> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let user = percent_decode(user).ok_or(NoParent)?;
    let password = percent_decode(password).ok_or(NoParent)?;
    if user.is_empty() || user.contains(':') {
        return Err(NoParent);
    }
    Ok(Credentials { user, password: Secret::new(password) })
}

/// Unreserved characters and sub-delimiters as they are (RFC 3986 3.2.1), `*` among them.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            byte if is_plain(byte) || byte == b':' => out.push(byte),
            _ => return None,
        }
    }
    let text = String::from_utf8(out).ok()?;
    text.chars().all(|c| !c.is_control()).then_some(text)
}

fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match is_plain(byte) {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What is reached without the parent proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direct {
    /// These hosts; `.corp.example` is read as `*.corp.example`.
    Hosts(HostPattern),
    /// IP addresses of this network, where a URL names them as such.
    Net(IpNet),
}

impl Direct {
    /// Whether the host with this name is meant.
    pub fn matches_name(&self, name: &str) -> bool {
        match self {
            Direct::Hosts(pattern) => pattern.matches_name(name),
            Direct::Net(_) => false,
        }
    }

    /// Whether this address is meant.
    pub fn matches_ip(&self, ip: IpAddr) -> bool {
        match self {
            Direct::Hosts(pattern) => pattern.matches_ip(ip),
            Direct::Net(net) => net.contains(&ip.to_canonical()),
        }
    }
}

impl fmt::Display for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Direct::Hosts(pattern) => pattern.fmt(f),
            Direct::Net(net) => net.fmt(f),
        }
    }
}

impl FromStr for Direct {
    type Err = ();

    fn from_str(text: &str) -> Result<Direct, ()> {
        if text.contains('/') {
            return value::net(text).map(Direct::Net).ok_or(());
        }
        let below = text.strip_prefix('.').map(|rest| format!("*.{rest}"));
        below.as_deref().unwrap_or(text).parse().map(Direct::Hosts).map_err(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parent(text: &str) -> ParentProxy {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    #[test]
    fn urls_are_read_and_masked() {
        for (text, authority, masked) in [
            ("http://Proxy.Corp", "proxy.corp:80", "http://proxy.corp:80"),
            ("HTTP://proxy:3128/", "proxy:3128", "http://proxy:3128"),
            ("http://[2001:db8::1]:3128", "[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
            ("http://[2001:db8::1]", "[2001:db8::1]:80", "http://[2001:db8::1]:80"),
            ("http://u:p@10.0.0.1:8080", "10.0.0.1:8080", "http://u:***@10.0.0.1:8080"),
            ("http://u%40corp:p%3a@p:1", "p:1", "http://u%40corp:***@p:1"),
        ] {
            let parent = parent(text);
            assert_eq!(parent.authority(), authority, "{text}");
            assert_eq!(parent.masked(), masked, "{text}");
            assert_eq!(masked.parse::<ParentProxy>().unwrap().masked(), masked);
        }
    }

    #[test]
    fn credentials_are_decoded_and_not_shown() {
        let parent = parent("http://Aladdin:open%20sesame@proxy");
        let known = parent.credentials.clone().unwrap();
        assert_eq!(known.basic().expose(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(!format!("{parent:?}").contains("sesame"));
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(BASE64_STANDARD.encode(bytes), text);
        }
    }

    #[test]
    fn what_is_no_parent_is_refused() {
        for text in [
            "",
            "proxy:3128",
            "https://proxy:3128",
            "socks5://proxy:1080",
            "http://",
            "http://:3128",
            "http://proxy:0",
            "http://proxy:+1",
            "http://proxy:65536",
            "http://proxy:",
            "http://proxy/path",
            "http://2001:db8::1:3128",
            "http://*.corp:3128",
            "http://@proxy",
            "http://:p@proxy",
            "http://u:p w@proxy",
            "http://u:%zz@proxy",
            "http://u:%0d%0a@proxy",
            "http://u%3Ax:p@proxy",
        ] {
            assert!(text.parse::<ParentProxy>().is_err(), "{text}");
        }
    }

    #[test]
    fn direct_entries_match() {
        let direct = |text: &str| text.parse::<Direct>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(direct(".corp").matches_name("a.corp"));
        assert!(!direct(".corp").matches_name("corp"));
        assert!(direct("corp").matches_name("corp"));
        assert!(direct("10.0.0.0/8").matches_ip(ip("10.9.9.9")));
        assert!(direct("10.0.0.0/8").matches_ip(ip("::ffff:10.9.9.9")));
        assert!(!direct("10.0.0.0/8").matches_ip(ip("11.0.0.1")));
        assert!(direct("10.0.0.1").matches_ip(ip("10.0.0.1")));
        for text in ["", "a b", "10.0.0.0/33", "..corp"] {
            assert!(text.parse::<Direct>().is_err(), "{text}");
        }
    }
}
