//! Calls on the process as a whole: signals and limits.

use std::io;

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_of_open_files_is_raised() {
        let limit = super::raise_open_files(256).unwrap();
        assert!(limit >= 256);
        assert_eq!(super::raise_open_files(limit).unwrap(), limit);
    }
}
