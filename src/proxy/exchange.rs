//! One request: ask policy, ask the cache, choose the route.

use std::cell::OnceCell;
use std::rc::Rc;

use super::answer::{Answer, Reply};
use super::fetch::Recipe;
use super::record::{REQUEST_ID, RequestId, Why, asked};
use super::session::{Client, End};
use super::url::Url;
use super::{Terms, Worker, candidate, pages, pass};
use crate::http::{Framing, Method, RequestHead, Target, keeps_alive, request_framing};
use crate::net::NetError;
use crate::policy::rights::{RegistryPath, RepositoryId};
use crate::policy::{self, Admission, Ask, HostVerdict, Refusal};
use crate::stats::{Outcome, Stats};

/// What may be asked of this proxy.
const ALLOW: &str = "Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, CONNECT\r\n";

/// A request whose head has been read and found in order.
#[derive(Clone)]
pub struct Request {
    /// The head as the client sent it.
    pub head: RequestHead,
    /// Whom it is for.
    pub url: Url,
    /// Its body.
    pub framing: Framing,
    /// Whether the client wants to send another.
    pub keep_alive: bool,
    /// What was settled about whom it is for.
    pub terms: Terms,
    /// What logs call it.
    pub id: RequestId,
    /// What [`Request::repository`] has found out.
    repository: OnceCell<RepositoryId>,
}

impl Request {
    /// The request as policy looks at it.
    pub fn ask(&self) -> Ask<'_> {
        Ask {
            method: &self.head.method,
            scheme: self.url.scheme,
            host: &self.url.host,
            port: self.url.port,
            path: self.url.path(),
            query: self.url.query(),
            fields: &self.head.fields,
        }
    }

    /// The repository it is for: that of a registry's path, else the folder of the URL.
    pub fn repository(&self) -> &RepositoryId {
        let url = &self.url;
        self.repository.get_or_init(|| match RegistryPath::parse(url.path()) {
            Some(path) => path.repository(url.scheme, &url.host, url.port),
            None => {
                let folder = url.path().rsplit_once('/').map_or("", |(folder, _)| folder);
                RepositoryId::new(url.scheme, &url.host, url.port, folder)
            }
        })
    }

    /// What is asked of upstream in its place, as often as it takes.
    pub fn recipe(&self) -> Recipe {
        let mut fields = self.head.fields.clone();
        policy::pass_request(&mut fields);
        let (method, url) = (self.head.method.clone(), self.url.clone());
        let (received, terms) = (self.head.version, self.terms);
        // Without room for one more field it goes without.
        let _ = fields.set(REQUEST_ID, self.id.as_str());
        Recipe { method, received, url, fields, terms, as_asked: false }
    }

    /// Whether a body follows the head.
    pub fn has_body(&self) -> bool {
        !matches!(self.framing, Framing::None | Framing::Length(0))
    }

    /// The path as far as a log may have it. A redirect can lead a client to one that is a token:
    /// shown are those of registries, and those that are for the cache.
    pub fn shown_path(&self, worker: &Worker) -> &str {
        let path = self.url.path();
        let known = path.starts_with("/v2/")
            || matches!(worker.policy.admit(&self.ask()), Admission::Store { .. });
        if known { path } else { "-" }
    }

    /// Counts and logs why upstream gave no answer. A rule's refusal is no error.
    pub fn note_failure(
        &self,
        worker: &Worker,
        client: &Client,
        refused: bool,
        error: &dyn std::fmt::Display,
    ) {
        let (host, path) = (&self.url.host, self.shown_path(worker));
        if refused {
            Stats::add(&worker.stats.refused, 1);
            tracing::info!(client = %client.ip(), %host, %error, "refused");
        } else {
            Stats::add(&worker.stats.errors, 1);
            tracing::warn!(%host, %path, %error, "upstream failed");
        }
    }

    /// Sends an answer of our own in place of upstream's.
    pub async fn answer(&self, client: &Client, answer: &Answer) -> Result<(), End> {
        let (keep, with_body) = (self.keep_alive && !self.has_body(), self.with_body());
        let sent = answer.send(client, self.head.version, keep, with_body).await;
        sent.map_err(|_| End::Broken)?;
        self.go_on(keep)
    }

    /// How a request ends whose answer was sent whole.
    pub fn go_on(&self, keep: bool) -> Result<(), End> {
        match (keep, self.has_body()) {
            (true, _) => Ok(()),
            (false, false) => Err(End::Answered),
            (false, true) => Err(End::Unread),
        }
    }

    fn with_body(&self) -> bool {
        self.head.method != Method::HEAD
    }
}

