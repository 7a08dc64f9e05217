//! The fills in progress, for people who look.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use super::Cache;
use super::entry::{Entry, Phase};

/// A fill in progress.
#[derive(Clone, Debug)]
pub struct Running {
    /// What it is called.
    pub label: Box<str>,
    /// When it began.
    pub since: SystemTime,
    /// Bytes readers may take.
    pub written: u64,
    /// The full length where upstream gave one.
    pub len: Option<u64>,
    /// Readers that wait for it, and whose client is there for all one knows.
    pub followers: usize,
}

impl Running {
    /// Nothing of one without a label, or that has just ended.
    fn of(entry: &Arc<Entry>) -> Option<Running> {
        let (label, since) = entry.label.get()?.clone();
        let (written, len) = match entry.phase() {
            Phase::Pending => (0, None),
            Phase::Growing { written, len, .. } => (written, len),
            _ => return None,
        };
        let followers = entry.followers.load(Ordering::Relaxed);
        Some(Running { label, since, written, len, followers })
    }
}

impl Cache {
    /// The fills in progress, the longest running first.
    pub fn running(&self) -> Vec<Running> {
        let fills: Vec<_> = self.inner.index().fills().map(Arc::clone).collect();
        let mut running: Vec<_> = fills.iter().filter_map(Running::of).collect();
        running.sort_by_key(|running| running.since);
        running
    }
}
