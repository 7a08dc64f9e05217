//! A reader's bytes to a client: head, then spans as they become readable. Hit, miss, joined miss
//! and range are all this.

use std::cell::RefCell;
use std::fmt;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::SystemTime;

use super::answer::{connection, reason};
use super::record::REQUEST_ID;
use super::session::{Client, End};
use crate::cache::{Body, CacheError, Failure, Reader, Seen, Span};
use crate::http::range::{content_range, parse_range, unsatisfied_range};
use crate::http::{Fields, Framing, LAST_CHUNK, Method, RequestHead, Version, chunk_head};
use crate::net::{Either, HandOver, Ktls, NetError, bring_in, race, send_file};
use crate::stats::Stats;

/// A body up to this size leaves with its head in one write.
const ONE_WRITE: u64 = 64 * 1024;

/// A hit of this size is worth a connection's TLS in the kernel, if that is wanted.
const LARGE: u64 = 256 * 1024;

/// Bytes per span: how often the progress of an entry is looked at while it is sent.
const SPAN: u64 = 8 * 1024 * 1024;

thread_local! {
    /// Room for a head and a small body, used again for the next answer.
    static ANSWER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// How the bytes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source<'a> {
    /// A stored entry; the lines of its head that every hit has.
    Hit(&'a [u8]),
    /// A fill this request began or joined.
    Miss,
}

/// What of the entry the client wants, decided from its request and the entry's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it; the length where it is known.
    Whole(Option<u64>),
    /// `start..end` of `len` bytes.
    Range(u64, u64, u64),
    /// Nothing: no byte of the range exists; the body has this many bytes.
    Unsatisfiable(u64),
    /// Nothing: the client has it already.
    NotModified,
}

impl Part {
    /// Evaluates the request's conditions and range (RFC 9110, section 13.2.2).
    pub fn wanted(request: &RequestHead, stored: &Fields, len: Option<u64>) -> Part {
        let fields = &request.fields;
        let etag = stored.get("etag");
        if fields.contains("if-none-match") {
            let same = |given: &str| Some(opaque(given.as_bytes())) == etag.map(opaque);
            if fields.tokens("if-none-match").any(|given| given == "*" || same(given)) {
                return Part::NotModified;
            }
        }
        // Two fields are no range. Of nothing there is no part, yet all of it can be had: whoever
        // asks for everything by `bytes=0-` does not expect a refusal.
        let sole = request.method == Method::GET && fields.count("range") == 1;
        let range = fields.get("range").filter(|_| sole && len != Some(0));
        match (range.and_then(parse_range), len) {
            (Some(range), Some(len)) if may_range(fields, stored) => range
                .resolve(len)
                .map_or(Part::Unsatisfiable(len), |(start, end)| Part::Range(start, end, len)),
            _ => Part::Whole(len),
        }
    }

    /// The first byte wanted of a request whose length is known or not.
    pub fn start(self) -> u64 {
        match self {
            Part::Range(start, ..) => start,
            _ => 0,
        }
    }
}

/// If-Range (RFC 9110, section 13.1.5): the range only of what the client has begun with.
fn may_range(request: &Fields, stored: &Fields) -> bool {
    match request.get("if-range") {
        None => true,
        Some(given) if given.starts_with(b"\"") => stored.get("etag") == Some(given),
        Some(given) if given.starts_with(b"W/") => false,
        Some(given) => stored.get("last-modified") == Some(given),
    }
}

fn opaque(etag: &[u8]) -> &[u8] {
    etag.strip_prefix(b"W/").unwrap_or(etag)
}

/// Everything about one delivery.
pub struct Delivery<'a> {
    /// Whom to.
    pub client: &'a Client,
    /// Counters.
    pub stats: &'a Stats,
    /// What TLS goes to the kernel.
    pub ktls: &'a Ktls,
    /// What `Via` says.
    pub via: &'a str,
    /// The request.
    pub request: &'a RequestHead,
    /// Whether another request may follow.
    pub keep_alive: bool,
    /// How the bytes are there.
    pub source: Source<'a>,
}

