//! The stand-in upstream: plain blocking threads, plain or TLS, scripted by routes. It records every
//! request as it came and counts connections, so a test can say what reached upstream and how often.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

use super::answer::{Answer, Delimited, Ending};
use super::body::{Body, hex};
use super::certs::{Authority, Identity};
use super::wire::{Framing, Head, Incoming, Stream, Wire};
use super::{DEADLINE, names, wait_until};

/// One request as it reached an origin.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// Path and query, byte for byte.
    pub target: String,
    pub head: Head,
    /// Which of the origin's connections it came on, from 0.
    pub connection: usize,
    /// How its body was delimited.
    pub framing: Framing,
    /// Bytes of its body so far.
    pub body_len: u64,
    /// SHA-256 of its body once that has come whole.
    pub body_sha256: Option<String>,
    pub trailers: Vec<(String, String)>,
}

impl Seen {
    /// The path without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or("")
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }
}

/// A running stand-in upstream; ends with its value.
pub struct Origin {
    host: String,
    address: SocketAddr,
    leaf: Option<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    routes: Mutex<HashMap<(String, String), VecDeque<Answer>>>,
    seen: Mutex<Vec<Seen>>,
    sockets: Mutex<Vec<TcpStream>>,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

impl Origin {
    /// Plain HTTP on the address of `host`, a name of [`names`] or an IP literal.
    pub fn http(host: &str) -> Origin {
        Origin::start(host, SocketAddr::new(names::address(host), 0), None)
    }

    /// TLS, with a certificate of the trusted authority for `host`.
    pub fn https(host: &str) -> Origin {
        Origin::https_with(host, Authority::trusted().server(&[host]))
    }

    /// TLS with this identity.
    pub fn https_with(host: &str, identity: Identity) -> Origin {
        Origin::start(host, SocketAddr::new(names::address(host), 0), Some(identity))
    }

    /// Plain HTTP reached as `host` but listening on `address` (port 0: any).
    pub fn at(host: &str, address: &str) -> Origin {
        names::register();
        Origin::start(host, address.parse().expect("a socket address"), None)
    }

    /// As [`Origin::at`], over TLS.
    pub fn https_at(host: &str, address: &str) -> Origin {
        let identity = Authority::trusted().server(&[host]);
        Origin::start(host, address.parse().expect("a socket address"), Some(identity))
    }

    fn start(host: &str, address: SocketAddr, identity: Option<Identity>) -> Origin {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let address = listener.local_addr().expect("the origin's address");
        let shared = Arc::new(Shared::default());
        let origin = Origin {
            host: host.to_owned(),
            address,
            leaf: identity.as_ref().map(|identity| identity.leaf.clone()),
            shared: shared.clone(),
        };
        let config = identity.map(|identity| identity.config);
        thread::spawn(move || accept(&listener, &shared, config.as_ref()));
        origin
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.address.port())
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn is_tls(&self) -> bool {
        self.leaf.is_some()
    }

    /// Its own leaf certificate, DER.
    pub fn certificate(&self) -> Vec<u8> {
        self.leaf.clone().expect("a TLS origin")
    }

    /// The URL of a path here.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.is_tls() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.authority())
    }

    /// What `GET path` (and HEAD, alike but for the body) does from now on.
    pub fn get(&self, path: &str, answer: Answer) {
        self.on("GET", path, answer);
    }

    /// What this method on this path does from now on.
    pub fn on(&self, method: &str, path: &str, answer: Answer) {
        self.script(method, path, [answer]);
    }

    /// What `method path` does, one request after the other; the last stays.
    pub fn script(&self, method: &str, path: &str, answers: impl IntoIterator<Item = Answer>) {
        let key = (method.to_owned(), path.to_owned());
        self.shared.routes.lock().unwrap().insert(key, answers.into_iter().collect());
    }

    /// Every request so far, in the order of their heads.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// The requests for one path.
    pub fn seen_at(&self, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path() == path).collect()
    }

    /// The only request for this path.
    pub fn only(&self, path: &str) -> Seen {
        let mut all = self.seen_at(path);
        assert_eq!(all.len(), 1, "requests for {path}: {all:#?}");
        all.remove(0)
    }

    /// How many requests of this method came for this path.
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.seen_at(path).iter().filter(|seen| seen.method == method).count()
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until a request for `path` satisfies `ready`, and gives it.
    pub fn wait(&self, path: &str, ready: impl Fn(&Seen) -> bool) -> Seen {
        wait_until(&format!("a request for {path}"), || self.seen_at(path).into_iter().find(&ready))
    }

    /// Closes the listener and every connection: the registry is down.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(5));
        self.drop_connections();
        wait_until("the origin to stop listening", || {
            TcpStream::connect_timeout(&self.address, Duration::from_secs(5)).is_err().then_some(())
        });
    }

    /// Closes every connection it has; goes on listening.
    pub fn drop_connections(&self) {
        for socket in self.shared.sockets.lock().unwrap().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        self.drop_connections();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, config: Option<&Arc<ServerConfig>>) {
    for tcp in listener.incoming() {
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        let Ok(tcp) = tcp else { continue };
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let _ = tcp.set_nodelay(true);
        let _ = tcp.set_read_timeout(Some(4 * DEADLINE));
        if let Ok(clone) = tcp.try_clone() {
            shared.sockets.lock().unwrap().push(clone);
        }
        let stream = match config {
            None => Stream::Plain(tcp),
            Some(config) => {
                let tls = ServerConnection::new(config.clone()).expect("a TLS server");
                Stream::Server(Box::new(StreamOwned::new(tls, tcp)))
            }
        };
        let shared = shared.clone();
        thread::spawn(move || {
            let mut wire = Wire::new(stream);
            let _ = serve(&shared, &mut wire, number);
            let tcp = wire.stream.tcp();
            if let (Ok(Some(Duration::ZERO)), Ok(peer)) =
                (socket2::SockRef::from(tcp).linger(), tcp.peer_addr())
            {
                // The last descriptor's close resets it; a shutdown would end it in good order.
                let mut sockets = shared.sockets.lock().unwrap();
                sockets.retain(|socket| socket.peer_addr().is_ok_and(|other| other != peer));
                return;
            }
            let _ = wire.stream.tcp().shutdown(Shutdown::Both);
        });
    }
}

