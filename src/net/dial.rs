//! Connections to upstreams: resolved, judged, raced, and kept for the next request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::net::TcpStream;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use super::{Conn, NetError, ParentFault, Resolver};
use crate::http::{HeadLimits, Host};
use crate::sys;

/// How long an address may be silent before the next one is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Idle connections kept to one origin on one core.
const IDLE_PER_ORIGIN: usize = 16;

/// Idle connections kept on one core.
const IDLE_MAX: usize = 256;

/// How long an idle connection is kept: most servers close theirs after a minute or more.
const IDLE_TIME: Duration = Duration::from_secs(50);

/// What is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// TLS, with the host's name in the certificate.
    pub tls: bool,
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// An HTTP proxy on the way to the origin.
#[derive(Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// What `Proxy-Authorization` is to say, if anything.
    pub authorization: Option<Zeroizing<String>>,
    /// What `Via` is to say of the way so far in a CONNECT, ourselves included.
    pub via: Box<str>,
}

impl Parent {
    /// The error that names it.
    pub fn at_fault(&self, fault: ParentFault) -> NetError {
        NetError::Parent { parent: self.to_string().into(), fault }
    }

    fn connect(&self, host: &Host, port: u16) -> Zeroizing<String> {
        let head = format!(
            "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\nVia: {}\r\n",
            self.via
        );
        let (name, value, end) = match &self.authorization {
            Some(value) => ("Proxy-Authorization: ", value.as_str(), "\r\n\r\n"),
            None => ("", "", "\r\n"),
        };
        Zeroizing::new([head.as_str(), name, value, end].concat())
    }
}

/// Without its credentials.
impl std::fmt::Display for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// How connections are made.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// For resolving, connecting, and the TLS handshake, each.
    pub connect_timeout: Duration,
    /// Without a byte of progress, afterwards.
    pub read_timeout: Duration,
}

/// Makes and keeps the upstream connections of one core.
pub struct Dialer {
    options: DialOptions,
    resolver: Resolver,
    tls: Arc<ClientConfig>,
    idle: RefCell<Idle>,
}

#[derive(Default)]
struct Idle {
    /// None is kept any more.
    retired: bool,
    count: usize,
    by_origin: HashMap<Origin, Vec<(Instant, Conn)>>,
}

/// Says whether an address may be connected to; the error says why not.
pub type Permit<'a> = &'a dyn Fn(SocketAddr) -> Result<(), Box<str>>;

impl Dialer {
    /// A dialer without connections.
    pub fn new(options: DialOptions, resolver: Resolver, tls: Arc<ClientConfig>) -> Dialer {
        Dialer { options, resolver, tls, idle: RefCell::default() }
    }

    /// An idle connection to `origin` that was used within `age` and is still good.
    pub fn reuse(&self, origin: &Origin, age: Duration, permit: Permit<'_>) -> Option<Conn> {
        let mut idle = self.idle.borrow_mut();
        let conns = idle.by_origin.get_mut(origin)?;
        let mut found = None;
        let mut dropped = 0;
        while let Some((since, conn)) = conns.pop() {
            dropped += 1;
            if since.elapsed() < age.min(IDLE_TIME)
                && conn.is_quiet()
                && permit(conn.peer()).is_ok()
            {
                found = Some(conn);
                break;
            }
        }
        if conns.is_empty() {
            idle.by_origin.remove(origin);
        }
        idle.count -= dropped;
        found
    }

    /// Keeps a connection whose last answer was read to its end.
    pub fn keep(&self, origin: Origin, conn: Conn) {
        let mut idle = self.idle.borrow_mut();
        if idle.count >= IDLE_MAX {
            idle.sweep();
        }
        if idle.retired || idle.count >= IDLE_MAX || !conn.is_quiet() {
            return;
        }
        let conns = idle.by_origin.entry(origin).or_default();
        if conns.len() < IDLE_PER_ORIGIN {
            conns.push((Instant::now(), conn));
            idle.count += 1;
        }
    }

    /// Closes the idle connections and keeps none from here on: another dialer makes the new ones.
    pub fn retire(&self) {
        let mut idle = self.idle.borrow_mut();
        idle.clear();
        idle.retired = true;
    }

    /// Closes idle connections that have grown too old; called now and then.
    pub fn sweep(&self) {
        self.idle.borrow_mut().sweep();
    }

    /// A new connection to `origin`. Every address is judged by `permit` right before it is used.
    ///
    /// Through a parent, a connection for TLS is a tunnel, any other one is to the parent itself
    /// and wants requests in absolute form.
    pub async fn dial(
        &self,
        origin: &Origin,
        parent: Option<&Parent>,
        permit: Permit<'_>,
    ) -> Result<Conn, NetError> {
        let conn = match parent {
            Some(parent) if !origin.tls => self.dial_parent(parent, permit).await?,
            parent => self.tunnel(&origin.host, origin.port, parent, permit).await?,
        };
        let conn = if origin.tls { self.shake_hands(conn, &origin.host).await? } else { conn };
        conn.set_patience(self.options.read_timeout);
        Ok(conn)
    }

