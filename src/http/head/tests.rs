use super::*;

const REQUEST: &str = "GET /v2/ HTTP/1.1\r\nHost: a.example\r\n\r\n";

fn limits() -> HeadLimits {
    HeadLimits::default()
}

fn request(bytes: impl AsRef<[u8]>) -> Result<Parsed<RequestHead>, Malformed> {
    let limits = limits();
    at_every_split(bytes.as_ref(), |buf| parse_request(buf, &limits))
}

fn response(bytes: impl AsRef<[u8]>) -> Result<Parsed<ResponseHead>, Malformed> {
    let limits = limits();
    at_every_split(bytes.as_ref(), |buf| parse_response(buf, &limits))
}

/// Parses every prefix of `bytes` too, and holds them to the module's promise.
fn at_every_split<T: PartialEq + fmt::Debug>(
    bytes: &[u8],
    parse: impl Fn(&[u8]) -> Result<Parsed<T>, Malformed>,
) -> Result<Parsed<T>, Malformed> {
    let whole = parse(bytes);
    let mut decided = None;
    let mut retry = Retry::new(&limits());
    for end in 0..=bytes.len() {
        let part = parse(&bytes[..end]);
        let shown = String::from_utf8_lossy(&bytes[..end]);
        let due = retry.is_due(&bytes[..end]);
        match (&decided, &part) {
            (None, Ok(Parsed::Incomplete)) => continue,
            (None, Ok(Parsed::Complete { len, .. })) => {
                assert_eq!(*len, end, "late: {shown:?}");
                assert!(due, "not read: {shown:?}");
            }
            (None, Err(_)) => {}
            (Some(before), now) => assert_eq!(before, now, "another verdict: {shown:?}"),
        }
        assert_eq!(part, whole, "not the verdict on the whole: {shown:?}");
        decided = Some(part);
    }
    whole
}

fn complete<T: fmt::Debug>(parsed: Result<Parsed<T>, Malformed>) -> (T, usize) {
    match parsed {
        Ok(Parsed::Complete { head, len }) => (head, len),
        other => panic!("no head: {other:?}"),
    }
}

#[test]
fn a_request_head_is_read_whole() {
    let text = "PATCH /v2/a/blobs/uploads/1?_state=x%2F HTTP/1.1\r\nHost: Reg.Example:5000\r\n\
                X-Empty:\r\nX-Blanks: \t  \t\r\nAccept:  a, b\t \r\naccept:c\r\n\
                X-Obs: \u{e9}\r\n\r\nbody";
    let (head, len) = complete(request(text));
    assert_eq!(len, text.len() - 4);
    assert_eq!(head.method, Method::PATCH);
    assert_eq!(head.target, Target::Origin("/v2/a/blobs/uploads/1?_state=x%2F".into()));
    assert_eq!(head.version, Version::Http11);
    let fields: Vec<_> = head.fields.iter().collect();
    assert_eq!(
        fields,
        [
            ("Host", &b"Reg.Example:5000"[..]),
            ("X-Empty", b""),
            ("X-Blanks", b""),
            ("Accept", b"a, b"),
            ("accept", b"c"),
            ("X-Obs", "\u{e9}".as_bytes()),
        ]
    );
    assert_eq!(head.authority().unwrap().to_string(), "reg.example:5000");
}

#[test]
fn heads_that_are_unusual_and_right() {
    for text in [
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "get / HTTP/1.1\r\nHost: a\r\n\r\n",
        "M-SEARCH!#$%&'*+.^_`|~09 / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET //x/../y?a?b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /{|}^`\"<>\\ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhOsT:a:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:\r\n\r\n",
        "GET http://a HTTP/1.1\r\nHost: a:80\r\n\r\n",
        "GET HTTP://A.:80/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET https://a:443/x HTTP/1.1\r\nHost: A\r\n\r\n",
        "GET http://[::1]/ HTTP/1.1\r\nHost: [0:0::1]\r\n\r\n",
        "GET http://a/ HTTP/1.0\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:443 HTTP/1.0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let (head, len) = complete(request(text));
        assert_eq!(len, text.len(), "{text:?}");
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(complete(request(&out)).0, head, "{text:?}");
    }
}

