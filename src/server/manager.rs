//! What a service manager such as systemd is told: sd_notify(3). Without one, nothing is.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// What the service manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Clients may come; also the end of [`Event::Reloading`].
    Ready,
    /// What can be read again while running is being read.
    Reloading,
    /// No further client is taken in.
    Stopping,
}

/// Tells it; what it can't be told is in the log.
pub fn tell(event: Event) {
    let notified = match event {
        Event::Ready => sd_notify::notify(&[NotifyState::Ready]),
        Event::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
        Event::Reloading => NotifyState::monotonic_usec_now()
            .and_then(|since| sd_notify::notify(&[NotifyState::Reloading, since])),
    };
    if let Err(error) = notified {
        tracing::warn!(%error, ?event, "the service manager can't be told");
    }
}

/// Shows that a worker still takes up its tasks.
#[derive(Clone, Debug)]
pub struct Heart {
    beats: Arc<AtomicU64>,
    patience: Duration,
}

impl Heart {
    /// One for a worker, where the service manager watches over us (`WatchdogSec=`).
    pub fn wanted() -> Option<Heart> {
        let patience = sd_notify::watchdog_enabled()?;
        Some(Heart { beats: Arc::default(), patience })
    }

    /// Beats, four times within what the service manager's patience is.
    pub async fn beat(self) {
        loop {
            self.beats.fetch_add(1, Ordering::Relaxed);
            monoio::time::sleep(self.patience / 4).await;
        }
    }
}

/// Tells the service manager that we live, for as long as every heart beats. Once one has stopped,
/// nothing more is said, and it starts us anew.
pub fn watch(hearts: Vec<Heart>) -> io::Result<()> {
    let Some(patience) = hearts.first().map(|heart| heart.patience) else { return Ok(()) };
    let mut before = vec![0; hearts.len()];
    let watch = move || {
        loop {
            if all_beat(&hearts, &mut before)
                && let Err(error) = sd_notify::notify(&[NotifyState::Watchdog])
            {
                tracing::warn!(%error, "the service manager can't be told that we live");
            }
            std::thread::sleep(patience / 2);
        }
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch).map(drop)
}

/// Whether every heart has beaten since `before`, which becomes now.
fn all_beat(hearts: &[Heart], before: &mut [u64]) -> bool {
    let mut all = true;
    for (heart, before) in hearts.iter().zip(before) {
        let now = heart.beats.load(Ordering::Relaxed);
        all &= now != std::mem::replace(before, now);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_heart_that_stops_is_enough() {
        let heart = || Heart { beats: Arc::default(), patience: Duration::ZERO };
        let hearts = [heart(), heart()];
        let beat = |index: usize| hearts[index].beats.fetch_add(1, Ordering::Relaxed);
        let mut before = [0; 2];
        assert!(!all_beat(&hearts, &mut before));
        hearts.iter().for_each(|heart| _ = heart.beats.fetch_add(1, Ordering::Relaxed));
        assert!(all_beat(&hearts, &mut before));
        assert!(!all_beat(&hearts, &mut before));
        beat(0);
        assert!(!all_beat(&hearts, &mut before));
        hearts.iter().for_each(|heart| _ = heart.beats.fetch_add(1, Ordering::Relaxed));
        assert!(all_beat(&hearts, &mut before));
    }
}
