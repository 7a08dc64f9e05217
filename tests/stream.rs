//! What passes through as it comes: interim answers, trailers, upgrades, answers in pieces, clients
//! of HTTP/1.0, answers without bodies, and connections that end.

mod support;

use std::io::{BufRead, BufReader, Read, Write};

use serde_json::json;
use support::answer::{Answer, Ending, Gate};
use support::body::Body;
use support::client::{Client, Payload, Response, status};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;

/// Runs a test body once over TLS and once in plain.
fn both(test: impl Fn(&Proxy, &Origin)) {
    let setup =
        Setup::new().with(json!({ "cache": { "patterns": ["^/files/", "^/v2/.*/blobs/"] } }));
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        test(&proxy, &origin);
    }
}

/// Sends a request's head as HTTP/1.0 has it, without Host.
fn start_1_0(client: &mut Client, origin: &Origin, method: &str, path: &str, fields: &str) {
    let target = if origin.is_tls() { path.to_owned() } else { origin.url(path) };
    let head = format!("{method} {target} HTTP/1.0\r\n{fields}\r\n");
    client.wire.send(head.as_bytes()).expect("sending a head");
}

/// A GET as HTTP/1.0 has it, and its answer.
fn get_1_0(client: &mut Client, origin: &Origin, path: &str, fields: &str) -> Response {
    start_1_0(client, origin, "GET", path, fields);
    let head = client.head();
    client.rest("GET", head)
}

/// Reads exactly `expected`, and no byte further.
#[track_caller]
fn assert_next(client: &mut Client, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    let mut at = 0;
    while at < got.len() {
        let count = client.wire.read_some(&mut got[at..]).expect("reading");
        assert_ne!(count, 0, "ended after {at} of {} bytes", got.len());
        at += count;
    }
    assert_eq!(got, expected);
}

#[test]
fn a_client_that_sent_too_much_still_gets_the_whole_last_answer() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::SECOND);
    let body = fresh_body(300_000);
    origin.get("/last", Answer::ok(&body));
    // What does not fit its window stays with the proxy's system until it reads.
    let mut client = Client::narrow(proxy.address(), 4096);
    client.start("GET", &origin.url("/last"), &[("Connection", "close")]);
    client.wire.send(b"and more that nobody asked for").expect("sending");
    proxy.wait_stat("bytes_to_clients", body.len());
    proxy.wait_stat("connections", 0);
    let head = client.head();
    client.rest("GET", head).assert_is(&body);
}

#[test]
fn interim_answers_go_to_clients_of_1_1_at_once_and_to_no_client_of_1_0() {
    both(|proxy, origin| {
        let gate = Gate::new();
        let answer = Answer::status(200, "done").interim(&[102, 103]);
        origin.get("/hints", answer.clone().gate_final(&gate));
        let mut client = proxy.client(origin);
        client.start("GET", &origin.url("/hints"), &[]);
        for expected in [102, 103] {
            let head = client.head();
            assert_eq!((status(&head), head.field("X-Interim")), (expected, Some("yes")));
        }
        gate.open();
        let head = client.head();
        assert_eq!(client.rest("GET", head).text(), "done");

        let mut client = proxy.client(origin);
        let response = get_1_0(&mut client, origin, "/hints", "Connection: keep-alive\r\n");
        assert_eq!((response.status, response.interim.len()), (200, 0), "{response:?}");
        // It can't wait for what HTTP/1.0 has not, and is not asked upstream to.
        origin.on("PUT", "/put", answer);
        let fields = "Content-Length: 4\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n";
        start_1_0(&mut client, origin, "PUT", "/put", fields);
        client.wire.send(b"body").expect("the body");
        let head = client.head();
        assert_eq!(status(&head), 200);
        assert_eq!(client.rest("PUT", head).text(), "done");
        let seen = origin.only("/put");
        assert_eq!((seen.body_len, seen.field("Expect")), (4, None));
    });
}

