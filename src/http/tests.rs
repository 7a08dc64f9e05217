//! Mutated messages against the promises of this folder, and against a second, slow and plain
//! reading of the grammar. Seeded: `DISCOBOT_SEED` repeats a run.

use super::range::{content_range, parse_content_range, parse_range};
use super::*;

/// A chunked body as decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Body {
    pub data: Vec<u8>,
    pub trailers: Fields,
    /// Bytes of the coded form.
    pub len: usize,
}

/// Decodes bytes that are all there at once; `None` where the body does not end in them.
pub(super) fn decode(input: &[u8]) -> Result<Option<Body>, Malformed> {
    decode_cut([input])
}

/// Decodes bytes that arrive in these pieces, each step seeing what is left of one piece.
pub(super) fn decode_cut<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> Result<Option<Body>, Malformed> {
    let mut chunks = Chunks::new();
    let mut data = Vec::new();
    let mut total = 0;
    for mut rest in pieces {
        loop {
            let taken = match chunks.step(rest)? {
                Chunk::Need => {
                    assert!(rest.is_empty(), "bytes were left lying");
                    break;
                }
                Chunk::Skip(taken) => taken,
                Chunk::Data { skip, len } => {
                    assert!(len > 0);
                    data.extend_from_slice(&rest[skip..skip + len]);
                    skip + len
                }
                Chunk::End { len } => {
                    let trailers = chunks.take_trailers();
                    return Ok(Some(Body { data, trailers, len: total + len }));
                }
            };
            total += taken;
            rest = &rest[taken..];
        }
    }
    Ok(None)
}

/// xorshift64*: enough for picking bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a>(&mut self, from: &[&'a [u8]]) -> &'a [u8] {
        from[self.below(from.len())]
    }
}

fn seed() -> u64 {
    let given = std::env::var("DISCOBOT_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    println!("DISCOBOT_SEED={seed}");
    seed.max(1)
}

/// Input that is printed when a test fails over it.
struct Shown(Vec<u8>);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("input: \"{}\"", self.0.escape_ascii());
        }
    }
}

const PIECES: &[&[u8]] = &[
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"=",
    b"\"",
    b"\\",
    b"\0",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xc3\xa9",
    b"#",
    b"?",
    b"/",
    b"*",
    b"@",
    b"%",
    b"[",
    b"]",
    b"::",
    b"0",
    b"1",
    b"9",
    b"f",
    b"g",
    b"+",
    b"-",
    b".",
    b"0x",
    b"18446744073709551616",
    b"ffffffffffffffff",
    b"chunked",
    b"gzip",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 1\r\n",
    b"Host: a\r\n",
    b"X: \r\n",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/2.0",
    b"http://",
    b"https://",
    b"GET",
    b"CONNECT",
    b"OPTIONS",
    b"Connection: close\r\n",
    b"\r\n ",
    b" HTTP/1.1\r\n",
    b"bytes=",
    b"bytes ",
];

fn mutate(random: &mut Random, input: &mut Vec<u8>) {
    for _ in 0..random.below(4) {
        let at = random.below(input.len() + 1);
        let end = (at + random.below(4)).min(input.len());
        match random.below(5) {
            0 => _ = input.splice(at..at, random.pick(PIECES).iter().copied()),
            1 => _ = input.splice(at..end, random.pick(PIECES).iter().copied()),
            2 => _ = input.drain(at..end),
            3 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            _ => {
                let copy = input[at..(at + random.below(30)).min(input.len())].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, copy);
            }
        }
    }
}

const REQUESTS: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nPOST /v2/x?y=z HTTP/1.1\r\nHost: a.b:5000\r\nContent-Length: 5\r\nX: y \r\n\r\nhello",
    b"PUT http://a:80/x HTTP/1.1\r\nhost: A\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nProxy-Authorization: Basic x\r\n\r\n",
    b"OPTIONS * HTTP/1.0\r\nConnection: keep-alive, X-Y\r\nX-Y: \"a, b\", c\r\n\r\n",
    b"OPTIONS http://127.0.0.1 HTTP/1.1\r\nHost: 127.0.0.1:80\r\nA:\r\nB:\t\r\n\r\n",
];

const RESPONSES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.0 404 Not Found\r\nConnection: close\r\nX: \xff\r\n\r\n",
    b"HTTP/1.1 307\r\nLocation: /x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
];

