//! What belongs to one connection stays on it (RFC 9110 7.6.1), every message says by `Via` that it
//! came through here (7.6.3), and a request that comes through a second time goes no further.

mod support;

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;
use support::answer::Answer;
use support::client::{Client, Payload, Response};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::raw::say;
use support::registry::blob_path;
use support::wire::Head;

/// Fields that a client or an upstream may send and that are for its neighbour alone.
const HOPS: &[(&str, &str)] = &[
    ("Connection", "keep-alive, X-Hop-1, ,x-hop-2"),
    ("Connection", "X-Hop-3"),
    ("X-Hop-1", "1"),
    ("X-HOP-2", "2"),
    ("x-hop-3", "3"),
    ("X-Hop-3", "3 again"),
    ("Keep-Alive", "timeout=5, max=9"),
    ("Proxy-Connection", "keep-alive"),
    ("Proxy-Authorization", "Basic eDp5"),
    ("Proxy-Authenticate", "Basic realm=\"x\""),
    ("Proxy-Authentication-Info", "nextnonce=\"1\""),
    ("TE", "trailers, deflate"),
    ("Trailer", "X-Trailer"),
    ("Upgrade", "websocket"),
    ("HTTP2-Settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
];

/// Fields that cross.
const ENDS: &[(&str, &str)] = &[
    ("X-Own", "a  b\tc"),
    ("X-Hop-4", "not named"),
    ("X-Twice", "1"),
    ("X-Twice", "2"),
    ("Warning", "199 - x"),
    ("Cache-Control", "max-age=60"),
];

#[track_caller]
fn assert_ends_alone(head: &Head, what: &str) {
    for (name, _) in HOPS.iter().filter(|(name, _)| *name != "Connection") {
        assert_eq!(head.field(name), None, "{what}: {name} in {head:#?}");
    }
    let connection = head.fields("Connection").join(", ").to_ascii_lowercase();
    assert!(!connection.contains("hop"), "{what}: {head:#?}");
    for (name, _) in ENDS {
        let sent: Vec<_> = ENDS.iter().filter(|(own, _)| own == name).map(|(_, v)| *v).collect();
        assert_eq!(head.fields(name), sent, "{what}: {head:#?}");
    }
}

fn with_all(mut answer: Answer) -> Answer {
    for (name, value) in HOPS.iter().chain(ENDS) {
        answer = answer.with(name, *value);
    }
    answer
}

#[test]
fn what_is_for_the_next_hop_crosses_in_neither_direction() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let fields: Vec<_> = HOPS.iter().chain(ENDS).copied().collect();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let body = fresh_body(1000);
        for status in [200, 201, 404, 503] {
            origin.get(&format!("/{status}"), with_all(Answer::status(status, body.clone())));
        }
        origin.get("/204", with_all(Answer::status(204, "").bodiless()));
        origin.get("/files/a", with_all(Answer::ok(&body)));
        let mut client = proxy.client(&origin);
        for path in ["/200", "/201", "/404", "/503", "/204", "/files/a", "/files/a"] {
            for method in ["HEAD", "GET"] {
                let url = origin.url(path);
                let response = client.request(method, &url, &fields, Payload::None);
                assert_eq!(response.whole, Ok(()));
                assert_ends_alone(&response.head, &format!("answer to {method} {path}"));
            }
        }
        assert_eq!(origin.count("GET", "/files/a"), 1, "the second was a hit");
        let sent = client.request("PUT", &origin.url("/put"), &fields, Payload::Chunked(&body));
        assert_eq!(sent.status, 404);
        for seen in origin.seen() {
            assert_ends_alone(&seen.head, &format!("{} {}", seen.method, seen.target));
            assert_eq!(seen.head.fields("Host"), [origin.authority()]);
        }
        assert_eq!(origin.only("/put").body_sha256, Some(body.sha256()));
    }
}

