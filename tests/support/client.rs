//! A blocking test client: absolute-form over plain HTTP, or inside a CONNECT tunnel over TLS.
//! It streams bodies into a digest, can stop reading wherever a test wants, or just go away.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use sha2::{Digest, Sha256};
use socket2::{Domain, Socket, Type};

use super::DEADLINE;
use super::body::{Body, hex, sha256};
use super::certs::Trust;
use super::openssl::shell;
use super::wire::{Framing, Head, Incoming, Stream, Wire};

/// How much of a body a response keeps.
const KEEP: usize = 1 << 20;

/// The body of a request.
#[derive(Clone, Copy)]
pub enum Payload<'a> {
    None,
    Length(&'a Body),
    Chunked(&'a Body),
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub head: Head,
    /// 1xx heads that came first.
    pub interim: Vec<Head>,
    /// Bytes of body received.
    pub len: u64,
    /// Their SHA-256.
    pub sha256: String,
    /// The first mebibyte of them.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// The body came to its proper end; else why not.
    pub whole: Result<(), String>,
}

impl Response {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }

    /// Fails unless this is a 200 with exactly this body.
    #[track_caller]
    pub fn assert_is(&self, body: &Body) {
        assert_eq!(self.status, 200, "{:?} {}", self.head, self.text());
        assert_eq!(self.whole, Ok(()), "after {} of {} bytes", self.len, body.len());
        assert_eq!(self.len, body.len(), "{:?}", self.head);
        assert_eq!(self.sha256, body.sha256(), "wrong bytes");
    }

    /// Fails unless this is a 206 with exactly bytes `from..to` of this body.
    #[track_caller]
    pub fn assert_part(&self, body: &Body, (from, to): (u64, u64)) {
        assert_promises(&self.head, (from, to, body.len()));
        assert_eq!(self.whole, Ok(()), "after {} of {} bytes", self.len, to - from);
        assert_eq!(self.sha256, sha256(&body.slice(from, to)), "wrong bytes");
    }

    /// Fails unless this says that no byte of the range is among the `len` there are.
    #[track_caller]
    pub fn assert_unsatisfiable(&self, len: u64) {
        assert_eq!((self.status, self.len), (416, 0), "{:?}", self.head);
        assert_eq!(self.head.fields("Content-Range"), [format!("bytes */{len}")]);
        assert_eq!(self.whole, Ok(()));
    }

    /// Fails unless this came from the cache.
    #[track_caller]
    pub fn assert_hit(&self) {
        assert_eq!(self.field("X-Cache"), Some("HIT"), "{:?}", self.head);
    }

    /// Fails unless this came from upstream.
    #[track_caller]
    pub fn assert_not_hit(&self) {
        let fields = &self.head.fields;
        let x = fields.iter().find(|(name, _)| name.to_ascii_lowercase().starts_with("x-cache"));
        assert!(x.is_none(), "{:?}", self.head);
    }

    /// Fails unless this is an error of the proxy's own making with one of these statuses; gives
    /// its message.
    #[track_caller]
    pub fn assert_own_error(&self, statuses: &[u16]) -> String {
        assert!(statuses.contains(&self.status), "{:?} {}", self.head, self.text());
        assert_eq!(self.whole, Ok(()));
        let kind = self.field("Content-Type").unwrap_or("");
        assert!(kind.starts_with("application/json"), "{:?}", self.head);
        let error = &self.json()["errors"][0];
        assert!(error["code"].as_str().is_some_and(|code| !code.is_empty()), "{error}");
        let message = error["message"].as_str().unwrap_or("").to_owned();
        assert!(!message.is_empty() && !message.contains('\n'), "{error}");
        message
    }
}

/// A connection to the proxy (or to anything else that speaks HTTP/1.1).
pub struct Client {
    pub wire: Wire,
    /// Requests go out in absolute form.
    absolute: bool,
    authority: String,
}

impl Client {
    /// A plain connection; requests name whole URLs.
    pub fn plain(address: SocketAddr) -> Client {
        Client::over(dial(address, None), true, "")
    }

    /// As [`Client::plain`], with a receive buffer of about this many bytes.
    pub fn narrow(address: SocketAddr, window: usize) -> Client {
        Client::over(dial(address, Some(window)), true, "")
    }

    /// Straight to a server: requests go out in origin form.
    pub fn direct(address: SocketAddr, authority: &str) -> Client {
        Client::over(dial(address, None), false, authority)
    }

    /// Over this connection; requests name whole URLs.
    pub fn on(tcp: TcpStream) -> Client {
        Client::over(tcp, true, "")
    }

