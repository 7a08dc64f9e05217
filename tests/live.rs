//! The configuration changed while the proxy runs: read again, patched, followed; all of it or
//! nothing, and nothing of what is under way.

mod support;

#[path = "live/follow.rs"]
mod follow;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::thread;

use serde_json::{Value, json};
use support::answer::{Answer, Gate};
use support::body::Body;
use support::certs::{Authority, Trust};
use support::client::{Client, Payload, Response};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;
use support::wait_until;

const FILES: &str = "^/files/";

/// A request to the admin port with this body.
fn ask(proxy: &Proxy, method: &str, path: &str, fields: &[(&str, &str)], body: &str) -> Response {
    let address = proxy.admin_address();
    let mut client = Client::direct(address, &address.to_string());
    client.request(method, path, fields, Payload::Length(&Body::bytes(body)))
}

fn patch(proxy: &Proxy, document: &str) -> Response {
    ask(proxy, "PATCH", "/api/config", &[], document)
}

/// A patch that must be taken; what its answer says.
#[track_caller]
fn patched(proxy: &Proxy, document: Value) -> Value {
    let response = patch(proxy, &document.to_string());
    assert_eq!(response.status, 200, "{document}: {}", response.text());
    response.json()
}

#[track_caller]
fn reloaded(proxy: &Proxy) -> Value {
    let response = ask(proxy, "POST", "/api/config/reload", &[], "");
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

/// What is in force.
fn config(proxy: &Proxy) -> Value {
    let response = proxy.admin("GET", "/api/config", &[]);
    assert_eq!(response.status, 200, "{response:?}");
    response.json()
}

/// An origin whose `/files/NAME` say what the requests for them had under `X-Via`.
fn origin() -> Origin {
    let origin = Origin::http(names::REGISTRY);
    for name in ["a", "b", "c"] {
        origin.get(&format!("/files/{name}"), Answer::status(200, name));
    }
    origin
}

/// What the last request for this path brought along under `X-Via`.
fn via(origin: &Origin, path: &str) -> Option<String> {
    origin.seen_at(path).last().and_then(|seen| seen.field("X-Via").map(str::to_owned))
}

fn rule(value: &str) -> Value {
    json!({ names::REGISTRY: { "set": { "X-Via": value } } })
}

#[test]
fn a_patch_is_in_force_for_the_next_request_and_until_the_file_is_read() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = origin();
    let mut client = proxy.client(&origin);
    let url = origin.url("/files/a");
    let mut get = || client.get(&url);
    get().assert_not_hit();
    get().assert_not_hit();
    let said = patched(&proxy, json!({ "cache": { "patterns": [FILES] }, "headers": rule("1") }));
    assert_eq!(said["changed"], json!(["cache.patterns", "headers"]));
    assert!(said["until"].as_str().is_some_and(|until| until.contains("reload")), "{said}");
    get().assert_not_hit();
    get().assert_hit();
    assert_eq!(via(&origin, "/files/a").as_deref(), Some("1"));
    // As YAML; what it does not name stays.
    assert_eq!(patch(&proxy, "cache:\n  enabled: false # for now\n").status, 200);
    get().assert_not_hit();
    patched(&proxy, json!({ "cache": { "enabled": null } }));
    get().assert_hit();
    let said = reloaded(&proxy);
    assert_eq!(said["changed"], json!(["cache.patterns", "headers"]));
    get().assert_not_hit();
    assert_eq!(via(&origin, "/files/a"), None);
}

