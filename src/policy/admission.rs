//! Which requests and answers are stored, and under which [`Key`].
//!
//! A digest in the URL says what the bytes must be, so an entry named by one is checked by its
//! content and what the origin says about sharing matters little. Any other entry is whatever that
//! URL answered, and HTTP's rules for shared caches hold (RFC 9111 3).

use regex_automata::meta::Regex;
use regex_automata::util::syntax;

use super::Policy;
use crate::config::{Config, ConfigError};
use crate::http::{Fields, Host, Method, Scheme};
use crate::key::{Digest, Key};

/// A request, as far as admission looks at it.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Of the URL.
    pub scheme: Scheme,
    /// Of the URL.
    pub host: &'a Host,
    /// Of the URL, the scheme's own where it names none.
    pub port: u16,
    /// Of the URL, from its first `/` on, as it was sent.
    pub path: &'a str,
    /// Behind the `?`, where there is one.
    pub query: Option<&'a str>,
    /// Its header fields.
    pub fields: &'a Fields,
}

/// What is done with a request's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The request is a candidate: its answer is looked up and stored under this key, and must
    /// hash to the digest where there is one.
    Store {
        /// The entry's name.
        key: Key,
        /// What its bytes must hash to.
        digest: Option<Digest>,
    },
    /// The request passes.
    Pass(Reason),
}

/// Why an answer is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `cache.enabled` is false.
    CacheOff,
    /// Neither GET nor HEAD; for an answer: not GET.
    Method,
    /// No pattern matches the path.
    Pattern,
    /// The request has a body, which no key can tell from another.
    RequestBody,
    /// The answer's status is not 200.
    Status,
    /// `Cache-Control: no-store`, or a Cache-Control that cannot be read.
    NoStore,
    /// `Cache-Control: private`.
    Private,
    /// A Vary on something that the key does not hold.
    Vary,
    /// The answer sets a cookie.
    SetCookie,
    /// The request carried credentials and the answer is not marked for sharing.
    Authorization,
    /// Larger than `cache.max_size`.
    TooLarge,
    /// A Content-Encoding on what the digest names without one.
    Encoding,
    /// Nothing says whether the body came to its end: neither a length nor a digest nor TLS.
    NoLength,
}

impl Reason {
    /// The reason's name in log lines and counters.
    pub fn name(self) -> &'static str {
        match self {
            Reason::CacheOff => "cache-off",
            Reason::Method => "method",
            Reason::Pattern => "pattern",
            Reason::RequestBody => "request-body",
            Reason::Status => "status",
            Reason::NoStore => "no-store",
            Reason::Private => "private",
            Reason::Vary => "vary",
            Reason::SetCookie => "set-cookie",
            Reason::Authorization => "authorization",
            Reason::NoLength => "no-length",
            Reason::TooLarge => "too-large",
            Reason::Encoding => "encoding",
        }
    }
}

pub(super) struct Rules {
    enabled: bool,
    max_size: u64,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Rules {
        Rules { enabled: config.cache.enabled, max_size: config.cache.max_size }
    }
}

/// Compiles `cache.patterns` into one automaton.
pub(super) fn patterns(config: &Config) -> Result<Regex, ConfigError> {
    let patterns = &config.cache.patterns;
    build(patterns).map_err(|all| {
        let alone = patterns.iter().enumerate().find_map(|(n, one)| {
            let why = build(std::slice::from_ref(one)).err()?;
            Some((format!("cache.patterns[{n}]"), why))
        });
        let (key, why) = alone.unwrap_or_else(|| ("cache.patterns".to_owned(), all));
        let found = format!("one that does not compile ({why})");
        config.error(&key, &found, "a regular expression such as ^/v2/.*/blobs/sha256:.*")
    })
}

/// The regular expressions as one, or what is wrong with them on one line.
fn build(patterns: &[String]) -> Result<Regex, String> {
    Regex::builder()
        // Paths are ASCII: without Unicode classes the automata stay small and fast.
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .build_many(patterns)
        .map_err(|error| {
            let text = match error.syntax_error() {
                Some(syntax) => syntax.to_string(),
                None => error.to_string(),
            };
            // A syntax error draws the pattern first and ends in its own words.
            let last = text.lines().last().unwrap_or_default();
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        })
}

impl Policy {
    /// Whether the request is a candidate, and under which key.
    pub fn admit(&self, ask: &Ask) -> Admission {
        if !self.rules.admission.enabled {
            return Admission::Pass(Reason::CacheOff);
        }
        if *ask.method != Method::GET && *ask.method != Method::HEAD {
            return Admission::Pass(Reason::Method);
        }
        if !self.patterns.is_match(ask.path) {
            return Admission::Pass(Reason::Pattern);
        }
        if has_body(ask.fields) {
            return Admission::Pass(Reason::RequestBody);
        }
        match digest(ask.path) {
            Some(digest) => {
                Admission::Store { key: Key::Digest(digest.clone()), digest: Some(digest) }
            }
            None => Admission::Store { key: url_key(ask), digest: None },
        }
    }

