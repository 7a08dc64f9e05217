//! A stand-in parent proxy: plain blocking threads. It relays CONNECT, forwards absolute-form
//! requests, one to a connection, or treats all alike as its mood says; and it records every head.

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use super::answer::Gate;
use super::wire::{Head, Incoming, Stream, Wire};
use super::{DEADLINE, names};

/// What the parent does with a request.
#[derive(Clone)]
pub enum Mood {
    /// What it is asked for.
    Forwards,
    /// Sends these bytes and closes.
    Says(Vec<u8>),
    /// Sends nothing until the gate is opened, then closes.
    Stalls(Gate),
    /// Sends the request on to the proxy here, as it came.
    HandsTo(SocketAddr),
}

/// A running stand-in parent.
pub struct Parent {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    mood: Mutex<Mood>,
    heads: Mutex<Vec<Head>>,
}

impl Parent {
    /// One that does what it is asked for, at an address that is nobody else's.
    pub fn start() -> Parent {
        let listener = TcpListener::bind((names::address(names::PARENT), 0)).expect("a parent");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared { mood: Mutex::new(Mood::Forwards), heads: Mutex::default() });
        let serving = shared.clone();
        thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let shared = serving.clone();
                let _ = tcp.set_read_timeout(Some(4 * DEADLINE));
                thread::spawn(move || serve(&shared, tcp));
            }
        });
        Parent { address, shared }
    }

    /// What it does from now on.
    pub fn is(&self, mood: Mood) {
        *self.shared.mood.lock().unwrap() = mood;
    }

    /// Answers everything with this status.
    pub fn says(&self, status: &str) {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: 6\r\n\r\nparent");
        self.is(Mood::Says(head.into_bytes()));
    }

    /// `host:port`, by its name.
    pub fn authority(&self) -> String {
        format!("{}:{}", names::PARENT, self.address.port())
    }

    /// The heads of all requests so far.
    pub fn heads(&self) -> Vec<Head> {
        self.shared.heads.lock().unwrap().clone()
    }

    /// The first lines of all requests so far, in alphabetical order.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.heads().into_iter().map(|head| head.line).collect();
        lines.sort();
        lines
    }

    /// Forgets what it has seen.
    pub fn forget(&self) {
        self.shared.heads.lock().unwrap().clear();
    }
}

fn serve(shared: &Shared, tcp: TcpStream) -> io::Result<()> {
    let mut wire = Wire::new(Stream::Plain(tcp));
    let Some(head) = wire.head()? else { return Ok(()) };
    shared.heads.lock().unwrap().push(head.clone());
    let mood = shared.mood.lock().unwrap().clone();
    match mood {
        Mood::Forwards if head.line.starts_with("CONNECT ") => connect(wire, &head),
        Mood::Forwards => forward(wire, &head),
        Mood::Says(bytes) => wire.send(&bytes),
        Mood::Stalls(gate) => {
            gate.pass();
            Ok(())
        }
        Mood::HandsTo(next) => {
            let mut upstream = TcpStream::connect(next)?;
            upstream.write_all(text(&head.line, &head.fields).as_bytes())?;
            relay(wire, upstream)
        }
    }
}

fn connect(mut wire: Wire, head: &Head) -> io::Result<()> {
    let upstream = dial(head.line.split(' ').nth(1).unwrap_or(""))?;
    wire.send(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    relay(wire, upstream)
}

/// In origin form, without what is the parent's own; the answer goes back as it comes.
fn forward(mut wire: Wire, head: &Head) -> io::Result<()> {
    let mut words = head.line.splitn(3, ' ');
    let (method, url) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let mut upstream = dial(authority)?;
    let mut fields = head.fields.clone();
    fields.retain(|(name, _)| !name.eq_ignore_ascii_case("proxy-authorization"));
    fields.push(("Connection".to_owned(), "close".to_owned()));
    let line = format!("{method} {path} HTTP/1.1");
    upstream.write_all(text(&line, &fields).as_bytes())?;
    let mut body = Incoming::new(head.framing(false));
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = body.read(&mut wire, &mut buffer)?;
        if count == 0 {
            break;
        }
        upstream.write_all(&buffer[..count])?;
    }
    io::copy(&mut upstream, &mut wire.stream)?;
    wire.stream.tcp().shutdown(Shutdown::Both)
}

fn text(line: &str, fields: &[(String, String)]) -> String {
    let mut text = format!("{line}\r\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + "\r\n"
}

fn dial(authority: &str) -> io::Result<TcpStream> {
    let (host, port) = authority.rsplit_once(':').expect("host:port");
    TcpStream::connect((names::address(host), port.parse().expect("a port")))
}

/// Both ways, to the end of both.
fn relay(wire: Wire, upstream: TcpStream) -> io::Result<()> {
    let Stream::Plain(mut client) = wire.stream else { panic!("a plain connection") };
    let (mut from, mut to) = (client.try_clone()?, upstream.try_clone()?);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let mut upstream = upstream;
    let _ = io::copy(&mut upstream, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = up.join();
    Ok(())
}
