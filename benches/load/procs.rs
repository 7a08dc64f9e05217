//! What a server costs, read from /proc: its process and those below it.

use std::fs;
use std::time::Duration;

/// The kernel counts CPU time in these for user space (`USER_HZ`), on every architecture we run on.
const TICKS_PER_SECOND: u64 = 100;

/// A process and those below it.
pub struct Server(Vec<u32>);

impl Server {
    /// `root` and its descendants of this moment.
    pub fn new(root: u32) -> Server {
        let mut pairs: Vec<(u32, u32)> = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let Some(pid) = pid
                && let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok())
            {
                pairs.push((pid, parent));
            }
        }
        let mut pids = vec![root];
        let mut at = 0;
        while at < pids.len() {
            let parent: u32 = pids[at];
            pids.extend(pairs.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            at += 1;
        }
        Server(pids)
    }

    /// User and system time of all of them so far.
    pub fn cpu(&self) -> Duration {
        let ticks = |pid: &u32| {
            let fields = stat(*pid)?;
            let user: u64 = fields.get(11)?.parse().ok()?;
            let system: u64 = fields.get(12)?.parse().ok()?;
            Some(user + system)
        };
        let ticks: u64 = self.0.iter().filter_map(ticks).sum();
        Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
    }

    /// Resident memory of all of them, in KiB; what they share counts for each that has it.
    pub fn rss(&self) -> u64 {
        let rss = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        self.0.iter().filter_map(rss).sum()
    }
}

/// How long a core was busy so far, whoever used it; what the host took of it counts.
pub fn busy(core: u32) -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let name = format!("cpu{core}");
    let line = text.lines().find(|line| line.split(' ').next() == Some(name.as_str()));
    let ticks: Vec<u64> =
        line.into_iter().flat_map(str::split_whitespace).filter_map(|n| n.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is in them.
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let busy = ticks.iter().take(8).sum::<u64>() - idle;
    Duration::from_millis(busy * 1000 / TICKS_PER_SECOND)
}

/// The fields of /proc/PID/stat behind the name, which may hold spaces: state, parent, ...
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split(' ').map(str::to_owned).collect())
}
