//! The proxy: one client connection after another, one request after another.
//!
//! Only this layer knows policy, cache and net together, says whose fault a failure is, and picks a
//! status. `session` loops over a connection's requests; `exchange` chooses a request's route: to the
//! entry (`deliver`), into a new one (`store`), past the cache (`pass`), or into a `tunnel`.

mod answer;
mod deliver;
mod drain;
mod exchange;
mod fetch;
mod pass;
mod session;
mod store;
mod tunnel;
mod url;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use self::answer::Reply;
pub use self::drain::Drain;
pub use self::session::serve;
use crate::cache::Cache;
use crate::http::{HeadLimits, Host};
use crate::net::{Ca, Dialer};
use crate::policy::{Listeners, Policy};
use crate::stats::Stats;

/// Limits of the proxy, from the configuration.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of heads, both sides.
    pub heads: HeadLimits,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// A client's silence, between requests and within one.
    pub idle_timeout: Duration,
    /// An upstream's silence.
    pub read_timeout: Duration,
    /// Redirects followed for one request.
    pub max_redirects: u32,
    /// Resumptions of one fill.
    pub retries: u32,
}

/// Everything a request needs, on one core.
pub struct Worker {
    /// The rules; a clone of its own for each core.
    pub policy: Policy,
    /// What is stored.
    pub cache: Cache,
    /// The counters.
    pub stats: Arc<Stats>,
    /// Connections upstream.
    pub dialer: Dialer,
    /// Certificates for opened TLS.
    pub ca: Arc<Ca>,
    /// The limits.
    pub limits: Limits,
    /// Our own listeners: never a destination.
    pub listeners: Vec<SocketAddr>,
    /// Our name in `Via`, by which a loop through ourselves is noticed.
    pub pseudonym: Arc<str>,
    /// Says when to stop.
    pub drain: Rc<Drain>,
}

impl Worker {
    /// Whether `address`, that `host` resolved to, may be connected to. `listed`: only addresses of
    /// the allowlist. The error is a sentence for the client.
    fn permit(&self, host: &Host, address: SocketAddr, listed: bool) -> Result<(), Box<str>> {
        self.policy
            .address_allowed(host, address, listed)
            .map_err(|refusal| Box::from(refusal.message))?;
        if self.is_own_listener(address) {
            return Err(format!("{address} is this proxy itself").into());
        }
        Ok(())
    }

    fn is_own_listener(&self, address: SocketAddr) -> bool {
        if !self.listeners.iter().any(|own| own.port() == address.port()) {
            return false;
        }
        let own = address.ip().to_canonical();
        let machine = if is_own_address(own) { vec![own] } else { Vec::new() };
        Listeners { bound: self.listeners.clone(), machine }.include(address)
    }
}

/// Whether this machine has `address`: then a socket towards it leaves from that very address.
fn is_own_address(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0; 16].into(),
    };
    UdpSocket::bind((any, 0))
        .and_then(|socket| {
            // No packet is sent: connecting a datagram socket only chooses a route.
            socket.connect((address, 9))?;
            socket.local_addr()
        })
        .is_ok_and(|local| local.ip() == address)
}
