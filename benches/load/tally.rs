//! What is counted while it runs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Counters of one kind of load.
pub struct Tally {
    pub bytes: Cell<u64>,
    pub requests: Cell<u64>,
    pub errors: Cell<u64>,
    /// Bodies that are not what their digest or length says.
    pub wrong: Cell<u64>,
    /// Latencies in nanoseconds.
    pub latency: RefCell<Histogram<u64>>,
    /// What went wrong, and how often.
    pub reasons: RefCell<BTreeMap<String, u64>>,
}

/// Kinds of errors told apart.
const REASONS: usize = 20;

impl Tally {
    pub fn new() -> Tally {
        let hour = Duration::from_secs(3600).as_nanos() as u64;
        Tally {
            bytes: Cell::new(0),
            requests: Cell::new(0),
            errors: Cell::new(0),
            wrong: Cell::new(0),
            latency: RefCell::new(Histogram::new_with_bounds(1, hour, 3).expect("right bounds")),
            reasons: RefCell::new(BTreeMap::new()),
        }
    }

    pub fn add_bytes(&self, bytes: u64) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    pub fn done(&self, latency: Duration) {
        self.requests.set(self.requests.get() + 1);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latency.borrow_mut().saturating_record(nanos.max(1));
    }

    pub fn failed(&self, wrong: bool, why: String) {
        let counter = if wrong { &self.wrong } else { &self.errors };
        counter.set(counter.get() + 1);
        let mut reasons = self.reasons.borrow_mut();
        if reasons.len() < REASONS || reasons.contains_key(&why) {
            *reasons.entry(why).or_default() += 1;
        }
    }

    /// Begins anew, errors excepted: none may be lost.
    pub fn restart(&self) {
        self.bytes.set(0);
        self.requests.set(0);
        self.latency.borrow_mut().reset();
    }
}
