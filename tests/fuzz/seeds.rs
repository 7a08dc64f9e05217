//! Where mutation begins: good and bad inputs of each target, and words that make a difference.

use super::targets::stored;

/// What a target's inputs are made of.
pub struct Seeds {
    pub inputs: Vec<Vec<u8>>,
    pub words: &'static [&'static str],
}

pub fn head() -> Seeds {
    let inputs = [
        "GET /v2/ HTTP/1.1\r\nHost: registry.test\r\n\r\n",
        "\r\nGET http://A.test:5000/a?b HTTP/1.1\r\nhost: a.test:5000\r\nA:\t b \r\n\r\n",
        "CONNECT registry.test:443 HTTP/1.1\r\nHost: registry.test\r\nContent-Length: 0\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\nConnection: close, te\r\n\r\nGET / HTTP/1.1\r\n",
        "OPTIONS http://registry.test HTTP/1.1\r\nHost: registry.test\r\n\r\n",
        "POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
        "PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "M-SEARCH /%00?q=\"{}|^ HTTP/1.1\r\nHost: 192.0.2.1\r\nX: \u{80}\r\nx: 2\r\nX:\r\n\r\n",
    ];
    let words = &[
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        " ",
        "\t",
        ":",
        "\0",
        "Host: ",
        "Host: a\r\n",
        "HTTP/1.1",
        "HTTP/1.0",
        "HTTP/2.0",
        "Content-Length: 5\r\n",
        "Content-Length: +5\r\n",
        "chunked",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "GET ",
        "http://",
        "https://",
        "@",
        "#",
        "?",
        "*",
        "/",
        "CONNECT ",
        "[::1]",
        "127.1",
        ":443",
        "\x7f",
        " : ",
        "A: b\r\n",
        "\r\n c\r\n",
        ",",
        "xn--",
        "\u{e4}",
    ];
    Seeds { inputs: bytes(&inputs), words }
}

