//! The access log: one line for each request, what it says, and by which id a request is found in
//! it, at the client and at the registry.

mod support;

use std::collections::HashSet;
use std::fs;

use serde_json::{Value, json};
use support::answer::{Answer, Ending, Gate};
use support::certs::{Authority, Trust};
use support::client::{Client, Payload, Response};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::wait_until;

fn setup() -> Setup {
    Setup::new().with(json!({ "logging": { "format": "json" } }))
}

/// The lines of the access log so far.
fn lines(proxy: &Proxy) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str::<Value>(line).expect("JSON");
    proxy.log().iter().map(parse).filter(|line| line["target"] == "access").collect()
}

fn id(response: &Response) -> String {
    response.field("X-Request-Id").expect("an X-Request-Id").to_owned()
}

/// The only line of this request, once it is there.
fn line(proxy: &Proxy, id: &str) -> Value {
    let of = |line: &Value| line["request_id"] == id;
    let found = wait_until("the line of a request", || lines(proxy).into_iter().find(of));
    assert_eq!(lines(proxy).into_iter().filter(of).count(), 1, "{id}");
    found
}

/// Holds a line to these fields, and to those that every line has.
fn assert_line(line: &Value, expected: Value) {
    for (name, value) in expected.as_object().expect("fields") {
        assert_eq!(&line[name], value, "{name} in {line}");
    }
    let number = |name: &str| line[name].as_u64().unwrap_or_else(|| panic!("{name} in {line}"));
    assert!(number("duration_us") >= number("first_byte_us"), "{line}");
    assert_eq!(line["client"], "127.0.0.1");
    assert_eq!(line["level"], "INFO");
}

#[test]
fn every_request_has_one_line_that_says_what_became_of_it_and_why() {
    let setup = setup();
    let proxy = setup.start();
    let registry = Registry::https();
    let origin = &registry.main;
    let body = fresh_body(70_000);
    let path = registry.blob("lab/img", &body);
    let (host, size) = (names::REGISTRY, body.len());
    let mut client = proxy.client(origin);
    let url = origin.url(&format!("{path}?sig=marked"));
    origin.get("/v2/lab/img/manifests/v1", Answer::status(200, "tag"));
    origin.get("/private-token/x", Answer::status(200, "12345"));
    let rows = [
        (
            "GET",
            url.as_str(),
            &[][..],
            json!({ "outcome": "miss", "reason": "first-time",
            "message": "cache miss", "status": 200, "bytes": size, "path": path, "host": host,
            "whole": true, "size": size, "upstream": registry.cdn.host() }),
        ),
        (
            "GET",
            &url,
            &[],
            json!({ "outcome": "hit", "reason": "stored", "message": "cache hit",
            "status": 200, "bytes": size, "path": path, "upstream": "-", "size": size }),
        ),
        (
            "GET",
            &url,
            &[("Range", "bytes=5-9")],
            json!({ "outcome": "hit", "status": 206,
            "bytes": 5, "size": size }),
        ),
        ("HEAD", &url, &[], json!({ "outcome": "hit", "status": 200, "bytes": 0 })),
        (
            "GET",
            "/v2/lab/img/manifests/v1",
            &[],
            json!({ "outcome": "passed", "status": 200,
            "reason": "pattern", "bytes": 3, "upstream": host,
            "path": "/v2/lab/img/manifests/v1" }),
        ),
        ("GET", "/private-token/x", &[], json!({ "outcome": "passed", "path": "-", "bytes": 5 })),
        ("DELETE", "/v2/lab/img/manifests/v1", &[], json!({ "reason": "method", "status": 404 })),
        ("TRACE", "/v2/", &[], json!({ "outcome": "own", "reason": "for-us", "status": 405 })),
    ];
    let mut ids = HashSet::new();
    for (method, url, fields, expected) in rows {
        let response = client.request(method, url, fields, Payload::None);
        let id = id(&response);
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        assert_line(&line(&proxy, &id), expected);
        assert!(ids.insert(id));
    }
    let all = lines(&proxy);
    let connects = all.iter().filter(|line| line["outcome"] == "intercepted").count();
    assert_eq!((connects, all.len()), (1, ids.len() + 1), "{all:#?}");
    assert!(!proxy.output().contains("marked"), "a query in the log");
}

