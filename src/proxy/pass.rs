//! Past the cache: the request up, the answer down, both as they come. Nothing is buffered beyond
//! one read.

use std::pin::pin;
use std::rc::Rc;

use super::answer::{Answer, connection};
use super::exchange::Request;
use super::fetch::{Fetched, INTERIM_MAX, connect, outgoing};
use super::session::{Client, End};
use super::{Worker, prove};
use crate::cache::HELD_BACK;
use crate::http::{
    Fields, Framing, Malformed, RequestHead, ResponseHead, Version, chunk_head, last_chunk,
    response_framing,
};
use crate::key::{Digest, Hasher};
use crate::net::{BodyReader, Conn, Either, NetError, race, relay};
use crate::policy;
use crate::stats::{Outcome, Stats};

/// Bytes of a body in flight.
const CHUNK: usize = 128 * 1024;

/// Sends the request to upstream and its answer back. `reason`: why it is not for the cache.
pub async fn pass(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
    reason: &'static str,
) -> Result<(), End> {
    tracing::debug!(host = %request.url.host, path = request.shown_path(worker),
        method = request.head.method.as_str(), reason, "passed");
    let head = match upstream_head(worker, request) {
        Ok(head) => head,
        Err(error) => return failed(worker, client, request, &NetError::from(error)).await,
    };
    match ask(worker, client, request, &head).await {
        Ok(Asked { conn, head, sent_whole }) => {
            if let Err(error) = worker.refuse_challenge(&request.url, head.status) {
                return failed(worker, client, request, &error).await;
            }
            worker.stats.observe(Outcome::Pass, request.started.elapsed());
            invalidate(worker, request, head.status).await;
            prove::note_answer(worker, request, head.status, &head.fields);
            if head.status == 101 && upgrade_of(request).is_none() {
                let error = Malformed::SwitchUnasked.into();
                return failed(worker, client, request, &error).await;
            }
            if head.status == 101 {
                return upgrade(worker, client, conn, &head).await;
            }
            let framing = match framing(request, &conn, &head) {
                Ok(framing) => framing,
                Err(error) => return failed(worker, client, request, &error).await,
            };
            let (origin, url) = (request.url.origin(), request.url.clone());
            let fetched = Fetched { conn, origin, url, head, framing, redirect: None };
            answer(worker, client, request, fetched, sent_whole, None).await
        }
        Err(Fault::Client) => Err(End::Broken),
        Err(Fault::Request(error)) => {
            Stats::add(&worker.stats.refused, 1);
            tracing::info!(client = %client.ip(), %error, "malformed request");
            let answer = Answer::new(error.status(), "MALFORMED", error.to_string());
            request.answer(client, &answer).await
        }
        Err(Fault::Upstream(error)) => failed(worker, client, request, &error).await,
    }
}

/// Sends an answer whose head has been read already. Where it is the whole of what `digest` names,
/// its end is held back until the digest agrees.
pub async fn relay_answer(
    worker: &Worker,
    client: &Client,
    request: &Request,
    fetched: Fetched,
    digest: Option<&Digest>,
) -> Result<(), End> {
    let whole = fetched.head.status == 200 && !fetched.head.fields.contains("content-encoding");
    let proof = digest.filter(|_| whole).map(Proof::new);
    answer(worker, client, request, fetched, true, proof).await
}

fn framing(request: &Request, conn: &Conn, head: &ResponseHead) -> Result<Framing, NetError> {
    let framing = response_framing(&request.head.method, head)?;
    BodyReader::glance(framing, conn)?;
    Ok(framing)
}

/// Whose fault it was that there is no answer.
enum Fault {
    Client,
    /// The client is there, but what it sends is no body.
    Request(Malformed),
    Upstream(NetError),
}

/// An answer's head, and the connection its body comes on.
struct Asked {
    conn: Conn,
    head: ResponseHead,
    /// Whether the request's body had been sent to its end.
    sent_whole: bool,
}

/// The protocol that a client wants to go over to; with a body there is none. Not HTTP/2: what is
/// asked behind such a switch would go past every rule, and RFC 9113 has taken it back.
fn upgrade_of(request: &Request) -> Option<&[u8]> {
    let fields = &request.head.fields;
    let wanted = fields.has_token("connection", "upgrade")
        && !request.has_body()
        && !fields.tokens("upgrade").any(|protocol| {
            let name = protocol.split('/').next().unwrap_or_default();
            name.eq_ignore_ascii_case("h2c") || name.eq_ignore_ascii_case("http")
        });
    fields.get("upgrade").filter(|_| wanted && fields.count("upgrade") == 1)
}

