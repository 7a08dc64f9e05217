//! The janitor: one thread that unlinks what was evicted and writes down last uses, so that no
//! runtime thread waits for it. Its queue is bounded; where it is full, the sender does the work.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Inner, lock};
use crate::key::Key;

/// Jobs that may wait.
const QUEUE_MAX: usize = 4096;

pub(super) enum Job {
    /// Remove an evicted entry's files.
    Unlink(Key),
    /// Remove an unfinished fill's file.
    Part(PathBuf),
    /// Write last uses and end.
    Stop,
}

/// The sending end; clones share the thread.
#[derive(Clone)]
pub(super) struct Janitor {
    inner: Arc<Inner>,
    queue: SyncSender<Job>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Janitor {
    pub(super) fn start(inner: Arc<Inner>, interval: Duration) -> io::Result<Janitor> {
        let (queue, jobs) = sync_channel(QUEUE_MAX);
        let for_thread = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("janitor".to_owned())
            .spawn(move || run(&for_thread, &jobs, interval))?;
        Ok(Janitor { inner, queue, thread: Arc::new(Mutex::new(Some(thread))) })
    }

    pub(super) fn send(&self, job: Job) {
        if let Err(refused) = self.queue.try_send(job) {
            let job = match refused {
                std::sync::mpsc::TrySendError::Full(job)
                | std::sync::mpsc::TrySendError::Disconnected(job) => job,
            };
            carry_out(&self.inner, job);
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
    loop {
        match jobs.recv_timeout(flush_at.saturating_duration_since(Instant::now())) {
            Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => return flush(inner),
            Ok(job) => carry_out(inner, job),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() >= flush_at {
            flush(inner);
            flush_at = Instant::now() + interval;
        }
    }
}

fn carry_out(inner: &Inner, job: Job) {
    match job {
        Job::Unlink(key) => inner.unlink(&key),
        Job::Part(path) => {
            // It means nothing; the next start tries again.
            let _ = std::fs::remove_file(path);
        }
        Job::Stop => {}
    }
}

fn flush(inner: &Inner) {
    let touched = inner.index().take_touched();
    for (key, used_ms) in touched {
        // An entry that went since, or a read-only disk: recency is not worth a word.
        let _ = inner.disk.touch(&key, used_ms);
    }
}
