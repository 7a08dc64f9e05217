//! CONNECT: interception with leaves of our CA, and the relay that leaves everything else alone.

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use support::answer::Answer;
use support::body::Body;
use support::certs::{Authority, Trust, names_host, validity};
use support::client::{Client, Payload, dial, start_tls};
use support::names;
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::Setup;
use support::registry::blob_path;
use support::wire::{Stream, Wire};

/// Object identifier of the curve P-256, DER (RFC 5480 2.1.1.1).
const P256: &[u8] = &[0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];

#[test]
fn an_intercepted_host_gets_a_leaf_of_our_ca_that_a_browser_would_take() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/v2/", Answer::status(200, "{}"));
    let mut client = proxy.client(&origin);
    assert_eq!(client.get("/v2/").text(), "{}");
    let leaf = client.peer_certificate();
    assert_ne!(leaf, origin.certificate());
    assert!(names_host(&leaf, names::REGISTRY));
    assert!(leaf.windows(P256.len()).any(|window| window == P256), "no P-256 key");
    let (from, to) = validity(&leaf);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    assert!(from <= now && now < to, "{from}..{to} at {now}");
    assert!(to - from <= 398 * 86_400, "valid for {} days", (to - from) / 86_400);
    assert!(now - from >= 3600, "a client whose clock is an hour slow would refuse it");

    let again = proxy.client(&origin).peer_certificate();
    assert_eq!(again, leaf, "the leaf is made once");
}

#[test]
fn clients_without_sni_and_of_tls_1_2_and_any_alpn_are_served() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/v2/", Answer::status(200, "{}"));
    let plain = proxy.trust();
    let mut without_sni = plain.clone();
    without_sni.sni = false;
    let mut old = plain.clone();
    old.tls12 = true;
    let mut both = plain.clone();
    both.alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut old_without_sni = old.clone();
    old_without_sni.sni = false;
    for (trust, alpn) in [
        (plain, None),
        (without_sni, None),
        (old, None),
        (old_without_sni, None),
        (both, Some(b"http/1.1".to_vec())),
    ] {
        let mut client = Client::secure(proxy.address(), &origin.authority(), &trust);
        assert_eq!(client.get("/v2/").text(), "{}");
        assert_eq!(client.alpn(), alpn);
        assert!(names_host(&client.peer_certificate(), names::REGISTRY));
    }
}

#[test]
fn an_address_is_intercepted_with_a_leaf_for_it() {
    let intercept = json!({ "tls": { "intercept": ["127.0.0.2", "::1"] } });
    let setup = Setup::new().with(intercept);
    let proxy = setup.start();
    for host in ["127.0.0.2", "[::1]"] {
        let origin = Origin::https(host);
        origin.get("/v2/", Answer::status(200, host));
        let mut client = proxy.client(&origin);
        assert_eq!(client.get("/v2/").text(), host);
        assert!(names_host(&client.peer_certificate(), host), "{host}");
    }
}

#[test]
fn host_patterns_say_what_is_intercepted() {
    let keys = json!({
        "tls": { "intercept": ["*.DEEP.test", "registry.test"] },
        "headers": { "other.example": { "set": { "X-Added": "1" } } },
    });
    let setup = Setup::new().with(keys);
    let proxy = setup.start();
    let upstream = Trust::pem(Authority::trusted().pem());
    for (host, opened) in [
        (names::REGISTRY, true),
        (names::DEEP, true),
        (names::OTHER, true),
        (names::SECOND, false),
        (names::AUTH, false),
    ] {
        let origin = Origin::https(host);
        origin.get("/", Answer::status(200, host));
        let trust = if opened { proxy.trust() } else { upstream.clone() };
        let mut client = Client::secure(proxy.address(), &origin.authority(), &trust);
        assert_eq!(client.get("/").text(), host);
        assert_eq!(client.peer_certificate() == origin.certificate(), !opened, "{host}");
    }
    drop(proxy);

    let all = Setup::new().with(json!({ "tls": { "intercept": ["*"] } }));
    let proxy = all.start();
    let origin = Origin::https(names::AUTH);
    origin.get("/", Answer::status(200, "all"));
    assert_eq!(proxy.client(&origin).get("/").text(), "all");
}