    /// Whether the answer to a candidate is stored. `digest` is what the admission gave, `len` the
    /// body's length where the answer tells it.
    ///
    /// # Errors
    /// The reason why not.
    pub fn admit_answer(
        &self,
        ask: &Ask,
        digest: Option<&Digest>,
        status: u16,
        fields: &Fields,
        len: Option<u64>,
    ) -> Result<(), Reason> {
        if *ask.method != Method::GET {
            return Err(Reason::Method);
        }
        if status != 200 {
            return Err(Reason::Status);
        }
        let control = CacheControl::read(fields);
        if control.no_store {
            return Err(Reason::NoStore);
        }
        if len.is_some_and(|len| len > self.rules.admission.max_size) {
            return Err(Reason::TooLarge);
        }
        match digest {
            Some(_) if is_encoded(fields) => Err(Reason::Encoding),
            Some(_) => Ok(()),
            None => sharable(ask, fields, &control),
        }
    }

    /// The entry that this request's answer makes stale: what is stored under the URL of a
    /// request that changed something (RFC 9111 4.4). Digest entries cannot become stale.
    pub fn invalidates(&self, ask: &Ask, status: u16) -> Option<Key> {
        let changes = !ask.method.is_safe() && *ask.method != Method::CONNECT;
        let stored = changes
            && (200..400).contains(&status)
            && self.rules.admission.enabled
            && self.patterns.is_match(ask.path)
            && digest(ask.path).is_none();
        stored.then(|| url_key(ask))
    }
}

/// The digest that the last path segment is.
fn digest(path: &str) -> Option<Digest> {
    Digest::parse(path.rsplit('/').next()?)
}

fn url_key(ask: &Ask) -> Key {
    let (scheme, host) = (ask.scheme.as_str(), ask.host.to_string());
    match ask.query {
        Some(query) => Key::for_url(scheme, &host, ask.port, &format!("{}?{query}", ask.path)),
        None => Key::for_url(scheme, &host, ask.port, ask.path),
    }
}

fn has_body(fields: &Fields) -> bool {
    fields.contains("transfer-encoding")
        || fields.all("content-length").any(|len| len.iter().any(|digit| *digit != b'0'))
}

fn is_encoded(fields: &Fields) -> bool {
    list_has(fields, "content-encoding", |coding| !coding.eq_ignore_ascii_case(b"identity"))
}

/// RFC 9111 3 for a shared cache whose entries hold until they are evicted.
fn sharable(ask: &Ask, fields: &Fields, control: &CacheControl) -> Result<(), Reason> {
    if control.private {
        return Err(Reason::Private);
    }
    let in_key = |name: &[u8]| {
        name.eq_ignore_ascii_case(b"accept-encoding") || name.eq_ignore_ascii_case(b"origin")
    };
    if list_has(fields, "vary", |name| !in_key(name)) {
        return Err(Reason::Vary);
    }
    if fields.contains("set-cookie") {
        return Err(Reason::SetCookie);
    }
    if ask.fields.contains("authorization") && !control.shares_authorized() {
        return Err(Reason::Authorization);
    }
    Ok(())
}

/// Whether an element of a list without quoted strings is `wanted`; any bytes count.
fn list_has(fields: &Fields, name: &str, wanted: impl Fn(&[u8]) -> bool) -> bool {
    fields
        .all(name)
        .flat_map(|line| line.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|element| !element.is_empty() && wanted(element))
}

/// The directives of an answer's Cache-Control that matter here (RFC 9111 5.2.2).
#[derive(Debug, Default, PartialEq, Eq)]
struct CacheControl {
    no_store: bool,
    no_cache: bool,
    /// With field names too: those fields are not ours to tell apart (RFC 9111 5.2.2.7).
    private: bool,
    public: bool,
    must_revalidate: bool,
    max_age: Option<u64>,
    s_maxage: Option<u64>,
}

impl CacheControl {
    fn read(fields: &Fields) -> CacheControl {
        let mut control = CacheControl::default();
        if !fields.all("cache-control").all(|line| line.is_ascii()) {
            control.no_store = true;
        }
        for element in fields.tokens("cache-control") {
            let (name, argument) = match element.split_once('=') {
                Some((name, argument)) => (name.trim(), Some(argument.trim())),
                None => (element, None),
            };
            let seconds = || argument.map(seconds);
            match name.to_ascii_lowercase().as_str() {
                "no-store" => control.no_store = true,
                "no-cache" => control.no_cache = true,
                "private" => control.private = true,
                "public" => control.public = true,
                "must-revalidate" => control.must_revalidate = true,
                "max-age" => control.max_age = shorter(control.max_age, seconds()),
                "s-maxage" => control.s_maxage = shorter(control.s_maxage, seconds()),
                _ => {}
            }
        }
        control
    }

    /// Whether an answer to a request with credentials may go to others (RFC 9111 3.5): it says
    /// so, or implies it. An entry here is never revalidated, so what implies sharing only after
    /// revalidation does not do.
    fn shares_authorized(&self) -> bool {
        let fresh = self.s_maxage.or(self.max_age).is_some_and(|seconds| seconds > 0);
        let implied = self.s_maxage.is_some() || self.must_revalidate;
        self.public || (implied && fresh && !self.no_cache)
    }
}

/// Delta seconds (RFC 9111 1.2.2), quoted or not; what is no number is stale (RFC 9111 4.2.1).
fn seconds(argument: &str) -> u64 {
    let bare = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let digits = bare.unwrap_or(argument);
    match digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() {
        true => digits.parse().unwrap_or(u64::MAX),
        false => 0,
    }
}

/// Of a repeated directive the most restrictive counts (RFC 9111 4.2.1).
fn shorter(before: Option<u64>, now: Option<u64>) -> Option<u64> {
    match (before, now) {
        (Some(before), Some(now)) => Some(before.min(now)),
        (before, now) => before.or(now),
    }
}

#[cfg(test)]
mod tests;
