//! Two-way copy: bytes of both peers to each other, until both have ended.

use super::{Conn, NetError, both};

/// Bytes in flight in each direction.
const BUFFER: usize = 64 * 1024;

/// A read of at least so many bytes shows a direction that is busy.
const BUSY: usize = 4 * 1024;

/// Bytes relayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relayed {
    /// From the first peer to the second.
    pub up: u64,
    /// From the second peer to the first.
    pub down: u64,
}

/// Copies between `client` and `upstream` until both ends have been seen and passed on.
///
/// A direction may be silent for as long as the other one is not: each connection's patience is an
/// idle limit of the pair, checked through `progress`.
pub async fn relay(client: &Conn, upstream: &Conn) -> (Relayed, Result<(), NetError>) {
    let (up, down) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let moved = || up.get() + down.get();
    let result =
        both(copy(client, upstream, &up, &moved), copy(upstream, client, &down, &moved)).await;
    (Relayed { up: up.get(), down: down.get() }, result.map(drop))
}

async fn copy(
    from: &Conn,
    to: &Conn,
    count: &std::cell::Cell<u64>,
    moved: &dyn Fn() -> u64,
) -> Result<(), NetError> {
    let mut buf = Vec::new();
    loop {
        let seen = moved();
        match from.read(&mut buf, BUFFER).await {
            Ok(0) => {
                to.finish().await;
                return Ok(());
            }
            Ok(got) => {
                to.write(&buf).await?;
                count.set(count.get() + got as u64);
                buf.clear();
                // A busy direction gets room for large reads; a quiet one holds nothing, so that
                // thousands of idle tunnels cost no buffers.
                if got >= BUSY {
                    buf.reserve(BUFFER);
                } else {
                    buf = Vec::new();
                }
            }
            // The other direction moved meanwhile: the tunnel is alive.
            Err(NetError::TimedOut { .. }) if moved() != seen => {}
            Err(error) => return Err(error),
        }
    }
}
