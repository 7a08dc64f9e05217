//! The proxy's own host: room, limits, io_uring. Said only where a cache or a running proxy is.

use std::fs;

use super::{Finding, fail, ok, warn};
use crate::config::Config;
use crate::sys::file::space;

/// Before Linux 5.12 rings were counted against it.
const MEMLOCK_MIN: u64 = 8 << 20;

/// Two descriptors for a connection, two for what it reads.
const FILES_PER_CONNECTION: u64 = 4;

/// What this host has for the proxy that is configured, or runs, here.
pub fn look(config: &Config) -> Vec<Finding> {
    let running = running();
    if running.is_none() && !config.cache.dir.exists() {
        return Vec::new();
    }
    let mut findings = vec![room(config), io_uring()];
    let process = running.unwrap_or_else(|| "self".to_owned());
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).unwrap_or_default();
    findings.push(open_files(&limits, config));
    findings.push(memlock(&limits));
    findings
}

/// The process id of a proxy on this host.
fn running() -> Option<String> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter(|process| process.file_name() != *own).find_map(|process| {
        let comm = fs::read_to_string(process.path().join("comm")).ok()?;
        (comm.trim_end() == "discobot-proxy").then(|| process.file_name().into_string().ok())?
    })
}

fn room(config: &Config) -> Finding {
    let (what, dir) = ("room", config.cache.dir.display());
    match space(&config.cache.dir) {
        Ok(space) if space.free > config.cache.min_free => {
            ok(what, format!("{} MiB free for {dir}", space.free >> 20))
        }
        Ok(space) => fail(
            what,
            format!("{} MiB free for {dir}, less than cache.min_free", space.free >> 20),
            format!("df -h {dir}   # make room, or set a smaller cache.max_size and restart"),
        ),
        Err(error) => warn(
            what,
            format!("{dir}: {error}"),
            "discobot-proxy doctor --config FILE   # with the running proxy's file",
        ),
    }
}

fn io_uring() -> Finding {
    match monoio::utils::detect_uring() {
        true => ok("io_uring", "available"),
        false => warn(
            "io_uring",
            "not available: the proxy uses epoll, and a little more of the CPU",
            "sysctl -w kernel.io_uring_disabled=0   # a container's seccomp profile may forbid it",
        ),
    }
}

fn open_files(limits: &str, config: &Config) -> Finding {
    let what = "open files";
    let mend = "systemctl edit discobot-proxy   # [Service] LimitNOFILE=131072";
    let wanted = FILES_PER_CONNECTION * config.limits.max_connections as u64;
    match hard(limits, "Max open files") {
        Some(most) if most >= wanted => ok(what, format!("{most} at most")),
        Some(most) => {
            let served = format!("about {} connections at once", most / FILES_PER_CONNECTION);
            warn(what, format!("{most} at most, for {served}"), mend)
        }
        None => warn(what, "their limit can't be read", mend),
    }
}

fn memlock(limits: &str) -> Finding {
    let what = "locked memory";
    match hard(limits, "Max locked memory") {
        Some(u64::MAX) => ok(what, "without a limit"),
        Some(most) if most >= MEMLOCK_MIN => ok(what, format!("{} KiB at most", most >> 10)),
        Some(most) => warn(
            what,
            format!("{} KiB at most, too little for io_uring before Linux 5.12", most >> 10),
            "systemctl edit discobot-proxy   # [Service] LimitMEMLOCK=64M",
        ),
        None => warn(what, "its limit can't be read", "ulimit -H -l"),
    }
}

/// The hard limit of that name in `/proc/PID/limits`.
fn hard(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}
