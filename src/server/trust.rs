//! From the configuration to whom the proxy trusts.

use crate::config::{self, Access, Config, HostPattern};
use crate::net::{CaOptions, Ktls, Subtree};

/// Where the CA is and what it is for.
pub fn ca_options(config: &Config) -> CaOptions {
    let subtree = |pattern: &HostPattern| match pattern.as_ip() {
        Some(address) => Subtree::Address(address),
        None => Subtree::Name(pattern.domain().to_owned()),
    };
    CaOptions {
        dir: config.tls.cert_dir.clone(),
        names: config.intercepted().map(subtree).collect(),
        constrain: config.tls.constrain,
    }
}

/// What the configuration opens to more than one might think; said at the start, and by `check`.
pub fn open_doors(config: &Config) -> Vec<&'static str> {
    let injects = config.headers.iter().any(|rule| !rule.set.is_empty() || !rule.append.is_empty());
    let admin = &config.proxy;
    let doors = [
        (
            injects,
            "what `headers` puts in counts as every client's: all of proxy.allow_clients may \
             have what it opens",
        ),
        (
            config.cache.access == Access::Trust,
            "cache.access is trust: every client may have every stored image, private ones \
             included",
        ),
        (
            admin.api_token.is_none() && !admin.api_bind.to_canonical().is_loopback(),
            "proxy.api_bind is no loopback address and there is no proxy.api_token: whoever \
             reaches the admin port may clear the cache and change the settings",
        ),
    ];
    doors.into_iter().filter_map(|(open, words)| open.then_some(words)).collect()
}

/// What TLS goes to the kernel.
pub fn ktls(config: &Config) -> Ktls {
    match config.tls.ktls {
        config::Ktls::Off => Ktls::off("tls.ktls is off"),
        // Which of the two is faster was measured nowhere; LINUX_ONLY.md says what is known.
        config::Ktls::Auto => Ktls::off("tls.ktls is auto, which leaves TLS to rustls"),
        config::Ktls::On => {
            let ktls = Ktls::probe();
            match ktls.why() {
                Some(why) => tracing::warn!(why, "tls.ktls is on, and TLS is left to rustls"),
                None => tracing::info!(suites = ktls.suites().join(", "), "TLS in the kernel"),
            }
            ktls
        }
    }
}
