//! The proxy: one client connection after another, one request after another.
//!
//! Only this layer knows policy, cache and net together, says whose fault a failure is, and picks a
//! status. `session` loops over a connection's requests; `exchange` chooses a request's route: past
//! the cache (`pass`), into a `tunnel`, or, for a `candidate`, to the entry (`deliver`) that it
//! found or has filled (`store`), if that is not too far behind (`ahead`).

mod ahead;
mod answer;
mod candidate;
mod challenge;
mod deliver;
mod desk;
mod drain;
mod exchange;
mod fetch;
mod learn;
mod own;
mod pages;
mod pass;
mod prove;
mod record;
mod rest;
mod session;
mod store;
mod stored;
mod tunnel;
mod upload;
mod url;
mod users;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

pub use self::answer::Reply;
pub use self::challenge::{Challenge, bearer_challenge, token_in};
pub use self::desk::{Desk, Generation};
pub use self::drain::{Drain, guarded};
pub use self::learn::image_of;
pub use self::own::{Pseudonym, refuse_own_parent};
pub use self::prove::{Access, Asking};
pub use self::record::RequestIds;
pub use self::session::{linger, serve};
pub use self::stored::{Described, described};
pub use self::url::Url;
pub use self::users::Users;
use crate::cache::Cache;
use crate::config::AccessLog;
use crate::http::{Fields, HeadLimits, Host, Scheme, Version};
use crate::images::Images;
use crate::net::{Ca, Conn, Dialer, Ktls, NetError, Parent, ParentFault, Resolver};
use crate::policy::{Injected, Listeners, Policy};
use crate::stats::Stats;

/// How long a name look-up may hold a CONNECT up that will be answered without one.
const JUDGE_MAX: Duration = Duration::from_secs(2);

/// Limits of the proxy, from the configuration.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of heads, both sides.
    pub heads: HeadLimits,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// A client's silence, between requests and within one.
    pub idle_timeout: Duration,
    /// Of an upstream: for its name, its connection and its TLS handshake, each.
    pub connect_timeout: Duration,
    /// An upstream's silence.
    pub read_timeout: Duration,
    /// Redirects followed for one request.
    pub max_redirects: u32,
    /// Requests on one connection.
    pub max_requests: usize,
    /// Resumptions of one fill.
    pub retries: u32,
    /// Connections of clients from which on new ones are closed at once.
    pub max_connections: usize,
    /// Of these, those of one client.
    pub max_connections_per_client: usize,
    /// From how many on they wait, where there are no descriptors to serve as many.
    pub connections_served: Option<usize>,
}

/// Everything a request needs, on one core; it never changes. Another configuration makes another
/// worker, which a [`Desk`] gives to the requests that begin from then on.
pub struct Worker {
    /// The rules; a clone of its own for each core.
    pub policy: Policy,
    /// What is stored.
    pub cache: Cache,
    /// The counters.
    pub stats: Arc<Stats>,
    /// Connections upstream.
    pub dialer: Dialer,
    /// Addresses of names; the same one as the dialer's.
    pub resolver: Resolver,
    /// Certificates for opened TLS.
    pub ca: Arc<Ca>,
    /// What TLS goes to the kernel.
    pub ktls: Arc<Ktls>,
    /// Who was shown what; nothing where `cache.access` is `trust`.
    pub access: Option<Arc<Access>>,
    /// What people call what is stored.
    pub images: Arc<Images>,
    /// Questions under way on this core.
    pub asking: Asking,
    /// Who may use the proxy, where that is asked.
    pub users: Option<Arc<Users>>,
    /// The limits.
    pub limits: Limits,
    /// Our own listeners: never a destination.
    pub listeners: Listeners,
    /// That of the admin port, which the proxy's own page names.
    pub admin: SocketAddr,
    /// Our name in `Via`, by which a loop through ourselves is noticed.
    pub pseudonym: Arc<Pseudonym>,
    /// Says when to stop.
    pub drain: Rc<Drain>,
    /// Which of the cores this is.
    pub number: usize,
    /// Ids for requests that bring none.
    pub request_ids: RequestIds,
    /// Which requests get a line in the log.
    pub access_log: AccessLog,
}

