//! The map from keys to stored entries, their recency and their sizes, and the fills in progress.
//!
//! One value behind one mutex (in [`super::Cache`]), never held across an await. A stored entry
//! costs one [`Node`] and about six bytes of table, so a million fit in a hundred megabytes. The
//! nodes form a list by last use, but for *pinned* ones, which never go by themselves; *touched*
//! ones have a last use that the disk does not know yet.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hashbrown::HashTable;

use super::entry::Entry;
use super::evict;
use super::survey::Held;
use crate::key::Key;

/// Touched entries remembered between two flushes; beyond it the newest use of some stays unsaved.
const TOUCHED_MAX: usize = 65_536;

const NONE: u32 = u32::MAX;

/// What lookup finds.
pub(super) enum Found {
    /// Stored, and its file is open.
    Open(Arc<Entry>),
    /// Stored; the file has to be opened.
    Closed,
    /// A fill is in progress.
    Filling(Arc<Entry>),
    /// Nothing.
    Absent,
}

/// A stored entry that was taken out. Its file is open yet where it was.
pub(super) struct Evicted {
    pub key: Key,
    pub size: u64,
    pub open: Option<Arc<Entry>>,
}

/// A stored entry.
struct Node {
    key: Key,
    size: u64,
    used_ms: u64,
    newer: u32,
    older: u32,
    open: Option<Arc<Entry>>,
    /// Seconds since 1970.
    stored_s: u32,
    /// Times it was found since the start.
    hits: u32,
    recent: bool,
    touched: bool,
    pinned: bool,
}

/// The index. Sizes are bytes of bodies.
pub(super) struct Index {
    hasher: RandomState,
    table: HashTable<u32>,
    nodes: Vec<Option<Node>>,
    vacant: Vec<u32>,
    newest: u32,
    oldest: u32,
    stored: u64,
    reserved: u64,
    fills: HashMap<Key, Arc<Entry>>,
    open: VecDeque<u32>,
    open_max: usize,
    touched: Vec<u32>,
    /// What is pinned, be it there or not.
    pins: HashSet<Key>,
    pinned: u64,
}

impl Index {
    /// An empty index that keeps at most `open_max` files open.
    pub(super) fn new(open_max: usize) -> Index {
        Index {
            hasher: RandomState::new(),
            table: HashTable::new(),
            nodes: Vec::new(),
            vacant: Vec::new(),
            newest: NONE,
            oldest: NONE,
            stored: 0,
            reserved: 0,
            fills: HashMap::new(),
            open: VecDeque::new(),
            open_max,
            touched: Vec::new(),
            pins: HashSet::new(),
            pinned: 0,
        }
    }

    /// Makes room for `count` more entries at once.
    pub(super) fn grow(&mut self, count: usize) {
        self.nodes.reserve(count);
        self.table.reserve(count, hash_at(&self.hasher, &self.nodes));
    }

    /// Entries stored.
    pub(super) fn count(&self) -> usize {
        self.table.len()
    }

    /// Bytes stored.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// Bytes stored that are pinned.
    pub(super) fn pinned(&self) -> u64 {
        self.pinned
    }

    /// Fills in progress.
    pub(super) fn fill_count(&self) -> usize {
        self.fills.len()
    }

    /// The fills in progress.
    pub(super) fn fills(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.fills.values()
    }

    /// Finds `key`; a stored entry becomes the most recently used.
    pub(super) fn lookup(&mut self, key: &Key, now_ms: u64) -> Found {
        if let Some(at) = self.position(key) {
            self.touch(at, now_ms);
            return match self.node(at).and_then(|node| node.open.clone()) {
                Some(entry) => Found::Open(entry),
                None => Found::Closed,
            };
        }
        self.filling(key).map_or(Found::Absent, Found::Filling)
    }