#[test]
fn what_frames_and_routes_a_message_stays_even_where_connection_names_it() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let body = fresh_body(5000);
        let names = "Host, Content-Length, Transfer-Encoding, Via, Connection";
        origin.on("PUT", "/x", Answer::ok(&body).with("Connection", names));
        let fields = [("Connection", names), ("Via", "1.1 before")];
        for payload in [Payload::Length(&body), Payload::Chunked(&body)] {
            let response =
                proxy.client(&origin).request("PUT", &origin.url("/x"), &fields, payload);
            response.assert_is(&body);
            let seen = origin.seen().pop().expect("a request");
            assert_eq!(seen.body_sha256, Some(body.sha256()));
            assert_eq!(seen.head.fields("Host"), [origin.authority()]);
        }
    }
}

#[test]
fn trailers_cross_but_for_those_that_are_for_the_next_hop_or_frame_a_message() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::SECOND);
    let answer = Answer::status(200, "ok")
        .with("Connection", "X-Hop")
        .trailer("X-Hop", "1")
        .trailer("Content-Length", "1")
        .trailer("Transfer-Encoding", "x")
        .trailer("Host", "evil.test")
        .trailer("Keep-Alive", "timeout=1")
        .trailer("Set-Cookie", "a=b")
        .trailer("X-Sum", "down");
    origin.on("POST", "/x", answer);
    let mut client = proxy.plain();
    let fields = [("Connection", "X-Hop"), ("Transfer-Encoding", "chunked")];
    client.start("POST", &origin.url("/x"), &fields);
    let trailers = "X-Hop: 1\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\nHost: evil.test\r\n\
                    Authorization: x\r\nUpgrade: x\r\nX-Sum: up\r\n";
    let body = format!("2\r\nhi\r\n0\r\n{trailers}\r\n");
    client.wire.send(body.as_bytes()).expect("sending");
    let head = client.head();
    let response = client.rest("POST", head);
    let sum = |value: &str| [("X-Sum".to_owned(), value.to_owned())];
    assert_eq!(response.trailers, sum("down"));
    assert_eq!(origin.only("/x").trailers, sum("up"));
}

/// Our name in `Via`, as an upstream sees it.
fn pseudonym(proxy: &Proxy) -> String {
    let origin = Origin::http(names::OTHER);
    proxy.get(&origin, "/");
    let via = origin.seen()[0].field("Via").expect("a Via").to_owned();
    via.strip_prefix("1.1 ").expect("the version").to_owned()
}

#[test]
fn every_message_says_that_it_came_through_here() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let own = format!("1.1 {}", pseudonym(&proxy));
    let old = own.replacen("1.1", "1.0", 1);
    let (body, before) = (fresh_body(1000), ("Via", "1.0 fred, 1.1 p.example (x)"));
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        for path in ["/x", "/files/a", "/files/b"] {
            origin.get(path, Answer::ok(&body).with("Via", "1.1 cdn").interim(&[103]));
        }
        origin.get("/204", Answer::status(204, "").bodiless());
        origin.get("/ws", Answer::upgrade("websocket"));
        origin.get("/old", Answer::raw("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        let via = |response: &Response| response.head.fields("Via").join(", ");
        let behind_cdn = format!("1.1 cdn, {own}");

        let response = proxy.get_with(&origin, "/x", &[before]);
        assert_eq!(via(&response), behind_cdn);
        assert_eq!(response.interim[0].fields("Via"), [own.as_str()]);
        assert_eq!(origin.only("/x").head.fields("Via"), [before.1, own.as_str()]);
        assert_eq!(via(&proxy.get(&origin, "/204")), own);
        assert_eq!(via(&proxy.get(&origin, "/old")), old);
        // Into the cache, out of it, a part of it, and nothing but its head.
        assert_eq!(via(&proxy.get_with(&origin, "/files/a", &[before])), behind_cdn);
        assert_eq!(origin.only("/files/a").head.fields("Via"), [before.1, own.as_str()]);
        let hit = proxy.get(&origin, "/files/a");
        hit.assert_hit();
        assert_eq!(via(&hit), own);
        let part = proxy.get_with(&origin, "/files/a", &[("Range", "bytes=1-2")]);
        assert_eq!((part.status, via(&part)), (206, own.clone()));
        let head =
            proxy.client(&origin).request("HEAD", &origin.url("/files/a"), &[], Payload::None);
        assert_eq!(via(&head), own);

        let mut client = proxy.client(&origin);
        client.start(
            "GET",
            &origin.url("/ws"),
            &[("Connection", "Upgrade"), ("Upgrade", "websocket")],
        );
        assert_eq!(client.head().fields("Via"), [own.as_str()]);
        assert_eq!(origin.only("/ws").head.fields("Via"), [own.as_str()]);

        // A client of HTTP/1.0.
        let root = if origin.is_tls() { String::new() } else { origin.url("") };
        let text = format!("GET {root}/files/b HTTP/1.0\r\nHost: {}\r\n\r\n", origin.authority());
        say(&mut proxy.client(&origin), "GET", text.as_bytes()).only().assert_is(&body);
        assert_eq!(origin.only("/files/b").head.fields("Via"), [old.as_str()]);
    }
}

