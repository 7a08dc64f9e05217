//! The record of one request: its id, what became of it and why, and the line in the access log
//! that says so (target `access`).
//!
//! What must stay true: nothing is formatted for a line that is not written; a line has no query,
//! and no path that could be a token.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Worker;
use super::session::End;
use super::url::Url;
use crate::config::AccessLog;
use crate::http::{Fields, Host};
use crate::policy::Reason;
use crate::stats::{Event, Finished, Names, Outcome, micros};

/// The field that carries a request's id, to upstream and to the client.
pub const REQUEST_ID: &str = "X-Request-Id";

/// Characters of a client's own id at most; ours have 32.
const ID_MAX: usize = 64;

/// What one request is called in logs, here and elsewhere.
#[derive(Clone, Copy)]
pub struct RequestId {
    bytes: [u8; ID_MAX],
    len: u8,
}

impl RequestId {
    /// The client's own where it is one: up to 64 letters, digits, `-` and `_`, which break no line
    /// of a log. Whoever puts a secret there has it logged.
    fn of(fields: &Fields) -> Option<RequestId> {
        let given = fields.get(REQUEST_ID)?;
        let is_sane = given.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if given.is_empty() || given.len() > ID_MAX || !is_sane {
            return None;
        }
        let mut bytes = [0; ID_MAX];
        bytes[..given.len()].copy_from_slice(given);
        Some(RequestId { bytes, len: given.len() as u8 })
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

/// Makes ids that no other request has, on this core or elsewhere: half of one is this core's, at
/// random, and the other half counts, mixed so that neighbours do not look alike.
pub struct RequestIds {
    own: [u8; 16],
    count: Cell<u64>,
}

impl Default for RequestIds {
    fn default() -> RequestIds {
        let random = RandomState::new();
        RequestIds { own: hex(random.hash_one(0)), count: Cell::new(random.hash_one(1)) }
    }
}

impl RequestIds {
    fn next(&self) -> RequestId {
        // SplitMix64: another number for each one counted.
        let count = self.count.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.count.set(count);
        let mixed = (count ^ (count >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mut bytes = [0; ID_MAX];
        bytes[..16].copy_from_slice(&self.own);
        bytes[16..32].copy_from_slice(&hex(mixed ^ (mixed >> 31)));
        RequestId { bytes, len: 32 }
    }
}

fn hex(number: u64) -> [u8; 16] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|place| DIGITS[(number >> (60 - 4 * place) & 15) as usize])
}

/// Why a request was answered as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was in the cache.
    Stored,
    /// Nobody has asked for it before, or it is gone since: it is being stored.
    FirstTime,
    /// Somebody else's fill was joined.
    Collapsed,
    /// The range begins too far ahead of the fill.
    FarAhead,
    /// HEAD, of which nothing is stored.
    Head,
    /// Who fetched it first found that it is not to be stored.
    Declined,
    /// There were `limits.max_fills` fills.
    MaxFills,
    /// The fill ended without a word, too often.
    Unsettled,
    /// What is stored may not be this client's.
    Private,
    /// A fill from another registry, not yet proven, or failed.
    OtherRegistry,
    /// What is stored has not the media type of a manifest.
    MediaType,
    /// A rule, or the registry, says no.
    Refused,
    /// Upstream did not answer.
    UpstreamFailed,
    /// Whether the client may have it could not be asked.
    Unproven,
    /// The cache could not take it.
    CacheUnavailable,
    /// Not for the cache, by the rules of what is stored.
    Rule(Reason),
    /// A CONNECT to a host that is not in `tls.intercept`.
    NotIntercepted,
    /// A CONNECT whose TLS is opened.
    Intercepted,
    /// `proxy.allow_clients`, the allowlist, `deny_destinations` or the ports.
    Denied,
    /// Credentials that `proxy.users` wants.
    Unauthenticated,
    /// It was not in order.
    Malformed,
    /// It came too slowly.
    TooSlow,
    /// It came through this proxy before.
    Loop,
    /// It was for the proxy itself.
    ForUs,
}

impl Why {
    /// The name in logs.
    pub fn name(self) -> &'static str {
        match self {
            Why::Stored => "stored",
            Why::FirstTime => "first-time",
            Why::Collapsed => "collapsed",
            Why::FarAhead => "far-ahead",
            Why::Head => "head",
            Why::Declined => "declined",
            Why::MaxFills => "max-fills",
            Why::Unsettled => "unsettled",
            Why::Private => "private",
            Why::OtherRegistry => "other-registry",
            Why::MediaType => "media-type",
            Why::Refused => "refused",
            Why::UpstreamFailed => "upstream-failed",
            Why::Unproven => "unproven",
            Why::CacheUnavailable => "cache-unavailable",
            Why::Rule(reason) => reason.name(),
            Why::NotIntercepted => "not-intercepted",
            Why::Intercepted => "intercepted",
            Why::Denied => "denied",
            Why::Unauthenticated => "unauthenticated",
            Why::Malformed => "malformed",
            Why::TooSlow => "too-slow",
            Why::Loop => "loop",
            Why::ForUs => "for-us",
        }
    }