    /// Whether `key` is stored, without counting as a use.
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.position(key).is_some()
    }

    /// The fill of `key` in progress, be it stored or not.
    pub(super) fn filling(&self, key: &Key) -> Option<Arc<Entry>> {
        self.fills.get(key).cloned()
    }

    /// Notes a fill; a running one of the same key is forgotten and goes on for its readers.
    pub(super) fn start_fill(&mut self, entry: Arc<Entry>) {
        if let Some(old) = self.fills.insert(entry.key().clone(), entry) {
            old.doom();
        }
    }

    /// Forgets a fill, if it is still the one noted under its key.
    pub(super) fn end_fill(&mut self, entry: &Arc<Entry>) {
        if self.fills.get(entry.key()).is_some_and(|noted| Arc::ptr_eq(noted, entry)) {
            self.fills.remove(entry.key());
        }
    }

    /// Takes `key` out of the fills so that the next request starts anew; what runs is not stored.
    pub(super) fn doom_fill(&mut self, key: &Key) {
        if let Some(entry) = self.fills.remove(key) {
            entry.doom();
        }
    }

    /// [`Index::doom_fill`] for all of them, but those of pinned keys where these are spared.
    pub(super) fn doom_fills(&mut self, spare_pinned: bool) {
        let pins = &self.pins;
        let doomed = |key: &Key, _: &mut Arc<Entry>| !spare_pinned || !pins.contains(key);
        for (_, entry) in self.fills.extract_if(doomed) {
            entry.doom();
        }
    }

    /// Sets `bytes` aside for a fill.
    pub(super) fn reserve(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_add(bytes);
    }

    /// Gives back what [`Index::reserve`] set aside.
    pub(super) fn release(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Whether more than `max` bytes are stored and set aside, and anything may go.
    pub(super) fn is_beyond(&self, max: u64) -> bool {
        self.excess(max) > 0 && self.oldest != NONE
    }

    /// Takes out the least recently used entries until what is stored and set aside is at most
    /// `max`, but no more than `count` of them.
    pub(super) fn shrink(&mut self, max: u64, count: usize) -> Vec<Evicted> {
        self.evict(self.excess(max), count)
    }

    /// Takes out the least recently used entries until `excess` bytes are free, none is left, or
    /// `count` of them are out.
    pub(super) fn evict(&mut self, excess: u64, count: usize) -> Vec<Evicted> {
        let oldest_first =
            std::iter::successors(Some(self.oldest), |at| self.node(*at).map(|node| node.newer));
        let sizes = oldest_first.map_while(|at| self.node(at).map(|node| (at, node.size)));
        let chosen = evict::choose(sizes.take(count), excess);
        let taken = chosen.into_iter().filter_map(|at| self.take(at));
        taken.map(|Node { key, size, open, .. }| Evicted { key, size, open }).collect()
    }

    fn excess(&self, max: u64) -> u64 {
        self.stored.saturating_add(self.reserved).saturating_sub(max)
    }

    /// Puts an entry in as the most recently used. Replaces one of the same key.
    pub(super) fn insert(&mut self, key: Key, size: u64, now_ms: u64, open: Option<Arc<Entry>>) {
        self.remove(&key);
        let at = self.put(key, size, now_ms, now_ms);
        self.link_newest(at);
        if let Some(entry) = open {
            self.keep_open(at, entry);
        }
    }

    /// Puts an entry in as the least recently used, unless its key is there already.
    pub(super) fn insert_oldest(&mut self, key: Key, size: u64, used_ms: u64, stored_ms: u64) {
        if !self.contains(&key) {
            let at = self.put(key, size, used_ms, stored_ms);
            self.link_oldest(at);
        }
    }

    /// Keeps `key` from being evicted, whether it is there or yet to come.
    pub(super) fn pin(&mut self, key: &Key) {
        if !self.pins.insert(key.clone()) {
            return;
        }
        if let Some(at) = self.position(key) {
            self.unlink(at);
            let Some(node) = self.node_mut(at) else { return };
            node.pinned = true;
            self.pinned += self.node(at).map_or(0, |node| node.size);
        }
    }

    /// Lets `key` be evicted again, after whatever else may be.
    pub(super) fn unpin(&mut self, key: &Key) {
        self.pins.remove(key);
        let Some(at) = self.position(key) else { return };
        let Some(node) = self.node_mut(at).filter(|node| node.pinned) else { return };
        node.pinned = false;
        self.pinned -= self.node(at).map_or(0, |node| node.size);
        self.link_newest(at);
    }

    /// What is known of `key`, where it is stored; does not count as a use.
    pub(super) fn held(&self, key: &Key) -> Option<Held> {
        self.position(key).and_then(|at| self.node(at)).map(Node::held)
    }

    /// What is stored at a place.
    pub(super) fn at(&self, place: u32) -> Option<(Key, Held)> {
        self.node(place).map(|node| (node.key.clone(), node.held()))
    }

    /// Shows what is stored at `count` places from `from` on; whether there are more.
    pub(super) fn show(
        &self,
        from: usize,
        count: usize,
        each: &mut impl FnMut(u32, &Key, Held),
    ) -> bool {
        for (place, node) in self.nodes.iter().enumerate().skip(from).take(count) {
            if let Some(node) = node {
                each(place as u32, &node.key, node.held());
            }
        }
        from.saturating_add(count) < self.nodes.len()
    }

    /// Keeps the opened `entry` of a stored key for the next request.
    pub(super) fn opened(&mut self, entry: &Arc<Entry>) {
        if let Some(at) = self.position(entry.key()) {
            self.keep_open(at, Arc::clone(entry));
        }
    }

    /// Takes `key` out; its size in bytes.
    pub(super) fn remove(&mut self, key: &Key) -> Option<u64> {
        let at = self.position(key)?;
        self.take(at).map(|node| node.size)
    }

    /// Takes everything out: keys and sizes in bytes, which are gone through, and whose files are
    /// closed, after the lock is given back.
    pub(super) fn clear(&mut self) -> impl Iterator<Item = (Key, u64)> + use<> {
        let nodes = std::mem::take(&mut self.nodes);
        self.table = HashTable::new();
        self.vacant = Vec::new();
        self.open.clear();
        self.touched.clear();
        (self.newest, self.oldest, self.stored, self.pinned) = (NONE, NONE, 0, 0);
        nodes.into_iter().flatten().map(|node| (node.key, node.size))
    }

    /// The entries used since the last call, with the time of their last use.
    pub(super) fn take_touched(&mut self) -> Vec<(Key, u64)> {
        let touched = std::mem::take(&mut self.touched);
        touched
            .into_iter()
            .filter_map(|at| {
                let node = self.node_mut(at)?;
                node.touched = false;
                Some((node.key.clone(), node.used_ms))
            })
            .collect()
    }

    fn put(&mut self, key: Key, size: u64, used_ms: u64, stored_ms: u64) -> u32 {
        let hash = self.hasher.hash_one(&key);
        let pinned = self.pins.contains(&key);
        let node = Node {
            key,
            size,
            used_ms,
            newer: NONE,
            older: NONE,
            open: None,
            stored_s: u32::try_from(stored_ms / 1000).unwrap_or(u32::MAX),
            hits: 0,
            recent: false,
            touched: false,
            pinned,
        };
        let at = match self.vacant.pop() {
            Some(at) => {
                self.nodes[at as usize] = Some(node);
                at
            }
            None => {
                self.nodes.push(Some(node));
                (self.nodes.len() - 1) as u32
            }
        };
        self.stored = self.stored.saturating_add(size);
        self.pinned += if pinned { size } else { 0 };
        self.table.insert_unique(hash, at, hash_at(&self.hasher, &self.nodes));
        at
    }

    fn take(&mut self, at: u32) -> Option<Node> {
        self.unlink(at);
        let node = self.nodes.get_mut(at as usize)?.take()?;
        let hash = self.hasher.hash_one(&node.key);
        if let Ok(found) = self.table.find_entry(hash, |other| *other == at) {
            found.remove();
        }
        self.vacant.push(at);
        self.stored = self.stored.saturating_sub(node.size);
        self.pinned -= if node.pinned { node.size } else { 0 };
        Some(node)
    }

    fn position(&self, key: &Key) -> Option<u32> {
        let is_it = |at: &u32| self.node(*at).is_some_and(|node| node.key == *key);
        self.table.find(self.hasher.hash_one(key), is_it).copied()
    }

    fn node(&self, at: u32) -> Option<&Node> {
        self.nodes.get(at as usize)?.as_ref()
    }

    fn node_mut(&mut self, at: u32) -> Option<&mut Node> {
        self.nodes.get_mut(at as usize)?.as_mut()
    }

    fn touch(&mut self, at: u32, now_ms: u64) {
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
        let room = self.touched.len() < TOUCHED_MAX;
        let Some(node) = self.node_mut(at) else { return };
        node.used_ms = now_ms;
        node.hits = node.hits.saturating_add(1);
        node.recent = true;
        if room && !node.touched {
            node.touched = true;
            self.touched.push(at);
        }
    }

    fn keep_open(&mut self, at: u32, entry: Arc<Entry>) {
        if let Some(node) = self.node_mut(at)
            && node.open.replace(entry).is_none()
        {
            node.recent = true;
            self.open.push_back(at);
        }
        while self.open.len() > self.open_max
            && let Some(at) = self.open.pop_front()
        {
            let Some(node) = self.node_mut(at) else { continue };
            if node.open.is_some() && std::mem::take(&mut node.recent) {
                self.open.push_back(at);
            } else {
                node.open = None;
            }
        }
    }

    /// Nothing for a pinned one, which is in no list; so is linking it.
    fn unlink(&mut self, at: u32) {
        let Some(node) = self.node(at).filter(|node| !node.pinned) else { return };
        let (newer, older) = (node.newer, node.older);
        match self.node_mut(newer) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
        match self.node_mut(older) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, at: u32) {
        if self.node(at).is_none_or(|node| node.pinned) {
            return;
        }
        let was = std::mem::replace(&mut self.newest, at);
        match self.node_mut(was) {
            Some(node) => node.newer = at,
            None => self.oldest = at,
        }
        if let Some(node) = self.node_mut(at) {
            (node.newer, node.older) = (NONE, was);
        }
    }

    fn link_oldest(&mut self, at: u32) {
        if self.node(at).is_none_or(|node| node.pinned) {
            return;
        }
        let was = std::mem::replace(&mut self.oldest, at);
        match self.node_mut(was) {
            Some(node) => node.older = at,
            None => self.newest = at,
        }
        if let Some(node) = self.node_mut(at) {
            (node.newer, node.older) = (was, NONE);
        }
    }
}

