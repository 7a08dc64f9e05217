//! The defaults: the contract's configuration page as values.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Access, AccessLog, Cache, Format, Ktls, Level, Limits, Logging, Proxy, Tls, Upstream};

/// FIELD survey of registries; CDN and token hosts need no interception.
const WELL_KNOWN_REGISTRIES: &[&str] = &[
    "docker.io",
    "*.docker.io",
    "ghcr.io",
    "quay.io",
    "*.quay.io",
    "gcr.io",
    "*.gcr.io",
    "*.pkg.dev",
    "mcr.microsoft.com",
    "*.azurecr.io",
    "registry.k8s.io",
    "public.ecr.aws",
    "*.dkr.ecr.*.amazonaws.com",
    "registry.gitlab.com",
    "nvcr.io",
    "lscr.io",
    "docker.elastic.co",
    "registry.redhat.io",
    "registry.access.redhat.com",
    "cgr.dev",
    "docker.cloudsmith.io",
    "registry.suse.com",
    "container-registry.oracle.com",
    "codeberg.org",
];

const PRIVATE_NETWORKS: &[&str] = &[
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

const NEVER_A_REGISTRY: &[&str] = &[
    "127.0.0.0/8",
    "::1/128",
    "169.254.0.0/16",
    "fe80::/10",
    "0.0.0.0/32",
    "::/128",
    "224.0.0.0/4",
    "ff00::/8",
];

/// HTTPS, and where registries of one's own listen; none of the ports below 1024 behind which
/// something else than HTTP is to be expected.
const REGISTRY_PORTS: &[&str] = &["443", "5000", "8443", "1024-65535"];

const REGISTRY_PATHS: &[&str] = &["^/v2/.*/blobs/sha256:.*", "^/v2/.*/manifests/sha256:.*"];

/// Constants that parse; a test holds that none is lost.
fn constants<T: std::str::FromStr>(texts: &[&str]) -> Vec<T> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

impl Default for Proxy {
    fn default() -> Proxy {
        Proxy {
            bind: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
            port: 17080,
            api_bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            api_port: 17081,
            api_hosts: Vec::new(),
            api_token: None,
            workers: 0,
            allow_clients: constants(PRIVATE_NETWORKS),
            users: None,
            deny_destinations: constants(NEVER_A_REGISTRY),
            connect_ports: constants(REGISTRY_PORTS),
            watch_config: false,
        }
    }
}

impl Default for Tls {
    fn default() -> Tls {
        Tls {
            cert_dir: PathBuf::from("./certs"),
            intercept: constants(WELL_KNOWN_REGISTRIES),
            constrain: false,
            upstream_ca: Vec::new(),
            pins: Vec::new(),
            ktls: Ktls::Auto,
        }
    }
}

impl Default for Cache {
    fn default() -> Cache {
        Cache {
            enabled: true,
            dir: PathBuf::from("./cache"),
            max_size: 20 << 30,
            min_free: 1 << 30,
            patterns: REGISTRY_PATHS.iter().map(|text| (*text).to_owned()).collect(),
            access: Access::Verify,
        }
    }
}

impl Default for Upstream {
    fn default() -> Upstream {
        Upstream {
            connect_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(60),
            retries: 5,
            proxy: None,
            no_proxy: Vec::new(),
        }
    }
}

impl Default for Logging {
    fn default() -> Logging {
        Logging {
            level: Level::Info,
            format: Format::Text,
            file: None,
            access: AccessLog::On,
            max_size: 0,
            keep: 5,
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            header_size: 64 << 10,
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(120),
            max_connections: 20_000,
            max_connections_per_client: 2_000,
            max_requests_per_connection: 100_000,
            max_admin_connections: 64,
            max_fills: 512,
            max_redirects: 5,
            shutdown_grace: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, HostPattern};

    #[test]
    fn no_constant_is_lost() {
        let config = Config::default();
        assert_eq!(config.proxy.allow_clients.len(), PRIVATE_NETWORKS.len());
        assert_eq!(config.proxy.deny_destinations.len(), NEVER_A_REGISTRY.len());
        assert_eq!(config.proxy.connect_ports.len(), REGISTRY_PORTS.len());
        assert_eq!(config.tls.intercept.len(), WELL_KNOWN_REGISTRIES.len());
        assert_eq!(config.tls.intercept.first().map(HostPattern::as_str), Some("docker.io"));
    }
}
