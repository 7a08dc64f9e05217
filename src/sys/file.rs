//! Calls on files and file systems.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What an unprivileged process may still write.
    pub free: u64,
    /// The file system's size.
    pub total: u64,
}

/// How much room the file system that holds `path` has (`statvfs`).
pub fn space(path: &Path) -> io::Result<Space> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is NUL-terminated and `stat` is a writable buffer of the right type.
    let code = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `statvfs` returned 0, so it filled the whole structure.
    let stat = unsafe { stat.assume_init() };
    Ok(Space {
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// Has the file system give `file` the blocks for `len` bytes from `offset` on, and leaves its
/// length as it is (`fallocate`). Where it can't, what is written there gets them one by one.
pub fn allocate(file: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed for the call, which is given numbers alone.
    let code = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, offset, len) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Moves up to `len` bytes of `file` from `offset` into `socket` without a copy (`sendfile`).
///
/// Returns the bytes moved, 0 at the end of the file. On a blocking socket it blocks: the caller
/// has set `O_NONBLOCK`, and gets `WouldBlock` when the socket is full.
pub fn sendfile(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    offset: u64,
    len: usize,
) -> io::Result<usize> {
    let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: both descriptors are borrowed for the call; `offset` is a valid out-pointer.
    let sent = unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &mut offset, len) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Whether `len` bytes of `file` from `offset` on are all in memory, as far as this process is
/// told: of a file that is neither its own nor for it to write, always.
pub fn is_resident(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<bool> {
    Ok(is_cached(file, offset, len) || is_mapped_in(file, offset, len)?)
}

/// A third of [`is_mapped_in`]'s price, and never wrong where it says yes but for pages in the
/// middle that are being read just now. Says no where the kernel does not know (before Linux 6.5)
/// or looks at the wrong file (overlayfs).
fn is_cached(file: BorrowedFd<'_>, offset: u64, len: usize) -> bool {
    /// Its number on every architecture.
    const CACHESTAT: libc::c_long = 451;
    let Some(last) = (len as u64).checked_sub(1).and_then(|more| offset.checked_add(more)) else {
        return false;
    };
    let page = page_size() as u64;
    let (range, mut counts) = ([offset, len as u64], [0_u64; 5]);
    let (fd, none) = (file.as_raw_fd(), 0_u32);
    let ask = || {
        // SAFETY: `range` is a `struct cachestat_range`, two numbers of 64 bits; `counts` a `struct
        // cachestat`, five of them, and writable.
        unsafe { libc::syscall(CACHESTAT, fd, range.as_ptr(), counts.as_mut_ptr(), none) }
    };
    if !answers(&HAS_CACHESTAT, ask) || counts[0] < last / page - offset / page + 1 {
        return false;
    }
    // It counts pages that are only on their way, too. They come in order: the last one tells.
    let mut byte = 0_u8;
    let part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let Ok(last) = libc::off_t::try_from(last) else { return false };
    // SAFETY: one writable byte is where `part` says it is.
    unsafe { libc::preadv2(fd, &raw const part, 1, last, libc::RWF_NOWAIT) == 1 }
}

/// Until the kernel has said that it has no such call: it is not asked again for every stretch of a
/// body.
static HAS_CACHESTAT: AtomicBool = AtomicBool::new(true);

/// Whether a call answers 0. One that the kernel does not have (ENOSYS) is not made again.
fn answers(known: &AtomicBool, call: impl FnOnce() -> libc::c_long) -> bool {
    if !known.load(Ordering::Relaxed) {
        return false;
    }
    let done = call() == 0;
    if !done && io::Error::last_os_error().raw_os_error() == Some(libc::ENOSYS) {
        known.store(false, Ordering::Relaxed);
    }
    done
}

/// By `mincore`, of a mapping made for that.
fn is_mapped_in(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<bool> {
    let page = page_size();
    let before = (offset % page as u64) as usize;
    let start = libc::off_t::try_from(offset - before as u64).map_err(io::Error::other)?;
    let len = before.saturating_add(len);
    let mut pages = vec![0_u8; len.div_ceil(page)];
    let (none, private) = (std::ptr::null_mut(), libc::MAP_PRIVATE);
    // SAFETY: a new mapping wherever there is room for it; nothing in it is ever looked at.
    let map = unsafe { libc::mmap(none, len, libc::PROT_NONE, private, file.as_raw_fd(), start) };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the range is that of the mapping, and `pages` has a byte for each page of it.
    let code = unsafe { libc::mincore(map, len, pages.as_mut_ptr()) };
    let asked = if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: the mapping was made above, and nobody else knows of it.
    unsafe { libc::munmap(map, len) };
    asked.map(|()| pages.iter().all(|page| page & 1 == 1))
}

fn page_size() -> usize {
    // SAFETY: asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096)
}

/// Whether what [`sendfile`] failed with is the file's fault: a medium that can't be read, or a
/// file system that is damaged. Sockets give none of these.
pub fn is_of_file(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EUCLEAN | libc::ESTALE | libc::ENODATA))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn what_was_never_read_is_not_in_memory_and_what_was_written_is() {
        let file = tempfile::tempfile().unwrap();
        // A hole: on no file system does memory have anything of it.
        file.set_len(1 << 20).unwrap();
        let there = |offset, len| is_resident(file.as_fd(), offset, len).unwrap();
        assert!(!there(0, 1 << 20));
        file.write_all_at(&[7; 128 * 1024], 256 * 1024).unwrap();
        assert!(there(256 * 1024, 128 * 1024) && there(256 * 1024 + 5000, 70_000));
        assert!(!there(0, 1 << 20) && !there(320 * 1024, 128 * 1024) && !there(1 << 19, 1));
        // The quick answer is never yes where the thorough one is no; it may be no for want of a
        // kernel that knows.
        for (from, len) in [(0, 1), (0, 1 << 20), (255 * 1024, 4096), (384 * 1024, 1), (1 << 20, 1)]
        {
            assert!(!is_cached(file.as_fd(), from, len), "{len} from {from}");
        }
        assert!(!is_cached(file.as_fd(), 0, 0) && !is_cached(file.as_fd(), u64::MAX, 1));
        assert!(is_resident(file.as_fd(), 0, 0).is_err(), "nothing is no mapping");
        assert!(is_resident(file.as_fd(), u64::MAX, 1).is_err());
        let (socket, _) = UnixStream::pair().unwrap();
        assert!(is_resident(socket.as_fd(), 0, 1).is_err());
    }

    #[test]
    fn what_the_kernel_does_not_have_is_asked_for_once() {
        /// Of no call, on any architecture.
        const NONE: libc::c_long = 100_000;
        let (known, mut calls) = (AtomicBool::new(true), 0);
        for _ in 0..3 {
            let ask = || {
                calls += 1;
                // SAFETY: a call that does not exist does nothing.
                unsafe { libc::syscall(NONE) }
            };
            assert!(!answers(&known, ask));
        }
        assert_eq!(calls, 1);
        // An error of another kind is this file's, and no word on the next one.
        let known = AtomicBool::new(true);
        for _ in 0..3 {
            // SAFETY: closes what is no descriptor.
            assert!(!answers(&known, || unsafe { libc::close(-1) }.into()));
        }
        assert!(answers(&known, || 0));
    }

    #[test]
    fn blocks_are_there_before_the_bytes() {
        let file = file(b"0123");
        match allocate(file.as_fd(), 0, 1 << 20) {
            // There are file systems that can't.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::Unsupported),
            Ok(()) => assert!(file.metadata().unwrap().blocks() * 512 >= 1 << 20),
        }
        assert_eq!(file.metadata().unwrap().len(), 4);
        assert!(allocate(file.as_fd(), 0, 0).is_err());
        assert!(allocate(file.as_fd(), u64::MAX, 1).is_err());
    }

    #[test]
    fn the_medium_is_told_from_the_socket() {
        assert!(is_of_file(&io::Error::from_raw_os_error(libc::EIO)));
        assert!(!is_of_file(&io::Error::from_raw_os_error(libc::EPIPE)));
        assert!(!is_of_file(&io::ErrorKind::Other.into()));
    }

    #[test]
    fn space_of_the_root_is_known() {
        let space = space(Path::new("/")).unwrap();
        assert!(space.total > 0 && space.free <= space.total);
        for path in ["/no/such/path", "", "a\0b"] {
            assert!(super::space(Path::new(path)).is_err(), "{path:?}");
        }
    }

    #[test]
    fn sendfile_sends_from_where_it_is_told_to_the_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let file = file(b"0123456789");
        let from = |offset, len| sendfile(ours.as_fd(), file.as_fd(), offset, len);
        assert_eq!(from(3, 4).unwrap(), 4);
        assert_eq!(from(8, 100).unwrap(), 2);
        assert_eq!(from(10, 100).unwrap(), 0);
        assert_eq!(from(1 << 40, 1).unwrap(), 0);
        assert_eq!(from(0, 0).unwrap(), 0);
        assert!(from(u64::MAX, 1).is_err());
        let mut got = [0; 6];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"345689");
        drop(theirs);
        assert!(sendfile(file.as_fd(), ours.as_fd(), 0, 1).is_err(), "a socket is no source");
    }

    #[test]
    fn sendfile_into_a_full_socket_would_block() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let file = file(&[7; 65_536]);
        let error = loop {
            if let Err(error) = sendfile(ours.as_fd(), file.as_fd(), 0, 65_536) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
    }
}
