//! What a client need not be sent: a body it has (`If-None-Match`) or does not want (HEAD); and what
//! upstream is asked for instead: never for a coded body of what a digest names.

mod support;

use serde_json::json;
use support::answer::{Answer, Ending, Gate};
use support::body::Body;
use support::client::{Client, Payload, Response};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::Setup;
use support::registry::{Registry, SIGNATURE, blob_path, manifest_path};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A proxy that stores files by their URL beside blobs and manifests.
fn with_files() -> Setup {
    let patterns = ["^/files/", "^/v2/.*/(blobs|manifests)/sha256:"];
    Setup::new().with(json!({ "cache": { "patterns": patterns } }))
}

/// One over TLS, one plain.
fn origins() -> [Origin; 2] {
    [Origin::https(names::REGISTRY), Origin::http(names::SECOND)]
}

fn head(client: &mut Client, origin: &Origin, path: &str, fields: &[(&str, &str)]) -> Response {
    client.request("HEAD", &origin.url(path), fields, Payload::None)
}

/// Fails unless this says that the client has it already.
#[track_caller]
fn assert_not_modified(response: &Response, etag: Option<&str>) {
    assert_eq!((response.status, response.len), (304, 0), "{:?}", response.head);
    assert_eq!(response.field("ETag"), etag, "{:?}", response.head);
    for name in ["Content-Length", "Transfer-Encoding", "Content-Range"] {
        assert_eq!(response.field(name), None, "{:?}", response.head);
    }
}

#[test]
fn if_none_match_on_an_entry_spares_the_body() {
    let setup = with_files();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(70_000);
        let (blob, own) = (blob_path("lab/img", &body), format!("\"{}\"", body.digest()));
        let (weak, listed) = (format!("W/{own}"), format!("\"a\", W/\"b,c\",{own}"));
        // (path, its stored ETag, the fields of the client, whether it has it)
        let rows = [
            (blob.as_str(), Some(own.as_str()), &[own.as_str()][..], true),
            (&blob, Some(&own), &[&weak], true),
            (&blob, Some(&own), &[&listed], true),
            (&blob, Some(&own), &["\"a\"", &own], true),
            (&blob, Some(&own), &["*"], true),
            (&blob, Some(&own), &["\"sha256:0000\""], false),
            (&blob, Some(&own), &["\"a\", \"b\""], false),
            (&blob, Some(&own), &[&body.digest()], false),
            (&blob, Some(&own), &["\"*\""], false),
            (&blob, Some(&own), &[""], false),
            ("/files/s", Some("\"one, two\""), &["\"one, two\""], true),
            ("/files/s", Some("\"one, two\""), &["\"one\""], false),
            ("/files/w", Some("W/\"one\""), &["\"one\""], true),
            ("/files/w", Some("W/\"one\""), &["W/\"one\""], true),
            ("/files/w", Some("W/\"one\""), &["\"two\", W/\"three\""], false),
            ("/files/none", None, &["\"one\""], false),
            ("/files/none", None, &["*"], true),
        ];
        let mut client = proxy.client(&origin);
        for (path, etag, given, has_it) in rows {
            let mut answer = Answer::ok(&body);
            if let Some(etag) = etag.filter(|_| path.starts_with("/files/")) {
                answer = answer.with("ETag", etag);
            }
            origin.get(path, answer);
            client.get(&origin.url(path)).assert_is(&body);
            let mut fields: Vec<_> = given.iter().map(|one| ("If-None-Match", *one)).collect();
            for method in ["GET", "HEAD"] {
                let response = client.request(method, &origin.url(path), &fields, Payload::None);
                response.assert_hit();
                match (has_it, method) {
                    (true, _) => assert_not_modified(&response, etag),
                    (false, "GET") => response.assert_is(&body),
                    (false, _) => assert_eq!(response.status, 200, "{given:?}"),
                }
            }
            // It comes before any range (RFC 9110, section 13.2.2).
            fields.push(("Range", "bytes=5-9"));
            let response = client.get_with(&origin.url(path), &fields);
            match has_it {
                true => assert_not_modified(&response, etag),
                false => response.assert_part(&body, (5, 10)),
            }
            assert_eq!(origin.count("GET", path) + origin.count("HEAD", path), 1, "{path}");
        }
    }
    assert_eq!(proxy.stat("errors"), 0);
}

