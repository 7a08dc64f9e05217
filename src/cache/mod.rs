//! The cache: bytes under a [`Key`], on disk, shared by everyone who asks.
//!
//! Words: an *entry* is a file that grows and then is complete. A *lease* is the sole right to fill
//! a key; a *fill* is the sole writing end of an entry; a *reader* is a position in one; a *span*
//! is a stretch a reader may send now. To *evict* is to unlink: readers keep their descriptor.
//!
//! What must stay true: at most one lease per key; only a [`Fill`] writes; a stored entry agrees
//! with its digest; what is stored and set aside stays within `max_size`, but for fills in
//! progress. The cache knows bytes, not HTTP: a stored head is opaque here.

mod disk;
mod entry;
mod evict;
mod fill;
mod index;
mod janitor;
mod reader;
mod removal;
mod room;
mod running;
mod survey;
mod verify;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use thiserror::Error;

use self::disk::Disk;
use self::entry::Entry;
pub use self::entry::{Body, Filler, HELD_BACK};
use self::fill::Slot;
pub use self::fill::{Committed, Fill, Lease};
use self::index::{Found, Index};
use self::janitor::Janitor;
pub use self::reader::{NoHead, Reader, Seen, Span};
pub use self::removal::Removed;
pub use self::running::Running;
pub use self::survey::Held;
pub use self::verify::{Progress, Report, verify};
use crate::key::{Algorithm, Hasher, Key};
use crate::stats::{Event, Stats};
use crate::sys::clock::now_ms;
use crate::sys::sync::lock;

/// How often last uses are written to disk: what a killed process forgets of its recency.
const TOUCH_INTERVAL: Duration = Duration::from_secs(5);

/// Entries that whoever goes through them all takes in before it gives its locks back, and for how
/// long it does: whoever waits for one would get it at the end alone, if it were taken at once.
const CHUNK: usize = 1024;
const PAUSE: Duration = Duration::from_micros(50);

/// Times a lookup starts over when the entry it found turns out damaged or just replaced.
const LOOKUPS_MAX: usize = 4;

/// What the cache is told at the start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory; made where it is missing.
    pub dir: PathBuf,
    /// Bytes of bodies kept at most.
    pub max_size: u64,
    /// Bytes of the file system left to others.
    pub min_free: u64,
    /// Entries whose file is kept open between requests; each costs one descriptor.
    pub open_max: usize,
    /// Leases and fills at once.
    pub fills_max: usize,
}

/// What of that may change while the cache is open. A fill keeps to those it began with.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// See [`Options::max_size`].
    pub max_size: u64,
    /// See [`Options::min_free`].
    pub min_free: u64,
    /// See [`Options::fills_max`].
    pub fills_max: usize,
}

/// Why the cache can't serve or store.
#[derive(Clone, Debug, Error)]
pub enum CacheError {
    /// The file system refused.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// No room, even after everything that may go is gone.
    #[error("no room: the file system of the cache has less than cache.min_free left")]
    Full,
    /// No room beside what is pinned.
    #[error("no room: what is pinned fills cache.max_size")]
    Pinned,
    /// The body is larger than the whole cache may be.
    #[error("the body is larger than cache.max_size")]
    TooLarge,
    /// More work for the helper threads than they take.
    #[error("too many file operations under way")]
    Busy,
    /// Entries keep vanishing while they are looked up.
    #[error("the entry changes faster than it can be opened")]
    Unsettled,
}

impl From<io::Error> for CacheError {
    fn from(error: io::Error) -> CacheError {
        CacheError::Io(Arc::new(error))
    }
}

/// Why a fill broke off.
#[derive(Clone, Debug, Error)]
pub enum Failure {
    /// The bytes do not hash to what was asked for.
    #[error("the body does not have the digest that was asked for")]
    Digest,
    /// More or fewer bytes than announced.
    #[error("the body has another length than announced")]
    Length,
    /// The source of the bytes broke off; why, in words.
    #[error("{0}")]
    Source(Arc<str>),
    /// The bytes could not be written.
    #[error("{0}")]
    Storage(CacheError),
    /// The source gave nothing to store; its own error, opaque here.
    #[error("{0}")]
    NoAnswer(Arc<dyn std::error::Error + Send + Sync>),
    /// There never was a body to read.
    #[error("nothing was stored")]
    NeverBegun,
}