/// Why a delivery did not come to its end.
pub enum Undelivered {
    /// The session has ended, as it says.
    Ended(End),
    /// The entry can't be read, and nothing of an answer was sent.
    Unread(CacheError),
    /// The entry failed after the head was sent.
    Entry {
        /// Why.
        why: Failure,
        /// Position of the next byte the client is to get.
        at: u64,
        /// Where the part wanted ends, if not where the body does.
        end: Option<u64>,
        /// Whether the client gets chunks.
        chunked: bool,
    },
}

impl Delivery<'_> {
    /// Sends head and body. Gives the bytes of the body sent.
    pub async fn send(
        &self,
        reader: &mut Reader,
        seen: &Seen,
        stored: &Fields,
        part: Part,
    ) -> Result<u64, Undelivered> {
        let (start, end) = match part {
            Part::Whole(len) => (0, len),
            Part::Range(start, end, _) => (start, Some(end)),
            Part::Unsatisfiable(_) | Part::NotModified => (0, Some(0)),
        };
        let framing = match (end, self.request.version) {
            (Some(end), _) => Framing::Length(end - start),
            (None, Version::Http11) => Framing::Chunked,
            (None, Version::Http10) => Framing::UntilClose,
        };
        let mut head = ANSWER.take();
        head.clear();
        self.write_head(&mut head, seen, stored, part, framing);
        let conn = &self.client.conn;
        if self.request.method == Method::HEAD || end == Some(start) {
            conn.write(&head).await.map_err(broken)?;
            return Ok(0);
        }
        reader.seek(start, end);
        if let Some(end) = end
            && end - start <= ONE_WRITE
            && end <= seen.written
        {
            let read = self.read_into(&mut head, seen, start..end).await;
            read.map_err(|error| Undelivered::Unread(error.into()))?;
            conn.write(&head).await.map_err(broken)?;
            ANSWER.set(head);
            self.count(end - start);
            return Ok(end - start);
        }
        // Held back only for bytes that follow at once: a client must not wait for its head.
        let more = end.is_some() && seen.written > start;
        conn.write_parts(&[&head], more).await.map_err(broken)?;
        drop(head);
        if matches!(self.source, Source::Hit(_)) && end.is_some_and(|end| end - start >= LARGE) {
            self.hand_over().await.map_err(broken)?;
        }
        let sent = self.spans(reader, &seen.body, framing).await?;
        match framing {
            Framing::Chunked => conn.write(LAST_CHUNK).await.map_err(broken)?,
            Framing::UntilClose => return Err(Undelivered::Ended(End::Answered)),
            _ => {}
        }
        Ok(sent)
    }

    async fn hand_over(&self) -> Result<(), NetError> {
        if self.ktls.why().is_some() {
            return Ok(());
        }
        match self.client.conn.hand_over(self.ktls).await? {
            HandOver::None => {}
            HandOver::Done => Stats::add(&self.stats.ktls, 1),
            HandOver::Kept => Stats::add(&self.stats.ktls_refused, 1),
        }
        Ok(())
    }

    async fn spans(
        &self,
        reader: &mut Reader,
        body: &Arc<Body>,
        framing: Framing,
    ) -> Result<u64, Undelivered> {
        let conn = &self.client.conn;
        let mut sent = 0;
        loop {
            let span = match self.next(reader).await {
                Ok(Some(span)) => span,
                Ok(None) => return Ok(sent),
                Err(why) => {
                    let (at, chunked) = (reader.offset(), framing == Framing::Chunked);
                    return Err(Undelivered::Entry { why, at, end: reader.end(), chunked });
                }
            };
            if framing == Framing::Chunked {
                let mut line = Vec::new();
                // A span is at most SPAN bytes long.
                chunk_head(span.len as usize, &mut line);
                conn.write_parts(&[&line], true).await.map_err(broken)?;
            }
            let (mut at, end) = (span.offset, span.offset + span.len);
            let sent_all = send_file(conn, &body.file, &mut at, end).await;
            sent_all.map_err(|error| match error {
                // A chunk was promised, and is not to be had.
                NetError::File(why) if framing != Framing::Chunked => Undelivered::Entry {
                    why: Failure::Storage(CacheError::Io(why)),
                    at,
                    end: reader.end(),
                    chunked: false,
                },
                error => broken(error),
            })?;
            if framing == Framing::Chunked {
                conn.write(b"\r\n").await.map_err(broken)?;
            }
            sent += span.len;
            self.count(span.len);
        }
    }

    /// Appends a part of the body, at most [`ONE_WRITE`] bytes.
    async fn read_into(&self, out: &mut Vec<u8>, seen: &Seen, part: Range<u64>) -> io::Result<()> {
        let (start, end) = (part.start as usize, part.end as usize);
        if let (Source::Hit(_), Some(len)) = (self.source, seen.len)
            && let Some(kept) = seen.body.kept(len)?
        {
            out.extend_from_slice(kept.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
            return Ok(());
        }
        if let Err(NetError::File(error)) =
            bring_in(&self.client.conn, &seen.body.file, part.start, part.end).await
        {
            return Err(error.kind().into());
        }
        let at = out.len();
        out.resize(at + (end - start), 0);
        seen.body.file.read_exact_at(&mut out[at..], part.start)
    }

    /// The next span. A client that ends its half while it waits for one may have left.
    async fn next(&self, reader: &mut Reader) -> Result<Option<Span>, Failure> {
        if let Either::Left(span) = race(reader.next(SPAN), self.client.conn.ends()).await {
            return span;
        }
        reader.unfollow();
        reader.next(SPAN).await
    }

    fn count(&self, sent: u64) {
        self.client.record.sent(sent);
        Stats::add(&self.stats.bytes_to_clients, sent);
        if self.source != Source::Miss {
            Stats::add(&self.stats.bytes_from_cache, sent);
        }
    }

    fn write_head(
        &self,
        out: &mut Vec<u8>,
        seen: &Seen,
        stored: &Fields,
        part: Part,
        framing: Framing,
    ) {
        let status = match part {
            Part::Whole(_) => 200,
            Part::Range(..) => 206,
            Part::Unsatisfiable(_) => 416,
            Part::NotModified => 304,
        };
        self.client.record.answered(status);
        match status {
            200 => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
            _ => line(out, format_args!("HTTP/1.1 {status} {}", reason(status))),
        }
        match self.source {
            Source::Hit(lines) => {
                out.extend_from_slice(lines);
                let age = SystemTime::now().duration_since(seen.body.stored).unwrap_or_default();
                line(out, format_args!("Age: {}", age.as_secs()));
            }
            Source::Miss => stored.write_to(out),
        }
        match (framing, part) {
            (_, Part::NotModified) => {}
            (Framing::Length(len), _) => line(out, format_args!("Content-Length: {len}")),
            (Framing::Chunked, _) => line(out, format_args!("Transfer-Encoding: chunked")),
            _ => {}
        }
        let range = match part {
            Part::Range(start, end, len) => Some(content_range(start, end, len)),
            Part::Unsatisfiable(len) => Some(unsatisfied_range(len)),
            Part::Whole(_) | Part::NotModified => None,
        };
        if let Some(range) = range {
            line(out, format_args!("Content-Range: {range}"));
        }
        let id = self.client.record.id();
        for part in ["Via: ", self.via, "\r\n", REQUEST_ID, ": ", id.as_str(), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        let keep_alive = self.keep_alive && framing != Framing::UntilClose;
        out.extend_from_slice(connection(self.request.version, keep_alive).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

fn line(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{text}\r\n");
}

fn broken(_: NetError) -> Undelivered {
    Undelivered::Ended(End::Broken)
}