#[test]
fn tunnels_refusals_and_what_is_malformed_have_a_line_too() {
    let setup = setup().with(json!({
        "allowlist": { "enabled": true, "domains": [names::REGISTRY, names::OTHER] },
    }));
    let proxy = setup.start();
    let refused = json!({ "outcome": "refused", "reason": "denied", "status": 403,
        "host": names::SECOND, "path": "-" });
    let tunnel = Client::tunnel(proxy.address(), &format!("{}:443", names::SECOND));
    let response = tunnel.expect_err("not allowed");
    assert_eq!(response.json()["errors"][0]["detail"]["request_id"], id(&response));
    assert_line(&line(&proxy, &id(&response)), refused.clone());
    let response = proxy.plain().get(&format!("http://{}/x", names::SECOND));
    assert_eq!(response.json()["errors"][0]["detail"]["request_id"], id(&response));
    assert_line(&line(&proxy, &id(&response)), refused);
    for bytes in ["GET http://a b/ HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nbad\r\n\r\n"] {
        let response = proxy.plain().exchange(bytes.as_bytes()).expect("an answer");
        assert_eq!(response.json()["errors"][0]["detail"]["request_id"], id(&response));
        let expected = json!({ "outcome": "refused", "reason": "malformed", "status": 400 });
        assert_line(&line(&proxy, &id(&response)), expected);
    }
    let origin = Origin::https(names::OTHER);
    origin.get("/x", Answer::status(200, "through"));
    let trust = Trust::pem(Authority::trusted().pem());
    let mut client = Client::secure(proxy.address(), &origin.authority(), &trust);
    assert_eq!(client.get("/x").text(), "through");
    drop(client);
    let of = |line: &Value| line["outcome"] == "tunnelled";
    let line = wait_until("the tunnel's line", || lines(&proxy).into_iter().find(of));
    assert_line(
        &line,
        json!({ "reason": "not-intercepted", "host": names::OTHER,
        "upstream": names::OTHER, "status": 200 }),
    );
    assert!(line["bytes"].as_u64() > Some(500), "a handshake and an answer: {line}");
}

