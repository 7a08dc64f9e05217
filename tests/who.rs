//! Who may come, and how much of it everybody gets: each limit with its own counter.

mod support;

use std::io::Read;
use std::net::Shutdown;

use serde_json::{Value, json};
use support::answer::{Answer, Gate};
use support::client::{Client, dial, dial_from};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;
use support::wait_until;

fn limited(limits: Value) -> Setup {
    Setup::new().with(json!({ "limits": limits }))
}

/// A client at this address of the machine, with its connection accepted.
fn client_at(proxy: &Proxy, source: &str) -> Client {
    let mut client = Client::on(dial_from(source, proxy.address()));
    assert_eq!(own_page(&mut client), Some(200));
    client
}

/// The status of the proxy's own page on this connection; `None` where it is closed.
fn own_page(client: &mut Client) -> Option<u16> {
    client.wire.send(b"GET / HTTP/1.1\r\nHost: proxy\r\n\r\n").ok()?;
    let head = client.try_head().ok()??;
    Some(client.rest("GET", head).status)
}

#[test]
fn a_client_has_so_many_connections_and_others_have_theirs() {
    let setup = limited(json!({ "max_connections_per_client": 3 }));
    let proxy = setup.start();
    let mut open: Vec<Client> = (0..3).map(|_| client_at(&proxy, "127.0.0.50")).collect();
    for n in 1..=2 {
        let mut further = Client::on(dial_from("127.0.0.50", proxy.address()));
        assert_eq!(own_page(&mut further), None);
        proxy.wait_stat("limited_per_client", n);
    }
    client_at(&proxy, "127.0.0.51");
    open.pop();
    wait_until("the place that was given back", || {
        own_page(&mut Client::on(dial_from("127.0.0.50", proxy.address())))
    });
    for client in &mut open {
        assert_eq!(own_page(client), Some(200), "those that are served go on");
    }
    assert_eq!(proxy.stat("overflowed"), 0);
    let output = proxy.stop();
    let told = output.matches("limits.max_connections_per_client is reached").count();
    assert_eq!(told, 1, "the log says so once: {output}");
}

#[test]
fn a_tunnel_counts_as_its_clients_connection_to_its_end() {
    let setup = limited(json!({ "max_connections_per_client": 1 }));
    let proxy = setup.start();
    let server = bare_server(names::OTHER, |mut tcp| tcp.read_to_end(&mut Vec::new()).map(drop));
    let tcp = dial_from("127.0.0.52", proxy.address());
    let authority = format!("{}:{}", names::OTHER, server.port());
    let tunnel = Client::tunnel_on(tcp, &authority).expect("an answer").expect("a tunnel");
    let mut further = Client::on(dial_from("127.0.0.52", proxy.address()));
    assert_eq!(own_page(&mut further), None);
    assert_eq!(proxy.stat("limited_per_client"), 1);
    drop(tunnel);
    wait_until("the place that was given back", || {
        own_page(&mut Client::on(dial_from("127.0.0.52", proxy.address())))
    });
}

#[test]
fn there_are_so_many_connections_in_all() {
    let setup = limited(json!({ "max_connections": 3 }));
    let proxy = setup.start();
    let sources = ["127.0.0.53", "127.0.0.54", "127.0.0.55"];
    let mut open: Vec<Client> = sources.iter().map(|source| client_at(&proxy, source)).collect();
    let mut further = Client::on(dial_from("127.0.0.56", proxy.address()));
    assert_eq!(own_page(&mut further), None);
    proxy.wait_stat("overflowed", 1);
    assert_eq!(proxy.stat("limited_per_client"), 0);
    open.pop();
    wait_until("a place", || own_page(&mut Client::on(dial_from("127.0.0.56", proxy.address()))));
}

#[test]
fn the_admin_port_has_so_many_connections() {
    let setup = limited(json!({ "max_admin_connections": 2, "header_timeout": "60s" }));
    let proxy = setup.start();
    let address = proxy.admin_address();
    let admin = || Client::direct(address, &address.to_string());
    let mut open = [admin(), admin()];
    for client in &mut open {
        assert_eq!(client.get("/health").status, 200);
    }
    let mut further = admin();
    assert!(further.try_get("/health").is_err(), "an answer beyond the limit");
    let stats = open[0].get("/api/cache/stats").json();
    assert_eq!(stats["limited_admin"], json!(1), "{stats}");
    let [first, _second] = open;
    drop(first);
    wait_until("a place", || admin().try_get("/health").ok());
}