/// What a lookup finds.
#[derive(Debug)]
pub enum Lookup {
    /// A stored entry; the head is there.
    Hit(Reader),
    /// Somebody fills it: wait for the head.
    Join(Reader),
    /// Nothing: the caller is to fill it.
    Miss(Lease),
    /// Nothing, and no further fill may begin.
    Crowded,
}

/// Why there is no lease.
#[derive(Debug)]
pub enum NoLease {
    /// Somebody has it, and fills it: wait for the head.
    Taken(Reader),
    /// There are as many fills as there may be.
    Crowded,
}

/// Sizes at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries stored.
    pub entries: usize,
    /// Bytes of their bodies.
    pub stored: u64,
    /// Fills in progress.
    pub fills: usize,
}

/// The cache; clones share it.
#[derive(Clone)]
pub struct Cache {
    inner: Arc<Inner>,
    janitor: Janitor,
}

struct Inner {
    bounds: Mutex<Bounds>,
    index: Mutex<Index>,
    disk: Disk,
    /// Held by whoever changes final names and the index together. Taken before `index`, on helper
    /// threads only.
    names: Mutex<()>,
    scanning: AtomicBool,
    /// Held by whoever evicts what is beyond `max_size`. Taken before `names`.
    shrinking: Mutex<()>,
    /// Leases and fills, those included that are not to be stored any more.
    filling: AtomicUsize,
    /// Whether files were removed since the start: then the scan looks whether what it saw is still
    /// there.
    removed: AtomicBool,
    /// Whether the last attempt to store failed.
    ailing: AtomicBool,
    /// Whether it was said that pins leave no room.
    crowded_out: AtomicBool,
    stats: Arc<Stats>,
}

impl Cache {
    /// Opens the cache directory for this process alone. The error says which path, and why.
    ///
    /// What is stored is not known yet: run [`Cache::scan`] on a thread of its own. Until it is
    /// done lookups ask the disk.
    pub fn open(options: Options, stats: Arc<Stats>) -> io::Result<Cache> {
        let disk = Disk::open(&options.dir)?;
        let Options { max_size, min_free, fills_max, .. } = options;
        let inner = Arc::new(Inner {
            index: Mutex::new(Index::new(options.open_max)),
            disk,
            names: Mutex::new(()),
            scanning: AtomicBool::new(true),
            shrinking: Mutex::new(()),
            filling: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            ailing: AtomicBool::new(false),
            crowded_out: AtomicBool::new(false),
            stats,
            bounds: Mutex::new(Bounds { max_size, min_free, fills_max }),
        });
        let janitor = Janitor::start(Arc::clone(&inner), TOUCH_INTERVAL)?;
        Ok(Cache { inner, janitor })
    }

    /// Learns what is stored; blocks until done. Returns the number of entries.
    pub fn scan(&self) -> io::Result<usize> {
        let mut seen = Vec::new();
        let result = self.inner.disk.scan(|found| seen.push(found));
        seen.sort_unstable_by_key(|found| std::cmp::Reverse(found.used_ms));
        self.inner.index().grow(seen.len());
        for chunk in seen.chunks(CHUNK) {
            let names = lock(&self.inner.names);
            let removed = self.inner.removed.load(Ordering::Acquire);
            let is_there = |found: &&disk::Seen| !removed || self.inner.disk.has_body(&found.key);
            let there: Vec<_> = chunk.iter().filter(is_there).collect();
            let mut index = self.inner.index();
            for found in there {
                let (size, used_ms) = (found.size, found.used_ms);
                index.insert_oldest(found.key.clone(), size, used_ms, found.stored_ms);
            }
            drop(index);
            drop(names);
            std::thread::sleep(PAUSE);
        }
        self.inner.scanning.store(false, Ordering::Release);
        self.inner.shrink();
        result.map(|()| seen.len())
    }

