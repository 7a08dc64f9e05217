//! Handing TLS over to the kernel. Once rustls has shaken hands and has nothing left to send, its
//! keys go to the kernel, which from then on takes plaintext, bodies by `sendfile` among it.
//!
//! What must stay true: the hand-over happens between two records in both directions; whatever the
//! kernel refuses before it has the keys leaves the connection with rustls; no nonce is used twice.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustls::{AlertDescription, ConnectionTrafficSecrets, ExtractedSecrets};

use super::tls::{Layer, Tls};
use super::{Conn, NetError};
use crate::sys;
use crate::sys::ktls::{Cipher, Direction, Keys, Version};

/// Records that keys may encrypt: half of what rustls allows AES-GCM (RFC 8446, section 5.5), since
/// they are counted from outside.
const RECORDS_MAX: u64 = 1 << 22;

/// With fewer left no further request is taken: 32 GiB of whole records.
const RECORDS_FOR_REQUEST: u64 = 1 << 21;

/// Plaintext of a record at most.
const RECORD: usize = 16 * 1024;

/// Pause between two looks whether a peer that is not understood any more has gone.
const LEAVE_PAUSE: Duration = Duration::from_millis(20);

/// Kinds of records (RFC 8446, section 5.1).
const ALERT: u8 = 21;
const DATA: u8 = 23;

/// Levels of alerts (RFC 8446, section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// What the kernel may be able to take over.
const SUITES: [(Version, Cipher, &str); 6] = [
    (Version::Tls13, Cipher::Aes128Gcm, "TLS 1.3 AES-128-GCM"),
    (Version::Tls13, Cipher::Aes256Gcm, "TLS 1.3 AES-256-GCM"),
    (Version::Tls13, Cipher::ChaCha20Poly1305, "TLS 1.3 ChaCha20-Poly1305"),
    (Version::Tls12, Cipher::Aes128Gcm, "TLS 1.2 AES-128-GCM"),
    (Version::Tls12, Cipher::Aes256Gcm, "TLS 1.2 AES-256-GCM"),
    (Version::Tls12, Cipher::ChaCha20Poly1305, "TLS 1.2 ChaCha20-Poly1305"),
];

/// What this process hands over to the kernel.
pub struct Ktls {
    /// A bit for each of [`SUITES`].
    suites: AtomicU8,
    why: String,
}

/// What came of [`Conn::hand_over`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// There is nothing to hand over, or not any more.
    None,
    /// The kernel has it.
    Done,
    /// rustls goes on: the kernel does not take it, or it is in the middle of a record.
    Kept,
}

impl Ktls {
    /// Hands nothing over, for this reason.
    pub fn off(why: &str) -> Ktls {
        Ktls { suites: AtomicU8::new(0), why: why.to_owned() }
    }

    /// Finds out what the kernel takes.
    pub fn probe() -> Ktls {
        let (mut suites, mut why) = (0, "the kernel has refused it since".to_owned());
        for (n, (version, cipher, _)) in SUITES.into_iter().enumerate() {
            match probe(version, cipher) {
                Ok(()) => suites |= 1 << n,
                Err(error) => why = format!("the kernel takes no TLS: {error}"),
            }
        }
        Ktls { suites: AtomicU8::new(suites), why }
    }

    /// Names of what is handed over.
    pub fn suites(&self) -> Vec<&'static str> {
        let known = SUITES.into_iter().filter(|(version, cipher, _)| self.takes(*version, *cipher));
        known.map(|(_, _, name)| name).collect()
    }

    /// Why nothing is handed over, if nothing is.
    pub fn why(&self) -> Option<&str> {
        (self.suites.load(Ordering::Relaxed) == 0).then_some(&self.why)
    }

    fn takes(&self, version: Version, cipher: Cipher) -> bool {
        self.suites.load(Ordering::Relaxed) & bit(version, cipher) != 0
    }

    /// The kernel did not keep its word: its refusal costs a connection, so it is not asked again.
    fn forget(&self, version: Version, cipher: Cipher) {
        self.suites.fetch_and(!bit(version, cipher), Ordering::Relaxed);
    }
}

fn bit(version: Version, cipher: Cipher) -> u8 {
    let at = SUITES.iter().position(|(v, c, _)| (*v, *c) == (version, cipher));
    at.map_or(0, |at| 1 << at)
}

