//! Stand-ins in front of a docker-registry: one that can end between a manifest and its blobs, and
//! one with the manners of the large public registries.
//!
//! The public one challenges for a token that another host gives out, and answers blob requests by
//! a 307 to a CDN under another domain. The CDN's URLs are signed: good for one method, unchanged to
//! the byte, for a few seconds. It refuses a request that brings any other credential.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::super::wire::{Stream, Wire};
use super::image::Image;
use super::registry::Registry;
use super::site::{Answer, Body, Request, Served, Site};
use super::{Lab, Namespace};

/// Passes everything to a docker-registry, until told to end with the next manifest.
pub struct Front {
    namespace: Namespace,
    registry: Mutex<Registry>,
    address: SocketAddr,
    end_after_manifest: AtomicBool,
    ended: AtomicBool,
}

impl Front {
    /// Serves `registry` (a plain one) as `https://<name>`.
    pub fn start(lab: &Lab, name: &str, registry: Registry) -> (Arc<Front>, Served) {
        let front = Arc::new(Front {
            namespace: lab.namespace().clone(),
            address: registry.address,
            registry: Mutex::new(registry),
            end_after_manifest: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let served = Served::start(lab, &lab.upstream, name, front.clone());
        (front, served)
    }

    /// From the first answer on a manifest after this call, nothing is answered any more.
    pub fn end_after_manifest(&self) {
        self.end_after_manifest.store(true, Ordering::SeqCst);
    }

    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

impl Site for Front {
    fn answer(&self, request: &Request) -> Option<Answer> {
        if self.has_ended() {
            return None;
        }
        let answer = relay(&self.namespace, self.address, request);
        let manifest = request.path().contains("/manifests/") && answer.status == 200;
        if manifest && self.end_after_manifest.load(Ordering::SeqCst) {
            self.ended.store(true, Ordering::SeqCst);
            self.registry.lock().unwrap().kill();
        }
        Some(answer)
    }
}

/// A public registry with its token host and its CDN.
pub struct Public {
    pub registry: Served,
    pub tokens: Served,
    pub cdn: Served,
    state: Arc<State>,
    _origin: Registry,
}

impl Public {
    pub const NAME: &'static str = "registry-1.public.test";
    pub const TOKENS: &'static str = "auth.public.test";
    pub const CDN: &'static str = "production.cdn-of-another.example";

    /// One that holds `image` as `lab/app:v1`, whose signed URLs are good for `life`.
    pub fn start(lab: &Lab, image: &Image, life: Duration) -> Public {
        let origin = Registry::start(lab, "origin.test", false);
        origin.fill(lab, image, "lab/app");
        let state = Arc::new(State {
            namespace: lab.namespace().clone(),
            origin: origin.address,
            image: image.clone(),
            life,
            tokens: Mutex::default(),
            signed: Mutex::default(),
            offences: Mutex::default(),
            secrets: Mutex::default(),
            bodies: AtomicUsize::new(0),
        });
        let serve = |authority, name, site| Served::start(lab, authority, name, site);
        Public {
            registry: serve(&lab.upstream, Self::NAME, Arc::new(RegistrySite(state.clone()))),
            tokens: serve(&lab.public, Self::TOKENS, Arc::new(TokenSite(state.clone()))),
            cdn: serve(&lab.upstream, Self::CDN, Arc::new(CdnSite(state.clone()))),
            state,
            _origin: origin,
        }
    }

    /// What was asked of the CDN that a careful proxy never asks.
    pub fn offences(&self) -> Vec<String> {
        self.state.offences.lock().unwrap().clone()
    }

    /// What may stand in no log: tokens and signatures, each by its first sixteen digits.
    pub fn secrets(&self) -> Vec<String> {
        self.state.secrets.lock().unwrap().clone()
    }

    /// How many blob bodies the CDN gave out.
    pub fn bodies(&self) -> usize {
        self.state.bodies.load(Ordering::SeqCst)
    }
}

struct State {
    namespace: Namespace,
    origin: SocketAddr,
    image: Image,
    life: Duration,
    tokens: Mutex<HashSet<String>>,
    signed: Mutex<HashMap<String, Signed>>,
    offences: Mutex<Vec<String>>,
    secrets: Mutex<Vec<String>>,
    bodies: AtomicUsize,
}

struct Signed {
    method: String,
    digest: String,
    until: Instant,
}

struct RegistrySite(Arc<State>);
struct TokenSite(Arc<State>);
struct CdnSite(Arc<State>);

impl Site for RegistrySite {
    fn answer(&self, request: &Request) -> Option<Answer> {
        let bearer = request.field("authorization").and_then(|v| v.strip_prefix("Bearer "));
        let known = bearer.is_some_and(|token| self.0.tokens.lock().unwrap().contains(token));
        if !known {
            return Some(challenge(request));
        }
        let answer = match request.path().rsplit_once("/blobs/") {
            Some((_, digest)) => self.0.redirect(request, digest),
            None => relay(&self.0.namespace, self.0.origin, request)
                .with("RateLimit-Limit", "100;w=21600")
                .with("RateLimit-Remaining", "99;w=21600"),
        };
        Some(answer.with("Strict-Transport-Security", "max-age=31536000"))
    }
}

fn challenge(request: &Request) -> Answer {
    let mut value = format!("Bearer realm=\"https://{}/token\",service=\"lab\"", Public::TOKENS);
    if request.path().starts_with("/v2/lab/app/") {
        value += ",scope=\"repository:lab/app:pull\"";
    }
    Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
        .with("Content-Type", "application/json")
        .with("Docker-Distribution-Api-Version", "registry/2.0")
        .with("WWW-Authenticate", value)
}

impl Site for TokenSite {
    fn answer(&self, request: &Request) -> Option<Answer> {
        if request.path() != "/token" {
            return Some(Answer::new(404, ""));
        }
        // As long as real ones are with their claims in them.
        let token: String = (0..120).map(|_| nonce()).collect();
        self.0.secrets.lock().unwrap().push(token[..16].to_owned());
        self.0.tokens.lock().unwrap().insert(token.clone());
        let body = serde_json::json!({"token": token, "access_token": token, "expires_in": 300});
        Some(Answer::new(200, body.to_string()).with("Content-Type", "application/json"))
    }
}

impl State {
    fn redirect(&self, request: &Request, digest: &str) -> Answer {
        if !self.image.blobs().any(|blob| blob == digest) {
            return Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"unknown"}]}"#);
        }
        let hex = digest.trim_start_matches("sha256:");
        let signature = nonce();
        self.secrets.lock().unwrap().push(signature.clone());
        // Spellings that a URL library likes to tidy up, each of which would spoil a signature.
        let target = format!(
            "/registry-v2/docker/registry/v2/blobs/sha256/{}/{hex}/data?Expires={}&Signature=\
             {signature}%2Fa+b~%2b%7E&Key-Pair-Id=&X-Amz-SignedHeaders=host&&sig=c%3d%3D",
            &hex[..2],
            self.life.as_secs(),
        );
        let location = format!("https://{}{target}", Public::CDN);
        let signed = Signed {
            method: request.method.clone(),
            digest: digest.to_owned(),
            until: Instant::now() + self.life,
        };
        self.signed.lock().unwrap().insert(target, signed);
        Answer::new(307, format!("<a href=\"{location}\">Temporary Redirect</a>.\n\n"))
            .with("Content-Type", "text/html; charset=utf-8")
            .with("Docker-Distribution-Api-Version", "registry/2.0")
            .with("Location", location)
    }