    /// Finds `key`, or gives `filler` the lease to fill it.
    pub async fn lookup(&self, key: &Key, filler: Filler) -> Result<Lookup, CacheError> {
        for _ in 0..LOOKUPS_MAX {
            let now_ms = now_ms();
            match self.look(key, filler, now_ms) {
                Looked::Settled(lookup) => return Ok(lookup),
                Looked::Open(entry) if entry.is_intact(now_ms) => {
                    return Ok(Lookup::Hit(Reader::new(entry)));
                }
                Looked::OnDisk | Looked::Open(_) => {
                    if let Some(entry) = self.load(key).await? {
                        return Ok(Lookup::Hit(Reader::new(entry)));
                    }
                    if let Some(lookup) = self.lease(key, filler) {
                        return Ok(lookup);
                    }
                }
            }
        }
        Err(CacheError::Unsettled)
    }

    /// Finds `key` where it is stored; never gives out a lease and never waits for a fill.
    pub async fn peek(&self, key: &Key) -> Result<Option<Reader>, CacheError> {
        let scanning = self.inner.scanning.load(Ordering::Acquire);
        let now_ms = now_ms();
        let found = self.inner.index().lookup(key, now_ms);
        match found {
            Found::Open(entry) if entry.is_intact(now_ms) => Ok(Some(Reader::new(entry))),
            Found::Open(_) | Found::Closed => Ok(self.load(key).await?.map(Reader::new)),
            Found::Absent if scanning => Ok(self.load(key).await?.map(Reader::new)),
            Found::Absent | Found::Filling(_) => Ok(None),
        }
    }

    /// Gives out a lease though there may be an entry: its bytes will take the old one's place.
    pub fn refill(&self, key: &Key, filler: Filler) -> Result<Lease, NoLease> {
        let mut index = self.inner.index();
        match index.filling(key) {
            Some(entry) => Err(NoLease::Taken(Reader::following(entry))),
            None => self.give_lease(&mut index, key, filler).ok_or(NoLease::Crowded),
        }
    }

    /// Takes in that a stored entry's file can't be read: it is removed, and fetched anew. One that
    /// the disk was too slow for stays.
    pub async fn drop_unreadable(&self, key: &Key, why: &CacheError) {
        if matches!(why, CacheError::Io(error) if error.kind() == io::ErrorKind::TimedOut) {
            tracing::warn!(key = %key.hex(), "the cache's disk is too slow: fetching past it");
            return;
        }
        Stats::add(&self.inner.stats.errors, 1);
        tracing::warn!(key = %key.hex(), %why, "unreadable cache entry dropped");
        if let Err(error) = self.remove(key).await {
            tracing::debug!(key = %key.hex(), %error, "it can't be removed either");
        }
    }

    /// Hashes the first `len` bytes of a body again, on a helper thread.
    pub async fn rehash(
        &self,
        body: Arc<Body>,
        algorithm: Algorithm,
        len: u64,
    ) -> Result<Hasher, CacheError> {
        Ok(self.help(move || disk::hash(&body.file, algorithm, len)).await??)
    }

    /// Sets other bounds, and evicts what is beyond them, which holds nobody else up; blocks.
    pub fn set_bounds(&self, bounds: Bounds) {
        *lock(&self.inner.bounds) = bounds;
        self.inner.shrink();
    }

    /// Sizes at this moment.
    pub fn sizes(&self) -> Sizes {
        let index = self.inner.index();
        Sizes { entries: index.count(), stored: index.stored(), fills: index.fill_count() }
    }

    /// Whether the scan is still running.
    pub fn is_scanning(&self) -> bool {
        self.inner.scanning.load(Ordering::Acquire)
    }

    /// Writes last uses to disk and ends the janitor; blocks.
    pub fn close(&self) {
        self.janitor.stop();
    }

    fn look(&self, key: &Key, filler: Filler, now_ms: u64) -> Looked {
        let scanning = self.inner.scanning.load(Ordering::Acquire);
        let mut index = self.inner.index();
        match index.lookup(key, now_ms) {
            Found::Open(entry) => Looked::Open(entry),
            Found::Filling(entry) => Looked::Settled(Lookup::Join(Reader::following(entry))),
            Found::Closed => Looked::OnDisk,
            Found::Absent if scanning => Looked::OnDisk,
            Found::Absent => Looked::Settled(self.miss(&mut index, key, filler)),
        }
    }

