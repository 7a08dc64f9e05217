//! What is added to requests, what is taken off, and which clients and destinations are served.

mod support;

use serde_json::json;
use support::answer::Answer;
use support::client::{Client, Payload, dial_from};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};

#[test]
fn header_rules_replace_and_add_by_the_most_specific_pattern() {
    let setup = Setup::new().with(json!({ "headers": {
        "*": { "set": { "X-Rule": "any" }, "append": { "X-Any": "1" } },
        "*.deep.test": { "set": { "X-Rule": "below" } },
        "registry.test": {
            "set": { "X-Rule": "exact", "Authorization": "Basic aW5qZWN0ZWQ=" },
            "append": { "X-Via": "build" },
        },
    } }));
    let proxy = setup.start();
    let sent = [
        ("X-Rule", "client"),
        ("x-rule", "twice"),
        ("X-Via", "client"),
        ("Authorization", "Bearer c"),
    ];
    let rows: [(&str, &str, &[&str], &str); 3] = [
        (names::REGISTRY, "exact", &["client", "build"], "Basic aW5qZWN0ZWQ="),
        (names::DEEP, "below", &["client"], "Bearer c"),
        (names::OTHER, "any", &["client"], "Bearer c"),
    ];
    for (host, rule, via, authorization) in rows {
        for origin in [Origin::https(host), Origin::http(host)] {
            origin.get("/x", Answer::status(200, "ok"));
            assert_eq!(proxy.get_with(&origin, "/x", &sent).text(), "ok");
            let seen = origin.only("/x");
            assert_eq!(seen.head.fields("X-Rule"), [rule], "{host}");
            assert_eq!(seen.head.fields("X-Via"), via, "{host}");
            assert_eq!(seen.head.fields("Authorization"), [authorization], "{host}");
            let any = seen.field("X-Any");
            assert_eq!(any, (rule == "any").then_some("1"), "one rule applies: {host}");
        }
    }
    let output = proxy.stop();
    assert!(!output.contains("aW5qZWN0ZWQ="), "{output}");
}

#[test]
fn injected_fields_stay_with_their_host_on_a_redirect() {
    let setup = Setup::new().with(json!({ "headers": { "registry.test": {
        "set": { "Authorization": "Basic aW5qZWN0ZWQ=", "X-Secret": "s" },
        "append": { "Cookie": "c=1" },
    } } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(10_000);
    let path = registry.blob("lab/img", &body);
    proxy.get(&registry.main, &path).assert_is(&body);
    assert_eq!(registry.main.only(&path).field("X-Secret"), Some("s"));
    let fetched = registry.only_fetch(&body);
    for name in ["Authorization", "X-Secret", "Cookie"] {
        assert_eq!(fetched.field(name), None, "{:?}", fetched.head);
    }
}

#[test]
fn hop_by_hop_fields_do_not_cross_and_all_others_do() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let answer = Answer::status(200, "ok")
            .with("Connection", "X-Hop-Back")
            .with("X-Hop-Back", "1")
            .with("Keep-Alive", "timeout=1")
            .with("Proxy-Authenticate", "Basic realm=x")
            .with("X-Twice", "1")
            .with("X-Twice", "2")
            .with("Docker-Content-Digest", "sha256:x")
            .with("Link", "</v2/_catalog?n=1>; rel=\"next\"");
        origin.get("/x", answer);
        let sent = [
            ("Connection", "keep-alive, X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic eDp5"),
            ("TE", "trailers"),
            ("Upgrade", "h2c"),
            ("Accept", "application/vnd.oci.image.index.v1+json"),
            ("Accept", "application/vnd.oci.image.manifest.v1+json, */*"),
            ("User-Agent", "containerd/2.0"),
            ("X-Own", "a  b\tc"),
            ("Cookie", "a=b"),
        ];
        let response = proxy.get_with(&origin, "/x", &sent);
        assert_eq!(response.text(), "ok");
        let seen = origin.only("/x");
        assert_eq!(seen.head.fields("Host"), [origin.authority()]);
        for gone in [
            "X-Hop",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authorization",
            "Upgrade",
            "X-Forwarded-For",
        ] {
            assert_eq!(seen.field(gone), None, "{gone} in {:?}", seen.head);
        }
        let connection = seen.field("Connection").unwrap_or("").to_ascii_lowercase();
        assert!(!connection.contains("x-hop"), "{connection}");
        assert_eq!(seen.head.fields("Accept"), [sent[7].1, sent[8].1]);
        for (name, value) in &sent[9..] {
            assert_eq!(seen.head.fields(name), [*value]);
        }
        for gone in ["X-Hop-Back", "Keep-Alive"] {
            assert_eq!(response.field(gone), None, "{gone} in {:?}", response.head);
        }
        assert_eq!(response.head.fields("X-Twice"), ["1", "2"]);
        assert_eq!(response.field("Docker-Content-Digest"), Some("sha256:x"));
        assert_eq!(response.field("Link"), Some("</v2/_catalog?n=1>; rel=\"next\""));
    }
}

#[test]
fn the_target_reaches_upstream_byte_for_byte() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        for target in [
            "/a/%2F/%41/b%20c?x=%2F&y=a+b&z&&q=%7e~!$'()*,;:@",
            "/a//b/./c/../d?",
            "/?",
            "/v2/x/tags/list?n=100&last=%E2%9C%93",
        ] {
            proxy.get(&origin, target);
            let seen = origin.seen().pop().expect("a request");
            assert_eq!(seen.target, target);
        }
    }
    let origin = Origin::http(names::OTHER);
    proxy.plain().get(&format!("http://{}", origin.authority()));
    assert_eq!(origin.seen()[0].target, "/");
    proxy.plain().get(&format!("http://{}?q", origin.authority()));
    assert_eq!(origin.seen()[1].target, "/?q");
}

