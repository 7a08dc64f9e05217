//! A pull of a given image through the proxy, as far as it takes to see whether it is cached: its
//! manifest, and its configuration twice. Without credentials, as public images need none.

use serde_json::Value;

use super::ask::{Asked, Proxy, refusal};
use super::{Finding, fail, ok};
use crate::http::{Authority, Scheme};
use crate::key::{Digest, Image};
use crate::proxy::{Url, bearer_challenge, token_in};

pub const ACCEPT: &str = "Accept: application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json\r\n";

/// Pulls, and pulls again: the second answer has to come from the cache.
pub fn try_twice(proxy: &Proxy, image: &Image) -> Finding {
    let what = "pull";
    let registry = image.repository.authority();
    let shown = image.to_string();
    match pull(proxy, image) {
        Ok(true) => ok(what, format!("{shown} goes through the proxy, and comes from its cache")),
        Ok(false) => fail(
            what,
            format!("{shown} goes through the proxy, but its second pull is no hit"),
            "journalctl -u discobot-proxy -n 50   # on the proxy's host: each miss has its reason",
        ),
        Err(error) => fail(
            what,
            format!("{shown}: {error}"),
            format!("curl -v -x {proxy} https://{registry}/v2/"),
        ),
    }
}

fn pull(proxy: &Proxy, image: &Image) -> Result<bool, String> {
    let registry = image.repository.authority();
    let mut fields = ACCEPT.to_owned();
    let path = |kind: &str, name: &str| format!("/v2/{}/{kind}/{name}", image.repository.name());
    let mut get = |kind: &str, name: &str| -> Result<Asked, String> {
        let path = path(kind, name);
        let first = proxy.through(registry, &path, &fields)?;
        if first.status() == 401
            && let Some(token) = token(proxy, image, &first)?
        {
            fields = format!("{ACCEPT}Authorization: Bearer {token}\r\n");
            return succeeded(proxy.through(registry, &path, &fields)?);
        }
        succeeded(first)
    };
    let mut manifest = json(&get("manifests", &image.reference.to_string())?)?;
    if let Some(first) = digest(&manifest["manifests"][0])? {
        manifest = json(&get("manifests", first)?)?;
    }
    let config = digest(&manifest["config"])?.ok_or("its manifest has no config")?.to_owned();
    get("blobs", &config)?;
    Ok(get("blobs", &config)?.field("x-cache") == Some("HIT"))
}

/// What a descriptor names, if it is there: a digest and nothing else, for it goes into a request.
pub fn digest(descriptor: &Value) -> Result<Option<&str>, String> {
    let Some(text) = descriptor["digest"].as_str() else { return Ok(None) };
    match Digest::parse(text) {
        Some(_) => Ok(Some(text)),
        None => Err(format!("its manifest names no digest but {text:?}")),
    }
}

pub fn json(answer: &Asked) -> Result<Value, String> {
    serde_json::from_slice(&answer.body).map_err(|error| format!("its manifest: {error}"))
}

pub fn succeeded(answer: Asked) -> Result<Asked, String> {
    if answer.status() == 200 {
        return Ok(answer);
    }
    Err(refusal(&answer))
}

/// A token for nobody, as the challenge says; `None` where it is no Bearer challenge.
pub fn token(proxy: &Proxy, image: &Image, answer: &Asked) -> Result<Option<String>, String> {
    let challenge = answer.field("www-authenticate").and_then(bearer_challenge);
    let Some(challenge) = challenge else { return Ok(None) };
    let registry = Authority::parse(image.repository.authority());
    let Authority { host, port } = registry.map_err(|error| error.to_string())?;
    let (scheme, port) = (Scheme::Https, port.unwrap_or(443));
    let registry = Url { scheme, host, port, target: "/".into() };
    let url = challenge.url(&registry).ok_or("it wants tokens without TLS")?;
    let answer = succeeded(proxy.through(&url.authority(), &url.target, "")?)?;
    Ok(token_in(&answer.body))
}