    fn over(tcp: TcpStream, absolute: bool, authority: &str) -> Client {
        let wire = Wire::new(Stream::Plain(tcp));
        Client { wire, absolute, authority: authority.to_owned() }
    }

    /// CONNECT to `authority`; the relayed stream, or the refusal.
    pub fn tunnel(proxy: SocketAddr, authority: &str) -> Result<TcpStream, Box<Response>> {
        Client::tunnel_on(dial(proxy, None), authority).expect("an answer to CONNECT")
    }

    /// As [`Client::tunnel`], over this connection.
    pub fn tunnel_on(
        tcp: TcpStream,
        authority: &str,
    ) -> io::Result<Result<TcpStream, Box<Response>>> {
        Client::tunnel_with(tcp, authority, &[])
    }

    /// As [`Client::tunnel_on`], with these fields.
    pub fn tunnel_with(
        mut tcp: TcpStream,
        authority: &str,
        fields: &[(&str, &str)],
    ) -> io::Result<Result<TcpStream, Box<Response>>> {
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        for (name, value) in fields {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        tcp.write_all(request.as_bytes())?;
        // Byte by byte: what a server says at once behind the head belongs to the tunnel.
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let mut byte = [0; 1];
            tcp.read_exact(&mut byte)?;
            text.push(byte[0]);
        }
        let head = Head::parse(&text)?;
        if status(&head) == 200 {
            return Ok(Ok(tcp));
        }
        let mut client = Client::over(tcp, false, authority);
        Ok(Err(Box::new(client.rest("CONNECT", head))))
    }

    /// CONNECT to `authority`, then TLS with this trust; requests go out in origin form.
    pub fn secure(proxy: SocketAddr, authority: &str, trust: &Trust) -> Client {
        Client::try_secure(dial(proxy, None), authority, trust).expect("TLS through the proxy")
    }

    /// As [`Client::secure`], with a receive buffer of about this many bytes.
    pub fn secure_narrow(proxy: SocketAddr, to: &str, trust: &Trust, window: usize) -> Client {
        Client::try_secure(dial(proxy, Some(window)), to, trust).expect("TLS through the proxy")
    }

    /// CONNECT and TLS over a fresh connection to the proxy.
    pub fn try_secure(tcp: TcpStream, authority: &str, trust: &Trust) -> io::Result<Client> {
        let tcp = Client::tunnel_on(tcp, authority)?
            .unwrap_or_else(|refusal| panic!("CONNECT {authority}: {refusal:?}"));
        Client::within(tcp, authority, trust)
    }

    /// TLS inside a tunnel to `authority`.
    pub fn within(tunnel: TcpStream, authority: &str, trust: &Trust) -> io::Result<Client> {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let stream = start_tls(tunnel, host, trust)?;
        Ok(Client { wire: Wire::new(stream), absolute: false, authority: authority.to_owned() })
    }

    /// The certificate the other side showed, DER.
    pub fn peer_certificate(&self) -> Vec<u8> {
        let Stream::Client(tls) = &self.wire.stream else { panic!("no TLS here") };
        tls.conn.peer_certificates().expect("a handshake")[0].to_vec()
    }

    /// All certificates the other side showed, PEM.
    pub fn peer_chain(&self) -> Vec<String> {
        let Stream::Client(tls) = &self.wire.stream else { panic!("no TLS here") };
        let chain = tls.conn.peer_certificates().expect("a handshake");
        chain.iter().map(|der| shell("openssl x509 -inform der", der)).collect()
    }

    /// The protocol agreed on by ALPN.
    pub fn alpn(&self) -> Option<Vec<u8>> {
        let Stream::Client(tls) = &self.wire.stream else { panic!("no TLS here") };
        tls.conn.alpn_protocol().map(<[u8]>::to_vec)
    }

    /// Sends only a request's head, with these fields beside Host.
    pub fn start(&mut self, method: &str, url: &str, fields: &[(&str, &str)]) {
        self.try_start(method, url, fields).expect("sending a head");
    }

