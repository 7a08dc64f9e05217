//! Answers that go upstream: verification, what is stored and what is not, upstreams that fail.

mod support;

use serde_json::json;
use support::answer::{Answer, Ending};
use support::body::Body;
use support::client::{Payload, Response};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};

#[test]
fn a_wrong_digest_is_never_delivered_whole_nor_stored() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let plain = Origin::http(names::SECOND);
    let shapes: [fn(Answer) -> Answer; 3] = [|a| a, Answer::chunked, Answer::until_close];
    let mut wrong = 0;
    for len in [1, 3, 700, 70_000, 3_000_000] {
        for (number, shape) in shapes.iter().enumerate() {
            for origin in [&origin, &plain] {
                let body = fresh_body(len);
                let path = blob_path("lab/img", &body);
                let bad = shape(Answer::ok(&body).corrupt_at(len / 2));
                origin.script("GET", &path, [bad, Answer::ok(&body)]);
                let response = proxy.get(origin, &path);
                let whole = response.status == 200 && response.whole.is_ok();
                assert!(!whole, "{len} wrong bytes in shape {number} delivered whole");
                assert!(response.status != 200 || response.len < len, "{len} in shape {number}");
                wrong += 1;
                assert!(!setup.blob(&body.sha256()).exists());
                let again = proxy.get(origin, &path);
                again.assert_is(&body);
                again.assert_not_hit();
            }
        }
    }
    assert!(proxy.stat("errors") >= wrong, "{}", proxy.stats());
    let output = proxy.stop();
    assert!(output.contains("digest"), "{output}");
}

#[test]
fn a_body_too_short_or_too_long_for_its_digest_is_wrong_too() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let real = fresh_body(100_000);
    let bytes = real.to_vec();
    let longer = Body::bytes([bytes.as_slice(), b"x"].concat());
    let shorter = Body::bytes(&bytes[..99_999]);
    let path = blob_path("lab/img", &real);
    for wrong in [&longer, &shorter, &Body::bytes("")] {
        for answer in [Answer::ok(wrong), Answer::ok(wrong).chunked()] {
            origin.get(&path, answer);
            let response = proxy.get(&origin, &path);
            assert!(response.status != 200 || response.whole.is_err(), "{response:?}");
        }
    }
    assert_eq!(proxy.stat("current_size"), 0);
}

#[test]
fn a_cut_body_reaches_the_client_as_cut_and_is_not_stored() {
    // Each resumption waits longer than the one before.
    let setup = Setup::new().with(json!({ "upstream": { "retries": 1 } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    for how in [Ending::Cut, Ending::Reset] {
        for shape in [(|a| a) as fn(Answer) -> Answer, Answer::chunked] {
            let body = fresh_body(1_000_000);
            let path = blob_path("lab/img", &body);
            origin.get(&path, shape(Answer::ok(&body)).ends_at(600_000, how));
            let response = proxy.get(&origin, &path);
            assert!(response.status != 200 || response.whole.is_err(), "delivered as whole");
            assert!(!setup.blob(&body.sha256()).exists());
            origin.get(&path, Answer::ok(&body));
            proxy.get(&origin, &path).assert_is(&body);
        }
    }
}

#[test]
fn what_may_have_been_cut_unnoticed_is_not_stored() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let plain = Origin::http(names::SECOND);
    let body = fresh_body(500_000);
    plain.get("/files/cut", Answer::ok(&body).until_close().ends_at(200_000, Ending::Cut));
    assert_eq!(proxy.get(&plain, "/files/cut").len, 200_000);
    proxy.get(&plain, "/files/cut").assert_not_hit();
    proxy.wait_log(&["/files/cut", "no-length"]);
    // Under TLS the end is said.
    let secure = Origin::https(names::REGISTRY);
    secure.get("/files/whole", Answer::ok(&body).until_close());
    proxy.get(&secure, "/files/whole").assert_is(&body);
    proxy.get(&secure, "/files/whole").assert_hit();
    secure.get("/files/cut", Answer::ok(&body).until_close().ends_at(200_000, Ending::Cut));
    assert!(proxy.get(&secure, "/files/cut").whole.is_err());
    proxy.get(&secure, "/files/cut").assert_not_hit();
}

#[test]
fn chunked_and_close_delimited_bodies_are_stored_with_their_length() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let plain = Origin::http(names::SECOND);
    for shape in [Answer::chunked as fn(Answer) -> Answer, Answer::until_close] {
        for origin in [&origin, &plain] {
            for len in [0, 5, 1_500_000] {
                let body = fresh_body(len);
                let path = blob_path("lab/img", &body);
                // An empty body has one digest only.
                proxy.admin("DELETE", &format!("/api/cache/{}", body.digest()), &[]);
                origin.get(&path, shape(Answer::ok(&body)));
                proxy.get(origin, &path).assert_is(&body);
                let hit = proxy.get(origin, &path);
                hit.assert_is(&body);
                hit.assert_hit();
                assert_eq!(hit.field("Content-Length"), Some(len.to_string().as_str()));
            }
        }
    }
}

#[test]
fn other_statuses_pass_with_their_fields_and_bodies_unstored() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let mut client = proxy.client(&origin);
    for status in [201, 203, 206, 400, 403, 404, 410, 429, 500, 502, 503] {
        let body = fresh_body(500);
        let path = blob_path("lab/img", &body);
        let answer = Answer::status(status, &body)
            .with("Retry-After", "17")
            .with("Content-Type", "text/x-own")
            .with("X-Own", "kept");
        origin.get(&path, answer);
        for _ in 0..2 {
            let response = client.get(&path);
            assert_eq!((response.status, response.len), (status, 500), "{response:?}");
            assert_eq!(response.sha256, body.sha256());
            for (name, value) in
                [("Retry-After", "17"), ("Content-Type", "text/x-own"), ("X-Own", "kept")]
            {
                assert_eq!(response.head.fields(name), [value], "{status}");
            }
            response.assert_not_hit();
        }
        assert_eq!(origin.count("GET", &path), 2, "{status}");
    }
    let none = origin.url("/v2/lab/img/blobs/sha256:none");
    origin.get("/v2/lab/img/blobs/sha256:none", Answer::status(204, "").bodiless());
    assert_eq!(client.get(&none).status, 204);
    assert_eq!(proxy.stat("stores"), 0);
}

