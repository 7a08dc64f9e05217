//! CONNECT: relayed as bytes, or opened with a certificate of ours and a session inside.

use std::rc::Rc;

use super::answer::Answer;
use super::record::Why;
use super::session::{Client, End, run};
use super::url::Url;
use super::{Desk, Worker};
use crate::http::{Authority, Fields, Host, RequestHead, Scheme, Target, Version, request_framing};
use crate::net::{NetError, relay};
use crate::policy::{HostVerdict, Refusal};
use crate::stats::{Outcome, Stats};

const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Answers a CONNECT. Always an end: the connection belongs to the tunnel from here on.
pub async fn connect(worker: &Rc<Worker>, client: &Client, head: RequestHead) -> Result<(), End> {
    let host = match &head.target {
        Target::Authority(authority) => Some(authority.host.clone()),
        _ => None,
    };
    let result = answer(worker, client, head).await;
    client.finish(worker, host.as_ref().map(|host| (host, "-")), result)
}

async fn answer(worker: &Worker, client: &Client, head: RequestHead) -> Result<(), End> {
    if client.fixed.is_some() {
        let answer = Answer::new(400, "MALFORMED", "no CONNECT inside a tunnel");
        return refuse(worker, client, Why::Malformed, &answer).await;
    }
    // What follows the head is the tunnel's: a body would be smuggled into it.
    if let Err(error) = request_framing(&head) {
        return refuse(worker, client, Why::Malformed, &client.malformed(&error)).await;
    }
    let Target::Authority(Authority { host, port: Some(port) }) = head.target else {
        let answer = Answer::new(400, "MALFORMED", "CONNECT wants host:port");
        return refuse(worker, client, Why::Malformed, &answer).await;
    };
    if worker.is_loop(&head.fields) {
        return refuse(worker, client, Why::Loop, &Answer::looped()).await;
    }
    let listed = match worker.policy.destination_allowed(Scheme::Https, &host, port) {
        HostVerdict::Allowed => true,
        HostVerdict::ByAddress => false,
        HostVerdict::Refused(Refusal { code, message }) => {
            tracing::info!(client = %client.ip(), %host, port, message, "refused");
            let answer = Answer::new(403, code, message);
            return refuse(worker, client, Why::Denied, &answer).await;
        }
    };
    if worker.policy.intercepts(&host) {
        if let Err(error) = worker.judge(&host, port, listed, true).await {
            tracing::info!(client = %client.ip(), %host, %error, "refused");
            let answer = Answer::upstream(&host.to_string(), &error);
            return refuse(worker, client, Why::Denied, &answer).await;
        }
        Stats::add(&worker.stats.intercepted, 1);
        client.record.settle(Outcome::Intercepted, Why::Intercepted, None);
        client.record.answered(200);
        return Err(End::Opened(Url { scheme: Scheme::Https, host, port, target: "/".into() }));
    }
    let way = way(worker, &head.fields, head.version);
    relay_bytes(worker, client, &host, port, listed, &way).await
}

/// What `Via` says of a CONNECT that goes on from here.
fn way(worker: &Worker, fields: &Fields, received: Version) -> String {
    let own = worker.via(received);
    let before = fields.all("via").filter_map(|via| std::str::from_utf8(via).ok());
    before.chain([own]).collect::<Vec<_>>().join(", ")
}

async fn refuse(worker: &Worker, client: &Client, why: Why, answer: &Answer) -> Result<(), End> {
    Stats::add(&worker.stats.refused, 1);
    client.record.settle(Outcome::Refused, why, None);
    match answer.send_to_connect(client).await {
        Ok(()) => Err(End::Unread),
        Err(_) => Err(End::Broken),
    }
}

async fn relay_bytes(
    worker: &Worker,
    client: &Client,
    host: &Host,
    port: u16,
    listed: bool,
    way: &str,
) -> Result<(), End> {
    let upstream = match Box::pin(worker.tunnel(host, port, listed, way)).await {
        Ok(upstream) => upstream,
        Err(error) => {
            tracing::info!(client = %client.ip(), %host, port, %error, "tunnel failed");
            let why = match error {
                NetError::Denied(_) => Why::Denied,
                _ => {
                    worker.note_error(host, &error);
                    Stats::add(&worker.stats.errors, 1);
                    Why::UpstreamFailed
                }
            };
            return refuse(worker, client, why, &Answer::upstream(&host.to_string(), &error)).await;
        }
    };
    Stats::add(&worker.stats.tunnelled, 1);
    client.record.settle(Outcome::Tunnelled, Why::NotIntercepted, None);
    client.record.from(host);
    client.record.answered(200);
    client.conn.write(ESTABLISHED).await.map_err(|_| End::Broken)?;
    upstream.set_patience(worker.limits.idle_timeout);
    let (relayed, result) = relay(&client.conn, &upstream).await;
    client.record.sent(relayed.down);
    match result {
        Ok(()) => {
            tracing::debug!(%host, port, up = relayed.up, down = relayed.down, "tunnel closed");
            Err(End::Tunnel)
        }
        Err(error) => {
            tracing::debug!(%host, port, %error, "tunnel broke");
            client.note_silence(worker, &error);
            upstream.abort();
            Err(End::Broken)
        }
    }
}

/// Opens the tunnel's TLS with a certificate for the host of the CONNECT, and serves what is
/// inside.
pub async fn open(desk: &Rc<Desk>, client: Box<Client>, fixed: Url) {
    let worker = desk.worker();
    let (ip, host, admitted) = (client.ip(), fixed.host.clone(), client.admitted.get());
    if client.conn.write(ESTABLISHED).await.is_err() {
        return;
    }
    let config = match worker.ca.server_config(&host) {
        Ok(config) => config,
        Err(error) => {
            Stats::add(&worker.stats.errors, 1);
            tracing::error!(%host, error, "no certificate");
            return;
        }
    };
    client.conn.set_patience(worker.limits.header_timeout);
    // On the heap, to be gone when the session inside begins.
    match Box::pin(client.conn.accept_tls(config)).await {
        Ok(conn) => {
            Stats::add(&worker.stats.handshakes, 1);
            drop(worker);
            Box::pin(run(desk, Box::new(Client::new(conn, Some(fixed), admitted)))).await;
        }
        Err(error) if error.is_alert() => {
            Stats::add(&worker.stats.handshakes_failed, 1);
            tracing::warn!(client = %ip, %host, %error,
                "the client refused our certificate: does it trust ca.crt?");
        }
        Err(error) => {
            Stats::add(&worker.stats.handshakes_failed, 1);
            if matches!(error, NetError::TimedOut { .. }) {
                Stats::add(&worker.stats.limited_header_time, 1);
            }
            tracing::info!(client = %ip, %host, %error, "TLS with the client failed");
        }
    }
}
