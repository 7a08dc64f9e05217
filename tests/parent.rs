//! Upstreams by a parent proxy: what goes through it, what it is told, and what clients are told
//! when it does not do its part.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::json;
use support::answer::{Answer, Ending, Gate};
use support::body::Body;
use support::certs::{Authority, Trust};
use support::client::{Client, Payload, dial};
use support::dns::{Dns, own_address};
use support::names;
use support::origin::{Origin, fresh_body};
use support::parent::{Mood, Parent};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::wire::Head;

/// As it stands in the URL, what it means, and both as `Proxy-Authorization` has them.
const USERINFO: &str = "builder:s3cr3t%2Fw%C3%B6rd";
const PASSWORD: &str = "s3cr3t/wörd";
const BASIC: &str = "YnVpbGRlcjpzM2NyM3Qvd8O2cmQ=";

fn setup(parent: &Parent, userinfo: &str) -> Setup {
    let at = if userinfo.is_empty() { "" } else { "@" };
    let url = format!("http://{userinfo}{at}{}", parent.authority());
    Setup::new().with(json!({ "upstream": { "proxy": url }, "logging": { "level": "trace" } }))
}

/// Fails where a credential stands in what the program printed.
#[track_caller]
fn assert_kept_secret(output: &str) {
    for secret in ["s3cr3t", PASSWORD, BASIC] {
        assert!(!output.contains(secret), "{secret} in {output}");
    }
}

/// Fails where an origin was told anything about the parent's credentials.
#[track_caller]
fn assert_told_nothing(origin: &Origin) {
    let seen = origin.seen();
    assert!(!seen.is_empty());
    for seen in seen {
        for (name, value) in &seen.head.fields {
            let own = name.to_ascii_lowercase().starts_with("proxy-") || value.contains(BASIC);
            assert!(!own, "{:?}", seen.head);
        }
    }
}

fn credentials(head: &Head) -> Vec<&str> {
    head.fields("Proxy-Authorization")
}

#[test]
fn https_goes_by_connect_with_the_credentials_of_the_url() {
    let parent = Parent::start();
    let setup = setup(&parent, USERINFO);
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(300_000);
    let path = registry.blob("library/a", &body);
    proxy.get(&registry.main, &path).assert_is(&body);
    let expected = [
        format!("CONNECT {} HTTP/1.1", registry.cdn.authority()),
        format!("CONNECT {} HTTP/1.1", registry.main.authority()),
    ];
    assert_eq!(parent.lines(), expected);
    for head in parent.heads() {
        assert_eq!(credentials(&head), [format!("Basic {BASIC}")], "{head:?}");
        assert_eq!(head.field("Host"), head.line.split(' ').nth(1), "{head:?}");
    }
    proxy.wait_stat("stores", 1);
    let again = proxy.get(&registry.main, &path);
    again.assert_is(&body);
    again.assert_hit();
    assert_eq!(parent.lines().len(), 2, "a hit asks nobody");

    let other = Origin::https(names::OTHER);
    other.get("/", Answer::status(200, "relayed"));
    let upstream = Trust::pem(Authority::trusted().pem());
    let mut client = Client::secure(proxy.address(), &other.authority(), &upstream);
    assert_eq!(client.get("/").text(), "relayed");
    drop(client);
    assert!(parent.lines().contains(&format!("CONNECT {} HTTP/1.1", other.authority())));
    for origin in [&registry.main, &registry.cdn, &other] {
        assert_told_nothing(origin);
    }
    assert_kept_secret(&proxy.stop());
}

#[test]
fn http_goes_in_absolute_form_with_the_credentials_of_the_url() {
    let parent = Parent::start();
    let setup = setup(&parent, USERINFO);
    let proxy = setup.start();
    let registry = Registry::http();
    let body = fresh_body(300_000);
    let path = registry.blob("library/a", &body);
    proxy.get(&registry.main, &path).assert_is(&body);
    let at_cdn = registry.cdn.url(&Registry::cdn_path(&body));
    let lines = parent.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with(&format!("GET {at_cdn}?X-Amz")), "{lines:?}");
    assert_eq!(lines[1], format!("GET {} HTTP/1.1", registry.main.url(&path)));
    proxy.get(&registry.main, &path).assert_hit();
    assert_eq!(parent.lines().len(), 2, "a hit asks nobody");

    // What passes by the cache: the client's own credentials for a proxy are for us, not for it.
    let upload = Body::made(1, 100_000);
    registry.main.on("PUT", "/v2/a/blobs/uploads/1", Answer::status(201, ""));
    let fields = [("Proxy-Authorization", "Basic b3VyczpvbmVz")];
    let url = registry.main.url("/v2/a/blobs/uploads/1");
    let answer = proxy.plain().request("PUT", &url, &fields, Payload::Length(&upload));
    assert_eq!(answer.status, 201, "{answer:?}");
    let seen = registry.main.only("/v2/a/blobs/uploads/1");
    assert_eq!(seen.body_sha256, Some(upload.sha256()));
    for head in parent.heads() {
        assert_eq!(credentials(&head), [format!("Basic {BASIC}")], "{head:?}");
    }
    for origin in [&registry.main, &registry.cdn] {
        assert_told_nothing(origin);
    }
    assert_kept_secret(&proxy.stop());
}

