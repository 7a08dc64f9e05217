//! Answers from a stored entry: the contract's head, the exact bytes, no word with upstream.

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde_json::json;
use support::answer::Answer;
use support::body::{Body, sha256};
use support::client::Payload;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::Setup;
use support::registry::{Registry, blob_path, manifest_path};
use support::wait_until;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[test]
fn the_second_get_comes_from_disk_with_the_contracts_head() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(3_000_001);
    let path = registry.blob("lab/img", &body);

    let miss = proxy.get(&registry.main, &path);
    miss.assert_is(&body);
    miss.assert_not_hit();
    assert_eq!(miss.field("Content-Length"), Some("3000001"));
    assert_eq!(miss.field("Content-Type"), Some("application/octet-stream"));

    let hit = proxy.get(&registry.main, &path);
    hit.assert_is(&body);
    hit.assert_hit();
    let expected = [
        ("Content-Length", "3000001".to_owned()),
        ("Content-Type", "application/octet-stream".to_owned()),
        ("Accept-Ranges", "bytes".to_owned()),
        ("ETag", format!("\"{}\"", body.digest())),
        ("Docker-Content-Digest", body.digest()),
        ("Docker-Distribution-Api-Version", "registry/2.0".to_owned()),
    ];
    for (name, value) in expected {
        assert_eq!(hit.head.fields(name), [value], "{name} in {:?}", hit.head);
    }
    let stored = hit.field("X-Cache-Date").expect("X-Cache-Date");
    let stored = humantime::parse_rfc3339(stored).expect("RFC 3339");
    let since = SystemTime::now().duration_since(stored).unwrap_or_default();
    assert!(since < Duration::from_secs(120), "stored {since:?} ago");
    let age = hit.field("Age").expect("Age").parse::<u64>().expect("seconds");
    assert!(age < 120, "{age}");

    assert_eq!(registry.main.count("GET", &path), 1);
    assert_eq!(registry.fetches(&body), 1);
    let stats = proxy.stats();
    assert_eq!((stats["hits"].as_u64(), stats["misses"].as_u64()), (Some(1), Some(1)), "{stats}");
    assert_eq!(stats["stores"].as_u64(), Some(1), "{stats}");
    assert_eq!(stats["current_size"].as_u64(), Some(body.len()), "{stats}");
    assert_eq!(stats["hit_rate"].as_f64(), Some(0.5), "{stats}");
}

#[test]
fn plain_and_tls_clients_get_the_same_entry() {
    let setup = Setup::new();
    let proxy = setup.start();
    let plain = Origin::http(names::SECOND);
    let secure = Origin::https(names::REGISTRY);
    let body = fresh_body(700_000);
    let path = blob_path("lab/img", &body);
    secure.get(&path, Answer::ok(&body));

    proxy.get(&secure, &path).assert_is(&body);
    let hit = proxy.get(&plain, &path);
    hit.assert_is(&body);
    hit.assert_hit();
    assert_eq!(plain.seen().len(), 0, "the other registry was asked");
}

#[test]
fn a_digest_is_one_copy_over_repositories_and_registries() {
    let setup = Setup::new();
    let proxy = setup.start();
    let first = Origin::https(names::REGISTRY);
    let second = Origin::https(names::SECOND);
    let body = fresh_body(400_000);
    first.get(&blob_path("team/a", &body), Answer::ok(&body));

    proxy.get(&first, &blob_path("team/a", &body)).assert_is(&body);
    for (origin, repo) in [(&first, "team/b"), (&second, "team/a"), (&second, "deep/er/path")] {
        let hit = proxy.get(origin, &blob_path(repo, &body));
        hit.assert_is(&body);
        hit.assert_hit();
    }
    assert_eq!(first.seen().len() + second.seen().len(), 1);
    assert_eq!(proxy.stat("current_size"), body.len());
    assert_eq!(files(&setup), BTreeSet::from([body.sha256(), format!("{}.meta", body.sha256())]));
}

#[test]
fn the_stored_file_is_the_body_and_nothing_else() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    for len in [0, 1, 4096, 1_234_567] {
        let body = fresh_body(len);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        proxy.get(&origin, &path).assert_is(&body);
        let file = setup.blob(&body.sha256());
        let bytes = wait_until("the blob's file", || std::fs::read(&file).ok());
        assert_eq!(sha256(&bytes), body.sha256());
        let hit = proxy.get(&origin, &path);
        hit.assert_is(&body);
        hit.assert_hit();
    }
}

#[test]
fn head_is_answered_from_the_cache_and_keeps_the_connection() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(50_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    proxy.get(&origin, &path).assert_is(&body);

    let mut client = proxy.client(&origin);
    let head = client.request("HEAD", &path, &[], Payload::None);
    assert_eq!((head.status, head.len), (200, 0));
    head.assert_hit();
    assert_eq!(head.field("Content-Length"), Some("50000"));
    assert_eq!(head.field("Docker-Content-Digest"), Some(body.digest().as_str()));
    let again = client.get(&path);
    again.assert_is(&body);
    again.assert_hit();
    assert_eq!(origin.seen().len(), 1);
}