    /// As [`Client::start`]; that the server goes away is the caller's to judge.
    pub fn try_start(
        &mut self,
        method: &str,
        url: &str,
        fields: &[(&str, &str)],
    ) -> io::Result<()> {
        let (authority, path) = split_url(url);
        let authority = authority.unwrap_or(&self.authority);
        let target = if self.absolute { url } else { path };
        let mut head = format!("{method} {target} HTTP/1.1\r\n");
        if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("Host: {authority}\r\n"));
        }
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.wire.send(head.as_bytes())
    }

    /// A GET and its answer; that the server goes away is the caller's to judge.
    pub fn try_get(&mut self, url: &str) -> io::Result<Response> {
        self.try_start("GET", url, &[])?;
        let head = self.try_head()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(self.rest("GET", head))
    }

    /// These bytes as a GET, and its answer; that the server goes away is the caller's to judge.
    pub fn exchange(&mut self, bytes: &[u8]) -> io::Result<Response> {
        self.wire.send(bytes)?;
        let head = self.try_head()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(self.rest("GET", head))
    }

    /// One request and its answer.
    pub fn request(
        &mut self,
        method: &str,
        url: &str,
        fields: &[(&str, &str)],
        payload: Payload<'_>,
    ) -> Response {
        let length;
        let mut fields = fields.to_vec();
        match payload {
            Payload::None => {}
            Payload::Length(body) => {
                length = body.len().to_string();
                fields.push(("Content-Length", &length));
            }
            Payload::Chunked(_) => fields.push(("Transfer-Encoding", "chunked")),
        }
        self.start(method, url, &fields);
        // A server may answer and close before it has the whole body: its answer is what counts.
        let _ = self.send_payload(payload);
        let head = self.head();
        self.rest(method, head)
    }

    /// Sends a request's body.
    pub fn send_payload(&mut self, payload: Payload<'_>) -> io::Result<()> {
        let (body, chunked) = match payload {
            Payload::None => return Ok(()),
            Payload::Length(body) => (body, false),
            Payload::Chunked(body) => (body, true),
        };
        let mut buffer = vec![0; 64 << 10];
        let mut at = 0;
        while at < body.len() {
            let count = body.read_at(at, &mut buffer);
            at += count as u64;
            self.send_piece(&buffer[..count], chunked)?;
        }
        if chunked {
            self.wire.stream.write_all(b"0\r\n\r\n")?;
        }
        self.wire.stream.flush()
    }

    /// Sends a piece of a body, as a chunk where asked.
    pub fn send_piece(&mut self, piece: &[u8], chunked: bool) -> io::Result<()> {
        if chunked {
            self.wire.stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
        }
        self.wire.stream.write_all(piece)?;
        if chunked {
            self.wire.stream.write_all(b"\r\n")?;
        }
        self.wire.stream.flush()
    }

    pub fn get(&mut self, url: &str) -> Response {
        self.request("GET", url, &[], Payload::None)
    }

    pub fn get_with(&mut self, url: &str, fields: &[(&str, &str)]) -> Response {
        self.request("GET", url, fields, Payload::None)
    }

    /// The next head.
    #[track_caller]
    pub fn head(&mut self) -> Head {
        self.try_head().expect("reading a head").expect("an answer before the end")
    }

    pub fn try_head(&mut self) -> io::Result<Option<Head>> {
        self.wire.head()
    }

    /// Sends a GET and reads only the head of its answer.
    pub fn begin(&mut self, url: &str) -> Transfer {
        self.begin_with(url, &[])
    }

    /// As [`Client::begin`], with these fields.
    pub fn begin_with(&mut self, url: &str, fields: &[(&str, &str)]) -> Transfer {
        self.start("GET", url, fields);
        let head = self.head();
        Transfer::new("GET", head)
    }

    /// Reads only the head of the answer to a request that was sent already.
    pub fn transfer(&mut self, method: &str) -> Transfer {
        let head = self.head();
        Transfer::new(method, head)
    }

    /// Reads what follows a head: further heads behind 1xx, and the body to its end.
    pub fn rest(&mut self, method: &str, mut head: Head) -> Response {
        let mut interim = Vec::new();
        while (100..200).contains(&status(&head)) && status(&head) != 101 {
            interim.push(std::mem::replace(&mut head, self.head()));
        }
        let mut response = Transfer::new(method, head).finish(self);
        response.interim = interim;
        response
    }

    /// Whether the server closes the connection now; fails when it says more instead.
    pub fn closes(&mut self) -> bool {
        match self.wire.read_some(&mut [0; 1]) {
            Ok(count) => {
                assert_eq!(count, 0, "more after the answer");
                true
            }
            Err(error) => !matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
            ),
        }
    }

    /// Ends the sending side.
    pub fn finish_sending(&self) {
        let _ = self.wire.stream.tcp().shutdown(Shutdown::Write);
    }
}

/// A body being received.
pub struct Transfer {
    pub head: Head,
    incoming: Incoming,
    hasher: Sha256,
    len: u64,
    body: Vec<u8>,
}

