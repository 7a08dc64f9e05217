//! The floor: the smallest servers that do nothing but the job. One thread, epoll, files opened
//! once with their heads ready; plain bodies by `sendfile`, TLS bodies by large reads and rustls
//! writes of as many bytes. What a proxy costs more than these is what it could still save.
//!
//!     floor ROOT ADDRESS [CERTIFICATE KEY]
//!
//! Serves the files below ROOT at ADDRESS, over TLS where a certificate is given.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use discobot_proxy::sys::file::sendfile;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

const LISTENER: Token = Token(usize::MAX);
/// Bytes per `sendfile` call, and plaintext per TLS write.
const PLAIN: usize = 1024 * 1024;
const LARGE: usize = 256 * 1024;
/// A body up to this size leaves with its head.
const SMALL: u64 = 64 * 1024;
/// A request's head at most.
const HEAD: usize = 16 * 1024;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let outcome = match args.as_slice() {
        [root, address] => serve(Path::new(root), address, None),
        [root, address, certificate, key] => {
            tls(certificate, key).and_then(|tls| serve(Path::new(root), address, Some(tls)))
        }
        _ => Err("usage: floor ROOT ADDRESS [CERTIFICATE KEY]".to_owned()),
    };
    if let Err(why) = outcome {
        eprintln!("floor: {why}");
        std::process::exit(2);
    }
}

fn tls(certificate: &str, key: &str) -> Result<Arc<ServerConfig>, String> {
    let chain = CertificateDer::pem_file_iter(certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| format!("{certificate}: {error}"))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{key}: {error}"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| error.to_string())?;
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// A file with the head of its answer.
struct Entry {
    file: File,
    len: u64,
    /// The head, and behind it the body where that is small.
    ready: Vec<u8>,
}

struct Conn {
    io: TcpStream,
    tls: Option<ServerConnection>,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    body: Option<(Rc<Entry>, u64)>,
}

enum Step {
    /// Nothing to do until the socket says so.
    Waits,
    /// Would go on, and lets others go first.
    Yields,
    Ends,
}

struct Files {
    root: PathBuf,
    open: HashMap<String, Rc<Entry>>,
    buf: Vec<u8>,
}

fn serve(root: &Path, address: &str, tls: Option<Arc<ServerConfig>>) -> Result<(), String> {
    let failed = |error: io::Error| error.to_string();
    let address: SocketAddr = address.parse().map_err(|_| format!("{address}: no address"))?;
    let mut poll = Poll::new().map_err(failed)?;
    let mut listener = TcpListener::bind(address).map_err(failed)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE).map_err(failed)?;
    let mut files = Files { root: root.to_owned(), open: HashMap::new(), buf: vec![0; LARGE] };
    let mut conns: HashMap<usize, Conn> = HashMap::new();
    let mut next = 0;
    let mut events = Events::with_capacity(1024);
    let mut ready: Vec<usize> = Vec::new();
    loop {
        let at_once = (!ready.is_empty()).then_some(std::time::Duration::ZERO);
        match poll.poll(&mut events, at_once) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(failed(error)),
            _ => {}
        }
        let mut run = std::mem::take(&mut ready);
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut io, _)) = listener.accept() {
                    let _ = io.set_nodelay(true);
                    let both = Interest::READABLE | Interest::WRITABLE;
                    let session = tls.clone().map(ServerConnection::new).transpose();
                    let mut session = session.map_err(|error| error.to_string())?;
                    session.iter_mut().for_each(|session| session.set_buffer_limit(None));
                    poll.registry().register(&mut io, Token(next), both).map_err(failed)?;
                    conns.insert(next, Conn::new(io, session));
                    next += 1;
                }
            } else if !run.contains(&event.token().0) {
                run.push(event.token().0);
            }
        }
        for id in run {
            let Some(conn) = conns.get_mut(&id) else { continue };
            match conn.step(&mut files) {
                Ok(Step::Waits) => {}
                Ok(Step::Yields) => ready.push(id),
                Ok(Step::Ends) | Err(_) => drop(conns.remove(&id)),
            }
        }
    }
}

