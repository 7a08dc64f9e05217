//! One peer's byte stream, plain or TLS, with what was read and not yet used.
//!
//! All methods take `&self`: at most one future reads and one writes at a time. The cells inside
//! are never borrowed across an await.

use std::cell::{Cell, RefCell, RefMut};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;
use rustls::AlertDescription;

use super::ktls::Kernel;
use super::rx::{self, End, Rx};
use super::tls::{Layer, RECEIVE, Tls};
use super::{NetError, give_way};
use crate::http::{
    HeadLimits, Parsed, RequestHead, ResponseHead, Retry, parse_request, parse_response,
};
use crate::sys;

/// Room made for the first read of a head.
const READ_MIN: usize = 4 * 1024;

/// Room made at most for a further read of a head or a chunked body.
const READ_MAX: usize = 64 * 1024;

/// Reads in a row before others on the core get their turn.
const READS_PER_TURN: u32 = 8;

/// What an idle connection waits for.
const NEXT: &str = "the next request";

/// Pause between two looks whether a peer that has ended its half takes more.
const HALF_CLOSED_PAUSE: Duration = Duration::from_millis(10);

/// Plaintext handed to TLS at a time: what one write may hold in memory beside its source.
const TLS_WRITE: usize = 256 * 1024;

/// One peer.
pub struct Conn {
    io: TcpStream,
    peer: SocketAddr,
    pub(super) layer: RefCell<Layer>,
    rx: RefCell<Rx>,
    patience: Cell<Duration>,
    /// Whether the last wait for the peer was in vain.
    overdue: Cell<bool>,
    /// Reads since others on this core had their turn.
    turn: Cell<u32>,
}

impl Conn {
    /// Wraps a connected socket; `patience` limits every wait for the peer.
    pub fn plain(io: TcpStream, peer: SocketAddr, patience: Duration) -> Conn {
        // Small answers must not wait for acknowledgements; where it fails they merely do.
        let _ = io.set_nodelay(true);
        let (rx, patience) = (RefCell::default(), Cell::new(patience));
        let (layer, overdue) = (RefCell::new(Layer::Plain), Cell::new(false));
        Conn { io, peer, layer, rx, patience, overdue, turn: Cell::new(0) }
    }

    /// Puts TLS over the stream as the server.
    pub async fn accept_tls(self, config: Arc<rustls::ServerConfig>) -> Result<Conn, NetError> {
        let session = rustls::ServerConnection::new(config)?;
        self.into_tls(session).await
    }

    /// Puts TLS over the stream and shakes hands. Bytes read already belong to the TLS stream.
    pub(super) async fn into_tls(
        self,
        session: impl Into<rustls::Connection>,
    ) -> Result<Conn, NetError> {
        let early = self.rx.take();
        let mut tls = Box::new(Tls::new(session.into()));
        let mut buf = Vec::new();
        let fed = tls.feed(early.unused(), &mut buf);
        let rx = Rx { buf, start: 0, end: None };
        let layer = RefCell::new(Layer::Tls(tls));
        let conn = Conn { layer, rx: RefCell::new(rx), ..self };
        if let Err(error) = fed {
            return Err(conn.tls_failed(error).await);
        }
        let limit = conn.patience.get();
        let Ok(done) = monoio::time::timeout(limit, conn.shake_hands()).await else {
            return Err(NetError::TimedOut { what: "the TLS handshake", limit });
        };
        done.map(|()| conn)
    }

    async fn shake_hands(&self) -> Result<(), NetError> {
        loop {
            self.flush().await?;
            let step = match self.tls() {
                Some(mut tls) if tls.is_handshaking() => {
                    tls.advance(self.socket(), &mut self.rx.borrow_mut().buf, RECEIVE)
                }
                _ => return Ok(()),
            };
            match step {
                Ok(0) => return Err(NetError::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.io.readable(false).await?;
                }
                Err(error) => return Err(Box::pin(self.read_failed(error)).await),
            }
            self.take_turns().await;
        }
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our own address on this connection.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    /// The stream's TLS, if it is rustls that speaks it.
    pub(super) fn tls(&self) -> Option<RefMut<'_, Tls>> {
        RefMut::filter_map(self.layer.borrow_mut(), Layer::tls).ok()
    }

