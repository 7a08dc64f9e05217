//! The writing side of an entry. A [`Lease`] becomes a [`Fill`] once there is something to store;
//! both say how they end even when they are dropped.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::entry::{Body, Entry, HELD_BACK, Phase};
use super::index::Index;
use super::janitor::Job;
use super::{Bounds, Cache, CacheError, Failure, Inner, Reader};
use crate::key::{Digest, Hasher};
use crate::stats::Stats;
use crate::sys;
use crate::sys::clock::now_ms;
use crate::sys::sync::lock;

/// Room set aside at a time, as a body comes: what is only announced pushes nothing out.
const GROWTH: u64 = 16 * 1024 * 1024;

/// A body of this size gets its blocks before its bytes, which makes writing them half as dear; a
/// smaller one is written before that would pay.
const ALLOCATED_MIN: u64 = 1024 * 1024;

/// One of the leases and fills that there may be at once; given back when it is dropped.
pub(super) struct Slot(Arc<Inner>);

impl Slot {
    /// `None` where all are taken.
    pub(super) fn take(inner: &Arc<Inner>) -> Option<Slot> {
        let most = inner.bounds().fills_max;
        let one_more = |taken: usize| (taken < most).then_some(taken + 1);
        let taken = inner.filling.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Slot(Arc::clone(inner)))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.filling.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The sole right to fill a key. Dropped, those who wait look up again.
pub struct Lease {
    cache: Cache,
    entry: Arc<Entry>,
    /// Until it has ended, or become a fill's.
    slot: Option<Slot>,
}

impl Lease {
    pub(super) fn new(cache: Cache, entry: Arc<Entry>, slot: Slot) -> Lease {
        Lease { cache, entry, slot: Some(slot) }
    }

    /// Names what is filled, for people: a label that is opaque here.
    pub fn label(&self, label: String) {
        let _ = self.entry.label.set((label.into(), SystemTime::now()));
    }

    /// Says that the answer will not be stored: those who wait ask upstream themselves.
    pub fn decline(mut self) {
        self.end(Phase::Declined);
    }

    /// Says that there is no answer at all; those who wait get the reason.
    pub fn fail(mut self, why: Failure) {
        self.end(Phase::Failed(why));
    }

    /// Begins to store a body of `len` bytes, where that is known, that must hash to `digest`,
    /// where one is given. `head` is handed back to readers as it is.
    ///
    /// Room is set aside as the bytes come. Where the file can't be made, or nothing that could be
    /// evicted would make room for the whole, the lease is declined.
    pub async fn begin(
        mut self,
        head: Vec<u8>,
        len: Option<u64>,
        digest: Option<Digest>,
    ) -> Result<(Fill, Reader), CacheError> {
        let cache = self.cache.clone();
        let bounds = cache.inner.bounds();
        let most = len.unwrap_or(bounds.max_size);
        let mut room = Room { cache: cache.clone(), bytes: 0 };
        room.set_aside(most.min(GROWTH));
        let (owner, need) = (cache.clone(), room.bytes);
        let made = cache.help(move || make_part(owner, bounds, need, len)).await;
        let (file, part) = match made.and_then(|made| made) {
            Ok(made) => made,
            Err(error) => {
                cache.inner.note(Err(&error));
                self.end(Phase::Declined);
                return Err(error);
            }
        };
        let stored = SystemTime::now();
        let body = Arc::new(Body::new(file, head.into(), stored));
        self.entry.advance(Phase::Growing { body: Arc::clone(&body), written: 0, len });
        let hasher = digest.as_ref().map(|digest| Hasher::new(digest.algorithm()));
        let entry = Arc::clone(&self.entry);
        let reader = Reader::following(Arc::clone(&entry));
        let slot = self.slot.take();
        let fill = Fill {
            cache,
            entry,
            body,
            part,
            digest,
            hasher,
            len,
            at: 0,
            bounds,
            room,
            over: false,
            _slot: slot,
        };
        Ok((fill, reader))
    }

    fn end(&mut self, phase: Phase) {
        self.slot = None;
        self.cache.inner.index().end_fill(&self.entry);
        self.entry.advance(phase);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("key", self.entry.key()).finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.slot.is_some() {
            self.end(Phase::Abandoned);
        }
    }
}

/// How a fill ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Bytes of the body.
    pub len: u64,
    /// Whether it is kept: false for what was removed meanwhile or could not be given its name.
    pub kept: bool,
}

/// The sole writing end of an entry. Dropped, the entry is failed.
pub struct Fill {
    cache: Cache,
    entry: Arc<Entry>,
    body: Arc<Body>,
    part: Part,
    /// What the bytes must hash to.
    digest: Option<Digest>,
    /// Of the bytes up to `at`, where there is a digest. With a helper while bytes are appended;
    /// lost with bytes that could not be.
    hasher: Option<Hasher>,
    len: Option<u64>,
    at: u64,
    bounds: Bounds,
    room: Room,
    over: bool,
    _slot: Option<Slot>,
}

