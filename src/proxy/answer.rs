//! Answers of the proxy's own making: errors as registries give them (OCI distribution
//! specification, "Error Codes").

use serde::Serialize;

use super::record::REQUEST_ID;
use super::session::Client;
use crate::http::Version;
use crate::net::{Conn, NetError, ParentFault};

/// An answer with a small body of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// For programs, in capitals.
    pub code: &'static str,
    /// For people: one sentence, what failed and why.
    pub message: String,
    /// Further header lines, each with its line end.
    extra: &'static str,
}

#[derive(Serialize)]
struct Body<'a> {
    errors: [Error<'a>; 1],
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
    detail: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    request_id: &'a str,
}

impl Answer {
    /// An error.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Answer {
        Answer { status, code, message: message.into(), extra: "" }
    }

    /// With these header lines, each with its line end.
    pub fn with(self, extra: &'static str) -> Answer {
        Answer { extra, ..self }
    }

    /// To a request that came through this proxy before.
    pub fn looped() -> Answer {
        Answer::new(508, "LOOP", "this request came through this proxy already")
    }

    /// What to say about an upstream that failed: 504 for time-outs, 403 for what is not allowed,
    /// 503 where a retry makes sense, else 502.
    pub fn upstream(host: &str, error: &NetError) -> Answer {
        let (status, code) = match error {
            NetError::Denied(_) => (403, "DENIED"),
            NetError::TimedOut { .. } => (504, "UPSTREAM_TIMEOUT"),
            NetError::Tls(_) => (502, "UPSTREAM_TLS"),
            NetError::Malformed(_) => (502, "UPSTREAM_MALFORMED"),
            NetError::Parent { fault, .. } => of_parent(fault),
            NetError::Resolve { .. }
            | NetError::Connect { .. }
            | NetError::Closed
            | NetError::Io(_)
            | NetError::File(_)
            | NetError::Busy => (503, "UPSTREAM_UNAVAILABLE"),
        };
        let message = match error {
            NetError::Denied(why) => why.to_string(),
            error => format!("upstream {host}: {error}"),
        };
        Answer::new(status, code, message)
    }

    fn body(&self, request_id: &str) -> Vec<u8> {
        let detail = Detail { request_id };
        let errors = [Error { code: self.code, message: &self.message, detail }];
        serde_json::to_vec(&Body { errors }).unwrap_or_default()
    }

    /// Sends it. `with_body` is false for answers to HEAD.
    pub async fn send(
        &self,
        client: &Client,
        version: Version,
        keep_alive: bool,
        with_body: bool,
    ) -> Result<(), NetError> {
        let body = self.body(client.record.id().as_str());
        client.record.failed(&self.message);
        let (status, extra) = (self.status, self.extra);
        let reply = Reply { status, kind: "application/json", body: &body, extra };
        reply.send_to(client, version, keep_alive, with_body).await
    }

    /// Sends it as the answer to a CONNECT: Go clients show nothing but the status line.
    pub async fn send_to_connect(&self, client: &Client) -> Result<(), NetError> {
        let record = &client.record;
        let id = record.id();
        let body = self.body(id.as_str());
        record.failed(&self.message);
        record.answered(self.status);
        let words: String =
            self.message.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' }).collect();
        let head = format!(
            "HTTP/1.1 {} {words}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             {REQUEST_ID}: {}\r\n{}Connection: close\r\n\r\n",
            self.status,
            body.len(),
            id.as_str(),
            self.extra
        );
        client.conn.write_parts(&[head.as_bytes(), &body], false).await?;
        record.sent(body.len() as u64);
        Ok(())
    }
}

/// A parent proxy is for the operator to mend: 502, unless it is time that was short.
fn of_parent(fault: &ParentFault) -> (u16, &'static str) {
    let late = match fault {
        ParentFault::Credentials => false,
        ParentFault::Refused(status) => *status == 504,
        ParentFault::Failed(error) => matches!(**error, NetError::TimedOut { .. }),
    };
    if late { (504, "UPSTREAM_TIMEOUT") } else { (502, "UPSTREAM_PARENT") }
}

/// A complete small answer.
pub struct Reply<'a> {
    /// The status.
    pub status: u16,
    /// The body's media type.
    pub kind: &'static str,
    /// The body.
    pub body: &'a [u8],
    /// Further header lines, each with its line end.
    pub extra: &'a str,
}

impl Reply<'_> {
    /// Sends it to a client of the proxy, with the id of its request.
    pub async fn send_to(
        &self,
        client: &Client,
        version: Version,
        keep_alive: bool,
        with_body: bool,
    ) -> Result<(), NetError> {
        let record = &client.record;
        let extra = format!("{}{REQUEST_ID}: {}\r\n", self.extra, record.id().as_str());
        record.answered(self.status);
        let reply = Reply { extra: &extra, ..*self };
        reply.send(&client.conn, version, keep_alive, with_body).await?;
        record.sent(if with_body { self.body.len() as u64 } else { 0 });
        Ok(())
    }

    /// Sends it.
    pub async fn send(
        &self,
        conn: &Conn,
        version: Version,
        keep_alive: bool,
        with_body: bool,
    ) -> Result<(), NetError> {
        let head = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nDate: {}\r\n{}{}\r\n",
            self.status,
            reason(self.status),
            self.kind,
            self.body.len(),
            httpdate::fmt_http_date(std::time::SystemTime::now()),
            self.extra,
            connection(version, keep_alive),
        );
        let body = if with_body { self.body } else { &[] };
        conn.write_parts(&[head.as_bytes(), body], false).await
    }
}

/// The `Connection` line that says whether another request may follow; empty where that is the
/// version's default (RFC 9112, section 9.3).
pub fn connection(version: Version, keep_alive: bool) -> &'static str {
    match (version, keep_alive) {
        (Version::Http11, true) => "",
        (Version::Http10, true) => "Connection: keep-alive\r\n",
        (_, false) => "Connection: close\r\n",
    }
}

/// The usual words of a status this proxy gives itself.
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        508 => "Loop Detected",
        _ => "Error",
    }
}