#[test]
fn if_none_match_on_nothing_and_on_a_running_fill() {
    let setup = with_files();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(1_000_000);
        let digest = format!("\"{}\"", body.digest());
        let paths =
            [(blob_path("lab/img", &body), digest.as_str()), ("/files/a".to_owned(), "\"up\"")];
        for (path, etag) in paths {
            let gate = Gate::new();
            origin.get(&path, Answer::ok(&body).with("ETag", "\"up\"").gate_at(500_000, &gate));
            let has_it = [("If-None-Match", etag)];
            let mut client = proxy.client(&origin);
            for _ in 0..2 {
                let response = client.get_with(&origin.url(&path), &has_it);
                assert_not_modified(&response, Some(etag));
                response.assert_not_hit();
            }
            let fields = [("If-None-Match", "\"other\"")];
            let mut transfer = client.begin_with(&origin.url(&path), &fields);
            transfer.read_to(&mut client, 400_000);
            gate.open();
            transfer.finish(&mut client).assert_is(&body);
            let hit = client.get_with(&origin.url(&path), &has_it);
            hit.assert_hit();
            assert_not_modified(&hit, Some(etag));
            // What fills an entry must not be answered with 304.
            assert_eq!(origin.only(&path).field("If-None-Match"), None);
        }
    }
    assert_eq!((proxy.stat("errors"), proxy.stat("stores")), (0, 4));
}

/// The answer to a HEAD is the registry's redirect, unfollowed.
#[track_caller]
fn assert_redirected(registry: &Registry, body: &Body, response: &Response) {
    let location = registry.cdn.url(&format!("{}?{SIGNATURE}", Registry::cdn_path(body)));
    assert_eq!((response.status, response.len), (307, 0), "{:?}", response.head);
    assert_eq!(response.head.fields("Location"), [location]);
    response.assert_not_hit();
    assert_eq!(registry.cdn.count("HEAD", &Registry::cdn_path(body)), 0, "it was followed");
}

#[test]
fn a_heads_redirect_is_never_followed_and_head_begins_no_fill() {
    let setup = Setup::new();
    let proxy = setup.start();
    for registry in [Registry::https(), Registry::http()] {
        let body = fresh_body(2_000_000);
        let gate = Gate::new();
        let path = registry.gated_blob("lab/img", &body, 1_000_000, &gate);
        let mut client = proxy.client(&registry.main);
        // Of nothing yet.
        let response = head(&mut client, &registry.main, &path, &[]);
        assert_redirected(&registry, &body, &response);
        assert_eq!((registry.fetches(&body), proxy.stat("fills")), (0, 0));
        // Of what is being fetched: whether the bytes are right is not known yet.
        let mut filler = proxy.client(&registry.main);
        let mut filling = filler.begin(&registry.main.url(&path));
        filling.read_to(&mut filler, 900_000);
        let response = head(&mut client, &registry.main, &path, &[]);
        assert_redirected(&registry, &body, &response);
        gate.open();
        filling.finish(&mut filler).assert_is(&body);
        // Of what is there, without a word with upstream.
        let response = head(&mut client, &registry.main, &path, &[("Range", "bytes=0-9")]);
        response.assert_hit();
        assert_eq!((response.status, response.len), (200, 0));
        assert_eq!(response.head.fields("Content-Length"), ["2000000"]);
        assert_eq!(response.field("Content-Range"), None);
        assert_eq!(registry.main.count("HEAD", &path), 2);
        assert_eq!((registry.main.count("GET", &path), registry.fetches(&body)), (1, 1));
    }
    assert_eq!((proxy.stat("errors"), proxy.stat("stores")), (0, 2));
}

#[test]
fn a_head_that_upstream_answers_itself_says_what_upstream_says() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in origins() {
        let body = fresh_body(3_000);
        let path = manifest_path("lab/img", &body);
        let digest = body.digest();
        let answer = Answer::ok(&body).with("Docker-Content-Digest", digest.as_str());
        origin.get(&path, answer.with("Content-Type", MANIFEST));
        let mut client = proxy.client(&origin);
        let response = head(&mut client, &origin, &path, &[]);
        assert_eq!((response.status, response.field("Content-Length")), (200, Some("3000")));
        assert_eq!(response.field("Docker-Content-Digest"), Some(digest.as_str()));
        for status in [401, 404, 429, 503] {
            origin.get(&path, Answer::status(status, "no").with("Retry-After", "17"));
            let response = head(&mut client, &origin, &path, &[]);
            assert_eq!((response.status, response.len), (status, 0));
            assert_eq!(response.field("Retry-After"), Some("17"));
        }
    }
    assert_eq!((proxy.stat("errors"), proxy.stat("stores")), (0, 0));
}