/// Has the kernel take keys of both directions, on a connection that carries nothing.
fn probe(version: Version, cipher: Cipher) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let socket = TcpStream::connect(listener.local_addr()?)?;
    sys::ktls::attach(socket.as_fd())?;
    let key = &[0; 32][..cipher.key_len()];
    let keys = Keys { version, cipher, key, iv: [0; 12], sequence: 0 };
    sys::ktls::set_keys(socket.as_fd(), Direction::Send, &keys)?;
    sys::ktls::set_keys(socket.as_fd(), Direction::Receive, &keys)
}

/// A connection's TLS in the kernel.
pub(super) struct Kernel {
    records_left: u64,
    ended: bool,
    goodbye: bool,
}

impl Kernel {
    /// Gives the keys to the kernel; an error leaves the socket with neither side's TLS.
    fn take(tls: Tls, version: Version, socket: BorrowedFd<'_>) -> Result<Kernel, NetError> {
        let ExtractedSecrets { tx: (sent, tx), rx: (received, rx) } = tls.into_secrets()?;
        sys::ktls::set_keys(socket, Direction::Send, &keys(version, sent, &tx)?)?;
        sys::ktls::set_keys(socket, Direction::Receive, &keys(version, received, &rx)?)?;
        let records_left = RECORDS_MAX.saturating_sub(sent);
        Ok(Kernel { records_left, ended: false, goodbye: false })
    }

    /// One try to read: appends plaintext to `out`, at most `max` bytes or an alert's two; 0 at the
    /// end of the stream.
    ///
    /// That is also where the peer says anything but data: new keys (KeyUpdate) above all, which
    /// kernels before 6.14 can't be given. What we send stays readable for it.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        out: &mut Vec<u8>,
        max: usize,
    ) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        let start = out.len();
        out.reserve(2);
        let received =
            sys::ktls::recv(socket, out, max.max(2)).map_err(
                |error| match sys::ktls::is_bad_record(&error) {
                    true => io::Error::other(rustls::Error::DecryptError),
                    false => error,
                },
            );
        let (got, Some(kind)) = received? else { return Ok(out.len() - start) };
        if kind == DATA {
            return Ok(got);
        }
        self.ended = true;
        let said = out.split_off(start);
        match (kind, &said[..]) {
            (ALERT, [_, alert]) => match AlertDescription::from(*alert) {
                AlertDescription::CloseNotify => self.goodbye = true,
                alert => return Err(io::Error::other(rustls::Error::AlertReceived(alert))),
            },
            _ => tracing::debug!(kind, "TLS in the kernel ends: no data came"),
        }
        Ok(0)
    }

    /// Whether the peer has said what ended our understanding of it, and no goodbye.
    pub(super) fn is_deaf(&self) -> bool {
        self.ended && !self.goodbye
    }

    /// Whether the peer's closing alert came.
    pub(super) fn said_goodbye(&self) -> bool {
        self.goodbye
    }

    /// Whether its keys are good for a further request.
    pub(super) fn takes_request(&self) -> bool {
        self.records_left >= RECORDS_FOR_REQUEST
    }

    /// Counts what one call has written; an error when the keys have encrypted enough.
    pub(super) fn count(&mut self, bytes: usize) -> io::Result<()> {
        let records = (bytes / RECORD + 1) as u64;
        let left = self.records_left.checked_sub(records);
        self.records_left = left.ok_or_else(|| io::Error::other(rustls::Error::EncryptError))?;
        Ok(())
    }
}

fn keys(
    version: Version,
    sequence: u64,
    secrets: &ConnectionTrafficSecrets,
) -> Result<Keys<'_>, rustls::Error> {
    let (cipher, key, iv) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            (Cipher::ChaCha20Poly1305, key, iv)
        }
        _ => return Err(rustls::Error::General("unknown secrets".to_owned())),
    };
    let mut nonce = [0; 12];
    nonce.copy_from_slice(iv.as_ref());
    if version == Version::Tls12 && cipher != Cipher::ChaCha20Poly1305 {
        fresh_nonces(&mut nonce);
    }
    Ok(Keys { version, cipher, key: key.as_ref(), iv: nonce, sequence })
}

/// Where the kernel counts nonces from, in TLS 1.2's AES-GCM: rustls has used `explicit ^ number`
/// for numbers far below 2^63, the kernel counts up. With the uppermost bit turned round and all
/// others 0 the two never meet (RFC 5288, section 3).
fn fresh_nonces(nonce: &mut [u8; 12]) {
    let explicit = &mut nonce[4..];
    explicit[0] = !explicit[0] & 0x80;
    explicit[1..].fill(0);
}

