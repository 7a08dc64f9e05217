use super::super::{HeadLimits, Parsed, parse_request, parse_response};
use super::*;

fn request(line: &str, fields: &str) -> Result<Framing, Malformed> {
    let text = format!("{line}\r\nHost: a:1\r\n{fields}\r\n");
    match parse_request(text.as_bytes(), &HeadLimits::default()) {
        Ok(Parsed::Complete { head, .. }) => request_framing(&head),
        other => panic!("{text:?}: {other:?}"),
    }
}

fn response(method: &Method, line: &str, fields: &str) -> Result<Framing, Malformed> {
    let text = format!("{line}\r\n{fields}\r\n");
    match parse_response(text.as_bytes(), &HeadLimits::default()) {
        Ok(Parsed::Complete { head, .. }) => response_framing(method, &head),
        other => panic!("{text:?}: {other:?}"),
    }
}

const SOUND: &[(&str, Option<Framing>)] = &[
    ("", None),
    ("Content-Length: 0\r\n", Some(Framing::Length(0))),
    ("Content-Length:7\r\n", Some(Framing::Length(7))),
    ("content-length: \t007 \r\n", Some(Framing::Length(7))),
    ("Content-Length: 18446744073709551615\r\n", Some(Framing::Length(u64::MAX))),
    ("Transfer-Encoding: chunked\r\n", Some(Framing::Chunked)),
    ("transfer-encoding:\tChUnKeD \r\n", Some(Framing::Chunked)),
    ("Content-Length-: 5\r\nXContent-Length: 6\r\n", None),
];

const UNSOUND: &[(&str, Malformed)] = &[
    ("Content-Length:\r\n", Malformed::ContentLength),
    ("Content-Length: +5\r\n", Malformed::ContentLength),
    ("Content-Length: -5\r\n", Malformed::ContentLength),
    ("Content-Length: 5 5\r\n", Malformed::ContentLength),
    ("Content-Length: 0x5\r\n", Malformed::ContentLength),
    ("Content-Length: 5.0\r\n", Malformed::ContentLength),
    ("Content-Length: 5, 5\r\n", Malformed::ContentLength),
    ("Content-Length: 5,\r\n", Malformed::ContentLength),
    ("Content-Length: \"5\"\r\n", Malformed::ContentLength),
    ("Content-Length: \u{ff15}\r\n", Malformed::ContentLength),
    ("Content-Length: 18446744073709551616\r\n", Malformed::ContentLength),
    ("Content-Length: 99999999999999999999999\r\n", Malformed::ContentLength),
    ("Content-Length: 5\r\nContent-Length: 5\r\n", Malformed::ContentLength),
    ("Content-Length: 5\r\ncontent-length: 6\r\n", Malformed::ContentLength),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Malformed::LengthAndCoding),
    ("Content-Length: x\r\nTransfer-Encoding: x\r\n", Malformed::LengthAndCoding),
    ("Transfer-Encoding:\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: ,\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: chunked,\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: ,chunked\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: chunked, chunked\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: chunked, gzip\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: chunked;q=1\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: \"chunked\"\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: chunked x\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: \u{a0}chunked\r\n", Malformed::TransferEncoding),
    ("Transfer-Encoding: xchunked\r\n", Malformed::UnknownCoding),
    ("Transfer-Encoding: identity\r\n", Malformed::UnknownCoding),
    ("Transfer-Encoding: gzip\r\n", Malformed::UnknownCoding),
    ("Transfer-Encoding: gzip, chunked\r\n", Malformed::UnknownCoding),
    ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Malformed::UnknownCoding),
];

#[test]
fn requests_are_framed() {
    for (fields, framing) in SOUND {
        let expected = Ok(framing.unwrap_or(Framing::None));
        assert_eq!(request("POST / HTTP/1.1", fields), expected, "{fields:?}");
        assert_eq!(request("GET / HTTP/1.1", fields), expected, "{fields:?}");
    }
    for (fields, error) in UNSOUND {
        assert_eq!(request("POST / HTTP/1.1", fields), Err(*error), "{fields:?}");
        assert_eq!(request("CONNECT a:1 HTTP/1.1", fields), Err(*error), "{fields:?}");
    }
}

#[test]
fn a_connect_has_no_body() {
    let line = "CONNECT a:1 HTTP/1.1";
    assert_eq!(request(line, ""), Ok(Framing::None));
    assert_eq!(request(line, "Content-Length: 0\r\n"), Ok(Framing::None));
    for fields in ["Content-Length: 1\r\n", "Transfer-Encoding: chunked\r\n"] {
        assert_eq!(request(line, fields), Err(Malformed::ConnectBody), "{fields:?}");
    }
}