#[test]
fn a_request_that_comes_back_is_told_of_the_loop() {
    let setup = Setup::new();
    let proxy = setup.start();
    let own = pseudonym(&proxy);
    let (plain, tls) = (Origin::http(names::SECOND), Origin::https(names::REGISTRY));
    let path = blob_path("lab/img", &fresh_body(10));
    for (via, looped) in [
        (format!("1.1 {own}"), true),
        (format!("1.0 fred, 1.1 {own} (x), 1.1 cdn"), true),
        (format!("HTTP/1.1\t{own}"), true),
        (format!("1.1  {}", own.to_ascii_uppercase()), true),
        (format!("1.1 other ({own})"), false),
        (format!("1.1 x{own}"), false),
        (format!("1.1 {own}:3128"), false),
    ] {
        let fields = [("Via", "1.1 first"), ("Via", via.as_str())];
        for origin in [&plain, &tls] {
            for (method, path) in [("GET", "/x"), ("GET", path.as_str()), ("POST", "/x")] {
                let before = origin.seen().len();
                let url = origin.url(path);
                let mut client = proxy.client(origin);
                let response = client.request(method, &url, &fields, Payload::None);
                match looped {
                    true => drop(response.assert_own_error(&[508])),
                    false => assert_eq!(response.status, 404, "{via}"),
                }
                assert_eq!(origin.seen().len(), before + usize::from(!looped), "{via}");
            }
        }
        let to = plain.authority();
        let text = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nVia: {via}\r\n\r\n");
        let mut client = proxy.plain();
        client.wire.send(text.as_bytes()).expect("sending");
        let head = client.head();
        match looped {
            true => drop(client.rest("CONNECT", head).assert_own_error(&[508])),
            false => assert!(head.line.contains(" 200 "), "{via}: {head:?}"),
        }
    }
}

/// A port that leads to whichever proxy it is told to.
#[derive(Clone)]
struct Door {
    address: SocketAddr,
    to: Arc<Mutex<Option<SocketAddr>>>,
    entered: Arc<Mutex<usize>>,
}

impl Door {
    fn new() -> Door {
        let (to, entered) = (Arc::new(Mutex::new(None)), Arc::new(Mutex::new(0)));
        let (inner, count) = (to.clone(), entered.clone());
        let address = bare_server("127.0.0.1", move |tcp| {
            *count.lock().unwrap() += 1;
            let to: Option<SocketAddr> = *inner.lock().unwrap();
            join(tcp, TcpStream::connect(to.expect("a proxy behind the door"))?)
        });
        Door { address, to, entered }
    }

    fn leads_to(&self, proxy: &Proxy) {
        *self.to.lock().unwrap() = Some(proxy.address());
    }

    fn entered(&self) -> usize {
        *self.entered.lock().unwrap()
    }
}

fn join(one: TcpStream, other: TcpStream) -> io::Result<()> {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Write);
        });
    };
    copy(one.try_clone()?, other.try_clone()?);
    copy(other, one);
    Ok(())
}

