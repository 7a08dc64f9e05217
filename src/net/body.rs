//! A message's body, read off a connection piece by piece as its framing says (RFC 9112, section
//! 6).

use super::{Conn, NetError};
use crate::http::{Chunk, Chunks, Fields, Framing};

/// What is still to be read of a body.
pub struct BodyReader {
    rest: Rest,
    trailers: Option<Fields>,
}

enum Rest {
    Nothing,
    Length(u64),
    Chunked(Box<Chunks>),
    UntilClose,
}

impl BodyReader {
    /// A body that has not been begun.
    pub fn new(framing: Framing) -> BodyReader {
        let rest = match framing {
            Framing::None | Framing::Length(0) => Rest::Nothing,
            Framing::Length(len) => Rest::Length(len),
            Framing::Chunked => Rest::Chunked(Box::default()),
            Framing::UntilClose => Rest::UntilClose,
        };
        BodyReader { rest, trailers: None }
    }

    /// Looks at what of the body has come already, and takes nothing: broken framing is better
    /// known before a head is sent on than after.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn glance(framing: Framing, conn: &Conn) -> Result<(), NetError> {
        if framing != Framing::Chunked {
            return Ok(());
        }
        let mut chunks = Chunks::new();
        conn.peek(|mut buf| {
            loop {
                let taken = match chunks.step(buf)? {
                    Chunk::Need | Chunk::End { .. } => return Ok(()),
                    Chunk::Skip(taken) => taken,
                    Chunk::Data { skip, len } => skip + len,
                };
                buf = buf.get(taken..).unwrap_or_default();
            }
        })
    }

    /// Whether everything was read.
    pub fn is_done(&self) -> bool {
        matches!(self.rest, Rest::Nothing)
    }

    /// Bytes still to come, where the framing says.
    pub fn remaining(&self) -> Option<u64> {
        match self.rest {
            Rest::Nothing => Some(0),
            Rest::Length(len) => Some(len),
            Rest::Chunked(_) | Rest::UntilClose => None,
        }
    }

    /// The trailer fields of a chunked body that has ended.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        self.trailers.take()
    }

    /// Appends the next bytes to `out`, at most `max`, which is not 0; returns 0 at the end of the
    /// body. A stream that ends too early is [`NetError::Closed`].
    pub async fn read(
        &mut self,
        conn: &Conn,
        out: &mut Vec<u8>,
        max: usize,
    ) -> Result<usize, NetError> {
        match &mut self.rest {
            Rest::Nothing => Ok(0),
            Rest::Length(left) => {
                let max = usize::try_from(*left).unwrap_or(usize::MAX).min(max);
                let got = conn.read(out, max).await?;
                if got == 0 {
                    return Err(NetError::Closed);
                }
                *left -= got as u64;
                if *left == 0 {
                    self.rest = Rest::Nothing;
                }
                Ok(got)
            }
            Rest::UntilClose => {
                let got = conn.read(out, max).await?;
                if got == 0 {
                    if !conn.ended_clean() {
                        return Err(NetError::Closed);
                    }
                    self.rest = Rest::Nothing;
                }
                Ok(got)
            }
            Rest::Chunked(_) => self.read_chunk(conn, out, max).await,
        }
    }

    async fn read_chunk(
        &mut self,
        conn: &Conn,
        out: &mut Vec<u8>,
        max: usize,
    ) -> Result<usize, NetError> {
        let mut total = 0;
        loop {
            let Rest::Chunked(chunks) = &mut self.rest else { return Ok(total) };
            match conn.peek(|buf| chunks.step(&buf[..buf.len().min(max - total)]))? {
                Chunk::Need if total > 0 => return Ok(total),
                Chunk::Need => {
                    if conn.more().await? == 0 {
                        return Err(NetError::Closed);
                    }
                }
                Chunk::Skip(len) => conn.consume(len),
                Chunk::Data { skip, len } => {
                    conn.peek(|buf| out.extend_from_slice(&buf[skip..skip + len]));
                    conn.consume(skip + len);
                    total += len;
                    if total >= max {
                        return Ok(total);
                    }
                }
                Chunk::End { len } => {
                    conn.consume(len);
                    self.trailers = Some(chunks.take_trailers());
                    self.rest = Rest::Nothing;
                    return Ok(total);
                }
            }
        }
    }
}