const BODIES: &[&[u8]] = &[
    b"5\r\nhello\r\n0\r\n\r\n",
    b"1;a=b\r\na\r\n002 ; c=\"d\\\"e\" ;f\r\nbc\r\n0\r\nX: y\r\nHost: z\r\n\r\nGET",
    b"A\r\n0123456789\r\n1\r\n\r\r\n0;x\r\n\r\n",
];

/// The end of the head that the plain reading accepts: its field lines, and the bytes up to the
/// body.
fn plain_lines(input: &[u8]) -> Option<(Vec<&[u8]>, usize)> {
    let end = memchr::memmem::find(input, b"\r\n\r\n")?;
    let text = &input[..end];
    let mut lines = Vec::new();
    let mut start = 0;
    for at in memchr::memmem::find_iter(text, b"\r\n") {
        lines.push(&text[start..at]);
        start = at + 2;
    }
    lines.push(&text[start..]);
    if lines.iter().any(|line| line.contains(&b'\r') || line.contains(&b'\n')) {
        return None;
    }
    Some((lines, end + 4))
}

fn plain_field_is_right(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
    let (name, value) = line.split_at(colon);
    plain_token(name) && value.iter().all(|byte| *byte == 9 || (*byte >= 32 && *byte != 127))
}

fn plain_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|byte| (33..127).contains(byte) && !b"\"(),/:;<=>?@[\\]{}".contains(byte))
}

/// Whether a plain reading takes `input` for a request head, and how long it is. It leaves hosts to
/// `Authority`, whose tests are tables.
fn plain_request(input: &[u8]) -> Option<usize> {
    let (input, cut) = match input.strip_prefix(b"\r\n") {
        Some(rest) => (rest, 2),
        None => (input, 0),
    };
    let (lines, len) = plain_lines(input)?;
    let (first, lines) = lines.split_first()?;
    let words: Vec<&[u8]> = first.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { return None };
    let old = version == b"HTTP/1.0";
    if !plain_token(method) || !(old || version == b"HTTP/1.1") {
        return None;
    }
    let method = Method::parse(std::str::from_utf8(method).ok()?).ok()?;
    let target = Target::parse(&method, std::str::from_utf8(target).ok()?).ok()?;
    if !lines.iter().all(|line| plain_field_is_right(line)) || lines.len() > 128 {
        return None;
    }
    let is_host = |line: &&&[u8]| line.to_ascii_lowercase().starts_with(b"host:");
    let hosts: Vec<_> = lines.iter().filter(is_host).collect();
    match hosts[..] {
        [] if old => {}
        [line] => {
            let host = std::str::from_utf8(&line[5..]).ok()?.trim_matches([' ', '\t']);
            let host = Authority::parse(host).ok()?;
            let agrees = match &target {
                Target::Absolute { scheme, authority, .. } => {
                    host.host == authority.host
                        && host.port_for(*scheme) == authority.port_for(*scheme)
                }
                Target::Authority(authority) => {
                    host.host == authority.host
                        && host.port.is_none_or(|p| Some(p) == authority.port)
                }
                _ => true,
            };
            agrees.then_some(())?;
        }
        _ => return None,
    }
    Some(cut + len)
}

fn plain_response(input: &[u8]) -> Option<usize> {
    let (lines, len) = plain_lines(input)?;
    let (first, lines) = lines.split_first()?;
    let rest = first.strip_prefix(b"HTTP/1.1 ").or_else(|| first.strip_prefix(b"HTTP/1.0 "))?;
    let (status, reason) = rest.split_at_checked(3)?;
    let right = status.iter().all(u8::is_ascii_digit)
        && status[0] != b'0'
        && (reason.is_empty() || reason[0] == b' ')
        && reason.iter().all(|byte| *byte == 9 || (*byte >= 32 && *byte != 127))
        && lines.iter().all(|line| plain_field_is_right(line))
        && lines.len() <= 128;
    right.then_some(len)
}

/// What a prefix was said to be must agree with what the whole was said to be.
fn assert_prefix<T: PartialEq + std::fmt::Debug>(
    prefix: Result<Parsed<T>, Malformed>,
    whole: &Result<Parsed<T>, Malformed>,
) {
    if prefix != Ok(Parsed::Incomplete) {
        assert_eq!(&prefix, whole, "a prefix is read differently");
    }
}

