//! Bodies: deterministic from a seed, of any size, never held in memory; and their digests.

use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest, Sha256, Sha512};

/// Length of the pseudo-random block a made body repeats. Odd, so that repeats never line up with
/// pages; each page carries its own number, so that no two stretches of a body are alike.
const BLOCK: usize = 262_147;
const PAGE: u64 = 4096;

/// The bytes of one object.
#[derive(Clone)]
pub enum Body {
    /// Given bytes.
    Bytes(Arc<[u8]>),
    /// `len` bytes that follow from a seed.
    Made { seed: u64, len: u64, block: Arc<[u8]> },
}

impl Body {
    /// `len` bytes that follow from `seed`.
    pub fn made(seed: u64, len: u64) -> Body {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut block = Vec::with_capacity(BLOCK + 8);
        while block.len() < BLOCK {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        block.truncate(BLOCK);
        Body::Made { seed, len, block: block.into() }
    }

    /// These bytes.
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Body {
        Body::Bytes(bytes.as_ref().into())
    }

    pub fn len(&self) -> u64 {
        match self {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Made { len, .. } => *len,
        }
    }

    /// Fills `out` with the bytes from `offset` on; what lies past the end is left alone.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> usize {
        let count = (self.len().saturating_sub(offset)).min(out.len() as u64) as usize;
        let out = &mut out[..count];
        match self {
            Body::Bytes(bytes) => out.copy_from_slice(&bytes[offset as usize..][..count]),
            Body::Made { seed, block, .. } => {
                let mut at = 0;
                while at < count {
                    let from = ((offset + at as u64) % BLOCK as u64) as usize;
                    let take = (BLOCK - from).min(count - at);
                    out[at..at + take].copy_from_slice(&block[from..from + take]);
                    at += take;
                }
                stamp(*seed, offset, out);
            }
        }
        count
    }

    /// Bytes `from..to` in memory.
    pub fn slice(&self, from: u64, to: u64) -> Vec<u8> {
        let mut out = vec![0; (to - from) as usize];
        let count = self.read_at(from, &mut out);
        out.truncate(count);
        out
    }

    /// The whole in memory.
    pub fn to_vec(&self) -> Vec<u8> {
        self.slice(0, self.len())
    }

    /// SHA-256 of the whole, lower-case hex.
    pub fn sha256(&self) -> String {
        self.hash::<Sha256>()
    }

    /// SHA-512 of the whole, lower-case hex.
    pub fn sha512(&self) -> String {
        self.hash::<Sha512>()
    }

    /// `sha256:<hex>`, as URLs and headers name it.
    pub fn digest(&self) -> String {
        format!("sha256:{}", self.sha256())
    }

    fn hash<H: Digest>(&self) -> String {
        let mut hasher = H::new();
        let mut buffer = vec![0; 256 << 10];
        let mut at = 0;
        while at < self.len() {
            let count = self.read_at(at, &mut buffer);
            hasher.update(&buffer[..count]);
            at += count as u64;
        }
        hex(&hasher.finalize())
    }
}

/// Writes each page's number over its first eight bytes, as far as they lie in `out`.
fn stamp(seed: u64, offset: u64, out: &mut [u8]) {
    let end = offset + out.len() as u64;
    let mut page = offset / PAGE;
    while page * PAGE < end {
        let bytes = (page ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes();
        for (i, byte) in bytes.iter().enumerate() {
            let position = page * PAGE + i as u64;
            if (offset..end).contains(&position) {
                out[(position - offset) as usize] = *byte;
            }
        }
        page += 1;
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// SHA-256 of `bytes`, lower-case hex.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
