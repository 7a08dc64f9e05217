//! Upstreams known by the key of their certificate (`tls.pins`).

use super::{Policy, covers};
use crate::config::{Config, Pin, PinRule};
use crate::http::Host;
use crate::key::{Algorithm, Digest};

/// The rules of the configuration, the narrowest pattern first.
pub(super) fn compile(config: &Config) -> Vec<PinRule> {
    let mut rules = config.tls.pins.clone();
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.pattern.specificity()));
    rules
}

impl Policy {
    /// Whether any host is known by its key.
    pub fn has_pins(&self) -> bool {
        !self.rules.pins.is_empty()
    }

    /// Whether a certificate with this public key (SubjectPublicKeyInfo, DER) is the host's; the
    /// narrowest pattern says which keys may be. `None` where there is no pin for the host: then
    /// who signed the certificate decides. The error is a sentence.
    pub fn pinned(&self, host: &Host, key: &[u8]) -> Option<Result<(), Box<str>>> {
        let rule = self.rules.pins.iter().find(|rule| covers(&rule.pattern, host))?;
        let hash = Digest::of(Algorithm::Sha256, key);
        let Digest::Sha256(hash) = hash else { return Some(Err("no hash".into())) };
        let found = Pin::new(hash);
        if rule.keys.contains(&found) {
            return Some(Ok(()));
        }
        let pattern = &rule.pattern;
        let why = format!(
            "the certificate of {host} has the key {found}, which tls.pins does not name for \
             {pattern}"
        );
        Some(Err(why.into()))
    }
}

#[cfg(test)]
mod tests {
    use crate::http::Host;

    /// `printf key | openssl dgst -sha256 -binary | base64`, for the keys `a` and `b`.
    const A: &str = "sha256/ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=";
    const B: &str = "sha256/PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0=";

    #[test]
    fn the_narrowest_pattern_says_which_keys_may_be() {
        let policy = super::super::policy(&format!(
            "tls:\n  pins:\n    '*.corp': [{A}]\n    x.corp: [{B}]\n    10.0.0.1: [{A}, {B}]\n"
        ));
        let ask = |host: &str, key: &[u8]| policy.pinned(&Host::parse(host).unwrap(), key);
        assert_eq!(ask("y.corp", b"a"), Some(Ok(())));
        assert_eq!(ask("x.corp", b"b"), Some(Ok(())));
        assert_eq!(ask("10.0.0.1", b"a"), Some(Ok(())));
        assert_eq!(ask("10.0.0.1", b"b"), Some(Ok(())));
        let refusal = ask("x.corp", b"a").unwrap().unwrap_err();
        assert!(refusal.contains(A) && refusal.contains("x.corp"), "{refusal}");
        assert!(ask("y.corp", b"b").unwrap().is_err());
        for host in ["corp", "x.corp.example", "10.0.0.2", "[::1]"] {
            assert_eq!(ask(host, b"a"), None, "{host}");
        }
    }
}