fn upstream_head(
    worker: &Worker,
    request: &Request,
) -> Result<RequestHead, crate::http::Malformed> {
    let client = &request.head.fields;
    let mut fields = client.clone();
    policy::pass_request(&mut fields);
    if request.framing == Framing::Chunked {
        fields.push("Transfer-Encoding", "chunked")?;
    }
    if let Some(protocol) = upgrade_of(request) {
        fields.push("Connection", "Upgrade")?;
        fields.push("Upgrade", protocol)?;
    }
    let (method, received) = (request.head.method.clone(), request.head.version);
    outgoing(worker, received, method, &request.url, fields)
}

async fn ask(
    worker: &Worker,
    client: &Client,
    request: &Request,
    head: &RequestHead,
) -> Result<Asked, Fault> {
    let (url, listed) = (&request.url, request.listed);
    let mut bytes = Vec::new();
    head.write_to(&mut bytes);
    let method = &request.head.method;
    let (conn, reused) = connect(worker, url, listed, method).await.map_err(Fault::Upstream)?;
    let mut body = BodyReader::new(request.framing);
    let repeatable = reused && body.is_done() && method.is_idempotent();
    let named = |fault| match fault {
        Fault::Upstream(error) => Fault::Upstream(worker.named(url, error)),
        fault => fault,
    };
    match converse(worker, client, request, &conn, &bytes, &mut body).await {
        Ok((head, sent_whole)) => Ok(Asked { conn, head, sent_whole }),
        Err(Fault::Upstream(NetError::Closed | NetError::Io(_)))
            if repeatable && conn.unused() == 0 =>
        {
            // The server closed the idle connection as the request was on its way.
            let conn = worker.dial(url, listed).await.map_err(Fault::Upstream)?;
            let answer = converse(worker, client, request, &conn, &bytes, &mut body).await;
            let (head, sent_whole) = answer.map_err(named)?;
            Ok(Asked { conn, head, sent_whole })
        }
        Err(fault) => Err(named(fault)),
    }
}

/// Sends the request while listening: interim answers go to the client at once, and an answer that
/// comes before the body is through ends it.
async fn converse(
    worker: &Worker,
    client: &Client,
    request: &Request,
    upstream: &Conn,
    head: &[u8],
    body: &mut BodyReader,
) -> Result<(ResponseHead, bool), Fault> {
    if let Err(error) = upstream.write(head).await {
        return Err(Fault::Upstream(error));
    }
    let mut sent_whole = body.is_done();
    let mut sending = pin!(send_body(&client.conn, upstream, body, &request.head.fields));
    let mut broken = None;
    let mut interims = 0;
    loop {
        if !sent_whole && broken.is_none() {
            match race(upstream.stirs(), sending.as_mut()).await {
                Either::Left(()) => {}
                Either::Right(Ok(())) => sent_whole = true,
                // It may have said why before it closed.
                Either::Right(Err(Fault::Upstream(error))) => broken = Some(error),
                Either::Right(Err(fault)) => return Err(fault),
            }
        }
        let head = match upstream.response_head(&worker.limits.heads).await {
            Ok(head) => head,
            Err(error) => return Err(Fault::Upstream(broken.unwrap_or(error))),
        };
        if head.status >= 200 || head.status == 101 {
            return Ok((head, sent_whole));
        }
        interims += 1;
        if interims > INTERIM_MAX {
            return Err(Fault::Upstream(Malformed::InterimsTooMany.into()));
        }
        interim(worker, client, head).await?;
    }
}

/// Passes a 1xx answer on (RFC 9110, section 15.2).
async fn interim(worker: &Worker, client: &Client, mut head: ResponseHead) -> Result<(), Fault> {
    forward(worker, &mut head);
    let mut bytes = Vec::new();
    head.write_to(&mut bytes);
    client.conn.write(&bytes).await.map_err(|_| Fault::Client)
}

/// Makes of upstream's head ours: what must not cross is off, `Via` says that it came through here.
fn forward(worker: &Worker, head: &mut ResponseHead) {
    policy::pass_response(&mut head.fields);
    if matches!(head.status, 100..200 | 204) {
        // There is no body, and a client that believes otherwise would read the next answer as one.
        head.fields.remove("content-length");
    }
    // Both name and value are our own.
    let _ = head.fields.push("Via", worker.via(head.version));
    head.version = Version::Http11;
}