/// Expects a refusal of CONNECT and of an absolute-form request alike.
#[track_caller]
fn assert_denied(proxy: &Proxy, authority: &str) {
    let refusal = Client::tunnel(proxy.address(), authority).expect_err("CONNECT is refused");
    let message = refusal.assert_own_error(&[403]);
    assert!(refusal.reason.len() > "Forbidden".len(), "no reason: {:?}", refusal.reason);
    assert!(!message.is_empty());
    let response = proxy.plain().get(&format!("http://{authority}/x"));
    response.assert_own_error(&[403]);
}

#[test]
fn an_allowlist_of_names_refuses_all_others() {
    let setup = Setup::new().with(json!({ "allowlist": {
        "enabled": true, "domains": ["registry.test", "*.deep.test"],
    } }));
    let proxy = setup.start();
    for host in [names::REGISTRY, names::DEEP] {
        let origin = Origin::http(host);
        origin.get("/x", Answer::status(200, host));
        assert_eq!(proxy.get(&origin, "/x").text(), host);
        Client::tunnel(proxy.address(), &origin.authority()).expect("a tunnel");
    }
    for host in [names::SECOND, names::OTHER, "127.0.0.2", "deep.test", "evilregistry.test"] {
        assert_denied(&proxy, &format!("{host}:80"));
    }
}

