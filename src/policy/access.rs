//! Which clients, hosts and addresses are served.
//!
//! An address is judged in every form it has: an IPv6 address that carries an IPv4 address (mapped,
//! compatible, NAT64, 6to4) is denied where either of the two is. For what *allows*, only the
//! mapped form counts as the IPv4 address it is: the others reach it over a machine between.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::{Policy, covers};
use crate::config::{Config, HostPattern, Ports};
use crate::http::{Host, Scheme};

/// What is not done for this client, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The error code of the OCI distribution specification.
    pub code: &'static str,
    /// One sentence in ASCII, without line breaks: it is shown in bodies and in status lines.
    pub message: String,
}

impl Refusal {
    fn new(message: String) -> Refusal {
        Refusal { code: "DENIED", message }
    }
}

/// What the rules say about a destination before its addresses are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostVerdict {
    /// Any of its addresses may be dialled that `address_allowed` allows with `listed` true.
    Allowed,
    /// Only addresses in `allowlist.ips`: ask `address_allowed` with `listed` false.
    ByAddress,
    /// Not at all.
    Refused(Refusal),
}

/// Where the proxy itself listens, known once it does. Connections there are refused whatever the
/// configuration says: they would be the proxy talking to itself, or a client to the admin port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// Proxy and admin listeners, with the ports they got.
    pub bound: Vec<SocketAddr>,
}

impl Listeners {
    /// Whether a connection to this address would end at a listener of the proxy's own.
    /// `is_here`: whether the machine has an address, which only the system knows.
    pub fn include(&self, addr: SocketAddr, is_here: impl Fn(IpAddr) -> bool) -> bool {
        forms(addr.ip()).any(|ip| {
            self.bound.iter().filter(|own| own.port() == addr.port()).any(|own| {
                match own.ip().to_canonical() {
                    any if any.is_unspecified() => {
                        ip.is_loopback() || ip.is_unspecified() || is_here(ip)
                    }
                    // Linux takes a connection to the unspecified address for one to loopback.
                    one => ip == one || (ip.is_unspecified() && one.is_loopback()),
                }
            })
        })
    }
}

pub(super) struct Rules {
    clients: Vec<IpNet>,
    denied: Vec<IpNet>,
    ports: Vec<Ports>,
    allowlist: Option<Allowlist>,
}

struct Allowlist {
    domains: Vec<HostPattern>,
    ips: Vec<IpNet>,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Rules {
        let allowlist = config.allowlist.enabled.then(|| Allowlist {
            domains: config.allowlist.domains.clone(),
            ips: config.allowlist.ips.clone(),
        });
        Rules {
            clients: config.proxy.allow_clients.clone(),
            denied: config.proxy.deny_destinations.clone(),
            ports: config.proxy.connect_ports.clone(),
            allowlist,
        }
    }
}

impl Policy {
    /// Whether a client with this address is served.
    pub fn client_allowed(&self, client: IpAddr) -> bool {
        within(&self.rules.access.clients, client)
    }

    /// What the rules say about a host and port before its addresses are known.
    pub fn destination_allowed(&self, scheme: Scheme, host: &Host, port: u16) -> HostVerdict {
        match self.port_allowed(scheme, port) {
            Ok(()) => self.host_allowed(host),
            Err(refusal) => HostVerdict::Refused(refusal),
        }
    }

    /// What the allowlist says about this host.
    fn host_allowed(&self, host: &Host) -> HostVerdict {
        let Some(allowlist) = &self.rules.access.allowlist else { return HostVerdict::Allowed };
        if allowlist.domains.iter().any(|pattern| covers(pattern, host)) {
            return HostVerdict::Allowed;
        }
        let by_address = match host {
            Host::Name(_) => !allowlist.ips.is_empty(),
            Host::V4(ip) => within(&allowlist.ips, (*ip).into()),
            Host::V6(ip) => within(&allowlist.ips, (*ip).into()),
        };
        match by_address {
            true => HostVerdict::ByAddress,
            false => HostVerdict::Refused(Refusal::new(format!(
                "{host} is not in the proxy's allowlist"
            ))),
        }
    }

    /// Whether requests of this scheme may go to this port; a CONNECT is one of `https`.
    ///
    /// # Errors
    /// What to tell the client.
    pub fn port_allowed(&self, scheme: Scheme, port: u16) -> Result<(), Refusal> {
        let plain = scheme == Scheme::Http && port == scheme.default_port();
        if plain || self.rules.access.ports.iter().any(|ports| ports.contain(port)) {
            return Ok(());
        }
        Err(Refusal::new(format!("port {port} is not in proxy.connect_ports")))
    }