    /// A new connection that carries bytes to `host` and `port`, through the parent if there is
    /// one.
    pub async fn tunnel(
        &self,
        host: &Host,
        port: u16,
        parent: Option<&Parent>,
        permit: Permit<'_>,
    ) -> Result<Conn, NetError> {
        let Some(parent) = parent else { return self.dial_tcp(host, port, permit).await };
        let conn = self.dial_parent(parent, permit).await?;
        let answer = async {
            conn.write(parent.connect(host, port).as_bytes()).await?;
            conn.response_head(&HeadLimits::default()).await
        };
        match answer.await.map_err(|error| error.of_parent(parent))?.status {
            200..300 => Ok(conn),
            407 => Err(parent.at_fault(ParentFault::Credentials)),
            status => Err(parent.at_fault(ParentFault::Refused(status))),
        }
    }

    async fn dial_parent(&self, parent: &Parent, permit: Permit<'_>) -> Result<Conn, NetError> {
        let dialled = self.dial_tcp(&parent.host, parent.port, permit).await;
        dialled.map_err(|error| error.of_parent(parent))
    }

    async fn dial_tcp(&self, host: &Host, port: u16, permit: Permit<'_>) -> Result<Conn, NetError> {
        let limit = self.options.connect_timeout;
        let addresses = self.resolver.resolve(host, limit).await?;
        let mut denied = None;
        let mut allowed = Vec::with_capacity(addresses.len());
        for address in addresses {
            let address = SocketAddr::new(address, port);
            match permit(address) {
                Ok(()) => allowed.push(address),
                Err(why) => denied = Some(why),
            }
        }
        if let (true, Some(why)) = (allowed.is_empty(), denied) {
            return Err(NetError::Denied(why));
        }
        let mut first = connect_first(&allowed, limit).await;
        if first.as_ref().is_err_and(sys::socket::is_out_of_files) {
            // Idle connections hold what this one needs.
            self.idle.borrow_mut().clear();
            first = connect_first(&allowed, limit).await;
        }
        match first {
            Ok((io, address)) => {
                if allowed.first().is_some_and(|first| *first != address) {
                    self.resolver.prefer(host, address.ip());
                }
                Ok(Conn::plain(io, address, limit))
            }
            Err(error) => {
                self.resolver.forget(host);
                if error.kind() == io::ErrorKind::TimedOut {
                    return Err(NetError::TimedOut { what: "connecting", limit });
                }
                let target = format!("{host}:{port}").into();
                Err(NetError::Connect { target, why: Arc::new(error) })
            }
        }
    }

    async fn shake_hands(&self, conn: Conn, host: &Host) -> Result<Conn, NetError> {
        let session = rustls::ClientConnection::new(Arc::clone(&self.tls), server_name(host)?)?;
        conn.into_tls(session).await
    }
}

/// What its certificate has to be for.
pub(super) fn server_name(host: &Host) -> Result<ServerName<'static>, rustls::Error> {
    Ok(match host {
        Host::Name(name) => ServerName::try_from(name.to_string())
            .map_err(|error| rustls::Error::General(error.to_string()))?,
        Host::V4(address) => ServerName::from(std::net::IpAddr::V4(*address)),
        Host::V6(address) => ServerName::from(std::net::IpAddr::V6(*address)),
    })
}

impl Idle {
    fn clear(&mut self) {
        self.by_origin.clear();
        self.count = 0;
    }

    fn sweep(&mut self) {
        self.by_origin.retain(|_, conns| {
            conns.retain(|(since, conn)| since.elapsed() < IDLE_TIME && conn.is_quiet());
            !conns.is_empty()
        });
        self.count = self.by_origin.values().map(Vec::len).sum();
    }
}

type Attempt = Pin<Box<dyn Future<Output = (SocketAddr, io::Result<TcpStream>)>>>;

/// Connects to whichever address answers first; each gets a head start over the next.
async fn connect_first(
    addresses: &[SocketAddr],
    limit: Duration,
) -> io::Result<(TcpStream, SocketAddr)> {
    let mut waiting = addresses.iter().copied();
    let mut running: Vec<Attempt> = Vec::new();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if let Some(address) = waiting.next() {
            running.push(Box::pin(attempt(address, limit)));
        } else if running.is_empty() {
            return Err(last);
        }
        let first = poll_fn(|cx| {
            for (index, attempt) in running.iter_mut().enumerate() {
                if let Poll::Ready(done) = attempt.as_mut().poll(cx) {
                    drop(running.swap_remove(index));
                    return Poll::Ready(done);
                }
            }
            Poll::Pending
        });
        let done = if waiting.len() == 0 {
            first.await
        } else {
            match monoio::time::timeout(ATTEMPT_DELAY, first).await {
                Ok(done) => done,
                Err(_) => continue,
            }
        };
        match done {
            (address, Ok(io)) => return Ok((io, address)),
            (_, Err(error)) => last = error,
        }
    }
}

async fn attempt(address: SocketAddr, limit: Duration) -> (SocketAddr, io::Result<TcpStream>) {
    let connect = TcpStream::connect_addr(address);
    let result = match monoio::time::timeout(limit, connect).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    (address, result)
}
