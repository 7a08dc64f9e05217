//! How all workers are told that it is time to stop: in order, and then at once. How one that is
//! lost ends the process.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crate::sys::process;

/// Running transfers may finish.
pub(super) const STOPPING: u8 = 1;

/// They may not.
pub(super) const AT_ONCE: u8 = 2;

/// Says to all workers that it is time to stop.
#[derive(Default)]
pub struct Stop {
    level: AtomicU8,
    lost: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Stop {
    /// Ends what still runs; what is to be remembered is written down all the same.
    pub fn at_once(&self) {
        self.reach(AT_ONCE);
    }

    /// Whether a worker has ended by a bug: what runs without it is not worth keeping.
    pub fn has_lost_worker(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(super) fn reach(&self, level: u8) {
        self.level.fetch_max(level, Ordering::Release);
        let wakers =
            std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(super) async fn reached(&self, level: u8) {
        std::future::poll_fn(|cx| {
            let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
            if self.level.load(Ordering::Acquire) >= level {
                return Poll::Ready(());
            }
            wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Lives as long as a worker thread does. A proxy with a dead core would go on to lose the clients
/// that the kernel gives to it: where the thread panics, the process is told to end, and whoever
/// started it starts it again.
pub(super) struct Vital(pub(super) Arc<Stop>);

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("a worker thread is lost: the proxy ends, to be started again");
            self.0.lost.store(true, Ordering::Release);
            if process::ask_to_stop().is_err() {
                std::process::abort();
            }
        }
    }
}