impl Conn {
    fn new(io: TcpStream, tls: Option<ServerConnection>) -> Conn {
        Conn { io, tls, input: Vec::new(), output: Vec::new(), sent: 0, body: None }
    }

    /// Goes on until the socket blocks, or for one large write.
    fn step(&mut self, files: &mut Files) -> io::Result<Step> {
        loop {
            if !self.flush()? {
                return Ok(Step::Waits);
            }
            if let Some((entry, offset)) = &mut self.body {
                let left = usize::try_from(entry.len - *offset).unwrap_or(PLAIN);
                if left == 0 {
                    self.body = None;
                    continue;
                }
                if let Some(tls) = &mut self.tls {
                    let buf = &mut files.buf[..left.min(LARGE)];
                    let got = entry.file.read_at(buf, *offset)?;
                    tls.writer().write_all(&buf[..got])?;
                    *offset += got as u64;
                    return Ok(if self.flush()? { Step::Yields } else { Step::Waits });
                }
                let (socket, file) = (self.io.as_fd(), entry.file.as_fd());
                match sendfile(socket, file, *offset, left.min(PLAIN)) {
                    Ok(sent) => *offset += sent as u64,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Step::Waits);
                    }
                    Err(error) => return Err(error),
                }
                return Ok(Step::Yields);
            }
            if !self.answer(files)? {
                match self.read(files) {
                    Ok(0) => return Ok(Step::Ends),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        // What the handshake wants said.
                        self.flush()?;
                        return Ok(Step::Waits);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Whether everything is sent.
    fn flush(&mut self) -> io::Result<bool> {
        let blocked = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => Ok(false),
            _ => Err(error),
        };
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                if let Err(error) = tls.write_tls(&mut self.io) {
                    return blocked(error);
                }
            }
        }
        while self.sent < self.output.len() {
            match self.io.write(&self.output[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) => return blocked(error),
            }
        }
        (self.output, self.sent) = (std::mem::take(&mut self.output), 0);
        self.output.clear();
        Ok(true)
    }

    fn read(&mut self, files: &mut Files) -> io::Result<usize> {
        let got = match &mut self.tls {
            None => self.io.read(&mut files.buf)?,
            Some(tls) => {
                if tls.read_tls(&mut self.io)? == 0 {
                    return Ok(0);
                }
                let state = tls.process_new_packets().map_err(io::Error::other)?;
                let plain = state.plaintext_bytes_to_read();
                if plain == 0 {
                    return Ok(1);
                }
                tls.reader().read(&mut files.buf)?
            }
        };
        self.input.extend_from_slice(&files.buf[..got]);
        if self.input.len() > HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(got)
    }

    /// Begins an answer where a whole head has come.
    fn answer(&mut self, files: &mut Files) -> io::Result<bool> {
        let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n") else { return Ok(false) };
        let path = self.input.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        let path = std::str::from_utf8(path).map_err(io::Error::other)?;
        let entry = files.entry(path)?;
        self.input.drain(..end + 4);
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(&entry.ready)?,
            None => self.output.extend_from_slice(&entry.ready),
        }
        self.body = (entry.len > SMALL).then_some((entry, 0));
        Ok(true)
    }
}

impl Files {
    fn entry(&mut self, path: &str) -> io::Result<Rc<Entry>> {
        if let Some(entry) = self.open.get(path) {
            return Ok(Rc::clone(entry));
        }
        if path.split('/').any(|part| part == "..") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = File::open(self.root.join(path.trim_start_matches('/')))?;
        let len = file.metadata()?.len();
        let mut ready = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
             Content-Length: {len}\r\n\r\n"
        )
        .into_bytes();
        if len <= SMALL {
            let head = ready.len();
            ready.resize(head + len as usize, 0);
            file.read_exact_at(&mut ready[head..], 0)?;
        }
        let entry = Rc::new(Entry { file, len, ready });
        self.open.insert(path.to_owned(), Rc::clone(&entry));
        Ok(entry)
    }
}