/// Answers one request. `Ok`: another may follow on this connection. `last`: none may.
pub async fn exchange(
    worker: &Rc<Worker>,
    client: &Client,
    mut head: RequestHead,
    last: bool,
) -> Result<(), End> {
    let wants_more = keeps_alive(head.version, &head.fields);
    if wants_more && last {
        Stats::add(&worker.stats.limited_requests, 1);
    }
    let keep_alive = wants_more && !last;
    let framing = request_framing(&head);
    let (version, with_body) = (head.version, head.method != Method::HEAD);
    let refuse = async |url: Option<&Url>, why: Why, answer: Answer| {
        Stats::add(&worker.stats.refused, 1);
        client.record.settle(Outcome::Refused, why, None);
        let sent = answer.send(client, version, false, with_body).await;
        client.finish(worker, url.map(asked), Err(unread(&sent)))
    };
    let framing = match framing {
        Ok(framing) => framing,
        Err(error) => return refuse(None, Why::Malformed, client.malformed(&error)).await,
    };
    let url = match target(client, &head) {
        Ok(Asked::Url(url)) => url,
        Ok(Asked::Ourselves(path)) => {
            client.record.settle(Outcome::Own, Why::ForUs, None);
            let result = pages::answer(worker, client, &head, &path, keep_alive).await;
            return client.finish(worker, None, result);
        }
        Err(answer) => return refuse(None, Why::Malformed, answer).await,
    };
    if worker.is_loop(&head.fields) {
        return refuse(Some(&url), Why::Loop, Answer::looped()).await;
    }
    if let Some(status) = ends_here(&mut head) {
        client.record.settle(Outcome::Own, Why::ForUs, None);
        let reply = Reply { status, kind: "text/plain", body: b"", extra: ALLOW };
        let sent = reply.send_to(client, version, false, with_body).await;
        return client.finish(worker, Some(asked(&url)), Err(unread(&sent)));
    }
    let listed = match worker.policy.destination_allowed(url.scheme, &url.host, url.port) {
        HostVerdict::Allowed => true,
        HostVerdict::ByAddress => false,
        HostVerdict::Refused(Refusal { code, message }) => {
            tracing::info!(client = %client.ip(), host = %url.host, message, "refused");
            let answer = Answer::new(403, code, message);
            return refuse(Some(&url), Why::Denied, answer).await;
        }
    };
    let repository = OnceCell::new();
    let terms = Terms { listed, injected: worker.injected(&url).await };
    let id = client.record.id();
    let request = Request { head, url, framing, keep_alive, terms, id, repository };
    let result = route(worker, client, &request).await;
    client.finish(worker, Some(asked(&request.url)), result)
}

/// How a request ends that was answered without being read to its end.
fn unread(sent: &Result<(), NetError>) -> End {
    if sent.is_ok() { End::Unread } else { End::Broken }
}

async fn route(worker: &Rc<Worker>, client: &Client, request: &Request) -> Result<(), End> {
    match worker.policy.admit(&request.ask()) {
        Admission::Pass(reason) => {
            Stats::add(&worker.stats.passed, 1);
            client.record.settle(Outcome::Passed, Why::Rule(reason), None);
            Box::pin(pass::pass(worker, client, request)).await
        }
        Admission::Store { key, .. } if request.head.method == Method::HEAD => {
            Box::pin(candidate::head_request(worker, client, request, &key)).await
        }
        Admission::Store { key, digest } => {
            candidate::get_request(worker, client, request, &key, digest).await
        }
    }
}

/// What is answered in the place of upstream, where this is the last to get the request: a TRACE,
/// since upstream would send back what our header rules put in, and an OPTIONS that says so (RFC
/// 9110, section 7.6.2; one that may go on has a step less to go).
fn ends_here(head: &mut RequestHead) -> Option<u16> {
    if head.method == Method::TRACE {
        return Some(405);
    }
    if head.method != Method::OPTIONS {
        return None;
    }
    let steps = head.fields.get_str("max-forwards").and_then(|steps| steps.parse::<u64>().ok())?;
    match steps.checked_sub(1) {
        None => Some(200),
        Some(left) => {
            head.fields.remove("max-forwards");
            // A name and a number of our own.
            let _ = head.fields.push_number("Max-Forwards", left);
            None
        }
    }
}

enum Asked {
    Url(Url),
    Ourselves(Box<str>),
}

/// Whom a request is for: the tunnel it came through, or its absolute target.
fn target(client: &Client, head: &RequestHead) -> Result<Asked, Answer> {
    let malformed = |message: &str| Answer::new(400, "MALFORMED", message);
    match (&client.fixed, &head.target) {
        (Some(fixed), Target::Origin(path)) => {
            check_authority(fixed, head)?;
            Ok(Asked::Url(Url { target: path.clone(), ..fixed.clone() }))
        }
        (Some(fixed), Target::Absolute { path, .. }) => {
            check_authority(fixed, head)?;
            Ok(Asked::Url(Url { target: path.clone(), ..fixed.clone() }))
        }
        (Some(fixed), Target::Asterisk) => {
            check_authority(fixed, head)?;
            Ok(Asked::Url(Url { target: "*".into(), ..fixed.clone() }))
        }
        (None, Target::Absolute { scheme, authority, path }) => {
            let port = authority.port.unwrap_or(scheme.default_port());
            let host = authority.host.clone();
            Ok(Asked::Url(Url { scheme: *scheme, host, port, target: path.clone() }))
        }
        (None, Target::Origin(path)) => Ok(Asked::Ourselves(path.clone())),
        (None, Target::Asterisk) => Err(malformed("this proxy needs a whole URL")),
        (_, Target::Authority(_)) => Err(malformed("only CONNECT has an authority as its target")),
    }
}

/// A request inside a tunnel is for the tunnel's host, or for nobody.
fn check_authority(fixed: &Url, head: &RequestHead) -> Result<(), Answer> {
    let Some(authority) = head.authority() else { return Ok(()) };
    let port = authority.port.unwrap_or(match &head.target {
        Target::Absolute { scheme, .. } => scheme.default_port(),
        _ => fixed.port,
    });
    let scheme = match &head.target {
        Target::Absolute { scheme, .. } => *scheme,
        _ => fixed.scheme,
    };
    if authority.host == fixed.host && port == fixed.port && scheme == fixed.scheme {
        return Ok(());
    }
    let message = format!("the tunnel leads to {}, the request is for {authority}", fixed.origin());
    Err(Answer::new(421, "MISDIRECTED", message))
}
