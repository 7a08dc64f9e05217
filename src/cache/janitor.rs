//! The janitor: one thread that removes the files of fills that ended badly and writes down last
//! uses, so that no runtime thread waits for it. Its queue is bounded; where it is full, the sender
//! does the work.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Inner;
use crate::sys::sync::lock;

/// Jobs that may wait.
const QUEUE_MAX: usize = 4096;

pub(super) enum Job {
    /// Remove an unfinished fill's file.
    Part(PathBuf),
    /// Write last uses and end.
    Stop,
}

/// The sending end; clones share the thread.
#[derive(Clone)]
pub(super) struct Janitor {
    queue: SyncSender<Job>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Janitor {
    pub(super) fn start(inner: Arc<Inner>, interval: Duration) -> io::Result<Janitor> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("janitor".to_owned())
            .spawn(move || run(&inner, &jobs, interval))?;
        Ok(Janitor { queue, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    pub(super) fn send(&self, job: Job) {
        if let Err(refused) = self.queue.try_send(job) {
            let job = match refused {
                std::sync::mpsc::TrySendError::Full(job)
                | std::sync::mpsc::TrySendError::Disconnected(job) => job,
            };
            // A part that stays is left to the next start.
            let _ = carry_out(job);
        }
    }

    /// Waits until everything sent so far is done and last uses are on disk.
    pub(super) fn stop(&self) {
        if let Some(thread) = lock(&self.thread).take()
            && self.queue.send(Job::Stop).is_ok()
        {
            // A janitor that panicked has nothing left to wait for.
            let _ = thread.join();
        }
    }
}

fn run(inner: &Inner, jobs: &Receiver<Job>, interval: Duration) {
    let mut flush_at = Instant::now() + interval;
    // Parts of a disk that was read-only for a while: as many as there were fills under way then.
    let mut stuck = Vec::new();
    loop {
        match jobs.recv_timeout(flush_at.saturating_duration_since(Instant::now())) {
            Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return flush(inner),
            Ok(job) => stuck.extend(carry_out(job)),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= flush_at {
            flush(inner);
            stuck.retain(|part| !is_gone(part));
            flush_at = Instant::now() + interval;
        }
    }
}

/// Gives back the part that can't be removed now.
fn carry_out(job: Job) -> Option<PathBuf> {
    match job {
        Job::Part(path) => return Some(path).filter(|path| !is_gone(path)),
        Job::Stop => {}
    }
    None
}

/// Removes a part. It means nothing, so that what stays to the end is left to the next start.
fn is_gone(part: &Path) -> bool {
    match std::fs::remove_file(part) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn flush(inner: &Inner) {
    let touched = inner.index().take_touched();
    for (key, used_ms) in touched {
        // An entry that went since, or a read-only disk: recency is not worth a word.
        let _ = inner.disk.touch(&key, used_ms);
    }
}
