//! An entry: what every reader of the same bytes shares. It is a file that grows, a head that is
//! opaque here, and progress that is always said and never inferred.
//!
//! *written*: bytes readers may take. It only grows, and until a body is proven and stored it stays
//! [`HELD_BACK`] short of the end, so that nobody ever receives the whole of a wrong body.
//!
//! Wakers and a std mutex are all that is used: no runtime, and a test can poll it by hand.

use std::any::Any;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use super::Failure;
use crate::key::Key;

/// Bytes at the end of a body that no reader sees before its digest agrees and it is stored.
pub const HELD_BACK: u64 = 16 * 1024;

/// Who fills an entry, by a name that is opaque here. Whoever joins a fill knows it before there is
/// a head.
pub type Filler = [u8; 16];

/// A complete body of this many bytes at most is kept in memory for as long as its file is open.
pub const KEPT_MAX: u64 = 16 * 1024;

/// How long it is served from there, in milliseconds, before its file is looked at again.
const UNSEEN_MS_MAX: u64 = 100;

/// The bytes of an entry and what goes with them.
#[derive(Debug)]
pub struct Body {
    /// The open file; unlinking it does not disturb whoever holds this.
    pub file: File,
    /// The stored head, opaque to the cache.
    pub head: Box<[u8]>,
    /// When the bytes were stored, or began to be.
    pub stored: SystemTime,
    kept: OnceLock<Box<[u8]>>,
    /// When the file was found as it should be, in milliseconds since 1970.
    seen_ms: AtomicU64,
    prepared: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Body {
    pub(super) fn new(file: File, head: Box<[u8]>, stored: SystemTime) -> Body {
        let (kept, prepared) = (OnceLock::new(), OnceLock::new());
        Body { file, head, stored, kept, seen_ms: AtomicU64::new(0), prepared }
    }

    /// All `len` bytes of a complete body, read once and kept; `None` where that is too many.
    pub fn kept(&self, len: u64) -> io::Result<Option<&[u8]>> {
        if let Some(bytes) = self.kept.get() {
            return Ok(Some(bytes));
        }
        if len > KEPT_MAX {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(Some(self.kept.get_or_init(|| bytes.into())))
    }

    /// What the user of the cache has made of the head, made once. `None` if that is not always of
    /// the same type.
    pub fn prepared<T: Any + Send + Sync>(&self, make: impl FnOnce(&Body) -> T) -> Option<&T> {
        self.prepared.get_or_init(|| Box::new(make(self))).downcast_ref()
    }

    /// Whether the file still has its name and its `len` bytes. Looked at it is each time for
    /// whoever will read it, and now and then while it is served from memory. A small body that is
    /// not in memory yet is for a helper to open again, who may wait for the disk.
    fn is_intact(&self, len: u64, now_ms: u64) -> bool {
        if len <= KEPT_MAX {
            if self.kept.get().is_none() {
                return false;
            }
            let seen_ms = self.seen_ms.load(Ordering::Relaxed);
            if seen_ms.abs_diff(now_ms) < UNSEEN_MS_MAX {
                return true;
            }
        }
        let intact = self.file.metadata().is_ok_and(|file| file.len() == len && file.nlink() > 0);
        if intact {
            self.seen_ms.store(now_ms, Ordering::Relaxed);
        }
        intact
    }
}

/// How far an entry is. One way only: `Pending`, `Growing`, then one of the endings.
#[derive(Clone, Debug)]
pub enum Phase {
    /// A lease is out; whether there will be bytes is not known yet.
    Pending,
    /// A fill appends.
    Growing {
        /// What is written to.
        body: Arc<Body>,
        /// Bytes readers may take.
        written: u64,
        /// The full length where upstream gave one.
        len: Option<u64>,
    },
    /// All bytes are there and proven.
    Complete {
        /// What is read from.
        body: Arc<Body>,
        /// The full length.
        len: u64,
    },
    /// The answer is not to be stored: everyone asks upstream for himself.
    Declined,
    /// The lease ended without a word: look up again.
    Abandoned,
    /// The fill broke off.
    Failed(Failure),
}

/// One entry, shared by its fill and all its readers.
#[derive(Debug)]
pub struct Entry {
    key: Key,
    filler: Filler,
    /// Those who wait for its fill, and whose client is there for all one knows.
    pub(super) followers: AtomicUsize,
    /// What its fill is called, for people, and when it began.
    pub(super) label: OnceLock<(Box<str>, SystemTime)>,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    phase: Phase,
    waiting: Vec<Option<Waker>>,
    vacant: Vec<usize>,
    doomed: bool,
}

impl Entry {
    /// An entry whose lease has just been given out to `filler`.
    pub(super) fn pending(key: Key, filler: Filler) -> Arc<Entry> {
        Entry::with(key, filler, Phase::Pending)
    }

    /// An entry whose bytes are all there and stored.
    pub(super) fn complete(key: Key, body: Arc<Body>, len: u64) -> Arc<Entry> {
        Entry::with(key, Filler::default(), Phase::Complete { body, len })
    }

    fn with(key: Key, filler: Filler, phase: Phase) -> Arc<Entry> {
        let shared = Shared { phase, waiting: Vec::new(), vacant: Vec::new(), doomed: false };
        let (followers, label, shared) = (AtomicUsize::new(0), OnceLock::new(), Mutex::new(shared));
        Arc::new(Entry { key, filler, followers, label, shared })
    }

    /// What names this entry.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Who fills it; says nothing once it is stored.
    pub(super) fn filler(&self) -> Filler {
        self.filler
    }

    /// How far it is now.
    pub fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }

    /// Whether the file of a complete entry still has its name and its length: somebody may have
    /// removed or cut it behind our back.
    pub(super) fn is_intact(&self, now_ms: u64) -> bool {
        let Phase::Complete { body, len } = self.phase() else { return true };
        body.is_intact(len, now_ms)
    }

    /// Says that the entry was removed while its fill runs: it is delivered and then forgotten.
    pub(super) fn doom(&self) {
        self.lock().doomed = true;
    }

    /// Whether [`Entry::doom`] was called.
    pub(super) fn is_doomed(&self) -> bool {
        self.lock().doomed
    }

    /// Moves on to `phase` and wakes everyone who waits.
    pub(super) fn advance(&self, phase: Phase) {
        let wakers: Vec<Waker> = {
            let mut shared = self.lock();
            debug_assert!(may_follow(&shared.phase, &phase), "{:?} -> {phase:?}", shared.phase);
            shared.phase = phase;
            shared.waiting.iter_mut().filter_map(Option::take).collect()
        };
        for waker in wakers {
            waker.wake();
        }
    }

    /// Looks at the phase through `look`; where that has nothing to say yet, `slot` is woken at the
    /// next step.
    pub(super) fn poll<T>(
        &self,
        slot: &mut Slot,
        cx: &mut Context<'_>,
        look: impl FnOnce(&Phase) -> Option<T>,
    ) -> Poll<T> {
        let mut shared = self.lock();
        if let Some(found) = look(&shared.phase) {
            return Poll::Ready(found);
        }
        let index = *slot.index.get_or_insert_with(|| {
            shared.vacant.pop().unwrap_or_else(|| {
                shared.waiting.push(None);
                shared.waiting.len() - 1
            })
        });
        if let Some(waiting) = shared.waiting.get_mut(index) {
            match waiting {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => *waiting = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }

    /// Gives a reader's place among the waiting back.
    pub(super) fn leave(&self, slot: &mut Slot) {
        if let Some(index) = slot.index.take() {
            let mut shared = self.lock();
            if let Some(waiting) = shared.waiting.get_mut(index) {
                *waiting = None;
                shared.vacant.push(index);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's place among those who wait for an entry; none until it first has to wait.
#[derive(Debug, Default)]
pub(super) struct Slot {
    index: Option<usize>,
}

fn may_follow(old: &Phase, new: &Phase) -> bool {
    match (old, new) {
        (Phase::Pending, Phase::Pending | Phase::Complete { .. }) => false,
        (Phase::Pending, _) => true,
        (Phase::Growing { written: old, .. }, Phase::Growing { written: new, len, .. }) => {
            old <= new && len.is_none_or(|len| *new <= len)
        }
        (Phase::Growing { written, .. }, Phase::Complete { len, .. }) => written <= len,
        (Phase::Growing { .. }, Phase::Failed(_)) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn entry() -> Arc<Entry> {
        Entry::pending(Key::Url([0; 32]), Filler::default())
    }

    #[test]
    fn every_waiting_reader_is_woken_once() {
        let entry = entry();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut slots = [Slot::default(), Slot::default()];
        for slot in &mut slots {
            for _ in 0..2 {
                assert!(entry.poll(slot, &mut cx, |_| None::<()>).is_pending());
            }
        }
        entry.advance(Phase::Declined);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
        let seen = entry
            .poll(&mut slots[0], &mut cx, |phase| matches!(phase, Phase::Declined).then_some(()));
        assert!(seen.is_ready());
    }

    #[test]
    fn a_reader_that_left_is_not_woken_and_its_place_is_used_again() {
        let entry = entry();
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let mut slot = Slot::default();
        assert!(entry.poll(&mut slot, &mut cx, |_| None::<()>).is_pending());
        entry.leave(&mut slot);
        let mut next = Slot::default();
        assert!(entry.poll(&mut next, &mut cx, |_| None::<()>).is_pending());
        assert_eq!(entry.lock().waiting.len(), 1);
        entry.leave(&mut next);
        entry.advance(Phase::Abandoned);
        assert_eq!(count.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    #[should_panic(expected = "->")]
    fn an_ending_is_final() {
        let entry = entry();
        entry.advance(Phase::Declined);
        entry.advance(Phase::Abandoned);
    }
}
