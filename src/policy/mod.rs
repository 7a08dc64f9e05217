//! Policy decides and never does: no IO, no await, no clock, no log.
//!
//! `access` says which clients, hosts and addresses are served, `admission` which requests and
//! answers are stored and under which key, `rewrite` which fields change or stay behind, `rights`
//! who may have what is stored, `pins` which upstreams are known by their key.
//!
//! A *candidate* is a request whose answer may be stored; a *refusal* is what the proxy will not
//! do for this client; a *reason* is why something is not stored.
//!
//! What must stay true: a [`Policy`] is compiled from a `Config` once and never changes; the same
//! question always has the same answer. [`rights::Rights`] alone remembers what it was told.

mod access;
mod admission;
mod pins;
mod rewrite;
pub mod rights;

use std::sync::Arc;

use regex_automata::meta::Regex;

use crate::config::{self, Config, ConfigError, HostPattern, ParentProxy, PinRule};
use crate::http::{Host, Scheme};

pub use access::{HostVerdict, Listeners, Refusal};
pub use admission::{Admission, Ask, Reason};
pub use rewrite::{HeaderRule, Injected, leave_origin, pass_request, pass_response, stored_fields};

/// The configuration as rules that can be asked. A clone shares the rules and has caches of its
/// own: one for each thread keeps the threads out of each other's way.
#[derive(Clone)]
pub struct Policy {
    rules: Arc<Rules>,
    /// `cache.patterns`, all at once.
    patterns: Regex,
}

struct Rules {
    access: access::Rules,
    admission: admission::Rules,
    intercept: Vec<HostPattern>,
    /// The narrowest pattern first.
    headers: Vec<HeaderRule>,
    /// The narrowest pattern first.
    pins: Vec<PinRule>,
    parent: Option<ParentProxy>,
    direct: Vec<config::Direct>,
}

impl Policy {
    /// Compiles the configuration.
    ///
    /// # Errors
    /// A pattern that is no regular expression, or too large a one; names `cache.patterns[N]`.
    pub fn compile(config: &Config) -> Result<Policy, ConfigError> {
        let headers = rewrite::compile(config)?;
        let rules = Rules {
            access: access::Rules::new(config),
            admission: admission::Rules::new(config),
            intercept: config.intercepted().cloned().collect(),
            headers,
            pins: pins::compile(config),
            parent: config.upstream.proxy.clone(),
            direct: config.upstream.no_proxy.clone(),
        };
        let patterns = admission::patterns(config)?;
        Ok(Policy { rules: Arc::new(rules), patterns })
    }

    /// Whether the TLS of a tunnel to this host is opened.
    pub fn intercepts(&self, host: &Host) -> bool {
        self.rules.intercept.iter().any(|pattern| covers(pattern, host))
    }

    /// The intercepted hosts that are named without a `*`.
    pub fn intercepted_names(&self) -> Vec<&str> {
        let exact = self.rules.intercept.iter().filter(|pattern| pattern.is_exact());
        exact.map(HostPattern::as_str).filter(|name| Host::parse(name).is_ok()).collect()
    }

    /// The patterns with a `*` whose hosts are intercepted.
    pub fn intercepted_patterns(&self) -> Vec<&str> {
        let patterns = self.rules.intercept.iter().filter(|pattern| !pattern.is_exact());
        let is_plain = |name: &&str| Host::parse(&name.replace('*', "x")).is_ok();
        patterns.map(HostPattern::as_str).filter(is_plain).collect()
    }

    /// The header rule for requests to this origin: that of the most specific pattern, and of two
    /// with the same one that which is for requests without TLS alone.
    pub fn header_rule(&self, scheme: Scheme, host: &Host, port: u16) -> Option<&HeaderRule> {
        let plain = (scheme == Scheme::Http).then_some(port);
        self.rules.headers.iter().find(|rule| rule.covers(host, plain))
    }

    /// The parent proxy through which this host is reached, `None` where it is dialled directly.
    pub fn parent(&self, host: &Host) -> Option<&ParentProxy> {
        let direct = |entry: &config::Direct| match host {
            Host::Name(name) => entry.matches_name(name),
            Host::V4(ip) => entry.matches_ip((*ip).into()),
            Host::V6(ip) => entry.matches_ip((*ip).into()),
        };
        self.rules.parent.as_ref().filter(|_| !self.rules.direct.iter().any(direct))
    }
}

fn covers(pattern: &HostPattern, host: &Host) -> bool {
    match host {
        Host::Name(name) => pattern.matches_name(name),
        Host::V4(ip) => pattern.matches_ip((*ip).into()),
        Host::V6(ip) => pattern.matches_ip((*ip).into()),
    }
}

#[cfg(test)]
fn policy(yaml: &str) -> Policy {
    Policy::compile(&Config::parse("test.yaml", yaml).unwrap()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    #[test]
    fn hosts_under_headers_are_intercepted_too() {
        let policy = policy(
            "tls: {intercept: [ghcr.io]}\n\
             headers: {'*.corp': , 10.0.0.1: , 'http://a.lab:443': , 'http://10.0.0.2': }\n",
        );
        for name in ["ghcr.io", "a.corp", "10.0.0.1"] {
            assert!(policy.intercepts(&host(name)), "{name}");
        }
        for name in ["quay.io", "corp", "a.ghcr.io", "10.0.0.2", "[::1]", "a.lab"] {
            assert!(!policy.intercepts(&host(name)), "{name}");
        }
        let all = super::policy("tls: {intercept: ['*']}\n");
        assert!(all.intercepts(&host("[::1]")) && all.intercepts(&host("x")));
        let default = super::policy("");
        assert!(default.intercepts(&host("1.dkr.ecr.eu-west-1.amazonaws.com")));
        assert!(!default.intercepts(&host("production.cloudflare.docker.com")));
    }

    #[test]
    fn the_parent_proxy_is_left_out_where_the_configuration_says_so() {
        let policy = policy(
            "upstream:\n  proxy: http://proxy:3128\n  no_proxy: [.corp, 10.0.0.0/8, ghcr.io]\n",
        );
        for name in ["a.corp", "ghcr.io", "10.1.1.1", "[::ffff:10.1.1.1]"] {
            assert!(policy.parent(&host(name)).is_none(), "{name}");
        }
        for name in ["corp", "quay.io", "11.0.0.1", "[::1]"] {
            let parent = policy.parent(&host(name)).map(ParentProxy::authority);
            assert_eq!(parent.as_deref(), Some("proxy:3128"), "{name}");
        }
        assert!(super::policy("").parent(&host("quay.io")).is_none());
    }
}
