//! What can be wrong with a message. Every way the other modules refuse input is a variant here.

/// Why bytes from a peer are no message, or none that is safe to pass on.
///
/// `Display` is one plain sentence without any of the peer's bytes in it, fit for an error body and
/// for a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// RFC 9112 3 and 4.
    #[error("the first line is not an HTTP/1 request or status line")]
    StartLine,
    /// RFC 9110 2.5; also the HTTP/2 preface.
    #[error("the HTTP version is neither 1.0 nor 1.1")]
    Version,
    /// RFC 9110 9.1: a method is a token.
    #[error("the method is not a token")]
    Method,
    /// RFC 9112 3: longer than any method there is.
    #[error("the method is too long")]
    MethodTooLong,
    /// RFC 9112 3.2.
    #[error("the request target is not valid for this method")]
    Target,
    /// RFC 9112 3, last paragraph.
    #[error("the request target is too long")]
    TargetTooLong,
    /// The head does not end within [`HeadLimits::size`](super::HeadLimits).
    #[error("the head is too large")]
    HeadTooLarge,
    /// More field lines than [`HeadLimits::fields`](super::HeadLimits).
    #[error("the head has too many fields")]
    TooManyFields,
    /// RFC 9112 5: also a space before the colon, and a folded line.
    #[error("a field line does not begin with a name and a colon")]
    FieldName,
    /// RFC 9110 5.5.
    #[error("a field value holds a control character")]
    FieldValue,
    /// RFC 9112 2.2.
    #[error("a line does not end in CR LF")]
    LineEnd,
    /// RFC 9112 3.2.
    #[error("the Host field is missing")]
    HostMissing,
    /// RFC 9112 3.2.
    #[error("there is more than one Host field")]
    HostRepeated,
    /// RFC 9110 7.2, RFC 3986 3.2.
    #[error("the host or its port is not valid")]
    Host,
    /// The request line names one host and the Host field another.
    #[error("the Host field and the request target name different hosts")]
    HostMismatch,
    /// RFC 9110 8.6: repeated, listed, signed or too large values included.
    #[error("Content-Length is not one decimal number")]
    ContentLength,
    /// RFC 9112 6.1: `chunked` repeated, not last, or no list of codings at all.
    #[error("Transfer-Encoding is not `chunked`")]
    TransferEncoding,
    /// RFC 9112 6.1: a coding that nobody here speaks.
    #[error("Transfer-Encoding names a coding other than `chunked`")]
    UnknownCoding,
    /// RFC 9112 6.3: the classic of request smuggling.
    #[error("there is both a Transfer-Encoding and a Content-Length")]
    LengthAndCoding,
    /// RFC 9112 6.1: HTTP/1.0 does not know the field.
    #[error("there is a Transfer-Encoding in an HTTP/1.0 message")]
    CodingInHttp10,
    /// RFC 9110 9.3.6: what follows belongs to the tunnel.
    #[error("a CONNECT request has a body")]
    ConnectBody,
    /// RFC 9110 15.2.2: a 101 to a request that has no Upgrade.
    #[error("the answer switches to a protocol that nobody asked for")]
    SwitchUnasked,
    /// More 1xx answers than anybody has a use for.
    #[error("there are too many interim answers")]
    InterimsTooMany,
    /// RFC 9112 7.1.
    #[error("a chunk size line is not valid")]
    ChunkLine,
    /// A size line longer than [`LINE_MAX`](super::LINE_MAX).
    #[error("a chunk size line is too long")]
    ChunkLineTooLong,
    /// RFC 9112 7.1.
    #[error("a chunk is not followed by CR LF")]
    ChunkEnd,
    /// A trailer section longer than [`TRAILERS_MAX`](super::TRAILERS_MAX).
    #[error("the trailer section is too large")]
    TrailersTooLarge,
}

impl Malformed {
    /// The status a server answers with when a request is refused for this.
    pub fn status(&self) -> u16 {
        match self {
            Malformed::TargetTooLong => 414,
            Malformed::HeadTooLarge | Malformed::TooManyFields | Malformed::TrailersTooLarge => 431,
            Malformed::UnknownCoding | Malformed::MethodTooLong => 501,
            Malformed::Version => 505,
            _ => 400,
        }
    }
}

impl From<httparse::Error> for Malformed {
    fn from(error: httparse::Error) -> Malformed {
        match error {
            httparse::Error::HeaderName => Malformed::FieldName,
            httparse::Error::HeaderValue => Malformed::FieldValue,
            httparse::Error::NewLine => Malformed::LineEnd,
            httparse::Error::TooManyHeaders => Malformed::TooManyFields,
            httparse::Error::Version => Malformed::Version,
            httparse::Error::Status | httparse::Error::Token => Malformed::StartLine,
        }
    }
}
