//! How many connections each client has open.
//!
//! What must stay true: a client without connections has no row, so there are at most as many rows
//! as connections.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections of all clients, for the whole process.
#[derive(Default)]
pub struct Clients {
    rows: Mutex<HashMap<IpAddr, Row>>,
}

#[derive(Default)]
struct Row {
    open: usize,
    /// Whether the log has said that it has too many.
    told: bool,
}

/// Why a client gets no further connection.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMany {
    /// Whether nobody was told yet, since it had none open.
    pub first: bool,
}

/// One connection's place; given back when it is dropped.
pub struct Place {
    clients: Arc<Clients>,
    client: IpAddr,
}

impl Clients {
    /// Takes a place for a connection from this address, where `most` are for each.
    pub fn enter(self: &Arc<Clients>, address: IpAddr, most: usize) -> Result<Place, TooMany> {
        let client = client(address);
        let mut rows = self.rows();
        let row = rows.entry(client).or_default();
        if row.open >= most {
            return Err(TooMany { first: !std::mem::replace(&mut row.told, true) });
        }
        row.open += 1;
        Ok(Place { clients: Arc::clone(self), client })
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<IpAddr, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut rows = self.clients.rows();
        if let Some(row) = rows.get_mut(&self.client) {
            row.open -= 1;
            if row.open == 0 {
                rows.remove(&self.client);
            }
        }
    }
}

/// Whom an address stands for. A host has the whole of its /64 to choose addresses from, so that is
/// what counts; but not where a network has one /64 for all its hosts: link-local and unique local
/// addresses (RFC 4291 2.5.6, RFC 4193) count one by one.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) if !v6.is_unique_local() && !v6.is_unicast_link_local() => {
            Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn each_client_has_so_many_places_and_gets_them_back() {
        let clients = Arc::new(Clients::default());
        let first = clients.enter(ip("192.0.2.1"), 2).ok().unwrap();
        let second = clients.enter(ip("::ffff:192.0.2.1"), 2).ok().unwrap();
        assert_eq!(clients.enter(ip("192.0.2.1"), 2).err(), Some(TooMany { first: true }));
        assert_eq!(clients.enter(ip("192.0.2.1"), 2).err(), Some(TooMany { first: false }));
        let other = clients.enter(ip("192.0.2.2"), 2).ok().unwrap();
        drop(first);
        let third = clients.enter(ip("192.0.2.1"), 2).ok().unwrap();
        assert_eq!(clients.rows().len(), 2);
        drop((second, third, other));
        assert!(clients.rows().is_empty(), "nobody is remembered");
    }

    #[test]
    fn a_network_counts_as_one_client_where_a_host_has_it_to_itself() {
        for (one, other, same) in [
            ("2001:db8::1", "2001:db8::ffff:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("fd00::1", "fd00::2", false),
            ("fe80::1", "fe80::2", false),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
        ] {
            assert_eq!(client(ip(one)) == client(ip(other)), same, "{one} {other}");
        }
    }
}
