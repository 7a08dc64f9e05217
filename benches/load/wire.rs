//! One connection: opened directly or through the proxy, asked, read.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;

use discobot_proxy::sys::socket::borrow;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio_uring::buf::BoundedBuf as _;
use tokio_uring::net::TcpStream;

use super::args::Bodies;
use super::tls::{Tls, Wants};

/// Room for a head and a small body.
const SMALL: usize = 16 * 1024;
/// Bytes per read of a large body.
const LARGE: usize = 256 * 1024;
/// Bytes thrown away per call, and calls before other connections get their turn.
const DROP: usize = 256 * 1024;
const DROPS: u32 = 2;
/// The most a response's head may have.
const HEAD_MAX: usize = 64 * 1024;
/// `MSG_TRUNC | MSG_DONTWAIT` of Linux, the same on every architecture.
const TRUNC: i32 = 0x20 | 0x40;
const RECORD_HEAD: usize = 5;
/// What TLS 1.3 adds to the plaintext of a record: the type's byte and the tag.
const RECORD_MORE: usize = 17;

/// Where connections lead, and how.
pub struct Way {
    /// The proxy, or the server.
    pub address: SocketAddr,
    /// Opened through the proxy with CONNECT to this `host:port`.
    pub connect: Option<String>,
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// What an answer's head says.
pub struct Answer {
    pub status: u16,
    pub total: Option<u64>,
    /// Whether the connection is good for another request.
    pub again: bool,
}

/// What is done with the bytes of a body.
pub struct Sink<'a> {
    pub bodies: Bodies,
    /// Bytes as they come.
    pub count: &'a dyn Fn(u64),
    /// The bytes themselves, where they are read.
    pub bytes: &'a mut dyn FnMut(&[u8]),
}

pub struct Wire {
    io: TcpStream,
    tls: Option<Tls>,
    /// As it comes from the socket; `start..end` is not used up.
    raw: Vec<u8>,
    start: usize,
    end: usize,
    /// To be sent.
    out: Vec<u8>,
    /// Plaintext of the head and what came with it.
    plain: Vec<u8>,
}

impl Wire {
    pub async fn open(way: &Way) -> Result<Wire, String> {
        let io =
            TcpStream::connect(way.address).await.map_err(|error| format!("connect: {error}"))?;
        let _ = SockRef::from(&borrow(&io)).set_tcp_nodelay(true);
        let (raw, out, plain) = (vec![0; SMALL], Vec::new(), Vec::new());
        let mut wire = Wire { io, tls: None, raw, start: 0, end: 0, out, plain };
        if let Some(authority) = &way.connect {
            let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            wire.out.extend_from_slice(request.as_bytes());
            wire.send().await?;
            let head = wire.head().await?;
            if head.status != 200 {
                return Err(format!("CONNECT answered {}", head.status));
            }
            if !wire.plain.is_empty() {
                return Err("bytes behind the answer to CONNECT".to_owned());
            }
        }
        if let Some((config, name)) = &way.tls {
            wire.tls = Some(Tls::new(Arc::clone(config), name.clone())?);
            wire.shake_hands().await?;
        }
        Ok(wire)
    }

    /// Memory that a connection at rest needs not.
    pub fn rest(&mut self) {
        self.raw = Vec::new();
        self.out = Vec::new();
        self.plain = Vec::new();
    }

    /// Asks and reads the answer with its body.
    pub async fn ask(&mut self, request: &[u8], sink: &mut Sink<'_>) -> Result<Answer, String> {
        self.post(request).await?;
        let head = self.head().await?;
        let mut answer = Answer { status: head.status, total: head.total, again: !head.close };
        let mut left = head.length;
        let came = self.plain.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if came < self.plain.len() {
            return Err("bytes behind the answer".to_owned());
        }
        take(&self.plain, &mut left, sink)?;
        self.plain.clear();
        if left > SMALL as u64 && self.raw.len() < LARGE {
            self.raw.resize(LARGE, 0);
        }
        match &self.tls {
            None if sink.bodies == Bodies::Drop => self.drop_plain(left, sink).await?,
            None => self.read_plain(left, sink).await?,
            // Worth a new connection afterwards: the session has lost count of its records.
            Some(tls) if sink.bodies == Bodies::Drop && tls.is_1_3() && left > LARGE as u64 => {
                answer.again = false;
                self.drop_records(left, sink).await?;
            }
            Some(_) => self.decrypt(left, sink).await?,
        }
        Ok(answer)
    }

