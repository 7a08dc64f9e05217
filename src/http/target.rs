//! What a request is for: request targets (RFC 9112 3.2), authorities and hosts (RFC 3986 3.2).
//!
//! A host has exactly one spelling here: names in lower case without a trailing dot, addresses as
//! addresses. Whatever a resolver might take for an address in disguise (`0x7f.1`, `127.1`,
//! `2130706433`) is refused, so that a rule about addresses and a rule about names cannot be played
//! off against each other.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Malformed, Method};

/// The schemes that are proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// Reads a scheme without its colon, in any case (RFC 3986 3.1).
    pub fn parse(text: &str) -> Option<Scheme> {
        [Scheme::Http, Scheme::Https].into_iter().find(|it| text.eq_ignore_ascii_case(it.as_str()))
    }

    /// In lower case, without the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The port meant where none is given (RFC 9110 4.2).
    pub fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a request line asks for (RFC 9112 3.2). `Display` writes it as a request line has it.
///
/// Texts are visible ASCII without `#`; that is checked by [`Target::parse`] and
/// [`Target::origin`], and whoever builds a variant directly answers for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Path and query, beginning with `/`.
    Origin(Box<str>),
    /// A whole URL.
    Absolute {
        /// Of the URL.
        scheme: Scheme,
        /// Of the URL; without userinfo.
        authority: Authority,
        /// The target to send to the origin: path and query, `/` where the URL has no path, and `*`
        /// for OPTIONS on a URL with neither path nor query (RFC 9112 3.2.4).
        path: Box<str>,
    },
    /// Host and port of a CONNECT.
    Authority(Authority),
    /// `*`, for OPTIONS alone.
    Asterisk,
}

impl Target {
    /// Reads the target of a request with this method; the form must be one the method allows.
    ///
    /// Userinfo, fragments, other schemes than http and https, and bytes outside visible ASCII are
    /// refused, and so is a CONNECT without a port (RFC 9110 9.3.6).
    pub fn parse(method: &Method, text: &str) -> Result<Target, Malformed> {
        if *method == Method::CONNECT {
            let authority = Authority::parse(text)?;
            return match authority.port {
                Some(_) => Ok(Target::Authority(authority)),
                None => Err(Malformed::Target),
            };
        }
        if text.starts_with('/') {
            return Target::origin(text);
        }
        if text == "*" {
            let allowed = *method == Method::OPTIONS;
            return if allowed { Ok(Target::Asterisk) } else { Err(Malformed::Target) };
        }
        Target::absolute(method, text)
    }

    /// Checks a path and query.
    pub fn origin(text: &str) -> Result<Target, Malformed> {
        if !text.starts_with('/') || !is_target_text(text) {
            return Err(Malformed::Target);
        }
        Ok(Target::Origin(text.into()))
    }

    fn absolute(method: &Method, text: &str) -> Result<Target, Malformed> {
        if !is_target_text(text) {
            return Err(Malformed::Target);
        }
        let (scheme, rest) = text.split_once("://").ok_or(Malformed::Target)?;
        let scheme = Scheme::parse(scheme).ok_or(Malformed::Target)?;
        let end = memchr::memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end).ok_or(Malformed::Target)?;
        let authority = Authority::parse(authority)?;
        let path = match path {
            "" if *method == Method::OPTIONS => "*".into(),
            "" => "/".into(),
            path if path.starts_with('/') => path.into(),
            query => format!("/{query}").into_boxed_str(),
        };
        Ok(Target::Absolute { scheme, authority, path })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Origin(path) => f.write_str(path),
            Target::Absolute { scheme, authority, path } => {
                let path = if &**path == "*" { "" } else { path };
                write!(f, "{scheme}://{authority}{path}")
            }
            Target::Authority(authority) => authority.fmt(f),
            Target::Asterisk => f.write_str("*"),
        }
    }
}

/// Splits a path and query at the first `?`; the query comes without it.
pub fn split_path(path_and_query: &str) -> (&str, Option<&str>) {
    match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    }
}

/// Visible ASCII without `#`. More of RFC 3986's grammar is not held up to, because real clients
/// send `|`, `{` and `^` unescaped and registries take them.
///
/// No early exit: so the compiler makes it compare many bytes at once.
fn is_target_text(text: &str) -> bool {
    text.bytes().fold(true, |right, byte| right & byte.is_ascii_graphic() & (byte != b'#'))
}

/// A host and, where given, a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port as given; never 0 when parsed.
    pub port: Option<u16>,
}

impl Authority {
    /// Reads `host`, `host:port` or `[v6]:port`. An empty port is no port (RFC 3986 3.2.3); port 0
    /// and userinfo are refused.
    pub fn parse(text: &str) -> Result<Authority, Malformed> {
        let (host, port) = split_port(text)?;
        Ok(Authority { host: Host::parse(host)?, port })
    }

    /// The port, or the scheme's own where none is given.
    pub fn port_for(&self, scheme: Scheme) -> u16 {
        self.port.unwrap_or(scheme.default_port())
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => self.host.fmt(f),
        }
    }
}