    /// The file of a request as it was signed for, or why it is refused.
    fn judge(&self, request: &Request) -> Result<Body, (u16, &'static str)> {
        for credential in ["authorization", "cookie", "proxy-authorization"] {
            if request.field(credential).is_some() {
                return Err((400, "Only one auth mechanism allowed"));
            }
        }
        if request.field("host") != Some(Public::CDN) {
            return Err((403, "another host"));
        }
        let signed = self.signed.lock().unwrap();
        let signed = signed.get(&request.target).ok_or((403, "signature does not match"))?;
        if signed.method != request.method {
            return Err((403, "signed for another method"));
        }
        if signed.until < Instant::now() {
            return Err((403, "expired"));
        }
        Ok(Body::File(self.image.blob_path(&signed.digest)))
    }
}

impl Site for CdnSite {
    fn answer(&self, request: &Request) -> Option<Answer> {
        let body = match self.0.judge(request) {
            Ok(body) => body,
            Err((status, why)) => {
                let line = format!("{} {}: {why}", request.method, request.target);
                self.0.offences.lock().unwrap().push(line);
                return Some(Answer::new(status, why).with("Content-Type", "text/plain"));
            }
        };
        self.0.bodies.fetch_add(usize::from(request.method == "GET"), Ordering::SeqCst);
        let answer = Answer { status: 200, fields: Vec::new(), body };
        Some(
            answer
                .with("Content-Type", "application/octet-stream")
                .with("ETag", format!("\"{}\"", nonce()))
                .with("Cache-Control", "public, max-age=14400")
                .with("Set-Cookie", format!("__cf_bm={}; path=/; HttpOnly; Secure", nonce()))
                .with("X-Cache", "Miss from the CDN"),
        )
    }
}

/// Asks a plain docker-registry what the client asked.
fn relay(namespace: &Namespace, address: SocketAddr, request: &Request) -> Answer {
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.target);
    for (name, value) in &request.head.fields {
        let own = ["connection", "authorization"].iter().any(|own| name.eq_ignore_ascii_case(own));
        if !own {
            head += &format!("{name}: {value}\r\n");
        }
    }
    head += "Connection: close\r\n\r\n";
    ask(namespace, address, head.as_bytes()).unwrap_or_else(|e| Answer::new(502, e.to_string()))
}

fn ask(namespace: &Namespace, address: SocketAddr, head: &[u8]) -> io::Result<Answer> {
    let mut wire = Wire::new(Stream::Plain(namespace.connect(address)?));
    wire.send(head)?;
    let head = wire.head()?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut answer = Answer::new(status.ok_or(io::ErrorKind::InvalidData)?, Vec::new());
    // Whatever follows until docker-registry closes is the body; the fields say its length too.
    let mut body = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match wire.read_some(&mut buffer)? {
            0 => break,
            count => body.extend_from_slice(&buffer[..count]),
        }
    }
    answer.body = Body::Bytes(body);
    answer.fields = head.fields;
    answer.fields.retain(|(name, _)| !name.eq_ignore_ascii_case("connection"));
    Ok(answer)
}

fn nonce() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
