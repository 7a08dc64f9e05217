//! The body of an answer into a fill: read, append, prove. Where upstream breaks off in the middle,
//! the registry is asked again, for a fresh redirect, from where the fill stands.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exchange::Request;
use super::fetch::{FetchError, Fetched, Recipe};
use super::record::REQUEST_ID;
use super::{Worker, learn, prove};
use crate::cache::{CacheError, Committed, Failure, Fill};
use crate::http::{Fields, ResponseHead, range};
use crate::key::Digest;
use crate::net::{BodyReader, Conn, Either, NetError, race};
use crate::stats::{Event, Stats};

/// Bytes read from upstream after which nothing more is read before they are written.
const CHUNK: usize = 256 * 1024;

/// Room for them, and for what one more read brings: it may complete a record, too.
const ROOM: usize = CHUNK + 160 * 1024;

/// Wait before the first resumption; doubled at each further one.
const PAUSE: Duration = Duration::from_millis(200);

/// The longest such wait.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What upstream has to send of a body that nobody reads any more, in bytes a second over
/// `upstream.read_timeout`: one that sends less would keep one of `limits.max_fills` places for
/// hours with a single layer, and for ever with a body without an end.
const UNREAD_RATE_MIN: u64 = 8 * 1024;

/// Fills an entry from the answer in hand, to the end, whether anybody reads it or not; but where
/// nobody does it is not resumed once upstream was silent for `upstream.read_timeout`, and given up
/// where it sends less than [`UNREAD_RATE_MIN`] for so long.
///
/// `shown`: the request it is for, the digest it will have proven, where there is one, and when
/// upstream answered.
pub async fn store(
    worker: Rc<Worker>,
    recipe: Recipe,
    fetched: Fetched,
    fill: Fill,
    shown: Option<(Request, Digest, u64)>,
) {
    let reader = fill.reader();
    let url = recipe.url.clone();
    let (host, path) = (url.host.to_string(), url.path().to_owned());
    let result = run(&worker, &recipe, fetched, fill).await;
    if let (Ok(_), Some((request, digest, answered_ms))) = (&result, &shown) {
        prove::note_served(&worker, request, digest, *answered_ms);
        if let Some(seen) = reader.glance() {
            prove::note_manifest(&worker, request, &seen);
        }
    }
    if let (Ok(_), Some(seen)) = (&result, reader.glance()) {
        learn::stored(&worker, &url, seen);
    }
    match result {
        Ok(Committed { len, kept: true }) => {
            tracing::info!(%host, %path, size = len, "cached response");
        }
        Ok(Committed { len, kept: false }) => {
            tracing::info!(%host, %path, size = len, "response delivered, not cached");
        }
        Err(Failure::Storage(why @ CacheError::TooLarge)) => {
            tracing::info!(%host, %path, %why, "response not cached");
        }
        // The cache has said what is wrong, and counted it.
        Err(Failure::Storage(why)) => tracing::debug!(%host, %path, %why, "fill failed"),
        Err(why) => {
            Stats::add(&worker.stats.errors, 1);
            tracing::warn!(%host, %path, %why, "fill failed");
            let request_id = recipe.fields.get_str(REQUEST_ID).unwrap_or_default().to_owned();
            let event = Event::new("fill-failed", why.to_string());
            worker.stats.errors_seen.push(Event { host, path, request_id, ..event });
        }
    }
}

async fn run(
    worker: &Worker,
    recipe: &Recipe,
    mut fetched: Fetched,
    mut fill: Fill,
) -> Result<Committed, Failure> {
    let validator = strong_etag(&fetched.head.fields);
    let mut skip = 0;
    let mut retries = 0;
    let mut pace = Pace::from(Instant::now());
    loop {
        let error = match pour(worker, &mut fetched, &mut fill, skip, &mut pace).await {
            Ok(()) => {
                fetched.recycle(worker);
                return fill.commit().await;
            }
            Err(Broken::Sink(failure)) => return Err(fill.fail(failure)),
            Err(Broken::Source(error)) => {
                worker.note_error(&fetched.url.host, &error);
                error
            }
        };
        drop(fetched);
        let mut why = error.to_string();
        (fetched, skip) = loop {
            let silent = pace.heard.elapsed() >= worker.limits.read_timeout;
            if retries >= worker.limits.retries || silent && fill.is_unfollowed() {
                return Err(fill.fail(Failure::Source(why.into())));
            }
            monoio::time::sleep(PAUSE_MAX.min(PAUSE * 2_u32.saturating_pow(retries))).await;
            retries += 1;
            tracing::info!(host = %recipe.url.host, path = %recipe.url.path(), why,
                from = fill.written(), "resuming a fill");
            match resume(worker, recipe, &fill, validator.as_deref()).await {
                Ok(Resumed::Rest(rest, there)) => break (*rest, there),
                Ok(Resumed::Nothing) => return fill.commit().await,
                Err(Resume::Again(error)) => why = error,
                Err(Resume::Never(error)) => {
                    return Err(fill.fail(Failure::Source(error.into())));
                }
            }
        };
    }
}

enum Broken {
    Source(NetError),
    Sink(Failure),
}

