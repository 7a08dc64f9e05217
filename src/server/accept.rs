//! Connections taken in, as many as the limits allow.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use monoio::io::Canceller;
use monoio::net::TcpListener;
use socket2::Socket;

use super::clients::Clients;
use crate::admin::Admin;
use crate::net::{Conn, Either, race};
use crate::proxy::{self, Desk, Drain, guarded};
use crate::stats::Stats;

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4096;

/// Pause after an accept that failed, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Takes in the connections of one listener until it is time to stop.
pub async fn accept_clients(desk: Rc<Desk>, listener: TcpListener, clients: Arc<Clients>) {
    let drain = Rc::clone(&desk.worker().drain);
    accept(&drain, listener, async |conn: Conn| {
        let worker = desk.worker();
        let (stats, limits) = (Arc::clone(&worker.stats), &worker.limits);
        let open = || stats.connections.load(Ordering::Relaxed);
        if open() >= limits.max_connections as u64 {
            Stats::add(&stats.overflowed, 1);
            return;
        }
        let place = match clients.enter(conn.peer().ip(), limits.max_connections_per_client) {
            Ok(place) => place,
            Err(too_many) => {
                Stats::add(&stats.limited_per_client, 1);
                if too_many.first {
                    tracing::warn!(client = %conn.peer().ip(),
                        "limits.max_connections_per_client is reached: closing further ones");
                }
                return;
            }
        };
        Stats::add(&stats.connections, 1);
        let (serving, counted) = (Rc::clone(&desk), Arc::clone(&stats));
        monoio::spawn(async move {
            guarded(proxy::serve(serving, conn)).await;
            drop(place);
            Stats::sub(&counted.connections, 1);
        });
        let is_full = || {
            let most = desk.worker().limits.connections_served;
            most.is_some_and(|most| open() >= most as u64)
        };
        while is_full() && !drain.has_begun() {
            monoio::time::sleep(ACCEPT_PAUSE).await;
        }
    })
    .await;
}

/// Takes in the connections of the admin listener.
pub async fn accept_admin(admin: Rc<Admin>, listener: TcpListener) {
    let drain = Rc::clone(&admin.drain);
    let open = Rc::new(Cell::new(0));
    accept(&drain, listener, async |conn: Conn| {
        if open.get() >= admin.live.config().limits.max_admin_connections {
            Stats::add(&admin.stats.limited_admin, 1);
            return;
        }
        open.set(open.get() + 1);
        let (serving, open) = (Rc::clone(&admin), Rc::clone(&open));
        monoio::spawn(async move {
            guarded(serving.serve(conn)).await;
            open.set(open.get() - 1);
        });
    })
    .await;
}

/// Has a bound socket listen.
pub fn listen(socket: Socket, nonblocking: bool) -> io::Result<TcpListener> {
    socket.set_nonblocking(nonblocking)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(drain: &Drain, listener: TcpListener, each: impl AsyncFn(Conn)) {
    let mut canceller = Canceller::new();
    let mut complained = false;
    while !drain.has_begun() {
        let mut next = pin!(listener.cancelable_accept(canceller.handle()));
        let accepted = match race(next.as_mut(), drain.begun()).await {
            Either::Left(accepted) => accepted,
            // A connection that the kernel had taken in already is served like those before it.
            Either::Right(()) => {
                canceller = canceller.cancel();
                next.await
            }
        };
        match accepted {
            Ok((io, peer)) => {
                complained = false;
                each(Conn::plain(io, peer, Duration::from_secs(1))).await;
            }
            Err(_) if drain.has_begun() => {}
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    tracing::error!(%error, "connections can't be accepted");
                }
                monoio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