#[test]
fn start_lines_that_are_refused() {
    use Malformed::*;
    let host = "Host: a\r\n\r\n";
    for (line, error) in [
        ("\n", StartLine),
        ("\r\n\r\nGET / HTTP/1.1\r\n", StartLine),
        ("\r\n\nGET / HTTP/1.1\r\n", StartLine),
        ("\rGET / HTTP/1.1\r\n", LineEnd),
        (" GET / HTTP/1.1\r\n", StartLine),
        ("GET  / HTTP/1.1\r\n", StartLine),
        ("GET\t/ HTTP/1.1\r\n", StartLine),
        ("GET /  HTTP/1.1\r\n", StartLine),
        ("GET /\tHTTP/1.1\r\n", StartLine),
        ("GET / HTTP/1.1 \r\n", LineEnd),
        ("GET / HTTP/1.1\n", LineEnd),
        ("GET / HTTP/1.1\rX", LineEnd),
        ("GET / HTTP/1.1\r\r\n", LineEnd),
        ("GET /\r\n", StartLine),
        ("GET / \r\n", StartLine),
        ("GET\r\n", StartLine),
        ("G(T / HTTP/1.1\r\n", StartLine),
        ("G\u{e9}T / HTTP/1.1\r\n", StartLine),
        ("GET /a b HTTP/1.1\r\n", StartLine),
        ("GET /a\0b HTTP/1.1\r\n", StartLine),
        ("GET /a\x7fb HTTP/1.1\r\n", StartLine),
        ("GET /a\u{e9} HTTP/1.1\r\n", Target),
        ("GET /a#b HTTP/1.1\r\n", Target),
        ("GET a HTTP/1.1\r\n", Target),
        ("GET * HTTP/1.1\r\n", Target),
        ("GET a:80 HTTP/1.1\r\n", Target),
        ("GET ftp://a/ HTTP/1.1\r\n", Target),
        ("GET http:/a HTTP/1.1\r\n", Target),
        ("GET http:///a HTTP/1.1\r\n", Host),
        ("GET http://u@a/ HTTP/1.1\r\n", Host),
        ("GET http://u:p@a/ HTTP/1.1\r\n", Host),
        ("GET http://a\\b/ HTTP/1.1\r\n", Host),
        ("CONNECT a HTTP/1.1\r\n", Target),
        ("CONNECT a: HTTP/1.1\r\n", Target),
        ("CONNECT a:0 HTTP/1.1\r\n", Host),
        ("CONNECT a:65536 HTTP/1.1\r\n", Host),
        ("CONNECT / HTTP/1.1\r\n", Host),
        ("CONNECT http://a:80 HTTP/1.1\r\n", Host),
        (&format!("{} / HTTP/1.1\r\n", "G".repeat(METHOD_MAX + 1)), MethodTooLong),
        ("GET / HTTP/1.2\r\n", Version),
        ("GET / HTTP/0.9\r\n", Version),
        ("GET / HTTP/2.0\r\n", Version),
        ("GET / HTTP/2\r\n", StartLine),
        ("GET / http/1.1\r\n", StartLine),
        ("GET / HTTP/11.1\r\n", StartLine),
        ("GET / HTTP/1.10\r\n", LineEnd),
        ("GET / HTTP/+1.1\r\n", StartLine),
        ("GET / HTTPS/1.1\r\n", StartLine),
        ("\x16\x03\x01\x02\x00\x01\x00\x01", StartLine),
    ] {
        assert_eq!(request(format!("{line}{host}")), Err(error), "{line:?}");
    }
    assert_eq!(request("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Err(Version));
    assert_eq!(request([b"GET /\xff HTTP/1.1\r\n", host.as_bytes()].concat()), Err(StartLine));
}

#[test]
fn field_lines_that_are_refused() {
    use Malformed::*;
    for (lines, error) in [
        ("X : a\r\n\r\n", FieldName),
        ("X\t: a\r\n\r\n", FieldName),
        (" X: a\r\n\r\n", FieldName),
        (": a\r\n\r\n", FieldName),
        ("X\r\n\r\n", FieldName),
        ("X a\r\n\r\n", FieldName),
        ("X\0: a\r\n\r\n", FieldName),
        ("X\u{e9}: a\r\n\r\n", FieldName),
        ("X(: a\r\n\r\n", FieldName),
        ("X: a\r\n b\r\n\r\n", FieldName),
        ("X: a\r\n\tb\r\n\r\n", FieldName),
        ("X:\r\n \r\n\r\n", FieldName),
        ("X: a\r\n \r\n\r\n", FieldName),
        ("X: a\0b\r\n\r\n", FieldValue),
        ("X: a\x0bb\r\n\r\n", FieldValue),
        ("X: a\x7fb\r\n\r\n", FieldValue),
        ("X: \x01\r\n\r\n", FieldValue),
        ("X: a\rb\r\n\r\n", FieldValue),
        ("X: a\r\r\n\r\n", FieldValue),
        ("X:\r\r\n\r\n", FieldValue),
        ("X: a\n\r\n", LineEnd),
        ("X: a\r\n\n", LineEnd),
        ("X: a\n\n", LineEnd),
        ("X:\n\r\n", LineEnd),
        ("X: \n\r\n", LineEnd),
        ("X: a\nY: b\r\n\r\n", LineEnd),
        ("X: a\r\nY: b\n\r\n", LineEnd),
        ("X: a\r\n\rX", LineEnd),
        ("Transfer-Encoding: chunked\nX: b\r\n\r\n", LineEnd),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}");
        assert_eq!(request(&head), Err(error), "{lines:?}");
        let first = format!("GET / HTTP/1.0\r\n{lines}");
        assert_eq!(request(&first), Err(error), "first {lines:?}");
        let head = format!("HTTP/1.1 200 OK\r\n{lines}");
        assert_eq!(response(&head), Err(error), "response {lines:?}");
    }
}

#[test]
fn the_host_must_be_one_and_agree() {
    use Malformed::*;
    for (head, error) in [
        ("GET / HTTP/1.1\r\n\r\n", HostMissing),
        ("GET http://a/ HTTP/1.1\r\n\r\n", HostMissing),
        ("CONNECT a:443 HTTP/1.1\r\n\r\n", HostMissing),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", HostRepeated),
        ("GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", HostRepeated),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: http://a\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: a:80:80\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", Host),
        ("GET / HTTP/1.1\r\nHost: \u{e9}\r\n\r\n", Host),
        ("GET / HTTP/1.0\r\nHost: 0x7f.1\r\n\r\n", Host),
        ("GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n", HostMismatch),
        ("GET http://a/ HTTP/1.0\r\nHost: b\r\n\r\n", HostMismatch),
        ("GET http://a/ HTTP/1.1\r\nHost: a:443\r\n\r\n", HostMismatch),
        ("GET https://a/ HTTP/1.1\r\nHost: a:80\r\n\r\n", HostMismatch),
        ("GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n", HostMismatch),
        ("GET http://127.0.0.1/ HTTP/1.1\r\nHost: [::ffff:127.0.0.1]\r\n\r\n", HostMismatch),
        ("CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n", HostMismatch),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:80\r\n\r\n", HostMismatch),
    ] {
        assert_eq!(request(head), Err(error), "{head:?}");
    }
}

#[test]
fn a_head_is_due_at_empty_lines_at_its_limit_and_seldom_else() {
    let limits = HeadLimits::with_size(1000);
    // A piece more or less makes no difference to where an empty line is found.
    for text in ["a: b\r\n\r\n", "a: b\n\n", "a: b\n\r\n"] {
        for filler in [100, 101, 102] {
            let text = "x".repeat(filler) + text;
            for cut in filler..text.len() {
                let mut retry = Retry::new(&limits);
                assert!(retry.is_due(&text.as_bytes()[..filler]));
                assert!(!retry.is_due(&text.as_bytes()[..cut]), "{text:?} at {cut}");
                assert!(retry.is_due(text.as_bytes()), "{text:?} from {cut}");
            }
        }
    }
    let mut retry = Retry::new(&limits);
    let due: Vec<usize> = (1..=1000).filter(|len| retry.is_due(&vec![b'x'; *len])).collect();
    assert_eq!(due, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]);
}

