//! One question to the system's resolver, and everyone who waits for its answer.
//!
//! Wakers and a std mutex are all that is used: no runtime, and a test can poll it by hand.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// The addresses of a name in the order to try them, or the resolver's words.
pub(super) type Found = Result<Vec<IpAddr>, Box<str>>;

/// What was found, and when.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub found: Found,
    at: Instant,
}

impl Answer {
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }
}

/// A question; it is asked once, and never again after its answer.
#[derive(Debug)]
pub(super) struct Lookup {
    pub name: Box<str>,
    /// What the question before this one brought.
    pub earlier: Option<Answer>,
    asked: Instant,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    answer: Option<Answer>,
    /// Everyone who waits; without a waker until first polled.
    waiting: HashMap<u64, Option<Waker>>,
    joined: u64,
}

impl Lookup {
    pub fn new(name: &str, earlier: Option<Answer>) -> Arc<Lookup> {
        let (name, asked) = (name.into(), Instant::now());
        Arc::new(Lookup { name, earlier, asked, progress: Mutex::default() })
    }

    /// Since when it has been wanted.
    pub fn age(&self) -> Duration {
        self.asked.elapsed()
    }

    /// Its answer, once that is there.
    pub fn answer(&self) -> Option<Answer> {
        self.lock().answer.clone()
    }

    /// How many still want to know.
    pub fn wanted_by(&self) -> usize {
        self.lock().waiting.len()
    }

    /// One more who waits for the answer.
    pub fn join(self: &Arc<Lookup>) -> Wait {
        let mut progress = self.lock();
        progress.joined += 1;
        let place = progress.joined;
        progress.waiting.insert(place, None);
        Wait { lookup: Arc::clone(self), place }
    }

    /// Gives the answer to everyone who waits and whoever comes later.
    pub fn finish(&self, found: Found) {
        let wakers: Vec<Waker> = {
            let mut progress = self.lock();
            progress.answer = Some(Answer { found, at: Instant::now() });
            progress.waiting.values_mut().filter_map(Option::take).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Puts `address`, if it is among those found, before the others.
    pub fn prefer(&self, address: IpAddr) {
        if let Some(Answer { found: Ok(found), .. }) = &mut self.lock().answer
            && let Some(place) = found.iter().position(|other| *other == address)
            && let Some(first) = found.get_mut(..=place)
        {
            first.rotate_right(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wait for the answer of a look-up; dropped, it counts no more among those who want it.
#[derive(Debug)]
pub(super) struct Wait {
    pub lookup: Arc<Lookup>,
    place: u64,
}

impl Future for Wait {
    type Output = Found;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Found> {
        let mut progress = self.lookup.lock();
        if let Some(answer) = &progress.answer {
            return Poll::Ready(answer.found.clone());
        }
        progress.waiting.insert(self.place, Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.lookup.lock().waiting.remove(&self.place);
    }
}