#[test]
fn whom_and_where_is_judged_anew_on_open_connections_too() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = origin();
    let mut client = proxy.client(&origin);
    let mut status = |expected: u16, what: &str| {
        let url = origin.url("/files/a");
        // A refusal may end the connection.
        let response = match client.try_get(&url) {
            Ok(response) => response,
            Err(_) => {
                client = proxy.client(&origin);
                client.get(&url)
            }
        };
        assert_eq!(response.status, expected, "{what}: {}", response.text());
        if response.status == 403 {
            client = proxy.client(&origin);
            assert_eq!(client.get(&url).status, 403, "{what}, on a new connection");
            client = proxy.client(&origin);
        }
    };
    status(200, "as it began");
    for (closed, open) in [
        (
            json!({ "allowlist": { "enabled": true, "domains": ["ghcr.io"] } }),
            json!({ "allowlist": { "domains": [names::REGISTRY] } }),
        ),
        (
            json!({ "proxy": { "deny_destinations": ["127.0.0.0/8"] } }),
            json!({ "proxy": { "deny_destinations": [] } }),
        ),
        (
            json!({ "proxy": { "connect_ports": [443] } }),
            json!({ "proxy": { "connect_ports": null } }),
        ),
    ] {
        patched(&proxy, closed.clone());
        status(403, &closed.to_string());
        patched(&proxy, open.clone());
        status(200, &open.to_string());
    }
}

#[test]
fn a_client_that_may_not_come_any_more_is_refused_at_its_next_request() {
    let setup = Setup::new();
    let proxy = setup.start();
    let (plain, secure) = (origin(), Origin::https(names::REGISTRY));
    secure.get("/v2/", Answer::status(200, "{}"));
    let mut clients = [proxy.client(&plain), proxy.client(&secure)];
    let urls = [plain.url("/files/a"), secure.url("/v2/")];
    for (client, url) in clients.iter_mut().zip(&urls) {
        assert_eq!(client.get(url).status, 200);
    }
    patched(&proxy, json!({ "proxy": { "allow_clients": ["192.0.2.0/24"] } }));
    for (client, url) in clients.iter_mut().zip(&urls) {
        let refusal = client.get(url);
        assert!(refusal.assert_own_error(&[403]).contains("proxy.allow_clients"));
        assert!(client.closes());
    }
    assert_eq!(proxy.plain().get(&urls[0]).status, 403);
    assert_eq!((plain.seen().len(), secure.seen().len()), (1, 1));
    patched(&proxy, json!({ "proxy": { "allow_clients": null } }));
    assert_eq!(proxy.plain().get(&urls[0]).status, 200);
}

#[test]
fn limits_and_times_are_those_in_force() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": [FILES] } }));
    let proxy = setup.start();
    let origin = origin();
    let url = origin.url("/files/a");

    let long = "x".repeat(4000);
    let long = |client: &mut Client| client.get_with(&url, &[("X-Long", &long)]).status;
    let mut client = proxy.client(&origin);
    assert_eq!(long(&mut client), 200);
    patched(&proxy, json!({ "limits": { "header_size": "2KiB" } }));
    assert_eq!(long(&mut client), 431);
    patched(&proxy, json!({ "limits": { "header_size": null } }));

    let mut client = proxy.client(&origin);
    assert_eq!(client.get(&url).status, 200);
    patched(&proxy, json!({ "limits": { "max_requests_per_connection": 2 } }));
    assert_eq!(client.get(&url).field("Connection"), Some("close"));
    assert!(client.closes());
    patched(&proxy, json!({ "limits": { "max_requests_per_connection": null } }));

    let gate = Gate::new();
    origin.get("/slow", Answer::status(200, "late").gate_head(&gate));
    patched(&proxy, json!({ "upstream": { "read_timeout": "200ms", "retries": 0 } }));
    assert_eq!(proxy.get(&origin, "/slow").status, 504);
    gate.open();
    patched(&proxy, json!({ "upstream": null }));
    assert_eq!(proxy.get(&origin, "/slow").text(), "late");

    let mut one = proxy.client(&origin);
    assert_eq!(one.get(&url).status, 200);
    patched(&proxy, json!({ "limits": { "max_connections_per_client": 1 } }));
    assert!(proxy.client(&origin).closes(), "a second connection");
    assert_eq!(one.get(&url).status, 200, "the first one");
}

