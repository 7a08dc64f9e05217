//! Nothing is smuggled: what RFC 9112 does not allow is refused wherever it comes in, the
//! connection ends behind the refusal, and of the request that hides behind it nobody hears.
//!
//! The rows are in `smuggle/rows.rs`. Each is tried on the proxy port in absolute form, inside an
//! opened tunnel, on the admin port, and, where an upstream could send it, as an answer.

#[path = "smuggle/rows.rs"]
#[allow(dead_code)] // answers are the other test's
mod rows;
mod support;

use rows::{CHUNKS, FIELDS, FRAMINGS, HEADS, chunked, oversize, with_fields, without_body};
use support::answer::Answer;
use support::client::Client;
use support::names;
use support::origin::Origin;
use support::proxy::{Proxy, Setup};
use support::raw::{Said, say};
use support::wire::Framing;

/// Where rows are tried.
struct Place<'a> {
    name: &'static str,
    proxy: &'a Proxy,
    origin: Option<&'a Origin>,
    /// What stands before a path, and the Host.
    root: String,
    host: String,
    path: &'static str,
}

impl<'a> Place<'a> {
    /// The proxy port, the inside of a tunnel, the admin port.
    fn all(proxy: &'a Proxy, plain: &'a Origin, tls: &'a Origin) -> [Place<'a>; 3] {
        let admin = proxy.admin_address().to_string();
        let place =
            |name, origin, root, host, path| Place { name, proxy, origin, root, host, path };
        [
            place("proxy", Some(plain), plain.url(""), plain.authority(), "/row"),
            place("tunnel", Some(tls), String::new(), tls.authority(), "/row"),
            place("admin", None, String::new(), admin, "/health"),
        ]
    }

    fn client(&self) -> Client {
        match self.origin {
            Some(origin) => self.proxy.client(origin),
            None => Client::direct(self.proxy.admin_address(), &self.host),
        }
    }

    fn fill(&self, text: &str) -> String {
        let target = format!("{}{}", self.root, self.path);
        text.replace("{t}", &target).replace("{h}", &self.host)
    }

    /// Sends the text with a whole request hidden behind it.
    fn say(&self, text: &str) -> Said {
        let hidden = "GET {t}?hidden HTTP/1.1\r\nHost: {h}\r\nConnection: close\r\n\r\n";
        let bytes = self.fill(&format!("{text}{hidden}"));
        say(&mut self.client(), "GET", bytes.as_bytes())
    }

    /// Expects one refusal, and the end behind it.
    #[track_caller]
    fn refuses(&self, row: &str, text: &str, status: u16) {
        let said = self.say(text);
        let shown = format!("{} on the {} port: {said:#?}", row, self.name);
        assert_eq!(said.statuses(), [status], "{shown}");
        assert_eq!(said.broken, None, "{shown}");
        let answer = said.only();
        assert_eq!(answer.field("Connection"), Some("close"), "{shown}");
        if status != 405 {
            answer.assert_own_error(&[status]);
        }
    }
}

#[test]
fn what_is_malformed_is_refused_on_every_port_and_nothing_follows_it() {
    let setup = Setup::new();
    let proxy = setup.start();
    let (plain, tls) = (Origin::http(names::SECOND), Origin::https(names::REGISTRY));
    for place in Place::all(&proxy, &plain, &tls) {
        for (row, lines, status) in FRAMINGS {
            for method in ["POST", "GET", "DELETE"] {
                place.refuses(row, &with_fields(method, lines, false), *status);
            }
        }
        for (row, lines, status) in FIELDS {
            for first in [false, true] {
                place.refuses(row, &with_fields("GET", lines, first), *status);
            }
        }
        for (row, text, status) in HEADS {
            place.refuses(row, text, *status);
        }
        for (row, text, status) in oversize() {
            if !text.contains("chunked") {
                place.refuses(row, &text, status);
            }
        }
    }
    for origin in [&plain, &tls] {
        assert_eq!(origin.connections(), 0, "{:#?}", origin.seen());
    }
    assert!(proxy.stat("refused") > 300);
}

