//! What an upstream sends that RFC 9112 does not allow is no answer: the client gets 502 (or, where
//! its head was sound and only the body was not, an answer that visibly breaks off), the connection
//! to that upstream ends, and nothing is stored. Bytes behind an answer are nobody's answer.
//!
//! The rows are those of `smuggle.rs`, as answers.

#[path = "smuggle/rows.rs"]
#[allow(dead_code)] // requests are the other test's
mod rows;
mod support;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rows::{BODY, CHUNKS, FIELDS, FRAMINGS, STATUS_LINES};
use serde_json::json;
use support::answer::Answer;
use support::client::{Client, Payload};
use support::origin::{Origin, bare_server, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::blob_path;
use support::{names, wait_until};

/// An upstream that answers every request with the bytes it is told to, and never closes.
struct Bare {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    bytes: Mutex<Vec<u8>>,
    requests: AtomicUsize,
    connections: AtomicUsize,
    closed: AtomicUsize,
}

impl Bare {
    fn new() -> Bare {
        let shared = Arc::new(Shared::default());
        let talker = shared.clone();
        let address = bare_server(names::SECOND, move |tcp| {
            talker.connections.fetch_add(1, Ordering::SeqCst);
            let _ = talk(&talker, tcp);
            talker.closed.fetch_add(1, Ordering::SeqCst);
            Ok(())
        });
        Bare { address, shared }
    }

    fn says(&self, bytes: &str) {
        *self.shared.bytes.lock().unwrap() = bytes.as_bytes().to_vec();
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}:{}{path}", names::SECOND, self.address.port())
    }

    fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Waits until every connection to it has been closed by the other side.
    fn wait_closed(&self) {
        wait_until("the proxy to close its connection", || {
            (self.shared.closed.load(Ordering::SeqCst) == self.connections()).then_some(())
        });
    }
}

fn talk(shared: &Shared, mut tcp: TcpStream) -> io::Result<()> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = tcp.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        text.extend_from_slice(&buffer[..count]);
        if text.ends_with(b"\r\n\r\n") {
            text.clear();
            shared.requests.fetch_add(1, Ordering::SeqCst);
            let bytes = shared.bytes.lock().unwrap().clone();
            tcp.write_all(&bytes)?;
        }
    }
}

/// Heads that are wrong, each with a name.
fn heads() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (row, line) in STATUS_LINES {
        all.push((*row, format!("{line}Content-Length: 5\r\n\r\nhello")));
    }
    for (row, lines, _) in FIELDS.iter().chain(FRAMINGS) {
        all.push((row, format!("HTTP/1.1 200 OK\r\n{lines}\r\n{BODY}")));
        all.push((row, format!("HTTP/1.1 404 Not Found\r\nX: a\r\n{lines}\r\n{BODY}")));
        all.push((row, format!("HTTP/1.1 204 No Content\r\n{lines}\r\n")));
    }
    let lines = |line: &str, count| format!("HTTP/1.1 200 OK\r\n{}\r\n", line.repeat(count));
    let long = format!("X: {}\r\n", "a".repeat(1000));
    let interims = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40);
    all.extend([
        ("coding in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()),
        ("switch that nobody asked for", switch("x")),
        ("a long field", format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(64 << 10))),
        ("many long fields", lines(&long, 70)),
        ("many short fields", lines("X: a\r\n", 129)),
        ("interim answers without end", interims),
    ]);
    all.into_iter().map(|(row, text)| (row.to_owned(), text)).collect()
}

