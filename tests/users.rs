//! `proxy.users`: who may use the proxy by user and password, and what asking for them costs.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::json;
use support::answer::Answer;
use support::body::Body;
use support::client::{Client, Payload, Response, dial, dial_from};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::parent::Parent;
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::wait_until;

/// Made by Python's `crypt`, cheap ones: ann's password is `right-2y`, and so on.
const USERS: &str = "\
# made for tests
ann:$2y$04$abcdefghijklmnopqrstuuchfW6qKGHPmWbpYPB8NwI5L.KjFn0Ti
bea:$2a$04$abcdefghijklmnopqrstuuIKAB3BcQyeSgxo7gg9EEVKkR8BPnewi
cyd:$2b$04$abcdefghijklmnopqrstuu87QHKThzuOxE70RctRIun94bRt.VI/6
";
const ANN: &str = "Basic YW5uOnJpZ2h0LTJ5";
const BEA: &str = "Basic YmVhOnJpZ2h0LTJh";
const CYD: &str = "basic Y3lkOnJpZ2h0LTJi";
/// `dan:slow-pass`, at 1024 rounds, and at 8192.
const SLOW: &str = "dan:$2b$10$abcdefghijklmnopqrstuu2fOtk74hwvMdmo2r6iG0UmVKEt3S.n.\n";
const SLOWER: &str = "dan:$2b$13$abcdefghijklmnopqrstuu43xyitwYEoQEjKbPJxU2pcEE20LV/xi\n";
const DAN: &str = "Basic ZGFuOnNsb3ctcGFzcw==";

const NAME: &str = "Proxy-Authorization";

fn setup(users: &str) -> Setup {
    let setup = Setup::new();
    let file = setup.path("users");
    std::fs::write(&file, users).expect("the users");
    let file = file.to_str().expect("UTF-8").to_owned();
    setup.with(json!({ "proxy": { "users": file } }))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", support::base64(format!("{user}:{password}").as_bytes()))
}

/// CONNECT with these credentials; the refusal, if that is what comes.
fn connect(
    proxy: &Proxy,
    authority: &str,
    credentials: &[&str],
) -> Result<TcpStream, Box<Response>> {
    let fields: Vec<_> = credentials.iter().map(|value| (NAME, *value)).collect();
    let answer = Client::tunnel_with(dial(proxy.address(), None), authority, &fields);
    answer.expect("an answer to CONNECT")
}

#[track_caller]
fn assert_asked(response: &Response) {
    response.assert_own_error(&[407]);
    let challenge = response.field("Proxy-Authenticate").unwrap_or_default();
    assert!(challenge.starts_with("Basic realm=\"discobot-proxy\""), "{challenge}");
    assert_eq!(response.field("WWW-Authenticate"), None);
}

#[test]
fn only_users_with_their_passwords_are_served() {
    let setup = setup(USERS);
    let proxy = setup.start();
    let plain = Origin::http(names::REGISTRY);
    plain.get("/x", Answer::status(200, "served"));
    let relayed = Origin::https(names::OTHER);
    let opened = Origin::https(names::SECOND);
    let wrong = [
        vec![],
        vec!["Basic".to_owned()],
        vec!["Basic !!!!".to_owned()],
        vec!["Bearer YW5uOnJpZ2h0LTJ5".to_owned()],
        vec![basic("ann", "wrong")],
        vec![basic("ann", "")],
        vec![basic("ann", "right-2a")],
        vec![basic("ann", "right-2y\0right-2y")],
        vec![basic("Ann", "right-2y")],
        vec![basic("nobody", "right-2y")],
        vec![basic("", "right-2y")],
        vec![basic("# made for tests", "")],
        vec![ANN.to_owned(), BEA.to_owned()],
    ];
    for credentials in &wrong {
        let given: Vec<&str> = credentials.iter().map(String::as_str).collect();
        for origin in [&relayed, &opened] {
            let refusal = connect(&proxy, &origin.authority(), &given).expect_err("a refusal");
            assert_asked(&refusal);
        }
        let fields: Vec<_> = given.iter().map(|value| (NAME, *value)).collect();
        let mut client = proxy.plain();
        assert_asked(&client.get_with(&plain.url("/x"), &fields));
        assert!(client.closes());
        let mut client = proxy.plain();
        let body = Body::bytes("payload");
        let put = client.request("PUT", &plain.url("/x"), &fields, Payload::Length(&body));
        assert_asked(&put);
    }
    for origin in [&plain, &relayed, &opened] {
        assert_eq!(origin.connections(), 0);
    }
    assert_eq!(proxy.stat("unauthenticated"), 4 * wrong.len() as u64);
    for right in [ANN, BEA, CYD, &basic("ann", "right-2y")] {
        for origin in [&relayed, &opened] {
            connect(&proxy, &origin.authority(), &[right]).expect("a tunnel");
        }
        let served = proxy.plain().get_with(&plain.url("/x"), &[(NAME, right)]);
        assert_eq!(served.text(), "served");
    }
}