    /// Whether this host may be reached at this address. `listed`: the host is allowed by its
    /// name, or because an allowed registry redirected to it.
    ///
    /// # Errors
    /// What to tell the client.
    pub fn address_allowed(
        &self,
        host: &Host,
        addr: SocketAddr,
        listed: bool,
    ) -> Result<(), Refusal> {
        let rules = &self.rules.access;
        let at = || match host {
            Host::Name(name) => format!("{name} at {}", addr.ip()),
            Host::V4(_) | Host::V6(_) => host.to_string(),
        };
        let denying = |net: &&IpNet| forms(addr.ip()).any(|ip| net.contains(&ip));
        if let Some(net) = rules.denied.iter().find(denying) {
            let message = format!("{} is in {net}, which the proxy does not connect to", at());
            return Err(Refusal::new(message));
        }
        match &rules.allowlist {
            Some(allowlist) if !listed && !within(&allowlist.ips, addr.ip()) => {
                Err(Refusal::new(format!("{} is not in the proxy's allowlist", at())))
            }
            _ => Ok(()),
        }
    }
}

fn within(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    nets.iter().any(|net| net.contains(&ip))
}

/// The address, and the IPv4 address it carries, if it does.
fn forms(ip: IpAddr) -> impl Iterator<Item = IpAddr> {
    let carried = match ip {
        IpAddr::V4(_) => None,
        IpAddr::V6(v6) => carried(v6).map(IpAddr::V4),
    };
    [Some(ip), carried].into_iter().flatten()
}