/// What was settled about a destination before it is connected to.
#[derive(Clone, Copy, Debug)]
struct Terms {
    /// Whether the host may be reached at any allowed address, by the allowlist.
    listed: bool,
    /// What of the header rule for it goes along.
    injected: Injected,
}

impl Worker {
    /// What our own `Via` says of a message that came in this version (RFC 9110, section 7.6.3).
    fn via(&self, received: Version) -> &str {
        self.pseudonym.via(received)
    }

    /// Whether a request has been through this proxy before.
    fn is_loop(&self, fields: &Fields) -> bool {
        self.pseudonym.is_in(fields)
    }

    /// What of the header rule for a URL goes along. Credentials go in the clear where the rule's
    /// key says so, and to this machine.
    async fn injected(&self, url: &Url) -> Injected {
        let rule = self.policy.header_rule(url.scheme, &url.host, url.port);
        if !rule.is_some_and(|rule| rule.would_leak(url.scheme)) {
            return Injected::All;
        }
        let limit = JUDGE_MAX.min(self.limits.connect_timeout);
        let addresses = match self.policy.parent(&url.host) {
            Some(_) => Vec::new(),
            None => self.resolver.glance(&url.host, limit, true).await,
        };
        if !addresses.is_empty() && addresses.iter().all(|ip| ip.to_canonical().is_loopback()) {
            return Injected::AtLoopback;
        }
        tracing::info!(host = %url.host, port = url.port,
            "credentials of `headers` stay behind: they are not sent without TLS");
        Injected::Harmless
    }

    /// As [`Worker::permit`], also as far as what goes along is not for every address.
    fn permit_for(&self, host: &Host, address: SocketAddr, terms: Terms) -> Result<(), Box<str>> {
        if terms.injected == Injected::AtLoopback && !address.ip().to_canonical().is_loopback() {
            return Err(format!("{host} at {} is not this machine any more", address.ip()).into());
        }
        self.permit(host, address, terms.listed)
    }

    /// Whether `address`, that `host` resolved to, may be connected to. `listed`: only addresses of
    /// the allowlist. The error is a sentence for the client.
    fn permit(&self, host: &Host, address: SocketAddr, listed: bool) -> Result<(), Box<str>> {
        self.policy
            .address_allowed(host, address, listed)
            .map_err(|refusal| Box::from(refusal.message))?;
        self.not_ourselves(address)
    }

    fn not_ourselves(&self, address: SocketAddr) -> Result<(), Box<str>> {
        match self.is_own_listener(address) {
            true => Err(format!("{address} is this proxy itself").into()),
            false => Ok(()),
        }
    }

    /// The parent proxy on the way to `host`, if there is one.
    fn parent(&self, host: &Host) -> Option<Parent> {
        let parent = self.policy.parent(host)?;
        let host = match parent.host.parse() {
            Ok(IpAddr::V4(address)) => Host::V4(address),
            Ok(IpAddr::V6(address)) => Host::V6(address),
            Err(_) => Host::parse(&parent.host).ok()?,
        };
        let authorization =
            parent.credentials.as_ref().map(|known| known.basic().expose().to_owned().into());
        // A request inside a tunnel says itself where it has been before.
        let via = self.via(Version::Http11).into();
        Some(Parent { host, port: parent.port, authorization, via })
    }

    /// An error on the connection for requests to `url`'s host, with the parent's name where it is
    /// a connection to that.
    fn named(&self, url: &Url, error: NetError) -> NetError {
        match self.parent(&url.host) {
            Some(parent) if url.scheme == Scheme::Http => error.of_parent(&parent),
            _ => error,
        }
    }

    /// Counts an upstream that did not answer, or not to the end. What a rule forbids is no error.
    fn note_error(&self, host: &Host, error: &NetError) {
        let name = match error {
            NetError::Denied(_) => return,
            NetError::Resolve { .. } => "resolve",
            NetError::Connect { .. } => "connect",
            NetError::TimedOut { .. } => "timeout",
            NetError::Tls(_) => "tls",
            NetError::Malformed(_) => "malformed",
            NetError::Parent { .. } => "parent",
            NetError::Closed | NetError::Io(_) | NetError::File(_) | NetError::Busy => "closed",
        };
        self.stats.upstreams.failed(&host.to_string(), name);
    }