    /// Asks and reads nothing.
    pub async fn post(&mut self, request: &[u8]) -> Result<(), String> {
        match &mut self.tls {
            Some(tls) => tls.encrypt(request, &mut self.out)?,
            None => self.out.extend_from_slice(request),
        }
        self.send().await
    }

    async fn send(&mut self) -> Result<(), String> {
        let out = std::mem::take(&mut self.out);
        let (sent, mut out) = self.io.write_all(out).await;
        sent.map_err(|error| format!("send: {error}"))?;
        out.clear();
        self.out = out;
        Ok(())
    }

    /// Reads behind what is there; at least one byte.
    async fn fill(&mut self) -> Result<(), String> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.raw.len() {
            self.raw.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.raw.len() {
                self.raw.resize(2 * self.end, 0);
            }
        }
        let raw = std::mem::take(&mut self.raw);
        let (got, slice) = self.io.read(raw.slice(self.end..)).await;
        self.raw = slice.into_inner();
        match got {
            Ok(0) => Err("closed".to_owned()),
            Ok(got) => {
                self.end += got;
                Ok(())
            }
            Err(error) => Err(format!("receive: {error}")),
        }
    }

    async fn shake_hands(&mut self) -> Result<(), String> {
        loop {
            let Some(tls) = &mut self.tls else { return Ok(()) };
            let buf = &mut self.raw[..self.end];
            match tls.advance(buf, &mut self.start, &mut self.out, &mut |_| {})? {
                Wants::Output => self.send().await?,
                Wants::Requests if self.out.is_empty() => return Ok(()),
                Wants::Requests => return self.send().await,
                Wants::Input => self.fill().await?,
                Wants::End => return Err("closed in the handshake".to_owned()),
            }
        }
    }

    /// Plaintext of what has come, to `use_it`.
    fn opened(&mut self, use_it: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        let Some(tls) = &mut self.tls else {
            use_it(&self.raw[self.start..self.end]);
            self.start = self.end;
            return Ok(());
        };
        let buf = &mut self.raw[..self.end];
        match tls.advance(buf, &mut self.start, &mut self.out, use_it)? {
            Wants::End => Err("closed".to_owned()),
            _ => Ok(()),
        }
    }

    async fn head(&mut self) -> Result<Head, String> {
        loop {
            let mut plain = std::mem::take(&mut self.plain);
            let opened = self.opened(&mut |bytes| plain.extend_from_slice(bytes));
            self.plain = plain;
            if let Some((head, len)) = Head::parse(&self.plain)? {
                self.plain.drain(..len);
                return Ok(head);
            }
            opened?;
            if self.plain.len() > HEAD_MAX {
                return Err("a head without end".to_owned());
            }
            self.fill().await?;
        }
    }

    async fn read_plain(&mut self, mut left: u64, sink: &mut Sink<'_>) -> Result<(), String> {
        while left > 0 {
            self.fill().await?;
            take(&self.raw[self.start..self.end], &mut left, sink)?;
            self.start = self.end;
        }
        Ok(())
    }

    async fn decrypt(&mut self, mut left: u64, sink: &mut Sink<'_>) -> Result<(), String> {
        while left > 0 {
            self.fill().await?;
            let mut taken = Ok(());
            let opened = self.opened(&mut |bytes| {
                if taken.is_ok() {
                    taken = take(bytes, &mut left, sink);
                }
            });
            taken?;
            if left > 0 {
                opened?;
            }
        }
        Ok(())
    }

    /// Waits for the first byte by the ring, then has the kernel throw away what is there.
    async fn drop_plain(&mut self, mut left: u64, sink: &mut Sink<'_>) -> Result<(), String> {
        while left > 0 {
            let first = self.receive(1).await?;
            left -= first;
            (sink.count)(first);
            for _ in 0..DROPS {
                match self.throw_away(left)? {
                    0 => break,
                    gone => {
                        left -= gone;
                        (sink.count)(gone);
                    }
                }
            }
        }
        Ok(())
    }

    /// The same with TLS: of each record only the head is read, which has its length.
    async fn drop_records(&mut self, mut left: u64, sink: &mut Sink<'_>) -> Result<(), String> {
        let mut turns = 0;
        while left > 0 {
            while self.end - self.start < RECORD_HEAD {
                self.fill_up_to(RECORD_HEAD).await?;
            }
            let head = &self.raw[self.start..self.start + RECORD_HEAD];
            let record = usize::from(u16::from_be_bytes([head[3], head[4]]));
            let data = record.checked_sub(RECORD_MORE).filter(|_| head[0] == 0x17);
            let data = data.ok_or("not a record of TLS 1.3")? as u64;
            let there = self.end - self.start - RECORD_HEAD;
            let mut rest = record.saturating_sub(there) as u64;
            self.start += RECORD_HEAD + there.min(record);
            while rest > 0 {
                match self.throw_away(rest)? {
                    0 => rest -= self.receive(1).await?,
                    gone => rest -= gone,
                }
            }
            left = left.checked_sub(data).ok_or("more than was announced")?;
            (sink.count)(data);
            turns += 1;
            if turns % 32 == 0 && left > 0 && self.start == self.end {
                self.fill_up_to(1).await?;
            }
        }
        Ok(())
    }

    /// Reads until `want` bytes are there at most.
    async fn fill_up_to(&mut self, want: usize) -> Result<(), String> {
        let there = self.end - self.start;
        self.raw.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, there);
        let raw = std::mem::take(&mut self.raw);
        let (got, slice) = self.io.read(raw.slice(there..want)).await;
        self.raw = slice.into_inner();
        match got.map_err(|error| format!("receive: {error}"))? {
            0 => Err("closed".to_owned()),
            got => {
                self.end += got;
                Ok(())
            }
        }
    }

    async fn receive(&mut self, len: usize) -> Result<u64, String> {
        let raw = std::mem::take(&mut self.raw);
        let (got, slice) = self.io.read(raw.slice(..len)).await;
        self.raw = slice.into_inner();
        match got.map_err(|error| format!("receive: {error}"))? {
            0 => Err("closed in the body".to_owned()),
            got => Ok(got as u64),
        }
    }

    /// Has the kernel drop up to `max` bytes that have come; 0 where none have.
    fn throw_away(&self, max: u64) -> Result<u64, String> {
        let len = usize::try_from(max).unwrap_or(DROP).min(DROP);
        if len == 0 {
            return Ok(0);
        }
        SPARE.with_borrow_mut(|spare| {
            let socket = borrow(&self.io);
            match SockRef::from(&socket).recv_with_flags(&mut spare[..len], TRUNC) {
                Ok(0) => Err("closed in the body".to_owned()),
                Ok(gone) => Ok(gone as u64),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
                Err(error) => Err(format!("receive: {error}")),
            }
        })
    }
}

