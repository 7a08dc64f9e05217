//! Past the cache: the request up, the answer down, both as they come. Nothing is buffered beyond
//! one read.

use std::rc::Rc;
use std::time::Instant;

use super::answer::{Answer, connection};
use super::exchange::Request;
use super::fetch::{Fetched, INTERIM_MAX, connect, note_answer, outgoing};
use super::learn::Lesson;
use super::record::REQUEST_ID;
use super::session::{Client, End};
use super::upload::{Fault, Upload, trailers, write_piece};
use super::{Worker, prove};
use crate::cache::HELD_BACK;
use crate::http::{
    Fields, Framing, Host, Malformed, RequestHead, ResponseHead, Version, last_chunk,
    response_framing,
};
use crate::key::{Digest, Hasher};
use crate::net::{BodyReader, Conn, NetError, relay};
use crate::policy;
use crate::stats::Stats;

/// Bytes of a body in flight.
const CHUNK: usize = 128 * 1024;

/// Sends the request to upstream and its answer back.
pub async fn pass(worker: &Rc<Worker>, client: &Client, request: &Request) -> Result<(), End> {
    client.record.from(&request.url.host);
    // What the line of the request does not say.
    tracing::debug!(host = %request.url.host, path = request.shown_path(worker),
        method = request.head.method.as_str(), body = ?request.framing, "passing");
    match ask(worker, client, request).await {
        Ok(result) => result,
        Err(Fault::Client) => Err(End::Broken),
        Err(Fault::Request(error)) => {
            Stats::add(&worker.stats.refused, 1);
            request.answer(client, &client.malformed(&error)).await
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
    client.record.from(&fetched.url.host);
    let relay = Relay::new(
        worker,
        client,
        request,
        (&fetched.url.host, &fetched.head, fetched.framing),
        true,
    );
    relay.send(&fetched.conn, proof).await?;
    let keep = relay.keep;
    fetched.recycle(worker);
    if keep { Ok(()) } else { Err(End::Answered) }
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
    fields.get("upgrade").filter(|_| wanted)
}

fn upstream_head(
    worker: &Worker,
    request: &Request,
) -> Result<RequestHead, crate::http::Malformed> {
    let client = &request.head.fields;
    let mut fields = client.clone();
    policy::pass_request(&mut fields);
    fields.set(REQUEST_ID, request.id.as_str())?;
    if request.head.version == Version::Http10 {
        // Its client does not know the answer to it (RFC 9110, section 10.1.1).
        fields.remove("expect");
    }
    if request.framing == Framing::Chunked {
        fields.push("Transfer-Encoding", "chunked")?;
    }
    if let Some(protocol) = upgrade_of(request) {
        fields.push("Connection", "Upgrade")?;
        fields.push("Upgrade", protocol)?;
    }
    let (method, received) = (request.head.method.clone(), request.head.version);
    outgoing(worker, received, method, &request.url, fields, request.terms.injected)
}

/// Asks upstream, and passes on what it answers. A fault: nothing was answered.
async fn ask(
    worker: &Rc<Worker>,
    client: &Client,
    request: &Request,
) -> Result<Result<(), End>, Fault> {
    let (url, terms, method) = (&request.url, request.terms, &request.head.method);
    let begun = Instant::now();
    let mut bytes = Vec::new();
    upstream_head(worker, request).map_err(upstreams)?.write_to(&mut bytes);
    let (mut conn, reused) = connect(worker, url, terms, method).await.map_err(upstreams)?;
    let mut repeatable = reused && !request.has_body() && method.is_idempotent();
    loop {
        let mut upload = Upload::new(&client.conn, &conn, request);
        let head = match converse(worker, client, request, &conn, &bytes, &mut upload).await {
            Err(Fault::Upstream(NetError::Closed | NetError::Io(_)))
                if repeatable && conn.unused() == 0 =>
            {
                // The server closed the idle connection as the request was on its way.
                drop(upload);
                conn = worker.dial(url, terms).await.map_err(upstreams)?;
                repeatable = false;
                continue;
            }
            Err(Fault::Upstream(error)) => {
                return Err(Fault::Upstream(worker.named(url, error)));
            }
            result => result?,
        };
        worker.refuse_challenge(url, head.status).map_err(upstreams)?;
        // How long a body was on its way says nothing of upstream.
        let begun = (!request.has_body()).then_some(begun);
        note_answer(worker, &url.host, begun, &head.fields);
        invalidate(worker, request, head.status).await;
        prove::note_answer(worker, request, head.status, &head.fields);
        if head.status == 101 {
            return upgrade(worker, client, request, &conn, &head).await;
        }
        let framing = response_framing(method, &head).map_err(upstreams)?;
        BodyReader::glance(framing, &conn).map_err(upstreams)?;
        let result = answer(worker, client, request, &conn, (&head, framing), &mut upload).await;
        drop(upload);
        if matches!(result, Ok(()) | Err(End::Answered)) {
            let (origin, url) = (url.origin(), url.clone());
            Fetched { conn, origin, url, head, framing, redirect: None }.recycle(worker);
        }
        return Ok(result);
    }
}

fn upstreams(error: impl Into<NetError>) -> Fault {
    Fault::Upstream(error.into())
}

/// Sends the request while listening: interim answers go to the client at once, and the final one
/// may come before the body is through.
async fn converse(
    worker: &Worker,
    client: &Client,
    request: &Request,
    upstream: &Conn,
    head: &[u8],
    upload: &mut Upload<'_>,
) -> Result<ResponseHead, Fault> {
    upstream.write(head).await.map_err(upstreams)?;
    for _ in 0..=INTERIM_MAX {
        upload.until_heard(upstream).await?;
        let head = upload.beside(upstream.response_head(&worker.limits.heads)).await?;
        let head =
            head.map_err(|error| Fault::Upstream(upload.refusal().cloned().unwrap_or(error)))?;
        if head.status >= 200 || head.status == 101 {
            return Ok(head);
        }
        if request.head.version == Version::Http11 {
            upload.beside(interim(worker, client, head)).await??;
        }
    }
    Err(upstreams(Malformed::InterimsTooMany))
}

/// Passes a 1xx answer on (RFC 9110, section 15.2). HTTP/1.0 has none.
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

/// Passes the answer on. The body goes on beside one that welcomes it, and stops for any other.
async fn answer(
    worker: &Worker,
    client: &Client,
    request: &Request,
    upstream: &Conn,
    (head, framing): (&ResponseHead, Framing),
    upload: &mut Upload<'_>,
) -> Result<(), End> {
    let goes_on = upload.is_whole() || (200..300).contains(&head.status);
    let relay = Relay::new(worker, client, request, (&request.url.host, head, framing), goes_on);
    let sending = relay.send(upstream, None);
    if goes_on {
        upload.beside(sending).await.unwrap_or(Err(End::Broken))?;
        // The client has its answer, whatever becomes of the rest of its body.
        let _ = upload.finish().await;
    } else {
        sending.await?;
    }
    match (relay.keep, upload.is_whole()) {
        (true, true) => Ok(()),
        (false, true) => Err(End::Answered),
        (_, false) => Err(End::Unread),
    }
}

/// An answer on its way to the client.
struct Relay<'a> {
    worker: &'a Worker,
    client: &'a Client,
    request: &'a Request,
    /// Whose answer it is.
    sender: &'a Host,
    head: &'a ResponseHead,
    /// Of its body as it comes.
    framing: Framing,
    /// Whether the client gets chunks.
    chunked: bool,
    /// Whether the client is told that it may send another request.
    keep: bool,
}

impl<'a> Relay<'a> {
    /// `goes_on`: whether the request's body does not stand in the way of another request.
    fn new(
        worker: &'a Worker,
        client: &'a Client,
        request: &'a Request,
        (sender, head, framing): (&'a Host, &'a ResponseHead, Framing),
        goes_on: bool,
    ) -> Relay<'a> {
        let lengthless = matches!(framing, Framing::Chunked | Framing::UntilClose);
        let chunked = lengthless && request.head.version == Version::Http11;
        let keep = request.keep_alive && goes_on && (chunked || !lengthless);
        Relay { worker, client, request, sender, head, framing, chunked, keep }
    }

    fn head(&self) -> Vec<u8> {
        let mut head = self.head.clone();
        forward(self.worker, &mut head);
        // Both name and value are our own, or checked.
        let _ = head.fields.push(REQUEST_ID, self.request.id.as_str());
        if self.chunked {
            // Both name and value are our own.
            let _ = head.fields.push("Transfer-Encoding", "chunked");
        }
        let mut bytes = Vec::new();
        head.write_to(&mut bytes);
        bytes.truncate(bytes.len() - 2);
        bytes.extend_from_slice(connection(self.request.head.version, self.keep).as_bytes());
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    /// Sends head and body.
    async fn send(&self, from: &Conn, proof: Option<Proof>) -> Result<(), End> {
        let Relay { worker, client, request, chunked, .. } = *self;
        // Held back only for bytes that are there and can go out: a client must not wait for its
        // head.
        let counted = matches!(self.framing, Framing::Length(1..));
        let more = counted && proof.is_none() && from.unused() > 0;
        client.record.answered(self.head.status);
        client.conn.write_parts(&[&self.head()], more).await.map_err(|_| End::Broken)?;
        let mut lesson = Lesson::begin(worker, client, request, self.head);
        let lesson_body = lesson.as_mut();
        let down = Down {
            worker,
            client,
            request,
            sender: self.sender,
            chunked,
            skip: 0,
            left: None,
            proof,
            lesson: lesson_body,
        };
        down.copy(from, &self.head.fields, &mut BodyReader::new(self.framing)).await?;
        lesson.into_iter().for_each(Lesson::end);
        Ok(())
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
    /// Who sends it, at the end of all redirects.
    pub sender: &'a Host,
    /// Whether the client gets chunks.
    pub chunked: bool,
    /// Bytes at the start the client has already.
    pub skip: u64,
    /// Bytes the client is still to get, where it does not want all.
    pub left: Option<u64>,
    /// What the body must hash to.
    pub proof: Option<Proof>,
    /// Who learns from it.
    pub lesson: Option<&'a mut Lesson>,
}

impl Down<'_> {
    /// Copies the body to its end. `head`: the fields before it.
    pub async fn copy(
        mut self,
        from: &Conn,
        head: &Fields,
        body: &mut BodyReader,
    ) -> Result<(), End> {
        let mut buf = Vec::new();
        while !body.is_done() && self.left != Some(0) {
            buf.reserve(CHUNK);
            let got = match body.read(from, &mut buf, CHUNK).await {
                Ok(got) => got as u64,
                Err(error) => {
                    self.worker.note_error(self.sender, &error);
                    return Err(self.broken(&error));
                }
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
            if let Some(lesson) = &mut self.lesson {
                lesson.take(&buf);
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
            last_chunk(&trailers(body, head), &mut end);
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
        self.client.record.sent(piece.len() as u64);
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

/// Both sides speak another protocol from here on, which the client has asked for.
async fn upgrade(
    worker: &Worker,
    client: &Client,
    request: &Request,
    upstream: &Conn,
    head: &ResponseHead,
) -> Result<Result<(), End>, Fault> {
    if upgrade_of(request).is_none() {
        return Err(upstreams(Malformed::SwitchUnasked));
    }
    let mut switched = head.clone();
    let protocol = head.fields.get("upgrade").map(<[u8]>::to_vec);
    forward(worker, &mut switched);
    let _ = switched.fields.push(REQUEST_ID, request.id.as_str());
    let _ = switched.fields.push("Connection", "Upgrade");
    if let Some(protocol) = protocol {
        let _ = switched.fields.push("Upgrade", protocol);
    }
    let mut bytes = Vec::new();
    switched.write_to(&mut bytes);
    client.record.answered(head.status);
    client.conn.write(&bytes).await.map_err(|_| Fault::Client)?;
    upstream.set_patience(worker.limits.idle_timeout);
    let (relayed, result) = relay(&client.conn, upstream).await;
    client.record.sent(relayed.down);
    match result {
        Ok(()) => Ok(Err(End::Tunnel)),
        Err(error) => {
            client.note_silence(worker, &error);
            Ok(Err(End::Broken))
        }
    }
}

async fn failed(
    worker: &Worker,
    client: &Client,
    request: &Request,
    error: &NetError,
) -> Result<(), End> {
    worker.note_error(&request.url.host, error);
    request.note_failure(worker, client, matches!(error, NetError::Denied(_)), error);
    request.answer(client, &Answer::upstream(&request.url.authority(), error)).await
}
