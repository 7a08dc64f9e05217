//! Header rules, and which fields never cross the proxy.

use super::Policy;
use crate::config::{Config, ConfigError, HeaderField, HostPattern};
use crate::http::{Fields, Malformed};

/// What is set in and added to requests to the hosts of one pattern.
pub struct HeaderRule {
    pattern: HostPattern,
    set: Fields,
    append: Fields,
}

impl HeaderRule {
    /// The hosts it is for.
    pub fn pattern(&self) -> &HostPattern {
        &self.pattern
    }

    /// Sets and adds the rule's fields in a request to a host of the pattern.
    ///
    /// # Errors
    /// When the head grows beyond all measure; it is not to be sent then.
    pub fn apply(&self, request: &mut Fields) -> Result<(), Malformed> {
        for (name, value) in self.set.iter() {
            request.set(name, value)?;
        }
        for (name, value) in self.append.iter() {
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
                    let key = format!("headers.{}.{action}.{}", rule.pattern, field.name);
                    config.error(&key, &error.to_string(), "a header that can be sent")
                })?;
            }
            Ok::<_, ConfigError>(fields)
        };
        let (set, append) = (fields(&rule.set, "set")?, fields(&rule.append, "append")?);
        rules.push(HeaderRule { pattern: rule.pattern.clone(), set, append });
    }
    rules.sort_by_key(|rule| std::cmp::Reverse(rule.pattern.specificity()));
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
    answer.retain(|name, _| !is_one_of(name, &["x-cache", "x-cache-date"]));
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
    /// Applies the rule for the host, if there is one.
    ///
    /// # Errors
    /// As for [`HeaderRule::apply`].
    pub fn apply_headers(
        &self,
        host: &crate::http::Host,
        request: &mut Fields,
    ) -> Result<(), Malformed> {
        self.header_rule(host).map_or(Ok(()), |rule| rule.apply(request))
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
            policy.apply_headers(&Host::parse(host).unwrap(), &mut request).unwrap();
            assert_eq!(request.get_str("x-rule"), Some(expected), "{host}");
        }
        let none = super::super::policy("headers: {ghcr.io: }");
        assert!(none.header_rule(&Host::parse("quay.io").unwrap()).is_none());
        let rule = none.header_rule(&Host::parse("ghcr.io").unwrap()).unwrap();
        let mut request = fields(&[("A", "1")]);
        rule.apply(&mut request).unwrap();
        assert_eq!(text(&request), "A: 1\r\n");
    }

    #[test]
    fn set_replaces_and_append_adds() {
        let policy = policy(RULES);
        let mut request =
            fields(&[("authorization", "Basic x"), ("x-via", "a"), ("AUTHORIZATION", "Basic y")]);
        policy.apply_headers(&Host::parse("reg.eu.corp").unwrap(), &mut request).unwrap();
        assert_eq!(request.count("authorization"), 1);
        assert_eq!(request.get_str("authorization"), Some("Bearer s3cret"));
        assert_eq!(request.tokens("x-via").collect::<Vec<_>>(), ["a", "build"]);
    }

    #[test]
    fn credentials_and_injected_fields_stay_with_their_host() {
        let policy = policy(RULES);
        let rule = policy.header_rule(&Host::parse("reg.eu.corp").unwrap());
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