#[test]
fn what_must_not_be_stored_is_not() {
    let patterns = json!({ "cache": { "patterns": ["^/files/", "^/v2/.*/blobs/sha256:.*"] } });
    let setup = Setup::new().with(patterns);
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    // (fields of the answer, fields of the request, stored as a file, stored as a digest)
    type Row = (&'static str, &'static str, &'static str, &'static str, bool, bool);
    let rows: [Row; 12] = [
        ("Cache-Control", "no-store", "", "", false, false),
        ("Cache-Control", "max-age=60, No-Store", "", "", false, false),
        ("Cache-Control", "private, max-age=0", "", "", false, true),
        ("Cache-Control", "max-age=0", "", "", true, true),
        ("Vary", "Accept", "", "", false, true),
        ("Vary", "*", "", "", false, true),
        ("Vary", "Origin, accept-encoding", "", "", true, true),
        ("Set-Cookie", "a=b", "", "", false, true),
        ("X-Own", "1", "Authorization", "Bearer x", false, true),
        ("Cache-Control", "public", "Authorization", "Bearer x", true, true),
        ("Content-Encoding", "gzip", "", "", true, true),
        ("X-Own", "1", "Cache-Control", "no-cache", true, true),
    ];
    for (number, (name, value, ask, ask_value, as_file, as_digest)) in rows.iter().enumerate() {
        if *name == "Content-Encoding" {
            continue; // its own test
        }
        let body = fresh_body(5_000);
        let file = format!("/files/{number}");
        let digest = blob_path("lab/img", &body);
        for (path, stored) in [(&file, as_file), (&digest, as_digest)] {
            origin.get(path, Answer::ok(&body).with(name, *value));
            let fields: Vec<(&str, &str)> =
                [(*ask, *ask_value)].into_iter().filter(|(name, _)| !name.is_empty()).collect();
            let ask = || proxy.get_with(&origin, path, &fields);
            let first = ask();
            first.assert_is(&body);
            assert_eq!(first.field(name), Some(*value), "{path}");
            let second = ask();
            second.assert_is(&body);
            let hit = second.field("X-Cache") == Some("HIT");
            assert_eq!(hit, *stored, "{path}: {name}: {value}, asked with {fields:?}");
        }
    }
}

