//! The chunked coding (RFC 9112 7.1): reading it without copying, and writing its heads.
//!
//! The decoder sees each byte once and keeps what it needs, so it wants no buffer of any size and
//! gives the same result however its input is cut. It is strict: CR LF only, sizes of 1 to 16
//! hexadecimal digits, extensions as the grammar has them (and then dropped).

use super::fields::{Fields, is_tchar, is_text};
use super::{Malformed, is_hop_by_hop};

/// The longest chunk size line, extensions included, in bytes. Nobody uses extensions.
pub const LINE_MAX: usize = 4096;
/// The longest trailer section, its empty line included, in bytes.
pub const TRAILERS_MAX: usize = 16 * 1024;
/// The end of a chunked body without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

const TRAILER_FIELDS_MAX: usize = 64;
const SIZE_DIGITS_MAX: u32 = 16;

/// What [`Chunks::step`] found at the start of the buffer. The caller consumes exactly what it says
/// and calls again with what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// The buffer is empty and the body is not over: read more.
    Need,
    /// So many bytes of framing, to be dropped.
    Skip(usize),
    /// `skip` bytes of framing, to be dropped, and `len` bytes of the body behind them (`len > 0`).
    Data {
        /// Bytes before the data.
        skip: usize,
        /// Bytes of data.
        len: usize,
    },
    /// The last `len` bytes of framing; the body is over and what follows is not part of it.
    End {
        /// Bytes up to the end of the message.
        len: usize,
    },
}

/// Decoder of one chunked body.
#[derive(Debug)]
pub struct Chunks {
    state: State,
    /// Of the chunk whose size line is being read.
    size: u64,
    digits: u32,
    /// Bytes of the size line so far.
    line: usize,
    trailer_bytes: Vec<u8>,
    trailers: Fields,
}

/// Where in the coding the next byte stands.
#[derive(Clone, Copy, Debug)]
enum State {
    Line(Part),
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers,
    Done,
    Failed(Malformed),
}

/// Where in a size line (RFC 9112 7.1 and 7.1.1; blanks are BWS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Size,
    /// Blanks before the `;` of the next extension.
    Gap,
    NameStart,
    Name,
    NameGap,
    ValueStart,
    Value,
    Quoted,
    Escaped,
    AfterQuoted,
    Lf,
}

impl Chunks {
    /// A decoder at the start of a body.
    pub fn new() -> Chunks {
        Chunks {
            state: State::Line(Part::Size),
            size: 0,
            digits: 0,
            line: 0,
            trailer_bytes: Vec::new(),
            trailers: Fields::new(),
        }
    }

    /// Reads on in `buf`, which begins where the last step's bytes ended.
    ///
    /// # Errors
    /// When the coding is broken; every later step then gives the same error. Data given out before
    /// was well framed, but the body is not whole and the connection is of no use any more.
    pub fn step(&mut self, buf: &[u8]) -> Result<Chunk, Malformed> {
        let result = self.advance(buf);
        if let Err(error) = result {
            self.state = State::Failed(error);
        }
        result
    }

    /// The trailer fields, once, after [`Chunk::End`]. Those that must not come in trailers (RFC
    /// 9110 6.5.1: framing, routing, authentication, caching, content) were dropped.
    pub fn take_trailers(&mut self) -> Fields {
        std::mem::take(&mut self.trailers)
    }

    fn advance(&mut self, buf: &[u8]) -> Result<Chunk, Malformed> {
        let mut at = 0;
        while let Some(&byte) = buf.get(at) {
            match self.state {
                State::Data { left } => {
                    let present = buf.len() - at;
                    let len = usize::try_from(left).map_or(present, |left| left.min(present));
                    let left = left - len as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    return Ok(Chunk::Data { skip: at, len });
                }
                State::Line(part) => self.state = self.line_byte(part, byte)?,
                State::DataCr if byte == b'\r' => self.state = State::DataLf,
                State::DataLf if byte == b'\n' => self.start_line(),
                State::DataCr | State::DataLf => return Err(Malformed::ChunkEnd),
                State::Trailers => {
                    at += self.trailer_line(buf.get(at..).unwrap_or_default())?;
                    continue;
                }
                State::Done => break,
                State::Failed(error) => return Err(error),
            }
            at += 1;
        }
        Ok(match self.state {
            State::Done => Chunk::End { len: at },
            State::Failed(error) => return Err(error),
            _ if at == 0 => Chunk::Need,
            _ => Chunk::Skip(at),
        })
    }

    fn start_line(&mut self) {
        self.state = State::Line(Part::Size);
        (self.size, self.digits, self.line) = (0, 0, 0);
    }