#[test]
fn a_client_that_waits_for_100_gets_the_refusal_instead() {
    both(|proxy, origin| {
        for refusal in [401, 413, 417] {
            let path = format!("/refused/{refusal}");
            origin.on("PUT", &path, Answer::status(refusal, "no").early());
            let mut client = proxy.client(origin);
            let fields = [("Content-Length", "1000000"), ("Expect", "100-continue")];
            client.start("PUT", &origin.url(&path), &fields);
            let head = client.head();
            let response = client.rest("PUT", head);
            assert_eq!((response.status, response.text().as_str()), (refusal, "no"));
            assert!(response.interim.is_empty(), "{response:?}");
            assert_eq!(origin.only(&path).field("Expect"), Some("100-continue"));
            // Where the body would go is not known: no further request.
            assert_eq!(response.field("Connection"), Some("close"));
            assert!(client.closes());
        }
    });
}

#[test]
fn an_early_answer_that_welcomes_the_body_does_not_stop_it() {
    both(|proxy, origin| {
        for chunked in [false, true] {
            let path = format!("/welcome/{chunked}");
            let (body, told) = (fresh_body(3_000_000), fresh_body(1_000_000));
            origin.on("PUT", &path, Answer::status(201, &told).early_and_reads_on());
            let mut client = proxy.client(origin);
            let length = body.len().to_string();
            let framing = match chunked {
                true => ("Transfer-Encoding", "chunked"),
                false => ("Content-Length", length.as_str()),
            };
            client.start("PUT", &origin.url(&path), &[framing]);
            client.send_piece(&body.slice(0, 1_000), chunked).expect("a piece");
            let head = client.head();
            let answer = client.rest("PUT", head);
            assert_eq!((answer.status, &answer.sha256), (201, &told.sha256()));
            for (from, to) in [(1_000, 2_000_000), (2_000_000, 3_000_000)] {
                client.send_piece(&body.slice(from, to), chunked).expect("another piece");
                origin.wait(&path, |seen| seen.body_len >= to);
            }
            if chunked {
                client.wire.send(b"0\r\n\r\n").expect("the last chunk");
            }
            let seen = origin.wait(&path, |seen| seen.body_sha256.is_some());
            assert_eq!(seen.body_sha256.as_deref(), Some(body.sha256().as_str()));
            assert_eq!(client.get(&origin.url("/none")).status, 404, "and another request");
        }
    });
}

#[test]
fn a_body_cut_behind_an_early_answer_never_looks_whole_upstream() {
    both(|proxy, origin| {
        origin.on("PUT", "/cut", Answer::status(200, "early").early_and_reads_on());
        let mut client = proxy.client(origin);
        client.start("PUT", &origin.url("/cut"), &[("Transfer-Encoding", "chunked")]);
        client.send_piece(&[7; 60_000], true).expect("a piece");
        let head = client.head();
        assert_eq!(client.rest("PUT", head).text(), "early");
        origin.wait("/cut", |seen| seen.body_len == 60_000);
        client.finish_sending();
        assert!(client.closes());
        proxy.wait_stat("connections", 0);
        assert_eq!(origin.only("/cut").body_sha256, None);
    });
}

#[test]
fn an_answer_that_begins_in_mid_upload_does_not_hold_the_upload_up() {
    let setup = Setup::new();
    let proxy = setup.start();
    let server = bare_server(names::OTHER, |tcp| {
        let mut from = BufReader::new(tcp.try_clone()?);
        let mut line = String::new();
        while from.read_line(&mut line)? > 2 {
            line.clear();
        }
        (&tcp).write_all(b"HTTP/1.1 20")?;
        let got = std::io::copy(&mut from.take(20_000_000), &mut std::io::sink())?;
        (&tcp).write_all(b"1 Created\r\nContent-Length: 8\r\n\r\n")?;
        (&tcp).write_all(got.to_string().as_bytes())
    });
    let mut client = proxy.plain();
    let body = fresh_body(20_000_000);
    let url = format!("http://{}:{}/up", names::OTHER, server.port());
    let response = client.request("PUT", &url, &[], Payload::Length(&body));
    assert_eq!((response.status, response.text().as_str()), (201, "20000000"));
}

