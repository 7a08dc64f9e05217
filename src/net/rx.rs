//! What was read of a stream and not yet used. The buffer is given back as soon as it is empty, and
//! taken again for the next read on the same thread: an idle connection holds none.

use std::cell::RefCell;

/// A larger buffer is not kept for the next.
const SPARE_MAX: usize = 64 * 1024;

thread_local! {
    /// The buffer that was given back last.
    static SPARE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes read and not used yet: those from `start` on.
#[derive(Default)]
pub(super) struct Rx {
    pub(super) buf: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: Option<End>,
}

/// How the peer's half of the stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As the protocol asks.
    Clean,
    /// TLS without its closing alert: the end may have been cut off by somebody else.
    Cut,
}

impl Rx {
    pub(super) fn unused(&self) -> &[u8] {
        self.buf.get(self.start..).unwrap_or_default()
    }

    pub(super) fn consume(&mut self, len: usize) {
        self.start = (self.start + len).min(self.buf.len());
        if self.start == self.buf.len() {
            give_back(std::mem::take(&mut self.buf));
            self.start = 0;
        }
    }
}

/// An empty buffer, with the room of the one that was given back last.
pub(super) fn spare() -> Vec<u8> {
    SPARE.take()
}

/// Keeps the room of a buffer that is used up.
pub(super) fn give_back(mut buf: Vec<u8>) {
    if (1..=SPARE_MAX).contains(&buf.capacity()) {
        buf.clear();
        SPARE.set(buf);
    }
}