fn switch(protocol: &str) -> String {
    format!("HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

fn setup() -> Setup {
    // A fill that broke off is not to be tried again: each row is one request.
    Setup::new().with(json!({ "upstream": { "retries": 0 } }))
}

fn assert_nothing_stored(setup: &Setup, proxy: &Proxy) {
    proxy.wait_stat("fills", 0);
    let stats = proxy.stats();
    assert_eq!((&stats["stores"], &stats["entries"]), (&json!(0), &json!(0)), "{stats}");
    let blobs = std::fs::read_dir(setup.path("cache/blobs/sha256")).into_iter().flatten();
    let names: Vec<_> = blobs.flatten().map(|entry| entry.file_name()).collect();
    assert!(names.is_empty(), "{names:?}");
}

#[test]
fn a_malformed_head_from_upstream_is_502_and_the_end_of_its_connection() {
    let setup = setup();
    let proxy = setup.start();
    let bare = Bare::new();
    let secure = Origin::https(names::REGISTRY);
    let mut asked = 0;
    let mut tunnel = proxy.client(&secure);
    let mut plain = proxy.plain();
    for (row, text) in heads() {
        bare.says(&text);
        let path = blob_path("lab/img", &fresh_body(5));
        for path in ["/row", path.as_str()] {
            let response = plain.get(&bare.url(path));
            let message = response.assert_own_error(&[502]);
            assert!(message.contains(names::SECOND), "{row}: {message}");
            assert_eq!(response.json()["errors"][0]["code"], json!("UPSTREAM_MALFORMED"), "{row}");
            asked += 1;
            assert_eq!(bare.requests(), asked, "{row}: asked again");
            secure.get(path, Answer::raw(text.as_bytes()));
            tunnel.get(path).assert_own_error(&[502]);
        }
    }
    bare.wait_closed();
    assert_eq!(bare.connections(), asked, "a connection was used again");
    assert_nothing_stored(&setup, &proxy);
}

/// Expects that nobody could take for the whole of an answer what comes.
fn assert_broken_off(row: &str, mut client: Client, url: &str) {
    client.start("GET", url, &[]);
    // The reset that breaks it off may take its head along.
    if let Ok(Some(head)) = client.try_head() {
        let response = client.rest("GET", head);
        assert!(response.status == 200 && response.whole.is_err(), "{row}: {response:?}");
    }
}

#[test]
fn a_broken_chunked_body_from_upstream_is_broken_off_and_not_stored() {
    let setup = setup();
    let proxy = setup.start();
    let bare = Bare::new();
    let secure = Origin::https(names::REGISTRY);
    let long = format!("5;a={}\r\nhello\r\n0\r\n\r\n", "b".repeat(5000));
    let trailers =
        format!("5\r\nhello\r\n0\r\n{}\r\n", format!("X: {}\r\n", "a".repeat(1000)).repeat(17));
    let mut rows: Vec<(&str, &str)> = CHUNKS.iter().map(|(row, text, _)| (*row, *text)).collect();
    rows.extend([("a long extension", long.as_str()), ("long trailers", trailers.as_str())]);
    let late = format!("{:x}\r\n{}\r\n", 300_000, "a".repeat(300_000));
    for (row, body) in rows {
        let blob = blob_path("lab/img", &fresh_body(5));
        for path in ["/row", blob.as_str()] {
            // The fault comes together with the head, or long after it has been sent on.
            let coded = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            if body.len() < 1000 {
                let text = format!("{coded}{body}");
                bare.says(&text);
                proxy.plain().get(&bare.url(path)).assert_own_error(&[502]);
                secure.get(path, Answer::raw(text));
                proxy.get(&secure, path).assert_own_error(&[502]);
            }
            let text = format!("{coded}{late}{body}");
            bare.says(&text);
            assert_broken_off(row, proxy.plain(), &bare.url(path));
            secure.get(path, Answer::raw(text));
            assert_broken_off(row, proxy.client(&secure), path);
        }
    }
    bare.wait_closed();
    assert_nothing_stored(&setup, &proxy);
}

#[test]
fn bytes_behind_an_answer_are_nobodys_answer() {
    let setup = setup();
    let proxy = setup.start();
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    let rows = [
        ("GET", 200, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        ("GET", 200, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
        ("HEAD", 200, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
        ("GET", 204, "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", 304, "HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"),
        ("GET", 404, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    ];
    for (method, status, first) in rows {
        let bare = Bare::new();
        let mut client = proxy.plain();
        let url = bare.url("/row");
        bare.says(&format!("{first}{poison}"));
        let response = client.request(method, &url, &[], Payload::None);
        assert_eq!((response.status, response.whole), (status, Ok(())), "{first:?}");
        assert!(response.len <= 2);
        bare.says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfresh");
        // On whichever core: the connection with the rest on it is not used again.
        for mut client in [client, proxy.plain(), proxy.plain(), proxy.plain()] {
            assert_eq!(client.get(&url).text(), "fresh", "{method} {first:?}");
        }
        assert!(bare.connections() >= 2);
    }
}

#[test]
fn a_status_without_a_body_announces_none_and_ends_a_connection_that_does() {
    let setup = setup();
    let proxy = setup.start();
    for (lines, again) in [
        ("", true),
        ("Content-Length: 0\r\n", true),
        ("Content-Length: 6\r\n", false),
        ("Transfer-Encoding: chunked\r\n", false),
    ] {
        let bare = Bare::new();
        bare.says(&format!("HTTP/1.1 204 No Content\r\n{lines}\r\n"));
        let mut client = proxy.plain();
        let asked = 3;
        for _ in 0..asked {
            let response = client.get(&bare.url("/row"));
            assert_eq!((response.status, response.field("Content-Length")), (204, None), "{lines}");
            assert_eq!(response.field("Transfer-Encoding"), None, "{lines}");
        }
        assert_eq!(bare.connections(), if again { 1 } else { asked }, "{lines:?}");
    }
    let bare = Bare::new();
    bare.says(
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 33\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    );
    let response = proxy.plain().get(&bare.url("/row"));
    assert_eq!(response.text(), "hello");
    assert_eq!(response.interim[0].field("Content-Length"), None, "{:?}", response.interim);
}

#[test]
fn a_switch_of_protocols_is_relayed_to_whom_has_asked_and_never_to_http_2() {
    let setup = setup();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    origin.get("/row", Answer::status(200, "plain"));
    let (wanted, settings) = (("Connection", "Upgrade, HTTP2-Settings"), ("HTTP2-Settings", "A"));
    for fields in [
        &[wanted, ("Upgrade", "h2c"), settings][..],
        &[("Connection", "Upgrade"), ("Upgrade", "websocket, h2c")],
        &[("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Upgrade", "h2c")],
        &[("Connection", "Upgrade"), ("Upgrade", "HTTP/2.0")],
        &[("Upgrade", "websocket")],
    ] {
        assert_eq!(proxy.get_with(&origin, "/row", fields).text(), "plain");
        let seen = origin.seen().pop().expect("a request");
        for gone in ["Connection", "Upgrade", "HTTP2-Settings"] {
            assert_eq!(seen.field(gone), None, "{fields:?}: {:?}", seen.head);
        }
    }
    origin.get("/row", Answer::upgrade("websocket"));
    let mut client: Client = proxy.client(&origin);
    client.start("GET", "/row", &[("Connection", "Upgrade"), ("Upgrade", "websocket")]);
    let head = client.head();
    assert_eq!(head.line.split(' ').nth(1), Some("101"), "{head:?}");
    client.wire.send(b"ping").expect("sending");
    let mut echo = [0; 4];
    assert_eq!(client.wire.read_some(&mut echo).expect("the echo"), 4);
    assert_eq!(&echo, b"ping");
}
