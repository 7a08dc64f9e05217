//! A public registry as the field knows them: the registry itself, a CDN under another domain that
//! refuses credentials and serves only signed URLs, and a token host.

use super::answer::{Answer, Gate};
use super::body::Body;
use super::names;
use super::origin::{Origin, Seen};

/// A signed query with everything that careless code would re-encode.
pub const SIGNATURE: &str = "X-Amz-Credential=AKIA%2f20240101%2Feu&X-Amz-Signature=s3cr3t%2Bsig%3d&b=a%20b+c&empty=&x&~=%7E";

/// The path of a blob.
pub fn blob_path(repo: &str, body: &Body) -> String {
    format!("/v2/{repo}/blobs/{}", body.digest())
}

/// The path of a manifest by digest.
pub fn manifest_path(repo: &str, body: &Body) -> String {
    format!("/v2/{repo}/manifests/{}", body.digest())
}

/// Registry and CDN.
pub struct Registry {
    pub main: Origin,
    pub cdn: Origin,
}

impl Registry {
    /// Both over TLS.
    pub fn https() -> Registry {
        Registry { main: Origin::https(names::REGISTRY), cdn: Origin::https(names::CDN) }
    }

    /// Both over plain HTTP.
    pub fn http() -> Registry {
        Registry { main: Origin::http(names::REGISTRY), cdn: Origin::http(names::CDN) }
    }

    /// Where the CDN keeps a blob.
    pub fn cdn_path(body: &Body) -> String {
        format!("/data/{}", body.sha256())
    }

    /// Serves a blob by a 307 to a signed URL; the path to ask for.
    pub fn blob(&self, repo: &str, body: &Body) -> String {
        self.blob_as(repo, body, Answer::ok(body))
    }

    /// As [`Registry::blob`], with the CDN behaving like this.
    pub fn blob_as(&self, repo: &str, body: &Body, answer: Answer) -> String {
        let path = blob_path(repo, body);
        let at_cdn = Registry::cdn_path(body);
        let location = self.cdn.url(&format!("{at_cdn}?{SIGNATURE}"));
        self.main.get(&path, Answer::redirect(307, location));
        let answer = answer.with("Content-Type", "application/octet-stream");
        self.cdn.get(&at_cdn, answer.refuses_authorization());
        path
    }

    /// As [`Registry::blob`]; the CDN stops at the gate when `at` bytes are sent.
    pub fn gated_blob(&self, repo: &str, body: &Body, at: u64, gate: &Gate) -> String {
        self.blob_as(repo, body, Answer::ok(body).gate_at(at, gate))
    }

    /// How often the CDN was asked for this blob.
    pub fn fetches(&self, body: &Body) -> usize {
        self.cdn.seen_at(&Registry::cdn_path(body)).len()
    }

    /// The only request the CDN got for this blob.
    pub fn only_fetch(&self, body: &Body) -> Seen {
        self.cdn.only(&Registry::cdn_path(body))
    }
}
