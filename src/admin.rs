//! The admin listener: health, statistics, deletion, the configuration (`config`), and the
//! page (`page`).
//!
//! It is reached from browsers too, by way of any page somebody has open: so it answers only to
//! names that are its own (against DNS rebinding) and to pages from itself (against request
//! forgery).

mod cache;
mod chart;
mod config;
mod live;
mod page;

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::cache::Cache;
use crate::config::Config;
use crate::http::{
    Authority, HeadLimits, Host, Malformed, Method, RequestHead, Scheme, Target, Version,
    keeps_alive, request_framing, split_path,
};
use crate::images::Images;
use crate::key::{Digest, Key};
use crate::live::Live;
use crate::net::{BodyReader, Conn, Either, Ktls, NetError, race};
use crate::proxy::{Drain, Reply, linger};
use crate::stats::{Dialect, Moment, Stats};
use crate::sys;

/// Bytes of a request's body at most.
const BODY_MAX: usize = 64 * 1024;

/// Bytes of it read at a time.
const BODY_READ: usize = 16 * 1024;

/// What the admin listener needs.
pub struct Admin {
    /// What is stored.
    pub cache: Cache,
    /// The counters.
    pub stats: Arc<Stats>,
    /// What people call it.
    pub images: Arc<Images>,
    /// The configuration in force.
    pub live: Arc<Live>,
    /// The runtime's driver, for `/health`.
    pub driver: &'static str,
    /// Worker threads.
    pub workers: usize,
    /// What TLS goes to the kernel.
    pub ktls: Arc<Ktls>,
    /// Says when to stop.
    pub drain: Rc<Drain>,
}

/// What is answered.
struct Answer {
    status: u16,
    /// Further header lines, each with its line end.
    extra: &'static str,
    kind: &'static str,
    body: Vec<u8>,
}

impl Answer {
    fn json(status: u16, body: &impl Serialize) -> Answer {
        let mut bytes = serde_json::to_vec(body).unwrap_or_default();
        bytes.push(b'\n');
        Answer { status, extra: "", kind: "application/json", body: bytes }
    }
}

impl Admin {
    /// Serves one connection until it ends.
    pub async fn serve(self: Rc<Self>, conn: Conn) {
        loop {
            let limits = self.live.config().limits.clone();
            // For a head, and between two requests.
            let patience = limits.header_timeout;
            conn.set_patience(patience);
            let heads = HeadLimits::with_size(limits.header_size);
            let next = conn.request_head(&heads, patience, patience);
            let head = match race(next, self.drain.begun()).await {
                Either::Left(Ok(Some(head))) => head,
                Either::Left(Err(NetError::Malformed(error))) => {
                    if send(&conn, Version::Http11, false, true, &malformed(error)).await.is_ok() {
                        break;
                    }
                    return;
                }
                Either::Left(_) | Either::Right(()) => return conn.finish().await,
            };
            // All of the request is read, and found in order, before anything is done.
            let read = monoio::time::timeout(patience, read_body(&conn, &head)).await;
            let (answer, keep) = match read {
                Ok(Ok(body)) => {
                    let answer = self.answer(&head, &body).await;
                    (answer, keeps_alive(head.version, &head.fields))
                }
                Ok(Err(Some(refusal))) => (refusal, false),
                Ok(Err(None)) | Err(_) => return,
            };
            let with_body = head.method != Method::HEAD;
            if send(&conn, head.version, keep, with_body, &answer).await.is_err() {
                return;
            }
            if !keep {
                break;
            }
        }
        linger(&conn).await;
    }