#[test]
fn digest_paths_are_asked_as_identity_and_an_encoded_body_is_not_stored_as_the_digest() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(5_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let asked = [("Accept-Encoding", "zstd;q=1.0, gzip;q=0.8")];
    proxy.get_with(&origin, &path, &asked).assert_is(&body);
    assert_eq!(origin.only(&path).head.fields("Accept-Encoding"), ["identity"]);

    let plain = fresh_body(6_000);
    let encoded = Body::bytes("pretend this is gzip");
    let path = blob_path("lab/img", &plain);
    origin.get(&path, Answer::ok(&encoded).with("Content-Encoding", "gzip"));
    proxy.get_with(&origin, &path, &asked);
    assert!(!setup.blob(&plain.sha256()).exists());
    origin.get(&path, Answer::ok(&plain));
    let again = proxy.get(&origin, &path);
    again.assert_is(&plain);
    again.assert_not_hit();
}

#[test]
fn a_write_to_the_same_url_removes_the_entry() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let origin = Origin::http(names::OTHER);
    let mut client = proxy.plain();
    for (number, method) in ["PUT", "POST", "PATCH", "DELETE"].into_iter().enumerate() {
        let path = format!("/files/{number}");
        let url = origin.url(&path);
        origin.get(&path, Answer::status(200, "old"));
        assert_eq!(client.get(&url).text(), "old");
        client.get(&url).assert_hit();
        origin.get(&path, Answer::status(200, "new"));

        origin.on(method, &path, Answer::status(500, ""));
        client.request(method, &url, &[], Payload::None);
        client.get(&url).assert_hit();

        origin.on(method, &path, Answer::status(204, "").bodiless());
        assert_eq!(client.request(method, &url, &[], Payload::None).status, 204);
        let fresh = client.get(&url);
        assert_eq!(fresh.text(), "new", "{method}");
        fresh.assert_not_hit();
    }
}

#[test]
fn idle_connections_are_reused_and_dead_ones_replaced() {
    let setup = Setup::new().with(json!({ "proxy": { "workers": 1 } }));
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let mut client = proxy.client(&origin);
        let mut ask = |answer: &dyn Fn(&Body) -> Answer| {
            let body = fresh_body(2_000);
            let path = blob_path("lab/img", &body);
            origin.get(&path, answer(&body));
            client.get(&origin.url(&path)).assert_is(&body);
        };
        for _ in 0..10 {
            ask(&|body| Answer::ok(body));
        }
        assert_eq!(origin.connections(), 1, "one connection serves requests in turn");
        for _ in 0..5 {
            ask(&|body| Answer::ok(body).drops_connection());
        }
        origin.drop_connections();
        for _ in 0..5 {
            ask(&|body| Answer::ok(body));
        }
        assert!(origin.connections() <= 8, "{}", origin.connections());
    }
}

#[test]
fn an_upstream_that_is_down_or_unknown_is_said_so() {
    let setup = Setup::new();
    let proxy = setup.start();
    let digest = fresh_body(1).digest();
    let mut client = proxy.plain();
    for host in [format!("{}:9009", names::DEAD), "no-such-name.invalid".to_owned()] {
        for path in [format!("/v2/lab/img/blobs/{digest}"), "/elsewhere".to_owned()] {
            let response = client.get(&format!("http://{host}{path}"));
            let message = response.assert_own_error(&[502, 503, 504]);
            let name = host.split(':').next().unwrap_or("");
            assert!(message.contains(name), "the host is not named: {message}");
        }
    }
    assert_eq!(proxy.stat("stores"), 0);
}

