//! The admin port: health, numbers, deletion, and whom it answers.

mod support;

use serde_json::{Value, json};
use support::answer::Answer;
use support::client::{Client, Payload};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::Setup;
use support::registry::blob_path;

#[test]
fn health_and_stats_of_an_empty_cache() {
    let setup = Setup::new();
    let proxy = setup.start();
    let health = proxy.admin("GET", "/health", &[]);
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
    assert!(health.field("Content-Type").unwrap_or("").starts_with("application/json"));
    let stats = proxy.stats();
    for name in ["hits", "misses", "stores", "evictions", "errors", "current_size", "coalesced"] {
        assert_eq!(stats[name], json!(0), "{name} in {stats}");
    }
    assert_eq!(stats["hit_rate"].as_f64(), Some(0.0), "{stats}");
    let mut client = Client::direct(proxy.admin_address(), &proxy.admin_address().to_string());
    for _ in 0..5 {
        assert_eq!(client.get("/health").status, 200);
    }
    let head = client.request("HEAD", "/health", &[], Payload::None);
    assert!(matches!(head.status, 200 | 405), "{head:?}");
}

#[test]
fn entries_are_removed_one_by_one_and_all_at_once() {
    let setup = Setup::new().with(json!({
        "cache": { "patterns": ["^/files/", "^/v2/.*/blobs/sha256:.*"] }
    }));
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let bodies: Vec<_> = (1..=3).map(|i| fresh_body(i * 10_000)).collect();
    for body in &bodies {
        let path = blob_path("lab/img", body);
        origin.get(&path, Answer::ok(body));
        proxy.get(&origin, &path).assert_is(body);
    }
    origin.get("/files/a", Answer::status(200, "12345"));
    proxy.get(&origin, "/files/a");
    assert_eq!(proxy.stat("current_size"), 60_005);

    let one = format!("/api/cache/{}", bodies[0].digest());
    let removed = proxy.admin("DELETE", &one, &[]);
    assert_eq!(removed.status, 200, "{}", removed.text());
    assert_eq!(removed.json()["status"], json!("ok"));
    assert!(!setup.blob(&bodies[0].sha256()).exists());
    assert_eq!(proxy.stat("current_size"), 50_005);
    assert_eq!(proxy.admin("DELETE", &one, &[]).status, 404);
    let never = format!("/api/cache/{}", fresh_body(7).digest());
    assert_eq!(proxy.admin("DELETE", &never, &[]).status, 404);
    for bad in ["/api/cache/sha256:xyz", "/api/cache/../../etc/passwd", "/api/cache/sha256:"] {
        let status = proxy.admin("DELETE", bad, &[]).status;
        assert!(matches!(status, 400 | 404), "{bad}: {status}");
    }

    let all = proxy.admin("DELETE", "/api/cache", &[]);
    assert_eq!(all.json(), json!({ "status": "ok", "removed": 3, "freed": 50_005 }));
    assert_eq!(proxy.stat("current_size"), 0);
    let again = proxy.admin("DELETE", "/api/cache", &[]);
    assert_eq!(again.json(), json!({ "status": "ok", "removed": 0, "freed": 0 }));
    for body in &bodies {
        assert!(!setup.blob(&body.sha256()).exists());
        assert!(!setup.blob(&format!("{}.meta", body.sha256())).exists());
    }
    proxy.get(&origin, &blob_path("lab/img", &bodies[1])).assert_not_hit();
}

#[test]
fn unknown_paths_and_methods_are_told_apart() {
    let setup = Setup::new();
    let proxy = setup.start();
    for path in ["/index.html", "/api", "/api/cache/stats/x", "/healthz", "/v2/", "/api/cache/"] {
        let method = if path == "/api/cache/" { "PUT" } else { "GET" };
        assert_eq!(proxy.admin(method, path, &[]).status, 404, "{path}");
    }
    let digest = format!("/api/cache/{}", fresh_body(3).digest());
    for (method, path) in [
        ("POST", "/health"),
        ("DELETE", "/health"),
        ("DELETE", "/api/cache/stats"),
        ("PUT", "/api/cache/stats"),
        ("POST", "/api/cache"),
        ("GET", "/api/cache"),
        ("PUT", digest.as_str()),
    ] {
        let response = proxy.admin(method, path, &[]);
        assert_eq!(response.status, 405, "{method} {path}");
        let allow = response.field("Allow").unwrap_or_default();
        assert!(!allow.is_empty() && !allow.contains(method), "{method} {path}: Allow: {allow}");
    }
}