/// One connection, to its end.
fn serve(shared: &Shared, wire: &mut Wire, connection: usize) -> io::Result<()> {
    while let Some(head) = wire.head()? {
        let mut words = head.line.split(' ');
        let method = words.next().unwrap_or("").to_owned();
        let target = words.next().unwrap_or("").to_owned();
        let framing = head.framing(false);
        let expects = head.field("Expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue"));
        let closes = head.field("Connection").is_some_and(|v| v.eq_ignore_ascii_case("close"));
        let seen = Seen {
            method,
            target,
            head,
            connection,
            framing,
            body_len: 0,
            body_sha256: None,
            trailers: Vec::new(),
        };
        let answer = shared.pick(&seen);
        let index = {
            let mut all = shared.seen.lock().unwrap();
            all.push(seen.clone());
            all.len() - 1
        };
        if !answer.early {
            if expects {
                wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
            take_body(shared, wire, index, framing)?;
        }
        let goes_on = respond(wire, &seen, &answer)?;
        if answer.reads_on {
            take_body(shared, wire, index, framing)?;
        }
        if !goes_on || closes || answer.early && !answer.reads_on {
            return Ok(());
        }
    }
    Ok(())
}

impl Shared {
    /// The next behaviour of the route a request belongs to.
    fn pick(&self, seen: &Seen) -> Answer {
        let mut routes = self.routes.lock().unwrap();
        let path = seen.path().to_owned();
        let mut key = (seen.method.clone(), path);
        if key.0 == "HEAD" && !routes.contains_key(&key) {
            key.0 = "GET".to_owned();
        }
        let answer = match routes.get_mut(&key) {
            Some(queue) if queue.len() > 1 => queue.pop_front(),
            Some(queue) => queue.front().cloned(),
            None => None,
        };
        let Some(answer) = answer else {
            let body = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such route"}]}"#;
            return Answer::status(404, body).with("Content-Type", "application/json");
        };
        let authorization = seen.field("Authorization");
        if answer.refuse_authorization && authorization.is_some() {
            return Answer::status(400, "Only one auth mechanism allowed");
        }
        let query = seen.target.split_once('?').map(|(_, query)| query);
        if answer.signed.is_some() && answer.signed.as_deref() != query {
            return Answer::status(403, "<Error><Code>AccessDenied</Code></Error>");
        }
        if let Some((wanted, challenge)) = &answer.wants
            && authorization != Some(wanted)
        {
            let body =
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            return Answer::status(401, body)
                .with("Content-Type", "application/json")
                .with("WWW-Authenticate", challenge.clone());
        }
        answer
    }
}

fn take_body(shared: &Shared, wire: &mut Wire, index: usize, framing: Framing) -> io::Result<()> {
    let mut body = Incoming::new(framing);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = body.read(wire, &mut buffer)?;
        let mut all = shared.seen.lock().unwrap();
        if count == 0 {
            all[index].body_sha256 = Some(hex(&hasher.finalize()));
            all[index].trailers = body.trailers;
            return Ok(());
        }
        hasher.update(&buffer[..count]);
        all[index].body_len += count as u64;
    }
}