#[test]
fn without_credentials_in_the_url_none_are_sent() {
    let parent = Parent::start();
    let setup = setup(&parent, "");
    let proxy = setup.start();
    let (plain, secure) = (Origin::http(names::SECOND), Origin::https(names::REGISTRY));
    let fields = [("Proxy-Authorization", "Basic b3VyczpvbmVz")];
    for origin in [&plain, &secure] {
        origin.get("/", Answer::status(200, "ok"));
        assert_eq!(proxy.get_with(origin, "/", &fields).text(), "ok");
        assert_told_nothing(origin);
    }
    let heads = parent.heads();
    assert_eq!(heads.len(), 2);
    for head in heads {
        assert!(credentials(&head).is_empty(), "{head:?}");
    }
}

#[test]
fn no_proxy_hosts_are_reached_directly_and_told_no_credentials() {
    let parent = Parent::start();
    let direct = json!({ "upstream": { "no_proxy": [".example", names::SECOND, "127.0.0.4/32"] } });
    let setup = setup(&parent, USERINFO).with(direct);
    let proxy = setup.start();
    // The registry by the parent, the CDN it redirects to directly.
    let registry = Registry::https();
    let body = fresh_body(100_000);
    let path = registry.blob("library/a", &body);
    proxy.get(&registry.main, &path).assert_is(&body);
    let by_parent = [format!("CONNECT {} HTTP/1.1", registry.main.authority())];
    assert_eq!(parent.lines(), by_parent);
    for host in [names::SECOND, names::OTHER, "127.0.0.4"] {
        let origin = Origin::http(host);
        origin.get("/", Answer::status(200, host));
        assert_eq!(proxy.get(&origin, "/").text(), host);
        assert_told_nothing(&origin);
    }
    let second = Origin::https(names::SECOND);
    second.get("/", Answer::status(200, "second"));
    assert_eq!(proxy.get(&second, "/").text(), "second");
    assert_eq!(parent.lines(), by_parent, "all others directly");
    // An entry of no_proxy is a host as the URL names it: the name with that address is no such.
    let auth = Origin::http(names::AUTH);
    auth.get("/", Answer::status(200, "auth"));
    assert_eq!(proxy.get(&auth, "/").text(), "auth");
    assert_eq!(parent.lines().len(), 2);
    assert_told_nothing(&registry.cdn);
}

/// A blob asked for through an opened tunnel, through the cache and past it over plain HTTP, and a
/// relayed CONNECT: status and message of each.
fn ask_all_ways(proxy: &Proxy, secure: &Origin, plain: &Origin) -> Vec<(u16, String)> {
    let path = blob_path("library/a", &Body::made(7, 10));
    let mut answers = Vec::new();
    for (origin, path) in [(secure, &*path), (plain, &*path), (plain, "/v2/")] {
        let answer = proxy.get(origin, path);
        answers.push((answer.status, answer.text()));
    }
    let refusal = Client::tunnel(proxy.address(), "other.example:443");
    let refusal = refusal.expect_err("no tunnel without the parent");
    answers.push((refusal.status, refusal.reason.clone()));
    answers
}

#[test]
fn a_parent_that_refuses_is_named_in_a_502() {
    let parent = Parent::start();
    let setup = setup(&parent, USERINFO);
    let proxy = setup.start();
    let (secure, plain) = (Origin::https(names::REGISTRY), Origin::http(names::SECOND));
    let named = format!("the parent proxy {}", parent.authority());

    parent.says("407 Proxy Authentication Required");
    for (status, message) in ask_all_ways(&proxy, &secure, &plain) {
        assert_eq!(status, 502, "{message}");
        let why = "answered 407: it wants credentials, or others than upstream.proxy has";
        assert!(message.contains(&format!("{named} {why}")), "{message}");
    }
    for (refusal, expected) in
        [("502 Bad Gateway", 502), ("403 Forbidden", 502), ("504 Gateway Timeout", 504)]
    {
        parent.says(refusal);
        let answers = ask_all_ways(&proxy, &secure, &plain);
        let code = &refusal[..3];
        for (status, message) in [&answers[0], &answers[3]] {
            assert_eq!(*status, expected, "{message}");
            let why = format!("{named} answered {code} to CONNECT");
            assert!(message.contains(&why), "{message}");
        }
        // Over plain HTTP the parent's errors can't be told from the origin's: as they are.
        for (status, message) in &answers[1..3] {
            assert_eq!(status.to_string(), code);
            assert_eq!(message, "parent");
        }
    }
    parent.is(Mood::Says(Vec::new()));
    for (status, message) in ask_all_ways(&proxy, &secure, &plain) {
        assert_eq!(status, 502, "{message}");
        assert!(message.contains(&format!("{named} failed: the connection was closed")));
    }
    parent.is(Mood::Forwards);
    secure.get("/", Answer::status(200, "it is well again"));
    assert_eq!(proxy.get(&secure, "/").text(), "it is well again");
    assert_kept_secret(&proxy.stop());
}

