//! Socket calls that never block, whatever mode the socket is in.
//!
//! The runtime's io_uring driver keeps sockets in blocking mode; `MSG_DONTWAIT` makes one call
//! non-blocking without touching the mode, so reads and writes can be tried first and waited for
//! only when the kernel says `EAGAIN`. A wait that is dropped then never loses bytes.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Receives into the spare capacity of `buf`, at most `max` bytes; `buf` grows by what came.
///
/// Returns 0 at the end of the stream, `WouldBlock` when nothing is there.
pub fn recv(socket: BorrowedFd<'_>, buf: &mut Vec<u8>, max: usize) -> io::Result<usize> {
    let spare = buf.spare_capacity_mut();
    let len = spare.len().min(max);
    // SAFETY: the pointer and length describe spare capacity that `buf` owns and nobody else uses.
    let got = unsafe {
        libc::recv(socket.as_raw_fd(), spare.as_mut_ptr().cast(), len, libc::MSG_DONTWAIT)
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel wrote `got` bytes, at most `len`, right behind the initialised part.
    unsafe { buf.set_len(buf.len() + got) };
    Ok(got)
}

/// The descriptor of a runtime's socket, which offers only its number.
pub fn borrow<T: AsRawFd>(socket: &T) -> BorrowedFd<'_> {
    // SAFETY: `socket` owns the descriptor and is borrowed for as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) }
}

/// Bytes handed to the socket that the peer has not acknowledged yet (`SIOCOUTQ`).
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int through the pointer, which is valid.
    let code = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if code != 0 {
        return Err(io::Error::last_os_error());
    }
    usize::try_from(bytes).map_err(io::Error::other)
}

