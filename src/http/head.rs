//! Heads: the request or status line and the fields behind it, up to the empty line (RFC 9112 2 to
//! 5).
//!
//! httparse finds the tokens. It is lenient in places where a proxy must not be: it takes a bare LF
//! for a line end, skips any number of empty lines at the start, takes any byte from 0x80 up in a
//! target. So positions are walked again here and in `Fields`, and whatever stands between two
//! tokens must be exactly what the grammar has there.
//!
//! Errors come as early as the bytes allow and then stay: once some prefix of the input gives an
//! error, every longer input gives the same one.

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::Arc;

use super::fields::{Fields, is_text, is_token};
use super::target::check_host;
use super::{Authority, Malformed, Target};

/// The most field lines any [`HeadLimits`] can allow: tokens lie on the stack while a head is read.
pub const FIELDS_MAX: usize = 256;

/// The longest method. The longest one registered has 17 bytes.
pub const METHOD_MAX: usize = 64;

/// Versions of HTTP spoken on the wire (RFC 9110 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl Version {
    /// As it stands in a request or status line.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request method: any token, upper and lower case being different (RFC 9110 9.1).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Method(Name);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Name {
    Known(&'static str),
    /// A token that is none of the known ones.
    Other(Arc<str>),
}

impl Method {
    /// GET (RFC 9110 9.3.1).
    pub const GET: Method = Method(Name::Known("GET"));
    /// HEAD (RFC 9110 9.3.2).
    pub const HEAD: Method = Method(Name::Known("HEAD"));
    /// POST (RFC 9110 9.3.3).
    pub const POST: Method = Method(Name::Known("POST"));
    /// PUT (RFC 9110 9.3.4).
    pub const PUT: Method = Method(Name::Known("PUT"));
    /// PATCH (RFC 5789).
    pub const PATCH: Method = Method(Name::Known("PATCH"));
    /// DELETE (RFC 9110 9.3.5).
    pub const DELETE: Method = Method(Name::Known("DELETE"));
    /// CONNECT (RFC 9110 9.3.6).
    pub const CONNECT: Method = Method(Name::Known("CONNECT"));
    /// OPTIONS (RFC 9110 9.3.7).
    pub const OPTIONS: Method = Method(Name::Known("OPTIONS"));
    /// TRACE (RFC 9110 9.3.8).
    pub const TRACE: Method = Method(Name::Known("TRACE"));

    /// Reads a method.
    ///
    /// # Errors
    /// When it is no token, or longer than [`METHOD_MAX`].
    pub fn parse(text: &str) -> Result<Method, Malformed> {
        Ok(match text {
            "GET" => Method::GET,
            "HEAD" => Method::HEAD,
            "POST" => Method::POST,
            "PUT" => Method::PUT,
            "PATCH" => Method::PATCH,
            "DELETE" => Method::DELETE,
            "CONNECT" => Method::CONNECT,
            "OPTIONS" => Method::OPTIONS,
            "TRACE" => Method::TRACE,
            other if !is_token(other.as_bytes()) => return Err(Malformed::Method),
            other if other.len() > METHOD_MAX => return Err(Malformed::MethodTooLong),
            other => Method(Name::Other(other.into())),
        })
    }

    /// As it stands in a request line.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Name::Known(name) => name,
            Name::Other(name) => name,
        }
    }

    /// Whether it only reads (RFC 9110 9.2.1).
    pub fn is_safe(&self) -> bool {
        matches!(self.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE")
    }

    /// Whether sending it twice does what sending it once does (RFC 9110 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        self.is_safe() || matches!(self.as_str(), "PUT" | "DELETE")
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// What to do.
    pub method: Method,
    /// To what.
    pub target: Target,
    /// The version the request line has.
    pub version: Version,
    /// The header fields.
    pub fields: Fields,
}

impl RequestHead {
    /// Whom the request is for (RFC 9112 3.3): the target's authority, else the Host field's.
    /// `None` for an HTTP/1.0 request that names neither.
    pub fn authority(&self) -> Option<Authority> {
        match &self.target {
            Target::Absolute { authority, .. } | Target::Authority(authority) => {
                Some(authority.clone())
            }
            Target::Origin(_) | Target::Asterisk => {
                self.fields.get_str("host").and_then(|host| Authority::parse(host).ok())
            }
        }
    }

    /// Appends the whole head, the empty line included.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.method.as_str().as_bytes());
        out.push(b' ');
        match &self.target {
            Target::Origin(path) => out.extend_from_slice(path.as_bytes()),
            target => out.extend_from_slice(target.to_string().as_bytes()),
        }
        out.push(b' ');
        out.extend_from_slice(self.version.as_str().as_bytes());
        out.extend_from_slice(b"\r\n");
        self.fields.write_to(out);
        out.extend_from_slice(b"\r\n");
    }
}