#[test]
fn a_host_in_other_letters_is_the_same_host() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(1_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let port = origin.address().port();
    let mut client =
        Client::secure(proxy.address(), &format!("Registry.TEST:{port}"), &proxy.trust());
    client.get(&path).assert_is(&body);
    assert_eq!(origin.seen().len(), 1);
}

#[test]
fn any_other_host_is_relayed_and_shows_its_own_certificate() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::OTHER);
    let body = fresh_body(5_000_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    let trust = Trust::pem(Authority::trusted().pem());
    let mut client = Client::secure(proxy.address(), &origin.authority(), &trust);
    assert_eq!(client.peer_certificate(), origin.certificate());
    client.get(&path).assert_is(&body);
    client.get(&path).assert_is(&body);
    assert_eq!(origin.count("GET", &path), 2);
    let stats = proxy.stats();
    assert_eq!((stats["hits"].as_u64(), stats["misses"].as_u64()), (Some(0), Some(0)), "{stats}");
}

#[test]
fn a_relay_carries_bytes_of_any_protocol_to_the_end_of_both_sides() {
    let setup = Setup::new();
    let proxy = setup.start();
    // Speaks first, then repeats what it gets, and says good-bye only after the client's end.
    let server = bare_server(names::OTHER, |mut tcp| {
        tcp.write_all(b"220 speaks first\r\n")?;
        let mut all = Vec::new();
        tcp.read_to_end(&mut all)?;
        tcp.write_all(&all)?;
        tcp.write_all(b"bye")
    });
    let authority = format!("{}:{}", names::OTHER, server.port());
    let mut tcp = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    let mut greeting = [0; 18];
    tcp.read_exact(&mut greeting).expect("the greeting");
    assert_eq!(&greeting, b"220 speaks first\r\n");
    let sent = fresh_body(3_000_000).to_vec();
    tcp.write_all(&sent).expect("sending");
    tcp.shutdown(Shutdown::Write).expect("half-closing");
    let mut got = Vec::new();
    tcp.read_to_end(&mut got).expect("reading to the end");
    assert_eq!(got.len(), sent.len() + 3);
    assert!(got.starts_with(&sent) && got.ends_with(b"bye"));
}

#[test]
fn the_servers_end_reaches_the_client_while_it_still_sends() {
    let setup = Setup::new();
    let proxy = setup.start();
    let server = bare_server(names::OTHER, |mut tcp| {
        tcp.write_all(b"early")?;
        tcp.shutdown(Shutdown::Write)?;
        let mut all = Vec::new();
        tcp.read_to_end(&mut all)?;
        assert_eq!(all, b"late");
        Ok(())
    });
    let authority = format!("{}:{}", names::OTHER, server.port());
    let mut tcp = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    let mut got = Vec::new();
    tcp.read_to_end(&mut got).expect("the server's end");
    assert_eq!(got, b"early");
    tcp.write_all(b"late").expect("sending after the server's end");
}

#[test]
fn bytes_sent_along_with_connect_are_not_lost() {
    let setup = Setup::new();
    let proxy = setup.start();
    let server = bare_server(names::OTHER, |mut tcp| {
        let mut got = [0; 5];
        tcp.read_exact(&mut got)?;
        tcp.write_all(&got)
    });
    let authority = format!("{}:{}", names::OTHER, server.port());
    let mut tcp = dial(proxy.address(), None);
    let text = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\nhello");
    tcp.write_all(text.as_bytes()).expect("sending");
    let mut wire = Wire::new(Stream::Plain(tcp));
    assert!(wire.head().expect("a head").expect("an answer").line.contains(" 200"));
    let mut got = [0; 5];
    let mut at = 0;
    while at < 5 {
        let count = wire.read_some(&mut got[at..]).expect("the echo");
        assert_ne!(count, 0);
        at += count;
    }
    assert_eq!(&got, b"hello");
}