#[test]
fn trailers_pass_both_ways() {
    both(|proxy, origin| {
        let body = fresh_body(50_000);
        let answer = Answer::ok(&body)
            .with("Trailer", "X-Checksum")
            .trailer("X-Checksum", "abc")
            .trailer("Content-Length", "7")
            .trailer("X-More", "d e");
        origin.on("PUT", "/t", answer);
        let mut client = proxy.client(origin);
        for _ in 0..2 {
            client.start("PUT", &origin.url("/t"), &[("Transfer-Encoding", "chunked")]);
            let sent = b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nTransfer-Encoding: x\r\nX-Sum: 2\r\n\r\n";
            client.wire.send(sent).expect("the body");
            let head = client.head();
            let response = client.rest("PUT", head);
            response.assert_is(&body);
            let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            assert_eq!(response.trailers, [pair("X-Checksum", "abc"), pair("X-More", "d e")]);
            let seen = origin.seen().pop().expect("a request");
            assert_eq!(seen.trailers, [pair("X-Sum", "1"), pair("X-Sum", "2")]);
        }
        // HTTP/1.0 has no place for them.
        let mut client = proxy.client(origin);
        start_1_0(&mut client, origin, "PUT", "/t", "Content-Length: 0\r\n");
        let head = client.head();
        client.rest("PUT", head).assert_is(&body);
    });
}

#[test]
fn each_piece_of_a_slow_answer_reaches_the_client_before_the_next_is_sent() {
    both(|proxy, origin| {
        type Shape = fn(Answer) -> Answer;
        let shapes: [Shape; 3] = [|a| a, Answer::chunked, Answer::until_close];
        for (number, shape) in shapes.into_iter().enumerate() {
            for old in [false, true] {
                let body = fresh_body(300_000);
                let stops = [0, 1, 2, 100_000, 299_999];
                let gates = [(); 5].map(|()| Gate::new());
                let mut answer = shape(Answer::ok(&body));
                for (at, gate) in stops.into_iter().zip(&gates) {
                    answer = answer.gate_at(at, gate);
                }
                let path = format!("/poll/{number}/{old}");
                origin.get(&path, answer);
                let mut client = proxy.client(origin);
                let mut transfer = match old {
                    true => {
                        start_1_0(&mut client, origin, "GET", &path, "");
                        client.transfer("GET")
                    }
                    false => client.begin(&origin.url(&path)),
                };
                assert_eq!(transfer.status(), 200);
                for (at, gate) in stops.into_iter().zip(&gates) {
                    transfer.read_to(&mut client, at);
                    gate.open();
                }
                transfer.finish(&mut client).assert_is(&body);
            }
        }
    });
}

#[test]
fn bytes_right_behind_an_upgrade_and_its_answer_are_not_lost() {
    both(|proxy, origin| {
        let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                        Upgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\nthe server's first";
        origin.get("/ws", Answer::raw(switched).echoes());
        let (authority, target) = match origin.is_tls() {
            true => (origin.authority(), "/ws".to_owned()),
            false => (origin.authority(), origin.url("/ws")),
        };
        let early = fresh_body(100_000).to_vec();
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: {authority}\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
        );
        let mut client = proxy.client(origin);
        client.wire.send(&[head.as_bytes(), &early].concat()).expect("all at once");
        let head = client.head();
        assert_eq!((status(&head), head.field("Upgrade")), (101, Some("websocket")), "{head:?}");
        assert_eq!(head.field("Sec-WebSocket-Accept"), Some("y"));
        assert_next(&mut client, b"the server's first");
        assert_next(&mut client, &early);
        client.wire.send(b"and on").expect("more");
        assert_next(&mut client, b"and on");
        // Its end is passed on, and the server's end comes back.
        match &mut client.wire.stream {
            support::wire::Stream::Client(tls) => tls.conn.send_close_notify(),
            _ => client.finish_sending(),
        }
        let _ = client.wire.stream.flush();
        assert!(client.closes());
    });
}