#[test]
fn each_request_of_a_connection_needs_them_and_the_page_of_the_proxy_none() {
    let setup = setup(USERS);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/x", Answer::status(200, "served"));
    let mut client = proxy.plain();
    for credentials in [ANN, BEA] {
        let served = client.get_with(&origin.url("/x"), &[(NAME, credentials)]);
        assert_eq!(served.text(), "served");
    }
    assert_asked(&client.get(&origin.url("/x")));
    assert!(client.closes());
    let mut client = Client::direct(proxy.address(), "proxy");
    assert!(client.get("/").text().contains("discobot-proxy"));
    assert_eq!(proxy.admin("GET", "/health", &[]).status, 200);
}

#[test]
fn inside_a_tunnel_the_credentials_of_its_connect_count() {
    let setup = setup(USERS);
    let proxy = setup.start();
    let registry = Registry::https();
    let body = fresh_body(100_000);
    let path = registry.blob("lab/img", &body);
    registry.main.get("/passed", Answer::status(200, "passed"));
    let authority = registry.main.authority();
    let tunnel = connect(&proxy, &authority, &[ANN]).expect("a tunnel");
    let mut client = Client::within(tunnel, &authority, &proxy.trust()).expect("TLS inside");
    for _ in 0..2 {
        client.get(&path).assert_is(&body);
        assert_eq!(client.get("/passed").text(), "passed");
    }
    // The same of a whole URL, which outside would need them.
    let whole =
        format!("GET {} HTTP/1.1\r\nHost: {authority}\r\n\r\n", registry.main.url("/passed"));
    client.wire.send(whole.as_bytes()).expect("sending");
    let head = client.head();
    assert_eq!(client.rest("GET", head).text(), "passed");
    // Wrong ones inside are not looked at, and go nowhere.
    let inside = [(NAME, "Basic d3Jvbmc6d3Jvbmc=")];
    assert_eq!(client.get_with("/passed", &inside).text(), "passed");
    client.get_with(&path, &inside).assert_is(&body);
    for seen in registry.main.seen().iter().chain(&registry.cdn.seen()) {
        assert_eq!(seen.field(NAME), None, "{:?}", seen.head);
    }
}

