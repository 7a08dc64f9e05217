//! One client connection: its requests one after the other, and how it may end.

use std::cell::Cell;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::exchange::exchange;
use super::record::{Record, Why};
use super::url::Url;
use super::{Desk, Drain, Worker, tunnel};
use crate::http::{Authority, Host, Malformed, Method, RequestHead, Target, Version, split_path};
use crate::net::{Conn, Either, NetError, race};
use crate::stats::{Outcome, Stats};

/// How long what a client still sends is read and thrown away after an answer that ends the
/// connection, so that the client gets to see the answer before a reset.
const LINGER_TIME: Duration = Duration::from_secs(30);

/// How long it may be silent meanwhile.
const LINGER_SILENCE: Duration = Duration::from_secs(2);

/// How long the first request of a connection is waited for once the proxy is stopping: its client
/// has just come and is about to send it. Between two requests nobody is waited for.
const LAST_CALL: Duration = Duration::from_secs(1);

/// A client on an open connection.
pub struct Client {
    /// The connection.
    pub conn: Conn,
    /// Whom requests inside an opened tunnel are for: scheme, host and port as the CONNECT said.
    pub fixed: Option<Url>,
    /// The request that is being answered.
    pub record: Record,
    /// By which configuration it may be a client.
    pub admitted: Cell<u64>,
}

impl Client {
    /// A client that has not asked for anything yet.
    pub fn new(conn: Conn, fixed: Option<Url>, admitted: u64) -> Client {
        Client { conn, fixed, record: Record::new(), admitted: Cell::new(admitted) }
    }

    /// Whether `allow_clients` of the worker that the desk has just given out lets it be one.
    fn is_welcome(&self, desk: &Desk, worker: &Worker) -> bool {
        let generation = desk.generation();
        self.admitted.replace(generation) == generation || worker.policy.client_allowed(self.ip())
    }

    /// Notes the end of a request and how it came to it.
    pub fn finish(
        &self,
        worker: &Worker,
        asked: Option<(&Host, &str)>,
        result: Result<(), End>,
    ) -> Result<(), End> {
        self.record.finish(worker, self.ip(), asked, &result);
        result
    }

    /// The client's address, an IPv4-mapped one as IPv4.
    pub fn ip(&self) -> IpAddr {
        self.conn.peer().ip().to_canonical()
    }

    /// What to answer a request that is not in order; the log says so, too.
    pub fn malformed(&self, error: &Malformed) -> Answer {
        tracing::info!(client = %self.ip(), %error, "malformed request");
        Answer::new(error.status(), "MALFORMED", error.to_string())
    }

    /// Counts a relay that ended for want of anything to relay; [`run`] does where it was the
    /// client that was waited for last.
    pub fn note_silence(&self, worker: &Worker, error: &NetError) {
        if matches!(error, NetError::TimedOut { .. }) && !self.conn.was_overdue() {
            Stats::add(&worker.stats.limited_idle_time, 1);
        }
    }
}

/// How a session ends.
#[derive(Debug)]
pub enum End {
    /// The client closed, or was silent for too long, between two requests.
    Idle,
    /// The answer was sent whole; no further request may follow it.
    Answered,
    /// The answer was sent whole, but the request was not read to its end.
    Unread,
    /// An answer is incomplete, and the client must see that.
    Broken,
    /// The connection became something else, which has ended.
    Tunnel,
    /// A CONNECT whose TLS is to be opened; the session goes on inside.
    Opened(Url),
}

/// Serves a new connection until it ends. Clients that `allow_clients` leaves out get 403.
pub async fn serve(desk: Rc<Desk>, conn: Conn) {
    let worker = desk.worker();
    Stats::add(&worker.stats.accepted, 1);
    let client = Box::new(Client::new(conn, None, desk.generation()));
    if worker.policy.client_allowed(client.ip()) {
        drop(worker);
        return run(&desk, client).await;
    }
    if let End::Unread = Box::pin(turn_away(&worker, &client)).await {
        linger(&client.conn).await;
    }
}

async fn turn_away(worker: &Worker, client: &Client) -> End {
    Stats::add(&worker.stats.refused, 1);
    tracing::info!(client = %client.ip(), "client refused by proxy.allow_clients");
    let message = format!("{} is not in proxy.allow_clients", client.ip());
    let answer = Answer::new(403, "DENIED", message);
    // The request is read first: a client that is still sending would not see the answer.
    let wait = worker.limits.header_timeout;
    let head = client.conn.request_head(&worker.limits.heads, wait, wait).await;
    let Ok(Some(head)) = head else { return End::Idle };
    client.record.begin(worker, Some(&head.fields));
    client.record.settle(Outcome::Refused, Why::Denied, None);
    refuse(worker, client, &head, &answer).await.err().unwrap_or(End::Broken)
}

/// The requests of a connection, outside or inside a tunnel.
///
/// Whatever is not needed while a connection is idle is on the heap, and only while it is needed:
/// most connections are idle most of the time.
pub async fn run(desk: &Rc<Desk>, client: Box<Client>) {
    client.conn.set_patience(desk.worker().limits.idle_timeout);
    // On the heap, to be gone before a tunnel is opened: the session inside has requests, too.
    let end = Box::pin(requests(desk, &client)).await;
    tracing::trace!(client = %client.ip(), ?end, "session ended");
    match end {
        End::Idle => Box::pin(client.conn.finish()).await,
        // It may have sent more than the request all the same.
        End::Answered => Box::pin(linger_within(&client.conn, LINGER_SILENCE)).await,
        End::Unread => Box::pin(linger(&client.conn)).await,
        End::Broken => {
            if client.conn.was_overdue() {
                Stats::add(&desk.worker().stats.limited_idle_time, 1);
            }
            client.conn.abort();
        }
        End::Tunnel => {}
        End::Opened(fixed) => Box::pin(tunnel::open(desk, client, fixed)).await,
    }
}