#[test]
fn foreign_hosts_and_origins_are_refused() {
    let setup = Setup::new().with(json!({ "proxy": { "api_hosts": ["cache.internal"] } }));
    let proxy = setup.start();
    let port = proxy.admin_address().port();
    let rows = [
        ("localhost", "", 200),
        ("LocalHost", "", 200),
        ("127.0.0.1", "", 200),
        ("10.1.2.3", "", 200),
        ("[::1]", "", 200),
        ("cache.internal", "", 200),
        ("CACHE.internal", "", 200),
        ("evil.example", "", 403),
        ("localhost.evil.example", "", 403),
        ("cache.internal.evil.example", "", 403),
        ("localhost", "http://evil.example", 403),
        ("localhost", "null", 403),
        ("127.0.0.1", "https://127.0.0.1.evil.example", 403),
        ("cache.internal", "SAME", 200),
        ("localhost", "SAME", 200),
        ("localhost.", "", 200),
        ("a.localhost", "", 200),
        ("localhost", "http://localhost:1", 403),
        ("localhost", "http://127.0.0.1", 403),
        ("localhost", "SAME/path", 403),
        ("localhost", "SAME http://evil.example", 403),
        ("evil.example", "SAME", 403),
        ("2130706433.evil.example", "", 403),
    ];
    for (host, origin, expected) in rows {
        for host in [host.to_owned(), format!("{host}:{port}")] {
            let origin = origin.replace("SAME", &format!("http://{host}"));
            for (method, path) in [
                ("GET", "/api/cache/stats"),
                ("GET", "/health"),
                ("HEAD", "/health"),
                ("DELETE", "/api/cache"),
            ] {
                let mut fields = vec![("Host", host.as_str())];
                if !origin.is_empty() {
                    fields.push(("Origin", &origin));
                }
                let status = proxy.admin(method, path, &fields).status;
                assert_eq!(status, expected, "{method} Host: {host} Origin: {origin}");
            }
        }
    }
}

#[test]
fn what_is_refused_is_refused_before_anything_is_told_of_it() {
    let setup = Setup::new().with(json!({ "proxy": { "api_token": "t0ken" } }));
    let proxy = setup.start();
    let foreign = [("Host", "evil.example"), ("Authorization", "Bearer t0ken")];
    for (method, path) in [("GET", "/nowhere"), ("POST", "/health"), ("GET", "/api/cache")] {
        assert_eq!(proxy.admin(method, path, &foreign).status, 403, "{method} {path}");
    }
    for (method, path) in [("GET", "/nowhere"), ("POST", "/api/cache"), ("GET", "/api/cache/x")] {
        assert_eq!(proxy.admin(method, path, &[]).status, 401, "{method} {path}");
    }
    let twice = [("Origin", "http://localhost"), ("Origin", "http://evil.example")];
    for fields in [twice, [twice[1], twice[0]]] {
        let fields = [("Host", "localhost"), fields[0], fields[1]];
        assert_eq!(proxy.admin("GET", "/health", &fields).status, 403, "{fields:?}");
    }
}

#[test]
fn a_token_is_wanted_everywhere_but_for_health() {
    let token = "t0p-secret-token";
    let setup = Setup::new().with(json!({ "proxy": { "api_token": token } }));
    let proxy = setup.start();
    assert_eq!(proxy.admin("GET", "/health", &[]).status, 200);
    let right = format!("Bearer {token}");
    for (method, path) in [("GET", "/api/cache/stats"), ("DELETE", "/api/cache")] {
        let (longer, shorter) = (format!("{right}x"), &right[..right.len() - 1]);
        let wrong =
            ["Bearer wrong", "Bearer ", "Bearer", token, "Basic eDp5", longer.as_str(), shorter];
        for wrong in wrong.map(Some).into_iter().chain([None]) {
            let fields: Vec<_> = wrong.iter().map(|value| ("Authorization", *value)).collect();
            let response = proxy.admin(method, path, &fields);
            assert_eq!(response.status, 401, "{method} {path} with {wrong:?}");
            assert!(response.field("WWW-Authenticate").is_some(), "RFC 9110 15.5.2");
        }
        let response = proxy.admin(method, path, &[("Authorization", &right)]);
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let output = proxy.stop();
    assert!(!output.contains(token), "{output}");
}

#[test]
fn the_admin_port_is_no_proxy_and_the_proxy_port_no_admin() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/", Answer::status(200, "reached"));
    let mut client = Client::plain(proxy.admin_address());
    let response = client.get(&origin.url("/"));
    assert_ne!(response.text(), "reached");
    assert!(response.status >= 400, "{response:?}");
    let refusal = Client::tunnel(proxy.admin_address(), &origin.authority());
    assert!(refusal.is_err_and(|refusal| refusal.status >= 400));
    assert_eq!(origin.seen().len(), 0);

    let address = proxy.address();
    let mut client = Client::direct(address, &address.to_string());
    let response = client.request("DELETE", "/api/cache", &[], Payload::None);
    assert!(response.status >= 400, "{response:?}");
}

#[test]
fn numbers_add_up() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(12_345);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let mut client = proxy.client(&origin);
    for _ in 0..4 {
        client.get(&path).assert_is(&body);
    }
    client.get("/not/a/candidate");
    let stats = proxy.stats();
    let expected: [(&str, Value); 6] = [
        ("hits", json!(3)),
        ("misses", json!(1)),
        ("stores", json!(1)),
        ("errors", json!(0)),
        ("current_size", json!(12_345)),
        ("hit_rate", json!(0.75)),
    ];
    for (name, value) in expected {
        assert_eq!(stats[name], value, "{name} in {stats}");
    }
}