#[test]
fn an_upgrade_that_is_refused_leaves_the_connection_usable() {
    both(|proxy, origin| {
        origin.get("/ws", Answer::status(426, "not here").with("Upgrade", "other"));
        let mut client = proxy.client(origin);
        for _ in 0..2 {
            let fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
            let response = client.get_with(&origin.url("/ws"), &fields);
            assert_eq!((response.status, response.text().as_str()), (426, "not here"));
        }
        // Nobody asked for it: what comes then is no answer to anybody.
        origin.get("/plain", Answer::upgrade("websocket"));
        client.get(&origin.url("/plain")).assert_own_error(&[502, 503]);
    });
}

#[test]
fn clients_of_http_1_0_get_every_shape_of_answer() {
    both(|proxy, origin| {
        type Shape = fn(Answer) -> Answer;
        let shapes: [Shape; 3] = [|a| a, Answer::chunked, Answer::until_close];
        for (number, shape) in shapes.into_iter().enumerate() {
            for place in ["pass", "files"] {
                let body = fresh_body(200_000);
                let path = format!("/{place}/{number}");
                origin.get(&path, shape(Answer::ok(&body)));
                // In plain nothing tells the end of a connection from a cut: not stored.
                let stored = place == "files" && (number < 2 || origin.is_tls());
                for turn in 0..2 {
                    let known = number == 0 || turn == 1 && stored;
                    let mut client = proxy.client(origin);
                    let response = get_1_0(&mut client, origin, &path, "");
                    response.assert_is(&body);
                    assert_eq!(response.field("Transfer-Encoding"), None);
                    assert_eq!(response.field("Content-Length").is_some(), known);
                    assert!(client.closes());
                }
                // It may ask to stay, which it can only where the length is known.
                let known = number == 0 || stored;
                let mut client = proxy.client(origin);
                let stay = "Connection: keep-alive\r\n";
                for _ in 0..if known { 3 } else { 1 } {
                    let response = get_1_0(&mut client, origin, &path, stay);
                    response.assert_is(&body);
                    let said = response.field("Connection").map(str::to_ascii_lowercase);
                    assert_eq!(said.as_deref() == Some("keep-alive"), known, "{response:?}");
                }
                assert!(known || client.closes());
            }
        }
    });
}

#[test]
fn a_broken_answer_never_ends_in_good_order_for_a_client_of_http_1_0() {
    let setup = Setup::new().with(json!({
        "cache": { "patterns": ["^/files/", "^/v2/.*/blobs/"] }, "upstream": { "retries": 0 },
    }));
    let proxy = setup.start();
    let origin = Origin::http(names::SECOND);
    for how in [Ending::Cut, Ending::Reset] {
        for place in ["pass", "files", "v2/x/blobs"] {
            let body = fresh_body(300_000);
            let path = match place {
                "v2/x/blobs" => blob_path("x", &body),
                place => format!("/{place}/{}", body.sha256()),
            };
            origin.get(&path, Answer::ok(&body).chunked().ends_at(200_000, how));
            let response = get_1_0(&mut proxy.plain(), &origin, &path, "");
            assert_eq!(response.field("Content-Length"), None);
            assert!(response.whole.is_err(), "{place} looks whole with {} bytes", response.len);
        }
    }
}

#[test]
fn answers_of_old_servers_that_end_with_the_connection_arrive_whole() {
    both(|proxy, origin| {
        let body = fresh_body(100_000);
        for head in [
            "HTTP/1.0 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n",
            "HTTP/1.0 200 OK\r\nContent-Length: 100000\r\nConnection: keep-alive\r\n\r\n",
            "HTTP/1.1 200\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n",
        ] {
            let answer = [head.as_bytes(), &body.to_vec()].concat();
            let path = format!("/old/{}", Body::bytes(head).sha256());
            origin.get(&path, Answer::raw(answer));
            // Without its closing alert a TLS stream may have been cut off by anybody.
            let whole = !origin.is_tls() || head.contains("Content-Length");
            let mut client = proxy.client(origin);
            for _ in 0..2 {
                let response = client.get(&origin.url(&path));
                assert_eq!(response.head.line.split(' ').next(), Some("HTTP/1.1"));
                if whole {
                    response.assert_is(&body);
                } else {
                    assert!(response.whole.is_err(), "{head}");
                    client = proxy.client(origin);
                }
            }
        }
    });
}

