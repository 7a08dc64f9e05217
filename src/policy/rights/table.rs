//! A map that forgets: what was not used for long goes first, and the number of rows is bounded.
//!
//! Rows live in two halves. What is written or read is in the *young* half; when that is full, it
//! becomes the *old* half and what was old is forgotten all at once. So the rows used last, half of
//! the bound at least, are always there; no row carries links, and forgetting costs one `clear`.

use std::collections::HashMap;
use std::hash::Hash;

/// A bounded map of plain rows.
pub struct Table<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
    evicted: u64,
}

impl<K: Copy + Eq + Hash, V: Copy> Table<K, V> {
    /// A table of `max` rows at most. The map's own tables are powers of two filled to 7/8: a `max`
    /// of `2 * 7/8 * 2^n` wastes nothing.
    pub fn new(max: usize) -> Table<K, V> {
        Table { young: HashMap::new(), old: HashMap::new(), half: (max / 2).max(1), evicted: 0 }
    }

    /// The row, which counts as used.
    pub fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(*value);
        }
        let value = self.old.remove(key)?;
        self.insert(*key, value);
        Some(value)
    }

    /// Writes a row, over one that may be there.
    pub fn insert(&mut self, key: K, value: V) {
        if let Some(there) = self.young.get_mut(&key) {
            *there = value;
            return;
        }
        self.old.remove(&key);
        if self.young.len() >= self.half {
            self.evicted += self.old.len() as u64;
            std::mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.insert(key, value);
    }

    /// Takes a row out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.young.remove(key).or_else(|| self.old.remove(key))
    }

    /// Every row, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(&self.old)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// How many rows were forgotten to keep the bound.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_read_and_taken_out() {
        let mut table = Table::new(8);
        table.insert(1, 'a');
        table.insert(2, 'b');
        table.insert(1, 'c');
        assert_eq!((table.get(&1), table.get(&2), table.get(&3)), (Some('c'), Some('b'), None));
        assert_eq!(table.len(), 2);
        assert_eq!((table.remove(&1), table.remove(&1), table.get(&1)), (Some('c'), None, None));
        assert_eq!((table.len(), table.evicted()), (1, 0));
    }

    #[test]
    fn the_rows_used_last_stay() {
        let mut table = Table::new(8);
        table.insert(0, 0);
        for n in 1..1000_u32 {
            table.insert(n, n);
            assert_eq!(table.get(&0), Some(0), "used all the time, at {n}");
            assert!(table.len() <= 8);
            for recent in n.saturating_sub(2).max(1)..=n {
                assert!(table.iter().any(|(key, _)| *key == recent), "{recent} at {n}");
            }
        }
        assert_eq!(table.get(&500), None);
        assert_eq!(table.len() as u64 + table.evicted(), 1000);
    }

    #[test]
    fn a_row_is_never_in_both_halves() {
        let mut table = Table::new(4);
        for n in 0..100_u32 {
            let key = n * 7 % 11;
            table.insert(key, n);
            assert_eq!(table.iter().filter(|(there, _)| **there == key).count(), 1);
            assert_eq!(table.get(&key), Some(n));
        }
    }
}