async fn send_body(
    from: &Conn,
    to: &Conn,
    body: &mut BodyReader,
    head: &Fields,
) -> Result<(), Fault> {
    let chunked = body.remaining().is_none();
    let mut buf = Vec::new();
    while !body.is_done() {
        buf.reserve(CHUNK);
        let got = body.read(from, &mut buf, CHUNK).await.map_err(|error| match error {
            NetError::Malformed(error) => Fault::Request(error),
            _ => Fault::Client,
        })?;
        if got > 0 {
            write_piece(to, &buf, chunked).await.map_err(Fault::Upstream)?;
        }
        buf.clear();
    }
    if chunked {
        let mut end = Vec::new();
        last_chunk(&trailers(body, head), &mut end);
        to.write(&end).await.map_err(Fault::Upstream)?;
    }
    Ok(())
}

/// The trailers that cross, of a body whose message has this head.
fn trailers(body: &mut BodyReader, head: &Fields) -> Fields {
    let mut trailers = body.take_trailers().unwrap_or_default();
    trailers.strip_hop_by_hop_of(head);
    trailers
}

async fn write_piece(to: &Conn, piece: &[u8], chunked: bool) -> Result<(), NetError> {
    if !chunked {
        return to.write(piece).await;
    }
    let mut head = Vec::new();
    chunk_head(piece.len(), &mut head);
    to.write_parts(&[&head, piece, b"\r\n"], false).await
}

/// Sends head and body of an answer to the client.
async fn answer(
    worker: &Worker,
    client: &Client,
    request: &Request,
    fetched: Fetched,
    sent_whole: bool,
    proof: Option<Proof>,
) -> Result<(), End> {
    let version = request.head.version;
    let (framing, chunked) = match (fetched.framing, version) {
        (Framing::Chunked | Framing::UntilClose, Version::Http11) => (Framing::Chunked, true),
        (Framing::Chunked | Framing::UntilClose, Version::Http10) => (Framing::UntilClose, false),
        (framing, _) => (framing, false),
    };
    let keep = request.keep_alive && sent_whole && framing != Framing::UntilClose;
    let mut head = fetched.head.clone();
    forward(worker, &mut head);
    if chunked {
        // Both name and value are our own.
        let _ = head.fields.push("Transfer-Encoding", "chunked");
    }
    let mut bytes = Vec::new();
    head.write_to(&mut bytes);
    bytes.truncate(bytes.len() - 2);
    bytes.extend_from_slice(connection(version, keep).as_bytes());
    bytes.extend_from_slice(b"\r\n");
    let mut body = BodyReader::new(fetched.framing);
    // Held back only for bytes that are there: a client must not wait for its head.
    let more = fetched.conn.unused() > 0;
    client.conn.write_parts(&[&bytes], more).await.map_err(|_| End::Broken)?;
    let down = Down { worker, client, request, chunked, skip: 0, left: None, proof };
    down.copy(&fetched, &mut body).await?;
    if sent_whole {
        fetched.recycle(worker);
    }
    match (keep, sent_whole) {
        (true, _) => Ok(()),
        (false, true) => Err(End::Answered),
        (false, false) => Err(End::Unread),
    }
}

/// A body on its way to the client, past the cache.
pub struct Down<'a> {
    /// The core.
    pub worker: &'a Worker,
    /// Whom to.
    pub client: &'a Client,
    /// What was asked, for the log.
    pub request: &'a Request,
    /// Whether the client gets chunks.
    pub chunked: bool,
    /// Bytes at the start the client has already.
    pub skip: u64,
    /// Bytes the client is still to get, where it does not want all.
    pub left: Option<u64>,
    /// What the body must hash to.
    pub proof: Option<Proof>,
}

