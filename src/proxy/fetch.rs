//! An upstream request and the head of its answer, redirects followed where that is asked for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::answer::Answer;
use super::url::Url;
use super::{Terms, Worker};
use crate::http::{
    Authority, Fields, Framing, Host, Malformed, Method, RequestHead, ResponseHead, Scheme, Target,
    Version, claims_a_body, keeps_alive, response_framing,
};
use crate::net::{BodyReader, Conn, NetError, Origin};
use crate::policy::{self, Injected};

/// An idle connection is used again for a request that may be sent twice within any age.
const ANY_AGE: Duration = Duration::MAX;

/// An idle connection is used for a request that may not be sent twice only when it was used so
/// recently that the server can hardly have closed it meanwhile.
const FRESH: Duration = Duration::from_secs(1);

/// Interim answers taken before the final one: each is progress, and an end there must be.
pub const INTERIM_MAX: usize = 32;

/// The body of an answer that is not used is read to its end up to so many bytes, so that the
/// connection can be used again.
const DISCARD_MAX: u64 = 64 * 1024;

/// And for so long: a new connection costs no more.
const DISCARD_TIME: Duration = Duration::from_millis(250);

/// Why there is no answer to give.
#[derive(Debug, Error)]
pub enum FetchError {
    /// The peer at `host` failed.
    #[error("{host}: {error}")]
    Peer {
        /// Whom it was with.
        host: String,
        /// What it was.
        error: NetError,
    },
    /// More redirects than `limits.max_redirects`.
    #[error("more than {0} redirects")]
    TooManyRedirects(u32),
    /// A redirect that leads nowhere.
    #[error("{0} redirects without a usable Location")]
    BadRedirect(String),
}

impl FetchError {
    /// Whether a rule forbids what was asked for.
    pub fn is_refusal(&self) -> bool {
        matches!(self, FetchError::Peer { error: NetError::Denied(_), .. })
    }

    /// What to tell the client.
    pub fn answer(&self) -> Answer {
        match self {
            FetchError::Peer { host, error } => Answer::upstream(host, error),
            FetchError::TooManyRedirects(_) | FetchError::BadRedirect(_) => {
                Answer::new(502, "UPSTREAM_REDIRECT", format!("upstream: {self}"))
            }
        }
    }
}

/// What to ask, as far as it is the same at every hop and every repetition.
#[derive(Clone)]
pub struct Recipe {
    /// The method.
    pub method: Method,
    /// The version in which the client asked.
    pub received: Version,
    /// The URL the client asked for.
    pub url: Url,
    /// The client's end-to-end fields.
    pub fields: Fields,
    /// What was settled about the URL.
    pub terms: Terms,
    /// Whether the client's own range and conditions go along: its answer is for it alone.
    pub as_asked: bool,
}

/// An upstream connection whose answer's head has been read.
pub struct Fetched {
    /// The connection; the body comes next.
    pub conn: Conn,
    /// What it is connected to.
    pub origin: Origin,
    /// Where the answer came from, at the end of all redirects.
    pub url: Url,
    /// The answer's head.
    pub head: ResponseHead,
    /// How its body is framed.
    pub framing: Framing,
    /// Status and fields of the first answer, where that was a redirect.
    pub redirect: Option<(u16, Fields)>,
}

impl Fetched {
    /// Hands the connection back for the next request, where this answer lets it.
    pub fn recycle(self, worker: &Worker) {
        if keeps_alive(self.head.version, &self.head.fields)
            && self.framing != Framing::UntilClose
            && !claims_a_body(&self.head)
        {
            worker.dialer.keep(self.origin, self.conn);
        }
    }
}