#[test]
fn a_parent_out_of_reach_is_named_in_a_502() {
    let (secure, plain) = (Origin::https(names::REGISTRY), Origin::http(names::SECOND));
    let dns = Dns::start();
    for (parent, why) in [
        ("dead.test:9", "can't be reached: Connection refused"),
        ("nowhere.invalid:3128", "the name nowhere.invalid does not resolve"),
    ] {
        let url = format!("http://{USERINFO}@{parent}");
        let setup = Setup::new().with(json!({ "upstream": { "proxy": url } }));
        let proxy = dns.start_proxy(&setup);
        for (status, message) in ask_all_ways(&proxy, &secure, &plain) {
            assert_eq!(status, 502, "{message}");
            let named = format!("the parent proxy {parent} failed: ");
            assert!(message.contains(&named) && message.contains(why), "{message}");
        }
        assert_kept_secret(&proxy.stop());
    }
}

#[test]
fn a_parent_that_stalls_is_named_in_a_504() {
    let parent = Parent::start();
    let gate = Gate::new();
    parent.is(Mood::Stalls(gate.clone()));
    let times = json!({ "upstream": { "connect_timeout": "1s", "read_timeout": "1s" } });
    let setup = setup(&parent, USERINFO).with(times);
    let proxy = setup.start();
    let (secure, plain) = (Origin::https(names::REGISTRY), Origin::http(names::SECOND));
    for (status, message) in ask_all_ways(&proxy, &secure, &plain) {
        assert_eq!(status, 504, "{message}");
        assert!(message.contains(&format!("the parent proxy {}", parent.authority())), "{message}");
        assert!(message.contains("took longer than 1s"), "{message}");
    }
    gate.open();
    assert_kept_secret(&proxy.stop());
}

#[test]
fn a_parent_that_breaks_off_in_mid_body_is_asked_again() {
    let parent = Parent::start();
    let setup = setup(&parent, USERINFO);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(500_000);
    let path = blob_path("library/a", &body);
    let broken = Answer::ok(&body).ranges().ends_at(200_000, Ending::Cut);
    origin.script("GET", &path, [broken, Answer::ok(&body).ranges()]);
    proxy.get(&origin, &path).assert_is(&body);
    proxy.wait_stat("stores", 1);
    let heads = parent.heads();
    assert_eq!(heads.len(), 2, "{heads:?}");
    for head in heads {
        assert_eq!(credentials(&head), [format!("Basic {BASIC}")]);
    }
}

