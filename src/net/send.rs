//! A stretch of a file into a connection: `sendfile` for plain ones, large reads and large TLS
//! writes for others. Nobody else chooses.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{Conn, NetError, give_way};
use crate::sys;

/// Bytes per `sendfile` call, after which others on this core get their turn: it takes some 60 us,
/// so that whoever wants little waits for less than a millisecond behind eight who want much.
const SENDFILE: u64 = 256 * 1024;

/// Plaintext per TLS write at most, after which others get their turn: sixteen records, encrypted
/// and sent with one call, some 100 us.
const PLAINTEXT: usize = 256 * 1024;

/// Plaintext per TLS write to a peer that reads slowly: one record.
const RECORD: usize = 16 * 1024;

/// Sends the bytes of `file` from `offset` to `end`; `offset` moves on with what was sent. A file
/// that ends earlier is [`NetError::Closed`]: the peer was promised more. One that can't be read is
/// [`NetError::File`]: what was sent is right, and the rest may come from elsewhere.
///
/// No other write may be in flight on `conn`: a plain socket is non-blocking for the duration.
pub async fn send_file(
    conn: &Conn,
    file: &File,
    offset: &mut u64,
    end: u64,
) -> Result<(), NetError> {
    if conn.is_tls() {
        return send_encrypted(conn, file, offset, end).await;
    }
    let mode = NonBlocking::set(conn)?;
    let result = send_plain(conn, file, offset, end).await;
    drop(mode);
    result
}

async fn send_plain(conn: &Conn, file: &File, offset: &mut u64, end: u64) -> Result<(), NetError> {
    while *offset < end {
        let piece = usize::try_from((end - *offset).min(SENDFILE)).unwrap_or(usize::MAX);
        match sys::file::sendfile(conn.socket(), file.as_fd(), *offset, piece) {
            Ok(0) => return Err(NetError::Closed),
            Ok(sent) => {
                *offset += sent as u64;
                if *offset < end {
                    give_way().await;
                }
            }
            Err(error) if sys::file::is_of_file(&error) => {
                return Err(NetError::File(Arc::new(error)));
            }
            Err(error) => conn.until_writable(error).await?,
        }
    }
    Ok(())
}

async fn send_encrypted(
    conn: &Conn,
    file: &File,
    offset: &mut u64,
    end: u64,
) -> Result<(), NetError> {
    while *offset < end {
        let room = room(conn).await?;
        let piece = usize::try_from(end - *offset).unwrap_or(PLAINTEXT).min(room);
        PLAIN.with_borrow_mut(|buf| {
            buf.resize(PLAINTEXT, 0);
            let got = file
                .read_at(&mut buf[..piece], *offset)
                .map_err(|error| NetError::File(Arc::new(error)))?;
            if got == 0 {
                return Err(NetError::Closed);
            }
            conn.encrypt(&buf[..got])?;
            *offset += got as u64;
            Ok(())
        })?;
        conn.flush().await?;
        if *offset < end {
            give_way().await;
        }
    }
    Ok(())
}

/// How much to encrypt next: what the socket can take at once, so that next to nothing waits in our
/// memory for a peer that reads slowly.
async fn room(conn: &Conn) -> Result<usize, NetError> {
    let fd = conn.socket();
    // The kernel charges its own bookkeeping to the buffer, about as much as the bytes.
    let size = socket2::SockRef::from(&fd).send_buffer_size()? / 2;
    let room = size.saturating_sub(sys::socket::unsent(fd)?);
    if room < RECORD {
        conn.until_writable(io::ErrorKind::WouldBlock.into()).await?;
    }
    Ok(room.clamp(RECORD, PLAINTEXT))
}

thread_local! {
    /// Between file and TLS; used up before anything is awaited, so one a thread is enough.
    static PLAIN: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Switches a socket to non-blocking mode and back. On the epoll driver sockets are non-blocking
/// always and must stay so.
struct NonBlocking<'a> {
    conn: &'a Conn,
    was: bool,
}

impl NonBlocking<'_> {
    fn set(conn: &Conn) -> io::Result<NonBlocking<'_>> {
        let fd = conn.socket();
        let socket = socket2::SockRef::from(&fd);
        let was = socket.nonblocking()?;
        if !was {
            socket.set_nonblocking(true)?;
        }
        Ok(NonBlocking { conn, was })
    }
}

impl Drop for NonBlocking<'_> {
    fn drop(&mut self) {
        if !self.was {
            // A socket that can't be switched back is one that is gone.
            let _ = socket2::SockRef::from(&self.conn.socket()).set_nonblocking(false);
        }
    }
}