/// Asks for something by every way there is; each must end in an error that names the loop.
fn assert_loops_end(first: &Proxy, doors: &[&Door]) {
    let entered = |doors: &[&Door]| doors.iter().map(|door| door.entered()).collect::<Vec<_>>();
    let dead = format!("{}:5000", names::DEAD);
    for path in ["/x", "/v2/lab/img/manifests/latest", &blob_path("lab/img", &fresh_body(10))] {
        let response = first.plain().get(&format!("http://{dead}{path}"));
        assert_eq!(response.status, 508, "{response:?}");
        assert_eq!(response.json()["errors"][0]["code"], json!("LOOP"));
    }
    // A tunnel that is only relayed, and one that the first proxy opens.
    let refusal = Client::tunnel(first.address(), &dead).expect_err("the loop goes on");
    let message = refusal.assert_own_error(&[502]);
    assert!(message.contains("the parent proxy"), "{message}");
    let origin = Origin::https(names::REGISTRY);
    let message = first.get(&origin, "/x").assert_own_error(&[502]);
    assert!(message.contains("the parent proxy"), "{message}");
    assert_eq!(origin.connections(), 0);
    // Each round through a door was one: five requests, and a connection that may be used again.
    assert!(entered(doors).iter().all(|count| *count <= 5), "{:?}", entered(doors));
}

#[test]
fn a_proxy_that_is_its_own_parent_notices() {
    let door = Door::new();
    let parent = json!({ "upstream": { "proxy": format!("http://{}", door.address) } });
    let setup = Setup::new().with(parent);
    let proxy = setup.start();
    door.leads_to(&proxy);
    assert_loops_end(&proxy, &[&door]);
}

#[test]
fn two_proxies_that_are_each_others_parents_notice() {
    let doors = [Door::new(), Door::new()];
    let parent =
        |door: &Door| json!({ "upstream": { "proxy": format!("http://{}", door.address) } });
    let first = Setup::new().with(parent(&doors[1]));
    let second = Setup::new().with(parent(&doors[0])).with(json!({ "tls": { "intercept": [] } }));
    let (a, b) = (first.start(), second.start());
    doors[0].leads_to(&a);
    doors[1].leads_to(&b);
    assert_loops_end(&a, &[&doors[0], &doors[1]]);
}

#[test]
fn trace_is_refused_since_it_would_show_what_was_put_in() {
    let setup = Setup::new().with(json!({ "headers": {
        "*": { "set": { "Authorization": "Basic aW5qZWN0ZWQ=" } },
    } }));
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        origin.on("TRACE", "/x", Answer::status(200, "reached"));
        let mut client = proxy.client(&origin);
        let response = client.request("TRACE", &origin.url("/x"), &[], Payload::None);
        assert_eq!(response.status, 405, "{response:?}");
        let allow = response.field("Allow").expect("RFC 9110 15.5.6");
        assert!(!allow.contains("TRACE") && allow.contains("GET"), "{allow}");
        assert!(client.closes());
        assert_eq!(origin.connections(), 0);
    }
    assert_eq!(proxy.admin("TRACE", "/health", &[]).status, 405);
}

#[test]
fn options_goes_as_far_as_it_says() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        for method in ["OPTIONS", "GET"] {
            origin.on(method, "/x", Answer::status(200, "reached"));
        }
        let ask = |method, steps| {
            let fields = [("Max-Forwards", steps)];
            let url = origin.url("/x");
            let response = proxy.client(&origin).request(method, &url, &fields, Payload::None);
            (response.text(), response.field("Allow").map(str::to_owned))
        };
        let (text, allow) = ask("OPTIONS", "0");
        assert!(text.is_empty() && allow.is_some_and(|allow| allow.contains("CONNECT")));
        assert_eq!(origin.connections(), 0);
        for (method, sent, seen) in [
            ("OPTIONS", "1", "0"),
            ("OPTIONS", "10", "9"),
            ("OPTIONS", "many", "many"),
            ("OPTIONS", "-1", "-1"),
            ("GET", "0", "0"),
        ] {
            assert_eq!(ask(method, sent).0, "reached");
            let last = origin.seen().pop().expect("a request");
            assert_eq!(last.head.fields("Max-Forwards"), [seen], "{method} {sent}");
        }
    }
}