#[test]
fn the_credentials_go_no_further_than_the_proxy() {
    let parent = Parent::start();
    let url = format!("http://builder:hush@{}", parent.authority());
    for behind in [false, true] {
        let setup = setup(USERS).with(json!({
            "logging": { "level": "trace" }, "limits": { "shutdown_grace": "0s" },
        }));
        let setup = match behind {
            true => setup.with(json!({ "upstream": { "proxy": url } })),
            false => setup,
        };
        let proxy = setup.start();
        let origin = Origin::http(names::REGISTRY);
        let cdn = Origin::http(names::CDN);
        let body = fresh_body(10_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::redirect(307, cdn.url("/data")));
        cdn.get("/data", Answer::ok(&body));
        origin.get("/passed", Answer::status(200, "ok"));
        origin.get("/ws", Answer::upgrade("websocket"));
        let own = (NAME, ANN);
        proxy.get_with(&origin, &path, &[own]).assert_is(&body);
        proxy.get_with(&origin, &path, &[own]).assert_hit();
        proxy.get_with(&origin, "/passed", &[own, ("Connection", "X-Y")]);
        let mut client = proxy.plain();
        let fields = [own, ("Connection", "Upgrade"), ("Upgrade", "websocket")];
        client.start("GET", &origin.url("/ws"), &fields);
        assert!(client.head().line.contains(" 101"));
        let relayed = Origin::https(names::OTHER);
        connect(&proxy, &relayed.authority(), &[ANN]).expect("a tunnel");
        connect(&proxy, &relayed.authority(), &[&basic("ann", "wr0ng-s3cret")]).expect_err("none");
        for seen in origin.seen().iter().chain(&cdn.seen()) {
            assert_eq!(seen.field(NAME), None, "{:?}", seen.head);
        }
        let output = proxy.stop();
        for secret in ["right-2y", &ANN["Basic ".len()..], "wr0ng", "abcdefghijklmnopqrstuu"] {
            assert!(!output.contains(secret), "{secret} in {output}");
        }
    }
    for head in parent.heads() {
        let own = head.fields(NAME);
        assert!(own.iter().all(|value| *value == basic("builder", "hush")), "{head:?}");
    }
}

#[test]
fn a_client_outside_allow_clients_is_not_even_asked() {
    let setup = setup(USERS).with(json!({ "proxy": { "allow_clients": ["127.0.0.70/32"] } }));
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/x", Answer::status(200, "served"));
    let url = origin.url("/x");
    let ask =
        |source| Client::on(dial_from(source, proxy.address())).get_with(&url, &[(NAME, ANN)]);
    assert_eq!(ask("127.0.0.70").text(), "served");
    ask("127.0.0.71").assert_own_error(&[403]);
    assert_asked(&Client::on(dial_from("127.0.0.70", proxy.address())).get(&url));
}

/// CPU time of the proxy that this takes, in clock ticks of 10 ms.
fn ticks(proxy: &Proxy, work: impl FnOnce()) -> u64 {
    let before: u64 = proxy.thread_ticks().iter().sum();
    work();
    proxy.thread_ticks().iter().sum::<u64>() - before
}

#[test]
fn an_unknown_user_costs_what_a_wrong_password_costs_and_a_right_one_nothing_twice() {
    let setup = setup(SLOW);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/x", Answer::status(200, "served"));
    let url = origin.url("/x");
    let ask = |credentials: &str| proxy.plain().get_with(&url, &[(NAME, credentials)]).status;
    let wrong = ticks(&proxy, || {
        (0..10).for_each(|n| assert_eq!(ask(&basic("dan", &n.to_string())), 407));
    });
    let unknown = ticks(&proxy, || {
        (0..10).for_each(|n| assert_eq!(ask(&basic(&n.to_string(), "slow-pass")), 407));
    });
    assert!(wrong >= 10, "{wrong} ticks for ten comparisons: the measure is too short");
    assert!(unknown >= wrong / 2, "unknown users: {unknown} ticks, wrong passwords: {wrong}");
    assert_eq!(ask(DAN), 200);
    let again = ticks(&proxy, || (0..40).for_each(|_| assert_eq!(ask(DAN), 200)));
    assert!(again < wrong, "forty requests: {again} ticks, ten comparisons: {wrong}");
}