    /// The stream's TLS, if it is the kernel's.
    pub(super) fn kernel(&self) -> Option<RefMut<'_, Kernel>> {
        RefMut::filter_map(self.layer.borrow_mut(), Layer::kernel).ok()
    }

    /// Limits every wait for the peer from now on.
    pub fn set_patience(&self, patience: Duration) {
        self.patience.set(patience);
    }

    /// The limit of every wait for the peer.
    pub fn patience(&self) -> Duration {
        self.patience.get()
    }

    /// Whether the last wait for the peer was in vain.
    pub fn was_overdue(&self) -> bool {
        self.overdue.get()
    }

    /// The socket.
    pub fn socket(&self) -> BorrowedFd<'_> {
        sys::socket::borrow(&self.io)
    }

    /// The socket's number, to know it by while this lives.
    pub fn id(&self) -> i32 {
        self.io.as_raw_fd()
    }

    /// Waits, `idle` at most, until there may be a request to read. After an answer nothing is
    /// there yet, as a rule: a read that is tried first would be in vain.
    pub async fn stirs_within(&self, idle: Duration) -> Result<(), NetError> {
        if self.unused() == 0 && !self.has_ended() {
            return self.until_readable(None, idle, NEXT).await;
        }
        // Whoever sends many requests at once waits for others between them.
        self.take_turns().await;
        Ok(())
    }

    /// Whether its keys have encrypted what they may: no further request is answered.
    pub fn is_spent(&self) -> bool {
        self.kernel().is_some_and(|kernel| !kernel.takes_request())
    }

    /// Reads a request's head: `None` where the client ended the connection between two requests.
    /// The first byte may take `idle`, the rest of the head `whole`.
    pub async fn request_head(
        &self,
        limits: &HeadLimits,
        idle: Duration,
        whole: Duration,
    ) -> Result<Option<RequestHead>, NetError> {
        if self.unused() == 0 && self.more_within(None, idle, NEXT).await? == 0 {
            return Ok(None);
        }
        let parse = |buf: &[u8]| parse_request(buf, limits);
        self.head(whole, "the request's head", Retry::new(limits), parse).await.map(Some)
    }

    /// Reads a response's head within the patience of this connection.
    pub async fn response_head(&self, limits: &HeadLimits) -> Result<ResponseHead, NetError> {
        let parse = |buf: &[u8]| parse_response(buf, limits);
        self.head(self.patience.get(), "the answer", Retry::new(limits), parse).await
    }

    async fn head<T>(
        &self,
        limit: Duration,
        what: &'static str,
        mut retry: Retry,
        parse: impl Fn(&[u8]) -> Result<Parsed<T>, crate::http::Malformed>,
    ) -> Result<T, NetError> {
        let mut begun = None;
        let mut ended = false;
        loop {
            let parsed = self.peek(|buf| {
                let due = !buf.is_empty() && (retry.is_due(buf) || ended);
                due.then(|| parse(buf))
            });
            if let Some(Parsed::Complete { head, len }) = parsed.transpose()? {
                self.consume(len);
                return Ok(head);
            }
            if ended {
                return Err(NetError::Closed);
            }
            let begun = *begun.get_or_insert_with(Instant::now);
            ended = self.more_within(Some(begun), limit, what).await? == 0;
        }
    }

    /// Bytes read and not used yet.
    pub fn unused(&self) -> usize {
        self.rx.borrow().unused().len()
    }

    /// Looks at the bytes read and not used yet.
    pub fn peek<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(self.rx.borrow().unused())
    }

    /// Uses up `len` of them.
    pub fn consume(&self, len: usize) {
        self.rx.borrow_mut().consume(len);
    }

    /// Reads at least one more byte for [`Conn::peek`]; 0 at the end of the stream.
    pub async fn more(&self) -> Result<usize, NetError> {
        self.more_within(None, self.patience.get(), "the next byte").await
    }

    /// Appends to `out` what was read already, or else what the peer sends next, at most `max`
    /// bytes; 0 at the end of the stream.
    pub async fn read(&self, out: &mut Vec<u8>, max: usize) -> Result<usize, NetError> {
        self.take_turns().await;
        {
            let mut rx = self.rx.borrow_mut();
            if !rx.unused().is_empty() {
                let len = rx.unused().len().min(max);
                out.extend_from_slice(&rx.unused()[..len]);
                rx.consume(len);
                return Ok(len);
            }
        }
        let (before, mut begun, limit) = (out.len(), None, self.patience.get());
        loop {
            match self.receive(out, max) {
                Ok(got) if got > max => {
                    self.rx.borrow_mut().buf.extend_from_slice(&out[before + max..]);
                    out.truncate(before + max);
                    return Ok(max);
                }
                Ok(got) => return Ok(got),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = Some(*begun.get_or_insert_with(Instant::now));
                    Box::pin(self.until_readable(since, limit, "the next byte")).await?;
                }
                Err(error) => return Err(Box::pin(self.read_failed(error)).await),
            }
        }
    }

    /// Whether the stream ended as its protocol asks: TLS with its closing alert.
    pub fn ended_clean(&self) -> bool {
        self.rx.borrow().end == Some(End::Clean)
    }

    /// Whether no byte can come any more, as far as is known without a read.
    fn has_ended(&self) -> bool {
        self.rx.borrow().end.is_some() || self.tls().is_some_and(|tls| tls.said_goodbye())
    }

    /// Whether an idle connection is still good: open, and silent.
    pub fn is_quiet(&self) -> bool {
        self.unused() == 0
            && self.rx.borrow().end.is_none()
            && matches!(sys::socket::peek(self.socket()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Writes all of `buf`.
    pub async fn write(&self, buf: &[u8]) -> Result<(), NetError> {
        self.write_parts(&[buf], false).await
    }

    /// Writes all of `parts`; `more` says that further bytes follow directly.
    pub async fn write_parts(&self, parts: &[&[u8]], more: bool) -> Result<(), NetError> {
        if self.tls().is_none() {
            return self.write_plain(parts, more).await;
        }
        for part in parts {
            for piece in part.chunks(TLS_WRITE) {
                self.encrypt(piece)?;
                if self.tls().is_some_and(|tls| tls.backlog() >= TLS_WRITE) {
                    self.flush().await?;
                }
            }
        }
        if more { Ok(()) } else { self.flush().await }
    }

    async fn write_plain(&self, parts: &[&[u8]], more: bool) -> Result<(), NetError> {
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut slices = &mut slices[..];
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match sys::socket::send(self.socket(), slices, more) {
                Ok(sent) => {
                    self.count(sent)?;
                    IoSlice::advance_slices(&mut slices, sent);
                }
                Err(error) => self.until_writable(error).await?,
            }
        }
        Ok(())
    }

    /// Sends what TLS has ready.
    pub(super) async fn flush(&self) -> Result<(), NetError> {
        loop {
            let sent = self.tls().map_or(Ok(0), |mut tls| tls.send(self.socket()));
            match sent {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => self.until_writable(error).await?,
            }
        }
    }

    /// Encrypts a piece of a body; [`Conn::flush`] sends it.
    pub(super) fn encrypt(&self, piece: &[u8]) -> io::Result<()> {
        self.tls().map_or(Ok(()), |mut tls| tls.write(piece))
    }

    /// Waits after a `WouldBlock` until the socket takes more; any other error is final.
    pub(super) async fn until_writable(&self, error: io::Error) -> Result<(), NetError> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => {
                let limit = self.patience.get();
                let waited = Box::pin(monoio::time::timeout(limit, self.writable())).await;
                self.overdue.set(waited.is_err());
                match waited {
                    Ok(result) => Ok(result?),
                    Err(_) => Err(NetError::TimedOut { what: "sending", limit }),
                }
            }
            _ => Err(error.into()),
        }
    }

    /// Waits until the socket takes more.
    ///
    /// io_uring's poll also comes back for a peer that has ended its half, at once and every time
    /// (`EPOLLRDHUP` can't be masked): what such a peer still reads is looked for now and then.
    async fn writable(&self) -> io::Result<()> {
        self.io.writable(false).await?;
        while !sys::socket::is_writable(self.socket())? {
            monoio::time::sleep(HALF_CLOSED_PAUSE).await;
        }
        Ok(())
    }

    /// Says goodbye: TLS's closing alert, then the end of our half of the stream.
    pub async fn finish(&self) {
        if self.kernel().is_some() {
            return self.take_leave().await;
        }
        if let Some(mut tls) = self.tls() {
            tls.close();
        }
        // The peer may be gone already; then nobody is left to be told.
        let _ = self.flush().await;
        // As above.
        let _ = socket2::SockRef::from(&self.socket()).shutdown(std::net::Shutdown::Write);
    }

    /// Makes the peer see a reset instead of an orderly end: what was sent is not all there is.
    pub fn abort(self) {
        // Where it fails the peer sees an end in the middle of a message all the same.
        let _ = socket2::SockRef::from(&self.socket()).set_linger(Some(Duration::ZERO));
    }

    /// Waits until the peer sent something for us or is gone, as long as that may take. What
    /// concerns TLS alone (tickets, key updates) is taken in and waited past.
    pub async fn stirs(&self) {
        while self.unused() == 0 {
            match self.receive_more() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.io.readable(false).await.is_err() {
                        return;
                    }
                    self.take_turns().await;
                }
                // An error here is an error of the next read, too.
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Waits until the peer has ended its half or is gone, as far as that is seen.
    pub async fn ends(&self) {
        self.stirs().await;
        if self.unused() > 0 {
            std::future::pending::<()>().await;
        }
    }

    /// Reads more, `limit` from `begun` (else from now) on; 0 at the end of the stream.
    async fn more_within(
        &self,
        mut begun: Option<Instant>,
        limit: Duration,
        what: &'static str,
    ) -> Result<usize, NetError> {
        self.take_turns().await;
        loop {
            match self.receive_more() {
                Ok(got) => return Ok(got),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let since = Some(*begun.get_or_insert_with(Instant::now));
                    Box::pin(self.until_readable(since, limit, what)).await?;
                }
                Err(error) => return Err(Box::pin(self.read_failed(error)).await),
            }
        }
    }

    /// One try to read behind what is unused.
    fn receive_more(&self) -> io::Result<usize> {
        let (mut buf, start) = {
            let mut rx = self.rx.borrow_mut();
            (std::mem::take(&mut rx.buf), std::mem::take(&mut rx.start))
        };
        // What was used goes first, or a client with half a request always under way made it grow.
        buf.drain(..start);
        if buf.capacity() == 0 {
            buf = rx::spare();
        }
        let room = buf.len().clamp(READ_MIN, READ_MAX);
        buf.reserve(room);
        let got = self.receive(&mut buf, room);
        match buf.is_empty() {
            true => rx::give_back(buf),
            false => self.rx.borrow_mut().buf = buf,
        }
        got
    }

    /// A peer that always has more must not keep the core: reads are tried, then waited for.
    async fn take_turns(&self) {
        let turn = self.turn.get() + 1;
        self.turn.set(turn % READS_PER_TURN);
        if turn == READS_PER_TURN {
            give_way().await;
        }
    }

    /// Waits until there may be more to read, `limit` from `begun` (or now) on: what TLS is told
    /// between two bytes is no progress. A timer is large; waits are boxed within a request.
    async fn until_readable(
        &self,
        begun: Option<Instant>,
        limit: Duration,
        what: &'static str,
    ) -> Result<(), NetError> {
        let left = begun.map_or(limit, |begun| limit.saturating_sub(begun.elapsed()));
        let waited = monoio::time::timeout(left, self.io.readable(false)).await;
        self.overdue.set(waited.is_err());
        match waited {
            Ok(result) if !left.is_zero() => result?,
            _ => return Err(NetError::TimedOut { what, limit }),
        }
        self.take_turns().await;
        Ok(())
    }

    /// One try to read; appends what came, for TLS possibly more than `max`. 0 at the end.
    fn receive(&self, out: &mut Vec<u8>, max: usize) -> io::Result<usize> {
        if self.rx.borrow().end.is_some() {
            return Ok(0);
        }
        let (got, goodbye) = match &mut *self.layer.borrow_mut() {
            Layer::Plain => {
                out.reserve(max.min(READ_MIN));
                let got = sys::socket::recv(self.socket(), out, max)?;
                (got, true)
            }
            Layer::Tls(tls) => (tls.receive(self.socket(), out, RECEIVE)?, tls.said_goodbye()),
            Layer::Kernel(kernel) => {
                out.reserve(max.min(READ_MIN));
                (kernel.receive(self.socket(), out, max)?, kernel.said_goodbye())
            }
        };
        if got == 0 {
            self.rx.borrow_mut().end = Some(if goodbye { End::Clean } else { End::Cut });
        }
        Ok(got)
    }

    async fn read_failed(&self, error: io::Error) -> NetError {
        match error.downcast::<rustls::Error>() {
            Ok(error) => self.tls_failed(error).await,
            Err(error) => error.into(),
        }
    }

    /// Sends the alert that says why.
    async fn tls_failed(&self, error: rustls::Error) -> NetError {
        // The error that counts is the first one.
        let _ = self.flush().await;
        if self.kernel().is_some() && error == rustls::Error::DecryptError {
            self.alert(AlertDescription::BadRecordMac).await;
        }
        NetError::Tls(error)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::rc::Rc;

    use super::*;

    /// A peer, and the connection to it.
    fn pair() -> (std::net::TcpStream, std::net::TcpStream, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, peer) = listener.accept().unwrap();
        (theirs, ours, peer)
    }

    fn block_on(test: impl Future<Output = ()>) {
        let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer();
        builder.build().unwrap().block_on(test);
    }

    #[test]
    fn a_peer_that_always_has_more_leaves_the_core_to_others_too() {
        let (mut theirs, ours, peer) = pair();
        theirs.write_all(&[7; 64 * 1024]).unwrap();
        block_on(async move {
            let io = TcpStream::from_std(ours).unwrap();
            let conn = Conn::plain(io, peer, Duration::from_secs(60));
            let ran = Rc::new(Cell::new(false));
            let other = Rc::clone(&ran);
            // All of it is there, so no read has to wait.
            let reading = monoio::spawn(async move {
                for _ in 0..=READS_PER_TURN {
                    assert_eq!(conn.read(&mut Vec::with_capacity(1024), 1024).await.unwrap(), 1024);
                }
                assert!(ran.get());
            });
            monoio::spawn(async move { other.set(true) });
            reading.await;
        });
    }

    #[test]
    fn a_head_that_comes_byte_by_byte_is_read_a_few_times_only() {
        let (mut theirs, ours, peer) = pair();
        let long = "x".repeat(1500);
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {long}\r\n\r\n");
        block_on(async move {
            let io = TcpStream::from_std(ours).unwrap();
            let conn = Rc::new(Conn::plain(io, peer, Duration::from_secs(60)));
            let (tries, reader) = (Rc::new(Cell::new(0)), Rc::clone(&conn));
            let count = Rc::clone(&tries);
            let reading = monoio::spawn(async move {
                let limits = HeadLimits::default();
                let parse = |buf: &[u8]| {
                    count.set(count.get() + 1);
                    parse_request(buf, &limits)
                };
                let limit = Duration::from_secs(60);
                reader.head(limit, "it", Retry::new(&limits), parse).await.map(drop)
            });
            for (sent, byte) in (1..).zip(text.bytes()) {
                theirs.write_all(&[byte]).unwrap();
                while sent < text.len() && conn.unused() < sent {
                    monoio::time::sleep(Duration::from_micros(50)).await;
                }
            }
            reading.await.unwrap();
            assert!(tries.get() < 20, "{} times", tries.get());
        });
    }
}
