//! What is our own: the listeners, never a destination and never our own parent; and the name by
//! which a loop through ourselves is noticed.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

use crate::config::{Config, ConfigError};
use crate::http::{Fields, Version};
use crate::policy::Listeners;

/// Our name in `Via`, which no other process is likely to have.
pub struct Pseudonym {
    name: String,
    /// What is put into a message that came as HTTP/1.0, and as HTTP/1.1: one of them is in every
    /// answer.
    via: [String; 2],
}

impl Pseudonym {
    /// From a token (RFC 9110, section 7.6.3).
    pub fn new(name: String) -> Pseudonym {
        let via = ["1.0", "1.1"].map(|version| format!("{version} {name}"));
        Pseudonym { name, via }
    }

    /// What our own `Via` says of a message that came in this version.
    pub(super) fn via(&self, received: Version) -> &str {
        let [first, second] = &self.via;
        match received {
            Version::Http10 => first,
            Version::Http11 => second,
        }
    }

    /// Whether a request with these fields has been through this proxy before.
    pub(super) fn is_in(&self, fields: &Fields) -> bool {
        fields.tokens("via").any(|via| {
            let by = via.split_ascii_whitespace().nth(1);
            by.is_some_and(|by| by.eq_ignore_ascii_case(&self.name))
        })
    }
}

/// Whether a connection to `address` would end at one of `listeners` of this machine.
pub(super) fn is_listener(listeners: &Listeners, address: SocketAddr) -> bool {
    listeners.include(address, |ip| is_here(ip.to_canonical()))
}

/// Whether this machine has `address`: then a socket towards it leaves from that very address.
fn is_here(address: IpAddr) -> bool {
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

/// Refuses a parent proxy that is this proxy, before anything listens.
///
/// A name that does not resolve, or also stands for others, passes: whoever connects looks again.
///
/// # Errors
/// Names `upstream.proxy`.
pub fn refuse_own_parent(config: &Config) -> Result<(), ConfigError> {
    let Some(parent) = &config.upstream.proxy else { return Ok(()) };
    let (port, api_port) = (config.proxy.port, config.proxy.api_port);
    if parent.port != port && parent.port != api_port {
        return Ok(());
    }
    let proxy = config.proxy.bind.iter().map(|ip| SocketAddr::new(*ip, port));
    let admin = SocketAddr::new(config.proxy.api_bind, api_port);
    let listeners = Listeners { bound: proxy.chain([admin]).collect() };
    let addresses = (&*parent.host, parent.port).to_socket_addrs();
    let mut addresses = addresses.into_iter().flatten().peekable();
    let is_known = addresses.peek().is_some();
    if is_known && addresses.all(|address| is_listener(&listeners, address)) {
        let itself = format!("{}, which is this proxy itself", parent.authority());
        return Err(config.error("upstream.proxy", &itself, "another proxy"));
    }
    Ok(())
}