pub fn response_head() -> Seeds {
    let inputs = [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"a\"\r\n\r\n0123456789",
        "HTTP/1.1 206\r\nContent-Range: bytes 0-9/100\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.0 404 Not  Found \r\nServer:\r\n\r\n",
        "HTTP/1.1 307 \u{fc}mgezogen\r\nLocation: https://b.test/x?sig=%2F\r\nVary: *\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    ];
    Seeds { inputs: bytes(&inputs), words: head().words }
}

pub fn chunks() -> Seeds {
    let inputs = [
        "5\r\nhello\r\n0\r\n\r\n",
        "a\r\n0123456789\r\nF;a=b; c=\"d\\\"e\" ;f\r\n0123456789abcde\r\n000\r\n\r\nGET",
        "1 ; x = y\r\nz\r\n0;last\r\nDigest: abc\r\nX-Two:  2 \r\nContent-Length: 3\r\n\r\n",
        "ffffffffffffffff\r\nmore",
        "00000000000000005\r\nhello\r\n",
        "0\r\nA: b\r\n",
    ];
    let words = &[
        "\r\n",
        "\n",
        "\r",
        "0\r\n",
        "0\r\n\r\n",
        "\r\n\r\n",
        ";",
        "=",
        "\"",
        "\\",
        " ",
        "\t",
        "0x",
        "-1",
        "+1",
        "7fffffffffffffff",
        "ffffffffffffffff",
        "10000000000000000",
        "A: b\r\n",
        ":",
        "Host: a\r\n",
        "Transfer-Encoding: chunked\r\n",
        "1\r\nx\r\n",
        "2;a\r\nxy\r\n",
    ];
    Seeds { inputs: bytes(&inputs), words }
}

pub fn range() -> Seeds {
    let values = [
        "bytes=0-",
        "bytes=5-9",
        "BYTES=-3",
        "bytes=0-0",
        "bytes=9-5",
        "bytes=0-1,3-4",
        "bytes=18446744073709551615-",
        "bytes=0-18446744073709551616",
        "bytes=-0",
        "bytes 0-4/10",
        "bytes 5-5/*",
        "bytes */10",
        "bytes=007-08",
        "items=0-1",
        "bytes 0-9/18446744073709551615",
    ];
    let inputs = values.iter().zip(0_u64..).map(|(value, number)| {
        let len = [10, 0, 1, u64::MAX, 1 << 33][(number % 5) as usize];
        [&len.to_le_bytes(), value.as_bytes()].concat()
    });
    let words = &[
        "bytes=",
        "bytes ",
        "-",
        ",",
        "/",
        "*",
        "0",
        "00",
        "18446744073709551615",
        " ",
        "+",
        "18446744073709551616",
        "99999999999999999999999999999999999999999",
        "\t",
        "\0",
        "=",
        "1",
    ];
    Seeds { inputs: inputs.collect(), words }
}

pub fn target() -> Seeds {
    let texts = [
        "/v2/a/blobs/sha256:00?x=%2F",
        "http://Registry.test:5000/a?b",
        "registry.test:443",
        "*",
        "https://[2001:db8::1]:8443",
        "[::ffff:127.0.0.1]:443",
        "127.0.0.1:80",
        "127.1",
        "0x7f.1",
        "2130706433",
        "localhost.",
        "a_b.xn--c:1",
        "http://a?b",
        "http://u:p@a/",
        "//a",
        "/#x",
        "0177.0.0.1",
        "1.2.3.4.",
        "a..b",
        "00.0x0",
        "http://h",
        "999.1.1.1",
    ];
    let inputs = texts.iter().zip(0_u8..).map(|(text, n)| [&[n], text.as_bytes()].concat());
    let words = &[
        ".",
        "..",
        ":",
        "/",
        "?",
        "#",
        "@",
        "[",
        "]",
        "%",
        "0x",
        "0",
        "1",
        "255",
        "256",
        ":443",
        ":0",
        ":65536",
        "http://",
        "https://",
        "ftp://",
        "::",
        "*",
        "-",
        "_",
        "127",
        "A",
        "\u{e4}",
        "4294967295",
        "xn--",
        ":00080",
    ];
    Seeds { inputs: inputs.collect(), words }
}

pub fn config() -> Seeds {
    let example = include_str!("../../config.example.yaml");
    // A section at a time: what is small is mutated more often.
    let mut inputs: Vec<String> = vec![example.to_owned()];
    for line in example.lines() {
        match inputs.last_mut() {
            Some(last) if inputs_goes_on(line, last) => last.extend([line, "\n"]),
            _ => inputs.push(format!("{line}\n")),
        }
    }
    inputs.extend(MORE.iter().map(|text| (*text).to_owned()));
    let words = &[
        "\n",
        ": ",
        "- ",
        "  ",
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'",
        "&a ",
        "*a",
        "!!str ",
        "|",
        ">",
        "#",
        "---\n",
        "...\n",
        "<<: ",
        "~",
        "null",
        "0",
        "-1",
        "1e3",
        "0x10",
        "18446744073709551616",
        "%",
        "10s",
        "1GiB",
        "0KB",
        "true",
        "off",
        "::",
        "0.0.0.0/0",
        "10.0.0.0/33",
        "*.a",
        "*",
        "(",
        "\\",
        "(a{1000}){1000}",
        "\u{feff}",
        "\u{85}",
        "\t",
        "\0",
        "http://u:p@h:1",
        "proxy:\n",
        "? ",
        "cache:\n  patterns: ",
        "headers:\n  a:\n    set: {A: b}\n",
        "\r\n",
        "99999999999999h",
    ];
    Seeds { inputs: inputs.into_iter().map(String::into_bytes).collect(), words }
}

fn inputs_goes_on(line: &str, last: &str) -> bool {
    !last.contains("\n\n") && (line.starts_with([' ', '#']) || line.is_empty())
}

const MORE: [&str; 5] = [
    "upstream: { retries: 7, read_timeout: 5m }\nallowlist: { enabled: true, ips: [fd00::/8] }\n",
    "headers:\n  \"*.corp\":\n    set: { Authorization: \"Bearer s3cret\", X-Number: 0012 }\n",
    "upstream:\n  proxy: http://user:pass@proxy:3128\n  no_proxy: [.corp, 10.0.0.0/8, \"*\"]\n",
    "tls: &t\n  ktls: on\ncache: {enabled: no, max_size: 20GB, min_free: 0}\nlogging: *t\n",
    "proxy: {bind: [\"::\", 192.0.2.1], api_token: t0ken, workers: 3}\nlimits: {header_size: 1M}\n",
];

pub fn meta() -> Seeds {
    let mut inputs = Vec::new();
    for (number, key) in (0_u8..).zip(stored::keys()) {
        for what in 0..4_u8 {
            let len = [stored::BODY.len(), 10, stored::BODY.len() + 10, stored::BODY.len()];
            let meta = stored::meta(&key, len[usize::from(what)]);
            inputs.push([&[number | what << 1, 10], &meta[..]].concat());
        }
        // Right but for the version of the format.
        let meta = stored::meta(&key, stored::BODY.len());
        let newer = String::from_utf8_lossy(&meta).replace("\"format\":1", "\"format\":2");
        inputs.push([&[number, 10], newer.as_bytes()].concat());
    }
    let words = &[
        "{",
        "}",
        "\"",
        ":",
        ",",
        "\n",
        "null",
        "\"format\":1",
        "\"length\":68",
        "\"length\":10",
        "-",
        "\"length\":78",
        "0",
        "1",
        "1.0",
        "1e0",
        "\\u0000",
        "[",
        "]",
        "2026-01-02T03:04:05Z",
        "\0",
        "\"format\":2",
        "\"key\":",
        "\"stored\":\"\"",
        " ",
        "18446744073709551616",
        "\r\n",
        "url:",
        "9999-12-31T23:59:59Z",
        "0000-01-01T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "sha256:",
    ];
    Seeds { inputs, words }
}

fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}