/// What containerd sends, and what it must not get for what a digest names.
const CODINGS: [(&str, &str); 1] = [("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8, deflate;q=0.5")];

#[test]
fn candidates_are_asked_for_as_identity_at_every_hop_and_by_every_method() {
    let setup = with_files();
    let proxy = setup.start();
    for registry in [Registry::https(), Registry::http()] {
        let body = fresh_body(400_000);
        let blob = registry.blob("lab/img", &body);
        let manifest = manifest_path("lab/img", &body);
        let at_cdn = Registry::cdn_path(&body);
        registry.main.get(&manifest, Answer::ok(&body).with("Content-Type", MANIFEST));
        registry.main.get("/files/f", Answer::ok(&body).ranges().with("Cache-Control", "no-store"));
        registry.main.get("/other", Answer::ok(&body));
        let mut client = proxy.client(&registry.main);
        for path in [blob.as_str(), &manifest, "/files/f"] {
            head(&mut client, &registry.main, path, &CODINGS);
            // Not stored, and asked for once more by its range.
            let fields = [CODINGS[0], ("Range", "bytes=10-")];
            let response = client.get_with(&registry.main.url(path), &fields);
            assert_eq!(response.status, 206, "{path}");
        }
        client.get_with(&registry.main.url("/other"), &CODINGS).assert_is(&body);
        for origin in [&registry.main, &registry.cdn] {
            for seen in origin.seen() {
                let expected = if seen.path() == "/other" { CODINGS[0].1 } else { "identity" };
                assert_eq!(seen.head.fields("Accept-Encoding"), [expected], "{seen:?}");
            }
        }
        for path in [blob.as_str(), &manifest, "/files/f"] {
            assert_eq!(registry.main.count("HEAD", path), 1);
        }
        assert_eq!((registry.cdn.seen_at(&at_cdn).len(), registry.main.seen().len()), (1, 8));
    }
}

#[test]
fn a_coded_body_is_never_stored_under_a_digest() {
    let setup = Setup::new().with(json!({ "upstream": { "retries": 1 } }));
    let proxy = setup.start();
    for registry in [Registry::https(), Registry::http()] {
        let plain = fresh_body(6_000);
        let coded = Body::bytes("pretend this is gzip");
        // (what is named, what comes under gzip): a body decoded or not, no one can tell.
        for (named, sent) in [(&plain, &coded), (&coded, &coded)] {
            let answer =
                || Answer::ok(sent).with("Content-Encoding", "gzip").with("Content-Type", MANIFEST);
            let blob = registry.blob_as("lab/img", named, answer());
            let manifest = manifest_path("lab/img", named);
            registry.main.get(&manifest, answer());
            for path in [&blob, &manifest] {
                for _ in 0..2 {
                    let response = proxy.get_with(&registry.main, path, &CODINGS);
                    assert_eq!((response.status, &response.sha256), (200, &sent.sha256()));
                    assert_eq!(response.head.fields("Content-Encoding"), ["gzip"]);
                    response.assert_not_hit();
                }
                assert_eq!(registry.main.count("GET", path), 2);
            }
            assert!(!setup.blob(&named.sha256()).exists());
        }
        // Nor is it the rest of what came plain.
        let body = fresh_body(900_000);
        let path = blob_path("lab/img", &body);
        let cut = Answer::ok(&body).ends_at(300_000, Ending::Cut);
        let rest = Answer::ok(&body).ranges().with("Content-Encoding", "gzip");
        registry.main.script("GET", &path, [cut, rest]);
        let response = proxy.get(&registry.main, &path);
        assert!(response.whole.is_err() && response.len <= 300_000, "{}", response.len);
        assert!(!setup.blob(&body.sha256()).exists());
    }
    assert_eq!(proxy.stat("stores"), 0);
}