impl Fill {
    /// The body's length, where it is known.
    pub fn total(&self) -> Option<u64> {
        self.len
    }

    /// Bytes appended so far.
    pub fn written(&self) -> u64 {
        self.at
    }

    /// Whether the bytes are to be proven by a digest, so that it does not matter where they are
    /// from.
    pub fn is_proven(&self) -> bool {
        self.digest.is_some()
    }

    /// Whether no client waits for it, for all one knows.
    pub fn is_unfollowed(&self) -> bool {
        self.entry.followers.load(Ordering::Relaxed) == 0
    }

    /// A reader at the start of what is being filled.
    pub fn reader(&self) -> Reader {
        Reader::new(Arc::clone(&self.entry))
    }

    /// Takes the next bytes: hashes them, writes them, shows them to the readers. The buffer comes
    /// back empty, to be used again.
    pub async fn append(&mut self, buf: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let end = self.at.saturating_add(buf.len() as u64);
        if self.len.is_some_and(|len| end > len) {
            return Err(Failure::Length);
        }
        if end > self.bounds.max_size {
            return Err(Failure::Storage(CacheError::TooLarge));
        }
        let room = self.set_room_aside(end);
        let mut buf = self.write(buf, room).await.map_err(|error| {
            self.cache.inner.note(Err(&error));
            Failure::Storage(error)
        })?;
        self.at = end;
        // The end is held back for the proof; without one, so that whoever has the whole of a body
        // finds it stored when he asks again.
        let shown = match self.len {
            Some(len) => end.min(len.saturating_sub(HELD_BACK)),
            None => end.saturating_sub(HELD_BACK),
        };
        let body = Arc::clone(&self.body);
        self.entry.advance(Phase::Growing { body, written: shown, len: self.len });
        buf.clear();
        Ok(buf)
    }

    /// Proves length and digest, gives the file its final name, and lets readers have the end.
    ///
    /// A file that can't be named is delivered all the same, and forgotten.
    pub async fn commit(mut self) -> Result<Committed, Failure> {
        if self.len.is_some_and(|len| len != self.at) {
            return Err(self.fail(Failure::Length));
        }
        if let Some(digest) = self.digest.take()
            && self.hasher.take().map(Hasher::finish) != Some(digest)
        {
            return Err(self.fail(Failure::Digest));
        }
        let kept = !self.entry.is_doomed() && self.store().await;
        let inner = &self.cache.inner;
        {
            let mut index = inner.index();
            self.room.give_back(&mut index);
            index.end_fill(&self.entry);
        }
        if kept {
            self.part.named();
        }
        self.over = true;
        self.entry.advance(Phase::Complete { body: Arc::clone(&self.body), len: self.at });
        Ok(Committed { len: self.at, kept })
    }

    /// Breaks off: readers get what there was and then the reason.
    pub fn fail(&mut self, why: Failure) -> Failure {
        if !std::mem::replace(&mut self.over, true) {
            // A commit that is broken off may still be on its way to a helper thread.
            self.entry.doom();
            {
                let mut index = self.cache.inner.index();
                self.room.give_back(&mut index);
                index.end_fill(&self.entry);
            }
            self.part.remove();
            self.entry.advance(Phase::Failed(why.clone()));
        }
        why
    }

    async fn store(&mut self) -> bool {
        let (inner, entry) = (Arc::clone(&self.cache.inner), Arc::clone(&self.entry));
        let (body, part) = (Arc::clone(&self.body), self.part.path.clone());
        let room = self.room.take();
        let len = self.at;
        let stored = self.cache.help(move || store(&inner, &entry, &body, &part, len, room)).await;
        match stored.and_then(|stored| stored) {
            Ok(kept) => {
                self.cache.inner.note(Ok(()));
                kept
            }
            Err(error) => {
                self.cache.inner.note(Err(&error));
                false
            }
        }
    }

    /// Hashes, and writes at the end, after making the `room` that was set aside; on a full disk
    /// once more. On a helper thread: a plain file has no other way to be written that
    /// never blocks, and none of the ring's own closes it reliably on every file system; and the
    /// hash, too, takes no time from this core where another has some.
    async fn write(&mut self, buf: Vec<u8>, room: Range<u64>) -> Result<Vec<u8>, CacheError> {
        let (inner, body, at) = (Arc::clone(&self.cache.inner), Arc::clone(&self.body), self.at);
        let (bounds, len) = (self.bounds, self.len);
        let mut hasher = self.hasher.take();
        let write = move || {
            if let Some(hasher) = &mut hasher {
                hasher.update(&buf);
            }
            if !room.is_empty() {
                let more = room.end - room.start;
                inner.fits_beside_pins(at.saturating_add(more), bounds)?;
                inner.shrink();
                inner.make_room(more, bounds)?;
                allocate(&body.file, room, len);
            }
            match body.file.write_all_at(&buf, at) {
                Err(error) if is_full(&error) => {
                    inner.make_room(buf.len() as u64, bounds)?;
                    body.file.write_all_at(&buf, at)?;
                }
                result => result?,
            }
            Ok((buf, hasher))
        };
        let written: Result<_, CacheError> = self.cache.help(write).await?;
        let (buf, hasher) = written?;
        self.hasher = hasher;
        Ok(buf)
    }

