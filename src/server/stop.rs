//! How all workers are told that it is time to stop: in order, and then at once.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Running transfers may finish.
pub(super) const STOPPING: u8 = 1;

/// They may not.
pub(super) const AT_ONCE: u8 = 2;

/// Says to all workers that it is time to stop.
#[derive(Default)]
pub struct Stop {
    level: AtomicU8,
    wakers: Mutex<Vec<Waker>>,
}

impl Stop {
    /// Ends what still runs; what is to be remembered is written down all the same.
    pub fn at_once(&self) {
        self.reach(AT_ONCE);
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