#[test]
fn a_smaller_cache_evicts_at_once() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let bodies: Vec<Body> = (0..3).map(|_| fresh_body(100_000)).collect();
    for body in &bodies {
        origin.get(&blob_path("lab/img", body), Answer::ok(body));
        proxy.get(&origin, &blob_path("lab/img", body)).assert_is(body);
    }
    proxy.wait_stat("current_size", 300_000);
    patched(&proxy, json!({ "cache": { "max_size": 250_000 } }));
    assert_eq!((proxy.stat("current_size"), proxy.stat("evictions")), (200_000, 1));
    patched(&proxy, json!({ "cache": { "max_size": 50_000 } }));
    assert_eq!(proxy.stat("current_size"), 0);
    for _ in 0..2 {
        proxy.get(&origin, &blob_path("lab/img", &bodies[2])).assert_not_hit();
    }
    let metrics = proxy.admin("GET", "/metrics", &[]).text();
    assert!(
        metrics.lines().any(|line| line.ends_with("cache_max_bytes 50000.0")
            || line.ends_with("cache_max_bytes 50000")),
        "{metrics}"
    );
}

#[test]
fn hosts_are_opened_and_left_alone_as_the_configuration_says() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/v2/", Answer::status(200, "{}"));
    let mut opened = proxy.client(&origin);
    assert_ne!(opened.peer_certificate(), origin.certificate());
    patched(&proxy, json!({ "tls": { "intercept": ["ghcr.io"] } }));
    let trust = Trust::pem(Authority::trusted().pem());
    let mut relayed = Client::secure(proxy.address(), &origin.authority(), &trust);
    assert_eq!(relayed.peer_certificate(), origin.certificate());
    // What is open stays what it is.
    patched(&proxy, json!({ "tls": { "intercept": ["*"] } }));
    for client in [&mut opened, &mut relayed] {
        assert_eq!(client.get("/v2/").text(), "{}");
    }
    assert_ne!(proxy.client(&origin).peer_certificate(), origin.certificate());
}

#[test]
fn the_log_has_the_level_in_force() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = origin();
    let ask = |name: &str| assert_eq!(proxy.get(&origin, &format!("/none/{name}")).status, 404);
    ask("first");
    proxy.wait_log(&["access:", "host=registry.test"]);
    patched(&proxy, json!({ "logging": { "level": "error" } }));
    let lines = proxy.log().len();
    ask("second");
    patched(&proxy, json!({ "logging": { "level": "trace" } }));
    ask("third");
    proxy.wait_log(&["TRACE", "session ended"]);
    patched(&proxy, json!({ "logging": { "level": null, "access": "off" } }));
    ask("fourth");
    patched(&proxy, json!({ "logging": { "access": null } }));
    ask("fifth");
    let access = |line: &String| line.contains("access:") && line.contains("status=404");
    let said = wait_until("the fifth's line", || {
        let said: Vec<String> = proxy.log().split_off(lines).into_iter().filter(access).collect();
        (said.len() >= 2).then_some(said)
    });
    assert_eq!(said.len(), 2, "the third and the fifth: {said:#?}");
}

/// Documents that must change nothing, and what the answer names.
const BAD: &[(&str, &str)] = &[
    ("", "body:1"),
    ("null", "body:1"),
    ("[]", "body:1"),
    ("{\"headers\": ", "body"),
    ("headers: null\nlimits:\n  max_fills: many\n", "body:3: limits.max_fills"),
    ("{\"headers\": null, \"cache\": {\"patterns\": [\"^/x\", \"(\"]}}", "cache.patterns[1]"),
    ("{\"headers\": null, \"cache\": {\"max_size\": 0}}", "cache.max_size"),
    ("headers: null\nlogs: {}\n", "body:2: logs"),
    ("headers: null\nheaders: null\n", "body:2: headers"),
    ("{\"headers\": null, \"limits\": {\"max_redirect\": 1}}", "limits.max_redirect"),
    ("{\"headers\": null, \"proxy\": {\"allow_clients\": [\"10.0.0.0/33\"]}}", "allow_clients"),
    ("{\"headers\": {\"registry.test\": {\"set\": {\"Host\": \"x\"}}}}", "headers.registry.test"),
    ("{\"headers\": {\"registry.test\": {\"set\": {\"A\": \"***\"}}}}", "headers.registry.test"),
    ("{\"headers\": null, \"proxy\": {\"port\": 1}}", "proxy.port: not while the proxy runs"),
    ("{\"headers\": null, \"cache\": {\"dir\": null}}", "cache.dir: not while the proxy runs"),
    (
        "{\"headers\": null, \"tls\": {\"upstream_ca\": [\"/x\"]}}",
        "tls.upstream_ca: not by a patch",
    ),
];

