//! TLS records in the kernel (kTLS): a connected TCP socket that is given keys encrypts what is
//! written to it and decrypts what is read.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use zeroize::Zeroizing;

/// A version of TLS whose records the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// What encrypts records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-128-GCM.
    Aes128Gcm,
    /// AES-256-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Cipher {
    /// Bytes of its key.
    pub fn key_len(self) -> usize {
        match self {
            Cipher::Aes128Gcm => 16,
            Cipher::Aes256Gcm | Cipher::ChaCha20Poly1305 => 32,
        }
    }
}

/// The direction that keys are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What we write.
    Send,
    /// What we read.
    Receive,
}

/// The keys of one direction. Key and nonce are borrowed, to stay where they are overwritten.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The version.
    pub version: Version,
    /// The cipher.
    pub cipher: Cipher,
    /// Its key, as long as the cipher says.
    pub key: &'a [u8],
    /// The nonce as TLS derives it; of AES-GCM in TLS 1.2 the salt, then where the explicit part
    /// begins to count.
    pub iv: [u8; 12],
    /// The number of the next record.
    pub sequence: u64,
}

impl Keys<'_> {
    /// As `struct tls12_crypto_info_*` of `linux/tls.h`: version, cipher, nonce, key, salt, number,
    /// without padding.
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let version = match self.version {
            Version::Tls12 => libc::TLS_1_2_VERSION,
            Version::Tls13 => libc::TLS_1_3_VERSION,
        };
        let (cipher, salt_len) = match self.cipher {
            Cipher::Aes128Gcm => (libc::TLS_CIPHER_AES_GCM_128, 4),
            Cipher::Aes256Gcm => (libc::TLS_CIPHER_AES_GCM_256, 4),
            Cipher::ChaCha20Poly1305 => (libc::TLS_CIPHER_CHACHA20_POLY1305, 0),
        };
        let (salt, iv) = self.iv.split_at(salt_len);
        // Room for the longest: a vector that grows would leave a copy behind.
        let mut info = Zeroizing::new(Vec::with_capacity(64));
        info.extend_from_slice(&version.to_ne_bytes());
        info.extend_from_slice(&cipher.to_ne_bytes());
        info.extend_from_slice(iv);
        info.extend_from_slice(self.key);
        info.extend_from_slice(salt);
        info.extend_from_slice(&self.sequence.to_be_bytes());
        info
    }
}

/// Makes room for keys on a connected TCP socket (`TCP_ULP`). Until it has keys it works as before.
///
/// Fails where the kernel has no kTLS, or the module `tls` is not loaded and may not be.
pub fn attach(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls\0")
}

/// Gives the keys of one direction to the kernel (`TLS_TX`, `TLS_RX`).
pub fn set_keys(socket: BorrowedFd<'_>, direction: Direction, keys: &Keys<'_>) -> io::Result<()> {
    let name = match direction {
        Direction::Send => libc::TLS_TX,
        Direction::Receive => libc::TLS_RX,
    };
    set_option(socket, libc::SOL_TLS, name, &keys.encode())
}

fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: pointer and length describe `value`, which the kernel only reads, within the call.
    let code =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives into the spare capacity of `buf`, at most `max` bytes of one kind of record.
///
/// Returns how many, and the kind: none at the end of the stream, and where the kernel has no keys.
/// `WouldBlock` when nothing is there.
pub fn recv(
    socket: BorrowedFd<'_>,
    buf: &mut Vec<u8>,
    max: usize,
) -> io::Result<(usize, Option<u8>)> {
    let spare = buf.spare_capacity_mut();
    let mut part =
        libc::iovec { iov_base: spare.as_mut_ptr().cast(), iov_len: spare.len().min(max) };
    let mut control = Control::default();
    let mut message = control.message(&mut part);
    // SAFETY: the message names spare capacity that `buf` owns and nobody else uses, and `control`.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel wrote `got` bytes, at most `iov_len`, right behind the initialised part.
    unsafe { buf.set_len(buf.len() + got) };
    // SAFETY: the kernel has set what `message` says of `control`, which still lives.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message).as_ref() };
    let kind = header.filter(|header| {
        header.cmsg_level == libc::SOL_TLS && header.cmsg_type == libc::TLS_GET_RECORD_TYPE
    });
    // SAFETY: a header of this kind is followed by one byte.
    Ok((got, kind.map(|header| unsafe { *libc::CMSG_DATA(header) })))
}

/// Sends `bytes` as a record of another kind than data (`TLS_SET_RECORD_TYPE`), after all that was
/// sent before. `WouldBlock` when the socket is full.
pub fn send_control(socket: BorrowedFd<'_>, kind: u8, bytes: &[u8]) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control::default();
    let mut message = control.message(&mut part);
    // SAFETY: a calculation.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(1) } as _;
    // SAFETY: `control` has room for one header and the byte behind it, and nobody else uses it.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_TLS;
        (*header).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*header).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(header) = kind;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message names `bytes` and `control`, which the kernel only reads in the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Whether [`recv`] failed because of what the peer sent: a record that is too long, or that the