    /// Refuses the answer of a parent that does not take our credentials: a client would think that
    /// its own are asked for.
    fn refuse_challenge(&self, url: &Url, status: u16) -> Result<(), NetError> {
        if status != 407 || url.scheme != Scheme::Http {
            return Ok(());
        }
        match self.parent(&url.host) {
            Some(parent) => Err(parent.at_fault(ParentFault::Credentials)),
            None => Ok(()),
        }
    }

    /// A new connection that carries bytes to `host` and `port`. `way`: the `Via` of the CONNECT
    /// that asked for it, with our own at its end.
    ///
    /// With a parent the destination's addresses are judged as far as they are known here: the
    /// parent resolves the name itself. Its own address is the operator's choice, and only not
    /// ours.
    async fn tunnel(
        &self,
        host: &Host,
        port: u16,
        listed: bool,
        way: &str,
    ) -> Result<Conn, NetError> {
        self.permit_port(Scheme::Https, port)?;
        let permit = |address: SocketAddr| self.permit(host, address, listed);
        let parent = self.parent(host).map(|parent| Parent { via: way.into(), ..parent });
        let Some(parent) = parent else {
            return self.dialer.tunnel(host, port, None, &permit).await;
        };
        self.judge(host, port, listed, false).await?;
        self.dialer.tunnel(host, port, Some(&parent), &|at| self.not_ourselves(at)).await
    }

    /// A new connection for requests to `url`'s host. See [`Worker::tunnel`] for parents.
    async fn dial(&self, url: &Url, terms: Terms) -> Result<Conn, NetError> {
        self.permit_port(url.scheme, url.port)?;
        Stats::add(&self.stats.dialled, 1);
        let (origin, parent) = (url.origin(), self.parent(&url.host));
        let conn = if let Some(parent) = parent {
            self.judge(&url.host, url.port, terms.listed, false).await?;
            self.dialer.dial(&origin, Some(&parent), &|at| self.not_ourselves(at)).await?
        } else {
            let permit = |address: SocketAddr| self.permit_for(&url.host, address, terms);
            self.dialer.dial(&origin, None, &permit).await?
        };
        if origin.tls {
            Stats::add(&self.stats.upstream_handshakes, 1);
        }
        Ok(conn)
    }

    /// Says whether `host` has an address that may be connected to, as far as that can be known
    /// without connecting; behind a parent, which takes the one it likes, all of them must be such.
    ///
    /// A name that does not resolve here passes: stored entries are served all the same, and a
    /// parent may know it. Where the host is allowed by its address alone, a parent is not asked.
    ///
    /// `again`: whoever connects judges the address then, so that one known from before will do
    /// and nobody who asks for what is stored waits for a name.
    async fn judge(
        &self,
        host: &Host,
        port: u16,
        listed: bool,
        again: bool,
    ) -> Result<(), NetError> {
        let limit = JUDGE_MAX.min(self.limits.connect_timeout);
        let addresses = self.resolver.glance(host, limit, again).await;
        let behind_parent = self.policy.parent(host).is_some();
        if addresses.is_empty() && behind_parent && !listed {
            let why = format!("{host} does not resolve here, and its name is not in the allowlist");
            return Err(NetError::Denied(why.into()));
        }
        let mut verdict = Ok(());
        for address in addresses {
            match self.permit(host, SocketAddr::new(address, port), listed) {
                Ok(()) if behind_parent => {}
                Ok(()) => return Ok(()),
                Err(why) if behind_parent => return Err(NetError::Denied(why)),
                Err(why) => verdict = Err(NetError::Denied(why)),
            }
        }
        verdict
    }

    /// Whether requests of this scheme may go to this port.
    fn permit_port(&self, scheme: Scheme, port: u16) -> Result<(), NetError> {
        let allowed = self.policy.port_allowed(scheme, port);
        allowed.map_err(|refusal| NetError::Denied(refusal.message.into()))
    }

    fn is_own_listener(&self, address: SocketAddr) -> bool {
        own::is_listener(&self.listeners, address)
    }
}
