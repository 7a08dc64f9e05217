//! From the configuration to whom the proxy trusts.

use std::sync::Arc;

use crate::config::{Config, ConfigError, HostPattern};
use crate::http::Host;
use crate::net::{CaOptions, Pinned, Subtree, TlsSetup, client_config};
use crate::policy::Policy;

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

/// How TLS is spoken with upstreams; reads the files of `tls.upstream_ca`.
pub fn upstream_tls(config: &Config, policy: &Policy) -> Result<TlsSetup, ConfigError> {
    let pins = policy.clone();
    let pinned: Pinned = Arc::new(move |host: &Host, key: &[u8]| pins.pinned(host, key));
    let pinned = policy.has_pins().then_some(pinned);
    client_config(&config.tls.upstream_ca, pinned).map_err(|(n, why)| {
        config.error(&format!("tls.upstream_ca[{n}]"), &why, "a file of PEM certificates")
    })
}
