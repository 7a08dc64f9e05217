//! A body, read by blocking calls as its framing says (RFC 9112, section 6).

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use crate::http::{Chunk, Chunks, Framing};

/// Bytes read ahead of chunks.
const AHEAD: usize = 64 * 1024;

/// What is still to be read. A stream that ends too early is an error.
pub struct Body<R> {
    stream: BufReader<R>,
    rest: Rest,
}

enum Rest {
    Length(u64),
    Chunked(Box<Chunks>),
    /// Of a stream by TLS: one that ends without its closing alert is an error of TLS' own.
    UntilClose,
}

impl<R: Read> Body<R> {
    /// A body that begins where `stream` does.
    pub fn new(stream: R, framing: Framing) -> Body<R> {
        let rest = match framing {
            Framing::None => Rest::Length(0),
            Framing::Length(len) => Rest::Length(len),
            Framing::Chunked => Rest::Chunked(Box::default()),
            Framing::UntilClose => Rest::UntilClose,
        };
        Body { stream: BufReader::with_capacity(AHEAD, stream), rest }
    }
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let closed = || io::Error::new(ErrorKind::UnexpectedEof, "it broke off");
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.rest {
                Rest::Length(0) => return Ok(0),
                Rest::Length(left) => {
                    let max = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
                    let got = self.stream.read(out.get_mut(..max).unwrap_or_default())?;
                    *left -= got as u64;
                    return if got == 0 { Err(closed()) } else { Ok(got) };
                }
                Rest::UntilClose => return self.stream.read(out),
                Rest::Chunked(chunks) => {
                    let come = self.stream.fill_buf()?;
                    if come.is_empty() {
                        return Err(closed());
                    }
                    let come = come.get(..out.len()).unwrap_or(come);
                    match chunks.step(come).map_err(io::Error::other)? {
                        Chunk::Need => {}
                        Chunk::Skip(len) => self.stream.consume(len),
                        Chunk::Data { skip, len } => {
                            let data = come.get(skip..skip + len).unwrap_or_default();
                            out.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
                            self.stream.consume(skip + len);
                            return Ok(len);
                        }
                        Chunk::End { len } => {
                            self.stream.consume(len);
                            self.rest = Rest::Length(0);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out so many bytes at a time.
    struct Pieces<'a>(&'a [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(out.len()).min(self.0.len());
            out[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    fn read(bytes: &str, piece: usize, framing: Framing) -> Result<String, ErrorKind> {
        let mut text = String::new();
        let mut body = Body::new(Pieces(bytes.as_bytes(), piece), framing);
        body.read_to_string(&mut text).map_err(|error| error.kind())?;
        Ok(text)
    }

    #[test]
    fn bodies_end_where_their_framing_says() {
        let whole = || Ok("hello world".to_owned());
        for piece in 1..20 {
            let chunked = "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nnext";
            assert_eq!(read(chunked, piece, Framing::Chunked), whole());
            assert_eq!(read("hello worldnext", piece, Framing::Length(11)), whole());
            assert_eq!(read("hello world", piece, Framing::UntilClose), whole());
            assert_eq!(read("next", piece, Framing::None), Ok(String::new()));
        }
    }

    #[test]
    fn bodies_that_break_off_are_errors() {
        let closed = Err(ErrorKind::UnexpectedEof);
        assert_eq!(read("hello", 3, Framing::Length(11)), closed);
        for cut in ["", "5\r\n", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "5\r\nhel"] {
            assert_eq!(read(cut, 3, Framing::Chunked), closed, "{cut:?}");
        }
        assert_eq!(read("5\nhello", 3, Framing::Chunked), Err(ErrorKind::Other));
    }
}