#[test]
fn who_joins_a_fill_and_who_is_cut_off_is_told_apart() {
    let setup = setup().with(json!({ "upstream": { "retries": 0 } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(3_000_000);
    let gate = Gate::new();
    let path = registry.gated_blob("lab/img", &body, 2_000_000, &gate);
    let url = registry.main.url(&path);
    let mut readers = Vec::new();
    for _ in 0..2 {
        let mut client = proxy.client(&registry.main);
        let mut transfer = client.begin(&url);
        transfer.read_to(&mut client, 1_000_000);
        readers.push((client, transfer));
    }
    gate.open();
    let outcomes = ["miss", "joined"].map(|outcome| {
        let (mut client, transfer) = readers.remove(0);
        let id = id(&transfer.finish(&mut client));
        assert_line(
            &line(&proxy, &id),
            json!({ "outcome": outcome, "message": "cache miss",
            "bytes": body.len(), "whole": true }),
        );
        line(&proxy, &id)["reason"].clone()
    });
    assert_eq!(outcomes, ["first-time", "collapsed"]);

    let body = fresh_body(3_000_000);
    let path = blob_path("lab/img", &body);
    registry.main.get(&path, Answer::ok(&body).ends_at(1_000_000, Ending::Cut));
    let response = proxy.get(&registry.main, &path);
    assert!(response.whole.is_err());
    let line = line(&proxy, &id(&response));
    assert_line(&line, json!({ "outcome": "miss", "whole": false, "status": 200 }));
    // The reset may take with it what the client has not read yet.
    assert!(line["bytes"].as_u64() >= Some(response.len), "{line}");
}

#[test]
fn a_request_has_one_id_at_the_client_at_the_registry_and_in_the_log() {
    let setup = setup();
    let proxy = setup.start();
    let (origin, cdn) = (Origin::https(names::REGISTRY), Origin::https(names::SECOND));
    let body = fresh_body(5_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::redirect(307, cdn.url("/x")).with("X-Request-Id", "registrys"));
    cdn.get("/x", Answer::ok(&body).with("X-Request-Id", "cdns"));
    origin.get("/v2/", Answer::status(401, "{}").with("X-Request-Id", "registrys"));
    let mut client = proxy.client(&origin);
    let own = "00-0af7651916cd43dd8448eb211c80319c-01";
    for (route, sees) in [(path.as_str(), &cdn), ("/v2/", &origin), (&path, &cdn)] {
        let response = client.get_with(route, &[("X-Request-Id", own)]);
        assert_eq!(response.head.fields("X-Request-Id"), [own], "{route}");
        let seen = sees.seen();
        assert_eq!(seen.last().expect("a request").head.fields("X-Request-Id"), [own], "{route}");
    }
    let longer = "a".repeat(65);
    for bad in ["a b", "a;b", "eyJh.eyJz.c2ln", &longer] {
        let response = client.get_with("/v2/", &[("X-Request-Id", bad), ("X-Request-Id", "two")]);
        let (ours, seen) = (id(&response), origin.seen().pop().expect("a request"));
        assert_eq!(ours.len(), 32, "{ours}");
        assert_eq!(seen.head.fields("X-Request-Id"), [ours.as_str()], "{bad}");
        line(&proxy, &ours);
    }
}

#[test]
fn with_errors_only_what_went_wrong_has_a_line() {
    let setup = setup().with(json!({ "logging": { "access": "errors" } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(5_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    origin.get("/v2/", Answer::status(401, "{}"));
    origin.get("/v2/broken", Answer::status(500, "{}"));
    let mut client = proxy.client(&origin);
    for route in [path.as_str(), &path, "/v2/", "/v2/absent"] {
        client.get(route);
    }
    let failed = id(&client.get("/v2/broken"));
    line(&proxy, &failed);
    origin.stop();
    let failed = id(&proxy.get(&origin, &blob_path("lab/img", &fresh_body(9))));
    assert_line(&line(&proxy, &failed), json!({ "reason": "upstream-failed", "status": 503 }));
    assert_eq!(lines(&proxy).len(), 2, "{:#?}", lines(&proxy));
}

#[test]
fn with_off_no_request_has_a_line_and_the_rest_of_the_log_stays() {
    let setup = setup().with(json!({ "logging": { "access": "off" } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(5_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    for _ in 0..2 {
        assert_eq!(id(&proxy.get(&origin, &path)).len(), 32);
    }
    proxy.wait_log(&["cached response", &path]);
    let output = proxy.stop();
    assert!(!output.contains("\"access\"") && !output.contains("cache hit"), "{output}");
}

#[test]
fn a_log_file_that_is_full_is_put_aside_and_few_are_kept() {
    let setup = Setup::new();
    let file = setup.path("proxy.log");
    let setup = setup.with(json!({
        "logging": { "file": file.to_str(), "max_size": "32KiB", "keep": 2 }
    }));
    let proxy = setup.launch();
    let old = |n: u32| setup.path(&format!("proxy.log.{n}"));
    let address = wait_until("the start", || {
        let line = proxy.log().into_iter().find(|line| line.contains("proxy="))?;
        line.split("proxy=").nth(1)?.split(' ').next()?.parse().ok()
    });
    for _ in 0..600 {
        Client::direct(address, "x").get("/");
    }
    // The last line is there: no file changes any more.
    Client::direct(address, "x").get_with("/", &[("X-Request-Id", "the-last-one")]);
    wait_until("the last line", || {
        fs::read_to_string(&file).unwrap_or_default().contains("the-last-one").then_some(())
    });
    for path in [file.clone(), old(1), old(2)] {
        let text = fs::read_to_string(&path).expect("a log file");
        assert!(text.len() <= 32 * 1024 && text.ends_with('\n'), "{} bytes", text.len());
        assert!(text.lines().all(|line| line.contains("INFO")), "a line was cut: {text}");
    }
    assert!(!old(3).exists());
}

#[test]
fn in_the_journal_lines_have_a_priority_and_no_time() {
    let setup = Setup::new();
    let stream = "export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/$$/fd/1)";
    let proxy = setup.start_after(stream);
    proxy.plain().get("http://dead.test/v2/x");
    let line = proxy.wait_log(&["passed", "status=503"]);
    assert!(line.starts_with("<6>access: passed client=127.0.0.1 host=dead.test "), "{line}");
    let line = proxy.wait_log(&["upstream failed"]);
    assert!(line.starts_with("<4>upstream failed host=dead.test"), "{line}");

    let elsewhere = Setup::new();
    let other = elsewhere.start_after("export JOURNAL_STREAM=1:1");
    other.plain().get("http://dead.test/v2/x");
    let line = other.wait_log(&["passed", "status=503"]);
    assert!(line.contains(" INFO access: passed client="), "{line}");
}
