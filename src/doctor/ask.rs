//! One question to the proxy, by HTTP/1.0: the answer ends with the connection.

use std::fmt;
use std::io::{Chain, Cursor, Read, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

use crate::config::{ParentProxy, Secret};
use crate::http::{HeadLimits, Parsed, ResponseHead, parse_response};

/// For the connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// For each silence: longer than the proxy itself waits for upstreams.
const SILENCE: Duration = Duration::from_secs(70);

/// Bytes of a head read at a time.
const HEAD_READ: usize = 8 * 1024;

/// Heads that only say that an answer will come, at most (RFC 9110, section 15.2).
const INTERIM_MAX: usize = 16;

/// What follows a head: the rest of what was read with it, and of the connection.
pub type Rest<S> = Chain<Cursor<Vec<u8>>, S>;

/// Manifests and configurations are far smaller.
const ANSWER_MAX: u64 = 16 * 1024 * 1024;

/// Where the proxy is, and who asks.
pub struct Proxy(ParentProxy);

/// An answer.
pub struct Asked {
    head: ResponseHead,
    pub body: Vec<u8>,
}

impl Asked {
    /// Reads the whole of an answer.
    pub fn read((head, rest): (ResponseHead, impl Read)) -> Result<Asked, String> {
        let mut body = Vec::new();
        rest.take(ANSWER_MAX).read_to_end(&mut body).map_err(|error| error.to_string())?;
        Ok(Asked { head, body })
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.fields.get_str(name)
    }
}

impl Proxy {
    /// Reads `http://HOST:PORT` or `http://USER:PASSWORD@HOST:PORT`.
    pub fn parse(text: &str) -> Option<Proxy> {
        text.parse().ok().map(Proxy)
    }

    /// Its address as clients are told of it.
    pub fn authority(&self) -> String {
        self.0.authority()
    }

    /// Whether it is named by an address, or the name, that is always this machine.
    pub fn is_this_machine(&self) -> bool {
        let ip = self.0.host.parse::<IpAddr>();
        ip.map_or(self.0.host == "localhost", |ip| ip.to_canonical().is_loopback())
    }

    /// One of its own pages.
    pub fn own(&self, path: &str) -> Result<Asked, String> {
        self.own_by("GET", path, "")
    }

    /// As [`Proxy::own`], by another method, without a body. `fields` are whole lines.
    pub fn own_by(&self, method: &str, path: &str, fields: &str) -> Result<Asked, String> {
        let fields = format!("Content-Length: 0\r\n{fields}");
        Asked::read(self.ask(method, path, &self.authority(), &fields)?)
    }

    /// `https://HOST/PATH` through it. `fields` are whole lines.
    pub fn through(&self, host: &str, path: &str, fields: &str) -> Result<Asked, String> {
        let target = format!("https://{host}{path}");
        let fields = Secret::new([self.credentials().expose(), fields].concat());
        Asked::read(self.ask("GET", &target, host, fields.expose())?)
    }

    /// A connection through it to `authority`, a host with its port (RFC 9110, section 9.3.6).
    pub fn tunnel(&self, authority: &str) -> Result<TcpStream, String> {
        let credentials = self.credentials();
        let head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        let request = Secret::new([&*head, credentials.expose(), "\r\n"].concat());
        let (head, rest) = talk(self.connect()?, request.expose().as_bytes())?;
        match head.status {
            200..300 => {}
            407 => {
                return Err(
                    "the proxy wants a user: name it as http://USER:PASSWORD@HOST:PORT, by \
                            HTTPS_PROXY or --proxy"
                        .to_owned(),
                );
            }
            _ => return Err(refusal(&Asked::read((head, rest))?)),
        }
        let (early, stream) = rest.into_inner();
        // In TLS it is the client that begins.
        match early.get_ref().is_empty() {
            true => Ok(stream),
            false => Err("the proxy sends more than it was asked for".to_owned()),
        }
    }

    /// A whole line, or nothing.
    fn credentials(&self) -> Secret {
        let Some(known) = &self.0.credentials else { return Secret::new("") };
        Secret::new(["Proxy-Authorization: ", known.basic().expose(), "\r\n"].concat())
    }

    fn ask(
        &self,
        method: &str,
        target: &str,
        host: &str,
        fields: &str,
    ) -> Result<(ResponseHead, Rest<TcpStream>), String> {
        let request = format!("{method} {target} HTTP/1.0\r\nHost: {host}\r\n{fields}\r\n");
        talk(self.connect()?, Secret::new(request).expose().as_bytes())
    }

    fn connect(&self) -> Result<TcpStream, String> {
        let addresses = (&*self.0.host, self.0.port).to_socket_addrs();
        let mut error = "its name has no address".to_owned();
        for address in addresses.map_err(|error| error.to_string())? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    stream
                        .set_read_timeout(Some(SILENCE))
                        .and_then(|()| stream.set_write_timeout(Some(SILENCE)))
                        .map_err(|error| error.to_string())?;
                    return Ok(stream);
                }
                Err(why) => error = why.to_string(),
            }
        }
        Err(error)
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

/// Sends a request, and reads the head of the answer.
pub fn talk<S: Read + Write>(
    mut stream: S,
    request: &[u8],
) -> Result<(ResponseHead, Rest<S>), String> {
    let sent = stream.write_all(request).and_then(|()| stream.flush());
    sent.map_err(|error| error.to_string())?;
    let strange = || "it answers no HTTP".to_owned();
    let (mut bytes, mut piece, mut interim) = (Vec::new(), vec![0; HEAD_READ], 0);
    loop {
        match parse_response(&bytes, &HeadLimits::default()) {
            Ok(Parsed::Complete { head, len }) => {
                let rest = bytes.split_off(len);
                if !matches!(head.status, 100..=199) {
                    return Ok((head, Cursor::new(rest).chain(stream)));
                }
                (bytes, interim) = (rest, interim + 1);
                if interim > INTERIM_MAX {
                    return Err(strange());
                }
                continue;
            }
            Ok(Parsed::Incomplete) => {}
            Err(_) => return Err(strange()),
        }
        match stream.read(&mut piece).map_err(|error| error.to_string())? {
            0 => return Err(strange()),
            got => bytes.extend_from_slice(piece.get(..got).unwrap_or_default()),
        }
    }
}

/// Characters of somebody else's reason at most.
const WORDS_MAX: usize = 300;

/// What an answer that is no success says of itself.
pub fn refusal(answer: &Asked) -> String {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let why = body["errors"][0]["message"].as_str().unwrap_or("without a reason");
    // Somebody else's words, for a terminal: they can't look like ours.
    let why: String = why.chars().take(WORDS_MAX).collect();
    format!("{}: {why:?}", answer.status())
}