#[test]
fn a_bad_document_changes_nothing_and_says_why() {
    let mut setup = Setup::new();
    setup.set(json!({ "headers": rule("1"), "cache": { "patterns": [FILES] } }));
    let proxy = setup.start();
    let origin = origin();
    proxy.get(&origin, "/files/a").assert_not_hit();
    let before = config(&proxy);
    let unchanged = |what: &str| {
        assert_eq!(config(&proxy), before, "{what}");
        proxy.get(&origin, "/files/a").assert_hit();
        proxy.get(&origin, "/none");
        assert_eq!(via(&origin, "/none").as_deref(), Some("1"), "{what}");
    };
    for (document, named) in BAD {
        let response = patch(&proxy, document);
        let conflict =
            if named.contains("not while") || named.contains("not by") { 409 } else { 400 };
        assert_eq!(response.status, conflict, "{document}: {}", response.text());
        let error = response.json()["errors"][0]["message"].as_str().expect("why").to_owned();
        assert!(error.contains(named) && !error.contains('\n'), "{document}: {error}");
        unchanged(document);
    }
    for (file, named) in [
        ("headers: {}\nlimits:\n  max_fills: many\n", "config.yaml:3: limits.max_fills"),
        ("headers: {}\ncache: {patterns: ['(']}\n", "cache.patterns[0]"),
        ("headers: {}\ntls: {upstream_ca: [none.pem]}\n", "tls.upstream_ca[0]"),
        ("headers: {}\nproxy: {users: none}\n", "proxy.users"),
        ("# all of it\n", "nothing that is set"),
    ] {
        fs::write(setup.path("config.yaml"), file).expect("the file");
        let response = ask(&proxy, "POST", "/api/config/reload", &[], "");
        assert_eq!(response.status, 400, "{file}");
        assert!(response.text().contains(named), "{file}: {}", response.text());
        proxy.signal("HUP");
        // Of the request, and of the signal.
        wait_until("two lines that say so", || {
            let said = |line: &&String| line.contains("stays as it was") && line.contains(named);
            (proxy.log().iter().filter(said).count() == 2).then_some(())
        });
        unchanged(file);
    }
    fs::remove_file(setup.path("config.yaml")).expect("the file");
    assert_eq!(ask(&proxy, "POST", "/api/config/reload", &[], "").status, 400);
    unchanged("no file");
}

#[test]
fn what_needs_a_restart_says_so_and_the_rest_is_in_force() {
    let mut setup = Setup::new();
    let proxy = setup.start();
    let origin = origin();
    let before = config(&proxy);
    setup.set(json!({
        "proxy": { "port": 17_080, "workers": 5 }, "cache": { "dir": "elsewhere" },
        "tls": { "cert_dir": "elsewhere" }, "logging": { "format": "json" }, "headers": rule("1"),
    }));
    setup.write_config();
    let keys = ["proxy.port", "proxy.workers", "tls.cert_dir", "cache.dir", "logging.format"];
    for changed in [json!(["headers"]), json!([])] {
        let said = reloaded(&proxy);
        assert_eq!((&said["restart"], &said["changed"]), (&json!(keys), &changed));
    }
    proxy.wait_log(&["WARN", "restart", &keys.join(",")]);
    proxy.get(&origin, "/files/a");
    assert_eq!(via(&origin, "/files/a").as_deref(), Some("1"));
    let mut after = config(&proxy);
    after["headers"] = json!({});
    assert_eq!(after, before, "what is shown is what is in force");
    for (document, what) in [
        (json!({ "proxy": { "bind": "0.0.0.0" } }), "restart"),
        (json!({ "proxy": { "api_bind": "0.0.0.0" } }), "restart"),
        (json!({ "proxy": { "watch_config": true } }), "restart"),
        (json!({ "tls": { "constrain": true } }), "restart"),
        (json!({ "logging": { "file": "/x" } }), "restart"),
        (json!({ "cache": { "access": "verify" } }), "restart"),
        (json!({ "proxy": { "api_token": "x" } }), "reload"),
        (json!({ "proxy": { "users": "/etc/passwd" } }), "reload"),
        (json!({ "tls": { "pins": { "a": [] } } }), ""),
        (json!({ "upstream": { "proxy": "http://a:1" } }), "reload"),
    ] {
        let response = patch(&proxy, &document.to_string());
        let status = if what.is_empty() { 400 } else { 409 };
        assert_eq!(response.status, status, "{document}: {}", response.text());
        let how = format!("edit the file and {what}");
        assert!(what.is_empty() || response.text().contains(&how), "{}", response.text());
    }
    // The environment stands over the file then as at the start.
    let mut setup = Setup::new().env("LOG_LEVEL", "debug");
    let proxy = setup.start();
    setup.set(json!({ "logging": { "level": "error" } }));
    setup.write_config();
    reloaded(&proxy);
    assert_eq!(config(&proxy)["logging"]["level"], json!("debug"));
}