fn check_request(random: &mut Random, input: &[u8]) {
    let limits = HeadLimits::default();
    let whole = parse_request(input, &limits);
    assert_prefix(parse_request(&input[..random.below(input.len())], &limits), &whole);
    let plain = plain_request(input);
    let Ok(Parsed::Complete { head, len }) = whole else {
        assert_eq!(plain, None, "refused or incomplete: {whole:?}");
        return;
    };
    assert_eq!(plain, Some(len), "taken: {head:?}");
    let mut out = Vec::new();
    head.write_to(&mut out);
    let len = out.len();
    let Ok(Parsed::Complete { head: again, len: used }) = parse_request(&out, &limits) else {
        panic!("does not read back: {:?}", String::from_utf8_lossy(&out));
    };
    assert_eq!((&again, used), (&head, len));
    assert_eq!(request_framing(&again), request_framing(&head));
    assert_eq!(keeps_alive(again.version, &again.fields), keeps_alive(head.version, &head.fields));
    check_fields(head.fields);
}

fn check_response(random: &mut Random, input: &[u8]) {
    let limits = HeadLimits::default();
    let whole = parse_response(input, &limits);
    assert_prefix(parse_response(&input[..random.below(input.len())], &limits), &whole);
    let plain = plain_response(input);
    let Ok(Parsed::Complete { head, len }) = whole else {
        assert_eq!(plain, None, "refused or incomplete: {whole:?}");
        return;
    };
    assert_eq!(plain, Some(len), "taken: {head:?}");
    let mut out = Vec::new();
    head.write_to(&mut out);
    let len = out.len();
    assert_eq!(parse_response(&out, &limits), Ok(Parsed::Complete { head: head.clone(), len }));
    for method in [Method::GET, Method::HEAD, Method::CONNECT] {
        _ = response_framing(&method, &head);
    }
    check_fields(head.fields);
}

fn check_fields(mut fields: Fields) {
    let names: Vec<String> = fields.iter().map(|(name, _)| name.to_owned()).collect();
    for name in &names {
        assert!(fields.contains(&name.to_ascii_uppercase()));
        assert!(fields.count(name) >= 1 && fields.get(name).is_some());
        assert!(fields.tokens(name).all(|token| !token.is_empty()));
    }
    fields.strip_hop_by_hop();
    assert!(fields.iter().all(|(name, _)| !is_hop_by_hop(name)));
    let mut copy = Fields::new();
    for (name, value) in fields.iter() {
        copy.push(name, value).expect("what was read can be pushed");
    }
    assert_eq!(copy, fields);
}

fn check_body(random: &mut Random, input: &[u8]) {
    let whole = decode(input);
    let width = 1 + random.below(9);
    assert_eq!(decode_cut(input.chunks(width)), whole, "in pieces of {width}");
    let Ok(Some(body)) = whole else { return };
    assert!(body.len <= input.len());
    let mut out = Vec::new();
    for piece in body.data.chunks(width) {
        chunk_head(piece.len(), &mut out);
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    last_chunk(&body.trailers, &mut out);
    let len = out.len();
    assert_eq!(decode(&out), Ok(Some(Body { len, ..body })));
}

fn check_values(input: &[u8]) {
    if let Some(span) = parse_range(input).and_then(|range| range.resolve(100)) {
        assert!(span.0 < span.1 && span.1 <= 100);
        let text = content_range(span.0, span.1, 100);
        let range = parse_content_range(text.as_bytes()).expect("what is written can be read");
        assert_eq!((range.start, range.end_inclusive + 1), span);
    }
    if let Some(range) = parse_content_range(input) {
        assert!(range.start <= range.end_inclusive);
    }
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(host) = Host::parse(text) {
        assert_eq!(Host::parse(&host.to_string()), Ok(host));
    }
    if let Ok(authority) = Authority::parse(text) {
        assert_eq!(Authority::parse(&authority.to_string()), Ok(authority));
    }
}

#[test]
fn mutated_messages_keep_the_promises() {
    let seed = seed();
    let mut random = Random(seed);
    let values: &[&[u8]] =
        &[b"bytes=0-5", b"bytes 0-5/9", b"a.example:443", b"[::1]:80", b"127.0.0.1", b"bytes=-5"];
    for _ in 0..20_000 {
        let mut input = random.pick(REQUESTS).to_vec();
        mutate(&mut random, &mut input);
        let input = Shown(input);
        check_request(&mut random, &input.0);
        let mut input = random.pick(RESPONSES).to_vec();
        mutate(&mut random, &mut input);
        let input = Shown(input);
        check_response(&mut random, &input.0);
        let mut input = random.pick(BODIES).to_vec();
        mutate(&mut random, &mut input);
        let input = Shown(input);
        check_body(&mut random, &input.0);
        let mut input = random.pick(values).to_vec();
        mutate(&mut random, &mut input);
        let input = Shown(input);
        check_values(&input.0);
    }
}