#[test]
fn a_well_formed_request_is_answered_and_so_is_the_one_behind_it() {
    let setup = Setup::new();
    let proxy = setup.start();
    let (plain, tls) = (Origin::http(names::SECOND), Origin::https(names::REGISTRY));
    let extension = chunked("5 ; a=b;c=\"d\\\"; e\"\r\nhello\r\n000\r\nX-Trailer: a\r\n\r\n");
    for place in Place::all(&proxy, &plain, &tls) {
        for text in [
            &without_body("GET", ""),
            &with_fields("POST", "Content-Length:005\t\r\n", true),
            &without_body("DELETE", "Content-Length: 0\r\n"),
            &extension,
            &format!("\r\n{}", chunked("0\r\n\r\n")),
        ] {
            let said = place.say(text);
            assert_eq!(said.broken, None);
            assert_eq!(said.answers.len(), 2, "{} {text:?}: {said:#?}", place.name);
        }
    }
    for origin in [&plain, &tls] {
        let seen = origin.seen();
        assert_eq!(seen.len(), 10, "{seen:#?}");
        // What the extension said stays here; the body is whole, and chunked again by us.
        let post = &seen[6];
        assert_eq!((post.body_len, post.framing), (5, Framing::Chunked));
        assert_eq!(post.trailers, [("X-Trailer".to_owned(), "a".to_owned())]);
    }
}

#[test]
fn a_broken_chunked_body_is_refused_and_nothing_follows_it() {
    let setup = Setup::new();
    let proxy = setup.start();
    let (plain, tls) = (Origin::http(names::SECOND), Origin::https(names::REGISTRY));
    let mut rows = 0;
    let places = Place::all(&proxy, &plain, &tls);
    for place in &places {
        rows = 0;
        for (row, body, status) in CHUNKS {
            place.refuses(row, &chunked(body), *status);
            rows += 1;
        }
        for (row, text, status) in oversize() {
            if text.contains("chunked") {
                place.refuses(row, &text, status);
                rows += 1;
            }
        }
    }
    for origin in [&plain, &tls] {
        let seen = origin.seen();
        // The head may have gone up before the body was seen to be broken; never all of it, never
        // what was behind it, and each on a connection that nothing else has come on.
        assert!(seen.iter().all(|seen| seen.body_sha256.is_none()), "{seen:#?}");
        assert!(seen.iter().all(|seen| seen.target == "/row"), "{seen:#?}");
        assert!(seen.len() <= rows && origin.connections() <= rows);
    }
}

#[test]
fn what_is_inside_a_tunnel_is_for_whom_the_tunnel_is_for() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::https(names::REGISTRY);
    let second = Origin::https(names::SECOND);
    let (other, port) = (second.authority(), second.address().port());
    let own = origin.authority();
    let to_other = |target: &str| format!("{target} HTTP/1.1\r\nHost: {other}\r\n\r\n");
    let to_own = |target: &str| format!("{target} HTTP/1.1\r\nHost: {own}\r\n\r\n");
    for (text, status) in [
        (to_other("GET /row"), 421),
        (to_other("POST /row"), 421),
        (to_other("OPTIONS *"), 421),
        (to_other(&format!("GET https://{other}/row")), 421),
        (to_other(&format!("OPTIONS https://{other}")), 421),
        (format!("GET https://{other}/row HTTP/1.0\r\n\r\n"), 421),
        (format!("GET /row HTTP/1.1\r\nHost: {}:{port}\r\n\r\n", names::REGISTRY), 421),
        (format!("GET /row HTTP/1.1\r\nHost: {}\r\n\r\n", names::SECOND), 421),
        (format!("GET /row HTTP/1.0\r\nHost: {other}\r\n\r\n"), 421),
        // Plain HTTP to the same host and port is another place.
        (to_own(&format!("GET http://{own}/row")), 421),
        (to_own(&format!("CONNECT {own}")), 400),
        (to_other(&format!("CONNECT {other}")), 400),
    ] {
        let mut client = proxy.client(&origin);
        let behind = format!("GET /row HTTP/1.1\r\nHost: {own}\r\n\r\n");
        let said = say(&mut client, "GET", format!("{text}{behind}").as_bytes());
        said.only().assert_own_error(&[status]);
    }
    assert_eq!(origin.connections() + second.connections(), 0, "{:#?}", second.seen());

    origin.get("/row", Answer::status(200, "reached"));
    let absolute = to_own(&format!("GET https://{own}/row"));
    for text in [to_own("GET /row"), absolute, "GET /row HTTP/1.0\r\n\r\n".to_owned()] {
        let text = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
        let said = say(&mut proxy.client(&origin), "GET", text.as_bytes());
        assert_eq!(said.only().text(), "reached", "{text:?}");
    }
}