impl Conn {
    /// Hands TLS over to the kernel, which it stays with. On an error the connection is of no use.
    pub async fn hand_over(&self, ktls: &Ktls) -> Result<HandOver, NetError> {
        let Some(suite) = self.tls().map(|tls| tls.suite()) else { return Ok(HandOver::None) };
        let Some((version, cipher)) = suite.filter(|(v, c)| ktls.takes(*v, *c)) else {
            return Ok(HandOver::Kept);
        };
        self.flush().await?;
        let ready = self.tls().is_some_and(|tls| tls.is_between_records());
        if !ready || sys::ktls::attach(self.socket()).is_err() {
            return Ok(HandOver::Kept);
        }
        let Layer::Tls(tls) = self.layer.replace(Layer::Plain) else { return Ok(HandOver::None) };
        match Kernel::take(*tls, version, self.socket()) {
            Ok(kernel) => {
                self.layer.replace(Layer::Kernel(kernel));
                Ok(HandOver::Done)
            }
            Err(error) => {
                ktls.forget(version, cipher);
                tracing::warn!(?version, ?cipher, %error, "the kernel refuses TLS");
                // Nothing may go out in the clear.
                let _ = socket2::SockRef::from(&self.socket()).shutdown(Shutdown::Both);
                Err(error)
            }
        }
    }

    /// Counts what the socket has taken, where the kernel encrypts it.
    pub(super) fn count(&self, sent: usize) -> io::Result<()> {
        self.kernel().map_or(Ok(()), |mut kernel| kernel.count(sent))
    }

    /// Says goodbye on a connection that was handed over.
    pub(super) async fn take_leave(&self) {
        self.alert(AlertDescription::CloseNotify).await;
        let deaf = self.kernel().is_some_and(|kernel| kernel.is_deaf());
        let (begun, limit) = (Instant::now(), self.patience());
        // What comes after that stays unread: closing before the peer does would reset the
        // connection, and could take the answer with it.
        while deaf
            && begun.elapsed() < limit
            && matches!(sys::socket::has_ended(self.socket()), Ok(false))
        {
            monoio::time::sleep(LEAVE_PAUSE).await;
        }
    }

    /// Says goodbye, or what was wrong, on a connection that was handed over.
    ///
    /// The socket's half is not ended with it: a record that found no room may wait in the kernel,
    /// and would be lost.
    pub(super) async fn alert(&self, alert: AlertDescription) {
        let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
        // The next call, whichever it is, would fail with what a bad record left behind.
        let _ = socket2::SockRef::from(&self.socket()).take_error();
        // The first wait has what was written before leave first.
        let mut result = Err(io::ErrorKind::WouldBlock.into());
        while let Err(error) = result {
            if self.until_writable(error).await.is_err() {
                return;
            }
            result = sys::ktls::send_control(self.socket(), ALERT, &[level, alert.into()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonces_of_before_do_not_come_again() {
        for explicit in [0, 1, u64::MAX, u64::MAX >> 1, 1 << 63, 0x0123_4567_89AB_CDEF] {
            let mut nonce = [9; 12];
            nonce[4..].copy_from_slice(&u64::to_be_bytes(explicit));
            fresh_nonces(&mut nonce);
            assert_eq!(nonce[..4], [9; 4], "the salt stays");
            let start = nonce[4..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            // Those used differ in the uppermost bit from those to be used.
            let used = explicit ^ (RECORDS_MAX - 1);
            for next in [start, start + RECORDS_MAX] {
                assert_ne!(used >> 63, next >> 63, "{explicit:x}");
            }
        }
    }

    #[test]
    fn keys_are_worn_out_by_records() {
        let mut kernel = Kernel { records_left: 3, ended: false, goodbye: false };
        assert!(!kernel.takes_request());
        kernel.count(RECORD).unwrap();
        kernel.count(1).unwrap();
        kernel.count(1).unwrap_err();
        kernel.records_left = RECORDS_MAX;
        assert!(kernel.takes_request());
    }

    #[test]
    fn what_the_kernel_refused_is_not_tried_again() {
        let ktls = Ktls { suites: AtomicU8::new(0b11), why: "gone".to_owned() };
        assert_eq!(ktls.suites(), ["TLS 1.3 AES-128-GCM", "TLS 1.3 AES-256-GCM"]);
        ktls.forget(Version::Tls13, Cipher::Aes128Gcm);
        assert_eq!((ktls.suites(), ktls.why()), (vec!["TLS 1.3 AES-256-GCM"], None));
        ktls.forget(Version::Tls13, Cipher::Aes256Gcm);
        assert_eq!((ktls.suites(), ktls.why()), (vec![], Some("gone")));
    }
}