#[test]
fn keep_alive_inside_a_tunnel_serves_any_method_in_turn() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let body = fresh_body(150_000);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    origin.get("/v2/", Answer::status(200, "{}"));
    origin.on("POST", "/v2/up", Answer::status(202, ""));
    origin.on("DELETE", "/v2/x", Answer::status(404, "gone"));
    origin.on("OPTIONS", "/v2/", Answer::status(204, "").bodiless());
    origin.on("PROPFIND", "/dav", Answer::status(200, "any token is a method"));
    let mut client = proxy.client(&origin);
    for _ in 0..3 {
        assert_eq!(client.get("/v2/").text(), "{}");
        client.get(&path).assert_is(&body);
        let payload = Body::bytes("payload");
        let up = client.request("POST", "/v2/up", &[], Payload::Length(&payload));
        assert_eq!((up.status, up.len), (202, 0));
        assert_eq!(client.request("DELETE", "/v2/x", &[], Payload::None).text(), "gone");
        assert_eq!(client.request("OPTIONS", "/v2/", &[], Payload::None).status, 204);
        let dav = client.request("PROPFIND", "/dav", &[], Payload::None);
        assert_eq!(dav.text(), "any token is a method");
        assert_eq!(client.request("HEAD", "/v2/", &[], Payload::None).len, 0);
    }
    let last = client.get_with("/v2/", &[("Connection", "close")]);
    assert_eq!(last.text(), "{}");
    assert!(client.closes());
}

#[test]
fn requests_inside_a_tunnel_stay_with_its_host() {
    let setup = Setup::new().with(json!({ "cache": { "patterns": ["^/files/"] } }));
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let other = Origin::https(names::SECOND);
    origin.get("/files/a", Answer::status(200, "registry"));
    other.get("/files/a", Answer::status(200, "other"));
    let url = other.url("/files/a");
    let foreign = other.authority();
    for request in [
        format!("GET /files/a HTTP/1.1\r\nHost: {foreign}\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\nHost: {foreign}\r\n\r\n"),
    ] {
        let mut client = proxy.client(&origin);
        client.wire.send(request.as_bytes()).expect("sending");
        let head = client.head();
        let response = client.rest("GET", head);
        assert_ne!(response.text(), "other", "{request}");
    }
    assert_eq!(other.seen().len(), 0);
    let right = proxy.get(&other, "/files/a");
    assert_eq!(right.text(), "other", "the entry of one host under another's name");
}

#[test]
fn garbage_inside_an_intercepted_tunnel_harms_nobody() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/v2/", Answer::status(200, "{}"));
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xFF, 0xFF, 1], &[0; 300]] {
        let mut tcp = Client::tunnel(proxy.address(), &origin.authority()).expect("a tunnel");
        tcp.write_all(garbage).expect("sending garbage");
        tcp.shutdown(Shutdown::Write).expect("half-closing");
        let mut got = Vec::new();
        let _ = tcp.read_to_end(&mut got);
        assert!(got.len() < 100, "an answer to garbage: {got:?}");
    }
    // A client that does not trust our CA gives up in the handshake.
    let tcp = Client::tunnel(proxy.address(), &origin.authority()).expect("a tunnel");
    let stranger = Trust::pem(Authority::trusted().pem());
    assert!(start_tls(tcp, names::REGISTRY, &stranger).is_err());
    assert_eq!(proxy.get(&origin, "/v2/").text(), "{}");
    assert_eq!(origin.seen().len(), 1);
}

#[test]
fn a_tunnel_to_nowhere_is_refused_with_the_reason() {
    let setup = Setup::new();
    let proxy = setup.start();
    for authority in [format!("{}:9009", names::DEAD), "no-such-name.invalid:443".to_owned()] {
        let refusal = Client::tunnel(proxy.address(), &authority).expect_err("a refusal");
        refusal.assert_own_error(&[502, 503, 504]);
        assert!(refusal.reason.len() > "Bad Gateway".len(), "{}", refusal.reason);
    }
}

