//! rustls driven over a socket. The session's buffers never grow beyond what one read or one
//! [`super::Conn`] write puts in.

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{
    CipherSuite, ClientConfig, Connection, ExtractedSecrets, ProtocolVersion, RootCertStore,
};

use super::ktls::Kernel;
use super::pins::{Pinned, Verifier};
use crate::sys;
use crate::sys::ktls::{Cipher, Version};

/// Ciphertext taken from the socket at a time.
pub(super) const RECEIVE: usize = 128 * 1024;

thread_local! {
    /// Where ciphertext lands; used up before anything is awaited, so one a thread is enough.
    static CIPHERTEXT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What lies between our bytes and the socket's.
pub(super) enum Layer {
    /// Nothing.
    Plain,
    /// TLS that rustls speaks.
    Tls(Box<Tls>),
    /// TLS whose records are the kernel's.
    Kernel(Kernel),
}

impl Layer {
    pub(super) fn tls(&mut self) -> Option<&mut Tls> {
        if let Layer::Tls(tls) = self { Some(tls) } else { None }
    }

    pub(super) fn kernel(&mut self) -> Option<&mut Kernel> {
        if let Layer::Kernel(kernel) = self { Some(kernel) } else { None }
    }
}

/// One TLS session.
pub(super) struct Tls {
    session: Connection,
    backlog: usize,
    goodbye: bool,
    records: Records,
}

impl Tls {
    pub(super) fn new(mut session: Connection) -> Tls {
        // Bounded by Conn, which flushes before it writes more.
        session.set_buffer_limit(None);
        Tls { session, backlog: 0, goodbye: false, records: Records::default() }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Whether the peer's closing alert came.
    pub(super) fn said_goodbye(&self) -> bool {
        self.goodbye
    }

    /// Plaintext bytes written since everything was sent.
    pub(super) fn backlog(&self) -> usize {
        self.backlog
    }

    /// Encrypts `plain`; [`Tls::send`] sends it.
    pub(super) fn write(&mut self, plain: &[u8]) -> io::Result<()> {
        self.backlog += plain.len();
        self.session.writer().write_all(plain)
    }

    /// One try to send what is ready; 0 when there is nothing left.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if !self.session.wants_write() {
            self.backlog = 0;
            return Ok(0);
        }
        self.session.write_tls(&mut Sink(socket))
    }

    /// One try to read `max` bytes from the socket: appends plaintext to `out`, 0 at the end of the
    /// stream.
    ///
    /// `WouldBlock` also where what came held no plaintext: a peer that sends tickets without end
    /// must not keep the core.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        out: &mut Vec<u8>,
        max: usize,
    ) -> io::Result<usize> {
        if self.goodbye {
            return Ok(0);
        }
        let before = out.len();
        let got = self.advance(socket, out, max)?;
        if got == 0 || out.len() > before || self.goodbye {
            return Ok(out.len() - before);
        }
        // What handshake messages ask for leaves with the next write, if it can't now.
        if self.session.wants_write() {
            match self.session.write_tls(&mut Sink(socket)) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Takes in one read's worth of ciphertext, which need not hold any plaintext. Returns its
    /// length, 0 at the end of the stream.
    pub(super) fn advance(
        &mut self,
        socket: BorrowedFd<'_>,
        out: &mut Vec<u8>,
        max: usize,
    ) -> io::Result<usize> {
        CIPHERTEXT.with_borrow_mut(|buf| {
            buf.clear();
            buf.reserve(max);
            let got = sys::socket::recv(socket, buf, max)?;
            self.feed(buf, out).map_err(io::Error::other)?;
            Ok(got)
        })
    }

    /// Takes in ciphertext and appends the plaintext to `out`.
    pub(super) fn feed(
        &mut self,
        mut cipher: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), rustls::Error> {
        self.records.pass(cipher);
        let mut full = false;
        while !cipher.is_empty() {
            let taken = self.session.read_tls(&mut cipher);
            let state = self.session.process_new_packets()?;
            let plain = state.plaintext_bytes_to_read();
            self.goodbye |= state.peer_has_closed();
            if plain > 0 {
                out.reserve(plain);
                // It ends with nothing or an error once all of it was taken.
                let mut reader = self.session.reader();
                while let Ok(piece) = reader.fill_buf()
                    && !piece.is_empty()
                {
                    let len = piece.len();
                    out.extend_from_slice(piece);
                    reader.consume(len);
                }
            }
            match taken {
                // After the closing alert nothing more is taken in.
                Ok(0) => break,
                Ok(_) => full = false,
                // What was processed since has made room, unless it is one message too large.
                Err(_) if !full => full = true,
                Err(error) => return Err(rustls::Error::General(error.to_string())),
            }
        }
        Ok(())
    }

    /// Queues the closing alert.
    pub(super) fn close(&mut self) {
        self.session.send_close_notify();
    }

    /// What was agreed upon, if the kernel may know it.
    pub(super) fn suite(&self) -> Option<(Version, Cipher)> {
        let version = match self.session.protocol_version()? {
            ProtocolVersion::TLSv1_2 => Version::Tls12,
            ProtocolVersion::TLSv1_3 => Version::Tls13,
            _ => return None,
        };
        let cipher = match self.session.negotiated_cipher_suite()?.suite() {
            CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Cipher::Aes128Gcm,
            CipherSuite::TLS13_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Cipher::Aes256Gcm,
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Cipher::ChaCha20Poly1305,
            _ => return None,
        };
        Some((version, cipher))
    }

    /// Whether neither direction is in the middle of a record, or has ended.
    pub(super) fn is_between_records(&self) -> bool {
        let shaken = !self.session.is_handshaking() && !self.session.wants_write();
        shaken && !self.goodbye && self.records.is_between()
    }

    /// The keys of both directions, and the numbers of their next records.
    pub(super) fn into_secrets(self) -> Result<ExtractedSecrets, rustls::Error> {
        self.session.dangerous_extract_secrets()
    }
}

/// Follows the frames of records (RFC 8446, section 5.1): says whether rustls holds a piece of one.
#[derive(Default)]
struct Records {
    header: [u8; 5],
    /// Bytes of the header that came.
    come: usize,
    /// Bytes of the record's content to come.
    left: usize,
}

impl Records {
    fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let whole = if self.left > 0 { self.left } else { self.header.len() - self.come };
            let (piece, rest) = bytes.split_at(whole.min(bytes.len()));
            bytes = rest;
            if self.left > 0 {
                self.left -= piece.len();
                continue;
            }
            self.header[self.come..self.come + piece.len()].copy_from_slice(piece);
            self.come += piece.len();
            if self.come == self.header.len() {
                let [_, _, _, high, low] = self.header;
                (self.come, self.left) = (0, u16::from_be_bytes([high, low]).into());
            }
        }
    }

    fn is_between(&self) -> bool {
        (self.come, self.left) == (0, 0)
    }
}

