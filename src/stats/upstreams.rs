//! What the proxy sees of upstreams, by host. Off the hit path: these may lock and allocate.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::names::Names;

type Host = [(&'static str, String); 1];
type HostAndError = [(&'static str, String); 2];

/// Figures of upstreams.
pub struct Upstreams {
    names: Names,
    first_byte: Family<Host, Histogram>,
    errors: Family<HostAndError, Counter>,
    remaining: Family<Host, Gauge>,
}

impl Default for Upstreams {
    fn default() -> Upstreams {
        Upstreams {
            names: Names::default(),
            first_byte: Family::new_with_constructor(|| Histogram::new(super::bounds())),
            errors: Family::default(),
            remaining: Family::default(),
        }
    }
}

impl Upstreams {
    /// A host has answered, so long after it was asked, connection included.
    pub fn answered(&self, host: &str, took: Duration) {
        let host = self.label(host, true);
        self.first_byte.get_or_create(&[("host", host)]).observe(took.as_secs_f64());
    }

    /// A host has not answered, or not to the end. One that never did has no name here.
    pub fn failed(&self, host: &str, error: &'static str) {
        let labels = [("host", self.label(host, false)), ("error", error.to_owned())];
        self.errors.get_or_create(&labels).inc();
    }

    /// A registry has said how many requests it will take before it refuses further ones.
    /// Of those without a name of their own nothing is known: it would be the last one's.
    pub fn may_be_asked(&self, registry: &str, times: u32) {
        if self.names.slot(registry, true) == Names::OTHER {
            return;
        }
        let registry = self.label(registry, true);
        self.remaining.get_or_create(&[("registry", registry)]).set(times.into());
    }

    fn label(&self, host: &str, add: bool) -> String {
        self.names.name(self.names.slot(host, add)).to_owned()
    }

    /// Has them told with all the rest.
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "upstream_first_byte_seconds",
            "From a request to the head of its answer, connection included",
            self.first_byte.clone(),
        );
        registry.register(
            "upstream_errors",
            "Requests without an answer, and answers that broke off",
            self.errors.clone(),
        );
        registry.register(
            "ratelimit_remaining",
            "Requests the registry will still take, as its last answer said",
            self.remaining.clone(),
        );
    }
}