#[test]
fn a_connect_with_a_body_is_refused() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    for authority in [origin.authority(), format!("{}:{}", names::OTHER, origin.address().port())] {
        for framing in [
            "Content-Length: 5",
            "Transfer-Encoding: chunked",
            "Content-Length: 5, 5",
            "TE: x\r\nContent-Length: x",
        ] {
            let mut client = proxy.plain();
            let head =
                format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{framing}\r\n\r\n");
            client.wire.send(head.as_bytes()).expect("sending");
            let head = client.head();
            client.rest("CONNECT", head).assert_own_error(&[400]);
            client.finish_sending();
            assert!(client.closes(), "{framing}");
        }
        let head = format!(
            "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: 0\r\n\r\n"
        );
        let mut client = proxy.plain();
        client.wire.send(head.as_bytes()).expect("sending");
        // Nothing at all is no body.
        let head = client.head();
        assert!(!head.line.contains(" 400 "), "{head:?}");
    }
    assert_eq!(origin.connections(), 0);
}

#[test]
fn an_upgrade_inside_an_intercepted_tunnel_is_relayed() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::https(names::REGISTRY), Origin::http(names::SECOND)] {
        origin.get("/ws", Answer::upgrade("websocket"));
        let mut client = proxy.client(&origin);
        let fields =
            [("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "x")];
        client.start("GET", &origin.url("/ws"), &fields);
        let head = client.head();
        assert!(head.line.contains(" 101"), "{head:?}");
        assert_eq!(head.field("Upgrade"), Some("websocket"));
        assert_eq!(origin.only("/ws").field("Upgrade"), Some("websocket"));
        for text in ["one", "two", "three"] {
            client.wire.send(text.as_bytes()).expect("a frame");
            let mut got = vec![0; text.len()];
            let mut at = 0;
            while at < got.len() {
                let count = client.wire.read_some(&mut got[at..]).expect("its echo");
                assert_ne!(count, 0, "ended after {at} bytes of {text}");
                at += count;
            }
            assert_eq!(got, text.as_bytes());
        }
    }
}

#[test]
fn an_idle_relay_ends_and_a_busy_one_does_not() {
    let setup = Setup::new().with(json!({ "limits": { "idle_timeout": "2s" } }));
    let proxy = setup.start();
    let server = bare_server(names::OTHER, |mut tcp| {
        let mut byte = [0; 1];
        while tcp.read(&mut byte)? == 1 {
            tcp.write_all(&byte)?;
        }
        Ok(())
    });
    let authority = format!("{}:{}", names::OTHER, server.port());
    let mut tcp = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    let start = std::time::Instant::now();
    // The pauses are what is tested here, not a way to order events.
    while start.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(400));
        tcp.write_all(b"x").expect("a byte");
        tcp.read_exact(&mut [0; 1]).expect("its echo, in a tunnel that is not idle");
    }
    let quiet = std::time::Instant::now();
    let ended = tcp.read(&mut [0; 1]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    let waited = quiet.elapsed();
    assert!(waited >= Duration::from_secs(1) && waited < Duration::from_secs(30), "{waited:?}");
}

#[test]
fn a_side_that_only_listens_is_not_idle() {
    // Longer silent than answers may be, and all in all than a relay.
    let times = json!({
        "limits": { "idle_timeout": "6s" }, "upstream": { "read_timeout": "1s" },
    });
    let setup = Setup::new().with(times);
    let proxy = setup.start();
    let server = bare_server(names::OTHER, |mut tcp| {
        let mut byte = [0; 1];
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && tcp.read(&mut byte)? == 1 {
            head.extend_from_slice(&byte);
        }
        let switched = "HTTP/1.1 101 Go\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        tcp.write_all(switched.as_bytes())?;
        for _ in 0..5 {
            std::thread::sleep(Duration::from_secs(2));
            tcp.write_all(b"x")?;
        }
        Ok(())
    });
    let authority = format!("{}:{}", names::OTHER, server.port());
    let mut upgraded = proxy.plain();
    let relayed = Client::tunnel(proxy.address(), &authority).expect("a tunnel");
    let mut relayed = Client::on(relayed);
    for client in [&mut upgraded, &mut relayed] {
        let fields = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        client.start("GET", &format!("http://{authority}/ws"), &fields);
        assert!(client.head().line.contains(" 101"));
    }
    for client in [&mut upgraded, &mut relayed] {
        for number in 0..5 {
            let got = client.wire.read_some(&mut [0; 1]).expect("a byte");
            assert_eq!(got, 1, "ended after {number} bytes");
        }
    }
}
