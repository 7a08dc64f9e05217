//! Calls on the process as a whole: signals and limits.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::Socket;

/// The signals the proxy answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: finish what runs, then leave.
    Stop,
    /// SIGHUP: reopen the log file.
    Reopen,
}

/// Blocks SIGTERM, SIGINT and SIGHUP in this thread and every thread it starts afterwards, so that
/// only [`wait_signal`] sees them.
pub fn block_signals() -> io::Result<()> {
    let set = signal_set();
    // SAFETY: `set` is an initialised signal set; the old mask is not asked for.
    let code = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Waits for the next signal; [`block_signals`] was called before.
pub fn wait_signal() -> io::Result<Signal> {
    let set = signal_set();
    let mut signal = 0;
    // SAFETY: `set` is an initialised signal set and `signal` a valid out-pointer.
    let code = unsafe { libc::sigwait(&set, &mut signal) };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    Ok(if signal == libc::SIGHUP { Signal::Reopen } else { Signal::Stop })
}

/// Has [`wait_signal`] see a [`Signal::Stop`].
pub fn ask_to_stop() -> io::Result<()> {
    // SAFETY: plain numbers; SIGTERM to this process.
    let code = unsafe { libc::kill(libc::getpid(), libc::SIGTERM) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: `sigemptyset` initialises the set before it is read; the numbers are valid signals.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::sigaddset(&mut set, libc::SIGHUP);
        set
    }
}

/// Has this thread take a core from no other that is running (`SCHED_BATCH`, sched(7)): it waits
/// for its turn, or for a core that is idle.
pub fn stand_back() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are there for the call; 0 is the calling thread.
    let code = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &priority) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Raises the limit of open files to `wanted`, or as far as the hard limit goes without privileges,
/// and returns what it is then.
pub fn raise_open_files(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid out-pointer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= wanted {
        return Ok(limit.rlim_cur);
    }
    let all = libc::rlimit { rlim_cur: wanted, rlim_max: wanted.max(limit.rlim_max) };
    // SAFETY: `all` is initialised and the call only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &all) } == 0 {
        return Ok(wanted);
    }
    limit.rlim_cur = limit.rlim_max.min(wanted);
    // SAFETY: `limit` is initialised and the call only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// How long each thread of this process has been on a processor, by its name.
pub fn thread_times() -> io::Result<Vec<(String, Duration)>> {
    let mut times = Vec::new();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        // It may have ended meanwhile.
        let (Ok(name), Ok(times_ns)) =
            (fs::read_to_string(task.join("comm")), fs::read_to_string(task.join("schedstat")))
        else {
            continue;
        };
        if let Some(ns) = times_ns.split(' ').next().and_then(|ns| ns.parse().ok()) {
            times.push((name.trim_end().to_owned(), Duration::from_nanos(ns)));
        }
    }
    Ok(times)
}

/// Keeps what is in memory, private keys and credentials among it, out of core dumps: those the
/// limit allows, and those that are piped to a program whatever the limit.
pub fn forbid_core_dumps() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is initialised and the call only reads it.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the option takes one integer, and no pointer.
    if unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The sockets that the service manager handed over to this process, by sd_listen_fds(3): further
