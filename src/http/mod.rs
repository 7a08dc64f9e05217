//! HTTP/1.1 messages: bytes to values and back (RFC 9110, RFC 9112). No sockets, no clock.
//!
//! Words: a *head* is a start line and its *fields*; the *target* is what the request line asks
//! for; *framing* says where a body ends; a *chunk* is a stretch of a body in the chunked coding.
//!
//! This is the layer that keeps requests from being smuggled, so what must stay true is:
//!
//! - **One reading.** Whatever two implementations are known to read differently is refused, not
//!   repaired: bare CR or LF, folded lines, a space before the colon, repeated or listed
//!   Content-Length, any Transfer-Encoding but one `chunked`, both of them together, a second Host.
//! - **Splits do not matter.** A prefix of a head is `Incomplete` or the error the whole gives. The
//!   chunk decoder gives the same body and the same verdict however its input is cut.
//! - **No input panics**, and none costs more than the named limits.
//! - What was read and is written again reads as the same thing: [`Fields`] can hold no line break,
//!   whoever puts it there.
//!
//! [`parse_request`] and [`parse_response`] check a head; where its body ends is asked separately,
//! of [`request_framing`] and [`response_framing`], and **must** be asked before anything of the
//! message is forwarded.

mod basic;
mod chunks;
mod fields;
mod framing;
mod head;
mod malformed;
pub mod range;
mod target;
#[cfg(test)]
mod tests;

pub use basic::Basic;
pub use chunks::{Chunk, Chunks, LAST_CHUNK, LINE_MAX, TRAILERS_MAX, chunk_head, last_chunk};
pub use fields::{Fields, is_hop_by_hop};
pub use framing::{
    Framing, claims_a_body, content_length, keeps_alive, request_framing, response_framing,
};
pub use head::{
    FIELDS_MAX, HeadLimits, METHOD_MAX, Method, Parsed, RequestHead, ResponseHead, Retry, Version,
    parse_request, parse_response,
};
pub use malformed::Malformed;
pub use target::{Authority, Host, Scheme, Target, split_path};
