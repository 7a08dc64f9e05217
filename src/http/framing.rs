//! Where a body ends (RFC 9112 6), and whether the connection can be used after it (RFC 9112 9.3).
//!
//! What must stay true: of a message with a body there is one reading. Content-Length is one line
//! with one number, Transfer-Encoding is one line saying `chunked`, never both; anything else is
//! refused.

use super::fields::is_token;
use super::range::number;
use super::{Fields, Malformed, Method, RequestHead, ResponseHead, Version};

/// How a message's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none: the next message follows the head (or a tunnel does, or another protocol).
    None,
    /// So many bytes; may be 0.
    Length(u64),
    /// The chunked coding; read it with [`Chunks`](super::Chunks).
    Chunked,
    /// Everything until the peer closes; responses only.
    UntilClose,
}

/// How a request's body is delimited (RFC 9112 6.3).
///
/// A CONNECT with a body is refused: what follows its head is the tunnel's (RFC 9110 9.3.6).
pub fn request_framing(head: &RequestHead) -> Result<Framing, Malformed> {
    let framing = framing(head.version, &head.fields)?.unwrap_or(Framing::None);
    match framing {
        Framing::Length(0) if head.method == Method::CONNECT => Ok(Framing::None),
        Framing::Length(_) | Framing::Chunked if head.method == Method::CONNECT => {
            Err(Malformed::ConnectBody)
        }
        framing => Ok(framing),
    }
}

/// How the body of a response to a request with this method is delimited (RFC 9112 6.3).
///
/// HEAD, 1xx, 204, 304 and a 2xx to CONNECT have none, whatever their fields say; a connection on
/// which bytes follow such a response must not be used again.
pub fn response_framing(
    request_method: &Method,
    head: &ResponseHead,
) -> Result<Framing, Malformed> {
    if *request_method == Method::CONNECT && (200..300).contains(&head.status) {
        // Its fields are to be ignored (RFC 9110 9.3.6).
        return Ok(Framing::None);
    }
    let framing = framing(head.version, &head.fields)?;
    if *request_method == Method::HEAD || matches!(head.status, 100..200 | 204 | 304) {
        return Ok(Framing::None);
    }
    Ok(framing.unwrap_or(Framing::UntilClose))
}

/// The Content-Length field's value, where there is one (RFC 9110 8.6): also what a HEAD or a 304
/// tells about a body that is not sent.
///
/// # Errors
/// When there is more than one such field, or it is not one decimal number of 64 bits. A list of
/// equal numbers, which RFC 9110 would let a recipient repair, is refused as well.
pub fn content_length(fields: &Fields) -> Result<Option<u64>, Malformed> {
    let mut lines = fields.all("content-length");
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => number(value).map(Some).ok_or(Malformed::ContentLength),
        (Some(_), Some(_)) => Err(Malformed::ContentLength),
    }
}

/// Whether a status that has no body came with fields that announce one (RFC 9110 8.6, RFC 9112
/// 6.1): a peer that sends them may well send the body, too.
pub fn claims_a_body(head: &ResponseHead) -> bool {
    matches!(head.status, 100..200 | 204)
        && (head.fields.contains("transfer-encoding")
            || head.fields.get("content-length").is_some_and(|len| number(len) != Some(0)))
}

/// Whether the sender means to keep the connection open after this message (RFC 9112 9.3).
pub fn keeps_alive(version: Version, fields: &Fields) -> bool {
    match version {
        _ if fields.has_token("connection", "close") => false,
        Version::Http10 => fields.has_token("connection", "keep-alive"),
        Version::Http11 => true,
    }
}

/// What the fields say; `None` where they say nothing.
fn framing(version: Version, fields: &Fields) -> Result<Option<Framing>, Malformed> {
    if !fields.contains("transfer-encoding") {
        return Ok(content_length(fields)?.map(Framing::Length));
    }
    if version == Version::Http10 {
        return Err(Malformed::CodingInHttp10);
    }
    if fields.contains("content-length") {
        return Err(Malformed::LengthAndCoding);
    }
    let mut lines = fields.all("transfer-encoding");
    match (lines.next(), lines.next()) {
        (Some(value), None) if value.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
        _ => Err(refused_coding(fields)),
    }
}

/// Why a Transfer-Encoding that is not one `chunked` is refused: a well-formed list that has
/// `chunked` at most once, at its end, asks for codings that are not implemented here (501);
/// anything else is wrong (400).
fn refused_coding(fields: &Fields) -> Malformed {
    let mut unknown = false;
    let mut ended = false;
    for line in fields.all("transfer-encoding") {
        for element in line.split(|byte| *byte == b',') {
            let coding = element.trim_ascii();
            if ended || !is_token(coding) {
                return Malformed::TransferEncoding;
            }
            ended = coding.eq_ignore_ascii_case(b"chunked");
            unknown |= !ended;
        }
    }
    if unknown { Malformed::UnknownCoding } else { Malformed::TransferEncoding }
}

#[cfg(test)]
mod tests;