/// How upstream's bytes come.
struct Pace {
    /// When the last of them came.
    heard: Instant,
    /// Since when so many came with nobody to read them.
    unread: (Instant, u64),
}

impl Pace {
    fn from(now: Instant) -> Pace {
        Pace { heard: now, unread: (now, 0) }
    }

    /// So many more have come. Whether they come too slowly, for the last `window`, for a fill that
    /// nobody reads: once in a window it is said, and counted anew.
    fn falls_short(&mut self, now: Instant, got: u64, is_read: bool, window: Duration) -> bool {
        self.heard = now;
        if is_read {
            self.unread = (now, 0);
            return false;
        }
        let (since, bytes) = (self.unread.0, self.unread.1.saturating_add(got));
        self.unread.1 = bytes;
        let took = now.saturating_duration_since(since);
        if took < window {
            return false;
        }
        self.unread = (now, 0);
        u128::from(bytes) * 1000 < u128::from(UNREAD_RATE_MIN) * took.as_millis()
    }
}

/// Appends the whole body but for its first `skip` bytes.
async fn pour(
    worker: &Worker,
    fetched: &mut Fetched,
    fill: &mut Fill,
    skip: u64,
    pace: &mut Pace,
) -> Result<(), Broken> {
    let body = BodyReader::new(fetched.framing);
    let buf = Vec::with_capacity(room(&body));
    let mut source = Source { worker, conn: &fetched.conn, body, skip, pace, got: 0, buf };
    let mut spare = Vec::new();
    let mut read = Ok(());
    loop {
        if source.falls_short(!fill.is_unfollowed()) {
            let why = "upstream sends too slowly for a body that nobody reads any more";
            return Err(Broken::Sink(Failure::Source(why.into())));
        }
        if source.buf.is_empty() {
            read.map_err(Broken::Source)?;
            if source.body.is_done() {
                return Ok(());
            }
            read = source.read().await;
            continue;
        }
        if spare.capacity() == 0 {
            spare.reserve(room(&source.body));
        }
        // What came before upstream broke off counts.
        let mut piece = std::mem::replace(&mut source.buf, spare);
        let len = aligned(fill.written(), piece.len());
        source.buf.extend_from_slice(&piece[len..]);
        piece.truncate(len);
        let appending = fill.append(piece);
        let appended;
        (appended, read) = match read {
            Ok(()) => source.read_beside(appending).await,
            Err(error) => (appending.await, Err(error)),
        };
        spare = appended.map_err(Broken::Sink)?;
    }
}

/// Room for what is still to come, as far as it is read at a time.
fn room(body: &BodyReader) -> usize {
    body.remaining().and_then(|left| usize::try_from(left).ok()).map_or(ROOM, |left| left.min(ROOM))
}

/// How many of `len` bytes that belong at `at` go up to the last multiple of [`CHUNK`], or all of
/// them where there is none: whole and aligned pieces cost the file system a third less.
fn aligned(at: u64, len: usize) -> usize {
    let over = ((at + len as u64) % CHUNK as u64) as usize;
    if over < len { len - over } else { len }
}

/// Where a body comes from.
struct Source<'a> {
    worker: &'a Worker,
    conn: &'a Conn,
    body: BodyReader,
    /// Bytes at its start that are there already.
    skip: u64,
    /// How it comes.
    pace: &'a mut Pace,
    /// What came since that was last looked at.
    got: u64,
    /// What was read and not appended yet.
    buf: Vec<u8>,
}

impl Source<'_> {
    /// Reads on until `appending` is over, as far as there is room: a body that comes fast is
    /// appended in large pieces, and one that comes slowly as it comes.
    async fn read_beside<T>(
        &mut self,
        appending: impl Future<Output = T>,
    ) -> (T, Result<(), NetError>) {
        let mut appending = pin!(appending);
        while self.buf.len() < CHUNK && !self.body.is_done() {
            // A read that is dropped has taken nothing.
            match race(appending.as_mut(), self.read()).await {
                Either::Left(appended) => return (appended, Ok(())),
                Either::Right(Ok(())) => {}
                Either::Right(error) => return (appending.await, error),
            }
        }
        (appending.await, Ok(()))
    }

    async fn read(&mut self) -> Result<(), NetError> {
        let before = self.buf.len();
        let got = self.body.read(self.conn, &mut self.buf, CHUNK).await?;
        self.pace.heard = Instant::now();
        self.got += got as u64;
        Stats::add(&self.worker.stats.bytes_from_upstream, got as u64);
        let skipped = self.skip.min(got as u64);
        self.skip -= skipped;
        // `skipped` is at most what was got.
        self.buf.drain(before..before + skipped as usize);
        Ok(())
    }

    /// Whether what came by now comes too slowly, as [`Pace::falls_short`] says.
    fn falls_short(&mut self, is_read: bool) -> bool {
        let (now, got) = (self.pace.heard, std::mem::take(&mut self.got));
        got > 0 && self.pace.falls_short(now, got, is_read, self.worker.limits.read_timeout)
    }
}

