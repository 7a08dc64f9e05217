//! Names of hosts as labels: so many as there is room for, and one for all the others. Whoever asks
//! for a thousand hosts makes no thousand time series.

use std::sync::OnceLock;

/// Hosts that have figures of their own.
pub const HOSTS_MAX: usize = 32;

/// The name of all the others.
const OTHER: &str = "other";

/// Names in the order in which they came; none is ever taken out. Nothing here locks.
#[derive(Default)]
pub struct Names([OnceLock<Box<str>>; HOSTS_MAX]);

impl Names {
    /// The slot of all the others.
    pub const OTHER: usize = HOSTS_MAX;

    /// As many slots as there are.
    pub const SLOTS: usize = HOSTS_MAX + 1;

    /// The slot of a name: of an own one where it has that, or, with `add`, while there is room.
    pub fn slot(&self, name: &str, add: bool) -> usize {
        for (slot, place) in self.0.iter().enumerate() {
            let taken = match place.get() {
                Some(taken) => taken,
                None if add => place.get_or_init(|| name.into()),
                None => return Names::OTHER,
            };
            if **taken == *name {
                return slot;
            }
        }
        Names::OTHER
    }

    /// The name of a slot.
    pub fn name(&self, slot: usize) -> &str {
        self.0.get(slot).and_then(OnceLock::get).map_or(OTHER, |name| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_beyond_the_limit_are_one() {
        let names = Names::default();
        assert_eq!(names.name(names.slot("unknown", false)), OTHER);
        for n in 0..2 * HOSTS_MAX {
            let name = format!("{n}.example");
            let expected = if n < HOSTS_MAX { name.as_str() } else { OTHER };
            assert_eq!(names.name(names.slot(&name, true)), expected);
        }
        assert_eq!(names.slot("7.example", false), 7);
        assert_eq!(names.slot("x", true), Names::OTHER);
    }
}
