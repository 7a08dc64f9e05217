//! Passwords being compared: on threads of their own, since one comparison takes as long as
//! thousands of requests. Those who can't be taken in are refused at once.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::{Known, Mark};
use crate::http::Basic;
use crate::sys::sync::lock;

/// Comparisons at a time: what guessing may cost of the machine.
const CHECKERS: usize = 2;

/// Comparisons that wait.
const WAITING_MAX: usize = 64;

/// Of these, those of one client: whoever guesses keeps nobody else out.
const WAITING_PER_CLIENT: usize = 8;

/// The threads and what they have before them.
pub struct Checks(Arc<Queue>);

struct Queue {
    known: Arc<Known>,
    waiting: Mutex<VecDeque<Job>>,
    work: Condvar,
}

struct Job {
    client: IpAddr,
    basic: Basic,
    mark: Mark,
    verdict: Arc<Mutex<Verdict>>,
}

#[derive(Default)]
struct Verdict {
    right: Option<bool>,
    waker: Option<Waker>,
}

impl Checks {
    /// Starts the threads; they end with the process.
    pub fn start(known: Arc<Known>) -> io::Result<Checks> {
        let checks = Checks::new(known);
        for n in 0..CHECKERS {
            let queue = Arc::clone(&checks.0);
            let thread = std::thread::Builder::new().name(format!("password-{n}"));
            thread.spawn(move || queue.work())?;
        }
        Ok(checks)
    }

    /// Without threads.
    pub(super) fn new(known: Arc<Known>) -> Checks {
        Checks(Arc::new(Queue { known, waiting: Mutex::default(), work: Condvar::new() }))
    }

    /// Has a password compared; `None`: too many wait already.
    pub fn ask(
        &self,
        client: IpAddr,
        basic: Basic,
        mark: Mark,
    ) -> Option<impl Future<Output = bool> + use<>> {
        let mut waiting = self.0.waiting();
        let own = waiting.iter().filter(|job| job.client == client).count();
        if waiting.len() >= WAITING_MAX || own >= WAITING_PER_CLIENT {
            return None;
        }
        let verdict = Arc::<Mutex<Verdict>>::default();
        waiting.push_back(Job { client, basic, mark, verdict: Arc::clone(&verdict) });
        drop(waiting);
        self.0.work.notify_one();
        Some(poll_fn(move |cx| {
            let mut verdict = lock(&verdict);
            match verdict.right {
                Some(right) => Poll::Ready(right),
                None => {
                    verdict.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        }))
    }
}

impl Queue {
    fn work(&self) {
        loop {
            let job = self.next();
            // Whoever gave up waiting has dropped his end.
            if Arc::strong_count(&job.verdict) == 1 {
                continue;
            }
            // A client sends the same on many connections at once.
            let right = self.known.is_right(&job.mark) || self.known.compare(&job.basic, &job.mark);
            let mut verdict = lock(&job.verdict);
            verdict.right = Some(right);
            if let Some(waker) = verdict.waker.take() {
                waker.wake();
            }
        }
    }

    fn next(&self) -> Job {
        let mut waiting = self.waiting();
        loop {
            match waiting.pop_front() {
                Some(job) => return job,
                None => {
                    waiting = self.work.wait(waiting).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Job>> {
        lock(&self.waiting)
    }
}