    /// Whether somebody may wonder why the cache did not have it: no pass that is one by its
    /// method or path.
    fn is_missed(self, outcome: Outcome) -> bool {
        match (outcome, self) {
            (Outcome::Miss | Outcome::Joined, _) => true,
            (Outcome::Passed, Why::Head) => false,
            (Outcome::Passed, Why::Rule(reason)) => !matches!(
                reason,
                Reason::CacheOff | Reason::Method | Reason::Pattern | Reason::RequestBody
            ),
            (Outcome::Passed, _) => true,
            _ => false,
        }
    }
}

/// What is known of the request that a client is being answered. Sessions are strictly one request
/// after the other, so there is one for each client.
pub struct Record {
    id: Cell<RequestId>,
    started: Cell<Instant>,
    outcome: Cell<Outcome>,
    why: Cell<Why>,
    size: Cell<Option<u64>>,
    status: Cell<Option<u16>>,
    first_byte: Cell<Option<Duration>>,
    sent: Cell<u64>,
    upstream: RefCell<Option<Host>>,
    /// What the client was told that failed.
    message: RefCell<String>,
    /// The slot of the host that was asked for last.
    slot: RefCell<Option<(Host, usize)>>,
}

impl Record {
    /// Of a client that has not asked for anything yet.
    pub fn new() -> Record {
        Record {
            id: Cell::new(RequestId { bytes: [0; ID_MAX], len: 0 }),
            started: Cell::new(Instant::now()),
            outcome: Cell::new(Outcome::Refused),
            why: Cell::new(Why::Malformed),
            size: Cell::new(None),
            status: Cell::new(None),
            first_byte: Cell::new(None),
            sent: Cell::new(0),
            upstream: RefCell::new(None),
            message: RefCell::default(),
            slot: RefCell::new(None),
        }
    }

    /// A request begins, whose head has come if there are fields. Until something else is noted it
    /// is one that is not in order.
    pub fn begin(&self, worker: &Worker, fields: Option<&Fields>) {
        let own = fields.and_then(RequestId::of);
        self.id.set(own.unwrap_or_else(|| worker.request_ids.next()));
        self.started.set(Instant::now());
        self.settle(Outcome::Refused, Why::Malformed, None);
        self.status.set(None);
        self.first_byte.set(None);
        self.sent.set(0);
        if self.upstream.borrow().is_some() {
            self.upstream.replace(None);
        }
        if !self.message.borrow().is_empty() {
            self.message.take();
        }
    }

    /// The request's id.
    pub fn id(&self) -> RequestId {
        self.id.get()
    }

    /// What becomes of it and why; the size of the body asked for, where that is known.
    pub fn settle(&self, outcome: Outcome, why: Why, size: Option<u64>) {
        self.outcome.set(outcome);
        self.why.set(why);
        self.size.set(size);
    }

    /// Whose answer the client gets.
    pub fn from(&self, upstream: &Host) {
        self.upstream.replace(Some(upstream.clone()));
    }

    /// The answer's head is ready to be sent.
    pub fn answered(&self, status: u16) {
        self.status.set(Some(status));
        self.first_byte.set(Some(self.started.get().elapsed()));
    }

    /// What the answer says that failed.
    pub fn failed(&self, message: &str) {
        self.message.replace(message.to_owned());
    }