    /// The lease for a key that is not on disk, unless somebody was quicker.
    fn lease(&self, key: &Key, filler: Filler) -> Option<Lookup> {
        let mut index = self.inner.index();
        match index.lookup(key, now_ms()) {
            Found::Absent => Some(self.miss(&mut index, key, filler)),
            Found::Filling(entry) => Some(Lookup::Join(Reader::following(entry))),
            Found::Open(_) | Found::Closed => None,
        }
    }

    fn miss(&self, index: &mut Index, key: &Key, filler: Filler) -> Lookup {
        self.give_lease(index, key, filler).map_or(Lookup::Crowded, Lookup::Miss)
    }

    /// The lease for a key, unless there are as many already as there may be.
    fn give_lease(&self, index: &mut Index, key: &Key, filler: Filler) -> Option<Lease> {
        let Some(slot) = Slot::take(&self.inner) else {
            Stats::add(&self.inner.stats.limited_fills, 1);
            return None;
        };
        let entry = Entry::pending(key.clone(), filler);
        index.start_fill(Arc::clone(&entry));
        Some(Lease::new(self.clone(), entry, slot))
    }

    async fn load(&self, key: &Key) -> Result<Option<Arc<Entry>>, CacheError> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        self.help(move || inner.load(&key)).await?
    }

    /// Runs `work`, which blocks, on a helper thread.
    async fn help<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CacheError> {
        monoio::spawn_blocking(work).await.map_err(|_| CacheError::Busy)
    }
}

enum Looked {
    Settled(Lookup),
    /// Stored and open; to be looked at before a byte of it is sent.
    Open(Arc<Entry>),
    /// To be read from disk.
    OnDisk,
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    fn bounds(&self) -> Bounds {
        *lock(&self.bounds)
    }

    /// Opens a stored entry and keeps it open. `None` where there is none, or where it was damaged
    /// and is now gone.
    fn load(&self, key: &Key) -> Result<Option<Arc<Entry>>, CacheError> {
        let _names = lock(&self.names);
        if !self.scanning.load(Ordering::Acquire) && !self.index().contains(key) {
            // Evicted since it was looked up: its files may lie there yet, and are to go.
            return Ok(None);
        }
        match self.disk.load(key) {
            Ok(loaded) => {
                let body = Body::new(loaded.file, loaded.head, loaded.stored);
                // Here it may block; what it fails with is met again where it is sent.
                let _ = body.kept(loaded.len);
                let entry = Entry::complete(key.clone(), Arc::new(body), loaded.len);
                let mut index = self.index();
                if index.contains(key) {
                    index.opened(&entry);
                } else {
                    index.insert(key.clone(), loaded.len, now_ms(), Some(Arc::clone(&entry)));
                }
                Ok(Some(entry))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::InvalidData
                | io::ErrorKind::UnexpectedEof => {
                    let known = self.index().remove(key).is_some();
                    if known || error.kind() != io::ErrorKind::NotFound {
                        Stats::add(&self.stats.errors, 1);
                        tracing::warn!(key = %key.hex(), %error, "damaged cache entry dropped");
                        self.disk.remove(key)?;
                    }
                    Ok(None)
                }
                _ => Err(error.into()),
            },
        }
    }

    /// Says once that storing fails, and once that it works again.
    fn note(&self, result: Result<(), &CacheError>) {
        match result {
            Ok(()) => {
                if self.ailing.swap(false, Ordering::Relaxed) {
                    tracing::info!("caching works again");
                }
            }
            // Nothing is wrong with the cache.
            Err(CacheError::TooLarge) => {}
            Err(error @ CacheError::Pinned) => {
                if !self.crowded_out.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{error}: answers pass uncached");
                }
            }
            Err(error) => {
                Stats::add(&self.stats.errors, 1);
                if !self.ailing.swap(true, Ordering::Relaxed) {
                    tracing::error!(%error, "caching fails: answers pass uncached");
                    let message = format!("caching fails: answers pass uncached: {error}");
                    self.stats.errors_seen.push(Event::new("cache", message));
                }
            }
        }
    }
}
