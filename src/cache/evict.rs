//! Which entries go when room is needed: the least recently used first. Pure: it looks, it returns
//! positions, and somebody else removes.

/// Picks from `oldest_first` (position and size of each entry) until `excess` bytes are found.
///
/// Picks everything there is where that is not enough.
pub fn choose(oldest_first: impl Iterator<Item = (u32, u64)>, excess: u64) -> Vec<u32> {
    let mut freed = 0_u64;
    let mut chosen = Vec::new();
    for (position, size) in oldest_first {
        if freed >= excess {
            break;
        }
        freed = freed.saturating_add(size);
        chosen.push(position);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn as_many_as_needed_go_and_no_more() {
        let entries = || [(7, 10), (3, 10), (5, 10)].into_iter();
        assert!(choose(entries(), 0).is_empty());
        assert_eq!(choose(entries(), 1), [7]);
        assert_eq!(choose(entries(), 10), [7]);
        assert_eq!(choose(entries(), 11), [7, 3]);
        assert_eq!(choose(entries(), 1000), [7, 3, 5]);
        assert!(choose([].into_iter(), 5).is_empty());
    }

    #[test]
    fn empty_entries_free_nothing() {
        assert_eq!(choose([(1, 0), (2, 5)].into_iter(), 5), [1, 2]);
    }
}
