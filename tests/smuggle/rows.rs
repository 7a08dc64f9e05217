//! Messages that must not be taken, as tables: each row is a name, the bytes, and the status with
//! which they are refused. RFC 9112 and RFC 9110 have the rules.
//!
//! In the bytes `{t}` stands for the target of the place where the row is tried, `{h}` for its
//! Host.

/// A request and the status of its refusal.
pub type Row = (&'static str, &'static str, u16);

/// Content-Length (RFC 9110 8.6) and Transfer-Encoding (RFC 9112 6.1): fields of a message with
/// [`BODY`].
pub const FRAMINGS: &[Row] = &[
    ("length repeated", "Content-Length: 5\r\nContent-Length: 5\r\n", 400),
    ("length conflicting", "Content-Length: 5\r\ncontent-length: 6\r\n", 400),
    ("length conflicting with none", "Content-Length: 0\r\nContent-Length: 5\r\n", 400),
    ("length listed", "Content-Length: 5, 5\r\n", 400),
    ("length listed, conflicting", "Content-Length: 5, 6\r\n", 400),
    ("length with a comma", "Content-Length: 5,\r\n", 400),
    ("length signed +", "Content-Length: +5\r\n", 400),
    ("length signed -", "Content-Length: -5\r\n", 400),
    ("length -0", "Content-Length: -0\r\n", 400),
    ("length beyond 64 bits", "Content-Length: 18446744073709551616\r\n", 400),
    ("length that wraps to 5", "Content-Length: 18446744073709551621\r\n", 400),
    ("length of 40 digits", "Content-Length: 1000000000000000000000000000000000000005\r\n", 400),
    ("length in hex", "Content-Length: 0x5\r\n", 400),
    ("length with an exponent", "Content-Length: 5e0\r\n", 400),
    ("length with a fraction", "Content-Length: 5.0\r\n", 400),
    ("length in two words", "Content-Length: 5 5\r\n", 400),
    ("length quoted", "Content-Length: \"5\"\r\n", 400),
    ("length empty", "Content-Length:\r\n", 400),
    ("length in other digits", "Content-Length: \u{ff15}\r\n", 400),
    ("length and coding", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
    ("coding and length", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
    ("coding and length 0", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", 400),
    ("unknown coding and length", "Transfer-Encoding: x\r\nContent-Length: 5\r\n", 400),
    ("coding twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
    ("coding twice in a list", "Transfer-Encoding: chunked, chunked\r\n", 400),
    ("coding chunked first", "Transfer-Encoding: chunked, gzip\r\n", 400),
    ("coding chunked first, lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", 400),
    ("coding chunked last", "Transfer-Encoding: gzip, chunked\r\n", 501),
    ("coding chunked last, lines", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n", 501),
    ("coding gzip", "Transfer-Encoding: gzip\r\n", 501),
    ("coding identity", "Transfer-Encoding: identity\r\n", 501),
    ("coding xchunked", "Transfer-Encoding: xchunked\r\n", 501),
    ("coding chunked and a word", "Transfer-Encoding: chunked x\r\n", 400),
    ("coding with a parameter", "Transfer-Encoding: chunked;q=1\r\n", 400),
    ("coding quoted", "Transfer-Encoding: \"chunked\"\r\n", 400),
    ("coding empty", "Transfer-Encoding:\r\n", 400),
    ("coding behind a comma", "Transfer-Encoding: ,chunked\r\n", 400),
    ("coding before a comma", "Transfer-Encoding: chunked,\r\n", 400),
    ("coding behind a vertical tab", "Transfer-Encoding: \x0bchunked\r\n", 400),
    ("coding behind a form feed", "Transfer-Encoding:\x0cchunked\r\n", 400),
    ("coding behind a no-break space", "Transfer-Encoding: \u{a0}chunked\r\n", 400),
    ("coding and a CR", "Transfer-Encoding: chunked\r\r\n", 400),
    ("coding and a NUL", "Transfer-Encoding: chunked\0\r\n", 400),
    ("coding folded", "Transfer-Encoding:\r\n chunked\r\n", 400),
    ("coding folded with a tab", "Transfer-Encoding:\r\n\tchunked\r\n", 400),
    ("coding behind a space", "Transfer-Encoding : chunked\r\n", 400),
    ("coding behind a tab", "Transfer-Encoding\t: chunked\r\n", 400),
    ("coding behind a bare LF", "X: a\nTransfer-Encoding: chunked\r\n", 400),
    ("coding behind a bare CR", "X: a\rTransfer-Encoding: chunked\r\n", 400),
    ("coding before a bare LF", "Transfer-Encoding: chunked\nX: a\r\n", 400),
    ("length behind a space", "Content-Length : 5\r\n", 400),
    ("length folded", "Content-Length: 5\r\n 0\r\n", 400),
    ("length on the next line", "Content-Length:\r\n 5\r\n", 400),
    ("length and a NUL", "Content-Length: 5\0\r\n", 400),
    ("length and a CR", "Content-Length: 5\r\r\n", 400),
    ("length behind a NUL", "Content-\0Length: 5\r\n", 400),
];

/// Field lines (RFC 9112 5, RFC 9110 5.5), wherever they stand in a head.
pub const FIELDS: &[Row] = &[
    ("space before the colon", "X : a\r\n", 400),
    ("tab before the colon", "X\t: a\r\n", 400),
    ("space before the name", " X: a\r\n", 400),
    ("folded with a space", "X: a\r\n b\r\n", 400),
    ("folded with a tab", "X: a\r\n\tb\r\n", 400),
    ("folded and empty", "X: a\r\n \r\n", 400),
    ("folded after nothing", "X:\r\n a\r\n", 400),
    ("no colon", "X\r\n", 400),
    ("no name", ": a\r\n", 400),
    ("name of two words", "X Y: a\r\n", 400),
    ("name with a bracket", "X(: a\r\n", 400),
    ("name with a slash", "X/Y: a\r\n", 400),
    ("name beyond ASCII", "X\u{e9}: a\r\n", 400),
    ("name with a NUL", "X\0: a\r\n", 400),
    ("name with a CR", "X\rY: a\r\n", 400),
    ("name with a LF", "X\nY: a\r\n", 400),
    ("name with DEL", "X\x7f: a\r\n", 400),
    ("value with a CR", "X: a\rb\r\n", 400),
    ("value before a CR", "X: a\r\r\n", 400),
    ("value with a bare LF", "X: a\nb\r\n", 400),
    ("line that ends in LF", "X: a\nY: b\r\n", 400),
    ("line that ends in LF CR", "X: a\n\rY: b\r\n", 400),
    ("value with a NUL", "X: a\0b\r\n", 400),
    ("value with 0x01", "X: a\x01b\r\n", 400),
    ("value with a backspace", "X: a\x08b\r\n", 400),
    ("value with a vertical tab", "X: a\x0bb\r\n", 400),
    ("value with ESC", "X: \x1b[2J\r\n", 400),
    ("value with DEL", "X: a\x7fb\r\n", 400),
];

/// Whole heads: request lines (RFC 9112 3), versions (2.3), Host (3.2), ends of heads.
pub const HEADS: &[Row] = &[
    ("HTTP/0.9", "GET {t}\r\n\r\n", 400),
    ("HTTP/0.9 by its name", "GET {t} HTTP/0.9\r\nHost: {h}\r\n\r\n", 505),
    ("HTTP/1.2", "GET {t} HTTP/1.2\r\nHost: {h}\r\n\r\n", 505),
    ("HTTP/1.9", "GET {t} HTTP/1.9\r\nHost: {h}\r\n\r\n", 505),
    ("HTTP/2.0", "GET {t} HTTP/2.0\r\nHost: {h}\r\n\r\n", 505),
    ("HTTP/2", "GET {t} HTTP/2\r\nHost: {h}\r\n\r\n", 400),
    ("HTTP/1.10", "GET {t} HTTP/1.10\r\nHost: {h}\r\n\r\n", 400),
    ("HTTP/1", "GET {t} HTTP/1\r\nHost: {h}\r\n\r\n", 400),
    ("HTTP/+1.1", "GET {t} HTTP/+1.1\r\nHost: {h}\r\n\r\n", 400),
    ("http/1.1", "GET {t} http/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("HTTQ/1.1", "GET {t} HTTQ/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("the HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("a TLS hello", "\x16\x03\x01\x00\u{7f}\x01\x00\x00\r\n\r\n", 400),
    ("no version, a space", "GET {t} \r\nHost: {h}\r\n\r\n", 400),
    ("two spaces before the target", "GET  {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("two spaces behind the target", "GET {t}  HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("space behind the version", "GET {t} HTTP/1.1 \r\nHost: {h}\r\n\r\n", 400),
    ("tab for a space", "GET\t{t}\tHTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("space first", " GET {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("LF first", "\nGET {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("two empty lines first", "\r\n\r\nGET {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("request line that ends in LF", "GET {t} HTTP/1.1\nHost: {h}\r\n\r\n", 400),
    ("request line that ends in CR", "GET {t} HTTP/1.1\rHost: {h}\r\n\r\n", 400),
    ("request line with CR CR LF", "GET {t} HTTP/1.1\r\r\nHost: {h}\r\n\r\n", 400),
    ("all lines end in LF", "GET {t} HTTP/1.1\nHost: {h}\n\n", 400),
    ("head that ends in LF", "GET {t} HTTP/1.1\r\nHost: {h}\r\n\n", 400),
    ("head that ends in LF LF", "GET {t} HTTP/1.1\r\nHost: {h}\n\n", 400),
    ("folded request line", "GET {t} HTTP/1.1\r\n X: a\r\nHost: {h}\r\n\r\n", 400),
    ("no method", " {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("method with a bracket", "G(T {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("method with a colon", "GET: {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("method with a NUL", "G\0T {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("method beyond ASCII", "G\u{e9}T {t} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with a space", "GET {t} x HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with a tab", "GET {t}\tx HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with a NUL", "GET {t}\0 HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with a CR", "GET {t}\r/ HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with a LF", "GET {t}\n/ HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with DEL", "GET {t}\x7f HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target beyond ASCII", "GET {t}\u{e9} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with a fragment", "GET {t}#x HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target without a slash", "GET row HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target of another scheme", "GET ftp://{h}/row HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target without a host", "GET http:///row HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with a user", "GET http://u:p@{h}/row HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with port 0", "GET http://a.test:0/row HTTP/1.1\r\nHost: a.test:0\r\n\r\n", 400),
    ("target with port 65536", "GET http://a.test:65536/ HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with port +80", "GET http://a.test:+80/ HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("target with an address in hex", "GET http://0x7f.1/ HTTP/1.1\r\nHost: 0x7f.1\r\n\r\n", 400),
    ("target with a zone", "GET http://[fe80::1%25lo]/ HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("authority for a GET", "GET {h} HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("asterisk for a GET", "GET * HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("coding in HTTP/1.0", "GET {t} HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("no Host", "GET {t} HTTP/1.1\r\nX: a\r\n\r\n", 400),
    ("Host twice", "GET {t} HTTP/1.1\r\nHost: {h}\r\nHost: {h}\r\n\r\n", 400),
    ("Host twice, other case", "GET {t} HTTP/1.1\r\nHost: {h}\r\nhOST: evil.test\r\n\r\n", 400),
    ("Host twice in HTTP/1.0", "GET {t} HTTP/1.0\r\nHost: {h}\r\nHost: evil.test\r\n\r\n", 400),
    ("Host empty", "GET {t} HTTP/1.1\r\nHost:\r\n\r\n", 400),
    ("Host listed", "GET {t} HTTP/1.1\r\nHost: {h}, {h}\r\n\r\n", 400),
    ("Host in two words", "GET {t} HTTP/1.1\r\nHost: {h} x\r\n\r\n", 400),
    ("Host with a user", "GET {t} HTTP/1.1\r\nHost: u@{h}\r\n\r\n", 400),
    ("Host with a path", "GET {t} HTTP/1.1\r\nHost: {h}/x\r\n\r\n", 400),
    ("Host with a scheme", "GET {t} HTTP/1.1\r\nHost: http://{h}\r\n\r\n", 400),
    ("Host with a port of letters", "GET {t} HTTP/1.1\r\nHost: a.test:http\r\n\r\n", 400),
    ("Host with port 65536", "GET {t} HTTP/1.1\r\nHost: a.test:65536\r\n\r\n", 400),
    ("Host with two ports", "GET {t} HTTP/1.1\r\nHost: a.test:80:80\r\n\r\n", 400),
    ("Host of IPv6 without brackets", "GET {t} HTTP/1.1\r\nHost: ::1\r\n\r\n", 400),
    ("Host beyond ASCII", "GET {t} HTTP/1.1\r\nHost: \u{e9}.test\r\n\r\n", 400),
    ("Host behind a space", "GET {t} HTTP/1.1\r\nHost : {h}\r\n\r\n", 400),
    ("Host folded", "GET {t} HTTP/1.1\r\nHost:\r\n {h}\r\n\r\n", 400),
    ("Host against the target", "GET http://{h}/row HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400),
    ("port against the target", "GET http://a.test/ HTTP/1.1\r\nHost: a.test:81\r\n\r\n", 400),
    ("Host against it in HTTP/1.0", "GET http://{h}/ HTTP/1.0\r\nHost: evil.test\r\n\r\n", 400),
    ("CONNECT without a port", "CONNECT a.test HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
    ("CONNECT to port 0", "CONNECT a.test:0 HTTP/1.1\r\nHost: a.test\r\n\r\n", 400),
    ("CONNECT to a URL", "CONNECT http://{h}/ HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("CONNECT to a path", "CONNECT /row HTTP/1.1\r\nHost: {h}\r\n\r\n", 400),
    ("CONNECT without Host", "CONNECT {h} HTTP/1.1\r\nX: a\r\n\r\n", 400),
    ("CONNECT against its Host", "CONNECT {h} HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400),
];

/// Chunked bodies (RFC 9112 7.1) that are broken before their end.
pub const CHUNKS: &[Row] = &[
    ("no chunk size", "\r\nhello\r\n0\r\n\r\n", 400),
    ("no chunk size and an end", "\r\n\r\n", 400),
    ("no chunk size but an extension", ";a\r\n\r\n", 400),
    ("chunk size signed +", "+5\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size signed -", "-5\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size -0", "-0\r\n\r\n", 400),
    ("chunk size with 0x", "0x5\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size in other letters", "g\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size with an underscore", "0_5\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size that wraps to 5", "10000000000000005\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size of 20 digits", "ffffffffffffffff0005\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size of 17 zeros", "00000000000000000\r\n\r\n", 400),
    ("space before a chunk size", " 5\r\nhello\r\n0\r\n\r\n", 400),
    ("tab before a chunk size", "\t5\r\nhello\r\n0\r\n\r\n", 400),
    ("space behind a chunk size", "5 \r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size in two words", "5 5\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size and a NUL", "5\0\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk size line that ends in LF", "5\nhello\r\n0\r\n\r\n", 400),
    ("chunk size line that ends in CR", "5\rhello\r\n0\r\n\r\n", 400),
    ("chunk size line with CR CR LF", "5\r\r\nhello\r\n0\r\n\r\n", 400),
    ("chunk without CR LF", "5\r\nhello0\r\n\r\n", 400),
    ("chunk that ends in LF", "5\r\nhello\n0\r\n\r\n", 400),
    ("chunk that ends in CR", "5\r\nhello\r0\r\n\r\n", 400),
    ("chunk longer than its size", "5\r\nhello!\r\n0\r\n\r\n", 400),
    ("chunk shorter than its size", "6\r\nhello\r\n0\r\n\r\n", 400),
    ("extension without a name", "5;\r\nhello\r\n0\r\n\r\n", 400),
    ("extension with a bare LF", "5;a\nb\r\nhello\r\n0\r\n\r\n", 400),
    ("extension with a bare CR", "5;a\rb\r\nhello\r\n0\r\n\r\n", 400),
    ("extension with a quoted line", "5;a=\"\r\nhello\r\n0\r\n\r\n", 400),
    ("extension with a NUL", "5;a=\0\r\nhello\r\n0\r\n\r\n", 400),
    ("last chunk that ends in LF", "5\r\nhello\r\n0\n\n", 400),
    ("last chunk and LF", "5\r\nhello\r\n0\r\n\n", 400),
    ("trailer without a colon", "5\r\nhello\r\n0\r\nX\r\n\r\n", 400),
    ("trailer behind a space", "5\r\nhello\r\n0\r\nX : a\r\n\r\n", 400),
    ("trailer folded", "5\r\nhello\r\n0\r\nX: a\r\n b\r\n\r\n", 400),
    ("trailer with a NUL", "5\r\nhello\r\n0\r\nX: a\0\r\n\r\n", 400),
    ("trailer with a bare CR", "5\r\nhello\r\n0\r\nX: a\rY: b\r\n\r\n", 400),
    ("trailer that ends in LF", "5\r\nhello\r\n0\r\nX: a\n\r\n", 400),
];

/// Status lines (RFC 9112 4) that upstream must not send.
pub const STATUS_LINES: &[(&str, &str)] = &[
    ("empty line first", "\r\nHTTP/1.1 200 OK\r\n"),
    ("LF first", "\nHTTP/1.1 200 OK\r\n"),
    ("status line that ends in LF", "HTTP/1.1 200 OK\n"),
    ("status line that ends in CR", "HTTP/1.1 200 OK\rX: a\r\n"),
    ("two spaces", "HTTP/1.1  200 OK\r\n"),
    ("a tab", "HTTP/1.1\t200 OK\r\n"),
    ("status of two digits", "HTTP/1.1 20 OK\r\n"),
    ("status of four digits", "HTTP/1.1 2000 OK\r\n"),
    ("status below 100", "HTTP/1.1 099 OK\r\n"),
    ("status signed", "HTTP/1.1 +20 OK\r\n"),
    ("status in letters", "HTTP/1.1 OK\r\n"),
    ("reason with a NUL", "HTTP/1.1 200 O\0K\r\n"),
    ("HTTP/2.0", "HTTP/2.0 200 OK\r\n"),
    ("HTTP/1.2", "HTTP/1.2 200 OK\r\n"),
    ("HTTP/0.9", "HTTP/0.9 200 OK\r\n"),
    ("HTTP/1.10", "HTTP/1.10 200 OK\r\n"),
    ("ICY", "ICY 200 OK\r\n"),
    ("SSH", "SSH-2.0-OpenSSH_9.2\r\n"),
    ("HTTP/0.9's bare body", "<html>hello</html>\r\n"),
];

/// Five bytes, or a whole chunked body: whichever reading a peer takes, the next message begins
/// behind it.
pub const BODY: &str = "0\r\n\r\n";

/// A request with these field lines before or behind the others, and a body.
pub fn with_fields(method: &str, lines: &str, first: bool) -> String {
    let (before, behind) = if first { (lines, "") } else { ("", lines) };
    format!("{method} {{t}} HTTP/1.1\r\n{before}Host: {{h}}\r\n{behind}\r\n{BODY}")
}

/// As [`with_fields`], the fields last and no body.
pub fn without_body(method: &str, lines: &str) -> String {
    format!("{method} {{t}} HTTP/1.1\r\nHost: {{h}}\r\n{lines}\r\n")
}

/// A request with this coded body.
pub fn chunked(body: &str) -> String {
    format!("POST {{t}} HTTP/1.1\r\nHost: {{h}}\r\nTransfer-Encoding: chunked\r\n\r\n{body}")
}

/// Bytes of a head that `limits.header_size` allows, and of a target.
const HEAD_MAX: usize = 64 << 10;

/// What is too much of something; too long for a table.
pub fn oversize() -> Vec<(&'static str, String, u16)> {
    let head = |method: &str, target: &str, lines: &str| {
        format!("{method} {{t}}{target} HTTP/1.1\r\nHost: {{h}}\r\n{lines}\r\n")
    };
    let line = format!("X: {}\r\n", "a".repeat(1000));
    let long = format!("5;a={}\r\nhello\r\n0\r\n\r\n", "b".repeat(5000));
    let trailers = |line: &str, count| format!("5\r\nhello\r\n0\r\n{}\r\n", line.repeat(count));
    vec![
        ("a long field", head("GET", "", &format!("X: {}\r\n", "a".repeat(HEAD_MAX))), 431),
        ("a long name", head("GET", "", &format!("{}: a\r\n", "X".repeat(HEAD_MAX))), 431),
        ("many long fields", head("GET", "", &line.repeat(70)), 431),
        ("many short fields", head("GET", "", &"X: a\r\n".repeat(128)), 431),
        ("fields without end", "X: a\r\n".repeat(20_000), 400),
        ("a long target", head("GET", &format!("?{}", "a".repeat(HEAD_MAX / 2)), ""), 414),
        ("a target without end", format!("GET {{t}}?{}", "a".repeat(3 * HEAD_MAX)), 414),
        ("a long method", head(&"G".repeat(65), "", ""), 501),
        ("a method without end", "G".repeat(3 * HEAD_MAX), 431),
        ("a long chunk extension", chunked(&long), 400),
        ("long trailers", chunked(&trailers(&line, 17)), 431),
        ("many trailers", chunked(&trailers("X: a\r\n", 65)), 431),
    ]
}
