//! Figures of finished requests, each core's for itself: no core waits for another, and all are put
//! together by whoever reads them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use super::names::Names;
use super::{OUTCOMES, Outcome};

/// Microseconds, as far as there is room for them: half a million years.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// A request that has come to its end.
pub struct Finished {
    /// What became of it.
    pub outcome: Outcome,
    /// The slot of the host it was for.
    pub host: usize,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// From the request's head to the answer's, where there was one.
    pub first_byte: Option<Duration>,
    /// From the request's head to the end.
    pub whole: Duration,
}

/// The figures of one core. Its lock is taken by that core alone, but for the moment in which
/// somebody looks. On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Core(Mutex<Figures>);

impl Core {
    /// Takes in a finished request. Allocates for the first one of its outcome alone.
    pub fn add(&self, finished: &Finished) {
        let mut figures = self.figures();
        let outcome = finished.outcome as usize;
        if let Some(count) = figures.counts.get_mut(finished.host) {
            count[outcome].requests += 1;
            count[outcome].bytes += finished.bytes;
        }
        if let Some(first_byte) = finished.first_byte {
            figures.first_byte[outcome].get_or_insert_default().record(first_byte);
        }
        figures.whole[outcome].get_or_insert_default().record(finished.whole);
    }

    /// Adds this core's figures to those of others.
    pub fn add_to(&self, sum: &mut Figures) {
        let figures = self.figures();
        for (sum, counts) in sum.counts.iter_mut().zip(&figures.counts) {
            for (sum, count) in sum.iter_mut().zip(counts) {
                sum.requests += count.requests;
                sum.bytes += count.bytes;
            }
        }
        let times = figures.first_byte.iter().chain(&figures.whole);
        for (sum, times) in sum.first_byte.iter_mut().chain(&mut sum.whole).zip(times) {
            if let Some(times) = times {
                sum.get_or_insert_default().add(times);
            }
        }
    }

    /// As [`Figures::saved`].
    pub fn saved(&self) -> u64 {
        self.figures().saved()
    }

    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests and bytes.
#[derive(Clone, Copy, Default)]
pub struct Count {
    /// Requests that have ended.
    pub requests: u64,
    /// Bytes of the bodies of their answers.
    pub bytes: u64,
}

/// Sums over finished requests; the index within is an [`Outcome`].
pub struct Figures {
    /// For each slot of a host.
    pub counts: [[Count; OUTCOMES.len()]; Names::SLOTS],
    /// Times to the answer's head; nothing where there was none.
    pub first_byte: [Option<Times>; OUTCOMES.len()],
    /// Times to the end.
    pub whole: [Option<Times>; OUTCOMES.len()],
}

impl Default for Figures {
    fn default() -> Figures {
        let counts = [[Count::default(); OUTCOMES.len()]; Names::SLOTS];
        Figures { counts, first_byte: Default::default(), whole: Default::default() }
    }
}

impl Figures {
    /// The bytes of answers with this outcome, whoever asked whom.
    pub fn bytes(&self, outcome: Outcome) -> u64 {
        self.counts.iter().map(|counts| counts[outcome as usize].bytes).sum()
    }

    /// Bytes to clients that upstream did not send.
    pub fn saved(&self) -> u64 {
        self.bytes(Outcome::Hit) + self.bytes(Outcome::Joined)
    }
}

/// The longest time told apart from longer ones: three hours.
const TIME_MAX_US: u64 = 3 * 3_600_000_000;

/// Times in microseconds, two significant digits.
pub struct Times {
    histogram: Histogram<u64>,
    sum: Duration,
}

impl Default for Times {
    fn default() -> Times {
        let histogram = Histogram::new_with_max(TIME_MAX_US, 2);
        // The bounds are constants, and valid ones.
        Times { histogram: histogram.expect("constant bounds"), sum: Duration::ZERO }
    }
}

impl Times {
    fn record(&mut self, time: Duration) {
        self.histogram.saturating_record(micros(time));
        self.sum = self.sum.saturating_add(time);
    }

    fn add(&mut self, other: &Times) {
        // Histograms with the same bounds can always be added.
        let _ = self.histogram.add(&other.histogram);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Microseconds at 50, 90, 99 and 99.9 per cent.
    pub fn quantiles(&self) -> [u64; 4] {
        [0.5, 0.9, 0.99, 0.999].map(|q| self.histogram.value_at_quantile(q))
    }

    /// All of them together.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// How many there were up to each of these bounds in seconds and above the one before it. The
    /// last bound is beyond all times.
    pub fn buckets(&self, bounds: impl Iterator<Item = f64>) -> Vec<(f64, u64)> {
        let mut values = self.histogram.iter_recorded().peekable();
        let up_to = |bound: f64| {
            let mut count = 0;
            while let Some(value) =
                values.next_if(|value| value.value_iterated_to() as f64 / 1e6 <= bound)
            {
                count += value.count_since_last_iteration();
            }
            (bound, count)
        };
        bounds.map(up_to).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(outcome: Outcome, host: usize, us: u64) -> Finished {
        let time = Duration::from_micros(us);
        Finished { outcome, host, bytes: 10, first_byte: Some(time), whole: time * 2 }
    }

    #[test]
    fn the_figures_of_all_cores_are_put_together() {
        let cores = [Core::default(), Core::default()];
        for us in 1..=100 {
            cores[us as usize % 2].add(&finished(Outcome::Hit, 3, us));
        }
        cores[0].add(&finished(Outcome::Passed, Names::SLOTS, 3_600_000_000));
        let mut sum = Figures::default();
        cores.iter().for_each(|core| core.add_to(&mut sum));
        let hits = sum.counts[3][Outcome::Hit as usize];
        assert_eq!((hits.requests, hits.bytes, sum.bytes(Outcome::Hit)), (100, 1000, 1000));
        let times = sum.first_byte[Outcome::Hit as usize].as_ref().unwrap();
        assert_eq!((times.count(), times.quantiles()[0]), (100, 50));
        assert_eq!(times.sum(), Duration::from_micros(5050));
        assert!(sum.first_byte[Outcome::Miss as usize].is_none());
        let passed = sum.whole[Outcome::Passed as usize].as_ref().unwrap();
        assert!(passed.quantiles()[0] >= 7_000_000_000);
    }

    #[test]
    fn every_time_is_in_one_bucket() {
        let mut times = Times::default();
        for us in [10, 90, 110, 5_000_000, u64::MAX] {
            times.record(Duration::from_micros(us));
        }
        let buckets = times.buckets([1e-5, 1e-4, 1e-3, 1e-2, 10.0, f64::INFINITY].into_iter());
        let counts: Vec<u64> = buckets.iter().map(|(_, count)| *count).collect();
        assert_eq!(counts, [1, 1, 1, 0, 1, 1]);
    }
}