    /// Sets aside what bytes up to `end` need beyond what is set aside; where in the file that is.
    fn set_room_aside(&mut self, end: u64) -> Range<u64> {
        let reserved = self.room.bytes;
        if end <= reserved {
            return reserved..reserved;
        }
        let most = self.len.unwrap_or(self.bounds.max_size);
        let more = (most - reserved).min(GROWTH).max(end - reserved);
        self.room.set_aside(more);
        reserved..self.room.bytes
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.fail(Failure::Source("the transfer was broken off".into()));
    }
}

/// Gives the file its name and the index its entry, in place of what was set aside, as one step.
/// False where it was removed meanwhile.
fn store(
    inner: &Inner,
    entry: &Arc<Entry>,
    body: &Arc<Body>,
    part: &std::path::Path,
    len: u64,
    mut room: Room,
) -> Result<bool, CacheError> {
    let names = lock(&inner.names);
    if entry.is_doomed() {
        return Ok(false);
    }
    inner.index().remove(entry.key());
    inner.disk.commit(part, entry.key(), len, body.stored, &body.head)?;
    // Whoever finds it from here on finds it complete; this fill's own readers are told later. By a
    // file that is open for reading alone, where there is a descriptor for it.
    let kept = match inner.disk.open_body(entry.key()) {
        Ok(file) => Arc::new(Body::new(file, body.head.clone(), body.stored)),
        Err(_) => Arc::clone(body),
    };
    let stored = Entry::complete(entry.key().clone(), kept, len);
    let mut index = inner.index();
    room.give_back(&mut index);
    index.insert(entry.key().clone(), len, now_ms(), Some(stored));
    drop(index);
    drop(names);
    Stats::add(&inner.stats.stores, 1);
    // Fills side by side may come to more than there is room for.
    inner.shrink();
    Ok(true)
}

/// Makes the file of a fill that may become `len` bytes long, and room for its first `need`.
fn make_part(
    cache: Cache,
    bounds: Bounds,
    need: u64,
    len: Option<u64>,
) -> Result<(File, Part), CacheError> {
    let inner = Arc::clone(&cache.inner);
    if len.is_some_and(|len| len > bounds.max_size) {
        return Err(CacheError::TooLarge);
    }
    // First, for it makes the directories anew where they are gone.
    let (file, path) = inner.disk.create_part()?;
    // Nobody else knows of the file yet: it goes with the error, or with whoever asked for it.
    let part = Part { cache, path, over: false };
    inner.has_room_for(len.unwrap_or(need), bounds)?;
    inner.shrink();
    inner.make_room(need, bounds)?;
    allocate(&file, 0..need, len);
    Ok((file, part))
}

/// Has the blocks of `room` given to the file of a body of `len` bytes. Of one whose length is not
/// known some would be too many.
fn allocate(file: &File, room: Range<u64>, len: Option<u64>) {
    if len.is_some_and(|len| len >= ALLOCATED_MIN) {
        // A disk that is full, or a file system that can't: writing tells.
        let _ = sys::file::allocate(file.as_fd(), room.start, room.end - room.start);
    }
}

/// Room set aside in the index, given back when nobody holds this any more.
struct Room {
    cache: Cache,
    bytes: u64,
}

impl Room {
    fn set_aside(&mut self, more: u64) {
        self.bytes = self.bytes.saturating_add(more);
        self.cache.inner.index().reserve(more);
    }

    /// All of it, for another owner.
    fn take(&mut self) -> Room {
        Room { cache: self.cache.clone(), bytes: std::mem::take(&mut self.bytes) }
    }

    fn give_back(&mut self, index: &mut Index) {
        index.release(std::mem::take(&mut self.bytes));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let cache = self.cache.clone();
            self.give_back(&mut cache.inner.index());
        }
    }
}

/// The file of a fill, removed when nobody holds this any more and it got no name.
struct Part {
    cache: Cache,
    path: PathBuf,
    over: bool,
}

impl Part {
    fn remove(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            self.cache.janitor.send(Job::Part(self.path.clone()));
        }
    }

    /// Another name is the file's own by now.
    fn named(&mut self) {
        self.over = true;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.remove();
    }
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}
