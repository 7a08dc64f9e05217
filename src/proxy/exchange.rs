//! One request: ask policy, ask the cache, choose the route.

use std::rc::Rc;
use std::time::Instant;

use super::Worker;
use super::answer::{Answer, Reply, page};
use super::deliver::{Delivery, Part, Source, Undelivered};
use super::fetch::Recipe;
use super::pass;
use super::session::{Client, End};
use super::store::store;
use super::url::Url;
use crate::cache::{Failure, Lease, Lookup, NoHead, Reader, Seen};
use crate::http::{
    Fields, Framing, HeadLimits, Method, Parsed, RequestHead, Target, keeps_alive, parse_response,
    request_framing,
};
use crate::key::{Digest, Key};
use crate::policy::{self, Admission, Ask, HostVerdict, Refusal};
use crate::stats::{Outcome, Stats};

/// Times a request looks up again because the fill it joined ended without a word.
const LOOKUPS_MAX: usize = 4;

/// How far a range may begin ahead of what a running fill has, and still wait for it. Beyond, the
/// range is asked of upstream, uncached, while the fill goes on.
const AHEAD_MAX: u64 = 1024 * 1024 * 1024;

/// A request whose head has been read and found in order.
pub struct Request {
    /// The head as the client sent it.
    pub head: RequestHead,
    /// Whom it is for.
    pub url: Url,
    /// Its body.
    pub framing: Framing,
    /// Whether the client wants to send another.
    pub keep_alive: bool,
    /// Whether the host may be reached at any allowed address, by the allowlist.
    pub listed: bool,
    /// When its head had come.
    pub started: Instant,
}

impl Request {
    /// The request as policy looks at it.
    pub fn ask(&self) -> Ask<'_> {
        Ask {
            method: &self.head.method,
            scheme: self.url.scheme,
            host: &self.url.host,
            port: self.url.port,
            path: self.url.path(),
            query: self.url.query(),
            fields: &self.head.fields,
        }
    }

    fn recipe(&self) -> Recipe {
        let mut fields = self.head.fields.clone();
        policy::pass_request(&mut fields);
        let (method, url) = (self.head.method.clone(), self.url.clone());
        Recipe { method, url, fields, listed: self.listed }
    }

    fn has_body(&self) -> bool {
        !matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// Sends an answer of our own in place of upstream's.
    pub async fn answer(&self, client: &Client, answer: &Answer) -> Result<(), End> {
        let (keep, with_body) = (self.keep_alive && !self.has_body(), self.with_body());
        let sent = answer.send(&client.conn, self.head.version, keep, with_body).await;
        sent.map_err(|_| End::Broken)?;
        self.go_on(keep)
    }

    /// How a request ends whose answer was sent whole.
    pub fn go_on(&self, keep: bool) -> Result<(), End> {
        match (keep, self.has_body()) {
            (true, _) => Ok(()),
            (false, false) => Err(End::Answered),
            (false, true) => Err(End::Unread),
        }
    }

    fn with_body(&self) -> bool {
        self.head.method != Method::HEAD
    }
}

/// Answers one request. `Ok`: another may follow on this connection.
pub async fn exchange(worker: &Rc<Worker>, client: &Client, head: RequestHead) -> Result<(), End> {
    let started = Instant::now();
    let keep_alive = keeps_alive(head.version, &head.fields);
    let framing = request_framing(&head);
    let (version, with_body) = (head.version, head.method != Method::HEAD);
    let refuse = async |answer: Answer| {
        Stats::add(&worker.stats.refused, 1);
        match answer.send(&client.conn, version, false, with_body).await {
            Ok(()) => Err(End::Unread),
            Err(_) => Err(End::Broken),
        }
    };
    let framing = match framing {
        Ok(framing) => framing,
        Err(error) => {
            return refuse(Answer::new(error.status(), "MALFORMED", error.to_string())).await;
        }
    };
    let url = match target(client, &head) {
        Ok(Asked::Url(url)) => url,
        Ok(Asked::Ourselves(path)) => return own_page(client, &head, &path, keep_alive).await,
        Err(answer) => return refuse(answer).await,
    };
    if is_loop(worker, &head.fields) {
        let answer = Answer::new(508, "LOOP", "this request came through this proxy already");
        return refuse(answer).await;
    }
    let listed = match worker.policy.host_allowed(&url.host) {
        HostVerdict::Allowed => true,
        HostVerdict::ByAddress => false,
        HostVerdict::Refused(Refusal { code, message }) => {
            tracing::info!(client = %client.ip(), host = %url.host, message, "refused");
            return refuse(Answer::new(403, code, message)).await;
        }
    };
    let request = Request { head, url, framing, keep_alive, listed, started };
    match worker.policy.admit(&request.ask()) {
        Admission::Pass(reason) => {
            Stats::add(&worker.stats.passed, 1);
            pass::pass(worker, client, &request, reason.name()).await
        }
        Admission::Store { key, .. } if request.head.method == Method::HEAD => {
            head_request(worker, client, &request, &key).await
        }
        Admission::Store { key, digest } => candidate(worker, client, &request, &key, digest).await,
    }
}