#[test]
fn a_head_stores_nothing() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(9_000);
    let path = manifest_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body).with("Docker-Content-Digest", body.digest()));
    let mut client = proxy.client(&origin);
    let head = client.request("HEAD", &path, &[], Payload::None);
    assert_eq!((head.status, head.field("Content-Length")), (200, Some("9000")));
    assert_eq!(head.field("Docker-Content-Digest"), Some(body.digest().as_str()));
    head.assert_not_hit();
    assert_eq!(proxy.stat("stores"), 0);
    client.get(&path).assert_is(&body);
    assert_eq!((origin.count("HEAD", &path), origin.count("GET", &path)), (1, 1));
}

#[test]
fn hits_outlive_the_registry() {
    let setup = Setup::new();
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(250_000);
    let path = registry.blob("lab/img", &body);
    proxy.get(&registry.main, &path).assert_is(&body);
    registry.main.stop();
    registry.cdn.stop();
    let hit = proxy.get(&registry.main, &path);
    hit.assert_is(&body);
    hit.assert_hit();
}

#[test]
fn manifests_keep_their_media_type() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = Body::bytes(format!(r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}"}}"#));
    let path = manifest_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body).with("Content-Type", MANIFEST));
    let mut client = proxy.client(&origin);
    client.get(&path).assert_is(&body);
    let hit = client.get(&path);
    hit.assert_is(&body);
    hit.assert_hit();
    assert_eq!(hit.head.fields("Content-Type"), [MANIFEST]);
}

#[test]
fn fields_of_the_first_answer_alone_are_not_replayed() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(10_000);
    let path = blob_path("lab/img", &body);
    let answer = Answer::ok(&body)
        .with("Set-Cookie", "session=first-clients-own")
        .with("Date", "Tue, 01 Jan 2019 00:00:00 GMT")
        .with("Keep-Alive", "timeout=5")
        .with("X-Hop", "1")
        .with("Connection", "keep-alive, X-Hop")
        .with("RateLimit-Remaining", "76;w=21600")
        .with("X-Cache", "Hit from cloudfront")
        .with("X-Cache-Hits", "3")
        .with("Content-Type", "application/octet-stream");
    origin.get(&path, answer);
    let mut client = proxy.client(&origin);
    let miss = client.get(&path);
    miss.assert_is(&body);
    assert_eq!(miss.field("X-Cache"), None, "{:?}", miss.head);
    for gone in ["Keep-Alive", "X-Hop"] {
        assert_eq!(miss.field(gone), None, "{:?}", miss.head);
    }
    let hit = client.get(&path);
    hit.assert_is(&body);
    assert_eq!(hit.head.fields("X-Cache"), ["HIT"]);
    for gone in ["Set-Cookie", "Keep-Alive", "X-Hop", "RateLimit-Remaining", "X-Cache-Hits"] {
        assert_eq!(hit.field(gone), None, "{:?}", hit.head);
    }
    assert!(!hit.field("Date").unwrap_or("").contains("2019"), "{:?}", hit.head);
}

#[test]
fn other_patterns_are_keyed_by_scheme_host_port_path_and_query() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let origins = [
        Origin::http(names::OTHER),
        Origin::http(names::OTHER),
        Origin::http(names::DEEP),
        Origin::https(names::REGISTRY),
    ];
    let ask = |index: usize, path: &str| proxy.get(&origins[index], path);
    for round in 0..2 {
        for (index, origin) in origins.iter().enumerate() {
            for query in ["", "?v=1", "?v=2", "?v=%31"] {
                let body = Body::bytes(format!("origin {index} query {query}"));
                if round == 0 {
                    origin.get("/files/a", Answer::ok(&body));
                }
                let response = ask(index, &format!("/files/a{query}"));
                assert_eq!(response.text(), format!("origin {index} query {query}"));
                assert_eq!(response.field("X-Cache").is_some(), round == 1);
            }
        }
    }
    for origin in &origins {
        assert_eq!(origin.seen().len(), 4);
    }
    let response = ask(0, "/other/a");
    assert_eq!(response.status, 404);
}

#[test]
fn a_hit_of_another_pattern_has_upstreams_own_etag_and_no_digest() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let origin = Origin::http(names::OTHER);
    let body = fresh_body(5_000);
    let answer = Answer::ok(&body).with("ETag", "\"abc\"").with("Content-Type", "text/x-demo");
    origin.get("/files/a", answer);
    let mut client = proxy.client(&origin);
    let url = origin.url("/files/a");
    client.get(&url).assert_is(&body);
    let hit = client.get(&url);
    hit.assert_is(&body);
    hit.assert_hit();
    assert_eq!(hit.head.fields("ETag"), ["\"abc\""]);
    assert_eq!(hit.head.fields("Content-Type"), ["text/x-demo"]);
    assert_eq!(hit.field("Docker-Content-Digest"), None);
    assert_eq!(hit.field("Docker-Distribution-Api-Version"), None);
    assert_eq!(hit.field("Accept-Ranges"), Some("bytes"));
}

