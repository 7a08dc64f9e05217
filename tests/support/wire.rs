//! One end of a connection, plain or TLS, with a read buffer; heads and bodies as HTTP/1.1 frames
//! them (RFC 9112). Origin and client both read through this.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use rustls::{ClientConnection, ServerConnection, StreamOwned};

/// A byte stream: plain, or TLS from either side.
pub enum Stream {
    Plain(TcpStream),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Plain(tcp) => tcp,
            Stream::Server(tls) => &tls.sock,
            Stream::Client(tls) => &tls.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(buffer),
            Stream::Server(tls) => tls.read(buffer),
            Stream::Client(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.write(buffer),
            Stream::Server(tls) => tls.write(buffer),
            Stream::Client(tls) => tls.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.flush(),
            Stream::Server(tls) => tls.flush(),
            Stream::Client(tls) => tls.flush(),
        }
    }
}

/// A message head: its first line and its fields as they came.
#[derive(Clone, Debug)]
pub struct Head {
    pub line: String,
    pub fields: Vec<(String, String)>,
}

impl Head {
    /// A head in memory, its blank line included.
    pub fn parse(bytes: &[u8]) -> io::Result<Head> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let line = lines.next().unwrap_or("").to_owned();
        let fields = lines.map(field).collect::<io::Result<_>>()?;
        Ok(Head { line, fields })
    }

    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// All values of this name.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(own, _)| own.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// How a body after this head is delimited; `closes` says what holds without length or coding.
    pub fn framing(&self, closes: bool) -> Framing {
        let coding = self.field("Transfer-Encoding").unwrap_or("");
        let length = self.field("Content-Length").and_then(|value| value.parse().ok());
        match length {
            _ if coding.to_ascii_lowercase().contains("chunked") => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None if closes => Framing::Close,
            None => Framing::None,
        }
    }
}

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    Close,
}

/// A stream with what was read ahead of it.
pub struct Wire {
    pub stream: Stream,
    buffer: Vec<u8>,
    at: usize,
}

impl Wire {
    pub fn new(stream: Stream) -> Wire {
        Wire { stream, buffer: Vec::new(), at: 0 }
    }

    /// The bytes read ahead.
    pub fn ahead(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn more(&mut self) -> io::Result<usize> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let old = self.buffer.len();
        self.buffer.resize(old + (64 << 10), 0);
        let result = self.stream.read(&mut self.buffer[old..]);
        self.buffer.truncate(old + *result.as_ref().unwrap_or(&0));
        result
    }

    /// Some bytes, 0 at the end of the stream.
    pub fn read_some(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.ahead().is_empty() {
            if out.len() >= 16 << 10 {
                return self.stream.read(out);
            }
            self.more()?;
        }
        let count = self.ahead().len().min(out.len());
        out[..count].copy_from_slice(&self.buffer[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }

    /// One line without its CRLF.
    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.ahead().windows(2).position(|pair| pair == b"\r\n") {
                let text = String::from_utf8_lossy(&self.ahead()[..end]).into_owned();
                self.at += end + 2;
                return Ok(text);
            }
            if self.more()? == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "ended within a line"));
            }
        }
    }

    /// The next head; `None` when the stream ended cleanly before one.
    pub fn head(&mut self) -> io::Result<Option<Head>> {
        if self.ahead().is_empty() && self.more()? == 0 {
            return Ok(None);
        }
        let line = self.line()?;
        let fields = self.field_lines()?;
        Ok(Some(Head { line, fields }))
    }

    fn field_lines(&mut self) -> io::Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            fields.push(field(&line)?);
        }
    }

    /// Writes all of it and flushes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }
}

fn field(line: &str) -> io::Result<(String, String)> {
    let bad = || io::Error::new(ErrorKind::InvalidData, format!("no field: {line:?}"));
    let (name, value) = line.split_once(':').ok_or_else(bad)?;
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Where one body stands.
pub struct Incoming {
    framing: Framing,
    left: u64,
    over: bool,
    /// Fields after a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Incoming {
    pub fn new(framing: Framing) -> Incoming {
        let left = if let Framing::Length(length) = framing { length } else { 0 };
        let over = matches!(framing, Framing::None | Framing::Length(0));
        Incoming { framing, left, over, trailers: Vec::new() }
    }

    /// Some bytes of the body; 0 at its proper end; an error when the peer went before that.
    pub fn read(&mut self, wire: &mut Wire, out: &mut [u8]) -> io::Result<usize> {
        if self.over {
            return Ok(0);
        }
        if self.framing == Framing::Chunked && self.left == 0 && self.next_chunk(wire)? == 0 {
            return Ok(0);
        }
        let most = match self.framing {
            Framing::Close => out.len(),
            _ => self.left.min(out.len() as u64) as usize,
        };
        let count = wire.read_some(&mut out[..most])?;
        if self.framing == Framing::Close {
            self.over = count == 0;
            return Ok(count);
        }
        if count == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "ended within a body"));
        }
        self.left -= count as u64;
        match self.framing {
            Framing::Length(_) => self.over = self.left == 0,
            _ if self.left == 0 && !wire.line()?.is_empty() => {
                return Err(io::Error::new(ErrorKind::InvalidData, "no CRLF after a chunk"));
            }
            _ => {}
        }
        Ok(count)
    }

    fn next_chunk(&mut self, wire: &mut Wire) -> io::Result<u64> {
        let line = wire.line()?;
        let size = line.split(';').next().unwrap_or("");
        let bad = |_| io::Error::new(ErrorKind::InvalidData, format!("no chunk size: {line:?}"));
        self.left = u64::from_str_radix(size, 16).map_err(bad)?;
        if self.left == 0 {
            self.trailers = wire.field_lines()?;
            self.over = true;
        }
        Ok(self.left)
    }
}
