//! A candidate: looked up, answered from its entry, joined to a running fill, or fetched into a new
//! one.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::Worker;
use super::ahead::{fetch_part, is_far_ahead};
use super::answer::Answer;
use super::deliver::{Delivery, Part, Source, Undelivered};
use super::drain::guarded;
use super::exchange::Request;
use super::fetch::{FetchError, Fetched, Recipe};
use super::pass;
use super::prove::{self, Gate, SOURCE};
use super::record::Why;
use super::rest::{Rest, pass_rest};
use super::session::{Client, End};
use super::store::store;
use super::stored::{Stored, URL, URL_MAX};
use crate::cache::{Failure, HELD_BACK, Lease, Lookup, NoHead, NoLease, Reader, Seen};
use crate::http::{Fields, Framing, Scheme, Version};
use crate::key::{Digest, Key};
use crate::net::{Either, race};
use crate::policy::rights::RepositoryId;
use crate::policy::{self, Admission, Reason};
use crate::stats::{Outcome, Stats};
use crate::sys::clock::now_ms;

/// Times a request looks up again because the fill it joined ended without a word.
const LOOKUPS_MAX: usize = 4;

/// HEAD of a candidate: from a stored entry, else from upstream; it never begins a fill.
pub async fn head_request(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    key: &Key,
) -> Result<(), End> {
    match worker.cache.peek(key).await {
        Ok(Some(reader)) => {
            if let Some(seen) = reader.glance()
                && let Some(stored) = Stored::of(&seen.body)
                && fits(request, stored)
                && came_from(request, key, stored.source.as_ref())
                && let Gate::Public | Gate::Open =
                    may_have(worker, request, key, stored.source.as_ref()).await
            {
                return hit(worker, client, request, reader, &seen, stored).await;
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cache look-up failed"),
    }
    Stats::add(&worker.stats.misses, 1);
    let mut plain = request.clone();
    // What is said of a coded body is not true of the one that a GET is given. Without room for one
    // more field it goes as the client put it.
    let _ = plain.head.fields.set("Accept-Encoding", "identity");
    client.record.settle(Outcome::Miss, Why::Head, None);
    pass::pass(worker, client, &plain).await
}

/// Whether an entry's bytes came from the repository that is asked. A push asks by HEAD what it
/// need not send: that another repository has a blob is no answer to that.
fn came_from(request: &Request, key: &Key, source: Option<&RepositoryId>) -> bool {
    matches!(key, Key::Url(_)) || source == Some(request.repository())
}

/// GET of a candidate.
pub async fn get_request(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    key: &Key,
    digest: Option<Digest>,
) -> Result<(), End> {
    let counted = Cell::new(false);
    let missed = || {
        if !counted.replace(true) {
            Stats::add(&worker.stats.misses, 1);
        }
    };
    for _ in 0..LOOKUPS_MAX {
        let settled = match worker.cache.lookup(key, request.repository().registry()).await {
            Ok(Lookup::Hit(reader)) => {
                match stored_answer(worker, client, request, key, reader, &missed).await {
                    Ok(result) => Some(result),
                    Err(why) => {
                        missed();
                        let stored = (key, digest.as_ref());
                        Box::pin(refill(worker, client, request, stored, why)).await
                    }
                }
            }
            Ok(Lookup::Miss(lease)) => {
                missed();
                let (digest, why) = (digest.clone(), Why::FirstTime);
                Some(Box::pin(miss(worker, client, request, digest, lease, why)).await)
            }
            Ok(Lookup::Crowded) => {
                missed();
                Some(pass_miss(worker, client, request, Why::MaxFills).await)
            }
            Ok(Lookup::Join(reader)) => {
                missed();
                Box::pin(await_head(worker, client, request, key, reader)).await
            }
            Err(error) => {
                tracing::warn!(%error, "cache look-up failed");
                break;
            }
        };
        if let Some(result) = settled {
            return result;
        }
    }
    missed();
    pass_miss(worker, client, request, Why::Unsettled).await
}

/// Answers from a stored entry. `Err`: why it will not do for this request.
async fn stored_answer(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    key: &Key,
    reader: Reader,
    missed: &impl Fn(),
) -> Result<Result<(), End>, Why> {
    let seen = reader.glance().ok_or(Why::MediaType)?;
    let stored = Stored::of(&seen.body).ok_or(Why::MediaType)?;
    if !fits(request, stored) {
        return Err(Why::MediaType);
    }
    let source = stored.source.as_ref();
    let gate = may_have(worker, request, key, source).await;
    // What was stored from elsewhere says nothing of this repository.
    if gate == Gate::Open && source == Some(request.repository()) {
        prove::note_manifest(worker, request, &seen);
    }
    match gate {
        Gate::Public | Gate::Open => Ok(hit(worker, client, request, reader, &seen, stored).await),
        Gate::Fetch => Err(Why::Private),
        refused => {
            missed();
            Ok(shut(worker, client, request, refused).await)
        }
    }
}

/// Waits for the head of a running fill, and joins it. `None`: it ended without a word.
async fn await_head(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    key: &Key,
    mut reader: Reader,
) -> Option<Result<(), End>> {
    let elsewhere = reader.filler() != request.repository().registry();
    if worker.access.is_some() && elsewhere {
        // What another registry is still sending, or has not begun to, is proven by nothing: it
        // could be anything, and take any time. Whoever passes keeps no fill going.
        drop(reader);
        return Some(pass_miss(worker, client, request, Why::OtherRegistry).await);
    }
    Stats::add(&worker.stats.coalesced, 1);
    let ended = match reader.head().await {
        Ok(_) => return Some(join(worker, client, request, key, reader).await),
        Err(ended) => ended,
    };
    drop(reader);
    Some(match ended {
        NoHead::Declined => pass_miss(worker, client, request, Why::Declined).await,
        // What ails another registry is nothing to this one's clients.
        NoHead::Failed(_) if elsewhere => {
            pass_miss(worker, client, request, Why::OtherRegistry).await
        }
        // As for a request that finds the disk so.
        NoHead::Failed(Failure::Storage(_)) => {
            pass_miss(worker, client, request, Why::CacheUnavailable).await
        }
        NoHead::Failed(why) => joined_failure(client, request, &why).await,
        NoHead::Abandoned => return None,
    })
}

/// Fetches what is stored already, since what is stored will not do for this request, or joins
/// whoever does. `None`: that one ended without a word.
async fn refill(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    (key, digest): (&Key, Option<&Digest>),
    why: Why,
) -> Option<Result<(), End>> {
    let reader = match worker.cache.refill(key, request.repository().registry()) {
        Ok(lease) => {
            let digest = digest.cloned();
            return Some(Box::pin(miss(worker, client, request, digest, lease, why)).await);
        }
        Err(NoLease::Taken(reader)) => reader,
        Err(NoLease::Crowded) => {
            return Some(pass_miss(worker, client, request, Why::MaxFills).await);
        }
    };
    await_head(worker, client, request, key, reader).await
}

async fn hit(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    reader: Reader,
    seen: &Seen,
    stored: &Stored,
) -> Result<(), End> {
    Stats::add(&worker.stats.hits, 1);
    client.record.settle(Outcome::Hit, Why::Stored, seen.len);
    let source = Source::Hit(&stored.lines);
    deliver(worker, client, request, (reader, seen, &stored.fields), source).await
}

async fn join(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    key: &Key,
    reader: Reader,
) -> Result<(), End> {
    let seen = reader.glance();
    let stored = seen.as_ref().and_then(|seen| Some((seen, Stored::of(&seen.body)?)));
    let Some((seen, stored)) = stored else {
        drop(reader);
        return pass_miss(worker, client, request, Why::Unsettled).await;
    };
    let gate = may_have(worker, request, key, stored.source.as_ref()).await;
    let beside = match gate {
        Gate::Public | Gate::Open if fits(request, stored) => None,
        Gate::Public | Gate::Open => Some(Why::MediaType),
        Gate::Fetch => Some(Why::Private),
        refused => return shut(worker, client, request, refused).await,
    };
    if let Some(why) = beside {
        drop(reader);
        return pass_miss(worker, client, request, why).await;
    }
    let outcome = (Outcome::Joined, Why::Collapsed);
    follow(worker, client, request, (reader, seen, &stored.fields), outcome).await
}

/// Answers from a running fill, or past it where that is too far behind.
async fn follow(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    (reader, seen, stored): (Reader, &Seen, &Fields),
    (outcome, why): (Outcome, Why),
) -> Result<(), End> {
    let part = Part::wanted(&request.head, stored, seen.len);
    if is_far_ahead(part, seen.written)
        && let digest = digest_of(worker, request)
        && let Some(fetched) = Box::pin(fetch_part(worker, request, part, digest)).await
    {
        drop(reader);
        client.record.settle(Outcome::Miss, Why::FarAhead, seen.len);
        return Box::pin(pass::relay_answer(worker, client, request, fetched, None)).await;
    }
    client.record.settle(outcome, why, seen.len);
    deliver(worker, client, request, (reader, seen, stored), Source::Miss).await
}

async fn miss(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    digest: Option<Digest>,
    lease: Lease,
    why: Why,
) -> Result<(), End> {
    lease.label(format!("{}{}", request.url.authority(), request.url.path()));
    let recipe = request.recipe();
    let fetched = match recipe.fetch(worker, None).await {
        Ok(fetched) => fetched,
        Err(error) => {
            let error = Arc::new(error);
            lease.fail(Failure::NoAnswer(error.clone()));
            client.record.settle(Outcome::Miss, why_failed(&error), None);
            return upstream_failed(worker, client, request, &error).await;
        }
    };
    note_first(worker, request, &fetched);
    client.record.from(&fetched.url.host);
    let len = match fetched.framing {
        Framing::Length(len) => Some(len),
        Framing::None => Some(0),
        Framing::Chunked | Framing::UntilClose => None,
    };
    let head = &fetched.head;
    if let Err(reason) = admit_answer(worker, request, digest.as_ref(), &fetched, len) {
        lease.decline();
        if request.head.fields.contains("range") && fetched.head.status == 200 {
            drop(fetched);
            return pass_miss(worker, client, request, Why::Rule(reason)).await;
        }
        client.record.settle(Outcome::Miss, Why::Rule(reason), len);
        return pass::relay_answer(worker, client, request, fetched, digest.as_ref()).await;
    }
    let stored = match digest {
        Some(_) => of_digest(&head.fields),
        None => policy::stored_fields(&head.fields),
    };
    let stored = with_our_own(request, stored, digest.as_ref());
    // Whoever caused the answer gets all of it, what belongs to that one answer included.
    let mut whole = head.fields.clone();
    policy::pass_response(&mut whole);
    whole.remove("content-length");
    whole.remove(SOURCE);
    whole.remove(URL);
    let whole = with_our_own(request, whole, digest.as_ref());
    let mut bytes = Vec::new();
    let kept = with_origin(request, stored, digest.is_some());
    kept.write_to(&mut bytes);
    match lease.begin(bytes, len, digest.clone()).await {
        Ok((fill, reader)) => {
            let shown = digest.map(|digest| (request.clone(), digest, now_ms()));
            monoio::spawn(guarded(store(Rc::clone(worker), recipe, fetched, fill, shown)));
            let Some(seen) = reader.glance() else { return Err(End::Broken) };
            follow(worker, client, request, (reader, &seen, &whole), (Outcome::Miss, why)).await
        }
        // The cache has said what is wrong.
        Err(_) => {
            client.record.settle(Outcome::Miss, Why::CacheUnavailable, len);
            pass::relay_answer(worker, client, request, fetched, digest.as_ref()).await
        }
    }
}

/// Whether the answer in hand, with a body of `len` bytes where that is known, is stored.
fn admit_answer(
    worker: &Worker,
    request: &Request,
    digest: Option<&Digest>,
    fetched: &Fetched,
    len: Option<u64>,
) -> Result<(), Reason> {
    // A cut connection and the end of such a body look alike (RFC 9112, section 8).
    let endless = fetched.framing == Framing::UntilClose && fetched.url.scheme == Scheme::Http;
    if endless && digest.is_none() {
        return Err(Reason::NoLength);
    }
    let head = &fetched.head;
    worker.policy.admit_answer(&request.ask(), digest, head.status, &head.fields, len)
}

async fn deliver(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    (mut reader, seen, stored): (Reader, &Seen, &Fields),
    source: Source<'_>,
) -> Result<(), End> {
    let mut latest = None;
    if source == Source::Miss && seen.len.is_some_and(|len| len <= HELD_BACK) {
        // All of it is held back: then the head can wait too, and tell of a failure.
        let ended = match race(reader.ended(), client.conn.ends()).await {
            Either::Left(ended) => ended,
            Either::Right(()) => {
                reader.unfollow();
                reader.ended().await
            }
        };
        match ended {
            Ok(()) => latest = reader.glance(),
            Err(Failure::Storage(_)) => {
                return Box::pin(past_cache(worker, client, request)).await;
            }
            Err(why) => {
                let host = request.url.authority();
                let answer = Answer::new(502, "UPSTREAM_BODY", format!("upstream {host}: {why}"));
                return request.answer(client, &answer).await;
            }
        }
    }
    let seen = latest.as_ref().unwrap_or(seen);
    let part = Part::wanted(&request.head, stored, seen.len);
    let keep_alive = request.keep_alive;
    let via = worker.via(Version::Http11);
    let (stats, ktls, head) = (&worker.stats, &worker.ktls, &request.head);
    let delivery = Delivery { client, stats, ktls, via, request: head, keep_alive, source };
    match delivery.send(&mut reader, seen, stored, part).await {
        Ok(_) => request.go_on(keep_alive),
        Err(Undelivered::Ended(end)) => Err(end),
        Err(Undelivered::Unread(why)) => {
            worker.cache.drop_unreadable(reader.key(), &why).await;
            drop(reader);
            Box::pin(past_cache(worker, client, request)).await
        }
        Err(Undelivered::Entry { why: Failure::Storage(why), at, end, chunked }) => {
            if source != Source::Miss {
                worker.cache.drop_unreadable(reader.key(), &why).await;
            }
            drop(reader);
            let rest = Rest { body: Arc::clone(&seen.body), len: seen.len, at, end, chunked };
            Box::pin(pass_rest(worker, client, request, rest)).await
        }
        Err(Undelivered::Entry { why, at, .. }) => {
            tracing::warn!(host = %request.url.host, path = %request.url.path(), %why, at,
                "delivery broken off");
            Err(End::Broken)
        }
    }
}

/// Answers a candidate past the cache: redirects are followed, and the client's own range
/// goes along.
async fn pass_miss(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    why: Why,
) -> Result<(), End> {
    client.record.settle(Outcome::Miss, why, None);
    Box::pin(past_cache(worker, client, request)).await
}

async fn past_cache(worker: &Rc<Worker>, client: &Client, request: &Request) -> Result<(), End> {
    let recipe = Recipe { as_asked: true, ..request.recipe() };
    match recipe.fetch(worker, None).await {
        Ok(fetched) => {
            note_first(worker, request, &fetched);
            let digest = digest_of(worker, request);
            pass::relay_answer(worker, client, request, fetched, digest.as_ref()).await
        }
        Err(error) => upstream_failed(worker, client, request, &error).await,
    }
}

async fn upstream_failed(
    worker: &Worker,
    client: &Client,
    request: &Request,
    error: &FetchError,
) -> Result<(), End> {
    request.note_failure(worker, client, error.is_refusal(), error);
    request.answer(client, &error.answer()).await
}

/// Takes in what the registry itself answered, before any redirect.
fn note_first(worker: &Rc<Worker>, request: &Request, fetched: &Fetched) {
    match &fetched.redirect {
        Some((status, fields)) => prove::note_answer(worker, request, *status, fields),
        None => prove::note_answer(worker, request, fetched.head.status, &fetched.head.fields),
    }
}

/// What the body must hash to, where the URL says.
pub fn digest_of(worker: &Worker, request: &Request) -> Option<Digest> {
    match worker.policy.admit(&request.ask()) {
        Admission::Store { digest, .. } => digest,
        Admission::Pass(_) => None,
    }
}

fn why_failed(error: &FetchError) -> Why {
    if error.is_refusal() { Why::Refused } else { Why::UpstreamFailed }
}

/// Answers whoever joined a fill that came to no head, as whoever began it is answered.
async fn joined_failure(client: &Client, request: &Request, why: &Failure) -> Result<(), End> {
    let error = match why {
        Failure::NoAnswer(error) => error.downcast_ref::<FetchError>(),
        _ => None,
    };
    client.record.settle(Outcome::Joined, error.map_or(Why::Collapsed, why_failed), None);
    let answer = error.map_or_else(
        || Answer::new(503, "UPSTREAM_UNAVAILABLE", format!("upstream: {why}")),
        FetchError::answer,
    );
    request.answer(client, &answer).await
}

/// Whether this client may have an entry. Those without a digest were admitted for everybody.
async fn may_have(
    worker: &Rc<Worker>,
    request: &Request,
    key: &Key,
    source: Option<&RepositoryId>,
) -> Gate {
    match key {
        Key::Digest(digest) => prove::gate(worker, request, digest, source).await,
        Key::Url(_) => Gate::Public,
    }
}

/// Answers a request whose client may not have what is stored: upstream says no itself.
async fn shut(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    gate: Gate,
) -> Result<(), End> {
    if gate == Gate::Unknown {
        client.record.settle(Outcome::Miss, Why::Unproven, None);
        let message = format!("{} can't be asked whether you may have this", request.url.host);
        let answer = Answer::new(503, "UPSTREAM_UNAVAILABLE", message);
        return request.answer(client, &answer).await;
    }
    pass_miss(worker, client, request, Why::Refused).await
}

/// Whether stored fields may answer this request. A manifest needs its media type: one that was
/// fetched as a blob has not, and which only its own registry is believed.
fn fits(request: &Request, stored: &Stored) -> bool {
    let is_type = |kind: &[u8]| !kind.eq_ignore_ascii_case(b"application/octet-stream");
    !request.url.path().contains("/manifests/")
        || stored.fields.get("content-type").is_some_and(is_type)
            && stored.source.is_some_and(|source| source.shares_registry(request.repository()))
}

/// What is kept of the head of a digest's bytes: nothing in which one registry could speak to the
/// clients of another.
fn of_digest(fields: &Fields) -> Fields {
    let mut kept = Fields::new();
    if let Some(kind) = fields.get("content-type") {
        // It was a field's value a moment ago.
        let _ = kept.push("Content-Type", kind);
    }
    kept
}

/// Adds what is kept for ourselves: the repository the bytes came from, and what was asked for. Not
/// for a digest: it may be of a private image, whose name is for nobody to read there.
fn with_origin(request: &Request, mut fields: Fields, of_digest: bool) -> Fields {
    // Names and values of our own.
    let _ = fields.set(SOURCE, request.repository().to_string());
    fields.remove(URL);
    let url = format!("{}{}", request.url.authority(), request.url.path());
    if !of_digest && url.len() <= URL_MAX {
        let _ = fields.set(URL, url);
    }
    fields
}

/// Adds the fields that every answer from this entry has.
fn with_our_own(request: &Request, mut fields: Fields, digest: Option<&Digest>) -> Fields {
    let typed = fields.contains("content-type");
    let mut set = |name: &str, value: &str| {
        // Names and values here are our own and in order.
        let _ = fields.set(name, value);
    };
    if let Some(digest) = digest {
        set("ETag", &format!("\"{digest}\""));
        set("Docker-Content-Digest", &digest.to_string());
    }
    if request.url.path().starts_with("/v2/") {
        set("Docker-Distribution-Api-Version", "registry/2.0");
    }
    set("Accept-Ranges", "bytes");
    if !typed {
        set("Content-Type", "application/octet-stream");
    }
    set("Date", &httpdate::fmt_http_date(std::time::SystemTime::now()));
    fields
}