#[test]
fn what_is_under_way_goes_on_untouched() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let (gate, body) = (Gate::new(), fresh_body(3_000_000));
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body).gate_at(1_000_000, &gate));
    let mut client = proxy.client(&origin);
    let mut transfer = client.begin(&path);
    transfer.read_to(&mut client, 500_000);
    let echo = bare_server(names::OTHER, |mut tcp| {
        std::io::copy(&mut tcp.try_clone()?, &mut tcp).map(drop)
    });
    let authority = format!("{}:{}", names::OTHER, echo.port());
    let mut tunnel = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    patched(
        &proxy,
        json!({
            "proxy": { "allow_clients": [], "deny_destinations": ["127.0.0.0/8"] },
            "allowlist": { "enabled": true },
            "cache": { "enabled": false, "max_size": 1, "min_free": "1PiB", "patterns": [] },
            "limits": { "max_fills": 1, "max_requests_per_connection": 1 },
            "tls": { "intercept": [] },
        }),
    );
    assert_eq!(proxy.plain().get(&origin.url("/")).status, 403, "it is in force");
    gate.open();
    transfer.finish(&mut client).assert_is(&body);
    tunnel.write_all(b"x").expect("a byte");
    tunnel.read_exact(&mut [0; 1]).expect("its echo");
    assert_eq!(origin.count("GET", &path), 1);
    proxy.wait_stat("current_size", 0);
}

