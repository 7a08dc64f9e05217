//! HTTPS servers of the lab's own: blocking, a thread for each connection, an answer at a time.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::super::certs::Authority;
use super::super::wire::{Head, Stream, Wire};
use super::Lab;

#[derive(Debug)]
pub struct Request {
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    pub head: Head,
}

impl Request {
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }
}

pub enum Body {
    Bytes(Vec<u8>),
    File(PathBuf),
}

pub struct Answer {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Body,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer { status, fields: Vec::new(), body: Body::Bytes(body.into()) }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.fields.push((name.to_owned(), value.into()));
        self
    }
}

/// What a server does with one request. `None`: the connection is closed without a word.
pub trait Site: Send + Sync + 'static {
    fn answer(&self, request: &Request) -> Option<Answer>;
}

/// A site being served under `https://<name>`.
pub struct Served {
    stop: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Served {
    pub fn start(lab: &Lab, authority: &Authority, name: &str, site: Arc<dyn Site>) -> Served {
        let config = authority.server(&[name]).config;
        let listener =
            lab.namespace().listen(SocketAddr::new(IpAddr::V4(lab.add_host(name)), 443)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let served = Served { stop: Arc::default(), requests: Arc::default() };
        let (stop, requests) = (served.stop.clone(), served.requests.clone());
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let (config, site, requests) = (config.clone(), site.clone(), requests.clone());
                thread::spawn(move || {
                    // A peer may leave whenever it likes.
                    let _ = converse(stream, config, &*site, &requests);
                });
            }
        });
        served
    }

    /// "METHOD target STATUS" of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    /// How many requests of `method` whose target contains `part` there were.
    pub fn count(&self, method: &str, part: &str) -> usize {
        let wanted =
            |line: &&String| line.starts_with(&format!("{method} ")) && line.contains(part);
        self.requests().iter().filter(wanted).count()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if thread::panicking() {
            self.requests().iter().for_each(|line| eprintln!("asked: {line}"));
        }
    }
}

fn converse(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    site: &dyn Site,
    requests: &Mutex<Vec<String>>,
) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut wire = Wire::new(Stream::Server(Box::new(StreamOwned::new(connection, stream))));
    // Nothing that is asked of these sites brings a body.
    while let Some(head) = wire.head()? {
        let mut words = head.line.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let request = Request { method, target, head };
        let answer = site.answer(&request);
        let status = answer.as_ref().map_or(0, |answer| answer.status);
        let line = format!("{} {} {status}", request.method, request.target);
        requests.lock().unwrap().push(line);
        let Some(answer) = answer else { break };
        write_answer(&mut wire, &request, answer)?;
    }
    if let Stream::Server(tls) = &mut wire.stream {
        tls.conn.send_close_notify();
        tls.flush()?;
    }
    Ok(())
}

fn write_answer(wire: &mut Wire, request: &Request, answer: Answer) -> io::Result<()> {
    let length = match &answer.body {
        Body::Bytes(bytes) => bytes.len() as u64,
        Body::File(path) => path.metadata()?.len(),
    };
    let mut head = format!("HTTP/1.1 {} Lab\r\n", answer.status);
    for (name, value) in &answer.fields {
        head += &format!("{name}: {value}\r\n");
    }
    // The answer to a HEAD brings the length of what a GET would.
    let counted = answer.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if !counted {
        head += &format!("Content-Length: {length}\r\n");
    }
    head += "\r\n";
    wire.send(head.as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    match answer.body {
        Body::Bytes(bytes) => wire.send(&bytes)?,
        Body::File(path) => {
            let mut file = File::open(path)?;
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                wire.send(&buffer[..count])?;
            }
        }
    }
    Ok(())
}