#[test]
fn limits_hold_to_the_byte() {
    let fits = HeadLimits { size: REQUEST.len(), fields: 1, target: 4 };
    let read = |text: &str, limits: HeadLimits| {
        at_every_split(text.as_bytes(), |buf| parse_request(buf, &limits)).map(|_| ())
    };
    assert_eq!(read(REQUEST, fits), Ok(()));
    assert_eq!(read(&format!("{REQUEST}more"), fits), Ok(()));
    let smaller = HeadLimits { size: REQUEST.len() - 1, ..fits };
    assert_eq!(read(REQUEST, smaller), Err(Malformed::HeadTooLarge));
    let shorter = HeadLimits { target: 3, ..fits };
    assert_eq!(read(REQUEST, shorter), Err(Malformed::TargetTooLong));
    // What is wrong first is told, even where the target is too long as well.
    let text = "GET /\x01 HTTP/1.1\r\n\r\n";
    assert_eq!(read(text, HeadLimits { target: 2, ..fits }), Err(Malformed::StartLine));
    assert_eq!(read(text, HeadLimits { target: 0, ..fits }), Err(Malformed::TargetTooLong));
    assert_eq!(read("G(T /aaaaaaaaaaaaaa", shorter), Err(Malformed::StartLine));
    let text = "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\r\n";
    assert_eq!(read(text, HeadLimits { fields: 1, ..limits() }), Err(Malformed::TooManyFields));
    assert_eq!(read(text, HeadLimits { fields: 2, ..limits() }), Ok(()));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: a\r\n".repeat(FIELDS_MAX));
    let none = HeadLimits { fields: usize::MAX, ..limits() };
    assert_eq!(read(&many, none), Err(Malformed::TooManyFields));
    let nothing = HeadLimits { size: 0, fields: 0, target: 0 };
    assert_eq!(read("", nothing), Err(Malformed::HeadTooLarge));
    let endless = HeadLimits { size: usize::MAX, fields: 9, target: usize::MAX };
    assert_eq!(read(REQUEST, endless), Ok(()));
}

