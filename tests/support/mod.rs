//! What every integration test is made of: an origin, the real binary in a directory of its own,
//! and clients. Nothing here uses the crate under test: a bug in its parser must not hide in ours.
//!
//! Words: an *origin* is a stand-in upstream; a *route* is one of its paths; an *answer* is how a
//! route behaves once; a *gate* is where an origin stops until the test lets it go on. No test
//! sleeps to order events: it waits at gates and polls counters with a deadline.
#![allow(dead_code)] // each test binary uses a part of it

pub mod answer;
pub mod body;
pub mod ca;
pub mod certs;
pub mod client;
pub mod clock;
pub mod dns;
pub mod lab;
pub mod names;
pub mod nginx;
pub mod openssl;
pub mod origin;
pub mod parent;
pub mod proxy;
pub mod raw;
pub mod registry;
pub mod seccomp;
pub mod seed;
pub mod wire;

use std::time::{Duration, Instant};

/// How long a test waits for what must happen. Generous: it only costs time when a test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls `probe` until it gives a value; fails the test, naming `what`, when it never does.
pub fn wait_until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// With padding (RFC 4648, section 4).
pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, n| bits << 8 | u32::from(*three.get(n).unwrap_or(&0)));
        for n in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * n) & 63) as usize];
            out.push(if n <= three.len() { digit as char } else { '=' });
        }
    }
    out
}