/// A host: a DNS name or an address, each in its one spelling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name: lower case, no trailing dot, letters, digits, `-` and `_`, labels of 1 to 63 bytes,
    /// 253 in all; its last label does not look like a number.
    Name(Box<str>),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address; IPv4-mapped ones stay as they are.
    V6(Ipv6Addr),
}

impl Host {
    /// Reads a name in any case, a dotted quad, or an IPv6 address in brackets (without a zone).
    pub fn parse(text: &str) -> Result<Host, Malformed> {
        Ok(match HostRef::parse(text)? {
            HostRef::Name(name) => Host::Name(name.to_ascii_lowercase().into_boxed_str()),
            HostRef::V4(address) => Host::V4(address),
            HostRef::V6(address) => Host::V6(address),
        })
    }

    /// The name; `None` for an address.
    pub fn as_name(&self) -> Option<&str> {
        match self {
            Host::Name(name) => Some(name),
            Host::V4(_) | Host::V6(_) => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::V4(address) => address.fmt(f),
            Host::V6(address) => write!(f, "[{address}]"),
        }
    }
}

/// Checks a Host field against the target it came with, allocating nothing: most requests name
/// their host in this field alone, and there it only has to be well formed.
///
/// Where the target has an authority of its own, both must agree (RFC 9112 3.2.2 would have the
/// field ignored; whoever sends two different ones is up to something). A CONNECT's Host may leave
/// out the port, as older clients do.
pub(super) fn check_host(field: &[u8], target: &Target) -> Result<(), Malformed> {
    let text = std::str::from_utf8(field).map_err(|_| Malformed::Host)?;
    let (host, port) = split_port(text)?;
    let host = HostRef::parse(host)?;
    let agrees = match target {
        Target::Origin(_) | Target::Asterisk => true,
        Target::Absolute { scheme, authority, .. } => {
            let default = scheme.default_port();
            host.is(&authority.host) && port.unwrap_or(default) == authority.port_for(*scheme)
        }
        Target::Authority(authority) => {
            host.is(&authority.host) && (port.is_none() || port == authority.port)
        }
    };
    if agrees { Ok(()) } else { Err(Malformed::HostMismatch) }
}

/// A checked host that borrows its text.
enum HostRef<'a> {
    /// Without a trailing dot, in the case it was sent in.
    Name(&'a str),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

impl<'a> HostRef<'a> {
    fn parse(text: &'a str) -> Result<HostRef<'a>, Malformed> {
        if let Some(inner) = text.strip_prefix('[') {
            let address = inner.strip_suffix(']').and_then(|inner| inner.parse().ok());
            return address.map(HostRef::V6).ok_or(Malformed::Host);
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if !is_name(name) {
            return Err(Malformed::Host);
        }
        let last = memchr::memrchr(b'.', name.as_bytes()).map_or(0, |dot| dot + 1);
        if !looks_like_number(name.as_bytes().get(last..).unwrap_or_default()) {
            return Ok(HostRef::Name(name));
        }
        text.parse().map(HostRef::V4).map_err(|_| Malformed::Host)
    }

    fn is(&self, host: &Host) -> bool {
        match (self, host) {
            (HostRef::Name(name), Host::Name(other)) => name.eq_ignore_ascii_case(other),
            (HostRef::V4(address), Host::V4(other)) => address == other,
            (HostRef::V6(address), Host::V6(other)) => address == other,
            _ => false,
        }
    }
}

/// RFC 1123 2.1 lengths; `_` beside letters, digits and hyphens because names in use have it.
fn is_name(name: &str) -> bool {
    let mut label = 0;
    for byte in name.bytes() {
        match byte {
            b'.' if label > 0 => label = 0,
            b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' if label < 63 => label += 1,
            _ => return false,
        }
    }
    label > 0 && name.len() <= 253
}

/// Whether resolvers may read a name with this last label as an IPv4 address (WHATWG URL, "ends in
/// a number").
fn looks_like_number(label: &[u8]) -> bool {
    match label {
        [b'0', b'x' | b'X', hex @ ..] => hex.iter().all(u8::is_ascii_hexdigit),
        label => label.iter().all(u8::is_ascii_digit),
    }
}

fn split_port(text: &str) -> Result<(&str, Option<u16>), Malformed> {
    let bracket = memchr::memrchr(b']', text.as_bytes()).unwrap_or(0);
    let tail = text.as_bytes().get(bracket..).unwrap_or_default();
    let Some(colon) = memchr::memchr(b':', tail) else { return Ok((text, None)) };
    let (host, port) = text.split_at_checked(bracket + colon).ok_or(Malformed::Host)?;
    let digits = port.get(1..).unwrap_or_default();
    if digits.is_empty() {
        return Ok((host, None));
    }
    if digits.len() > 5 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed::Host);
    }
    match digits.parse() {
        Ok(0) | Err(_) => Err(Malformed::Host),
        Ok(port) => Ok((host, Some(port))),
    }
}

#[cfg(test)]
mod tests;