impl Node {
    fn held(&self) -> Held {
        let Node { size, used_ms, hits, pinned, .. } = *self;
        Held { size, used_ms, stored_ms: u64::from(self.stored_s) * 1000, hits, pinned }
    }
}

/// The hash of the node at a place, for a table that grows.
fn hash_at<'a>(hasher: &'a RandomState, nodes: &'a [Option<Node>]) -> impl Fn(&u32) -> u64 {
    |at| nodes[*at as usize].as_ref().map_or(0, |node| hasher.hash_one(&node.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key::Url([n; 32])
    }

    fn filled(sizes: &[(u8, u64)]) -> Index {
        let mut index = Index::new(4);
        for (n, size) in sizes {
            index.insert(key(*n), *size, u64::from(*n), None);
        }
        index
    }

    fn keys(evicted: Vec<Evicted>) -> Vec<Key> {
        evicted.into_iter().map(|evicted| evicted.key).collect()
    }

    fn shrunk(index: &mut Index, max: u64) -> Vec<Key> {
        keys(index.shrink(max, usize::MAX))
    }

    fn evicted(index: &mut Index) -> Vec<Key> {
        keys(index.evict(u64::MAX, usize::MAX))
    }

    #[test]
    fn no_more_go_at_a_time_than_is_wanted() {
        let mut index = filled(&[(1, 10), (2, 10), (3, 10)]);
        assert!(index.is_beyond(29) && !index.is_beyond(30));
        assert_eq!(keys(index.shrink(0, 2)), [key(1), key(2)]);
        assert_eq!(keys(index.shrink(0, 2)), [key(3)]);
        index.reserve(1);
        assert!(!index.is_beyond(0), "nothing may go");
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut index = filled(&[(1, 10), (2, 10), (3, 10)]);
        assert!(matches!(index.lookup(&key(1), 9), Found::Closed));
        assert_eq!(shrunk(&mut index, 20), [key(2)]);
        assert_eq!(shrunk(&mut index, 0), [key(3), key(1)]);
        assert_eq!((index.count(), index.stored()), (0, 0));
    }

    #[test]
    fn what_is_set_aside_counts() {
        let mut index = filled(&[(1, 10), (2, 10)]);
        index.reserve(15);
        assert_eq!(shrunk(&mut index, 30), [key(1)]);
        index.release(15);
        assert_eq!(shrunk(&mut index, 10), []);
    }

    #[test]
    fn what_the_scan_finds_is_older_than_what_was_used_since() {
        let mut index = filled(&[(1, 10)]);
        index.insert_oldest(key(2), 10, 5, 0);
        index.insert_oldest(key(3), 10, 4, 0);
        index.insert_oldest(key(1), 99, 0, 0);
        assert_eq!(index.stored(), 30);
        assert_eq!(shrunk(&mut index, 0), [key(3), key(2), key(1)]);
    }

    #[test]
    fn a_replaced_entry_counts_once() {
        let mut index = filled(&[(1, 10), (2, 5)]);
        index.insert(key(1), 3, 9, None);
        assert_eq!((index.count(), index.stored()), (2, 8));
        assert_eq!(index.remove(&key(1)), Some(3));
        assert_eq!(index.remove(&key(1)), None);
    }

    #[test]
    fn uses_are_handed_over_once() {
        let mut index = filled(&[(1, 10), (2, 10)]);
        index.lookup(&key(1), 50);
        index.lookup(&key(1), 60);
        assert_eq!(index.take_touched(), [(key(1), 60)]);
        assert_eq!(index.take_touched(), []);
        index.lookup(&key(2), 70);
        index.remove(&key(2));
        assert_eq!(index.take_touched(), []);
    }

    #[test]
    fn a_doomed_fill_makes_room_for_another() {
        let mut index = Index::new(4);
        let first = Entry::pending(key(1), [0; 16]);
        index.start_fill(Arc::clone(&first));
        index.doom_fill(&key(1));
        assert!(first.is_doomed());
        let second = Entry::pending(key(1), [0; 16]);
        index.start_fill(Arc::clone(&second));
        index.end_fill(&first);
        assert!(matches!(index.lookup(&key(1), 0), Found::Filling(_)));
        index.end_fill(&second);
        assert!(matches!(index.lookup(&key(1), 0), Found::Absent));
    }

    #[test]
    fn what_is_pinned_stays_whatever_is_evicted() {
        let mut index = filled(&[(1, 10), (2, 10), (3, 10)]);
        for n in [1, 3, 5] {
            index.pin(&key(n));
        }
        index.insert(key(5), 7, 9, None);
        index.insert_oldest(key(4), 10, 1, 0);
        index.lookup(&key(3), 9);
        assert_eq!((index.pinned(), index.stored()), (27, 47));
        assert_eq!(evicted(&mut index), [key(4), key(2)]);
        assert_eq!(evicted(&mut index), []);
        index.unpin(&key(3));
        index.unpin(&key(1));
        index.insert(key(1), 4, 10, None);
        assert_eq!((index.pinned(), index.stored()), (7, 21));
        assert_eq!(evicted(&mut index), [key(3), key(1)]);
        assert_eq!(index.remove(&key(5)), Some(7));
        assert_eq!((index.pinned(), index.stored()), (0, 0));
    }

    #[test]
    fn a_node_stays_small() {
        assert!(std::mem::size_of::<Option<Node>>() <= 88);
    }
}
