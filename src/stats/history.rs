//! What was counted over time: a sample for every ten seconds of the last hour, and for every five
//! minutes of the last day. Fed by a timer: no request comes here.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a sample of each ring is, and how many are kept.
const RINGS: [(Duration, usize); 2] =
    [(Duration::from_secs(10), 360), (Duration::from_secs(300), 288)];

/// How often [`History::take`] is called.
pub const SAMPLE: Duration = RINGS[0].0;

/// What has begun so recently says nothing yet.
const SPAN_MIN: Duration = Duration::from_secs(1);

/// Counters of which a history is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Answers from a stored entry.
    pub hits: u64,
    /// Candidates that went upstream, those who joined a fill included.
    pub misses: u64,
    /// Bytes of bodies to clients.
    pub to_clients: u64,
    /// Bytes of bodies from upstream.
    pub from_upstream: u64,
    /// Bytes of bodies to clients that upstream did not send.
    pub saved: u64,
}

impl Totals {
    /// What came since `before`.
    fn since(&self, before: &Totals) -> Totals {
        Totals {
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            to_clients: self.to_clients.saturating_sub(before.to_clients),
            from_upstream: self.from_upstream.saturating_sub(before.from_upstream),
            saved: self.saved.saturating_sub(before.saved),
        }
    }
}

/// What was counted within a stretch of time.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it ended.
    pub end: Instant,
    /// How long it is.
    pub span: Duration,
    /// What came in it.
    pub counted: Totals,
}

struct Ring {
    span: Duration,
    most: usize,
    samples: VecDeque<Sample>,
    /// When the running sample began, and what had been counted by then.
    begun: (Instant, Totals),
}

impl Ring {
    /// The running sample as it would end now.
    fn running(&self, now: Instant, totals: &Totals) -> Sample {
        let (begun, before) = &self.begun;
        Sample {
            end: now,
            span: now.saturating_duration_since(*begun),
            counted: totals.since(before),
        }
    }

    fn take(&mut self, now: Instant, totals: &Totals) {
        let sample = self.running(now, totals);
        if sample.span < self.span {
            return;
        }
        if self.samples.len() == self.most {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
        self.begun = (now, *totals);
    }
}

/// The history, oldest first.
pub struct History(Mutex<[Ring; 2]>);

impl Default for History {
    fn default() -> History {
        let begun = (Instant::now(), Totals::default());
        let ring = |(span, most)| Ring { span, most, samples: VecDeque::new(), begun };
        History(Mutex::new(RINGS.map(ring)))
    }
}

impl History {
    /// Ends the samples that are long enough.
    pub fn take(&self, now: Instant, totals: &Totals) {
        self.rings().iter_mut().for_each(|ring| ring.take(now, totals));
    }

    /// The samples of the last hour and of the last day, the running ones included.
    pub fn read(&self, now: Instant, totals: &Totals) -> [Vec<Sample>; 2] {
        let rings = self.rings();
        [0, 1].map(|n| {
            let ring = &rings[n];
            let running = Some(ring.running(now, totals)).filter(|sample| sample.span >= SPAN_MIN);
            ring.samples.iter().copied().chain(running).collect()
        })
    }

    fn rings(&self) -> MutexGuard<'_, [Ring; 2]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(hits: u64) -> Totals {
        Totals { hits, ..Totals::default() }
    }

    #[test]
    fn an_hour_and_a_day_are_kept() {
        let history = History::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let ticks = 2 * 24 * 360;
        for tick in 1..=ticks {
            history.take(at(10 * tick), &totals(3 * tick));
        }
        let now = at(10 * ticks + 5);
        let [hour, day] = history.read(now, &totals(3 * ticks + 2));
        assert_eq!((hour.len(), day.len()), (361, 289));
        let oldest = now - hour[0].end;
        assert_eq!(oldest, Duration::from_secs(3595));
        assert!(hour[..360].iter().all(|sample| sample.counted == totals(3)));
        assert!(day[1..288].iter().all(|sample| sample.counted == totals(90)));
        let running = hour[360];
        assert_eq!(running.counted, totals(2));
        assert!(running.span >= Duration::from_secs(4), "{running:?}");
    }

    #[test]
    fn a_sample_is_as_long_as_it_took() {
        let history = History::default();
        let start = Instant::now();
        history.take(start + Duration::from_secs(4), &totals(1));
        history.take(start + Duration::from_secs(25), &totals(7));
        let [hour, day] = history.read(start + Duration::from_secs(25), &totals(7));
        assert_eq!((hour.len(), day.len()), (1, 1));
        assert_eq!(hour[0].counted, totals(7));
        assert!(hour[0].span >= Duration::from_secs(25));
    }
}