    async fn answer(&self, head: &RequestHead, body: &[u8]) -> Answer {
        let (Target::Origin(target) | Target::Absolute { scheme: Scheme::Http, path: target, .. }) =
            &head.target
        else {
            return refusal(400, "MALFORMED", "this is the admin port, not the proxy port");
        };
        let config = self.live.config();
        if let Err(answer) = check_source(&config, head) {
            return answer;
        }
        let (path, query) = split_path(target);
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        let has_token = has_token(&config, head);
        if reads && let Some(answer) = page::for_everybody(path, has_token) {
            return answer;
        }
        if path != "/health" && !has_token {
            let message = "Authorization: Bearer with proxy.api_token";
            let extra = "WWW-Authenticate: Bearer realm=\"discobot-proxy\"\r\n";
            return Answer { extra, ..refusal(401, "UNAUTHORIZED", message) };
        }
        let deletes = head.method == Method::DELETE;
        match path {
            "/health" if reads => Answer::json(200, &self.health()),
            "/" if reads => self.page(query).await,
            "/api/live" if reads => self.live().await,
            "/metrics" if reads => self.metrics(head).await,
            "/api/cache/stats" if reads => {
                Answer::json(200, &live::statistics(&self.stats, &self.cache))
            }
            "/api/config" | "/api/config/reload" => self.configuration(head, path, body).await,
            "/" | "/health" | "/metrics" | "/api/cache/stats" | "/api/live" | "/page.css"
            | "/page.js" | "/page.svg" => not_allowed("Allow: GET, HEAD\r\n"),
            "/api/cache" | "/api/cache/images" | "/api/cache/entries" | "/api/cache/pins" => {
                self.cache(head, (path, query), body).await
            }
            _ => match path.strip_prefix("/api/cache/").and_then(Digest::parse) {
                Some(digest) if deletes => self.remove(digest).await,
                Some(_) => not_allowed("Allow: DELETE\r\n"),
                None => refusal(404, "NOT_FOUND", "there is nothing at this path"),
            },
        }
    }

    fn health(&self) -> Value {
        json!({
            "status": "ok",
            "version": env!("CARGO_PKG_VERSION"),
            "driver": self.driver,
            "workers": self.workers,
            "ktls": { "suites": self.ktls.suites(), "why": self.ktls.why() },
            "scanning": self.cache.is_scanning(),
        })
    }

    /// In OpenMetrics for who asks for that, as Prometheus does.
    async fn metrics(&self, head: &RequestHead) -> Answer {
        let dialect = match head.fields.get_str("accept") {
            Some(kinds) if kinds.contains("application/openmetrics-text") => Dialect::OpenMetrics,
            _ => Dialect::Prometheus,
        };
        let (stats, cache, driver) = (Arc::clone(&self.stats), self.cache.clone(), self.driver);
        let config = self.live.config();
        let tell = move || {
            let sizes = cache.sizes();
            let mut gauges = vec![
                ("cache_bytes", "Bytes of the bodies stored", sizes.stored as f64),
                ("cache_max_bytes", "The configured cache.max_size", config.cache.max_size as f64),
                ("cache_entries", "Entries stored", sizes.entries as f64),
                ("fills", "Fills in progress", sizes.fills as f64),
            ];
            if let Ok(space) = sys::file::space(&config.cache.dir) {
                let help = "Free bytes of the file system that holds the cache";
                gauges.push(("disk_free_bytes", help, space.free as f64));
                let help = "Size of the file system that holds the cache";
                gauges.push(("disk_size_bytes", help, space.total as f64));
            }
            let mut busy = sys::process::thread_times().unwrap_or_default();
            busy.retain(|(name, _)| name.starts_with("worker-"));
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let build = vec![("version", version), ("driver", driver.to_owned())];
            stats.tell(Moment { gauges, busy, build }, dialect)
        };
        off_core(move || match tell() {
            Ok(text) => {
                let kind = dialect.media_type();
                Answer { status: 200, extra: "", kind, body: text.into_bytes() }
            }
            Err(error) => failure(&error),
        })
        .await
    }

    async fn live(&self) -> Answer {
        let (stats, cache) = (Arc::clone(&self.stats), self.cache.clone());
        let config = self.live.config();
        off_core(move || live::document(&live::figures(&stats, &cache, &config.cache))).await
    }

    /// The page's script says `?figures`: it has asked for the images by themselves.
    async fn page(&self, query: Option<&str>) -> Answer {
        let (stats, cache) = (Arc::clone(&self.stats), self.cache.clone());
        let (config, images) = (self.live.config(), Arc::clone(&self.images));
        let with_images = query.is_none();
        off_core(move || {
            let top = with_images.then(|| cache::most_used(&images, page::IMAGES));
            page::page(&live::figures(&stats, &cache, &config.cache), top.as_ref())
        })
        .await
    }

    async fn clear(&self) -> Answer {
        match self.cache.clear().await {
            Ok(removed) => {
                tracing::info!(removed = removed.count, freed = removed.freed, "cache cleared");
                let (count, freed) = (removed.count, removed.freed);
                Answer::json(200, &json!({"status": "ok", "removed": count, "freed": freed}))
            }
            Err(error) => failure(&error),
        }
    }