#[test]
fn sha512_entries_work_alike() {
    let patterns = json!({ "cache": { "patterns": ["^/v2/.*/blobs/sha(256|512):.*"] } });
    let setup = Setup::new().with(patterns);
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let good = fresh_body(100_000);
    let digest = format!("sha512:{}", good.sha512());
    let path = |repo: &str| format!("/v2/{repo}/blobs/{digest}");
    origin.script("GET", &path("lab/a"), [Answer::ok(&good).corrupt_at(77_777), Answer::ok(&good)]);
    assert!(proxy.get(&origin, &path("lab/a")).whole.is_err(), "wrong bytes delivered whole");
    proxy.get(&origin, &path("lab/a")).assert_is(&good);
    let hit = proxy.get(&origin, &path("lab/b"));
    hit.assert_is(&good);
    hit.assert_hit();
    assert_eq!(hit.field("Docker-Content-Digest"), Some(digest.as_str()));
}

#[test]
fn many_hits_on_one_connection_pipelined_and_in_turn() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let bodies: Vec<Body> = (0..5).map(|i| fresh_body(100 + 40_000 * i)).collect();
    for body in &bodies {
        let path = blob_path("lab/img", body);
        origin.get(&path, Answer::ok(body));
        proxy.get(&origin, &path).assert_is(body);
    }
    let mut client = proxy.client(&origin);
    for body in bodies.iter().cycle().take(50) {
        let hit = client.get(&blob_path("lab/img", body));
        hit.assert_is(body);
        hit.assert_hit();
    }
    let requests: String = bodies
        .iter()
        .map(|body| {
            let path = blob_path("lab/img", body);
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", origin.authority())
        })
        .collect();
    client.wire.send(requests.as_bytes()).expect("pipelined requests");
    for body in &bodies {
        let head = client.head();
        client.rest("GET", head).assert_is(body);
    }
    assert_eq!(origin.seen().len(), bodies.len());
}

#[test]
fn connection_close_is_honoured_and_http_1_0_understood() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(20_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let url = origin.url(&path);
    for _ in 0..2 {
        let mut client = proxy.plain();
        client.get_with(&url, &[("Connection", "close")]).assert_is(&body);
        assert!(client.closes());
    }
    let mut client = proxy.plain();
    client.wire.send(format!("GET {url} HTTP/1.0\r\n\r\n").as_bytes()).expect("a 1.0 request");
    let head = client.head();
    let response = client.rest("GET", head);
    response.assert_is(&body);
    assert_eq!(response.field("Transfer-Encoding"), None);
    assert!(client.closes());
}

#[test]
fn the_log_tells_hits_misses_and_stores() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(54_321);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    proxy.get(&origin, &path).assert_is(&body);
    proxy.get(&origin, &path).assert_is(&body);
    for (event, with_size) in
        [("cache miss", false), ("cached response", true), ("cache hit", true)]
    {
        let line = proxy.wait_log(&[event]);
        assert!(line.contains(names::REGISTRY) && line.contains(&path), "{line}");
        assert!(!with_size || line.contains("54321"), "{line}");
        assert!(!line.contains('\u{1b}'), "colours in a pipe: {line:?}");
    }
    let output = proxy.stop();
    assert_eq!(output.matches("cache hit").count(), 1, "{output}");
    assert_eq!(output.matches("cache miss").count(), 1, "{output}");
    assert_eq!(output.matches("cached response").count(), 1, "{output}");
}

/// The names in the folder of SHA-256 entries.
fn files(setup: &Setup) -> BTreeSet<String> {
    let folder = std::fs::read_dir(setup.path("cache/blobs/sha256")).expect("the folder");
    folder.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn bytes_are_counted_however_they_are_sent() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let mut sent = 0;
    // In one write with the head, and from the file.
    for len in [1_000, 500_000] {
        let body = fresh_body(len);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        proxy.get(&origin, &path).assert_is(&body);
        proxy.get(&origin, &path).assert_hit();
        sent += len;
        proxy.wait_stat("bytes_from_cache", sent);
        proxy.wait_stat("bytes_to_clients", 2 * sent);
    }
}

#[test]
fn an_answer_with_as_many_fields_as_there_may_be_is_a_hit_the_second_time() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(5_000);
    let mut answer = Answer::ok(&body);
    // With its Content-Length one short of what a head may have.
    for number in 0..126 {
        answer = answer.with(&format!("X-Field-{number}"), "1");
    }
    origin.get("/files/many", answer);
    proxy.get(&origin, "/files/many").assert_is(&body);
    let hit = proxy.get(&origin, "/files/many");
    hit.assert_is(&body);
    hit.assert_hit();
    assert_eq!(hit.field("X-Field-125"), Some("1"));
    assert_eq!(origin.seen().len(), 1);
}
