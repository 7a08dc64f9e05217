//! The threads on which whatever blocks is done.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use monoio::blocking::{BlockingTask, ThreadPool};

/// Threads for what blocks: files being opened, named and removed.
const HELPERS: usize = 8;

/// Blocking work that may wait for a helper.
const HELP_QUEUE: usize = 1024;

/// The helper threads, with a queue that refuses when it is full.
#[derive(Clone)]
pub(super) struct Helpers(SyncSender<BlockingTask>);

impl Helpers {
    pub(super) fn start() -> io::Result<Helpers> {
        let (queue, tasks) = sync_channel::<BlockingTask>(HELP_QUEUE);
        let tasks = Arc::new(Mutex::new(tasks));
        for n in 0..HELPERS {
            let tasks = Arc::clone(&tasks);
            let help = move || {
                loop {
                    let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(task) = task else { return };
                    // The hook has said what was wrong; whoever waits is told that it came to
                    // nothing.
                    let _ = catch_unwind(AssertUnwindSafe(|| task.run()));
                }
            };
            std::thread::Builder::new().name(format!("helper-{n}")).spawn(help)?;
        }
        Ok(Helpers(queue))
    }
}

impl ThreadPool for Helpers {
    fn schedule_task(&self, task: BlockingTask) {
        // A task that is dropped tells whoever waits for it that it was cancelled.
        let _ = self.0.try_send(task);
    }
}
