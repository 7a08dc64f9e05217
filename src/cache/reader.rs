//! A reader: a position in an entry. The first client is one, so is a joiner, a hit and a range.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::Failure;
use super::entry::{Body, Entry, Filler, Phase, Slot};
use crate::key::Key;

/// A stretch of the entry's file that may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins, in bytes from the start of the body.
    pub offset: u64,
    /// How long it is; never 0.
    pub len: u64,
}

/// What is known of an entry once its head is there.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The open file, the stored head, the date.
    pub body: Arc<Body>,
    /// The full length where it is known.
    pub len: Option<u64>,
    /// Bytes that may be read now.
    pub written: u64,
}

/// Why there is no head to be had from an entry.
#[derive(Clone, Debug)]
pub enum NoHead {
    /// Not to be stored: ask upstream, do not queue again.
    Declined,
    /// The lease was dropped: look up again.
    Abandoned,
    /// The fill broke off.
    Failed(Failure),
}

/// A position in an entry; holds the file open for as long as it lives.
pub struct Reader {
    entry: Arc<Entry>,
    slot: Slot,
    offset: u64,
    end: Option<u64>,
    follows: bool,
}

impl Reader {
    pub(super) fn new(entry: Arc<Entry>) -> Reader {
        Reader { entry, slot: Slot::default(), offset: 0, end: None, follows: false }
    }

    /// One for which the fill goes on.
    pub(super) fn following(entry: Arc<Entry>) -> Reader {
        entry.followers.fetch_add(1, Ordering::Relaxed);
        let mut reader = Reader::new(entry);
        reader.follows = true;
        reader
    }

    /// Says that its client may have left: for this one alone the fill need not go on.
    pub fn unfollow(&mut self) {
        if std::mem::replace(&mut self.follows, false) {
            self.entry.followers.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What names the entry.
    pub fn key(&self) -> &Key {
        self.entry.key()
    }

    /// Who fills the entry, where somebody does.
    pub fn filler(&self) -> Filler {
        self.entry.filler()
    }

    /// Waits for the head.
    pub async fn head(&mut self) -> Result<Seen, NoHead> {
        poll_fn(|cx| self.poll_head(cx)).await
    }

    /// [`Reader::head`] for whoever polls by hand.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Seen, NoHead>> {
        self.entry.poll(&mut self.slot, cx, |phase| match phase {
            Phase::Pending => None,
            Phase::Growing { body, written, len } => {
                Some(Ok(Seen { body: Arc::clone(body), len: *len, written: *written }))
            }
            Phase::Complete { body, len } => {
                Some(Ok(Seen { body: Arc::clone(body), len: Some(*len), written: *len }))
            }
            Phase::Declined => Some(Err(NoHead::Declined)),
            Phase::Abandoned => Some(Err(NoHead::Abandoned)),
            Phase::Failed(why) => Some(Err(NoHead::Failed(why.clone()))),
        })
    }

    /// Bytes that may be read now, where the head is there already; never waits.
    pub fn glance(&self) -> Option<Seen> {
        match self.entry.phase() {
            Phase::Growing { body, written, len } => Some(Seen { body, len, written }),
            Phase::Complete { body, len } => Some(Seen { body, len: Some(len), written: len }),
            _ => None,
        }
    }

    /// Goes to `start`, and stops before `end` where one is given.
    pub fn seek(&mut self, start: u64, end: Option<u64>) {
        self.offset = start;
        self.end = end;
    }

    /// Where the next span begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where it stops, if before the end of the body.
    pub fn end(&self) -> Option<u64> {
        self.end
    }

    /// Waits until the entry has ended, well or not.
    pub async fn ended(&mut self) -> Result<(), Failure> {
        poll_fn(|cx| {
            self.entry.poll(&mut self.slot, cx, |phase| match phase {
                Phase::Pending | Phase::Growing { .. } => None,
                Phase::Complete { .. } => Some(Ok(())),
                Phase::Failed(why) => Some(Err(why.clone())),
                Phase::Declined | Phase::Abandoned => Some(Err(Failure::NeverBegun)),
            })
        })
        .await
    }

    /// Waits for the next span, at most `max` bytes long; `None` at the end.
    pub async fn next(&mut self, max: u64) -> Result<Option<Span>, Failure> {
        poll_fn(|cx| self.poll_next(max, cx)).await
    }

    /// [`Reader::next`] for whoever polls by hand.
    pub fn poll_next(
        &mut self,
        max: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Span>, Failure>> {
        let (offset, end) = (self.offset, self.end.unwrap_or(u64::MAX));
        if offset >= end {
            return Poll::Ready(Ok(None));
        }
        let found = self.entry.poll(&mut self.slot, cx, |phase| match phase {
            Phase::Pending => None,
            Phase::Growing { written, .. } if offset >= *written => None,
            Phase::Growing { written, .. } => Some(Ok(*written)),
            Phase::Complete { len, .. } => Some(Ok(*len)),
            Phase::Failed(why) => Some(Err(why.clone())),
            Phase::Declined | Phase::Abandoned => Some(Err(Failure::NeverBegun)),
        });
        found.map_ok(|there| {
            let len = there.min(end).saturating_sub(offset).min(max);
            self.offset += len;
            (len > 0).then_some(Span { offset, len })
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.unfollow();
        self.entry.leave(&mut self.slot);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("key", self.entry.key())
            .field("offset", &self.offset)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