thread_local! {
    /// Named in calls that write nothing.
    static SPARE: std::cell::RefCell<Vec<MaybeUninit<u8>>> =
        std::cell::RefCell::new(vec![MaybeUninit::uninit(); DROP]);
}

fn take(bytes: &[u8], left: &mut u64, sink: &mut Sink<'_>) -> Result<(), String> {
    *left = left.checked_sub(bytes.len() as u64).ok_or("more than was announced")?;
    (sink.count)(bytes.len() as u64);
    (sink.bytes)(bytes);
    Ok(())
}

struct Head {
    status: u16,
    length: u64,
    /// Of the whole body, in an answer to a range.
    total: Option<u64>,
    close: bool,
}

impl Head {
    /// The head at the beginning of `bytes` and its length; none where it is not all there.
    fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(bytes).map_err(|error| format!("the head: {error}"))?;
        let httparse::Status::Complete(len) = parsed else { return Ok(None) };
        let status = response.code.unwrap_or(0);
        let mut head = Head { status, length: 0, total: None, close: false };
        for field in response.headers.iter() {
            let value = std::str::from_utf8(field.value).unwrap_or("");
            match field.name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    head.length = value.parse().map_err(|_| "Content-Length is no number")?;
                }
                "transfer-encoding" => return Err("chunks, which this client can't read".into()),
                "content-range" => {
                    head.total = value.rsplit('/').next().and_then(|total| total.parse().ok());
                }
                "connection" => head.close = value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        Ok(Some((head, len)))
    }
}
