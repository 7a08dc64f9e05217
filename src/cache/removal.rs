//! Entries that somebody wants gone: one, several, all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::room::Turns;
use super::{Cache, CacheError, Held, Inner};
use crate::key::Key;
use crate::sys::sync::lock;

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Entries.
    pub count: usize,
    /// Bytes of their bodies.
    pub freed: u64,
}

impl Cache {
    /// Removes an entry, and keeps a fill in progress from being stored. Whether there was an
    /// entry.
    pub async fn remove(&self, key: &Key) -> Result<Option<u64>, CacheError> {
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        self.help(move || inner.remove(&key, |_| true)).await?
    }

    /// Removes everything; what is being transferred goes on.
    pub async fn clear(&self) -> Result<Removed, CacheError> {
        let inner = Arc::clone(&self.inner);
        self.help(move || inner.clear()).await?
    }

    /// Removes those of `keys` whose entries may go, and keeps their fills in progress from being
    /// stored; blocks.
    pub fn remove_each(
        &self,
        keys: &[Key],
        may_go: impl Fn(Held) -> bool,
    ) -> Result<Removed, CacheError> {
        let mut removal = Removal::default();
        let mut turns = Turns::default();
        for key in keys {
            turns.one_more();
            match self.inner.remove(key, &may_go) {
                Ok(Some(size)) => removal.note(key, size, Ok(())),
                Ok(None) => {}
                Err(CacheError::Io(error)) => {
                    let error = io::Error::new(error.kind(), error.to_string());
                    removal.note(key, 0, Err(error));
                }
                Err(error) => return Err(error),
            }
        }
        removal.end()
    }

    /// Keeps what is being filled from being stored; what is pinned is spared where that is wanted.
    pub fn doom_fills(&self, spare_pinned: bool) {
        self.inner.index().doom_fills(spare_pinned);
    }
}

impl Inner {
    /// Removes an entry, unless `may_go` says of what is known of it that it stays.
    fn remove(
        &self,
        key: &Key,
        may_go: impl FnOnce(Held) -> bool,
    ) -> Result<Option<u64>, CacheError> {
        let _names = lock(&self.names);
        let known = {
            let mut index = self.index();
            if index.held(key).is_some_and(|held| !may_go(held)) {
                return Ok(None);
            }
            index.doom_fill(key);
            index.remove(key)
        };
        // Before the scan is done the index does not know everything that is there.
        let there = match known {
            Some(size) => Some(size),
            None => self.disk.load(key).ok().map(|loaded| loaded.len),
        };
        self.removed.store(true, Ordering::Release);
        self.disk.remove(key)?;
        Ok(there)
    }

    fn clear(&self) -> Result<Removed, CacheError> {
        let names = lock(&self.names);
        let keys = {
            let mut index = self.index();
            index.doom_fills(false);
            index.clear()
        };
        let mut removal = Removal::default();
        if self.scanning.load(Ordering::Acquire) {
            // The names stay locked, so that the scan finds what is gone to be gone.
            self.removed.store(true, Ordering::Release);
            self.disk
                .scan(|seen| removal.note(&seen.key, seen.size, self.disk.remove(&seen.key)))?;
        } else {
            drop(names);
            let mut turns = Turns::default();
            for (key, size) in keys {
                removal.note(&key, size, self.unlink(&key));
                turns.one_more();
            }
        }
        removal.end()
    }
}

/// What a removal of many came to. An entry that can't be removed keeps none of the others.
#[derive(Default)]
struct Removal {
    count: usize,
    freed: u64,
    failed: Option<io::Error>,
}

impl Removal {
    fn note(&mut self, key: &Key, size: u64, result: io::Result<()>) {
        match result {
            Ok(()) => {
                self.count += 1;
                self.freed += size;
            }
            Err(error) => {
                tracing::warn!(key = %key.hex(), %error, "entry can't be removed");
                self.failed.get_or_insert(error);
            }
        }
    }

    fn end(self) -> Result<Removed, CacheError> {
        match self.failed {
            Some(error) => Err(error.into()),
            None => Ok(Removed { count: self.count, freed: self.freed }),
        }
    }
}