#[test]
fn answers_without_a_body_have_none_whatever_they_say() {
    let setup = Setup::new().with(json!({ "proxy": { "workers": 1 } }));
    let proxy = setup.start();
    // What is too much comes with the head: a moment later the connection may be in use again.
    let sender = |status: &str, framing: &str| {
        Answer::raw(format!("HTTP/1.1 {status}\r\n{framing}")).stays()
    };
    let (sized, chunked) = (
        "Content-Length: 9\r\n\r\nsurprise!",
        "Transfer-Encoding: chunked\r\n\r\n9\r\nsurprise!\r\n0\r\n\r\n",
    );
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        let mut client = proxy.client(&origin);
        origin.get("/204", Answer::status(204, "").bodiless());
        origin.get("/204/liar", Answer::status(204, "").bodiless().with("Content-Length", "9"));
        origin.get("/204/sender", sender("204 No Content", sized));
        origin.get("/204/chunked", sender("204 No Content", chunked));
        origin.get("/304", Answer::status(304, "").bodiless().with("ETag", "\"a\""));
        origin.get("/304/told", Answer::status(304, "").bodiless().with("Content-Length", "9"));
        origin.get("/304/sender", sender("304 Not Modified", sized));
        origin.get("/head", Answer::status(200, "a body").with("ETag", "\"a\""));
        origin.on("HEAD", "/head/sender", sender("200 OK", sized));
        origin.on("HEAD", "/head/chunked", Answer::status(200, "").chunked());
        for (method, path, expected, length) in [
            ("GET", "/204", 204, None),
            ("GET", "/204/liar", 204, None),
            ("GET", "/204/sender", 204, None),
            ("GET", "/204/chunked", 204, None),
            ("GET", "/304", 304, None),
            ("GET", "/304/told", 304, Some("9")),
            ("GET", "/304/sender", 304, Some("9")),
            ("HEAD", "/head", 200, Some("6")),
            ("HEAD", "/head/sender", 200, Some("9")),
            ("HEAD", "/head/chunked", 200, None),
        ] {
            for _ in 0..2 {
                let response = client.request(method, &origin.url(path), &[], Payload::None);
                assert_eq!((response.status, response.len), (expected, 0), "{path}");
                assert_eq!(response.field("Content-Length"), length, "{path}");
                assert_eq!(response.field("Transfer-Encoding"), None, "{path}");
                // The next answer is the next request's, here and upstream.
                assert_eq!(client.get(&origin.url("/head")).text(), "a body", "after {path}");
            }
        }
        let before = origin.connections();
        for path in ["/204", "/304/told", "/head"] {
            client.get(&origin.url(path));
        }
        assert_eq!(origin.connections(), before, "good connections are kept");
        client.get(&origin.url("/204/liar"));
        client.get(&origin.url("/head"));
        assert_eq!(origin.connections(), before + 1, "one that lied is not");
    }
}

#[test]
fn memory_stays_flat_while_a_gigabyte_is_pushed() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.on("PATCH", "/v2/up", Answer::status(202, ""));
    let mut client = proxy.client(&origin);
    let piece = fresh_body(1 << 20).to_vec();
    let mut push = |pieces: u64, chunked: bool| {
        let length = (pieces << 20).to_string();
        let framing = match chunked {
            true => ("Transfer-Encoding", "chunked"),
            false => ("Content-Length", length.as_str()),
        };
        client.start("PATCH", &origin.url("/v2/up"), &[framing]);
        for _ in 0..pieces {
            client.send_piece(&piece, chunked).expect("a piece");
        }
        if chunked {
            client.wire.send(b"0\r\n\r\n").expect("the last chunk");
        }
        let head = client.head();
        assert_eq!(client.rest("PATCH", head).status, 202);
        let seen = origin.seen().pop().expect("a request");
        assert_eq!((seen.body_len, seen.body_sha256.is_some()), (pieces << 20, true));
    };
    push(32, true);
    let before = proxy.status_number("VmRSS:");
    push(1024, true);
    push(1024, false);
    let peak = proxy.status_number("VmHWM:");
    assert!(peak < before + 32 * 1024, "{before} KiB grew to {peak} KiB");
}
