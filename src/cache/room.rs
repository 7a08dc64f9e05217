//! Room for what is stored: what is beyond `max_size` or `min_free` is evicted, a few entries at a
//! time. Everything here blocks, and nothing holds the index or the names for long: whoever looks
//! something up meanwhile gets his turn.

use std::io;
use std::sync::TryLockError;
use std::sync::atomic::Ordering;

use super::index::Evicted;
use super::{Bounds, CacheError, Inner, PAUSE};
use crate::key::Key;
use crate::stats::Stats;
use crate::sys::sync::lock;

/// Entries that are evicted, or removed, before others get their turn. Taking so many out of the
/// index is a matter of microseconds, unlinking them of a millisecond; without a pause after them,
/// whoever does so gets every lock he gives back again before those who wait for it wake up.
pub(super) const REMOVED_AT_ONCE: usize = 64;

/// Gives others their turn after every [`REMOVED_AT_ONCE`] of what is removed one by one.
#[derive(Default)]
pub(super) struct Turns(usize);

impl Turns {
    pub(super) fn one_more(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(REMOVED_AT_ONCE) {
            std::thread::sleep(PAUSE);
        }
    }
}

impl Inner {
    /// Evicts until what is stored and set aside is within `max_size`. Where somebody else is at it
    /// already, he does it to the end.
    pub(super) fn shrink(&self) {
        loop {
            let max_size = self.bounds().max_size;
            if !self.index().is_beyond(max_size) {
                return;
            }
            // Whoever has this looks again after he has given it back, so that nobody's excess is
            // left.
            let _one = match self.shrinking.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let mut turns = Turns::default();
            loop {
                let max_size = self.bounds().max_size;
                let evicted = self.index().shrink(max_size, REMOVED_AT_ONCE);
                if evicted.is_empty() {
                    break;
                }
                self.unlink_all(evicted, &mut turns);
            }
        }
    }

    /// Whether `need` bytes would fit beside `min_free` if everything stored went that may. Nothing
    /// is given up for what would not fit all the same.
    pub(super) fn has_room_for(&self, need: u64, bounds: Bounds) -> Result<(), CacheError> {
        self.fits_beside_pins(need, bounds)?;
        let wanted = need.saturating_add(bounds.min_free);
        let may_go = {
            let index = self.index();
            index.stored().saturating_sub(index.pinned())
        };
        let could_be = self.disk.free()?.saturating_add(may_go);
        if could_be >= wanted { Ok(()) } else { Err(CacheError::Full) }
    }

    /// Whether a body of `len` bytes may be stored beside what is pinned.
    pub(super) fn fits_beside_pins(&self, len: u64, bounds: Bounds) -> Result<(), CacheError> {
        let pinned = self.index().pinned();
        match pinned > 0 && pinned.saturating_add(len) > bounds.max_size {
            true => Err(CacheError::Pinned),
            false => Ok(()),
        }
    }

    /// Evicts until the file system has `need` bytes beside `min_free`.
    pub(super) fn make_room(&self, need: u64, bounds: Bounds) -> Result<(), CacheError> {
        let wanted = need.saturating_add(bounds.min_free);
        let free = self.disk.free()?;
        if free >= wanted {
            return Ok(());
        }
        self.has_room_for(need, bounds)?;
        self.evict(wanted - free);
        if self.disk.free()? >= wanted { Ok(()) } else { Err(CacheError::Full) }
    }

    /// Evicts so many bytes, or all there is.
    fn evict(&self, bytes: u64) {
        let (mut excess, mut turns) = (bytes, Turns::default());
        while excess > 0 {
            let evicted = self.index().evict(excess, REMOVED_AT_ONCE);
            if evicted.is_empty() {
                break;
            }
            let sizes = evicted.iter().map(|evicted| evicted.size);
            excess = sizes.fold(excess, u64::saturating_sub);
            self.unlink_all(evicted, &mut turns);
        }
    }

    /// Unlinks the files of what was taken out of the index, unless it has been stored again
    /// since.
    pub(super) fn unlink(&self, key: &Key) -> io::Result<()> {
        let _names = lock(&self.names);
        if self.index().contains(key) {
            return Ok(());
        }
        self.removed.store(true, Ordering::Release);
        self.disk.remove(key)
    }

    fn unlink_all(&self, evicted: Vec<Evicted>, turns: &mut Turns) {
        Stats::add(&self.stats.evictions, evicted.len() as u64);
        for Evicted { key, open, .. } in evicted {
            // First, or its bytes are given back under the lock of the names.
            drop(open);
            if let Err(error) = self.unlink(&key) {
                tracing::warn!(key = %key.hex(), %error, "evicted entry can't be removed");
            }
            turns.one_more();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::{Cache, Options};
    use super::*;

    const COUNT: usize = 10 * REMOVED_AT_ONCE;

    fn key(n: usize) -> Key {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        Key::Url(bytes)
    }

    /// A cache of so many entries of a byte.
    fn filled(dir: &std::path::Path) -> Cache {
        let options = Options {
            dir: dir.to_owned(),
            max_size: COUNT as u64,
            min_free: 0,
            open_max: 4,
            fills_max: 4,
        };
        let cache = Cache::open(options, Arc::new(Stats::default())).unwrap();
        for n in 0..COUNT {
            fs::write(dir.join("urls/sha256").join(key(n).hex()), b"x").unwrap();
        }
        assert_eq!(cache.scan().unwrap(), COUNT);
        cache
    }

    fn files(dir: &std::path::Path) -> usize {
        fs::read_dir(dir.join("urls/sha256")).unwrap().count()
    }

    fn bounds(max_size: u64) -> Bounds {
        Bounds { max_size, min_free: 0, fills_max: 4 }
    }

    /// Does `work` on a thread of its own; while that waits for the names with a few entries out of
    /// the index, and no more, does `meanwhile`.
    fn halfway(cache: &Cache, work: impl FnOnce(&Cache) + Send, meanwhile: impl FnOnce()) {
        let names = lock(&cache.inner.names);
        std::thread::scope(|scope| {
            let working = scope.spawn(|| work(cache));
            while cache.sizes().entries == COUNT {
                std::thread::yield_now();
            }
            assert_eq!(cache.sizes().entries, COUNT - REMOVED_AT_ONCE);
            meanwhile();
            drop(names);
            working.join().unwrap();
        });
    }

    #[test]
    fn who_looks_up_while_all_is_evicted_waits_for_a_few_entries_at_most() {
        let dir = tempfile::tempdir().unwrap();
        let cache = filled(dir.path());
        halfway(&cache, |cache| cache.set_bounds(bounds(0)), || {});
        assert_eq!((cache.sizes().entries, files(dir.path())), (0, 0));
        cache.close();
    }

    #[test]
    fn what_another_needs_is_evicted_by_whoever_is_at_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = filled(dir.path());
        let more = || {
            cache.inner.index().reserve(30);
            // Comes back at once, though nothing can be unlinked.
            cache.inner.shrink();
            assert_eq!(cache.sizes().entries, COUNT - REMOVED_AT_ONCE);
        };
        halfway(&cache, |cache| cache.set_bounds(bounds(100)), more);
        assert_eq!((cache.sizes().entries, files(dir.path())), (70, 70));
        cache.close();
    }

    #[test]
    fn room_on_the_file_system_is_made_a_few_entries_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let cache = filled(dir.path());
        let most = COUNT as u64 - 5;
        halfway(&cache, |cache| cache.inner.evict(most), || {});
        assert_eq!((cache.sizes().entries, files(dir.path())), (5, 5));
        cache.close();
    }
}
