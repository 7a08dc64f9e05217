//! What is stored, for whoever wants to see it all, and what is pinned. Everything here blocks, and
//! none of it holds the index for long.

use std::io;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::index::Index;
use super::{CHUNK, Cache, PAUSE};
use crate::key::Key;

/// What is known of a stored entry without its files. Times are milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Bytes of its body.
    pub size: u64,
    /// Its last use.
    pub used_ms: u64,
    /// When it was stored, to the second; where it was before the start, as the file system says.
    pub stored_ms: u64,
    /// Times it was found since the start.
    pub hits: u32,
    /// Whether it is kept from being evicted.
    pub pinned: bool,
}

impl Cache {
    /// Shows every stored entry and its place, in no order. What comes or goes meanwhile may be
    /// shown or not.
    pub fn survey(&self, mut each: impl FnMut(u32, &Key, Held)) {
        let mut from = 0;
        while self.inner.index().show(from, CHUNK, &mut each) {
            from += CHUNK;
            std::thread::sleep(PAUSE);
        }
    }

    /// What is at these places by now.
    pub fn at(&self, places: &[u32]) -> Vec<(Key, Held)> {
        let mut found = Vec::with_capacity(places.len());
        self.in_chunks(places, |index, place| found.extend(index.at(*place)));
        found
    }

    /// What is known of each of these; does not count as a use.
    pub fn held(&self, keys: &[Key]) -> Vec<Option<Held>> {
        let mut found = Vec::with_capacity(keys.len());
        self.in_chunks(keys, |index, key| found.push(index.held(key)));
        found
    }

    /// When an entry was stored, and its head.
    pub fn describe(&self, key: &Key) -> io::Result<(SystemTime, Vec<u8>)> {
        self.inner.disk.describe(key)
    }

    /// The body of an entry of at most `max` bytes.
    pub fn read(&self, key: &Key, max: u64) -> io::Result<Vec<u8>> {
        self.inner.disk.read(key, max)
    }

    /// Keeps these from being evicted, be they stored or not, and no longer those.
    pub fn pin(&self, these: &[Key], no_longer: &[Key]) {
        self.in_chunks(these, Index::pin);
        self.in_chunks(no_longer, Index::unpin);
        self.inner.crowded_out.store(false, Ordering::Relaxed);
    }

    fn in_chunks<T>(&self, all: &[T], mut each: impl FnMut(&mut Index, &T)) {
        for (n, chunk) in all.chunks(CHUNK).enumerate() {
            if n > 0 {
                std::thread::sleep(PAUSE);
            }
            let mut index = self.inner.index();
            chunk.iter().for_each(|one| each(&mut index, one));
        }
    }
}
