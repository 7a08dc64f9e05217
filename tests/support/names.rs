//! Host names of the tests. The proxy resolves by the system, so they stand in `/etc/hosts`: added
//! once, under a lock, never removed (other test processes may be using them). Each name has an
//! address of its own in 127.0.0.0/8, so origins can share a port number without meeting.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::sync::OnceLock;

/// The registry most tests talk to; intercepted by the tests' configuration.
pub const REGISTRY: &str = "registry.test";
/// A second registry, intercepted too.
pub const SECOND: &str = "second.test";
/// Where `registry.test` redirects blobs: another domain (FIELD.md: TESTBED's rule on subdomains).
pub const CDN: &str = "cdn.example";
/// The token host; not intercepted.
pub const AUTH: &str = "auth.test";
/// A host that is never intercepted.
pub const OTHER: &str = "other.example";
/// A host below `*.deep.test`, for patterns.
pub const DEEP: &str = "a.deep.test";
/// Resolves to `[::1]` and to [`DUAL_V4`]; tests listen on one of the two.
pub const DUAL: &str = "dual.test";
/// The IPv4 address of [`DUAL`].
pub const DUAL_V4: &str = "127.0.0.8";
/// Resolves to an address on which nothing ever listens.
pub const DEAD: &str = "dead.test";
/// A parent proxy.
pub const PARENT: &str = "parent.test";

const HOSTS: &[(&str, &str)] = &[
    ("127.0.0.2", REGISTRY),
    ("127.0.0.3", CDN),
    ("127.0.0.4", AUTH),
    ("127.0.0.5", SECOND),
    ("127.0.0.6", OTHER),
    ("127.0.0.7", DEEP),
    ("::1", DUAL),
    (DUAL_V4, DUAL),
    ("127.0.0.9", DEAD),
    ("127.0.0.10", PARENT),
];

/// The address to bind for `host`: its line in the table, or `host` itself when it is an address.
pub fn address(host: &str) -> IpAddr {
    register();
    let listed = HOSTS.iter().rev().find(|(_, name)| *name == host);
    let text = listed.map_or(host, |(address, _)| address);
    text.trim_matches(['[', ']']).parse().unwrap_or_else(|_| panic!("{host} is no test host"))
}

/// Makes sure that every name of the table resolves, for all processes of this machine.
pub fn register() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        let lock_path = std::env::temp_dir().join("discobot-proxy-tests-hosts.lock");
        let lock = File::create(&lock_path).expect("the lock file of /etc/hosts");
        lock.lock().expect("locking it");
        let present = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let has = |address: &str, name: &str| {
            present.lines().any(|line| {
                let mut words = line.split('#').next().unwrap_or("").split_whitespace();
                words.next() == Some(address) && words.any(|word| word == name)
            })
        };
        let mut missing = String::new();
        for (address, name) in HOSTS.iter().filter(|(address, name)| !has(address, name)) {
            missing.push_str(&format!("{address} {name}\n"));
        }
        if !missing.is_empty() {
            if !present.ends_with('\n') && !present.is_empty() {
                missing.insert(0, '\n');
            }
            let mut file = OpenOptions::new()
                .append(true)
                .open("/etc/hosts")
                .expect("these tests run as root: they add test names to /etc/hosts");
            file.write_all(missing.as_bytes()).expect("writing /etc/hosts");
        }
    });
}
