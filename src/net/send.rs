//! A stretch of a file into a connection: large reads and large TLS writes where rustls encrypts,
//! `sendfile` for others. Nobody else chooses.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Conn, NetError, give_way};
use crate::sys;

/// Bytes per `sendfile` call, after which others on this core get their turn: it takes some 120 us,
/// so that whoever wants little waits for a millisecond behind eight who want much.
const SENDFILE: u64 = 512 * 1024;

/// Plaintext per TLS write at most, after which others get their turn: sixteen records, encrypted
/// and sent with one call, some 100 us.
const PLAINTEXT: usize = 256 * 1024;

/// Bytes whose being in memory is asked for at a time.
const WINDOW: u64 = 1024 * 1024;

/// Pause until a helper thread may have time.
const BUSY: Duration = Duration::from_millis(10);

/// Helper threads that bring bodies in, at most: others stay free to open, write and name files.
const BRINGING_MAX: usize = 4;

/// How many do.
static BRINGING: AtomicUsize = AtomicUsize::new(0);

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
    let encrypted = conn.tls().is_some();
    let _mode = if encrypted { None } else { Some(NonBlocking::set(conn)?) };
    while *offset < end {
        let until = end.min(*offset + WINDOW);
        bring_in(conn, file, *offset, until).await?;
        if encrypted {
            send_encrypted(conn, file, offset, until).await?;
        } else {
            send_plain(conn, file, offset, until).await?;
        }
        if *offset < end {
            give_way().await;
        }
    }
    Ok(())
}

/// Has what is not in memory read on a helper thread, at most 1 MiB: what waits for a disk must not
/// hold up the others on this core. What can't be read, whoever sends it is told. A disk that takes
/// longer than the connection's patience is a [`NetError::File`], timed out.
pub async fn bring_in(conn: &Conn, file: &File, from: u64, to: u64) -> Result<(), NetError> {
    let len = (to - from) as usize;
    let begun = Instant::now();
    while !sys::file::is_resident(file.as_fd(), from, len).unwrap_or(true) {
        let patience = conn.patience().saturating_sub(begun.elapsed());
        if patience.is_zero() {
            return Err(overdue());
        }
        let Some(place) = Place::take() else {
            Box::pin(monoio::time::sleep(BUSY)).await;
            continue;
        };
        let Ok(file) = file.try_clone() else { return Ok(()) };
        let read = monoio::spawn_blocking(move || {
            read_through(&file, from, to);
            drop(place);
        });
        match Box::pin(monoio::time::timeout(patience, read)).await {
            // Once is enough: there are file systems that keep it elsewhere, and machines with no
            // memory to spare.
            Ok(Ok(())) => return Ok(()),
            // All helpers are busy.
            Ok(Err(_)) => Box::pin(monoio::time::sleep(BUSY)).await,
            Err(_) => return Err(overdue()),
        }
    }
    Ok(())
}

fn overdue() -> NetError {
    NetError::File(Arc::new(io::ErrorKind::TimedOut.into()))
}

/// One of [`BRINGING_MAX`], given back when it is dropped.
struct Place;

impl Place {
    fn take() -> Option<Place> {
        let more = |taken| (taken < BRINGING_MAX).then_some(taken + 1);
        BRINGING.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        BRINGING.fetch_sub(1, Ordering::Relaxed);
    }
}

fn read_through(file: &File, mut from: u64, to: u64) {
    let mut buf = vec![0; PLAINTEXT];
    while from < to {
        match file.read_at(&mut buf, from) {
            Ok(got) if got > 0 => from += got as u64,
            // As it is found again by whoever sends it.
            _ => return,
        }
    }
}

async fn send_plain(conn: &Conn, file: &File, offset: &mut u64, end: u64) -> Result<(), NetError> {
    while *offset < end {
        let piece = usize::try_from((end - *offset).min(SENDFILE)).unwrap_or(usize::MAX);
        match sys::file::sendfile(conn.socket(), file.as_fd(), *offset, piece) {
            Ok(0) => return Err(NetError::Closed),
            Ok(sent) => {
                conn.count(sent)?;
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use monoio::blocking::{BlockingTask, ThreadPool};

    use super::*;

    /// Helper threads that count what they are asked for.
    struct Helpers(Arc<AtomicUsize>);

    impl ThreadPool for Helpers {
        fn schedule_task(&self, task: BlockingTask) {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || task.run());
        }
    }

    #[test]
    fn what_is_not_in_memory_is_read_by_a_helper() {
        const LEN: u64 = 3 * WINDOW;
        let file = tempfile::tempfile().unwrap();
        // A hole is in nobody's memory; what was just written is.
        file.set_len(LEN).unwrap();
        file.write_all_at(&[7; WINDOW as usize], 2 * WINDOW).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, peer) = listener.accept().unwrap();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            theirs.read_to_end(&mut got).map(|_| got)
        });
        let asked = Arc::new(AtomicUsize::new(0));
        let helpers = Box::new(Helpers(Arc::clone(&asked)));
        let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer();
        builder.attach_thread_pool(helpers).build().unwrap().block_on(async {
            let io = monoio::net::TcpStream::from_std(ours).unwrap();
            let conn = Conn::plain(io, peer, Duration::from_secs(60));
            for (mut from, to, cold) in [(2 * WINDOW, LEN, false), (0, 2 * WINDOW, true)] {
                send_file(&conn, &file, &mut from, to).await.unwrap();
                assert_eq!((from, asked.load(Ordering::SeqCst) > 0), (to, cold));
            }
        });
        let got = reading.join().unwrap().unwrap();
        let (hot, cold) = got.split_at(WINDOW as usize);
        assert!(hot.iter().all(|byte| *byte == 7) && cold.iter().all(|byte| *byte == 0));
        assert_eq!(got.len() as u64, LEN);
    }
}