struct Sink<'a>(BorrowedFd<'a>);

impl Write for Sink<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        sys::socket::send(self.0, &[IoSlice::new(buf)], false)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        sys::socket::send(self.0, bufs, false)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How TLS is spoken with upstreams: whom to trust, what to offer.
pub type UpstreamTls = ClientConfig;

/// What upstream TLS is made of.
pub struct TlsSetup {
    /// For connections to upstreams.
    pub client: Arc<UpstreamTls>,
    /// System certificates that could not be read, in words.
    pub warnings: Vec<String>,
}

/// Trusts the system's certificates and those in `extra` (PEM files), and, for hosts that have
/// pins, the pinned keys and nothing else. The error has the position of the file that is at fault,
/// and says what is wrong with it.
pub fn client_config(
    extra: &[PathBuf],
    pinned: Option<Pinned>,
) -> Result<TlsSetup, (usize, String)> {
    let (roots, warnings) = roots(extra)?;
    Ok(TlsSetup { warnings, ..config_of(roots, pinned)? })
}

/// The system's certificates and those in `extra`, and what could not be read of the system's.
pub(super) fn roots(extra: &[PathBuf]) -> Result<(RootCertStore, Vec<String>), (usize, String)> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    let warnings = native.errors.iter().map(ToString::to_string).collect();
    roots.add_parsable_certificates(native.certs);
    for (n, path) in extra.iter().enumerate() {
        let failed = |why: String| (n, format!("{} ({why})", path.display()));
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(|error| failed(error.to_string()))?
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| failed(error.to_string()))?;
        if certificates.is_empty() {
            return Err(failed("no PEM certificate in it".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
        }
    }
    Ok((roots, warnings))
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// TLS that trusts these.
pub(super) fn config_of(
    roots: RootCertStore,
    pinned: Option<Pinned>,
) -> Result<TlsSetup, (usize, String)> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| (0, error.to_string()))?;
    let builder = match pinned {
        None => builder.with_root_certificates(roots),
        Some(pinned) => {
            let verifier = Verifier::new(pinned, roots, provider).map_err(|why| (0, why))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut client = builder.with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsSetup { client: Arc::new(client), warnings: Vec::new() })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::http::Host;
    use crate::net::{Ca, CaOptions};

    #[test]
    fn pieces_of_records_are_noticed_wherever_they_are_cut() {
        // An empty one, one of 3 bytes, one of 256.
        let empty = [23, 3, 3, 0, 0];
        let mut bytes = [&empty[..], &[23, 3, 3, 0, 3, 1, 2, 3], &[22, 3, 3, 1, 0]].concat();
        bytes.extend([9; 256]);
        for cut in 0..=bytes.len() {
            let mut records = Records::default();
            records.pass(&bytes[..cut]);
            assert_eq!(records.is_between(), [0, 5, 13, bytes.len()].contains(&cut), "{cut}");
            records.pass(&bytes[cut..]);
            assert!(records.is_between(), "{cut}");
        }
    }

    /// A client that has shaken hands, and a socket that has so many tickets for it, and `hello`.
    fn ticketed(tickets: usize) -> (Tls, TcpStream) {
        let dir = tempfile::tempdir().unwrap();
        let options = CaOptions { dir: dir.path().to_owned(), names: Vec::new(), constrain: false };
        let ca = Ca::open(&options).unwrap();
        let config = ca.server_config(&Host::parse("a.test").unwrap()).unwrap();
        let mut config = Arc::unwrap_or_clone(config);
        config.send_tls13_tickets = tickets;
        let client = client_config(&[ca.certificate_path().to_owned()], None).unwrap().client;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = listener.accept().unwrap().0;
        let server = std::thread::spawn(move || {
            let mut session = ServerConnection::new(Arc::new(config)).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut theirs).unwrap();
            }
            session.writer().write_all(b"hello").unwrap();
            while session.wants_write() {
                session.write_tls(&mut theirs).unwrap();
            }
        });
        let name = "a.test".try_into().unwrap();
        let mut tls = Tls::new(ClientConnection::new(client, name).unwrap().into());
        loop {
            while tls.send(ours.as_fd()).unwrap() > 0 {}
            if !tls.is_handshaking() {
                break;
            }
            ours.peek(&mut [0]).unwrap();
            tls.advance(ours.as_fd(), &mut Vec::new(), RECEIVE).unwrap();
        }
        server.join().unwrap();
        (tls, ours)
    }

    #[test]
    fn tickets_without_end_do_not_keep_the_core() {
        let (mut tls, ours) = ticketed(100);
        // All is there; a little is taken in at a time, and nothing is lost.
        let (mut tries, mut out) = (0, Vec::new());
        while let Err(error) = tls.receive(ours.as_fd(), &mut out, 1000) {
            assert_eq!((error.kind(), out.len()), (io::ErrorKind::WouldBlock, 0), "{error}");
            tries += 1;
            assert!(ours.peek(&mut [0]).unwrap() > 0);
        }
        assert_eq!(out, b"hello");
        assert!(tries > 10, "{tries}");
    }

    #[test]
    fn ciphertext_is_taken_in_or_complained_of() {
        // More than rustls puts together into one flight.
        let (mut tls, mut ours) = ticketed(400);
        let (mut cipher, mut out) = (Vec::new(), Vec::new());
        ours.read_to_end(&mut cipher).unwrap();
        let fed = tls.feed(&cipher, &mut out);
        assert!(fed.is_err() || out == b"hello", "{} bytes were dropped", cipher.len());
    }
}
