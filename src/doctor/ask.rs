//! One question to the proxy, by HTTP/1.0: the answer ends with the connection.

use std::fmt;
use std::io::{Chain, Cursor, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::config::ParentProxy;
use crate::http::{HeadLimits, Parsed, ResponseHead, parse_response};

/// For the connection.
const PATIENCE: Duration = Duration::from_secs(20);

/// For each silence: longer than the proxy itself waits for upstreams.
const SILENCE: Duration = Duration::from_secs(70);

/// Bytes of a head read at a time.
const HEAD_READ: usize = 8 * 1024;

/// What follows a head: the rest of what was read with it, and of the connection.
pub type Body = Chain<Cursor<Vec<u8>>, TcpStream>;

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
    pub fn read((head, rest): (ResponseHead, Body)) -> Result<Asked, String> {
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
        Asked::read(self.open(host, path, fields)?)
    }

    /// As [`Proxy::through`], with the body left to be read.
    pub fn open(
        &self,
        host: &str,
        path: &str,
        fields: &str,
    ) -> Result<(ResponseHead, Body), String> {
        let target = format!("https://{host}{path}");
        match &self.0.credentials {
            None => self.ask("GET", &target, host, fields),
            Some(known) => {
                let user = format!("Proxy-Authorization: {}\r\n{fields}", known.basic().expose());
                self.ask("GET", &target, host, &user)
            }
        }
    }

    fn ask(
        &self,
        method: &str,
        target: &str,
        host: &str,
        fields: &str,
    ) -> Result<(ResponseHead, Body), String> {
        let request = format!("{method} {target} HTTP/1.0\r\nHost: {host}\r\n{fields}\r\n");
        let addresses = (&*self.0.host, self.0.port).to_socket_addrs();
        let mut error = "its name has no address".to_owned();
        for address in addresses.map_err(|error| error.to_string())? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return talk(stream, &request),
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

fn talk(mut stream: TcpStream, request: &str) -> Result<(ResponseHead, Body), String> {
    stream
        .set_read_timeout(Some(SILENCE))
        .and_then(|()| stream.set_write_timeout(Some(SILENCE)))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .map_err(|error| error.to_string())?;
    let strange = || "it answers no HTTP".to_owned();
    let (mut bytes, mut piece) = (Vec::new(), vec![0; HEAD_READ]);
    loop {
        match stream.read(&mut piece).map_err(|error| error.to_string())? {
            0 => return Err(strange()),
            got => bytes.extend_from_slice(piece.get(..got).unwrap_or_default()),
        }
        match parse_response(&bytes, &HeadLimits::default()) {
            Ok(Parsed::Complete { head, len }) => {
                return Ok((head, Cursor::new(bytes.split_off(len)).chain(stream)));
            }
            Ok(Parsed::Incomplete) => {}
            Err(_) => return Err(strange()),
        }
    }
}