#[test]
fn comparisons_keep_no_core_and_no_other_client() {
    let setup = setup(SLOWER).with(json!({
        "proxy": { "workers": 1 }, "limits": { "header_timeout": "60s" },
    }));
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/x", Answer::status(200, "served"));
    let url = origin.url("/x");
    let compared = AtomicUsize::new(0);
    thread::scope(|scope| {
        let guesses: Vec<_> = (0..40)
            .map(|n| {
                let mut client = Client::on(dial_from("127.0.0.80", proxy.address()));
                client.start("GET", &url, &[(NAME, &basic("dan", &n.to_string()))]);
                let compared = &compared;
                scope.spawn(move || {
                    let head = client.head();
                    let response = client.rest("GET", head);
                    compared.fetch_add(usize::from(response.status == 407), Ordering::SeqCst);
                    response
                })
            })
            .collect();
        // Each of them takes half a second; the core that serves is free meanwhile.
        wait_until("one too many", || (proxy.stat("limited_sign_ins") > 0).then_some(()));
        let mut client = Client::direct(proxy.address(), "proxy");
        assert_eq!(client.get("/").status, 200);
        let before = compared.load(Ordering::SeqCst);
        assert!(before < 8, "the page came after {before} comparisons");
        // Another client is let in, though the one that guesses has all places it may have.
        let mut other = Client::on(dial_from("127.0.0.81", proxy.address()));
        assert_eq!(other.get_with(&url, &[(NAME, DAN)]).text(), "served");
        let responses: Vec<_> = guesses.into_iter().map(|guess| guess.join().unwrap()).collect();
        let refused = responses.iter().filter(|response| response.status == 503);
        for response in refused.clone() {
            response.assert_own_error(&[503]);
            assert_eq!(response.field("Retry-After"), Some("1"));
        }
        let refused = refused.count();
        // Two are compared at once, and eight of a client wait; some are done before others come.
        assert!((10..=32).contains(&refused), "{refused} of 40");
        responses.iter().filter(|response| response.status != 503).for_each(assert_asked);
    });
}

#[test]
fn a_file_that_is_none_is_refused_at_the_start_with_its_line() {
    let hash = "$2y$04$abcdefghijklmnopqrstuuchfW6qKGHPmWbpYPB8NwI5L.KjFn0Ti";
    for (text, parts) in [
        ("ann:$apr1$s3cretsa$s3crets3crets3cre/\n", ["line 1", "no bcrypt hash", "htpasswd -B"]),
        ("# x\n\nann:{SHA}s3cret=\n", ["line 3", "no bcrypt hash", "$2y$"]),
        ("ann:s3cret\n", ["line 1", "no bcrypt hash", "$2b$"]),
        ("s3cret\n", ["line 1", "no colon", "USER:HASH"]),
        (&format!("ann:{hash}\nann:{hash}\n"), ["line 2", "second time", "USER:HASH"]),
        (&format!("ann:{}\n", hash.replace("$04", "$31")), ["line 1", "cost", "4 to 15"]),
        ("", ["no user", "users", "USER:HASH"]),
    ] as [(&str, [&str; 3]); 7]
    {
        let setup = setup(text);
        let file = setup.write_config();
        let path = file.to_str().expect("UTF-8");
        for arguments in [&["--config", path][..], &["check", "--config", path]] {
            let finished = setup.run(arguments);
            assert_eq!(finished.code, Some(2), "{finished:?}");
            let line = finished.stderr.trim_end();
            assert_eq!(line.lines().count(), 1, "{finished:?}");
            assert!(line.contains("config.yaml:") && line.contains("proxy.users"), "{line}");
            for part in parts {
                assert!(line.contains(part), "{part} is not in {line}");
            }
            assert!(!line.contains("s3cret") && !line.contains("abcdefghij"), "{line}");
        }
        assert!(!setup.path("certs").exists(), "half-started");
    }
    let setup = Setup::new().with(json!({ "proxy": { "users": "nowhere" } }));
    let finished = setup.run_config();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("nowhere"), "{finished:?}");
    let printed = self::setup(USERS);
    printed.write_config();
    let printed = printed.run(&["check", "--config", "config.yaml"]).stdout;
    assert!(printed.contains("\n  users: \"") && !printed.contains("$2y$"), "{printed}");
}

