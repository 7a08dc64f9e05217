//! One client connection: its requests one after the other, and how it may end.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::exchange::exchange;
use super::record::{Record, Why};
use super::url::Url;
use super::{Worker, tunnel};
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
}

impl Client {
    /// A client that has not asked for anything yet.
    pub fn new(conn: Conn, fixed: Option<Url>) -> Client {
        Client { conn, fixed, record: Record::new() }
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
pub async fn serve(worker: Rc<Worker>, conn: Conn) {
    Stats::add(&worker.stats.accepted, 1);
    let client = Client::new(conn, None);
    if !worker.policy.client_allowed(client.ip()) {
        Stats::add(&worker.stats.refused, 1);
        tracing::info!(client = %client.ip(), "client refused by proxy.allow_clients");
        let message = format!("{} is not in proxy.allow_clients", client.ip());
        let answer = Answer::new(403, "DENIED", message);
        // The request is read first: a client that is still sending would not see the answer.
        let wait = worker.limits.header_timeout;
        let head = client.conn.request_head(&worker.limits.heads, wait, wait).await;
        let Ok(Some(head)) = head else { return };
        client.record.begin(&worker, Some(&head.fields));
        client.record.settle(Outcome::Refused, Why::Denied, None);
        if let Err(End::Unread) = refuse(&worker, &client, &head, &answer).await {
            linger(&client.conn).await;
        }
        return;
    }
    run(&worker, client).await;
}

/// The requests of a connection, outside or inside a tunnel.
pub async fn run(worker: &Rc<Worker>, client: Client) {
    client.conn.set_patience(worker.limits.idle_timeout);
    // On the heap, to be gone before a tunnel is opened: the session inside has requests, too.
    let end = Box::pin(requests(worker, &client)).await;
    tracing::trace!(client = %client.ip(), ?end, "session ended");
    match end {
        End::Idle => client.conn.finish().await,
        // It may have sent more than the request all the same.
        End::Answered => linger_within(&client.conn, LINGER_SILENCE).await,
        End::Unread => linger(&client.conn).await,
        End::Broken => {
            if client.conn.was_overdue() {
                Stats::add(&worker.stats.limited_idle_time, 1);
            }
            client.conn.abort();
        }
        End::Tunnel => {}
        End::Opened(fixed) => Box::pin(tunnel::open(worker, client, fixed)).await,
    }
}

async fn requests(worker: &Rc<Worker>, client: &Client) -> End {
    let limits = &worker.limits;
    let mut left = limits.max_requests;
    loop {
        let next =
            client.conn.request_head(&limits.heads, limits.idle_timeout, limits.header_timeout);
        let stopping = async {
            worker.drain.begun().await;
            if left == limits.max_requests {
                monoio::time::sleep(LAST_CALL).await;
            }
        };
        let head = match race(next, stopping).await {
            Either::Left(Ok(Some(head))) => head,
            Either::Left(Ok(None)) => return End::Idle,
            Either::Left(Err(error)) => return unreadable(worker, client, &error).await,
            Either::Right(()) => return End::Idle,
        };
        client.record.begin(worker, Some(&head.fields));
        let result = if let Some(answer) = stranger(worker, client, &head).await {
            client.record.settle(Outcome::Refused, Why::Unauthenticated, None);
            refuse(worker, client, &head, &answer).await
        } else if head.method == Method::CONNECT {
            Box::pin(tunnel::connect(worker, client, head)).await
        } else {
            left = left.saturating_sub(1);
            // On the heap for as long as it takes: a connection that is idle has no room for it.
            Box::pin(exchange(worker, client, head, left == 0)).await
        };
        if let Err(end) = result {
            return end;
        }
        if worker.drain.has_begun() {
            return End::Answered;
        }
    }
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
