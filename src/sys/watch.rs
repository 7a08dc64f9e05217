//! Changes in folders, by inotify(7).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// Room for many events at once; what they are is of no interest.
const EVENTS: usize = 16 * 1024;

/// Files written, made, put in the place of others; the folder itself moved or removed.
const CHANGES: u32 = libc::IN_CLOSE_WRITE
    | libc::IN_CREATE
    | libc::IN_MOVED_TO
    | libc::IN_DELETE_SELF
    | libc::IN_MOVE_SELF
    | libc::IN_ONLYDIR;

/// Folders that are watched for changes.
pub struct Watch(File);

impl Watch {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Watch> {
        // SAFETY: flags alone; the result is checked before it is used.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call has just opened it for us alone.
        Ok(Watch(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Watches a folder too.
    pub fn add(&self, folder: &Path) -> io::Result<()> {
        let path = CString::new(folder.as_os_str().as_bytes())?;
        // SAFETY: the descriptor is open, and the path ends in a zero byte.
        let code = unsafe { libc::inotify_add_watch(self.0.as_raw_fd(), path.as_ptr(), CHANGES) };
        if code >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits for changes, for `limit` at most; whether there were any.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<bool> {
        let mut poll = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let limit = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        // SAFETY: one valid structure, and the number that says so.
        if unsafe { libc::poll(&mut poll, 1, limit) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted { Ok(false) } else { Err(error) };
        }
        match (&self.0).read(&mut [0; EVENTS]) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_happens_in_a_folder_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let watch = Watch::new().unwrap();
        assert!(watch.add(&path("none")).is_err());
        watch.add(folder.path()).unwrap();
        let none = Some(Duration::ZERO);
        assert!(!watch.wait(none).unwrap(), "nothing yet");
        fs::write(path("a"), "1").unwrap();
        assert!(watch.wait(None).unwrap(), "written");
        fs::rename(path("a"), path("b")).unwrap();
        assert!(watch.wait(None).unwrap(), "renamed");
        symlink("b", path("c")).unwrap();
        assert!(watch.wait(None).unwrap(), "linked");
        fs::read(path("c")).unwrap();
        assert!(!watch.wait(none).unwrap(), "reading is no change");
        drop(folder);
        assert!(watch.wait(None).unwrap(), "gone");
    }
}