#[test]
fn a_head_has_so_much_time() {
    let setup = limited(json!({ "header_timeout": "1s" }));
    let proxy = setup.start();
    let mut client = proxy.plain();
    client.wire.send(b"GET http://registry.test/ HTTP/1.1\r\nHost: regis").expect("half a head");
    let head = client.head();
    let response = client.rest("GET", head);
    response.assert_own_error(&[408]);
    assert!(client.closes());
    assert_eq!(proxy.stat("limited_header_time"), 1);
    // The same inside a tunnel, where the TLS of the client comes first.
    let origin = Origin::https(names::REGISTRY);
    let mut tcp = Client::tunnel(proxy.address(), &origin.authority()).expect("a tunnel");
    assert_eq!(tcp.read(&mut [0; 1]).unwrap_or(0), 0, "closed");
    proxy.wait_stat("limited_header_time", 2);
    let mut client = proxy.client(&origin);
    client.wire.send(b"GET /v2/ HTTP/1.1\r\nHo").expect("half a head");
    let head = client.head();
    client.rest("GET", head).assert_own_error(&[408]);
    proxy.wait_stat("limited_header_time", 3);
    assert_eq!(proxy.stat("limited_idle_time"), 0);
}

#[test]
fn a_silent_client_is_let_go() {
    let setup = limited(json!({ "idle_timeout": "1s" }));
    let proxy = setup.start();
    let origin = Origin::http(names::REGISTRY);
    // Before and between requests.
    let mut fresh = dial(proxy.address(), None);
    assert_eq!(fresh.read(&mut [0; 1]).unwrap_or(0), 0, "closed");
    proxy.wait_stat("limited_idle_time", 1);
    let mut client = proxy.plain();
    assert_eq!(own_page(&mut client), Some(200));
    assert!(client.closes());
    proxy.wait_stat("limited_idle_time", 2);
    // In the middle of what it sends.
    origin.on("PUT", "/up", Answer::status(201, ""));
    let mut client = proxy.plain();
    client.start("PUT", &origin.url("/up"), &[("Content-Length", "1000")]);
    client.wire.send(b"only this").expect("a piece");
    assert!(client.closes());
    proxy.wait_stat("limited_idle_time", 3);
    // And of what it is sent, past the cache and from it.
    let body = fresh_body(30_000_000);
    let stored = blob_path("lab/img", &body);
    for path in ["/passed", &stored] {
        origin.get(path, Answer::ok(&body));
        let mut client = Client::narrow(proxy.address(), 8 << 10);
        client.start("GET", &origin.url(path), &[]);
        let before = if path == "/passed" { 3 } else { 4 };
        proxy.wait_stat("limited_idle_time", before + 1);
    }
    assert_eq!(proxy.stat("limited_header_time"), 0);
}

#[test]
fn an_idle_tunnel_is_counted_as_one() {
    let setup = limited(json!({ "idle_timeout": "1s" }));
    let proxy = setup.start();
    let server = bare_server(names::OTHER, |mut tcp| tcp.read_to_end(&mut Vec::new()).map(drop));
    let authority = format!("{}:{}", names::OTHER, server.port());
    let mut tunnel = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    assert!(matches!(tunnel.read(&mut [0; 1]), Ok(0) | Err(_)));
    proxy.wait_stat("limited_idle_time", 1);
    // One that ends by itself is none.
    let tunnel = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    tunnel.shutdown(Shutdown::Both).expect("its end");
    proxy.wait_stat("connections", 0);
    assert_eq!(proxy.stat("limited_idle_time"), 1);
}