/// descriptors of theirs, since those handed over have no owner among us.
pub fn passed_sockets() -> io::Result<Vec<Socket>> {
    let clone = |fd| {
        // SAFETY: the environment says that this descriptor was opened for this process, which
        // never closes it.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map(Socket::from)
    };
    sd_notify::listen_fds()?.map(clone).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_thread_that_stands_back_is_scheduled_as_a_batch() {
        let policy = std::thread::spawn(|| {
            stand_back().unwrap();
            let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
            // Field 41 (proc_pid_stat(5)), counted behind the name in parentheses.
            let (_, fields) = stat.rsplit_once(") ").unwrap();
            fields.split(' ').nth(38).and_then(|policy| policy.parse::<i32>().ok())
        });
        assert_eq!(policy.join().unwrap(), Some(libc::SCHED_BATCH));
    }

    #[test]
    fn threads_say_how_long_they_were_on_a_processor() {
        let busy = std::thread::Builder::new().name("busy-one".to_owned()).spawn(|| {
            let of = |(name, time)| (name == "busy-one").then_some(time);
            let mine = || thread_times().unwrap().into_iter().find_map(of);
            let before = mine().unwrap();
            while mine().unwrap() <= before {}
        });
        busy.unwrap().join().unwrap();
    }

    /// Set in the process that a test starts for what would change all of this one.
    const CHILD: &str = "DISCOBOT_SYS_CHILD";

    #[test]
    fn the_limit_of_open_files_is_raised() {
        let first = raise_open_files(256).unwrap();
        assert!(first >= 256);
        assert_eq!(raise_open_files(first).unwrap(), first);
        // More than the kernel grants to anybody: as far as the hard limit goes.
        let most = raise_open_files(u64::MAX).unwrap();
        assert!((first..u64::MAX).contains(&most), "{most}");
        assert_eq!(raise_open_files(most).unwrap(), most);
    }

    #[test]
    fn signals_wait_for_whoever_asks() {
        // A thread's mask is its own, and so is what is raised in it.
        let waiter = std::thread::spawn(|| {
            block_signals().unwrap();
            [libc::SIGHUP, libc::SIGTERM, libc::SIGINT].map(|signal| {
                // SAFETY: a plain number; the signal is blocked, so no handler runs.
                assert_eq!(unsafe { libc::raise(signal) }, 0);
                wait_signal().unwrap()
            })
        });
        assert_eq!(waiter.join().unwrap(), [Signal::Reopen, Signal::Stop, Signal::Stop]);
    }

    #[test]
    fn a_process_asks_itself_to_stop() {
        use std::os::unix::process::ExitStatusExt;
        if std::env::var_os(CHILD).is_some() {
            // Nothing blocks the signal here, so it does what it does by default.
            ask_to_stop().unwrap();
            std::thread::sleep(std::time::Duration::from_secs(60));
            return;
        }
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = std::thread::current().name().unwrap().to_owned();
        let status = child.args(["--exact", &name]).env(CHILD, "1").output().unwrap().status;
        assert_eq!(status.signal(), Some(libc::SIGTERM), "{status:?}");
    }

    #[test]
    fn sockets_are_handed_over_to_the_process_they_are_meant_for() {
        if std::env::var_os(CHILD).is_some() {
            let passed = passed_sockets().unwrap();
            let at: Vec<_> = passed.iter().map(|socket| socket.local_addr().unwrap()).collect();
            let at: Vec<_> = at.iter().filter_map(|at| at.as_socket()).collect();
            assert_eq!(format!("{at:?}"), std::env::var(CHILD).unwrap());
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        for (pid, passed) in [("$$", format!("[{address}]")), ("1", "[]".to_owned())] {
            let script = format!("LISTEN_FDS=1 LISTEN_PID={pid} exec \"$0\" --exact \"$1\" 3<&0");
            let mut child = Command::new("sh");
            child.args(["-c", &script]).arg(std::env::current_exe().unwrap());
            child.arg(std::thread::current().name().unwrap()).env(CHILD, passed);
            child.stdin(std::os::fd::OwnedFd::from(listener.try_clone().unwrap()));
            let output = child.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
        }
    }

    #[test]
    fn core_dumps_are_forbidden() {
        if std::env::var_os(CHILD).is_none() {
            let mut child = Command::new(std::env::current_exe().unwrap());
            let name = std::thread::current().name().unwrap().to_owned();
            // A leak checker would trace the process, which is what this forbids.
            child.args(["--exact", &name]).env(CHILD, "1").env("ASAN_OPTIONS", "detect_leaks=0");
            let output = child.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
            return;
        }
        forbid_core_dumps().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size"));
        let soft_and_hard: Vec<_> = core.unwrap().split_whitespace().take(2).collect();
        assert_eq!(soft_and_hard, ["0", "0"]);
        // SAFETY: the option takes no argument.
        assert_eq!(unsafe { libc::prctl(libc::PR_GET_DUMPABLE) }, 0);
    }
}