#[test]
fn a_host_that_an_allowed_registry_redirects_to_is_allowed_for_that_transfer() {
    let setup = Setup::new().with(json!({ "allowlist": {
        "enabled": true, "domains": ["registry.test"],
    } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(50_000);
    let path = registry.blob("lab/img", &body);
    proxy.get(&registry.main, &path).assert_is(&body);
    assert_denied(&proxy, &registry.cdn.authority());
}

#[test]
fn an_allowlist_of_addresses_is_judged_on_what_a_name_resolves_to() {
    let setup = Setup::new().with(json!({ "allowlist": {
        "enabled": true, "domains": ["other.example"], "ips": ["127.0.0.2/32", "127.0.0.7/32"],
    } }));
    let proxy = setup.start();
    for host in [names::REGISTRY, names::DEEP, names::OTHER, "127.0.0.2"] {
        let origin = Origin::http(host);
        origin.get("/x", Answer::status(200, host));
        assert_eq!(proxy.get(&origin, "/x").text(), host);
    }
    for host in [names::SECOND, "127.0.0.5"] {
        let origin = Origin::http(host);
        assert_denied(&proxy, &origin.authority());
        assert_eq!(origin.connections(), 0);
    }
}

#[test]
fn denied_destinations_are_judged_by_address_in_every_form() {
    let setup = Setup::new().with(json!({ "proxy": {
        "deny_destinations": ["127.0.0.5/32", "127.0.0.8/32", "::1/128"],
    } }));
    let proxy = setup.start();
    let allowed = Origin::http(names::REGISTRY);
    allowed.get("/x", Answer::status(200, "allowed"));
    assert_eq!(proxy.get(&allowed, "/x").text(), "allowed");
    let origin = Origin::http(names::SECOND);
    origin.get("/x", Answer::status(200, "reached"));
    let port = origin.address().port();
    for host in [
        names::SECOND,
        "127.0.0.5",
        "[::ffff:127.0.0.5]",
        "[::ffff:7f00:5]",
        "[64:ff9b::7f00:5]",
        "[2002:7f00:5::]",
        "[::1]",
        names::DUAL,
    ] {
        assert_denied(&proxy, &format!("{host}:{port}"));
    }
    // Other spellings of an address are no host names.
    for host in ["2130706437", "0x7f000005", "0177.0.0.5", "127.5"] {
        let response = proxy.plain().get(&format!("http://{host}:{port}/x"));
        assert!(matches!(response.status, 400 | 403), "{host}: {response:?}");
    }
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_refusal_is_counted_and_logged_as_one_and_not_as_an_error() {
    let setup = Setup::new().with(json!({
        "proxy": { "deny_destinations": ["127.0.0.5/32"] },
        "allowlist": { "enabled": true, "domains": [names::REGISTRY, names::SECOND] },
    }));
    let proxy = setup.start();
    let registry = Origin::http(names::REGISTRY);
    let denied = Origin::http(names::SECOND);
    let body = fresh_body(1_000);
    let blob = blob_path("lab/img", &body);
    registry.get(&blob, Answer::redirect(307, denied.url("/x")));
    let urls = [
        denied.url("/x"),
        denied.url(&blob),
        registry.url(&blob),
        Origin::http(names::OTHER).url("/x"),
    ];
    let mut client = proxy.plain();
    for (number, url) in (1..).zip(&urls) {
        client.get(url).assert_own_error(&[403]);
        assert_eq!((proxy.stat("refused"), proxy.stat("errors")), (number, 0), "{url}");
        client = proxy.plain();
    }
    assert_eq!(denied.connections(), 0);
    let output = proxy.stop();
    assert_eq!(output.matches("refused client=").count(), urls.len(), "{output}");
    assert!(!output.contains("failed"), "{output}");
}

#[test]
fn denial_holds_inside_a_tunnel_opened_by_interception() {
    let setup = Setup::new().with(json!({ "proxy": { "deny_destinations": ["127.0.0.2/32"] } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let refusal = Client::tunnel(proxy.address(), &origin.authority());
    match refusal {
        Err(refusal) => drop(refusal.assert_own_error(&[403])),
        Ok(_) => proxy.get(&origin, "/x").assert_own_error(&[403]).clear(),
    }
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_redirect_to_a_denied_destination_is_not_followed() {
    let setup = Setup::new().with(json!({ "proxy": { "deny_destinations": ["127.0.0.3/32"] } }));
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(10_000);
    let path = registry.blob("lab/img", &body);
    let port = registry.cdn.address().port();
    let message = proxy.get(&registry.main, &path).assert_own_error(&[403, 502]);
    assert!(!message.contains("s3cr3t"), "{message}");
    for host in ["127.0.0.3", "[::ffff:127.0.0.3]"] {
        registry.main.get(&path, Answer::redirect(302, format!("http://{host}:{port}/x")));
        proxy.get(&registry.main, &path).assert_own_error(&[403, 502]);
    }
    assert_eq!(registry.cdn.connections(), 0);
    assert_eq!(proxy.stat("stores"), 0);
}

#[test]
fn the_proxys_own_ports_are_always_denied() {
    let setup =
        Setup::new().with(json!({ "proxy": { "bind": "0.0.0.0", "deny_destinations": [] } }));
    let proxy = setup.start();
    let own = proxy.address().port();
    let admin = proxy.admin_address().port();
    let to_proxy = |proxy: &Proxy| {
        let port = proxy.address().port();
        Client::plain(([127, 0, 0, 1], port).into())
    };
    let origin = Origin::http(names::REGISTRY);
    for authority in [
        format!("127.0.0.1:{own}"),
        format!("127.0.0.77:{own}"),
        format!("localhost:{own}"),
        format!("registry.test:{own}"),
        format!("[::ffff:127.0.0.1]:{own}"),
        format!("127.0.0.1:{admin}"),
        format!("localhost:{admin}"),
        format!("[::ffff:127.0.0.1]:{admin}"),
    ] {
        for path in ["/", "/api/cache/stats", "/v2/x/blobs/sha256:0"] {
            let url = format!("http://{authority}{path}");
            let response = to_proxy(&proxy).get(&url);
            response.assert_own_error(&[403]);
        }
        let response = to_proxy(&proxy).request(
            "DELETE",
            &format!("http://{authority}/api/cache"),
            &[],
            Payload::None,
        );
        response.assert_own_error(&[403]);
        let body = fresh_body(10);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::redirect(307, format!("http://{authority}/api/cache/stats")));
        let response = to_proxy(&proxy).get(&origin.url(&path));
        response.assert_own_error(&[403, 502]);
        let address = ([127, 0, 0, 1], own).into();
        let refusal = Client::tunnel(address, &authority).expect_err("CONNECT is refused");
        refusal.assert_own_error(&[403]);
    }
}

#[test]
fn clients_outside_allow_clients_are_refused() {
    let setup = Setup::new().with(json!({ "proxy": { "allow_clients": ["127.0.0.48/28"] } }));
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/x", Answer::status(200, "served"));
    let url = origin.url("/x");
    for (source, allowed) in
        [("127.0.0.48", true), ("127.0.0.63", true), ("127.0.0.64", false), ("127.0.0.1", false)]
    {
        let mut client = Client::on(dial_from(source, proxy.address()));
        let response = client.get(&url);
        match allowed {
            true => assert_eq!(response.text(), "served", "{source}"),
            false => drop(response.assert_own_error(&[403])),
        }
    }
    let refusal = Client::tunnel(proxy.address(), &origin.authority()).expect_err("a refusal");
    refusal.assert_own_error(&[403]);
    assert_eq!(origin.seen().len(), 2);
    assert_eq!(proxy.admin("GET", "/health", &[]).status, 200);
}