enum Asked {
    Url(Url),
    Ourselves(Box<str>),
}

/// Whom a request is for: the tunnel it came through, or its absolute target.
fn target(client: &Client, head: &RequestHead) -> Result<Asked, Answer> {
    let malformed = |message: &str| Answer::new(400, "MALFORMED", message);
    match (&client.fixed, &head.target) {
        (Some(fixed), Target::Origin(path)) => {
            check_authority(fixed, head)?;
            Ok(Asked::Url(Url { target: path.clone(), ..fixed.clone() }))
        }
        (Some(fixed), Target::Absolute { path, .. }) => {
            check_authority(fixed, head)?;
            Ok(Asked::Url(Url { target: path.clone(), ..fixed.clone() }))
        }
        (Some(fixed), Target::Asterisk) => {
            Ok(Asked::Url(Url { target: "*".into(), ..fixed.clone() }))
        }
        (None, Target::Absolute { scheme, authority, path }) => {
            let port = authority.port.unwrap_or(scheme.default_port());
            let host = authority.host.clone();
            Ok(Asked::Url(Url { scheme: *scheme, host, port, target: path.clone() }))
        }
        (None, Target::Origin(path)) => Ok(Asked::Ourselves(path.clone())),
        (None, Target::Asterisk) => Err(malformed("this proxy needs a whole URL")),
        (_, Target::Authority(_)) => Err(malformed("only CONNECT has an authority as its target")),
    }
}

/// A request inside a tunnel is for the tunnel's host, or for nobody.
fn check_authority(fixed: &Url, head: &RequestHead) -> Result<(), Answer> {
    let Some(authority) = head.authority() else { return Ok(()) };
    let port = authority.port.unwrap_or(match &head.target {
        Target::Absolute { scheme, .. } => scheme.default_port(),
        _ => fixed.port,
    });
    if authority.host == fixed.host && port == fixed.port {
        return Ok(());
    }
    let message = format!("the tunnel leads to {}, the request is for {authority}", fixed.origin());
    Err(Answer::new(421, "MISDIRECTED", message))
}

fn is_loop(worker: &Worker, fields: &Fields) -> bool {
    fields.tokens("via").any(|via| via.split(' ').nth(1) == Some(&*worker.pseudonym))
}

async fn own_page(
    client: &Client,
    head: &RequestHead,
    path: &str,
    keep_alive: bool,
) -> Result<(), End> {
    let keep = keep_alive && request_framing(head).is_ok_and(|framing| framing == Framing::None);
    let with_body = head.method != Method::HEAD;
    let sent = if path == "/" && (head.method == Method::GET || !with_body) {
        let own = match (head.fields.get_str("host"), client.conn.local_addr()) {
            (Some(host), _) => host.to_owned(),
            (None, Ok(address)) => address.to_string(),
            (None, Err(_)) => "PROXY:17080".to_owned(),
        };
        let body = page(&own);
        let reply = Reply { status: 200, kind: "text/plain; charset=utf-8", body: body.as_bytes() };
        reply.send(&client.conn, head.version, keep, with_body).await
    } else {
        let message = "this is a proxy: send it whole URLs (http://host/path) or CONNECT host:443";
        let answer = Answer::new(404, "NOT_FOUND", message);
        answer.send(&client.conn, head.version, keep, with_body).await
    };
    match (sent, keep) {
        (Err(_), _) => Err(End::Broken),
        (Ok(()), true) => Ok(()),
        (Ok(()), false) => Err(End::Unread),
    }
}