/// keys do not fit.
pub fn is_bad_record(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADMSG | libc::EMSGSIZE))
}

/// Room for what the kernel says beside a message.
#[derive(Default)]
struct Control([u64; 8]);

impl Control {
    fn message(&mut self, part: &mut libc::iovec) -> libc::msghdr {
        // SAFETY: a zeroed msghdr is a valid empty one.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = part;
        message.msg_iovlen = 1;
        message.msg_control = self.0.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&self.0) as _;
        message
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const CIPHERS: [Cipher; 3] = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];
    const KEY: [u8; 32] = [7; 32];

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0, theirs)
    }

    fn keys(version: Version, cipher: Cipher) -> Keys<'static> {
        let key = &KEY[..cipher.key_len()];
        Keys { version, cipher, key, iv: *b"saltexplicit", sequence: 0x0102_0304 }
    }

    #[test]
    fn keys_lie_as_the_kernel_reads_them() {
        let sizes = [
            size_of::<libc::tls12_crypto_info_aes_gcm_128>(),
            size_of::<libc::tls12_crypto_info_aes_gcm_256>(),
            size_of::<libc::tls12_crypto_info_chacha20_poly1305>(),
        ];
        for (cipher, size) in CIPHERS.into_iter().zip(sizes) {
            let info = keys(Version::Tls13, cipher).encode();
            assert_eq!(info.len(), size, "{cipher:?}");
            assert_eq!(info[..2], 0x0304_u16.to_ne_bytes());
            assert!(info.ends_with(&[0, 0, 0, 0, 1, 2, 3, 4]));
            let nonce = match cipher {
                Cipher::ChaCha20Poly1305 => &b"saltexplicit"[..],
                _ => b"explicit",
            };
            assert_eq!(&info[4..4 + nonce.len()], nonce);
            assert_eq!(info[4 + nonce.len()..][..cipher.key_len()], KEY[..cipher.key_len()]);
        }
        let info = keys(Version::Tls12, Cipher::Aes128Gcm).encode();
        assert_eq!((&info[..2], &info[28..32]), (&0x0303_u16.to_ne_bytes()[..], &b"salt"[..]));
    }

    #[test]
    fn records_of_both_kinds_come_through_where_the_kernel_has_ktls() {
        for version in [Version::Tls12, Version::Tls13] {
            for cipher in CIPHERS {
                let (ours, theirs) = pair();
                let keys = keys(version, cipher);
                let missing = set_keys(ours.as_fd(), Direction::Send, &keys).unwrap_err();
                assert_eq!(missing.raw_os_error(), Some(libc::ENOPROTOOPT), "room comes first");
                if let Err(error) = attach(ours.as_fd()) {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{error}");
                    return;
                }
                attach(theirs.as_fd()).unwrap();
                set_keys(ours.as_fd(), Direction::Send, &keys).unwrap();
                set_keys(theirs.as_fd(), Direction::Receive, &keys).unwrap();
                (&ours).write_all(b"data").unwrap();
                assert_eq!(send_control(ours.as_fd(), 21, &[1, 0]).unwrap(), 2);
                for (kind, expected) in [(23, &b"data"[..]), (21, &[1, 0])] {
                    let mut buf = Vec::with_capacity(16);
                    let got = loop {
                        match recv(theirs.as_fd(), &mut buf, 16) {
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                                std::thread::yield_now();
                            }
                            got => break got.unwrap(),
                        }
                    };
                    assert_eq!((got, &buf[..]), ((expected.len(), Some(kind)), expected));
                }
            }
        }
    }

    #[test]
    fn a_bad_record_is_told_from_a_broken_connection() {
        assert!(is_bad_record(&io::Error::from_raw_os_error(libc::EBADMSG)));
        assert!(!is_bad_record(&io::Error::from_raw_os_error(libc::ECONNRESET)));
    }

    #[test]
    fn without_keys_there_are_bytes_alone() {
        let (ours, mut theirs) = pair();
        let mut buf = Vec::with_capacity(4);
        let nothing = recv(ours.as_fd(), &mut buf, 4).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(send_control(ours.as_fd(), 21, b"abc").unwrap(), 3);
        let mut got = [0; 3];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"abc");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"abcdef").unwrap();
        assert_eq!(recv(ours.as_fd(), &mut buf, 2).unwrap(), (2, None));
        assert_eq!(recv(ours.as_fd(), &mut buf, 9).unwrap(), (2, None), "what there is room for");
        drop(theirs);
        buf.reserve(2);
        assert_eq!(recv(ours.as_fd(), &mut buf, 2).unwrap(), (2, None));
        assert_eq!(buf, b"abcdef");
        buf.reserve(1);
        assert_eq!(recv(ours.as_fd(), &mut buf, 1).unwrap(), (0, None));
        assert!(attach(ours.as_fd()).is_err(), "no TCP");
    }
}
