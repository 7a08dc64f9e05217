//! The threads on which whatever blocks is done.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use monoio::blocking::{BlockingTask, ThreadPool};

use crate::sys::sync::lock;

/// Threads for what blocks: files being opened, named and removed.
const HELPERS: usize = 8;

/// Blocking work that may wait for a helper.
const HELP_QUEUE: usize = 1024;

/// The helper threads, with a queue that refuses when it is full. They end once nobody can ask
/// them for anything any more.
#[derive(Clone)]
pub(super) struct Helpers(Arc<Handle>);

struct Handle(Arc<Queue>);

/// What waits for a helper. A channel that all of them share has one of them wait for it and the
/// others for that one: each piece of work then wakes two.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    tasks: VecDeque<BlockingTask>,
    /// Helpers that wait for something to do.
    idle: usize,
    closed: bool,
}

impl Helpers {
    pub(super) fn start() -> io::Result<Helpers> {
        let helpers = Helpers(Arc::new(Handle(Arc::default())));
        for n in 0..HELPERS {
            let queue = Arc::clone(&helpers.0.0);
            let help = move || {
                while let Some(task) = queue.next() {
                    // The hook has said what was wrong.
                    let _ = catch_unwind(AssertUnwindSafe(|| task.run()));
                }
            };
            std::thread::Builder::new().name(format!("helper-{n}")).spawn(help)?;
        }
        Ok(helpers)
    }
}

impl ThreadPool for Helpers {
    fn schedule_task(&self, task: BlockingTask) {
        let queue = &self.0.0;
        let mut waiting = queue.lock();
        if waiting.tasks.len() >= HELP_QUEUE {
            drop(waiting);
            // Dropped, it tells whoever waits for it that it was cancelled.
            return drop(task);
        }
        waiting.tasks.push_back(task);
        let idle = waiting.idle > 0;
        drop(waiting);
        if idle {
            queue.more.notify_one();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.more.notify_all();
    }
}

impl Queue {
    /// Waits for something to do; `None` once nothing can come any more.
    fn next(&self) -> Option<BlockingTask> {
        let mut waiting = self.lock();
        loop {
            if let Some(task) = waiting.tasks.pop_front() {
                return Some(task);
            }
            if waiting.closed {
                return None;
            }
            waiting.idle += 1;
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn all_help_at_once_survive_a_bug_and_end_with_the_last_who_could_ask() {
        let helpers = Helpers::start().unwrap();
        let queue = Arc::downgrade(&helpers.0.0);
        let (ended, end) = channel::<()>();
        let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new();
        builder.attach_thread_pool(Box::new(helpers)).build().unwrap().block_on(async move {
            for _ in 0..HELPERS {
                drop(monoio::spawn_blocking(|| panic!("a bug")));
            }
            // None gets past it before all have come.
            let all = Arc::new(Barrier::new(HELPERS));
            let started: Vec<_> = (0..HELPERS)
                .map(|_| {
                    let (all, ended) = (Arc::clone(&all), ended.clone());
                    monoio::spawn_blocking(move || {
                        all.wait();
                        drop(ended);
                    })
                })
                .collect();
            for one in started {
                one.await.unwrap();
            }
        });
        assert!(end.recv().is_err());
        while queue.strong_count() > 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_full_queue_refuses() {
        // With no helper at all.
        let helpers = Helpers(Arc::new(Handle(Arc::default())));
        let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new();
        let pool = Box::new(helpers.clone());
        builder.attach_thread_pool(pool).build().unwrap().block_on(async {
            let waiting: Vec<_> = (0..HELP_QUEUE).map(|_| monoio::spawn_blocking(|| ())).collect();
            assert!(monoio::spawn_blocking(|| ()).await.is_err());
            assert_eq!(helpers.0.0.lock().tasks.len(), HELP_QUEUE);
            drop(waiting);
        });
    }
}