#[test]
fn response_heads_are_read() {
    for (text, status, reason, version) in [
        ("HTTP/1.1 200 OK\r\n\r\n", 200, "OK", Version::Http11),
        ("HTTP/1.0 404 Not Found\r\nX: y\r\n\r\n", 404, "Not Found", Version::Http10),
        ("HTTP/1.1 204 \r\n\r\n", 204, "", Version::Http11),
        ("HTTP/1.1 204\r\n\r\n", 204, "", Version::Http11),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, "Switching Protocols", Version::Http11),
        ("HTTP/1.1 999 a\tb  c \r\n\r\n", 999, "a\tb  c ", Version::Http11),
        ("HTTP/1.1 200 \u{e9}\r\n\r\n", 200, "\u{e9}", Version::Http11),
    ] {
        let (head, len) = complete(response(text));
        assert_eq!(
            (len, head.status, &*head.reason, head.version),
            (text.len(), status, reason, version),
            "{text:?}"
        );
        let mut out = Vec::new();
        head.write_to(&mut out);
        assert_eq!(complete(response(&out)).0, head, "{text:?}");
    }
    let (head, _) = complete(response(b"HTTP/1.1 200 \xff\r\n\r\n"));
    assert_eq!(&*head.reason, "");
}

#[test]
fn status_lines_that_are_refused() {
    use Malformed::*;
    for (text, error) in [
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", StartLine),
        ("\nHTTP/1.1 200 OK\r\n\r\n", StartLine),
        ("HTTP/1.1  200 OK\r\n\r\n", StartLine),
        ("HTTP/1.1\t200 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 20 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 2000 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 099 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 +20 OK\r\n\r\n", StartLine),
        ("HTTP/1.1 200\tOK\r\n\r\n", StartLine),
        ("HTTP/1.1 200 O\0K\r\n\r\n", StartLine),
        ("HTTP/1.1 200 O\rK\r\n\r\n", StartLine),
        ("HTTP/1.1 200\rX\r\n\r\n", StartLine),
        ("HTTP/1.1 200 OK\n\r\n", LineEnd),
        ("HTTP/1.1 200 OK\n\n", LineEnd),
        ("HTTP/1.1 200 \n\r\n", LineEnd),
        ("HTTP/1.1 200\n\r\n", LineEnd),
        ("HTTP/1.1 200\nX: a\r\n\r\n", LineEnd),
        ("HTTP/1.1 200 OK\r\n\n", LineEnd),
        ("HTTP/1.3 200 OK\r\n\r\n", Version),
        ("HTTP/2.0 200 OK\r\n\r\n", Version),
        ("HTTP/2 200 OK\r\n\r\n", StartLine),
        ("HTTP/1.1200 OK\r\n\r\n", StartLine),
        ("ICY 200 OK\r\n\r\n", StartLine),
        ("SSH-2.0-OpenSSH_9.2\r\n", StartLine),
    ] {
        assert_eq!(response(text), Err(error), "{text:?}");
    }
}

#[test]
fn a_written_head_cannot_be_split_by_its_reason() {
    let head = ResponseHead {
        status: 403,
        reason: "no\r\nX: y\0".into(),
        version: Version::Http11,
        fields: Fields::new(),
    };
    let mut out = Vec::new();
    head.write_to(&mut out);
    assert_eq!(out, b"HTTP/1.1 403 no  X: y \r\n\r\n");
}

#[test]
fn methods_know_their_properties() {
    for (text, safe, idempotent) in [
        ("GET", true, true),
        ("HEAD", true, true),
        ("OPTIONS", true, true),
        ("TRACE", true, true),
        ("PUT", false, true),
        ("DELETE", false, true),
        ("POST", false, false),
        ("PATCH", false, false),
        ("CONNECT", false, false),
        ("get", false, false),
        ("PURGE", false, false),
    ] {
        let method = Method::parse(text).unwrap();
        assert_eq!((method.is_safe(), method.is_idempotent()), (safe, idempotent), "{text}");
        assert_eq!(method.to_string(), text);
        assert_eq!(method, method.clone());
    }
    assert!(matches!(Method::parse("GET").unwrap(), Method::GET));
    for text in ["", "GE T", "GET\r", "G\u{e9}T", "a:b"] {
        assert_eq!(Method::parse(text), Err(Malformed::Method), "{text:?}");
    }
}