#[test]
fn secrets_are_neither_shown_nor_logged() {
    let (token, secret, pass) = ("t0p-token", "sup3r-s3cret", "parent-passw0rd");
    let mut setup = Setup::new();
    let plain = "http://other.example";
    setup.set(json!({
        "proxy": { "api_token": token },
        "upstream": { "proxy": format!("http://user:{pass}@{}:3128", names::PARENT) },
        "headers": { plain: { "set": { "Authorization": format!("Bearer {secret}") } } },
        "logging": { "level": "trace" },
    }));
    let proxy = setup.start();
    let bearer = format!("Bearer {token}");
    let right = [("Authorization", bearer.as_str())];
    let rule = |value: &str| json!({ "headers": { plain: { "set": { "Cookie": value } } } });
    let mut said = Vec::new();
    for (method, path, body) in [
        ("GET", "/api/config", String::new()),
        ("PATCH", "/api/config", rule(&format!("id={secret}")).to_string()),
        ("PATCH", "/api/config", rule(&format!("{secret}\r\nX: y")).to_string()),
        ("PATCH", "/api/config", format!("headers: {{a: {{set: {{Cookie: [{secret}]}}}}}}")),
        ("POST", "/api/config/reload", String::new()),
        ("GET", "/api/config", String::new()),
    ] {
        for (host, origin) in [("evil.example", ""), ("localhost", "http://evil.example")] {
            let fields = [right[0], ("Host", host), ("Origin", origin)];
            let fields = if origin.is_empty() { &fields[..2] } else { &fields[..] };
            assert_eq!(ask(&proxy, method, path, fields, &body).status, 403, "{method} {host}");
        }
        assert_eq!(ask(&proxy, method, path, &[], &body).status, 401, "{method} {path}");
        said.push(ask(&proxy, method, path, &right, &body).text());
    }
    let yaml = proxy.admin("GET", "/api/config", &[right[0], ("Accept", "application/yaml")]);
    said.push(yaml.text());
    let shown: Value = serde_json::from_str(&said[0]).expect("JSON");
    assert_eq!(shown["proxy"]["api_token"], json!("***"));
    assert_eq!(shown["headers"][plain]["set"]["Authorization"], json!("***"));
    assert!(said[1].contains("\"status\":\"ok\""), "{}", said[1]);
    // A token that the file has changed counts at once.
    setup.set(json!({ "proxy": { "api_token": "an0ther-one" } }));
    setup.write_config();
    said.push(ask(&proxy, "POST", "/api/config/reload", &right, "").text());
    assert!(said.last().is_some_and(|said| said.contains("proxy.api_token")), "{said:?}");
    assert_eq!(proxy.admin("GET", "/api/config", &right).status, 401);
    said.push(proxy.stop());
    for (said, secret) in said.iter().flat_map(|said| [token, secret, pass].map(|s| (said, s))) {
        assert!(!said.contains(secret), "{secret} in {said}");
    }
}

#[test]
fn patches_side_by_side_are_all_in_force() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = origin();
    thread::scope(|scope| {
        for writer in 0..6 {
            let proxy = &proxy;
            scope.spawn(move || {
                for n in 0..10 {
                    let rule = json!({ "append": { "X-N": n.to_string() } });
                    let host = format!("h{n}.w{writer}.test");
                    patched(proxy, json!({ "headers": { host: rule } }));
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(proxy.get(&origin, "/files/a").status, 200);
                }
            });
        }
    });
    let headers = config(&proxy)["headers"].clone();
    assert_eq!(headers.as_object().expect("rules").len(), 60, "{headers}");
}

#[test]
fn sighup_reads_the_file_again() {
    let mut setup = Setup::new();
    let proxy = setup.start();
    let origin = origin();
    setup.set(json!({ "headers": rule("1") }));
    setup.write_config();
    proxy.get(&origin, "/files/a");
    assert_eq!(via(&origin, "/files/a"), None, "nobody has said that it changed");
    proxy.signal("HUP");
    proxy.wait_log(&["log reopened"]);
    proxy.wait_log(&["configuration read", "changed=headers"]);
    proxy.get(&origin, "/files/a");
    assert_eq!(via(&origin, "/files/a").as_deref(), Some("1"));
}

#[test]
fn methods_and_sizes_are_checked() {
    let setup = Setup::new();
    let proxy = setup.start();
    for (method, path, allow) in [
        ("DELETE", "/api/config", "GET, HEAD, PATCH"),
        ("PUT", "/api/config", "GET, HEAD, PATCH"),
        ("GET", "/api/config/reload", "POST"),
        ("PATCH", "/api/config/reload", "POST"),
    ] {
        let response = ask(&proxy, method, path, &[], "{}");
        assert_eq!((response.status, response.field("Allow")), (405, Some(allow)));
    }
    assert_eq!(ask(&proxy, "GET", "/api/config/x", &[], "").status, 404);
    let large = format!("limits: {{}}\n{}", "#".repeat(70_000));
    assert_eq!(patch(&proxy, &large).status, 413);
    let nested = format!("limits: {}1{}", "[".repeat(500), "]".repeat(500));
    assert_eq!(patch(&proxy, &nested).status, 400);
    assert_eq!(patch(&proxy, "{\n\t\"limits\": {\n\t\t\"max_fills\": 7\n\t}\n}\n").status, 200);
    assert_eq!(config(&proxy)["limits"]["max_fills"], json!(7));
}