    /// Bytes of the answer's body were sent.
    pub fn sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
    }

    /// The request has come to its end. `asked`: whom it was for, and its path.
    pub fn finish(
        &self,
        worker: &Worker,
        client: IpAddr,
        asked: Option<(&Host, &str)>,
        result: &Result<(), End>,
    ) {
        let whole = !matches!(result, Err(End::Broken));
        let took = self.started.get().elapsed();
        if let Some(core) = worker.stats.core(worker.number) {
            core.add(&Finished {
                outcome: self.outcome.get(),
                host: self.slot(&worker.stats.hosts, asked.map(|(host, _)| host)),
                bytes: self.sent.get(),
                first_byte: self.first_byte.get(),
                whole: took,
            });
        }
        let outcome = self.outcome.get();
        let failed = !whole
            || outcome == Outcome::Refused
            || self.status.get().is_none_or(|status| status >= 500);
        if failed && self.why.get() != Why::Unauthenticated {
            worker.stats.errors_seen.push(self.event(client, asked, whole));
        }
        if self.why.get().is_missed(outcome) {
            worker.stats.misses_seen.push(self.event(client, asked, whole));
        }
        match worker.access_log {
            AccessLog::On => {}
            AccessLog::Errors if failed => {}
            AccessLog::Errors | AccessLog::Off => return,
        }
        self.write(client, asked, whole, took);
    }

    /// The request for people who look.
    #[inline(never)]
    fn event(&self, client: IpAddr, asked: Option<(&Host, &str)>, whole: bool) -> Event {
        let message = match &**self.message.borrow() {
            "" if !whole => "broken off: the answer did not reach the client whole".to_owned(),
            message => message.to_owned(),
        };
        Event {
            client: Some(client),
            host: text(asked.map(|(host, _)| host)).into_owned(),
            path: self.shown_path(asked).to_owned(),
            status: self.status.get(),
            request_id: self.id.get().as_str().to_owned(),
            ..Event::new(self.why.get().name(), message)
        }
    }

    /// The path as far as a log may have it. A redirect can lead a client to one that is a token:
    /// shown are those of registries, and those that are for the cache.
    fn shown_path<'a>(&self, asked: Option<(&Host, &'a str)>) -> &'a str {
        let is_candidate =
            matches!(self.outcome.get(), Outcome::Hit | Outcome::Miss | Outcome::Joined);
        let path = asked.map(|(_, path)| path);
        path.filter(|path| is_candidate || path.starts_with("/v2/")).unwrap_or("-")
    }

    /// The slot of a host's figures. One that has not answered gets none of its own.
    fn slot(&self, hosts: &Names, host: Option<&Host>) -> usize {
        let Some(host) = host else { return Names::OTHER };
        if let Some((last, slot)) = &*self.slot.borrow()
            && last == host
        {
            return *slot;
        }
        let served =
            !matches!(self.outcome.get(), Outcome::Refused | Outcome::Own | Outcome::Intercepted);
        let answered = served && self.status.get().is_some_and(|status| status < 500);
        let slot = hosts.slot(&host.to_string(), answered);
        if slot != Names::OTHER {
            self.slot.replace(Some((host.clone(), slot)));
        }
        slot
    }

    #[inline(never)]
    fn write(&self, client: IpAddr, asked: Option<(&Host, &str)>, whole: bool, took: Duration) {
        let outcome = self.outcome.get();
        let upstream = self.upstream.borrow();
        tracing::info!(
            target: "access",
            message = said(outcome),
            %client,
            host = &*text(asked.map(|(host, _)| host)),
            path = self.shown_path(asked),
            size = self.size.get(),
            status = self.status.get(),
            outcome = outcome.as_str(),
            reason = self.why.get().name(),
            bytes = self.sent.get(),
            whole,
            first_byte_us = self.first_byte.get().map(micros),
            duration_us = micros(took),
            upstream = &*text(upstream.as_ref()),
            request_id = self.id.get().as_str(),
        );
    }
}

fn text(host: Option<&Host>) -> Cow<'_, str> {
    match host {
        Some(Host::Name(name)) => Cow::Borrowed(name),
        Some(address) => Cow::Owned(address.to_string()),
        None => Cow::Borrowed("-"),
    }
}

/// What the line begins with.
fn said(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Hit => "cache hit",
        Outcome::Miss | Outcome::Joined => "cache miss",
        Outcome::Passed => "passed",
        Outcome::Tunnelled => "tunnelled",
        Outcome::Intercepted => "intercepted",
        Outcome::Refused => "rejected",
        Outcome::Own => "answered",
    }
}

/// Whom a URL is for, and its path.
pub fn asked(url: &Url) -> (&Host, &str) {
    (&url.host, url.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str) -> Option<String> {
        let mut fields = Fields::new();
        fields.push(REQUEST_ID, value).unwrap();
        RequestId::of(&fields).map(|id| id.as_str().to_owned())
    }

    #[test]
    fn a_clients_id_is_kept_where_it_is_one() {
        let longest = "a".repeat(ID_MAX);
        for sane in ["1", "4f9e3a-B_c", "00-0af7651916cd43dd8448eb211c80319c-01", &longest] {
            assert_eq!(of(sane).as_deref(), Some(sane));
        }
        let longer = "a".repeat(ID_MAX + 1);
        for other in ["", "a b", "a\"b", "eyJh.eyJz.c2ln", "a=b", "a\u{e9}", &longer] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn no_two_ids_are_the_same() {
        let (here, there) = (RequestIds::default(), RequestIds::default());
        let ids = (0..1000).flat_map(|_| [here.next(), there.next()]);
        let ids: std::collections::HashSet<_> = ids.map(|id| id.as_str().to_owned()).collect();
        assert_eq!(ids.len(), 2000);
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
