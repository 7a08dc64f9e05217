//! One question to the proxy, by HTTP/1.0: the answer ends with the connection.

use std::fmt;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::config::ParentProxy;
use crate::http::{HeadLimits, Parsed, ResponseHead, parse_response};

/// For the connection, and for each silence.
const PATIENCE: Duration = Duration::from_secs(20);

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
        self.ask(path, &self.authority(), "")
    }

    /// `https://HOST/PATH` through it. `fields` are whole lines.
    pub fn through(&self, host: &str, path: &str, fields: &str) -> Result<Asked, String> {
        let target = format!("https://{host}{path}");
        match &self.0.credentials {
            None => self.ask(&target, host, fields),
            Some(known) => {
                let user = format!("Proxy-Authorization: {}\r\n{fields}", known.basic().expose());
                self.ask(&target, host, &user)
            }
        }
    }

    fn ask(&self, target: &str, host: &str, fields: &str) -> Result<Asked, String> {
        let addresses = (&*self.0.host, self.0.port).to_socket_addrs();
        let mut error = "its name has no address".to_owned();
        for address in addresses.map_err(|error| error.to_string())? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => return talk(stream, target, host, fields),
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

fn talk(mut stream: TcpStream, target: &str, host: &str, fields: &str) -> Result<Asked, String> {
    let request = format!("GET {target} HTTP/1.0\r\nHost: {host}\r\n{fields}\r\n");
    let mut bytes = Vec::new();
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.take(ANSWER_MAX).read_to_end(&mut bytes))
        .map_err(|error| error.to_string())?;
    match parse_response(&bytes, &HeadLimits::default()) {
        Ok(Parsed::Complete { head, len }) => Ok(Asked { head, body: bytes.split_off(len) }),
        Ok(Parsed::Incomplete) | Err(_) => Err("it answers no HTTP".to_owned()),
    }
}