#[test]
fn this_proxy_is_not_its_own_parent() {
    for (proxy, parent) in [
        (json!({ "bind": "0.0.0.0", "port": 17080 }), "127.0.0.1:17080"),
        (json!({ "bind": "0.0.0.0", "port": 17080 }), "localhost:17080"),
        (json!({ "bind": "127.0.0.1", "port": 17080 }), "127.0.0.1:17080"),
        (json!({ "bind": "::", "port": 17080 }), "[::1]:17080"),
        (json!({ "bind": "127.0.0.10", "port": 17080 }), "parent.test:17080"),
        (json!({ "bind": "127.0.0.1", "port": 0, "api_port": 17081 }), "127.0.0.1:17081"),
    ] {
        let url = format!("http://{USERINFO}@{parent}");
        let setup = Setup::new().with(json!({ "proxy": proxy, "upstream": { "proxy": url } }));
        let file = setup.write_config();
        let file = file.to_str().expect("UTF-8");
        for arguments in [&["--config", file][..], &["check", "--config", file]] {
            let ended = setup.run(arguments);
            assert_eq!(ended.code, Some(2), "{ended:?}");
            assert_eq!(ended.stderr.lines().count(), 1, "{ended:?}");
            let expected = format!(
                "upstream.proxy: found {parent}, which is this proxy itself, expected another proxy"
            );
            assert!(ended.stderr.contains("config.yaml:"), "{ended:?}");
            assert!(ended.stderr.ends_with(&expected), "{ended:?}");
            assert_kept_secret(&ended.stderr);
        }
    }
    for parent in ["127.0.0.2:17080", "127.0.0.1:17079", "dual.test:17080"] {
        let url = format!("http://{parent}");
        let proxy = json!({ "bind": "127.0.0.1", "port": 17080 });
        let setup = Setup::new().with(json!({ "proxy": proxy, "upstream": { "proxy": url } }));
        let file = setup.write_config();
        let ended = setup.run(&["check", "--config", file.to_str().expect("UTF-8")]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
}

#[test]
fn a_parent_whose_name_comes_to_mean_this_proxy_is_not_connected_to() {
    let (own, other) = (own_address(), own_address());
    let free = TcpListener::bind((own, 0)).expect("a free port");
    let port = free.local_addr().expect("its number").port();
    drop(free);
    let dns = Dns::start();
    dns.set("proxy.corp.test", &[own.into(), other.into()]);
    let listen = json!({ "bind": own.to_string(), "port": port });
    let parent = format!("proxy.corp.test:{port}");
    let upstream = json!({ "proxy": format!("http://{USERINFO}@{parent}") });
    let setup = Setup::new().with(json!({ "proxy": listen, "upstream": upstream }));
    let proxy = dns.start_proxy(&setup);
    dns.set("proxy.corp.test", &[own.into()]);
    let (secure, plain) = (Origin::https(names::REGISTRY), Origin::http(names::SECOND));
    for (status, message) in ask_all_ways(&proxy, &secure, &plain) {
        assert_eq!(status, 502, "{message}");
        let why = format!("the parent proxy {parent} failed: {own}:{port} is this proxy itself");
        assert!(message.contains(&why), "{message}");
    }
    assert_eq!(proxy.stat("accepted"), 4);
}

#[test]
fn a_loop_through_other_proxies_ends_at_once() {
    let parent = Parent::start();
    let setup = setup(&parent, USERINFO).with(json!({ "limits": { "max_connections": 20 } }));
    let proxy = setup.start();
    parent.is(Mood::HandsTo(proxy.address()));
    let (secure, plain) = (Origin::https(names::REGISTRY), Origin::http(names::SECOND));
    let answers = ask_all_ways(&proxy, &secure, &plain);
    for (status, message) in [&answers[0], &answers[3]] {
        assert_eq!(*status, 502, "{message}");
        assert!(message.contains("answered 508 to CONNECT"), "{message}");
    }
    for (status, message) in &answers[1..3] {
        assert_eq!(*status, 508, "{message}");
        assert!(message.contains("came through this proxy already"), "{message}");
    }
    assert_eq!(parent.lines().len(), 4, "{:?}", parent.lines());

    // What a client's CONNECT came through already is told to the parent, too.
    parent.says("403 Forbidden");
    parent.forget();
    let mut client = dial(proxy.address(), None);
    let connect = "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\
                   Via: 1.0 fred, 1.1 p.example (x, y)\r\n\r\n";
    client.write_all(connect.as_bytes()).expect("sending CONNECT");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the refusal");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let heads = parent.heads();
    let via = heads[0].field("Via").expect("a Via");
    assert!(via.starts_with("1.0 fred, 1.1 p.example (x, y), 1.1 discobot-"), "{via}");
}

#[test]
fn another_of_these_proxies_is_a_parent() {
    let far_setup = Setup::new().with(json!({ "tls": { "intercept": [names::SECOND] } }));
    let far = far_setup.start();
    let url = format!("http://{}", far.address());
    let near_setup = Setup::new().with(json!({
        "upstream": { "proxy": url },
        "tls": { "intercept": [names::REGISTRY] },
    }));
    let near = near_setup.start();

    // Opened here, relayed there.
    let registry = Registry::https();
    let body = fresh_body(3_000_000);
    let path = registry.blob("library/a", &body);
    near.get(&registry.main, &path).assert_is(&body);
    near.wait_stat("stores", 1);
    near.get(&registry.main, &path).assert_hit();
    assert_eq!((far.stat("tunnelled"), far.stat("stores")), (2, 0));

    // Relayed here, opened and stored there.
    let second = Origin::https(names::SECOND);
    second.get(&path, Answer::ok(&body));
    let mut client = Client::secure(near.address(), &second.authority(), &far.trust());
    client.get(&path).assert_is(&body);
    far.wait_stat("stores", 1);
    client.get(&path).assert_hit();

    // Plain, stored in both; the far one's hit is what the near one would not have to ask for.
    let plain = Origin::http(names::OTHER);
    let body = fresh_body(200_000);
    let path = blob_path("library/b", &body);
    plain.get(&path, Answer::ok(&body));
    near.get(&plain, &path).assert_is(&body);
    near.wait_stat("stores", 2);
    far.wait_stat("stores", 2);
    near.get(&plain, &path).assert_hit();
    assert_eq!(plain.seen_at(&path).len(), 1);
    assert_eq!(near.stat("errors") + far.stat("errors"), 0);
}
