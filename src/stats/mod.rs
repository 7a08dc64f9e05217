//! Counters and times of the whole process; nothing here is ever reset.

mod cores;
mod history;
mod metrics;
mod names;
mod recent;
mod upstreams;

use std::sync::atomic::{AtomicU64, Ordering};

pub use self::cores::{Core, Figures, Finished, Times, micros};
pub use self::history::{History, SAMPLE, Sample, Totals};
pub use self::metrics::{Dialect, Moment};
pub use self::names::Names;
pub use self::recent::{Event, Recent};
pub use self::upstreams::Upstreams;

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

/// All of them, in the order of their numbers.
pub const OUTCOMES: [Outcome; 8] = [
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
        /// The counters. All only grow, but for `connections`, which says what is open.
        #[derive(Default)]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: AtomicU64,)+
            /// Hosts that requests are for.
            pub hosts: Names,
            /// What is seen of upstreams.
            pub upstreams: Upstreams,
            /// What was counted over time.
            pub history: History,
            /// The last misses.
            pub misses_seen: Recent,
            /// The last errors.
            pub errors_seen: Recent,
            cores: Box<[Core]>,
        }

        impl Stats {
            /// Every counter with its name, in one order.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                self.described().map(|(name, _, value)| (name, value))
            }

            /// The same with what each counts.
            fn described(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
                [$((
                    stringify!($name),
                    concat!($($doc),+).trim_ascii().trim_end_matches('.'),
                    value(&self.$name),
                ),)+]
                .into_iter()
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
    /// TLS handshakes with clients.
    handshakes,
    /// TLS handshakes with clients that failed.
    handshakes_failed,
    /// TLS handshakes with upstreams.
    upstream_handshakes,
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
    /// Client connections whose TLS was handed over to the kernel.
    ktls,
    /// Large hits whose connection the kernel did not take, though `tls.ktls` is on.
    ktls_refused,
}

impl Stats {
    /// For so many workers.
    pub fn new(workers: usize) -> Stats {
        Stats { cores: (0..workers).map(|_| Core::default()).collect(), ..Stats::default() }
    }

    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    /// Takes from a counter that says what is open.
    pub fn sub(counter: &AtomicU64, amount: u64) {
        counter.fetch_sub(amount, Ordering::Relaxed);
    }

    /// The figures of one worker.
    pub fn core(&self, worker: usize) -> Option<&Core> {
        self.cores.get(worker)
    }

    /// Where the counters of the history stand.
    pub fn totals(&self) -> Totals {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            hits: value(&self.hits),
            misses: value(&self.misses),
            to_clients: value(&self.bytes_to_clients),
            from_upstream: value(&self.bytes_from_upstream),
            saved: self.cores.iter().map(|core| core.saved()).sum(),
        }
    }

    /// Those of all workers together.
    pub fn figures(&self) -> Figures {
        let mut sum = Figures::default();
        self.cores.iter().for_each(|core| core.add_to(&mut sum));
        sum
    }
}

/// Upper bounds of the buckets of times, in seconds: the powers of two from 61 microseconds to 68
/// minutes, which are those of Prometheus' native histograms of schema 0.
fn bounds() -> impl Iterator<Item = f64> {
    (-14..=12).map(|power| 2_f64.powi(power))
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
}