impl Recipe {
    /// Makes the request without a body, follows redirects, and reads the head of the answer that
    /// is none. `from`: only the bytes from there on.
    pub async fn fetch(&self, worker: &Worker, from: Option<u64>) -> Result<Fetched, FetchError> {
        let mut url = self.url.clone();
        let mut fields = self.fields.clone();
        let mut terms = self.terms;
        let mut redirect = None;
        for _ in 0..=worker.limits.max_redirects {
            let request = self.request(worker, &url, &fields, from, terms.injected);
            let request = request.map_err(peer(&url))?;
            let mut fetched = send(worker, &url, &request, terms).await.map_err(peer(&url))?;
            if !matches!(fetched.head.status, 301 | 302 | 303 | 307 | 308) {
                fetched.redirect = redirect;
                return Ok(fetched);
            }
            redirect.get_or_insert_with(|| (fetched.head.status, fetched.head.fields.clone()));
            let next = fetched.head.fields.get("location").and_then(|to| url.resolve(to));
            let next = next.ok_or_else(|| FetchError::BadRedirect(url.to_string()))?;
            tracing::debug!(from = %url, to = %next, status = fetched.head.status, "redirect");
            discard(worker, fetched).await;
            if !url.same_origin(&next) {
                let rule = worker.policy.header_rule(url.scheme, &url.host, url.port);
                policy::leave_origin(&mut fields, rule);
                // Whom an allowed registry sends us to is allowed for this transfer. What a rule
                // puts in for a host is not for another port or scheme it redirects to.
                let elsewhere = next.host == self.url.host && !next.same_origin(&self.url);
                let injected = match elsewhere {
                    true => Injected::Nothing,
                    false => worker.injected(&next).await,
                };
                terms = Terms { listed: true, injected };
            }
            url = next;
        }
        Err(FetchError::TooManyRedirects(worker.limits.max_redirects))
    }

    /// Makes the request without a body and reads the head of the first answer, redirect or not.
    pub async fn fetch_first(&self, worker: &Worker) -> Result<Fetched, FetchError> {
        let (url, fields) = (&self.url, &self.fields);
        let request = self.request(worker, url, fields, None, self.terms.injected);
        send(worker, url, &request.map_err(peer(url))?, self.terms).await.map_err(peer(url))
    }

    fn request(
        &self,
        worker: &Worker,
        url: &Url,
        fields: &Fields,
        from: Option<u64>,
        injected: Injected,
    ) -> Result<RequestHead, Malformed> {
        let mut fields = fields.clone();
        if !self.as_asked {
            for name in CONDITIONS {
                fields.remove(name);
            }
        }
        // A coded body would not hash to the digest, and a stored one would need a Vary.
        fields.set("Accept-Encoding", "identity")?;
        if let Some(from) = from {
            fields.set("Range", format!("bytes={from}-"))?;
        }
        outgoing(worker, self.received, self.method.clone(), url, fields, injected)
    }
}

/// What would make the answer something else than the whole.
const CONDITIONS: [&str; 6] =
    ["range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"];

fn peer<E: Into<NetError>>(url: &Url) -> impl FnOnce(E) -> FetchError {
    let host = url.authority();
    move |error| FetchError::Peer { host, error: error.into() }
}

/// The head of a request to `url`: `Host` first, the host's header rule applied, `Via` added.
/// `received`: the version of the request that it stands for.
pub fn outgoing(
    worker: &Worker,
    received: Version,
    method: Method,
    url: &Url,
    mut client: Fields,
    injected: Injected,
) -> Result<RequestHead, Malformed> {
    worker.policy.apply_headers((url.scheme, &url.host, url.port), &mut client, injected)?;
    client.remove("host");
    client.push("Via", worker.via(received))?;
    let mut fields = Fields::new();
    fields.push("Host", url.authority())?;
    let mut target = Target::Origin(url.target.clone());
    if url.scheme == Scheme::Http
        && let Some(parent) = worker.parent(&url.host)
    {
        let authority = Authority { host: url.host.clone(), port: Some(url.port) };
        target = Target::Absolute { scheme: url.scheme, authority, path: url.target.clone() };
        if let Some(authorization) = parent.authorization {
            fields.push("Proxy-Authorization", authorization.as_bytes())?;
        }
    }
    for (name, value) in client.iter() {
        fields.push(name, value)?;
    }
    Ok(RequestHead { method, target, version: Version::Http11, fields })
}

/// Sends a request without a body and reads the head of its answer.
async fn send(
    worker: &Worker,
    url: &Url,
    request: &RequestHead,
    terms: Terms,
) -> Result<Fetched, NetError> {
    let begun = Instant::now();
    let result = converse(worker, url, request, terms).await;
    match &result {
        Ok(fetched) => note_answer(worker, &url.host, Some(begun), &fetched.head.fields),
        Err(error) => worker.note_error(&url.host, error),
    }
    result
}

/// Takes down when an upstream answered, and how many requests it will still take: the number in
/// front of what a Docker registry says (`99;w=21600`).
pub fn note_answer(worker: &Worker, host: &Host, begun: Option<Instant>, fields: &Fields) {
    let (upstreams, host) = (&worker.stats.upstreams, host.to_string());
    if let Some(begun) = begun {
        upstreams.answered(&host, begun.elapsed());
    }
    let remaining = fields.get_str("ratelimit-remaining").and_then(|said| said.split(';').next());
    if let Some(times) = remaining.and_then(|times| times.trim().parse().ok()) {
        upstreams.may_be_asked(&host, times);
    }
}