/// A response without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 999.
    pub status: u16,
    /// The words behind the status: empty where there are none or they are not UTF-8. Control
    /// characters are written as blanks.
    pub reason: Box<str>,
    /// The version the status line has.
    pub version: Version,
    /// The header fields.
    pub fields: Fields,
}

impl ResponseHead {
    /// Appends the whole head, the empty line included.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.version.as_str().as_bytes());
        let digit = |power: u16| b'0' + (self.status / power % 10) as u8;
        out.extend_from_slice(&[b' ', digit(100), digit(10), digit(1), b' ']);
        out.extend(self.reason.bytes().map(|byte| if is_text(byte) { byte } else { b' ' }));
        out.extend_from_slice(b"\r\n");
        self.fields.write_to(out);
        out.extend_from_slice(b"\r\n");
    }
}

/// How large a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the whole head, from the first line to the empty one.
    pub size: usize,
    /// Field lines; at most [`FIELDS_MAX`] whatever stands here.
    pub fields: usize,
    /// Bytes of the request target.
    pub target: usize,
}

impl HeadLimits {
    /// Limits for heads of `size` bytes: 128 field lines, and half the head for the target.
    pub fn with_size(size: usize) -> HeadLimits {
        HeadLimits { size, fields: 128, target: size / 2 }
    }
}

impl Default for HeadLimits {
    /// For 64 KiB: registries send more than 20 KiB of fields and URLs of several KiB.
    fn default() -> HeadLimits {
        HeadLimits::with_size(64 * 1024)
    }
}

/// What there is at the start of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A beginning; parse again when more bytes have come.
    Incomplete,
    /// A head of `len` bytes; what follows is not part of it.
    Complete {
        /// The head.
        head: T,
        /// How many bytes it took.
        len: usize,
    },
}

/// Says when an incomplete head is worth reading again from its start: when an empty line may have
/// come, or twice as much is there as the last time. However small the pieces it comes in, it costs
/// a few readings, and what is wrong with it is still told early.
#[derive(Debug)]
pub struct Retry {
    limit: usize,
    /// Bytes looked at for an empty line.
    seen: usize,
    /// Bytes at which it is due in any case.
    next: usize,
}

impl Retry {
    /// For a head that has not been read yet.
    pub fn new(limits: &HeadLimits) -> Retry {
        Retry { limit: limits.size, seen: 0, next: 1 }
    }

    /// Whether to read `buf`, which holds what it held the last time and more.
    pub fn is_due(&mut self, buf: &[u8]) -> bool {
        let fresh = buf.get(self.seen..).unwrap_or_default();
        let due = buf.len() >= self.next
            || memchr::memchr_iter(b'\n', fresh).any(|at| {
                let before = buf.get(..self.seen + at).unwrap_or_default();
                before.ends_with(b"\n") || before.ends_with(b"\n\r")
            });
        self.seen = buf.len();
        if due {
            // At the limit it is too large, and that is the end of it.
            self.next = buf.len().saturating_mul(2).min(self.limit.max(buf.len() + 1));
        }
        due
    }
}

/// Reads a request head at the start of `buf`. One empty line before it is skipped (RFC 9112 2.2).
///
/// Checked beyond the grammar: the Host field (RFC 9112 3.2) and that it agrees with the target.
/// Not checked: framing, see [`request_framing`](super::request_framing).
pub fn parse_request(buf: &[u8], limits: &HeadLimits) -> Result<Parsed<RequestHead>, Malformed> {
    let window = buf.get(..limits.size).unwrap_or(buf);
    let cut = match window {
        [] | [b'\r'] | [b'\r', b'\n'] => return incomplete(window, limits),
        [b'\r', b'\n', b'\r' | b'\n', ..] | [b'\n', ..] => return Err(Malformed::StartLine),
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    let start = window.get(cut..).unwrap_or_default();
    let (start, overlong) = clip_target(start, limits.target);
    let mut lines = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let lines = lines.get_mut(..limits.fields.min(FIELDS_MAX)).unwrap_or_default();
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(start, lines) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if overlong => return Err(Malformed::TargetTooLong),
        Ok(httparse::Status::Partial) => return incomplete(window, limits),
        Err(httparse::Error::Version) => {
            return match judge_version(version_of_request(start)) {
                Some(error) => Err(error),
                None => incomplete(window, limits),
            };
        }
        Err(error) => return Err(error.into()),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Malformed::StartLine);
    };
    let line = method.len() + target.len() + "  HTTP/1.1".len();
    let block = behind_line_end(start.get(..len), line)?;
    let version = version(minor);
    let method = Method::parse(method)?;
    let target = Target::parse(&method, target)?;
    let fields = Fields::from_block(block, request.headers)?;
    let mut hosts = fields.all("host");
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => check_host(host, &target)?,
        (Some(_), Some(_)) => return Err(Malformed::HostRepeated),
        (None, _) if version == Version::Http10 => {}
        (None, _) => return Err(Malformed::HostMissing),
    }
    drop(hosts);
    let head = RequestHead { method, target, version, fields };
    Ok(Parsed::Complete { head, len: cut + len })
}