/// Sends one answer; false when the connection must end behind it.
fn respond(wire: &mut Wire, seen: &Seen, answer: &Answer) -> io::Result<bool> {
    if let Some(gate) = &answer.head_gate {
        gate.pass();
    }
    if let Some(bytes) = &answer.raw {
        wire.send(bytes)?;
        if answer.echo {
            echo(wire)?;
        }
        return Ok(answer.stays);
    }
    for status in &answer.interim {
        wire.send(format!("HTTP/1.1 {status} Interim\r\nX-Interim: yes\r\n\r\n").as_bytes())?;
    }
    if let Some(gate) = &answer.final_gate {
        gate.pass();
    }
    let (status, from, to) = stretch(seen, answer);
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in &answer.fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if status == 206 {
        head.push_str(&format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, answer.body.len()));
    }
    match answer.delimited {
        Delimited::Length => {
            let length = answer.claimed.unwrap_or(to - from);
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        Delimited::Chunked => head.push_str("Transfer-Encoding: chunked\r\n"),
        Delimited::Close => head.push_str("Connection: close\r\n"),
        Delimited::Nothing => {}
    }
    head.push_str("\r\n");
    wire.send(head.as_bytes())?;
    if answer.echo {
        return echo(wire).map(|()| false);
    }
    if seen.method == "HEAD" || answer.delimited == Delimited::Nothing {
        return Ok(!answer.drop_idle);
    }
    if !send_body(wire, answer, from, to)? {
        return Ok(false);
    }
    let lied = answer.claimed.is_some_and(|length| length != to - from);
    Ok(answer.delimited != Delimited::Close && !answer.drop_idle && !lied)
}

/// Status and stretch of the body that the request gets.
fn stretch(seen: &Seen, answer: &Answer) -> (u16, u64, u64) {
    let len = answer.body.len();
    let whole = (answer.status, 0, len);
    if !answer.ranges || answer.status != 200 {
        return whole;
    }
    let Some(range) = seen.field("Range").and_then(|value| value.strip_prefix("bytes=")) else {
        return whole;
    };
    let Some((from, to)) = range.split_once('-') else { return whole };
    if let ("", Ok(last)) = (from, to.parse::<u64>()) {
        return if last > 0 && len > 0 {
            (206, len.saturating_sub(last), len)
        } else {
            (416, 0, 0)
        };
    }
    let Ok(from) = from.parse::<u64>() else { return whole };
    let to = to.parse::<u64>().map_or(len, |last| (last + 1).min(len));
    if from < to { (206, from, to) } else { (416, 0, 0) }
}

/// Sends bytes `from..to`, stopping at gates and ending where the answer says; false when it ended.
fn send_body(wire: &mut Wire, answer: &Answer, from: u64, to: u64) -> io::Result<bool> {
    let mut at = from;
    let mut buffer = vec![0; 64 << 10];
    let mut gates = answer.gates.iter().filter(|(stop, _)| *stop >= from).peekable();
    loop {
        if let Some((_, how)) = answer.end.filter(|(end, _)| *end <= at) {
            if how == Ending::Reset {
                let socket = socket2::SockRef::from(wire.stream.tcp());
                socket.set_linger(Some(Duration::ZERO))?;
            }
            return Ok(false);
        }
        while let Some((_, gate)) = gates.next_if(|(stop, _)| *stop <= at) {
            gate.pass();
        }
        if at >= to {
            break;
        }
        let mut stop = to.min(at + buffer.len() as u64);
        stop = gates.peek().map_or(stop, |(gate, _)| stop.min(*gate));
        stop = answer.end.map_or(stop, |(end, _)| stop.min(end));
        match answer.drip {
            Some((from, _)) if at < from => stop = stop.min(from),
            Some((_, pause)) => {
                std::thread::sleep(pause);
                stop = at + 1;
            }
            None => {}
        }
        let piece = &mut buffer[..(stop - at) as usize];
        answer.body.read_at(at, piece);
        if let Some(bad) = answer.corrupt.filter(|bad| (at..stop).contains(bad)) {
            piece[(bad - at) as usize] ^= 0x55;
        }
        if answer.delimited == Delimited::Chunked {
            wire.stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            wire.stream.write_all(piece)?;
            wire.send(b"\r\n")?;
        } else {
            wire.send(piece)?;
        }
        at = stop;
    }
    if answer.delimited == Delimited::Chunked {
        let mut tail = "0\r\n".to_owned();
        for (name, value) in &answer.trailers {
            tail.push_str(&format!("{name}: {value}\r\n"));
        }
        wire.send(format!("{tail}\r\n").as_bytes())?;
    }
    if let Stream::Server(tls) = &mut wire.stream
        && answer.delimited == Delimited::Close
    {
        tls.conn.send_close_notify();
        tls.flush()?;
    }
    Ok(true)
}

fn echo(wire: &mut Wire) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = wire.read_some(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        wire.send(&buffer[..count])?;
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        401 => "Unauthorized",
        404 => "Not Found",
        429 => "Too Many Requests",
        _ => "Scripted",
    }
}

/// A bare TCP server for relayed tunnels: each connection goes to `talk` on a thread of its own.
pub fn bare_server(
    host: &str,
    talk: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((names::address(host), 0)).expect("a bare server");
    let address = listener.local_addr().expect("its address");
    let talk = Arc::new(talk);
    thread::spawn(move || {
        for tcp in listener.incoming().flatten() {
            let talk = talk.clone();
            let _ = tcp.set_read_timeout(Some(4 * DEADLINE));
            thread::spawn(move || talk(tcp));
        }
    });
    address
}

/// A body of `len` bytes that no other test's seed makes alike.
pub fn fresh_body(len: u64) -> Body {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    Body::made(NEXT.fetch_add(1, Ordering::Relaxed) as u64, len)
}