#[test]
fn http_1_0_has_no_transfer_codings() {
    let fields = "Transfer-Encoding: chunked\r\n";
    assert_eq!(request("POST / HTTP/1.0", fields), Err(Malformed::CodingInHttp10));
    let line = "HTTP/1.0 200 OK";
    assert_eq!(response(&Method::GET, line, fields), Err(Malformed::CodingInHttp10));
    assert_eq!(request("POST / HTTP/1.0", "Content-Length: 5\r\n"), Ok(Framing::Length(5)));
    assert_eq!(response(&Method::GET, line, ""), Ok(Framing::UntilClose));
}

#[test]
fn responses_are_framed() {
    for line in ["HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found", "HTTP/1.1 206 Part"] {
        for (fields, framing) in SOUND {
            let expected = Ok(framing.unwrap_or(Framing::UntilClose));
            assert_eq!(response(&Method::GET, line, fields), expected, "{line} {fields:?}");
        }
        for (fields, error) in UNSOUND {
            assert_eq!(response(&Method::GET, line, fields), Err(*error), "{line} {fields:?}");
            assert_eq!(response(&Method::HEAD, line, fields), Err(*error), "{line} {fields:?}");
        }
    }
    for line in ["HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified", "HTTP/1.1 103 Hints"] {
        for (fields, error) in UNSOUND {
            assert_eq!(response(&Method::GET, line, fields), Err(*error), "{line} {fields:?}");
        }
    }
    let line = "HTTP/1.1 502 Bad Gateway";
    let framing = response(&Method::CONNECT, line, "Content-Length: 5\r\n");
    assert_eq!(framing, Ok(Framing::Length(5)));
}

#[test]
fn some_responses_have_no_body_whatever_they_say() {
    for (fields, _) in SOUND {
        for (method, line) in [
            (Method::HEAD, "HTTP/1.1 200 OK"),
            (Method::GET, "HTTP/1.1 304 Not Modified"),
            (Method::GET, "HTTP/1.1 204 No Content"),
            (Method::PUT, "HTTP/1.1 100 Continue"),
            (Method::GET, "HTTP/1.1 101 Switching Protocols"),
            (Method::CONNECT, "HTTP/1.1 200 OK"),
        ] {
            let framing = response(&method, line, fields);
            assert_eq!(framing, Ok(Framing::None), "{method} {line} {fields:?}");
        }
    }
}

#[test]
fn a_body_that_is_announced_where_there_is_none_is_noticed() {
    for (line, lines, claimed) in [
        ("HTTP/1.1 204 No Content", "", false),
        ("HTTP/1.1 204 No Content", "Content-Length: 0\r\n", false),
        ("HTTP/1.1 204 No Content", "Content-Length: 1\r\n", true),
        ("HTTP/1.1 204 No Content", "Transfer-Encoding: chunked\r\n", true),
        ("HTTP/1.1 103 Early Hints", "Content-Length: 1\r\n", true),
        ("HTTP/1.1 304 Not Modified", "Content-Length: 1\r\n", false),
        ("HTTP/1.1 200 OK", "Content-Length: 1\r\n", false),
    ] {
        let text = format!("{line}\r\n{lines}\r\n");
        let Ok(Parsed::Complete { head, .. }) =
            parse_response(text.as_bytes(), &HeadLimits::default())
        else {
            panic!("{text:?}");
        };
        assert_eq!(claims_a_body(&head), claimed, "{text:?}");
    }
}

#[test]
fn the_length_of_a_body_that_is_not_sent() {
    let mut fields = Fields::new();
    assert_eq!(content_length(&fields), Ok(None));
    fields.push("Content-Length", "5").unwrap();
    assert_eq!(content_length(&fields), Ok(Some(5)));
    fields.push("Content-Length", "5").unwrap();
    assert_eq!(content_length(&fields), Err(Malformed::ContentLength));
}

#[test]
fn connections_are_kept_as_both_sides_mean_it() {
    for (version, connection, kept) in [
        (Version::Http11, &[][..], true),
        (Version::Http11, &["keep-alive"], true),
        (Version::Http11, &["Close"], false),
        (Version::Http11, &["x, close"], false),
        (Version::Http11, &["keep-alive", "close"], false),
        (Version::Http11, &["closed"], true),
        (Version::Http10, &[], false),
        (Version::Http10, &["Keep-Alive"], true),
        (Version::Http10, &["keep-alive, close"], false),
        (Version::Http10, &["x"], false),
    ] {
        let mut fields = Fields::new();
        for value in connection {
            fields.push("Connection", value).unwrap();
        }
        assert_eq!(keeps_alive(version, &fields), kept, "{version} {connection:?}");
    }
}