    async fn remove(&self, digest: Digest) -> Answer {
        match self.cache.remove(&Key::Digest(digest.clone())).await {
            Ok(Some(freed)) => {
                tracing::info!(%digest, freed, "entry removed");
                Answer::json(200, &json!({"status": "ok", "removed": 1, "freed": freed}))
            }
            Ok(None) => refusal(404, "NOT_FOUND", &format!("{digest} is not stored")),
            Err(error) => failure(&error),
        }
    }
}

/// An answer that takes its time is made on a helper thread: this core serves clients.
async fn off_core(make: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    monoio::spawn_blocking(make).await.unwrap_or_else(|error| failure(&format!("{error:?}")))
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// The `Host` must be one of ours, the `Origin`, where a browser gives one, the same.
fn check_source(config: &Config, head: &RequestHead) -> Result<(), Answer> {
    let host = head.authority();
    let known = host.as_ref().is_none_or(|authority| match &authority.host {
        Host::V4(_) | Host::V6(_) => true,
        Host::Name(name) => {
            **name == *"localhost"
                || name.ends_with(".localhost")
                || config.proxy.api_hosts.iter().any(|own| **own == **name)
        }
    });
    if !known {
        let message = "unknown Host: name it in proxy.api_hosts to allow it";
        return Err(refusal(403, "DENIED", message));
    }
    let own = |origin: &[u8]| {
        let origin = std::str::from_utf8(origin).ok();
        let origin = origin.and_then(|origin| origin.split_once("://"));
        let origin = origin.and_then(|(_, authority)| Authority::parse(authority).ok());
        origin.is_some() && origin == host
    };
    match head.fields.all("origin").all(own) {
        true => Ok(()),
        false => Err(refusal(403, "DENIED", "foreign Origin")),
    }
}

fn has_token(config: &Config, head: &RequestHead) -> bool {
    let Some(token) = &config.proxy.api_token else { return true };
    let given = head.fields.get_str("authorization").unwrap_or_default();
    let given = match given.split_once(' ') {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") => given.trim(),
        _ => return false,
    };
    same(given.as_bytes(), token.expose().as_bytes())
}

/// Reads a request's body; it may hold secrets. The error is the refusal of one that is not in
/// order, or nothing where the client has gone.
async fn read_body(conn: &Conn, head: &RequestHead) -> Result<Zeroizing<Vec<u8>>, Option<Answer>> {
    let mut reader =
        BodyReader::new(request_framing(head).map_err(|error| Some(malformed(error)))?);
    let mut body = Zeroizing::new(Vec::new());
    if !reader.is_done() {
        // Room for all of it, or the vector leaves copies behind as it grows.
        body.reserve_exact(BODY_MAX + BODY_READ);
    }
    while !reader.is_done() {
        match reader.read(conn, &mut body, BODY_READ).await {
            Ok(_) => {}
            Err(NetError::Malformed(error)) => return Err(Some(malformed(error))),
            Err(_) => return Err(None),
        }
        if body.len() > BODY_MAX {
            return Err(Some(refusal(413, "TOO_LARGE", "no request here has a body of that size")));
        }
    }
    Ok(body)
}

fn malformed(error: Malformed) -> Answer {
    refusal(error.status(), "MALFORMED", &error.to_string())
}

async fn send(
    conn: &Conn,
    version: Version,
    keep: bool,
    with_body: bool,
    answer: &Answer,
) -> Result<(), NetError> {
    let Answer { status, extra, kind, body } = answer;
    let reply = Reply { status: *status, kind, body, extra };
    reply.send(conn, version, keep, with_body).await
}

#[derive(Serialize)]
struct Refused<'a> {
    code: &'a str,
    message: &'a str,
}

fn refusal(status: u16, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({"errors": [Refused { code, message }]}))
}

/// `allow`: the header line with the methods that are.
fn not_allowed(allow: &'static str) -> Answer {
    let message = "this path does not take that method";
    Answer { extra: allow, ..refusal(405, "UNSUPPORTED", message) }
}

fn failure(error: &dyn std::fmt::Display) -> Answer {
    refusal(500, "CACHE", &format!("the cache could not do it: {error}"))
}

/// Compares without telling by the time taken where the first difference is.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = given.iter().zip(expected).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(differences) == 0 && given.len() == expected.len()
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn tokens_are_the_same_or_not() {
        assert!(same(b"", b"") && same(b"abc", b"abc"));
        for other in [&b"abd"[..], b"ab", b"abcd", b""] {
            assert!(!same(other, b"abc"));
        }
    }
}
