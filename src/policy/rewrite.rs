//! Header rules, and which fields never cross the proxy.

use super::{Policy, covers};
use crate::config::{Config, ConfigError, HeaderField, HeaderScope};
use crate::http::{Fields, Host, Malformed, Scheme};

/// What is set in and added to requests of one scope.
pub struct HeaderRule {
    scope: HeaderScope,
    set: Fields,
    append: Fields,
    /// Names of the fields that hold credentials.
    credentials: Vec<Box<str>>,
}

/// What of a header rule goes into a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// All of it.
    All,
    /// All of it, and nothing but loopback may be connected to for it.
    AtLoopback,
    /// What holds no credentials.
    Harmless,
    /// Nothing.
    Nothing,
}

impl HeaderRule {
    /// Whether it is for requests to this host; `plain`: their port, where they go without TLS.
    pub(super) fn covers(&self, host: &Host, plain: Option<u16>) -> bool {
        covers(&self.scope.pattern, host)
            && (self.scope.plain.is_none() || self.scope.plain == plain)
    }

    /// Whether a request of this scheme would carry its credentials in the clear though its key
    /// does not say so.
    pub fn would_leak(&self, scheme: Scheme) -> bool {
        let asked_for = scheme == Scheme::Https || self.scope.plain.is_some();
        !asked_for && !self.credentials.is_empty()
    }

    /// Sets and adds the rule's fields in a request of its scope.
    ///
    /// # Errors
    /// When the head grows beyond all measure; it is not to be sent then.
    pub fn apply(&self, request: &mut Fields, injected: Injected) -> Result<(), Malformed> {
        let goes = |name: &str| match injected {
            Injected::All | Injected::AtLoopback => true,
            Injected::Harmless => {
                !self.credentials.iter().any(|other| other.eq_ignore_ascii_case(name))
            }
            Injected::Nothing => false,
        };
        for (name, value) in self.set.iter().filter(|(name, _)| goes(name)) {
            request.set(name, value)?;
        }
        for (name, value) in self.append.iter().filter(|(name, _)| goes(name)) {
            request.push(name, value)?;
        }
        Ok(())
    }

    /// Whether the rule sets or adds a field of this name.
    pub fn touches(&self, name: &str) -> bool {
        self.set.contains(name) || self.append.contains(name)
    }
}

/// The rules of the configuration, the narrowest pattern first.
pub(super) fn compile(config: &Config) -> Result<Vec<HeaderRule>, ConfigError> {
    let mut rules = Vec::with_capacity(config.headers.len());
    for rule in &config.headers {
        let fields = |listed: &[HeaderField], action: &str| {
            let mut fields = Fields::new();
            for field in listed {
                fields.push(&field.name, field.value.expose()).map_err(|error| {
                    let key = format!("headers.{}.{action}.{}", rule.scope, field.name);
                    config.error(&key, &error.to_string(), "a header that can be sent")
                })?;
            }
            Ok::<_, ConfigError>(fields)
        };
        let (set, append) = (fields(&rule.set, "set")?, fields(&rule.append, "append")?);
        let secret = rule.set.iter().chain(&rule.append).filter(|field| field.is_credential());
        let credentials = secret.map(|field| field.name.as_str().into()).collect();
        rules.push(HeaderRule { scope: rule.scope.clone(), set, append, credentials });
    }
    let order = |scope: &HeaderScope| (scope.pattern.specificity(), scope.plain.is_some());
    rules.sort_by_key(|rule| std::cmp::Reverse(order(&rule.scope)));
    Ok(rules)
}

/// Takes off a client's request what is not for the upstream: what concerns this connection
/// alone, and what is meant for this proxy.
pub fn pass_request(request: &mut Fields) {
    request.strip_hop_by_hop();
}

/// Takes off an upstream's answer what is not for the client: what concerns that connection
/// alone, and what only this proxy says.
pub fn pass_response(answer: &mut Fields) {
    answer.strip_hop_by_hop();
    answer.retain(|name, _| !is_one_of(name, &["x-cache", "x-cache-date", "x-request-id"]));
}

/// Takes off a request what is meant for the host it was first sent to, before it follows a
/// redirect to another scheme, host or port: credentials, and what the first host's rule put in.
pub fn leave_origin(request: &mut Fields, rule: Option<&HeaderRule>) {
    request.retain(|name, _| {
        !is_one_of(name, CREDENTIALS)
            && !starts_with(name, "proxy-")
            && !rule.is_some_and(|rule| rule.touches(name))
    });
}

const CREDENTIALS: &[&str] = &["authorization", "cookie", "cookie2"];

/// The fields of an answer that are kept with its entry: what describes the bytes, not what
/// belongs to that one answer, to its client or to the way it came.
pub fn stored_fields(answer: &Fields) -> Fields {
    let mut kept = answer.clone();
    pass_response(&mut kept);
    kept.retain(|name, _| {
        !is_one_of(name, OF_ONE_ANSWER)
            && !OF_ONE_ANSWER_PREFIXES.iter().any(|p| starts_with(name, p))
    });
    kept
}

