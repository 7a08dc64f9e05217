//! Bearer challenges of registries, and tokens for nobody in particular (Docker Registry v2
//! authentication; RFC 6750, section 3).

use serde::Deserialize;

use super::fetch::Recipe;
use super::url::Url;
use super::{Terms, Worker};
use crate::http::{Fields, Method, Version};
use crate::net::BodyReader;
use crate::policy::Injected;

/// Bytes of a token's answer at most.
const TOKEN_MAX: usize = 64 * 1024;

/// What a registry wants: a token of `realm` for `service` and `scope`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// Reads a `WWW-Authenticate` value; `None` where it is no Bearer challenge with a realm.
pub fn bearer_challenge(value: &str) -> Option<Challenge> {
    let (scheme, rest) = value.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut challenge = Challenge { realm: String::new(), service: None, scope: None };
    let mut rest = rest.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        match name.trim().to_ascii_lowercase().as_str() {
            "realm" => challenge.realm = value.to_owned(),
            "service" => challenge.service = Some(value.to_owned()),
            "scope" => challenge.scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after.trim_start_matches([',', ' ']);
    }
    (!challenge.realm.is_empty()).then_some(challenge)
}

impl Challenge {
    /// Where the token is asked for. A realm that is less protected than the registry is none.
    pub fn url(&self, registry: &Url) -> Option<Url> {
        let mut location = self.realm.clone();
        let parts = [("service", &self.service), ("scope", &self.scope)];
        for (name, value) in parts.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)))
        {
            location.push(if location.contains('?') { '&' } else { '?' });
            location.push_str(&format!("{name}={}", escaped(value)));
        }
        protected(registry, &location)
    }

    /// Where a token is had for an identity token. A realm that is less protected than the registry
    /// is none.
    pub fn realm_url(&self, registry: &Url) -> Option<Url> {
        protected(registry, &self.realm)
    }

    /// What is sent there for it (RFC 6749, section 6).
    pub fn refresh_form(&self, identity: &str) -> String {
        let mut form = format!(
            "grant_type=refresh_token&client_id=discobot-proxy&refresh_token={}",
            escaped(identity)
        );
        let parts = [("service", &self.service), ("scope", &self.scope)];
        for (name, value) in parts.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)))
        {
            form.push_str(&format!("&{name}={}", escaped(value)));
        }
        form
    }
}

fn protected(registry: &Url, location: &str) -> Option<Url> {
    let url = registry.resolve(location.as_bytes())?;
    (url.scheme == registry.scheme || url.origin().tls).then_some(url)
}

/// Asks for a token without credentials. `Some(None)`: there is none for nobody; `None`: unclear.
pub async fn anonymous_token(
    worker: &Worker,
    registry: &Url,
    challenge: &Challenge,
) -> Option<Option<String>> {
    let url = challenge.url(registry)?;
    let recipe = Recipe {
        method: Method::GET,
        received: Version::Http11,
        url,
        fields: Fields::new(),
        terms: Terms { listed: true, injected: Injected::Nothing },
        as_asked: false,
    };
    let fetched = recipe.fetch_first(worker).await.ok()?;
    if matches!(fetched.head.status, 401 | 403) {
        fetched.recycle(worker);
        return Some(None);
    }
    let mut body = BodyReader::new(fetched.framing);
    let mut bytes = Vec::new();
    while !body.is_done() && bytes.len() < TOKEN_MAX {
        body.read(&fetched.conn, &mut bytes, TOKEN_MAX).await.ok()?;
    }
    token_in(&bytes).map(Some)
}

/// The token that a token server's answer holds, if it is one that a field can hold.
pub fn token_in(body: &[u8]) -> Option<String> {
    let token: Token = serde_json::from_slice(body).ok()?;
    let token = token.token.or(token.access_token)?;
    token.bytes().all(|byte| byte.is_ascii_graphic()).then_some(token)
}

/// Percent-encodes what is not unreserved (RFC 3986, section 2.3).
fn escaped(value: &str) -> String {
    value
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let read = bearer_challenge(
            "Bearer realm=\"https://auth.test/token\",service=\"reg.test\",\
             scope=\"repository:a/b:pull,push\"",
        );
        let read = read.unwrap();
        assert_eq!(read.realm, "https://auth.test/token");
        assert_eq!(read.service.as_deref(), Some("reg.test"));
        assert_eq!(read.scope.as_deref(), Some("repository:a/b:pull,push"));
        let read = bearer_challenge("bearer service=x, Realm=\"/t\", error=\"e\"").unwrap();
        assert_eq!((read.realm.as_str(), read.service.as_deref()), ("/t", Some("x")));
    }

    #[test]
    fn what_is_no_bearer_challenge_is_none() {
        for text in ["", "Bearer", "Basic realm=\"x\"", "Bearer service=\"x\"", "Bearer realm=\"x"]
        {
            assert_eq!(bearer_challenge(text), None, "{text}");
        }
    }

    #[test]
    fn an_identity_token_goes_in_a_form() {
        let challenge = bearer_challenge(
            "Bearer realm=\"/t?a=b\",service=\"reg.test\",scope=\"repository:a/b:pull\"",
        );
        assert_eq!(
            challenge.unwrap().refresh_form("i+d&x"),
            "grant_type=refresh_token&client_id=discobot-proxy&refresh_token=i%2Bd%26x\
             &service=reg.test&scope=repository%3Aa%2Fb%3Apull"
        );
    }

    #[test]
    fn a_token_is_not_asked_for_in_the_clear() {
        let base = Url {
            scheme: crate::http::Scheme::Https,
            host: crate::http::Host::parse("reg.test").unwrap(),
            port: 443,
            target: "/v2/".into(),
        };
        let url = |realm: &str| {
            bearer_challenge(&format!("Bearer realm=\"{realm}\"")).unwrap().url(&base)
        };
        assert_eq!(url("https://auth.test/t?a=b").unwrap().target, "/t?a=b".into());
        assert_eq!(url("/t").unwrap().host, base.host);
        assert_eq!(url("http://auth.test/t"), None);
        assert_eq!(url("nonsense:x"), None);
        let realm = |realm: &str| {
            bearer_challenge(&format!("Bearer realm=\"{realm}\",service=x"))
                .unwrap()
                .realm_url(&base)
        };
        assert_eq!(realm("https://auth.test/t?a=b").unwrap().target, "/t?a=b".into());
        assert_eq!(realm("http://auth.test/t"), None);
    }
}
