//! Seeds: numbers that follow from one, and how long a seeded test goes on.
//!
//! A seeded test says its first seed; `DISCOBOT_SEED` gives it that seed again. `DISCOBOT_LONG=1`
//! makes it go on for minutes.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// A generator of numbers (SplitMix64): the same ones from the same seed, everywhere.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// True once in `of` times.
    pub fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// How a seeded test is run.
pub struct Seeds {
    name: &'static str,
    next: u64,
    done: u64,
    end: Instant,
}

/// Seeds for about `short`, or for sixty times as long where the environment asks for that.
pub fn seeds(name: &'static str, short: Duration) -> Seeds {
    let time = if is_long() { short * 60 } else { short };
    Seeds { name, next: first(name), done: 0, end: Instant::now() + time }
}

/// The first seed of a test, which is said: the one of the environment, or any.
pub fn first(name: &str) -> u64 {
    let given = std::env::var("DISCOBOT_SEED").ok().filter(|seed| !seed.is_empty());
    let first = match given {
        Some(seed) => seed.parse().expect("DISCOBOT_SEED is a number"),
        None => RandomState::new().hash_one(name) >> 16,
    };
    println!("{name}: DISCOBOT_SEED={first}");
    first
}

/// Whether the environment asks for the long form.
pub fn is_long() -> bool {
    std::env::var("DISCOBOT_LONG").is_ok_and(|value| value == "1")
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // One is always tried, however slow the machine.
        if self.done > 0 && Instant::now() >= self.end {
            println!("{}: {} seeds", self.name, self.done);
            return None;
        }
        self.done += 1;
        self.next = self.next.wrapping_add(1);
        Some(self.next.wrapping_sub(1))
    }
}