/// HEAD of a candidate: from a stored entry, else from upstream; it never begins a fill.
async fn head_request(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    key: &Key,
) -> Result<(), End> {
    match worker.cache.peek(key).await {
        Ok(Some(reader)) => {
            if let Some((seen, stored)) = stored_head(&reader)
                && fits(request, &stored)
            {
                return hit(worker, client, request, reader, &seen, &stored).await;
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cache look-up failed"),
    }
    Stats::add(&worker.stats.misses, 1);
    pass::pass(worker, client, request, "head").await
}

/// GET of a candidate.
async fn candidate(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    key: &Key,
    digest: Option<Digest>,
) -> Result<(), End> {
    for _ in 0..LOOKUPS_MAX {
        match worker.cache.lookup(key).await {
            Ok(Lookup::Hit(reader)) => match stored_head(&reader) {
                Some((seen, stored)) if fits(request, &stored) => {
                    return hit(worker, client, request, reader, &seen, &stored).await;
                }
                _ => {
                    let lease = worker.cache.refill(key);
                    return miss(worker, client, request, digest, lease).await;
                }
            },
            Ok(Lookup::Miss(lease)) => {
                return miss(worker, client, request, digest, lease).await;
            }
            Ok(Lookup::Join(mut reader)) => match reader.head().await {
                Ok(_) => return join(worker, client, request, reader).await,
                Err(NoHead::Declined) => {
                    return passed_miss(worker, client, request, "declined").await;
                }
                Err(NoHead::Failed(why)) => {
                    return joined_failure(worker, client, request, &why).await;
                }
                Err(NoHead::Abandoned) => {}
            },
            Err(error) => {
                tracing::warn!(%error, "cache look-up failed");
                break;
            }
        }
    }
    passed_miss(worker, client, request, "unsettled").await
}

async fn hit(
    worker: &Worker,
    client: &Client,
    request: &Request,
    reader: Reader,
    seen: &Seen,
    stored: &Fields,
) -> Result<(), End> {
    Stats::add(&worker.stats.hits, 1);
    tracing::info!(
        host = %request.url.host,
        path = %request.url.path(),
        size = seen.len,
        "cache hit"
    );
    worker.stats.observe(Outcome::Hit, request.started.elapsed());
    deliver(worker, client, request, (reader, seen, stored), Source::Hit).await
}

async fn join(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    reader: Reader,
) -> Result<(), End> {
    let Some((seen, stored)) = stored_head(&reader) else {
        return passed_miss(worker, client, request, "unsettled").await;
    };
    if !fits(request, &stored) {
        return passed_miss(worker, client, request, "media-type").await;
    }
    let part = Part::wanted(&request.head, &stored, seen.len);
    if part.start() > seen.written.saturating_add(AHEAD_MAX) {
        return passed_miss(worker, client, request, "far-ahead").await;
    }
    count_miss(worker, request, seen.len, "collapsed");
    Stats::add(&worker.stats.coalesced, 1);
    deliver(worker, client, request, (reader, &seen, &stored), Source::Miss).await
}

async fn miss(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    digest: Option<Digest>,
    lease: Lease,
) -> Result<(), End> {
    let recipe = request.recipe();
    let fetched = match recipe.fetch(worker, None).await {
        Ok(fetched) => fetched,
        Err(error) => {
            lease.fail(Failure::Source(error.to_string().into()));
            count_miss(worker, request, None, "upstream-failed");
            Stats::add(&worker.stats.errors, 1);
            tracing::warn!(host = %request.url.host, path = %request.url.path(), %error,
                "upstream failed");
            return request.answer(client, &error.answer()).await;
        }
    };
    let len = match fetched.framing {
        Framing::Length(len) => Some(len),
        Framing::None => Some(0),
        Framing::Chunked | Framing::UntilClose => None,
    };
    let head = &fetched.head;
    let admitted =
        worker.policy.admit_answer(&request.ask(), digest.as_ref(), head.status, &head.fields, len);
    if let Err(reason) = admitted {
        lease.decline();
        count_miss(worker, request, len, reason.name());
        return pass::relay_answer(worker, client, request, fetched).await;
    }
    let stored = head_to_store(request, &head.fields, digest.as_ref());
    let mut bytes = Vec::new();
    stored.write_to(&mut bytes);
    match lease.begin(bytes, len, digest).await {
        Ok((fill, reader)) => {
            count_miss(worker, request, len, "absent");
            monoio::spawn(store(Rc::clone(worker), recipe, fetched, fill));
            let Some(seen) = reader.glance() else { return Err(End::Broken) };
            deliver(worker, client, request, (reader, &seen, &stored), Source::Miss).await
        }
        Err(error) => {
            Stats::add(&worker.stats.errors, 1);
            tracing::warn!(%error, "not cached");
            count_miss(worker, request, len, "cache-unavailable");
            pass::relay_answer(worker, client, request, fetched).await
        }
    }
}

async fn deliver(
    worker: &Worker,
    client: &Client,
    request: &Request,
    (reader, seen, stored): (Reader, &Seen, &Fields),
    source: Source,
) -> Result<(), End> {
    let part = Part::wanted(&request.head, stored, seen.len);
    let keep_alive = request.keep_alive;
    let delivery =
        Delivery { client, stats: &worker.stats, request: &request.head, keep_alive, source };
    match delivery.send(reader, seen, stored, part).await {
        Ok(_) => request.go_on(keep_alive),
        Err(Undelivered::Ended(end)) => Err(end),
        Err(Undelivered::Entry { why, sent }) => {
            tracing::warn!(host = %request.url.host, path = %request.url.path(), %why, sent,
                "delivery broken off");
            Err(End::Broken)
        }
    }
}

async fn passed_miss(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    reason: &'static str,
) -> Result<(), End> {
    count_miss(worker, request, None, reason);
    pass::pass(worker, client, request, reason).await
}

async fn joined_failure(
    worker: &Worker,
    client: &Client,
    request: &Request,
    why: &Failure,
) -> Result<(), End> {
    count_miss(worker, request, None, "collapsed");
    Stats::add(&worker.stats.coalesced, 1);
    let message = format!("upstream: {why}");
    request.answer(client, &Answer::new(503, "UPSTREAM_UNAVAILABLE", message)).await
}

fn count_miss(worker: &Worker, request: &Request, size: Option<u64>, reason: &'static str) {
    Stats::add(&worker.stats.misses, 1);
    worker.stats.observe(Outcome::Miss, request.started.elapsed());
    let (host, path) = (&request.url.host, request.url.path());
    tracing::info!(%host, %path, size, %reason, "cache miss");
}

/// What is known of an entry whose head is there, the stored fields read back.
fn stored_head(reader: &Reader) -> Option<(Seen, Fields)> {
    const STATUS: &[u8] = b"HTTP/1.1 200 OK\r\n";
    let seen = reader.glance()?;
    let head = [STATUS, &seen.body.head, b"\r\n"].concat();
    match parse_response(&head, &HeadLimits::with_size(head.len())) {
        Ok(Parsed::Complete { head, .. }) => Some((seen, head.fields)),
        _ => None,
    }
}

/// Whether stored fields may answer this request: a manifest needs its media type, and one that was
/// fetched as a blob has none to speak of.
fn fits(request: &Request, stored: &Fields) -> bool {
    !request.url.path().contains("/manifests/")
        || stored
            .get("content-type")
            .is_some_and(|kind| !kind.eq_ignore_ascii_case(b"application/octet-stream"))
}

/// The fields that are kept, and those that every answer from this entry has.
fn head_to_store(request: &Request, upstream: &Fields, digest: Option<&Digest>) -> Fields {
    let mut stored = policy::stored_fields(upstream);
    let mut set = |name: &str, value: &str| {
        // Names and values here are our own and in order.
        let _ = stored.set(name, value);
    };
    if let Some(digest) = digest {
        set("ETag", &format!("\"{digest}\""));
        set("Docker-Content-Digest", &digest.to_string());
    }
    if request.url.path().starts_with("/v2/") {
        set("Docker-Distribution-Api-Version", "registry/2.0");
    }
    set("Accept-Ranges", "bytes");
    if !upstream.contains("content-type") {
        set("Content-Type", "application/octet-stream");
    }
    set("Date", &httpdate::fmt_http_date(std::time::SystemTime::now()));
    stored
}