#[test]
fn a_silent_upstream_times_out_as_504() {
    let setup = Setup::new().with(json!({ "upstream": { "read_timeout": "1s", "retries": 0 } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(1_000);
    let gate = support::answer::Gate::new();
    for path in [blob_path("lab/img", &body), "/elsewhere".to_owned()] {
        origin.get(&path, Answer::ok(&body).gate_head(&gate));
        proxy.get(&origin, &path).assert_own_error(&[504]);
    }
    gate.open();
}

#[test]
fn an_upstream_with_the_wrong_certificate_is_refused() {
    let setup = Setup::new();
    let proxy = setup.start();
    let stranger = support::certs::Authority::new("nobody's CA");
    let trusted = support::certs::Authority::trusted();
    let identities = [stranger.server(&[names::REGISTRY]), trusted.server(&["wrong.test"])];
    for identity in identities {
        let origin = Origin::https_with(names::REGISTRY, identity);
        let body = fresh_body(1_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        let message = proxy.get(&origin, &path).assert_own_error(&[502, 503]);
        assert!(message.to_lowercase().contains("certificate"), "{message}");
        assert_eq!(origin.seen().len(), 0, "a request went to an unproven upstream");
    }
}

#[test]
fn ipv4_and_ipv6_are_both_tried() {
    let setup = Setup::new();
    let proxy = setup.start();
    for address in ["127.0.0.8:0", "[::1]:0"] {
        let origin = Origin::at(names::DUAL, address);
        let body = fresh_body(4_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        proxy.get(&origin, &path).assert_is(&body);
    }
    let literal = Origin::http("[::1]");
    literal.get("/six", Answer::status(200, "by literal"));
    assert_eq!(proxy.get(&literal, "/six").text(), "by literal");
}

#[test]
fn an_object_larger_than_the_cache_passes_through() {
    let setup = Setup::new().with(json!({ "cache": { "max_size": 1_000_000 } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let small = fresh_body(100_000);
    let large = fresh_body(3_000_000);
    for body in [&small, &large] {
        let path = blob_path("lab/img", body);
        origin.get(&path, Answer::ok(body));
        proxy.get(&origin, &path).assert_is(body);
        proxy.get(&origin, &path).assert_is(body);
    }
    assert_eq!(origin.count("GET", &blob_path("lab/img", &small)), 1, "evicted for nothing");
    assert_eq!(origin.count("GET", &blob_path("lab/img", &large)), 2);
    assert_eq!(proxy.stat("current_size"), small.len());

    let unknown = fresh_body(3_000_000);
    let path = blob_path("lab/img", &unknown);
    origin.get(&path, Answer::ok(&unknown).chunked());
    proxy.get(&origin, &path).assert_is(&unknown);
    assert!(proxy.stat("current_size") <= 1_000_000);
}

#[test]
fn a_disabled_cache_stores_nothing() {
    let setup = Setup::new().with(json!({ "cache": { "enabled": false } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(100_000);
    let path = registry.blob("lab/img", &body);
    for _ in 0..2 {
        let response = proxy.get(&registry.main, &path);
        assert!(matches!(response.status, 200 | 307), "{response:?}");
        response.assert_not_hit();
    }
    assert_eq!(registry.main.count("GET", &path), 2);
    assert_eq!(proxy.stat("stores"), 0);
}

#[test]
fn the_miss_log_names_its_reason() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body).with("Cache-Control", "no-store"));
    proxy.get(&origin, &path).assert_is(&body);
    let line = proxy.wait_log(&["cache miss", &path]);
    assert!(line.contains("reason"), "{line}");
    let output = proxy.stop();
    assert!(output.contains("no-store"), "{output}");
}

#[test]
fn malformed_requests_get_400_and_a_page_greets_the_curious() {
    let setup = Setup::new();
    let proxy = setup.start();
    let raw = |text: &str| raw(&proxy, text);
    let refused = [
        "GET http://registry.test/ HTTP/1.1\r\nHost: registry.test\r\nBad Name: x\r\n\r\n",
        "GET http://registry.test/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
        "GET http://user@registry.test/ HTTP/1.1\r\nHost: registry.test\r\n\r\n",
        "GET http://registry.test/ HTTP/1.1\r\n\r\n",
        "POST http://registry.test/ HTTP/1.1\r\nHost: registry.test\r\nContent-Length: 1\r\n\
         Content-Length: 2\r\n\r\nx",
        "POST http://registry.test/ HTTP/1.1\r\nHost: registry.test\r\nContent-Length: 1\r\n\
         Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "NONSENSE\r\n\r\n",
        "CONNECT registry.test HTTP/1.1\r\nHost: registry.test\r\n\r\n",
    ];
    for text in refused {
        raw(text).assert_own_error(&[400]);
    }
    let page = raw("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    assert_eq!(page.status, 200);
    assert!(page.text().contains("discobot-proxy"), "{}", page.text());
}

fn raw(proxy: &Proxy, text: &str) -> Response {
    let mut client = proxy.plain();
    client.wire.send(text.as_bytes()).expect("a raw request");
    let head = client.head();
    client.rest("GET", head)
}

#[test]
fn interim_answers_without_end_are_no_answer() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(1_000);
    let many = [103; 200];
    let candidate = blob_path("lab/img", &body);
    for path in [candidate.as_str(), "/other"] {
        origin.get(path, Answer::ok(&body).interim(&many));
        let mut client = proxy.client(&origin);
        let got = client.get(&origin.url(path));
        got.assert_own_error(&[502]);
    }
}