/// Reads a response head at the start of `buf`.
///
/// A status line without the blank before an absent reason is taken: many servers send it, and
/// nobody reads it differently.
pub fn parse_response(buf: &[u8], limits: &HeadLimits) -> Result<Parsed<ResponseHead>, Malformed> {
    let window = buf.get(..limits.size).unwrap_or(buf);
    if matches!(window, [b'\r' | b'\n', ..]) {
        return Err(Malformed::StartLine);
    }
    let mut lines = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let lines = lines.get_mut(..limits.fields.min(FIELDS_MAX)).unwrap_or_default();
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let len = match config.parse_response_with_uninit_headers(&mut response, window, lines) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return incomplete(window, limits),
        Err(httparse::Error::Version) => {
            return match judge_version(window) {
                Some(error) => Err(error),
                None => incomplete(window, limits),
            };
        }
        Err(error) => return Err(error.into()),
    };
    let (Some(status @ 100..), Some(minor)) = (response.code, response.version) else {
        return Err(Malformed::StartLine);
    };
    let head = window.get(..len).unwrap_or_default();
    let prefix = "HTTP/1.1 200".len();
    let line = memchr::memchr(b'\n', head).unwrap_or(len).saturating_sub(1);
    let reason = head.get(prefix..line).unwrap_or_default();
    let reason = reason.strip_prefix(b" ").unwrap_or(reason);
    let block = behind_line_end(Some(head), line)?;
    let head = ResponseHead {
        status,
        reason: std::str::from_utf8(reason).unwrap_or_default().into(),
        version: version(minor),
        fields: Fields::from_block(block, response.headers)?,
    };
    Ok(Parsed::Complete { head, len })
}

fn incomplete<T>(window: &[u8], limits: &HeadLimits) -> Result<Parsed<T>, Malformed> {
    if window.len() >= limits.size {
        return Err(Malformed::HeadTooLarge);
    }
    Ok(Parsed::Incomplete)
}

/// What follows a start line of `line` bytes, which must end in CR LF.
fn behind_line_end(head: Option<&[u8]>, line: usize) -> Result<&[u8], Malformed> {
    let rest = head.and_then(|head| head.get(line..)).unwrap_or_default();
    rest.strip_prefix(b"\r\n").ok_or(Malformed::LineEnd)
}

/// Cuts `start` behind the first byte by which its target is too long, and says whether it did.
/// What stands before the cut is still read, so that an error there is told first.
fn clip_target(start: &[u8], limit: usize) -> (&[u8], bool) {
    let Some(space) = memchr::memchr(b' ', start) else { return (start, false) };
    let end = space.saturating_add(limit).saturating_add(2);
    match start.get(..end).and_then(|clipped| Some((clipped, clipped.get(space + 1..)?))) {
        Some((clipped, target)) if memchr::memchr(b' ', target).is_none() => (clipped, true),
        _ => (start, false),
    }
}

fn version_of_request(start: &[u8]) -> &[u8] {
    start.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or_default()
}

/// Why `text` does not begin with a version we speak; `None` while it may still turn into a
/// version.
fn judge_version(text: &[u8]) -> Option<Malformed> {
    let text = text.get(..8).unwrap_or(text);
    let fits = text.iter().zip(b"HTTP/0.0").all(|(byte, pattern)| match pattern {
        b'0' => byte.is_ascii_digit(),
        _ => byte == pattern,
    });
    match text {
        _ if !fits => Some(Malformed::StartLine),
        b"HTTP/1.0" | b"HTTP/1.1" => Some(Malformed::StartLine),
        _ if text.len() == 8 => Some(Malformed::Version),
        _ => None,
    }
}

fn version(minor: u8) -> Version {
    if minor == 0 { Version::Http10 } else { Version::Http11 }
}

#[cfg(test)]
mod tests;