impl Transfer {
    fn new(method: &str, head: Head) -> Transfer {
        let status = status(&head);
        let none = method == "HEAD"
            || status < 200
            || matches!(status, 204 | 304)
            || (method == "CONNECT" && (200..300).contains(&status));
        let framing = if none { Framing::None } else { head.framing(true) };
        let incoming = Incoming::new(framing);
        Transfer { head, incoming, hasher: Sha256::new(), len: 0, body: Vec::new() }
    }

    pub fn status(&self) -> u16 {
        status(&self.head)
    }

    /// Fails unless a 206 with bytes `from..to` of `len` has begun.
    #[track_caller]
    pub fn assert_promises(&self, part: (u64, u64, u64)) {
        assert_promises(&self.head, part);
    }

    /// SHA-256 of what has come so far, lower-case hex.
    pub fn sha256(&self) -> String {
        hex(&self.hasher.clone().finalize())
    }

    /// Reads on until `count` bytes of the body have come in all.
    #[track_caller]
    pub fn read_to(&mut self, client: &mut Client, count: u64) {
        let mut buffer = vec![0; 64 << 10];
        while self.len < count {
            let most = (count - self.len).min(buffer.len() as u64) as usize;
            let got = self.step(client, &mut buffer[..most]).expect("reading on");
            assert_ne!(got, 0, "the body ended at {} of {count}", self.len);
        }
    }

    fn step(&mut self, client: &mut Client, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.incoming.read(&mut client.wire, buffer)?;
        self.hasher.update(&buffer[..count]);
        self.len += count as u64;
        let keep = (KEEP - self.body.len()).min(count);
        self.body.extend_from_slice(&buffer[..keep]);
        Ok(count)
    }

    /// Reads to the end, however that is.
    pub fn finish(mut self, client: &mut Client) -> Response {
        let mut buffer = vec![0; 64 << 10];
        let whole = loop {
            match self.step(client, &mut buffer) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error.to_string()),
            }
        };
        let reason = self.head.line.splitn(3, ' ').nth(2).unwrap_or("").to_owned();
        Response {
            status: self.status(),
            reason,
            head: self.head,
            interim: Vec::new(),
            len: self.len,
            sha256: hex(&self.hasher.finalize()),
            body: self.body,
            trailers: self.incoming.trailers,
            whole,
        }
    }
}

#[track_caller]
fn assert_promises(head: &Head, (from, to, len): (u64, u64, u64)) {
    assert_eq!(status(head), 206, "{head:?}");
    assert_eq!(head.fields("Content-Range"), [format!("bytes {from}-{}/{len}", to - 1)]);
    assert_eq!(head.fields("Content-Length"), [(to - from).to_string()], "{head:?}");
}

/// The status of a response's head.
pub fn status(head: &Head) -> u16 {
    let code = head.line.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no status line: {:?}", head.line))
}

/// A connection with the tests' deadline on every read and write.
pub fn dial(address: SocketAddr, window: Option<usize>) -> TcpStream {
    try_dial(address, window).unwrap_or_else(|error| panic!("{address}: {error}"))
}

/// As [`dial`], from this source address.
pub fn dial_from(source: &str, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    let source = SocketAddr::new(source.parse().expect("an address"), 0);
    socket.bind(&source.into()).expect("the source address");
    socket.connect(&address.into()).unwrap_or_else(|error| panic!("{address}: {error}"));
    with_deadlines(socket.into()).expect("socket options")
}

/// As [`dial`], but a refusal is the caller's to judge.
pub fn try_dial(address: SocketAddr, window: Option<usize>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let Some(window) = window {
        socket.set_recv_buffer_size(window)?;
    }
    socket.connect(&address.into())?;
    with_deadlines(socket.into())
}

fn with_deadlines(tcp: TcpStream) -> io::Result<TcpStream> {
    tcp.set_nodelay(true)?;
    tcp.set_read_timeout(Some(DEADLINE))?;
    tcp.set_write_timeout(Some(DEADLINE))?;
    Ok(tcp)
}

/// A TLS handshake as a client of `host`.
pub fn start_tls(mut tcp: TcpStream, host: &str, trust: &Trust) -> io::Result<Stream> {
    let bare = host.trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(bare).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(trust.config(), name).map_err(io::Error::other)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp)?;
    }
    Ok(Stream::Client(Box::new(StreamOwned::new(tls, tcp))))
}

/// Authority and path of a URL; only the path when it begins with one.
fn split_url(url: &str) -> (Option<&str>, &str) {
    let Some((_, rest)) = url.split_once("://").filter(|_| !url.starts_with('/')) else {
        return (None, url);
    };
    match rest.find(['/', '?']) {
        Some(at) => (Some(&rest[..at]), &rest[at..]),
        None => (Some(rest), "/"),
    }
}