    fn line_byte(&mut self, part: Part, byte: u8) -> Result<State, Malformed> {
        self.line += 1;
        if self.line > LINE_MAX {
            return Err(Malformed::ChunkLineTooLong);
        }
        match (part, char::from(byte).to_digit(16)) {
            (Part::Size, Some(digit)) => {
                if self.digits == SIZE_DIGITS_MAX {
                    return Err(Malformed::ChunkLine);
                }
                self.digits += 1;
                self.size = self.size << 4 | u64::from(digit);
                Ok(State::Line(Part::Size))
            }
            (Part::Size, None) if self.digits == 0 => Err(Malformed::ChunkLine),
            (Part::Lf, _) if byte == b'\n' => Ok(match self.size {
                0 => State::Trailers,
                left => State::Data { left },
            }),
            _ => part.next(byte).map(State::Line).ok_or(Malformed::ChunkLine),
        }
    }

    /// Takes in bytes of the trailer section up to the end of a line, and gives their number.
    fn trailer_line(&mut self, buf: &[u8]) -> Result<usize, Malformed> {
        if self.trailer_bytes.is_empty() && buf.starts_with(b"\r\n") {
            self.state = State::Done;
            return Ok(2);
        }
        let len = memchr::memchr(b'\n', buf).map_or(buf.len(), |at| at + 1);
        if self.trailer_bytes.len() + len > TRAILERS_MAX {
            return Err(Malformed::TrailersTooLarge);
        }
        let line_start = memchr::memrchr(b'\n', &self.trailer_bytes).map_or(0, |at| at + 1);
        self.trailer_bytes.extend_from_slice(buf.get(..len).unwrap_or_default());
        match self.trailer_bytes.get(line_start..).unwrap_or_default() {
            b"\r\n" => self.end_trailers()?,
            b"\n" => return Err(Malformed::LineEnd),
            _ => {}
        }
        Ok(len)
    }

    fn end_trailers(&mut self) -> Result<(), Malformed> {
        let bytes = std::mem::take(&mut self.trailer_bytes);
        self.trailers = parse_trailers(&bytes)?;
        self.state = State::Done;
        Ok(())
    }
}

impl Default for Chunks {
    fn default() -> Chunks {
        Chunks::new()
    }
}

impl Part {
    /// The part behind `byte`; `None` where the grammar does not have it.
    fn next(self, byte: u8) -> Option<Part> {
        let blank = matches!(byte, b' ' | b'\t');
        Some(match (self, byte) {
            (Part::Size | Part::Name | Part::Value | Part::AfterQuoted, b'\r') => Part::Lf,
            (
                Part::Size
                | Part::Gap
                | Part::Name
                | Part::NameGap
                | Part::Value
                | Part::AfterQuoted,
                b';',
            ) => Part::NameStart,
            (Part::Size | Part::Gap | Part::Value | Part::AfterQuoted, _) if blank => Part::Gap,
            (Part::NameStart | Part::ValueStart, _) if blank => self,
            (Part::NameStart | Part::Name, _) if is_tchar(byte) => Part::Name,
            (Part::Name | Part::NameGap, _) if blank => Part::NameGap,
            (Part::Name | Part::NameGap, b'=') => Part::ValueStart,
            (Part::ValueStart, b'"') => Part::Quoted,
            (Part::ValueStart | Part::Value, _) if is_tchar(byte) => Part::Value,
            (Part::Quoted, b'"') => Part::AfterQuoted,
            (Part::Quoted, b'\\') => Part::Escaped,
            (Part::Quoted | Part::Escaped, _) if is_text(byte) => Part::Quoted,
            _ => return None,
        })
    }
}

fn parse_trailers(bytes: &[u8]) -> Result<Fields, Malformed> {
    let mut lines = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
    let mut fields = match httparse::parse_headers(bytes, &mut lines) {
        Ok(httparse::Status::Complete((_, lines))) => Fields::from_block(bytes, lines)?,
        Ok(httparse::Status::Partial) => return Err(Malformed::LineEnd),
        Err(error) => return Err(error.into()),
    };
    fields.retain(|name, _| !is_forbidden_trailer(name));
    Ok(fields)
}

fn is_forbidden_trailer(name: &str) -> bool {
    const NAMES: [&str; 22] = [
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "host",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "vary",
        "via",
        "warning",
        "www-authenticate",
    ];
    is_hop_by_hop(name) || NAMES.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// Appends the head of a chunk of `len` bytes; the data and CR LF follow it. `len` is not 0, which
/// would be the end of the body.
pub fn chunk_head(len: usize, out: &mut Vec<u8>) {
    debug_assert_ne!(len, 0, "a chunk of no bytes ends the body");
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (len >> (4 * place) & 15) as u8;
        out.push(if digit < 10 { b'0' + digit } else { b'a' + digit - 10 });
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends the end of a chunked body with these trailer fields.
pub fn last_chunk(trailers: &Fields, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    trailers.write_to(out);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
