//! The rest of a body past a cache whose disk gave out in the middle of a delivery.

use std::sync::Arc;

use super::Worker;
use super::candidate::digest_of;
use super::exchange::Request;
use super::pass::{Down, Proof};
use super::session::{Client, End};
use super::store::{resumed_at, strong_etag};
use super::stored::Stored;
use crate::cache::Body;
use crate::net::BodyReader;

/// What a client is still to get of a body that could not be stored, or read, to its end.
pub struct Rest {
    /// What the bytes so far are from.
    pub body: Arc<Body>,
    /// The body's length, where it is known.
    pub len: Option<u64>,
    /// The next byte the client is to get.
    pub at: u64,
    /// Where what it wants ends, if not where the body does.
    pub end: Option<u64>,
    /// Whether it gets chunks.
    pub chunked: bool,
}

/// Goes on past a cache whose disk gave out: what the client has not got yet comes from upstream.
pub async fn pass_rest(
    worker: &Worker,
    client: &Client,
    request: &Request,
    rest: Rest,
) -> Result<(), End> {
    let Rest { body, len, at, end, chunked } = rest;
    let (host, path) = (&request.url.host, request.url.path());
    tracing::info!(%host, %path, at, "going on past the cache");
    let broken = |error: &dyn std::fmt::Display| {
        tracing::warn!(%host, %path, %error, "delivery broken off");
        End::Broken
    };
    // A range that begins beyond what is stored is like one far ahead: there is no whole to prove.
    let begun = body.file.metadata().is_ok_and(|file| file.len() >= at);
    let whole = begun && (end.is_none() || end == len);
    let digest = digest_of(worker, request);
    let etag = Stored::of(&body).and_then(|stored| strong_etag(&stored.fields));
    let proof = match &digest {
        Some(digest) if whole => {
            let hasher = worker.cache.rehash(body, digest.algorithm(), at).await;
            Some(Proof::resumed(digest, hasher.map_err(|error| broken(&error))?))
        }
        _ => None,
    };
    let fetched = request.recipe().fetch(worker, Some(at)).await.map_err(|error| broken(&error))?;
    // By its digest it is the same body wherever it comes from; else by its ETag.
    let etag = if digest.is_none() { Some(etag.as_deref()) } else { None };
    let skip = match resumed_at(&fetched.head, at, len, etag) {
        Some(skip) => skip,
        None => return Err(broken(&"upstream did not send the rest")),
    };
    let mut from = BodyReader::new(fetched.framing);
    let left = end.map(|end| end - at);
    let sender = &fetched.url.host;
    Down { worker, client, request, sender, chunked, skip, left, proof, lesson: None }
        .copy(&fetched.conn, &fetched.head.fields, &mut from)
        .await?;
    if from.is_done() {
        fetched.recycle(worker);
    }
    match (end, chunked) {
        (None, false) => Err(End::Answered),
        _ => request.go_on(request.keep_alive),
    }
}