#[test]
fn sighup_reads_the_file_again() {
    let setup = setup(USERS);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/x", Answer::status(200, "served"));
    let url = origin.url("/x");
    let ask = |credentials: &str| proxy.plain().get_with(&url, &[(NAME, credentials)]).status;
    assert_eq!((ask(ANN), ask(BEA), ask(DAN)), (200, 200, 407));
    // An open tunnel is not cut.
    let server = bare_server(names::OTHER, |mut tcp| {
        std::io::copy(&mut tcp.try_clone()?, &mut tcp).map(drop)
    });
    let authority = format!("{}:{}", names::OTHER, server.port());
    let mut tunnel = connect(&proxy, &authority, &[ANN]).expect("a tunnel");
    let without_ann: String = USERS
        .lines()
        .filter(|line| !line.starts_with("ann"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(setup.path("users"), without_ann + SLOW).expect("the users");
    assert_eq!(ask(ANN), 200, "nobody has said that it changed");
    proxy.signal("HUP");
    proxy.wait_log(&["proxy.users read"]);
    assert_eq!((ask(ANN), ask(BEA), ask(DAN)), (407, 200, 200));
    tunnel.write_all(b"x").expect("a byte");
    tunnel.read_exact(&mut [0; 1]).expect("its echo");
    // What is wrong changes nothing, and is said.
    std::fs::write(setup.path("users"), "ann:plain\n").expect("the users");
    proxy.signal("HUP");
    let line = proxy.wait_log(&["ERROR", "the configuration stays as it was", "proxy.users"]);
    assert!(line.contains("line 1") && !line.contains("plain"), "{line}");
    assert_eq!((ask(ANN), ask(BEA), ask(DAN)), (407, 200, 200));
}

#[test]
fn a_reload_takes_users_and_configuration_over_together_or_neither() {
    let mut setup = setup(USERS);
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    origin.get("/x", Answer::status(200, "served"));
    let url = origin.url("/x");
    let ask = |credentials: &str| proxy.plain().get_with(&url, &[(NAME, credentials)]).status;
    let fills = || proxy.admin("GET", "/api/config", &[]).json()["limits"]["max_fills"].clone();
    let reload = || proxy.admin("POST", "/api/config/reload", &[]);
    let file = setup.path("users");
    let users = |text: &str| std::fs::write(&file, text).expect("the users");
    let before = fills();

    // The users alone are wrong: nothing else that the configuration says counts either.
    users("ann:plain\n");
    setup.set(json!({ "limits": { "max_fills": 7 } }));
    setup.write_config();
    let refused = reload();
    let why = refused.text();
    assert!(
        refused.status == 400 && why.contains("proxy.users") && why.contains("line 1"),
        "{why}"
    );
    assert!(!why.contains("plain"), "{why}");
    assert_eq!((ask(ANN), fills()), (200, before.clone()));
    // The configuration alone is: the users stay as they were.
    users(SLOW);
    setup.set(json!({ "limits": { "max_fills": "many" } }));
    setup.write_config();
    assert_eq!(reload().status, 400);
    assert_eq!((ask(ANN), ask(DAN), fills()), (200, 407, before));
    setup.set(json!({ "limits": { "max_fills": 7 } }));
    setup.write_config();
    let done = reload();
    assert_eq!(done.status, 200, "{}", done.text());
    assert_eq!((ask(ANN), ask(DAN), fills()), (407, 200, json!(7)));
}

#[test]
fn real_clients_sign_in_by_the_url_of_the_proxy() {
    let setup = setup(USERS);
    let proxy = setup.start();
    let origin = Origin::https(names::OTHER);
    origin.get("/x", Answer::status(200, "served"));
    let ca = setup.path("upstream-ca.pem");
    let curl = |userinfo: &str, url: &str| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "--proxy", &format!("http://{userinfo}{}", proxy.address())])
            .args(["--noproxy", "", "--max-time", "60", "--cacert"])
            .arg(&ca)
            .args(["-w", "%{http_code} %{http_connect}", url])
            .output()
            .expect("curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(curl("ann:right-2y@", &origin.url("/x")), "served200 200");
    assert_eq!(curl("ann:wrong@", &origin.url("/x")), "000 407");
    assert_eq!(curl("", &origin.url("/x")), "000 407");
    let plain = Origin::http(names::REGISTRY);
    plain.get("/x", Answer::status(200, "served"));
    assert_eq!(curl("bea:right-2a@", &plain.url("/x")), "served200 000");
}