impl Down<'_> {
    /// Copies the body to its end.
    pub async fn copy(mut self, from: &Fetched, body: &mut BodyReader) -> Result<(), End> {
        let mut buf = Vec::new();
        while !body.is_done() && self.left != Some(0) {
            buf.reserve(CHUNK);
            let got = match body.read(&from.conn, &mut buf, CHUNK).await {
                Ok(got) => got as u64,
                Err(error) => return Err(self.broken(&error)),
            };
            Stats::add(&self.worker.stats.bytes_from_upstream, got);
            let skipped = self.skip.min(got);
            self.skip -= skipped;
            // `skipped` is at most the buffer's length.
            buf.drain(..skipped as usize);
            if let Some(left) = &mut self.left {
                buf.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= buf.len() as u64;
            }
            if let Some(proof) = &mut self.proof {
                proof.exchange(&mut buf);
            }
            self.write(&buf).await?;
            buf.clear();
        }
        if self.left.is_some_and(|left| left > 0) {
            return Err(self.broken(&NetError::Closed));
        }
        if let Some(proof) = self.proof.take() {
            match proof.finish() {
                Ok(rest) => self.write(&rest).await?,
                Err(digest) => return Err(self.broken(&format!("the body is not {digest}"))),
            }
        }
        if self.chunked {
            let mut end = Vec::new();
            last_chunk(&trailers(body, &from.head.fields), &mut end);
            self.client.conn.write(&end).await.map_err(|_| End::Broken)?;
        }
        Ok(())
    }

    async fn write(&self, piece: &[u8]) -> Result<(), End> {
        if piece.is_empty() {
            return Ok(());
        }
        write_piece(&self.client.conn, piece, self.chunked).await.map_err(|_| End::Broken)?;
        Stats::add(&self.worker.stats.bytes_to_clients, piece.len() as u64);
        Ok(())
    }

    fn broken(&self, error: &dyn std::fmt::Display) -> End {
        let (host, path) = (&self.request.url.host, self.request.shown_path(self.worker));
        Stats::add(&self.worker.stats.errors, 1);
        tracing::warn!(%host, %path, %error, "upstream broke off");
        End::Broken
    }
}

/// Holds the last bytes of a body back until its digest agrees: nobody receives the whole of a
/// wrong one, stored or not.
pub struct Proof {
    digest: Digest,
    hasher: Hasher,
    held: Vec<u8>,
}

impl Proof {
    /// For a body from its first byte on.
    pub fn new(digest: &Digest) -> Proof {
        Proof::resumed(digest, Hasher::new(digest.algorithm()))
    }

    /// For the rest of a body whose beginning `hasher` has seen.
    pub fn resumed(digest: &Digest, hasher: Hasher) -> Proof {
        Proof { digest: digest.clone(), hasher, held: Vec::new() }
    }

    /// Takes in the next bytes; leaves in `buf` what may go out.
    fn exchange(&mut self, buf: &mut Vec<u8>) {
        self.hasher.update(buf);
        let mut all = std::mem::take(&mut self.held);
        all.append(buf);
        let keep = all.len().min(HELD_BACK as usize);
        self.held = all.split_off(all.len() - keep);
        *buf = all;
    }

    /// The bytes held back, or the digest that was not met.
    fn finish(self) -> Result<Vec<u8>, Digest> {
        if self.hasher.finish() == self.digest { Ok(self.held) } else { Err(self.digest) }
    }
}

/// What a successful change makes stale goes (RFC 9111, section 4.4).
async fn invalidate(worker: &Worker, request: &Request, status: u16) {
    if let Some(key) = worker.policy.invalidates(&request.ask(), status)
        && let Err(error) = worker.cache.remove(&key).await
    {
        tracing::warn!(%error, path = %request.url.path(), "a stale entry can't be removed");
    }
}

/// Both sides speak another protocol from here on.
async fn upgrade(
    worker: &Worker,
    client: &Client,
    upstream: Conn,
    head: &ResponseHead,
) -> Result<(), End> {
    let mut switched = head.clone();
    let protocol = head.fields.get("upgrade").map(<[u8]>::to_vec);
    forward(worker, &mut switched);
    let _ = switched.fields.push("Connection", "Upgrade");
    if let Some(protocol) = protocol {
        let _ = switched.fields.push("Upgrade", protocol);
    }
    let mut bytes = Vec::new();
    switched.write_to(&mut bytes);
    client.conn.write(&bytes).await.map_err(|_| End::Broken)?;
    upstream.set_patience(worker.limits.idle_timeout);
    match relay(&client.conn, &upstream).await {
        Ok(_) => Err(End::Tunnel),
        Err(_) => Err(End::Broken),
    }
}

async fn failed(
    worker: &Worker,
    client: &Client,
    request: &Request,
    error: &NetError,
) -> Result<(), End> {
    request.note_failure(worker, client, matches!(error, NetError::Denied(_)), error);
    request.answer(client, &Answer::upstream(&request.url.authority(), error)).await
}