/// Framing and age are said anew with each answer; the rest would be another client's.
const OF_ONE_ANSWER: &[&str] = &[
    "accept-ranges",
    "age",
    "alt-svc",
    "authentication-info",
    "clear-site-data",
    "content-length",
    "content-range",
    "date",
    "nel",
    "proxy-authentication-info",
    "refresh",
    "report-to",
    "reporting-endpoints",
    "retry-after",
    "server-timing",
    "set-cookie",
    "set-cookie2",
    "via",
    "www-authenticate",
    "x-correlation-id",
    "x-runtime",
    "x-served-by",
    "x-timer",
];

/// Rate limits, ids of requests and traces, and other caches' remarks.
const OF_ONE_ANSWER_PREFIXES: &[&str] = &[
    "akamai-",
    "cf-",
    "docker-ratelimit",
    "ratelimit",
    "trace",
    "x-amz-",
    "x-amzn-",
    "x-cache",
    "x-github-request-",
    "x-goog-",
    "x-guploader-",
    "x-ms-",
    "x-rate-limit",
    "x-ratelimit",
    "x-request-",
    "x-trace",
];

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|other| other.eq_ignore_ascii_case(name))
}

fn starts_with(name: &str, prefix: &str) -> bool {
    name.as_bytes()
        .get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

impl Policy {
    /// Applies the rule for the origin, if there is one.
    ///
    /// # Errors
    /// As for [`HeaderRule::apply`].
    pub fn apply_headers(
        &self,
        (scheme, host, port): (Scheme, &Host, u16),
        request: &mut Fields,
        injected: Injected,
    ) -> Result<(), Malformed> {
        let rule = self.header_rule(scheme, host, port);
        rule.map_or(Ok(()), |rule| rule.apply(request, injected))
    }
}

#[cfg(test)]
mod tests {
    use super::super::policy;
    use super::*;
    use crate::http::Host;

    fn fields(lines: &[(&str, &str)]) -> Fields {
        let mut fields = Fields::new();
        lines.iter().for_each(|(name, value)| fields.push(name, value).unwrap());
        fields
    }

    fn text(fields: &Fields) -> String {
        let mut out = Vec::new();
        fields.write_to(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn rule<'p>(
        policy: &'p Policy,
        scheme: Scheme,
        host: &str,
        port: u16,
    ) -> Option<&'p HeaderRule> {
        policy.header_rule(scheme, &Host::parse(host).unwrap(), port)
    }

    fn inject(policy: &Policy, host: &str, request: &mut Fields) {
        let origin = (Scheme::Https, &Host::parse(host).unwrap(), 443);
        policy.apply_headers(origin, request, Injected::All).unwrap();
    }

    const RULES: &str = r#"
headers:
  "*": { set: { X-Rule: any } }
  "*.corp": { set: { X-Rule: corp } }
  "*.eu.corp": { set: { X-Rule: eu } }
  "*.*.eu.corp": { set: { X-Rule: deep } }
  "reg.eu.corp": { set: { X-Rule: exact, Authorization: Bearer s3cret }, append: { X-Via: build } }
  "10.0.0.1": { append: { X-Rule: ip } }
"#;

    #[test]
    fn the_most_specific_pattern_wins() {
        let policy = policy(RULES);
        for (host, expected) in [
            ("example.org", "any"),
            ("[::1]", "any"),
            ("corp", "any"),
            ("a.corp", "corp"),
            ("eu.corp", "corp"),
            ("a.eu.corp", "eu"),
            ("reg.eu.corp", "exact"),
            ("a.reg.eu.corp", "eu"),
            ("10.0.0.1", "ip"),
        ] {
            let mut request = Fields::new();
            inject(&policy, host, &mut request);
            assert_eq!(request.get_str("x-rule"), Some(expected), "{host}");
        }
        let none = super::super::policy("headers: {ghcr.io: }");
        assert!(rule(&none, Scheme::Https, "quay.io", 443).is_none());
        let mut request = fields(&[("A", "1")]);
        inject(&none, "ghcr.io", &mut request);
        assert_eq!(text(&request), "A: 1\r\n");
    }

    #[test]
    fn set_replaces_and_append_adds() {
        let policy = policy(RULES);
        let mut request =
            fields(&[("authorization", "Basic x"), ("x-via", "a"), ("AUTHORIZATION", "Basic y")]);
        inject(&policy, "reg.eu.corp", &mut request);
        assert_eq!(request.count("authorization"), 1);
        assert_eq!(request.get_str("authorization"), Some("Bearer s3cret"));
        assert_eq!(request.tokens("x-via").collect::<Vec<_>>(), ["a", "build"]);
    }

    #[test]
    fn rules_for_the_open_wire_are_for_one_port_of_it() {
        let policy = policy(
            r#"
headers:
  "*.corp": { set: { X-Rule: below, Authorization: s3cret } }
  "reg.corp": { set: { X-Rule: tls } }
  "http://reg.corp": { set: { X-Rule: eighty, Cookie: s3cret } }
  "http://reg.corp:5000": { set: { X-Rule: other } }
"#,
        );
        let value = |scheme, host: &str, port| {
            let mut request = Fields::new();
            rule(&policy, scheme, host, port).unwrap().apply(&mut request, Injected::All).unwrap();
            request.get_str("x-rule").unwrap().to_owned()
        };
        for (scheme, host, port, expected) in [
            (Scheme::Https, "reg.corp", 443, "tls"),
            (Scheme::Https, "reg.corp", 80, "tls"),
            (Scheme::Http, "reg.corp", 80, "eighty"),
            (Scheme::Http, "reg.corp", 5000, "other"),
            (Scheme::Http, "reg.corp", 5001, "tls"),
            (Scheme::Http, "a.corp", 80, "below"),
        ] {
            assert_eq!(value(scheme, host, port), expected, "{scheme} {host} {port}");
        }
        let leaks = |scheme, host| rule(&policy, scheme, host, 80).unwrap().would_leak(scheme);
        assert!(leaks(Scheme::Http, "a.corp"));
        assert!(!leaks(Scheme::Https, "a.corp") && !leaks(Scheme::Http, "reg.corp"));
    }

    #[test]
    fn credentials_are_told_from_the_rest() {
        let policy = policy(
            "headers: {a.io: {set: {Authorization: s3cret, X-A: 1}, append: {private-TOKEN: t}}}",
        );
        let rule = rule(&policy, Scheme::Http, "a.io", 80).unwrap();
        for (injected, expected) in [
            (Injected::All, "Authorization: s3cret\r\nX-A: 1\r\nprivate-TOKEN: t\r\n"),
            (Injected::AtLoopback, "Authorization: s3cret\r\nX-A: 1\r\nprivate-TOKEN: t\r\n"),
            (Injected::Harmless, "Authorization: client\r\nX-A: 1\r\n"),
            (Injected::Nothing, "Authorization: client\r\n"),
        ] {
            let mut request = fields(&[("Authorization", "client")]);
            rule.apply(&mut request, injected).unwrap();
            assert_eq!(text(&request), expected, "{injected:?}");
        }
    }

    #[test]
    fn credentials_and_injected_fields_stay_with_their_host() {
        let policy = policy(RULES);
        let rule = rule(&policy, Scheme::Https, "reg.eu.corp", 443);
        let mut request = fields(&[
            ("Accept", "*/*"),
            ("authorization", "Bearer s3cret"),
            ("Cookie", "a=b"),
            ("X-VIA", "build"),
            ("X-Rule", "exact"),
            ("Proxy-Authorization", "Basic x"),
            ("User-Agent", "t"),
        ]);
        leave_origin(&mut request, rule);
        assert_eq!(text(&request), "Accept: */*\r\nUser-Agent: t\r\n");
    }

    #[test]
    fn what_concerns_one_connection_does_not_cross() {
        let mut request = fields(&[
            ("Host", "ghcr.io"),
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("Proxy-Authorization", "Basic x"),
            ("TE", "trailers"),
            ("Accept", "*/*"),
        ]);
        pass_request(&mut request);
        assert_eq!(text(&request), "Host: ghcr.io\r\nAccept: */*\r\n");
        let mut answer = fields(&[
            ("X-Cache", "HIT"),
            ("x-cache-date", "x"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authenticate", "Basic"),
            ("WWW-Authenticate", "Bearer realm=\"x\""),
            ("Set-Cookie", "a=b"),
        ]);
        pass_response(&mut answer);
        assert_eq!(text(&answer), "WWW-Authenticate: Bearer realm=\"x\"\r\nSet-Cookie: a=b\r\n");
    }

    #[test]
    fn entries_keep_what_describes_the_bytes() {
        let kept = [
            ("Content-Type", "application/vnd.oci.image.manifest.v1+json"),
            ("Docker-Content-Digest", "sha256:x"),
            ("Docker-Distribution-Api-Version", "registry/2.0"),
            ("ETag", "\"sha256:x\""),
            ("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("Cache-Control", "max-age=31536000"),
            ("Content-Disposition", "attachment"),
            ("OCI-Subject", "sha256:y"),
            ("Link", "<x>; rel=next"),
            ("Vary", "Accept-Encoding"),
        ];
        let dropped = [
            ("Date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("Age", "5"),
            ("Connection", "keep-alive, x-hop"),
            ("X-Hop", "1"),
            ("Set-Cookie", "a=b"),
            ("Content-Length", "5"),
            ("RateLimit-Remaining", "99;w=21600"),
            ("ratelimit-limit", "100;w=21600"),
            ("Docker-RateLimit-Source", "192.0.2.1"),
            ("X-RateLimit-Reset", "1"),
            ("X-Request-Id", "1"),
            ("x-amz-request-id", "1"),
            ("x-ms-request-id", "1"),
            ("CF-Ray", "1"),
            ("WWW-Authenticate", "Bearer"),
            ("Via", "1.1 x"),
            ("X-Cache", "Hit from cloudfront"),
            ("X-Cache-Hits", "1"),
            ("Traceparent", "00-1"),
            ("Alt-Svc", "h3=\":443\""),
        ];
        let mut answer = fields(&dropped);
        kept.iter().for_each(|(name, value)| answer.push(name, value).unwrap());
        assert_eq!(stored_fields(&answer), fields(&kept));
    }
}