enum Resumed {
    /// The answer, and how many of its first bytes are there already.
    Rest(Box<Fetched>, u64),
    /// Upstream has no more bytes than are there.
    Nothing,
}

enum Resume {
    /// It may work another time.
    Again(String),
    /// It is another body by now.
    Never(String),
}

/// Asks for the rest of a body.
async fn resume(
    worker: &Worker,
    recipe: &Recipe,
    fill: &Fill,
    validator: Option<&str>,
) -> Result<Resumed, Resume> {
    let from = fill.written();
    let fetched = recipe.fetch(worker, (from > 0).then_some(from)).await;
    let fetched = fetched.map_err(|error: FetchError| Resume::Again(error.to_string()))?;
    let status = fetched.head.status;
    if status == 416 && from > 0 && fill.is_proven() && fill.total().is_none() {
        // Nothing but the mark of its end was missing: the digest says whether that is so.
        return Ok(Resumed::Nothing);
    }
    // By its digest it is the same body wherever it comes from; else by its ETag.
    let etag = if fill.is_proven() { None } else { Some(validator) };
    // A refusal has no part of any body, and says nothing about the one asked for.
    let has_body = matches!(status, 200 | 206);
    if etag == Some(None) || has_body && !is_same(&fetched.head.fields, etag) {
        return Err(Resume::Never(format!("{}: nothing says the rest would fit", fetched.url)));
    }
    match resumed_at(&fetched.head, from, fill.total(), etag) {
        Some(skip) => Ok(Resumed::Rest(Box::new(fetched), skip)),
        None => Err(Resume::Again(format!("{} answered {status}, not the rest", fetched.url))),
    }
}

/// How many bytes at the start of an answer lie before `from`, which was asked for; `None` where
/// the answer is not the rest of a body of `len` bytes. `etag`: what its strong ETag must be, where
/// nothing else proves the body.
pub fn resumed_at(
    head: &ResponseHead,
    from: u64,
    len: Option<u64>,
    etag: Option<Option<&str>>,
) -> Option<u64> {
    if !is_same(&head.fields, etag) || head.fields.contains("content-encoding") {
        return None;
    }
    match head.status {
        200 => Some(from),
        206 => {
            let part = head.fields.get("content-range").and_then(range::parse_content_range)?;
            let ends =
                part.total.is_some_and(|total| part.end_inclusive.checked_add(1) == Some(total));
            let fits = len.is_none() || part.total == len;
            from.checked_sub(part.start).filter(|_| ends && fits)
        }
        _ => None,
    }
}

/// Whether an answer is of the body whose strong ETag is given; without one, nothing says so.
fn is_same(fields: &Fields, etag: Option<Option<&str>>) -> bool {
    etag.is_none_or(|etag| etag.is_some() && etag == strong_etag(fields).as_deref())
}

/// An ETag that says the bytes are the same (RFC 9110, section 8.8.1).
pub fn strong_etag(fields: &Fields) -> Option<Arc<str>> {
    fields.get_str("etag").filter(|etag| !etag.starts_with("W/")).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    /// Whether a fill is given up by the end of so many seconds, with so many bytes in each.
    fn given_up(seconds: u64, bytes: u64, is_read: impl Fn(u64) -> bool) -> bool {
        let begin = Instant::now();
        let mut pace = Pace::from(begin);
        let at = |second| begin + Duration::from_secs(second);
        let short = |second| pace.falls_short(at(second), bytes, is_read(second), WINDOW);
        (1..=seconds).any(short)
    }

    #[test]
    fn a_fill_that_nobody_reads_has_to_come_on() {
        let (never, always) = (|_| false, |_| true);
        assert!(given_up(60, UNREAD_RATE_MIN - 1, never));
        assert!(!given_up(59, 0, never), "before the window's end");
        assert!(!given_up(3600, UNREAD_RATE_MIN, never));
        assert!(!given_up(3600, 1, always), "its client waits for each byte");
        // It counts from when the last client left, and who comes back takes it up again.
        assert!(!given_up(159, 1, |second| second <= 100));
        assert!(given_up(160, 1, |second| second <= 100));
        assert!(!given_up(3600, 1, |second| second % 50 == 0));
    }

    #[test]
    fn one_good_window_does_not_pay_for_the_next() {
        let begin = Instant::now();
        let mut pace = Pace::from(begin);
        assert!(!pace.falls_short(begin + WINDOW, 1 << 30, false, WINDOW));
        assert!(pace.falls_short(begin + 2 * WINDOW, 1, false, WINDOW));
    }

    #[test]
    fn pieces_end_at_multiples_where_they_reach_one() {
        let chunk = CHUNK as u64;
        for (at, len, goes) in [
            (0, 1, 1),
            (0, CHUNK, CHUNK),
            (0, CHUNK + 5, CHUNK),
            (chunk, 7, 7),
            (chunk - 3, 3, 3),
            (chunk - 3, 4, 3),
            (chunk - 3, CHUNK + 4, CHUNK + 3),
            (5, 2 * CHUNK, 2 * CHUNK - 5),
            (u64::from(u32::MAX), 9, 1),
        ] {
            assert_eq!(aligned(at, len), goes, "{len} at {at}");
        }
    }
}