/// Whoever waits holds no worker: each request has the one that is there when it begins.
async fn requests(desk: &Rc<Desk>, client: &Client) -> End {
    let drain = Rc::clone(&desk.worker().drain);
    let mut begun = 0;
    loop {
        let idle_timeout = desk.worker().limits.idle_timeout;
        let stirs = pin!(client.conn.stirs_within(idle_timeout));
        let stopping = pin!(stopping(&drain, begun == 0));
        match race(stirs, stopping).await {
            Either::Left(Ok(())) => {}
            Either::Left(Err(error)) => {
                return Box::pin(unreadable(&desk.worker(), client, &error)).await;
            }
            Either::Right(()) => return End::Idle,
        }
        let worker = desk.worker();
        if !client.is_welcome(desk, &worker) {
            return Box::pin(turn_away(&worker, client)).await;
        }
        if let Err(end) = Box::pin(next(&worker, client, &mut begun)).await {
            return end;
        }
        if drain.has_begun() || client.conn.is_spent() {
            return End::Answered;
        }
    }
}

/// Waits until no further request is to be begun; one that a new client has sent already still is.
async fn stopping(drain: &Drain, is_new: bool) {
    drain.begun().await;
    if is_new {
        Box::pin(monoio::time::sleep(LAST_CALL)).await;
    }
}

/// Reads a request and answers it.
async fn next(worker: &Rc<Worker>, client: &Client, begun: &mut usize) -> Result<(), End> {
    let limits = &worker.limits;
    let is_new = *begun == 0;
    let head = client.conn.request_head(&limits.heads, limits.idle_timeout, limits.header_timeout);
    let head = match race(pin!(head), pin!(stopping(&worker.drain, is_new))).await {
        Either::Left(Ok(Some(head))) => head,
        Either::Left(Ok(None)) | Either::Right(()) => return Err(End::Idle),
        Either::Left(Err(error)) => return Err(unreadable(worker, client, &error).await),
    };
    client.record.begin(worker, Some(&head.fields));
    if let Some(answer) = stranger(worker, client, &head).await {
        client.record.settle(Outcome::Refused, Why::Unauthenticated, None);
        return refuse(worker, client, &head, &answer).await;
    }
    if head.method == Method::CONNECT {
        return Box::pin(tunnel::connect(worker, client, head)).await;
    }
    *begun += 1;
    exchange(worker, client, head, *begun >= limits.max_requests).await
}

/// What to answer a request of nobody that `proxy.users` knows. Inside a tunnel the credentials of
/// its CONNECT count; the proxy's own page is for everybody.
async fn stranger(worker: &Worker, client: &Client, head: &RequestHead) -> Option<Answer> {
    let users = worker.users.as_deref().filter(|_| client.fixed.is_none())?;
    if matches!(head.target, Target::Origin(_)) {
        return None;
    }
    let limit = worker.limits.header_timeout;
    users.admit(&worker.stats, client.ip(), &head.fields, limit).await.err()
}

async fn refuse(
    worker: &Worker,
    client: &Client,
    head: &RequestHead,
    answer: &Answer,
) -> Result<(), End> {
    let sent = if head.method == Method::CONNECT {
        answer.send_to_connect(client).await
    } else {
        answer.send(client, head.version, false, head.method != Method::HEAD).await
    };
    let asked = match &head.target {
        Target::Absolute { authority, path, .. } => Some((&authority.host, split_path(path).0)),
        Target::Authority(Authority { host, .. }) => Some((host, "-")),
        Target::Origin(_) | Target::Asterisk => None,
    };
    client.finish(worker, asked, Err(if sent.is_ok() { End::Unread } else { End::Broken }))
}

/// Says what is wrong with a request that could not be read.
async fn unreadable(worker: &Worker, client: &Client, error: &NetError) -> End {
    let record = &client.record;
    let answer = match error {
        NetError::Malformed(malformed) => {
            record.begin(worker, None);
            Stats::add(&worker.stats.refused, 1);
            client.malformed(malformed)
        }
        NetError::TimedOut { .. } if client.conn.unused() > 0 => {
            Stats::add(&worker.stats.limited_header_time, 1);
            record.begin(worker, None);
            record.settle(Outcome::Refused, Why::TooSlow, None);
            Answer::new(408, "TIMEOUT", error.to_string())
        }
        NetError::TimedOut { .. } => {
            Stats::add(&worker.stats.limited_idle_time, 1);
            return End::Idle;
        }
        _ => return End::Idle,
    };
    let sent = answer.send(client, Version::Http11, false, true).await;
    let end = if sent.is_ok() { End::Unread } else { End::Broken };
    client.finish(worker, None, Err(end)).err().unwrap_or(End::Broken)
}

/// Ends our half of the stream and reads what the client is still sending, up to a limit: a close
/// with unread bytes would reset the connection and could take the answer with it.
pub async fn linger(conn: &Conn) {
    linger_within(conn, LINGER_TIME).await;
}

async fn linger_within(conn: &Conn, limit: Duration) {
    conn.finish().await;
    conn.set_patience(LINGER_SILENCE);
    let begun = Instant::now();
    let mut buf = Vec::new();
    while begun.elapsed() < limit
        && let Ok(got) = conn.read(&mut buf, 16 * 1024).await
        && got > 0
    {
        buf.clear();
    }
}