fn carried(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let quad = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match ip.segments() {
        // Mapped and compatible (RFC 4291 2.5.5), translated (RFC 2765 2.1), NAT64 (RFC 6052 2.1)
        // and its local prefix (RFC 8215), 6to4 (RFC 3056 2).
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => quad(high, low),
        [0, 0, 0, 0, 0xffff, 0, high, low] => quad(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => quad(high, low),
        [0x64, 0xff9b, 1, .., high, low] => quad(high, low),
        [0x2002, high, low, ..] => quad(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy;
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn clients() {
        let default = policy("");
        for client in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.1.1",
            "::1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(default.client_allowed(ip(client)), "{client}");
        }
        for client in [
            "8.8.8.8",
            "100.64.0.1",
            "172.32.0.1",
            "0.0.0.0",
            "::",
            "2001:db8::1",
            "::ffff:8.8.8.8",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:a00:1::",
        ] {
            assert!(!default.client_allowed(ip(client)), "{client}");
        }
        assert!(!policy("proxy: {allow_clients: []}").client_allowed(ip("127.0.0.1")));
        let mapped = policy("proxy: {allow_clients: ['::ffff:192.0.2.0/120']}");
        assert!(mapped.client_allowed(ip("192.0.2.7")));
    }

    fn denied(policy: &Policy, addr: &str) -> bool {
        let addr = SocketAddr::new(ip(addr), 443);
        policy.address_allowed(&host("reg.example"), addr, true).is_err()
    }

    #[test]
    fn destinations_are_judged_in_every_form() {
        let default = policy("");
        for addr in [
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "0.0.0.0",
            "224.0.0.1",
            "239.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::127.0.0.1",
            "64:ff9b:1:2:3:4:a9fe:a9fe",
            "::ffff:0:127.0.0.1",
            "2002:7f00:1::1",
            "2002:a9fe:a9fe:1:2:3:4:5",
        ] {
            assert!(denied(&default, addr), "{addr}");
        }
        for addr in [
            "10.0.0.1",
            "8.8.8.8",
            "0.0.0.1",
            "223.255.255.255",
            "::2",
            "2001:db8::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:2::127.0.0.1",
            "fec0::1",
        ] {
            assert!(!denied(&default, addr), "{addr}");
        }
        assert!(!denied(&policy("proxy: {deny_destinations: []}"), "127.0.0.1"));
        let six = policy("proxy: {deny_destinations: ['2002::/16', 64:ff9b::/96]}");
        assert!(denied(&six, "2002:808:808::1") && denied(&six, "64:ff9b::8.8.8.8"));
        assert!(!denied(&six, "8.8.8.8"));
    }

    #[test]
    fn refusals_are_one_plain_sentence() {
        let refusal = policy("")
            .address_allowed(
                &host("meta.example"),
                SocketAddr::new(ip("169.254.169.254"), 80),
                true,
            )
            .unwrap_err();
        assert_eq!(refusal.code, "DENIED");
        let expected = "meta.example at 169.254.169.254 is in 169.254.0.0/16, \
                        which the proxy does not connect to";
        assert_eq!(refusal.message, expected);
    }

    #[test]
    fn the_allowlist_goes_by_name_or_by_address() {
        let list = "allowlist:\n  enabled: true\n  domains: [ghcr.io, '*.docker.io', 192.0.2.1]\n";
        let names = policy(list);
        for name in ["ghcr.io", "GHCR.IO", "auth.docker.io", "192.0.2.1"] {
            assert_eq!(names.host_allowed(&host(name)), HostVerdict::Allowed, "{name}");
        }
        for name in ["docker.io", "quay.io", "a.ghcr.io", "192.0.2.2", "[::1]"] {
            assert!(matches!(names.host_allowed(&host(name)), HostVerdict::Refused(_)), "{name}");
        }
        let both = policy(&format!("{list}  ips: [10.0.0.0/8, '2001:db8::/32']\n"));
        for name in ["quay.io", "10.9.9.9", "[2001:db8::1]", "[::ffff:10.0.0.1]"] {
            assert_eq!(both.host_allowed(&host(name)), HostVerdict::ByAddress, "{name}");
        }
        for name in ["11.0.0.1", "[::1]", "[64:ff9b::a00:1]"] {
            assert!(matches!(both.host_allowed(&host(name)), HostVerdict::Refused(_)), "{name}");
        }
        let reach = |listed, addr: &str| {
            let addr = SocketAddr::new(ip(addr), 443);
            both.address_allowed(&host("quay.io"), addr, listed).is_ok()
        };
        assert!(reach(false, "10.0.0.1") && reach(false, "::ffff:10.0.0.1"));
        assert!(!reach(false, "8.8.8.8") && !reach(false, "64:ff9b::a00:1"));
        assert!(reach(true, "8.8.8.8") && !reach(true, "127.0.0.1"));
        let off = policy("allowlist: {domains: [ghcr.io]}");
        assert_eq!(off.host_allowed(&host("quay.io")), HostVerdict::Allowed);
        let empty = policy("allowlist: {enabled: true}");
        assert!(matches!(empty.host_allowed(&host("ghcr.io")), HostVerdict::Refused(_)));
    }

    #[test]
    fn ports_go_by_the_rule_and_plain_http_has_its_own_beside() {
        let allowed = |policy: &Policy, scheme, ports: &[u16]| {
            ports.iter().all(|port| policy.port_allowed(scheme, *port).is_ok())
        };
        let refused = |policy: &Policy, scheme, ports: &[u16]| {
            ports.iter().all(|port| policy.port_allowed(scheme, *port).is_err())
        };
        let default = policy("");
        assert!(allowed(&default, Scheme::Https, &[443, 1024, 5000, 8443, 65_535]));
        assert!(refused(&default, Scheme::Https, &[1, 22, 25, 80, 110, 442, 444, 1023]));
        assert!(allowed(&default, Scheme::Http, &[80, 443, 5000]));
        assert!(refused(&default, Scheme::Http, &[22, 25, 81]));
        let none = policy("proxy: {connect_ports: []}");
        assert!(refused(&none, Scheme::Https, &[443, 5000]) && allowed(&none, Scheme::Http, &[80]));
        let refusal = default.port_allowed(Scheme::Https, 25).unwrap_err();
        assert_eq!(refusal.message, "port 25 is not in proxy.connect_ports");
    }

    #[test]
    fn the_proxys_own_listeners_are_known() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let listeners = Listeners {
            bound: vec![addr("0.0.0.0:17080"), addr("127.0.0.1:17081"), addr("[::]:17082")],
        };
        let here = |own: IpAddr| [ip("192.0.2.7"), ip("2001:db8::7")].contains(&own);
        let denied = |own: &str| listeners.include(addr(own), here);
        for own in [
            "127.0.0.1:17080",
            "127.9.9.9:17080",
            "192.0.2.7:17080",
            "0.0.0.0:17080",
            "[::1]:17080",
            "[::ffff:192.0.2.7]:17080",
            "[64:ff9b::c000:207]:17080",
            "[::]:17081",
            "127.0.0.1:17081",
            "[2001:db8::7]:17082",
            "192.0.2.7:17082",
        ] {
            assert!(denied(own), "{own}");
        }
        for other in ["192.0.2.7:443", "192.0.2.8:17080", "192.0.2.7:17081", "127.0.0.2:17081"] {
            assert!(!denied(other), "{other}");
        }
    }
}
