//! Names to addresses, by the system's resolver on a helper thread, remembered briefly.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::NetError;
use crate::http::Host;

/// How long an answer is used. Short: a registry's CDN moves, and the system caches anyway.
const KEPT: Duration = Duration::from_secs(10);

/// Names remembered on one core.
const NAMES_MAX: usize = 1024;

/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 16;

/// When it was given, and the addresses.
type Answer = (Instant, Vec<IpAddr>);

thread_local! {
    static ANSWERS: RefCell<HashMap<Box<str>, Answer>> = RefCell::default();
}

/// The addresses of `host`, in the order to try them: the families by turns, as RFC 8305 section 4
/// asks, beginning with the one the system prefers.
pub async fn resolve(host: &Host, limit: Duration) -> Result<Vec<IpAddr>, NetError> {
    let name = match host {
        Host::V4(address) => return Ok(vec![IpAddr::V4(*address)]),
        Host::V6(address) => return Ok(vec![IpAddr::V6(*address)]),
        Host::Name(name) => name,
    };
    let known = ANSWERS.with_borrow(|answers| {
        let (at, addresses) = answers.get(name)?;
        (at.elapsed() < KEPT).then(|| addresses.clone())
    });
    if let Some(addresses) = known {
        return Ok(addresses);
    }
    let asked = name.clone();
    let ask = monoio::spawn_blocking(move || {
        let found = (&*asked, 0).to_socket_addrs()?;
        Ok::<_, std::io::Error>(found.map(|address: SocketAddr| address.ip()).collect::<Vec<_>>())
    });
    let unresolved = |why: String| NetError::Resolve { name: name.clone(), why: why.into() };
    let found = match monoio::time::timeout(limit, ask).await {
        Err(_) => return Err(NetError::TimedOut { what: "the name look-up", limit }),
        Ok(Err(_)) => return Err(NetError::Busy),
        Ok(Ok(Err(error))) => return Err(unresolved(error.to_string())),
        Ok(Ok(Ok(found))) => by_turns(&found),
    };
    if found.is_empty() {
        return Err(unresolved("it has no address".to_owned()));
    }
    ANSWERS.with_borrow_mut(|answers| {
        if answers.len() >= NAMES_MAX {
            answers.retain(|_, (at, _)| at.elapsed() < KEPT);
        }
        if answers.len() < NAMES_MAX {
            answers.insert(name.clone(), (Instant::now(), found.clone()));
        }
    });
    Ok(found)
}

/// Forgets the answer for a name none of whose addresses could be reached.
pub(super) fn forget(host: &Host) {
    if let Host::Name(name) = host {
        ANSWERS.with_borrow_mut(|answers| answers.remove(name));
    }
}

fn by_turns(found: &[IpAddr]) -> Vec<IpAddr> {
    let Some(first) = found.first() else { return Vec::new() };
    let (preferred, others): (Vec<IpAddr>, Vec<IpAddr>) =
        found.iter().copied().partition(|address| address.is_ipv4() == first.is_ipv4());
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let mut ordered = Vec::new();
    loop {
        let before = ordered.len();
        ordered.extend(preferred.next());
        ordered.extend(others.next());
        if ordered.len() == before || ordered.len() >= ADDRESSES_MAX {
            ordered.truncate(ADDRESSES_MAX);
            return ordered;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_the_preferred_one_begins() {
        let found = addresses(&["2001:db8::1", "2001:db8::2", "192.0.2.1"]);
        assert_eq!(by_turns(&found), addresses(&["2001:db8::1", "192.0.2.1", "2001:db8::2"]));
        let found = addresses(&["192.0.2.1", "192.0.2.2"]);
        assert_eq!(by_turns(&found), found);
        assert!(by_turns(&[]).is_empty());
    }

    #[test]
    fn no_name_fills_the_list() {
        let found: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        assert_eq!(by_turns(&found).len(), ADDRESSES_MAX);
    }
}