#[test]
fn a_connection_carries_so_many_requests_and_says_which_is_the_last() {
    let setup = limited(json!({ "max_requests_per_connection": 3 }));
    let proxy = setup.start();
    let mut ended = 0;
    for origin in [Origin::http(names::REGISTRY), Origin::https(names::SECOND)] {
        let body = fresh_body(200_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        origin.get("/passed", Answer::status(200, "ok"));
        for last in [&path[..], "/passed"] {
            let mut client = proxy.client(&origin);
            for _ in 0..2 {
                let response = client.get(&origin.url(&path));
                response.assert_is(&body);
                assert_eq!(response.field("Connection"), None);
            }
            let response = client.get(&origin.url(last));
            assert_eq!((response.status, response.whole.clone()), (200, Ok(())));
            assert_eq!(response.field("Connection"), Some("close"), "{last}");
            assert!(client.closes());
            ended += 1;
            assert_eq!(proxy.stat("limited_requests"), ended);
        }
    }
    // Whoever asks for the end himself has not been cut off.
    let origin = Origin::http(names::REGISTRY);
    origin.get("/passed", Answer::status(200, "ok"));
    let mut client = proxy.plain();
    client.get(&origin.url("/passed"));
    client.get(&origin.url("/passed"));
    client.get_with(&origin.url("/passed"), &[("Connection", "close")]);
    assert_eq!(proxy.stat("limited_requests"), ended);
}

#[test]
fn beyond_so_many_fills_candidates_pass_uncached() {
    let setup = limited(json!({ "max_fills": 2 }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let gate = Gate::new();
    let serve = |gate: Option<&Gate>| {
        let body = fresh_body(600_000);
        let path = blob_path("lab/img", &body);
        let answer = Answer::ok(&body);
        origin.get(&path, gate.map_or(answer.clone(), |gate| answer.gate_at(300_000, gate)));
        (body, path)
    };
    let begin = |path: &str| {
        let mut client = proxy.client(&origin);
        client.begin(path).read_to(&mut client, 100_000);
        client
    };
    let (first, second) = (serve(Some(&gate)), serve(Some(&gate)));
    // Fills go on without their clients, and count for as long as they do.
    drop([begin(&first.1), begin(&second.1)]);
    let (body, path) = serve(None);
    for n in 1..=2 {
        let response = proxy.get(&origin, &path);
        response.assert_is(&body);
        response.assert_not_hit();
        assert_eq!(proxy.stat("limited_fills"), n);
    }
    proxy.wait_log(&["cache miss", &path, "max-fills"]);
    // Those that are not to be kept any more are still under way.
    proxy.admin("DELETE", "/api/cache", &[]);
    proxy.get(&origin, &path).assert_is(&body);
    assert_eq!(proxy.stat("limited_fills"), 3);
    assert_eq!((proxy.stat("stores"), origin.count("GET", &path)), (0, 3));
    gate.open();
    wait_until("room for a fill", || {
        let (body, path) = serve(None);
        proxy.get(&origin, &path).assert_is(&body);
        (proxy.get(&origin, &path).field("X-Cache") == Some("HIT")).then_some(())
    });
    proxy.get(&origin, &path).assert_not_hit();
    proxy.get(&origin, &path).assert_hit();
}

#[test]
fn a_fill_of_what_is_stored_is_bounded_too() {
    let setup = limited(json!({ "max_fills": 1 })).with(json!({ "cache": { "access": "verify" } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let gate = Gate::new();
    let (slow, stored) = (fresh_body(600_000), fresh_body(5_000));
    let [slow_path, path] = [&slow, &stored].map(|body| blob_path("lab/img", body));
    origin.get(&slow_path, Answer::ok(&slow).gate_at(300_000, &gate));
    origin.get(&path, Answer::ok(&stored));
    let mine = [("Authorization", "Bearer mine")];
    proxy.get_with(&origin, &path, &mine).assert_is(&stored);
    let mut client = proxy.client(&origin);
    client.begin(&slow_path).read_to(&mut client, 100_000);
    // Who may have it is not known, so it would be fetched into a new entry.
    origin.on("HEAD", &path, Answer::status(405, ""));
    let other = [("Authorization", "Bearer others")];
    proxy.get_with(&origin, &path, &other).assert_is(&stored);
    assert_eq!(proxy.stat("limited_fills"), 1);
    gate.open();
}

#[test]
fn every_limit_has_its_name_and_its_counter() {
    let setup = Setup::new();
    let file = setup.path("empty.yaml");
    std::fs::write(&file, "").expect("the file");
    let printed = setup.run(&["check", "--config", "empty.yaml"]).stdout;
    let limits = printed.split("\nlimits:\n").nth(1).expect("the limits");
    let proxy = setup.start();
    let stats = proxy.stats();
    for (limit, counter) in [
        ("max_connections: 20000", "overflowed"),
        ("max_connections_per_client: 2000", "limited_per_client"),
        ("max_requests_per_connection: 100000", "limited_requests"),
        ("max_admin_connections: 64", "limited_admin"),
        ("max_fills: 512", "limited_fills"),
        ("header_timeout: 15s", "limited_header_time"),
        ("idle_timeout: 2m", "limited_idle_time"),
    ] {
        assert!(limits.contains(limit), "{limit} in {limits}");
        assert_eq!(stats[counter], json!(0), "{counter} in {stats}");
    }
}

#[test]
fn a_fill_that_nobody_reads_is_not_resumed_when_it_stalls() {
    let limits = limited(json!({ "max_fills": 1 }));
    let setup = limits.with(json!({ "upstream": { "read_timeout": "2s", "retries": 5 } }));
    let proxy = setup.start();
    let (len, stall) = (600_000, 300_000);
    // (bytes of the body, where it stalls, how many of them the client takes before it leaves)
    for (len, stall, taken) in [(len, stall, 100_000), (len, stall, stall), (5_000, 1_000, 0)] {
        for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
            let body = fresh_body(len);
            let path = blob_path("lab/img", &body);
            let gate = Gate::new();
            origin.get(&path, Answer::ok(&body).ranges().gate_at(stall, &gate));
            let mut client = proxy.client(&origin);
            client.start("GET", &origin.url(&path), &[]);
            gate.wait_arrivals(1);
            if taken > 0 {
                client.transfer("GET").read_to(&mut client, taken);
            }
            drop(client);
            wait_until("room for a fill", || (proxy.stat("fills") == 0).then_some(()));
            assert_eq!(origin.count("GET", &path), 1, "{taken} of {len}");
            gate.open();
            proxy.get(&origin, &path).assert_is(&body);
            proxy.get(&origin, &path).assert_hit();
        }
    }
}
