//! A request's body on its way upstream, beside whatever else goes on with the request: answers,
//! interim ones or the final one, may come before it has ended.

use std::pin::Pin;

use super::exchange::Request;
use crate::http::{Fields, Malformed, chunk_head, last_chunk};
use crate::net::{BodyReader, Conn, Either, NetError, race};

/// Bytes of it in flight.
const CHUNK: usize = 128 * 1024;

/// Whose fault it was that a request came to no good end.
pub enum Fault {
    /// The client's.
    Client,
    /// The client's, who is there, but what it sends is no body.
    Request(Malformed),
    /// Upstream's.
    Upstream(NetError),
}

/// A body being sent. It moves only while one of these methods is awaited.
pub struct Upload<'a>(State<'a>);

enum State<'a> {
    Sending(Pin<Box<dyn Future<Output = Result<(), Fault>> + 'a>>),
    Whole,
    /// Upstream takes no more of it.
    Refused(NetError),
}

impl<'a> Upload<'a> {
    /// The body of `request`, not begun yet.
    pub fn new(from: &'a Conn, to: &'a Conn, request: &'a Request) -> Upload<'a> {
        let body = BodyReader::new(request.framing);
        if body.is_done() {
            return Upload(State::Whole);
        }
        Upload(State::Sending(Box::pin(send(from, to, body, &request.head.fields))))
    }

    /// Whether all of it was sent.
    pub fn is_whole(&self) -> bool {
        matches!(self.0, State::Whole)
    }

    /// Why upstream takes no more of it, where that is so.
    pub fn refusal(&self) -> Option<&NetError> {
        match &self.0 {
            State::Refused(error) => Some(error),
            _ => None,
        }
    }

    /// Sends until all of it is gone, or upstream has something to say. The fault is the client's.
    pub async fn until_heard(&mut self, upstream: &Conn) -> Result<(), Fault> {
        let State::Sending(sending) = &mut self.0 else { return Ok(()) };
        match race(upstream.stirs(), sending.as_mut()).await {
            Either::Left(()) => Ok(()),
            Either::Right(result) => self.settle(result),
        }
    }

    /// Runs a task to its end while the body goes on. The fault is the client's, and ends the task.
    pub async fn beside<T>(&mut self, task: impl Future<Output = T>) -> Result<T, Fault> {
        let mut task = std::pin::pin!(task);
        while let State::Sending(sending) = &mut self.0 {
            match race(task.as_mut(), sending.as_mut()).await {
                Either::Left(done) => return Ok(done),
                Either::Right(result) => self.settle(result)?,
            }
        }
        Ok(task.await)
    }

    /// Sends what is left. The fault is the client's.
    pub async fn finish(&mut self) -> Result<(), Fault> {
        let State::Sending(sending) = &mut self.0 else { return Ok(()) };
        let result = sending.await;
        self.settle(result)
    }

    fn settle(&mut self, result: Result<(), Fault>) -> Result<(), Fault> {
        self.0 = match result {
            Ok(()) => State::Whole,
            // It may have said why before it closed.
            Err(Fault::Upstream(error)) => State::Refused(error),
            Err(fault) => return Err(fault),
        };
        Ok(())
    }
}

async fn send(from: &Conn, to: &Conn, mut body: BodyReader, head: &Fields) -> Result<(), Fault> {
    let chunked = body.remaining().is_none();
    let mut buf = Vec::new();
    while !body.is_done() {
        buf.reserve(CHUNK);
        let got = body.read(from, &mut buf, CHUNK).await.map_err(|error| match error {
            NetError::Malformed(error) => Fault::Request(error),
            _ => Fault::Client,
        })?;
        if got > 0 {
            write_piece(to, &buf, chunked).await.map_err(Fault::Upstream)?;
        }
        buf.clear();
    }
    if chunked {
        let mut end = Vec::new();
        last_chunk(&trailers(&mut body, head), &mut end);
        to.write(&end).await.map_err(Fault::Upstream)?;
    }
    Ok(())
}

/// The trailers that cross, of a body whose message has this head.
pub fn trailers(body: &mut BodyReader, head: &Fields) -> Fields {
    let mut trailers = body.take_trailers().unwrap_or_default();
    trailers.strip_hop_by_hop_of(head);
    trailers
}

/// Writes a piece of a body, as a chunk where asked.
pub async fn write_piece(to: &Conn, piece: &[u8], chunked: bool) -> Result<(), NetError> {
    if !chunked {
        return to.write(piece).await;
    }
    let mut head = Vec::new();
    chunk_head(piece.len(), &mut head);
    to.write_parts(&[&head, piece, b"\r\n"], false).await
}