async fn converse(
    worker: &Worker,
    url: &Url,
    request: &RequestHead,
    terms: Terms,
) -> Result<Fetched, NetError> {
    let mut bytes = Vec::new();
    request.write_to(&mut bytes);
    let (conn, reused) = connect(worker, url, terms, &request.method).await?;
    let conn = match attempt(worker, conn, &bytes).await {
        Ok(answer) => return finish(worker, request, url, answer),
        // The server closed the idle connection as the request was on its way: nobody has seen it.
        Err(Attempt { error, silent: true }) if reused && request.method.is_idempotent() => {
            tracing::debug!(host = %url.host, %error, "idle connection was stale");
            worker.dial(url, terms).await?
        }
        Err(Attempt { error, .. }) => return Err(worker.named(url, error)),
    };
    match attempt(worker, conn, &bytes).await {
        Ok(answer) => finish(worker, request, url, answer),
        Err(Attempt { error, .. }) => Err(worker.named(url, error)),
    }
}

/// A connection to the URL's host, and whether it has been used before.
pub async fn connect(
    worker: &Worker,
    url: &Url,
    terms: Terms,
    method: &Method,
) -> Result<(Conn, bool), NetError> {
    let age = if method.is_idempotent() { ANY_AGE } else { FRESH };
    let behind_parent = worker.policy.parent(&url.host).is_some();
    let permit = |address: SocketAddr| {
        // The peer of a connection through a parent is the parent.
        if behind_parent { Ok(()) } else { worker.permit_for(&url.host, address, terms) }
    };
    if behind_parent && url.scheme == Scheme::Http {
        // The parent looks the name up for each request, whichever connection it comes on.
        worker.judge(&url.host, url.port, terms.listed, false).await?;
    }
    if let Some(conn) = worker.dialer.reuse(&url.origin(), age, &permit) {
        return Ok((conn, true));
    }
    Ok((worker.dial(url, terms).await?, false))
}

struct Attempt {
    error: NetError,
    /// Nothing of an answer came.
    silent: bool,
}

async fn attempt(
    worker: &Worker,
    conn: Conn,
    bytes: &[u8],
) -> Result<(Conn, ResponseHead), Attempt> {
    let result = async {
        conn.write(bytes).await?;
        for _ in 0..INTERIM_MAX {
            let head = conn.response_head(&worker.limits.heads).await?;
            // Nobody asked for an interim answer here (RFC 9110, section 15.2).
            if head.status >= 200 || head.status == 101 {
                return Ok(head);
            }
        }
        Err(Malformed::InterimsTooMany.into())
    };
    match result.await {
        Ok(head) => Ok((conn, head)),
        Err(error) => {
            let silent = matches!(error, NetError::Closed | NetError::Io(_)) && conn.unused() == 0;
            Err(Attempt { error, silent })
        }
    }
}

fn finish(
    worker: &Worker,
    request: &RequestHead,
    url: &Url,
    (conn, head): (Conn, ResponseHead),
) -> Result<Fetched, NetError> {
    if head.status == 101 {
        return Err(Malformed::SwitchUnasked.into());
    }
    worker.refuse_challenge(url, head.status)?;
    let framing = response_framing(&request.method, &head)?;
    BodyReader::glance(framing, &conn)?;
    let (origin, url) = (url.origin(), url.clone());
    Ok(Fetched { conn, origin, url, head, framing, redirect: None })
}

/// Reads a small body to its end and keeps the connection; closes it otherwise.
async fn discard(worker: &Worker, fetched: Fetched) {
    let small = match fetched.framing {
        Framing::None => true,
        Framing::Length(len) => len <= DISCARD_MAX,
        Framing::Chunked => true,
        Framing::UntilClose => false,
    };
    if !small {
        return;
    }
    let drained = monoio::time::timeout(DISCARD_TIME, drain(&fetched)).await;
    if drained == Ok(true) {
        fetched.recycle(worker);
    }
}

/// Whether the body came to its end within [`DISCARD_MAX`].
async fn drain(fetched: &Fetched) -> bool {
    let mut body = BodyReader::new(fetched.framing);
    let mut buf = Vec::new();
    let mut read = 0;
    while !body.is_done() && read <= DISCARD_MAX {
        match body.read(&fetched.conn, &mut buf, 16 * 1024).await {
            Ok(got) => read += got as u64,
            Err(_) => return false,
        }
        buf.clear();
    }
    body.is_done()
}
