//! Names of stored bytes. A [`Key`] says which entry is meant; a [`Digest`] says what the bytes of
//! that entry must hash to. They are different types and never mixed up: a key made from a URL
//! promises nothing about the bytes. An [`Image`] is what people call what they pull.

mod image;

use std::fmt;

use sha2::{Digest as _, Sha256, Sha512};

pub use self::image::{Image, NAME_MAX, Reference, Repository, TAG_MAX, is_name, is_tag};

/// Hash functions the OCI image specification registers for digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256: what every registry uses.
    Sha256,
    /// SHA-512: legal and rare.
    Sha512,
}

impl Algorithm {
    /// The name as it stands before the colon of a digest, and as a folder's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }
}

/// A content digest (OCI image specification, "Digests").
///
/// SHA-512 is boxed so that a million SHA-256 keys do not pay for it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// 32 bytes.
    Sha256([u8; 32]),
    /// 64 bytes.
    Sha512(Box<[u8; 64]>),
}

impl Digest {
    /// Reads `sha256:<64 hex>` or `sha512:<128 hex>`, lower case only, as the specification asks.
    pub fn parse(text: &str) -> Option<Digest> {
        let (algorithm, hex) = text.split_once(':')?;
        match algorithm {
            "sha256" => Digest::from_hex(Algorithm::Sha256, hex),
            "sha512" => Digest::from_hex(Algorithm::Sha512, hex),
            _ => None,
        }
    }

    /// Reads the part behind the colon.
    pub fn from_hex(algorithm: Algorithm, hex: &str) -> Option<Digest> {
        match algorithm {
            Algorithm::Sha256 => {
                let mut bytes = [0; 32];
                unhex(hex, &mut bytes).then_some(Digest::Sha256(bytes))
            }
            Algorithm::Sha512 => {
                let mut bytes = [0; 64];
                unhex(hex, &mut bytes).then(|| Digest::Sha512(Box::new(bytes)))
            }
        }
    }

    /// The digest of these bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Which hash function this is a value of.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Digest::Sha256(_) => Algorithm::Sha256,
            Digest::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash value, 32 or 64 bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Digest::Sha256(bytes) => bytes,
            Digest::Sha512(bytes) => &bytes[..],
        }
    }

    /// The part behind the colon, lower case.
    pub fn hex(&self) -> String {
        hex(self.bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names a cache entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The bytes with this digest, wherever they came from.
    Digest(Digest),
    /// SHA-256 of a URL: that URL's answer.
    Url([u8; 32]),
}

impl Key {
    /// The key of a URL that names no digest: scheme, host, port, path and query together.
    pub fn for_url(scheme: &str, host: &str, port: u16, path_and_query: &str) -> Key {
        let mut hasher = Sha256::new();
        hasher.update(format!("{scheme}://{host}:{port}{path_and_query}"));
        Key::Url(hasher.finalize().into())
    }

    /// The bytes that name the entry, in hex, lower case.
    pub fn hex(&self) -> String {
        match self {
            Key::Digest(digest) => digest.hex(),
            Key::Url(bytes) => hex(bytes),
        }
    }

    /// Whether [`Key::hex`] begins with `digits`; makes no text of it.
    pub fn begins_with(&self, digits: &str) -> bool {
        let bytes = match self {
            Key::Digest(digest) => digest.bytes(),
            Key::Url(bytes) => bytes,
        };
        let mut own = bytes.iter().flat_map(hex_digits);
        digits.bytes().all(|digit| own.next() == Some(digit))
    }
}

/// Computes a [`Digest`] over bytes as they pass.
pub struct Hasher(State);

enum State {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// A hasher that has seen nothing yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Box::default()),
        })
    }

    /// Takes in the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            State::Sha512(hasher) => Digest::Sha512(Box::new(hasher.finalize().into())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(hex_digits).map(char::from).collect()
}

fn hex_digits(byte: &u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// What a hexadecimal digit stands for; 255 for every other byte.
const NIBBLES: [u8; 256] = {
    let mut nibbles = [u8::MAX; 256];
    let mut digit = 0;
    while digit < 16 {
        nibbles[b"0123456789abcdef"[digit] as usize] = digit as u8;
        digit += 1;
    }
    nibbles
};

fn unhex(text: &str, out: &mut [u8]) -> bool {
    let text = text.as_bytes();
    if text.len() != out.len() * 2 {
        return false;
    }
    let mut all = 0;
    for (slot, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
        all |= high | low;
        *slot = high << 4 | low;
    }
    all < 16
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digests_read_and_print() {
        let digest = Digest::parse(EMPTY).unwrap();
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest.algorithm(), Algorithm::Sha256);
        let long = format!("sha512:{}", "0f".repeat(64));
        assert_eq!(Digest::parse(&long).unwrap().to_string(), long);
    }

    #[test]
    fn what_is_no_digest_is_refused() {
        let upper = EMPTY.to_uppercase();
        let short = &EMPTY[..EMPTY.len() - 1];
        let longer = format!("{EMPTY}0");
        for text in ["", "sha256", "sha256:", "md5:00", &upper, short, &longer, "sha256:zz"] {
            assert_eq!(Digest::parse(text), None, "{text}");
        }
    }

    #[test]
    fn keys_are_found_by_their_first_digits() {
        let key = Key::Digest(Digest::parse(EMPTY).unwrap());
        for (digits, found) in [("", true), ("e3b", true), ("e3b0c", true), ("e3c", false)] {
            assert_eq!(key.begins_with(digits), found, "{digits}");
        }
        assert!(key.begins_with(&key.hex()) && !key.begins_with(&format!("{}0", key.hex())));
    }

    #[test]
    fn hashing_in_pieces_is_hashing_at_once() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let mut pieces = Hasher::new(algorithm);
            pieces.update(b"a");
            pieces.update(b"bc");
            let mut whole = Hasher::new(algorithm);
            whole.update(b"abc");
            assert_eq!(pieces.finish(), whole.finish());
        }
        assert_eq!(Hasher::new(Algorithm::Sha256).finish().to_string(), EMPTY);
    }

    #[test]
    fn every_part_of_a_url_counts() {
        let base = Key::for_url("https", "a", 443, "/x?y");
        assert_eq!(base, Key::for_url("https", "a", 443, "/x?y"));
        for other in [
            Key::for_url("http", "a", 443, "/x?y"),
            Key::for_url("https", "b", 443, "/x?y"),
            Key::for_url("https", "a", 444, "/x?y"),
            Key::for_url("https", "a", 443, "/x"),
        ] {
            assert_ne!(base, other);
        }
    }
}