/// Looks whether a byte or the end of the stream is waiting, without taking it.
///
/// Returns the bytes seen (0 or 1; 0 is the end), `WouldBlock` when the stream is quiet.
pub fn peek(socket: BorrowedFd<'_>) -> io::Result<usize> {
    let mut byte = 0_u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the buffer is one writable byte and the length says so.
    let got =
        unsafe { libc::recv(socket.as_raw_fd(), std::ptr::from_mut(&mut byte).cast(), 1, flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Whether the socket takes more bytes now, or has an error that the next call will say.
pub fn is_writable(socket: BorrowedFd<'_>) -> io::Result<bool> {
    is_ready(socket, libc::POLLOUT)
}

/// Whether the peer has ended its half, or the connection is broken; what it sent before may still
/// be there to be read.
pub fn has_ended(socket: BorrowedFd<'_>) -> io::Result<bool> {
    is_ready(socket, libc::POLLRDHUP)
}

fn is_ready(socket: BorrowedFd<'_>, events: libc::c_short) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid structure, and the count says so; a time-out of 0 never waits.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    if ready < 0 { Err(io::Error::last_os_error()) } else { Ok(ready > 0) }
}

/// Sends from several slices at once. `more` tells TCP that further bytes follow directly, so that
/// a head and the start of its body share a segment.
///
/// Returns the bytes taken, `WouldBlock` when the socket is full. Never raises SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bufs: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
    let more = if more { libc::MSG_MORE } else { 0 };
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL | more;
    if let [buf] = bufs {
        // SAFETY: the slice is there for the call, and the kernel only reads it.
        let sent = unsafe { libc::send(socket.as_raw_fd(), buf.as_ptr().cast(), buf.len(), flags) };
        return usize::try_from(sent).map_err(|_| io::Error::last_os_error());
    }
    // SAFETY: a zeroed msghdr is a valid empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = bufs.as_ptr().cast_mut().cast();
    message.msg_iovlen = bufs.len().min(IOV_MAX) as _;
    // SAFETY: IoSlice has the layout of iovec; the kernel only reads through it, within the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Whether a call failed for want of descriptors.
pub fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The most slices one call takes (`UIO_MAXIOV`).
pub const IOV_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_quiet_socket_would_block_and_a_closed_one_ends() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut buf = Vec::with_capacity(16);
        let error = recv(ours.as_fd(), &mut buf, 16).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(peek(ours.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(b"abc").unwrap();
        assert_eq!(peek(ours.as_fd()).unwrap(), 1);
        assert_eq!(recv(ours.as_fd(), &mut buf, 2).unwrap(), 2);
        assert_eq!(recv(ours.as_fd(), &mut buf, 16).unwrap(), 1);
        assert_eq!(buf, b"abc");
        drop(theirs);
        assert_eq!(recv(ours.as_fd(), &mut buf, 1).unwrap(), 0);
        assert_eq!(peek(ours.as_fd()).unwrap(), 0);
        assert_eq!(buf, b"abc");
    }

    #[test]
    fn no_more_is_received_than_there_is_room_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[7; 4096]).unwrap();
        let mut buf = Vec::with_capacity(100);
        buf.extend_from_slice(b"head");
        let room = buf.capacity() - buf.len();
        assert_eq!(recv(ours.as_fd(), &mut buf, usize::MAX).unwrap(), room);
        assert_eq!(buf.len(), buf.capacity());
        assert!(buf.starts_with(b"head") && buf[4..].iter().all(|byte| *byte == 7));
        assert!(recv(std::fs::File::open("/dev/null").unwrap().as_fd(), &mut buf, 1).is_err());
    }

    #[test]
    fn a_borrowed_socket_is_the_same() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert_eq!(borrow(&ours).as_raw_fd(), ours.as_raw_fd());
        theirs.write_all(b"x").unwrap();
        assert_eq!(peek(borrow(&ours)).unwrap(), 1);
    }

    #[test]
    fn what_is_not_acknowledged_is_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(unsent(ours.as_fd()).unwrap(), 0);
        // Nobody reads: what the peer's kernel has no room for stays here.
        let mut taken = 0;
        let waiting = loop {
            match send(ours.as_fd(), &[IoSlice::new(&[7; 65_536])], true) {
                Ok(more) => taken += more,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            let waiting = unsent(ours.as_fd()).unwrap();
            if waiting > 0 {
                break waiting;
            }
        };
        assert!(waiting <= taken, "{waiting} of {taken}");
        assert!(unsent(std::fs::File::open("/dev/null").unwrap().as_fd()).is_err());
    }

    #[test]
    fn a_full_socket_is_not_writable_whoever_has_ended_the_other_half() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        assert!(!has_ended(ours.as_fd()).unwrap());
        (&theirs).write_all(b"unread").unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        while !has_ended(ours.as_fd()).unwrap() {}
        assert!(is_writable(ours.as_fd()).unwrap());
        while send(ours.as_fd(), &[IoSlice::new(&[7; 65536])], false).is_ok() {}
        assert!(!is_writable(ours.as_fd()).unwrap());
        drop(theirs);
        while !is_writable(ours.as_fd()).unwrap() {}
    }

    #[test]
    fn slices_leave_in_order() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = send(ours.as_fd(), &[IoSlice::new(b"head"), IoSlice::new(b"body")], false);
        assert_eq!(sent.unwrap(), 8);
        let mut got = [0; 8];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"headbody");
        drop(theirs);
        let error = send(ours.as_fd(), &[IoSlice::new(b"x")], false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn more_slices_than_a_call_takes_are_no_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let slices: Vec<_> = (0..IOV_MAX + 5).map(|_| IoSlice::new(b"x")).collect();
        assert_eq!(send(ours.as_fd(), &slices, false).unwrap(), IOV_MAX);
        assert_eq!(send(ours.as_fd(), &[], false).unwrap(), 0);
        drop(ours);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(got, [b'x'; IOV_MAX]);
    }

    #[test]
    fn want_of_descriptors_is_told_from_other_errors() {
        for (code, wanting) in [(libc::EMFILE, true), (libc::ENFILE, true), (libc::EAGAIN, false)] {
            assert_eq!(is_out_of_files(&io::Error::from_raw_os_error(code)), wanting);
        }
        assert!(!is_out_of_files(&io::ErrorKind::WouldBlock.into()));
    }
}
