//! Counters and latencies of the whole process; nothing here is ever reset.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from a stored entry.
    Hit,
    /// A candidate that went upstream.
    Miss,
    /// A candidate that joined the fill of another.
    Joined,
    /// No candidate: answered from upstream, past the cache.
    Passed,
    /// A CONNECT that was relayed as bytes.
    Tunnelled,
    /// A CONNECT whose TLS was opened.
    Intercepted,
    /// Not in order, or not allowed.
    Refused,
    /// For the proxy itself.
    Own,
}

const OUTCOMES: [Outcome; 8] = [
    Outcome::Hit,
    Outcome::Miss,
    Outcome::Joined,
    Outcome::Passed,
    Outcome::Tunnelled,
    Outcome::Intercepted,
    Outcome::Refused,
    Outcome::Own,
];

impl Outcome {
    /// The name in statistics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::Miss => "miss",
            Outcome::Joined => "joined",
            Outcome::Passed => "passed",
            Outcome::Tunnelled => "tunnelled",
            Outcome::Intercepted => "intercepted",
            Outcome::Refused => "refused",
            Outcome::Own => "own",
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// The counters. All only grow, but for `connections` and `tunnels`, which say what is
        /// open.
        #[derive(Default)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: AtomicU64,)+
            latency: [Latency; OUTCOMES.len()],
        }

        impl Stats {
            /// Every counter with its name, in one order.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.load(Ordering::Relaxed)),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Answers given from a stored entry.
    hits,
    /// Candidates that had to go upstream, those who joined a fill included.
    misses,
    /// Of the misses, those who joined a running fill.
    coalesced,
    /// Requests that are no candidates, or could not be stored.
    passed,
    /// Entries stored.
    stores,
    /// Entries removed to make room.
    evictions,
    /// Fills that failed, damaged entries, answers that could not be had.
    errors,
    /// Requests refused by a rule.
    refused,
    /// Requests without the credentials of a user of the proxy.
    unauthenticated,
    /// Sign-ins refused because too many passwords were being compared.
    limited_sign_ins,
    /// CONNECTs relayed as bytes.
    tunnelled,
    /// CONNECTs whose TLS was opened.
    intercepted,
    /// Questions to upstream whether somebody may have what is stored.
    questions,
    /// Requests that waited for the answer to the same question of another.
    questions_shared,
    /// Connections upstream.
    dialled,
    /// Bytes of bodies to clients.
    bytes_to_clients,
    /// Of those, bytes from stored entries.
    bytes_from_cache,
    /// Bytes of bodies from upstream.
    bytes_from_upstream,
    /// Client connections accepted.
    accepted,
    /// Client connections open now.
    connections,
    /// Connections refused because there were too many.
    overflowed,
    /// Connections refused because their client had too many.
    limited_per_client,
    /// Connections to the admin port refused because there were too many.
    limited_admin,
    /// Requests and TLS handshakes that took longer than `limits.header_timeout`.
    limited_header_time,
    /// Connections closed because their client was silent for `limits.idle_timeout`.
    limited_idle_time,
    /// Candidates that passed uncached because there were too many fills.
    limited_fills,
    /// Connections closed because they had carried enough requests.
    limited_requests,
}

impl Stats {
    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Takes from a counter that says what is open.
    pub fn sub(counter: &AtomicU64, amount: u64) {
        counter.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Notes how long an answer's head took from the request's head.
    pub fn observe(&self, outcome: Outcome, took: Duration) {
        self.latency[outcome as usize].record(took);
    }

    /// Microseconds at 50, 90, 99 and 99.9 per cent, and how many there were, for each outcome.
    pub fn latencies(&self) -> impl Iterator<Item = (Outcome, [u64; 4], u64)> {
        OUTCOMES.into_iter().map(|outcome| {
            let (quantiles, count) = self.latency[outcome as usize].quantiles();
            (outcome, quantiles, count)
        })
    }
}

/// Times in microseconds, two significant digits, up to a minute.
struct Latency(Mutex<Histogram<u64>>);

const LATENCY_MAX_US: u64 = 60_000_000;

impl Default for Latency {
    fn default() -> Latency {
        let histogram = Histogram::new_with_max(LATENCY_MAX_US, 2);
        // The bounds are constants, and valid ones.
        Latency(Mutex::new(histogram.expect("constant bounds")))
    }
}

impl Latency {
    fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(us);
    }

    fn quantiles(&self) -> ([u64; 4], u64) {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = [0.5, 0.9, 0.99, 0.999].map(|q| histogram.value_at_quantile(q));
        (at, histogram.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_names_and_count() {
        let stats = Stats::default();
        Stats::add(&stats.hits, 3);
        Stats::add(&stats.connections, 2);
        Stats::sub(&stats.connections, 1);
        let find = |name| stats.counters().find(|(n, _)| *n == name).map(|(_, value)| value);
        assert_eq!((find("hits"), find("connections"), find("nope")), (Some(3), Some(1), None));
    }

    #[test]
    fn latencies_are_kept_apart_by_outcome() {
        let stats = Stats::default();
        for us in 1..=100 {
            stats.observe(Outcome::Hit, Duration::from_micros(us));
        }
        stats.observe(Outcome::Passed, Duration::from_secs(3600));
        let all: Vec<_> = stats.latencies().collect();
        assert_eq!((all[0].1[0], all[0].2), (50, 100));
        assert_eq!(all[1].2, 0);
        assert!(all[Outcome::Passed as usize].1[0] >= 59_000_000);
    }
}
