//! What is fuzzed, and what must hold of every input. Each target is a function of bytes that
//! panics where something does not hold; `tests/fuzz.rs` feeds it mutated seeds, the crate under
//! `fuzz/` includes this file and lets libFuzzer look for inputs.
//!
//! The judges behind the targets are told what to judge, so that a test can give them something
//! broken and see that they notice.

#[path = "reference.rs"]
pub mod reference;
#[path = "stored.rs"]
pub mod stored;

use discobot_proxy::config::Config;
use discobot_proxy::http::range::{ByteRange, content_range, parse_content_range, parse_range};
use discobot_proxy::http::{
    Authority, Chunk, Chunks, Fields, Framing, HeadLimits, Host, Malformed, Method, Parsed,
    RequestHead, ResponseHead, Target, chunk_head, last_chunk, parse_request, parse_response,
    request_framing, response_framing, split_path,
};
use discobot_proxy::policy::Policy;

/// What is wrong, in words.
pub type Verdict = Result<(), String>;

/// The size of every input, at most: what libFuzzer and the seeded test both keep to.
pub const INPUT_MAX: usize = 8 * 1024;

pub fn head(data: &[u8]) {
    right(judge_request(data, &parse_request));
}

pub fn response_head(data: &[u8]) {
    right(judge_response(data, &parse_response));
}

pub fn chunks(data: &[u8]) {
    right(judge_chunks(data, &decode));
}

pub fn range(data: &[u8]) {
    right(judge_range(data, &parse_range));
}

pub fn target(data: &[u8]) {
    right(judge_target(data, &Host::parse));
}

pub fn config(data: &[u8]) {
    right(judge_config(data, &Config::to_yaml));
}

pub fn meta(data: &[u8]) {
    right(stored::judge(data, &stored::look));
}

fn right(verdict: Verdict) {
    if let Err(what) = verdict {
        panic!("{what}");
    }
}

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(what()) }
}

/// Limits that inputs of this size run into.
const TIGHT: HeadLimits = HeadLimits { size: 200, fields: 6, target: 40 };

/// Limits that what was written again keeps to, whatever it was.
const LOOSE: HeadLimits = HeadLimits { size: 1 << 20, fields: 256, target: 1 << 19 };

type Parse<'a, T> = &'a dyn Fn(&[u8], &HeadLimits) -> Result<Parsed<T>, Malformed>;

pub fn judge_request(data: &[u8], parse: Parse<RequestHead>) -> Verdict {
    judge_splits(data, &HeadLimits::default(), parse)?;
    judge_splits(data, &TIGHT, parse)?;
    let without = data.strip_prefix(b"\r\n").unwrap_or(data);
    let cut = data.len() - without.len();
    let result = parse(data, &HeadLimits::default());
    let lines = reference::lines(without);
    judge_grammar(&result, lines.as_ref(), cut)?;
    let (Ok(Parsed::Complete { head, .. }), Some(lines)) = (result, lines) else { return Ok(()) };
    let mut words = lines.start.split(|byte| *byte == b' ').map(String::from_utf8_lossy);
    let (method, text, version) = (words.next(), words.next(), words.next());
    ensure(words.next().is_none(), || "a request line of more than three words".to_owned())?;
    ensure(method.as_deref() == Some(head.method.as_str()), || "another method".to_owned())?;
    ensure(version.as_deref() == Some(head.version.as_str()), || "another version".to_owned())?;
    let again = text.map(|text| Target::parse(&head.method, &text));
    ensure(again == Some(Ok(head.target.clone())), || format!("another target: {again:?}"))?;
    judge_framing(&head, &lines)?;
    judge_host(&head)?;
    let mut written = Vec::new();
    head.write_to(&mut written);
    written.extend_from_slice(b"GET /next HTTP/1.1\r\n");
    let len = written.len() - b"GET /next HTTP/1.1\r\n".len();
    let again = parse(&written, &LOOSE);
    let same = again == Ok(Parsed::Complete { head, len });
    ensure(same, || format!("written again it is {again:?}: {}", shown(&written)))
}

/// One authority, one reading of where the body ends.
fn judge_framing(head: &RequestHead, lines: &reference::Lines) -> Verdict {
    let http11 = head.version == discobot_proxy::http::Version::Http11;
    let wanted = reference::delimited(&lines.fields, http11);
    let found = match request_framing(head) {
        Ok(Framing::None) => Some(reference::Delimited::None),
        Ok(Framing::Length(len)) => Some(reference::Delimited::Length(len)),
        Ok(Framing::Chunked) => Some(reference::Delimited::Chunked),
        Ok(Framing::UntilClose) => return Err("a request until the connection ends".to_owned()),
        Err(_) => None,
    };
    if head.method == Method::CONNECT {
        return ensure(matches!(found, None | Some(reference::Delimited::None)), || {
            format!("a CONNECT with a body: {found:?}")
        });
    }
    ensure(found == wanted, || format!("framed as {found:?}, not {wanted:?}"))
}

fn judge_host(head: &RequestHead) -> Verdict {
    let hosts = head.fields.count("host");
    let needs = head.version == discobot_proxy::http::Version::Http11;
    ensure(hosts == 1 || hosts == 0 && !needs, || format!("{hosts} Host fields"))?;
    let named = head.authority();
    ensure(named.is_some() || !needs, || "for nobody".to_owned())?;
    let Some(host) = head.fields.get_str("host").map(Authority::parse) else { return Ok(()) };
    let same = host.as_ref().map(|host| &host.host) == Ok(&named.clone().ok_or("none")?.host);
    ensure(same, || format!("for {named:?} and for {host:?}"))
}

pub fn judge_response(data: &[u8], parse: Parse<ResponseHead>) -> Verdict {
    judge_splits(data, &HeadLimits::default(), parse)?;
    judge_splits(data, &TIGHT, parse)?;
    let result = parse(data, &HeadLimits::default());
    let lines = reference::lines(data);
    judge_grammar(&result, lines.as_ref(), 0)?;
    let (Ok(Parsed::Complete { head, .. }), Some(lines)) = (result, lines) else { return Ok(()) };
    let start = String::from_utf8_lossy(&lines.start);
    let begins = format!("{} {:03}", head.version, head.status);
    ensure(start.starts_with(&begins), || format!("{begins:?} of {start:?}"))?;
    if let Ok(framing) = response_framing(&Method::GET, &head)
        && !matches!(head.status, 100..200 | 204 | 304)
    {
        let http11 = head.version == discobot_proxy::http::Version::Http11;
        let wanted = reference::delimited(&lines.fields, http11);
        let same = match framing {
            Framing::Length(len) => wanted == Some(reference::Delimited::Length(len)),
            Framing::Chunked => wanted == Some(reference::Delimited::Chunked),
            Framing::UntilClose => wanted == Some(reference::Delimited::None),
            Framing::None => false,
        };
        ensure(same, || format!("framed as {framing:?}, not {wanted:?}"))?;
    }
    let mut written = Vec::new();
    head.write_to(&mut written);
    let len = written.len();
    let again = parse(&written, &LOOSE);
    let same = again == Ok(Parsed::Complete { head, len });
    ensure(same, || format!("written again it is {again:?}: {}", shown(&written)))
}

/// What has the fields of a parsed head.
pub trait HasFields: PartialEq + std::fmt::Debug {
    fn fields(&self) -> &Fields;
}

impl HasFields for RequestHead {
    fn fields(&self) -> &Fields {
        &self.fields
    }
}

impl HasFields for ResponseHead {
    fn fields(&self) -> &Fields {
        &self.fields
    }
}

/// A prefix is incomplete, or gives what the whole gives.
fn judge_splits<T: HasFields>(data: &[u8], limits: &HeadLimits, parse: Parse<T>) -> Verdict {
    let whole = parse(data, limits);
    let step = data.len().div_ceil(128).max(1);
    let last = data.len().saturating_sub(4);
    let mut broken = false;
    for at in (0..data.len()).filter(|at| at % step == 0 || *at >= last) {
        let part = parse(&data[..at], limits);
        let fits = match (&part, &whole) {
            (Ok(Parsed::Incomplete), Ok(Parsed::Complete { len, .. })) => at < *len,
            (Ok(Parsed::Incomplete), _) => !broken,
            (Ok(Parsed::Complete { len, .. }), _) => part == whole && *len <= at,
            (Err(_), _) => part == whole,
        };
        broken |= part.is_err();
        ensure(fits, || {
            let (part, whole) = (outcome(&part), outcome(&whole));
            format!("{at} bytes of {} give {part}, all of it {whole}", data.len())
        })?;
    }
    Ok(())
}

fn outcome<T>(result: &Result<Parsed<T>, Malformed>) -> String {
    match result {
        Ok(Parsed::Incomplete) => "nothing yet".to_owned(),
        Ok(Parsed::Complete { len, .. }) => format!("a head of {len} bytes"),
        Err(why) => format!("{why:?}"),
    }
}

/// The slow reading of the same lines agrees.
fn judge_grammar<T: HasFields>(
    result: &Result<Parsed<T>, Malformed>,
    lines: Option<&reference::Lines>,
    cut: usize,
) -> Verdict {
    match (result, lines) {
        (Ok(Parsed::Complete { head, len }), Some(lines)) => {
            let read = head.fields().iter().map(|(name, value)| (name.as_bytes(), value));
            let ought = lines.fields.iter().map(|(name, value)| (&name[..], &value[..]));
            ensure(*len == cut + lines.len, || format!("{len} bytes, not {}", lines.len))?;
            ensure(read.eq(ought), || format!("other fields: {:?}", head.fields()))
        }
        (Ok(Parsed::Complete { .. }), None) => Err("a head that is none".to_owned()),
        (Ok(Parsed::Incomplete), Some(_)) => Err("a whole head is not seen".to_owned()),
        (Err(why @ (Malformed::FieldName | Malformed::FieldValue)), Some(_)) => {
            Err(format!("{why:?} in well-formed lines"))
        }
        (Err(Malformed::LineEnd), Some(lines)) if lines.begins_well() => {
            Err("a wrong line end in well-formed lines".to_owned())
        }
        _ => Ok(()),
    }
}

/// What came of a chunked body.
#[derive(Debug, PartialEq)]
pub struct Decoded {
    pub body: Vec<u8>,
    pub trailers: Fields,
    pub ends: Result<Option<usize>, Malformed>,
}

/// The crate's decoder over pieces of a body.
pub fn decode(pieces: &[&[u8]]) -> Decoded {
    let mut chunks = Chunks::new();
    let (mut body, mut consumed) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = *piece;
        let ends = loop {
            let (skip, len) = match chunks.step(rest) {
                Ok(Chunk::Need) => break None,
                Ok(Chunk::Skip(skip)) => (skip, 0),
                Ok(Chunk::Data { skip, len }) => (skip, len),
                Ok(Chunk::End { len }) => break Some(Ok(Some(consumed + len))),
                Err(why) => break Some(Err(why)),
            };
            assert!(skip + len > 0 && skip + len <= rest.len(), "no progress, or too much");
            body.extend_from_slice(&rest[skip..skip + len]);
            consumed += skip + len;
            rest = &rest[skip + len..];
        };
        if let Some(ends) = ends {
            return Decoded { body, trailers: chunks.take_trailers(), ends };
        }
    }
    Decoded { body, trailers: Fields::new(), ends: Ok(None) }
}

pub fn judge_chunks(data: &[u8], decode: &dyn Fn(&[&[u8]]) -> Decoded) -> Verdict {
    let whole = decode(&[data]);
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    // Pieces as long as the bytes they begin with say.
    let mut pieces = Vec::new();
    let mut rest = data;
    while let Some(first) = rest.first() {
        let (piece, after) = rest.split_at(rest.len().min(1 + usize::from(first % 23)));
        pieces.push(piece);
        rest = after;
    }
    for split in [&bytes, &pieces] {
        let cut = decode(split);
        ensure(cut == whole, || format!("in pieces {cut:?}, at once {whole:?}"))?;
    }
    let ought = reference::unchunk(data);
    let agrees = match (&ought.ends, &whole.ends) {
        (reference::Ends::At(len), Ok(Some(found))) => len == found,
        (reference::Ends::More, Ok(None)) => true,
        (reference::Ends::Open, Ok(None) | Err(_)) => true,
        (reference::Ends::Wrong, Err(_)) => true,
        _ => false,
    };
    ensure(agrees, || format!("ends as {:?}, not {:?}", whole.ends, ought.ends))?;
    ensure(whole.body == ought.body, || "another body".to_owned())?;
    let mut left = ought.trailers.iter();
    for (name, value) in whole.trailers.iter() {
        let there = left.any(|(other, text)| other == name.as_bytes() && text == value);
        ensure(there, || format!("a trailer that was not sent: {name}"))?;
        let frames = ["content-length", "transfer-encoding", "host", "authorization"];
        let harmless = !frames.iter().any(|other| name.eq_ignore_ascii_case(other));
        ensure(harmless, || format!("a trailer that must not come as one: {name}"))?;
    }
    judge_encoding(&whole, &pieces, decode)
}

/// A body that is written in chunks and read again is the same.
fn judge_encoding(
    whole: &Decoded,
    pieces: &[&[u8]],
    decode: &dyn Fn(&[&[u8]]) -> Decoded,
) -> Verdict {
    let mut written = Vec::new();
    for piece in pieces {
        chunk_head(piece.len(), &mut written);
        written.extend_from_slice(piece);
        written.extend_from_slice(b"\r\n");
    }
    last_chunk(&whole.trailers, &mut written);
    let again = decode(&[&written]);
    let same = again.body == pieces.concat() && again.ends == Ok(Some(written.len()));
    ensure(same && again.trailers == whole.trailers, || format!("written again it is {again:?}"))
}

/// The first bytes are the length of the body, the rest is a Range field.
pub fn judge_range(data: &[u8], parse: &dyn Fn(&[u8]) -> Option<ByteRange>) -> Verdict {
    let Some((number, value)) = data.split_at_checked(8) else { return Ok(()) };
    let number = number.try_into().map(u64::from_le_bytes).unwrap_or_default();
    for len in [number, number % 64, number >> 32, u64::MAX] {
        let found = parse(value).map(|range| range.resolve(len));
        let ought = reference::range(value, len);
        ensure(found == ought, || format!("{found:?} of {len}, not {ought:?}"))?;
        if let Some(Some((start, end))) = found {
            ensure(start < end && end <= len, || format!("{start}..{end} of {len}"))?;
            let text = content_range(start, end, len);
            let again = parse_content_range(text.as_bytes());
            let again = again.map(|range| (range.start, range.end_inclusive + 1, range.total));
            ensure(again == Some((start, end, Some(len))), || format!("{text}: {again:?}"))?;
        }
    }
    let Some(range) = parse_content_range(value) else { return Ok(()) };
    let (first, last) = (range.start, range.end_inclusive);
    let fits = first <= last && range.total.is_none_or(|total| last < total);
    ensure(fits, || format!("contradicts itself: {range:?}"))?;
    let text = range.to_string();
    let again = parse_content_range(text.as_bytes());
    ensure(again == Some(range), || format!("{range:?} is written {text:?}"))
}

/// The first byte chooses the method, the rest is the target, and an authority, and a host.
pub fn judge_target(data: &[u8], parse: &dyn Fn(&str) -> Result<Host, Malformed>) -> Verdict {
    let Some((first, rest)) = data.split_first() else { return Ok(()) };
    let Ok(text) = std::str::from_utf8(rest) else { return Ok(()) };
    let methods = [Method::GET, Method::CONNECT, Method::OPTIONS, Method::PUT];
    let method = &methods[usize::from(first % 4)];
    if let Ok(target) = Target::parse(method, text) {
        let written = target.to_string();
        let again = Target::parse(method, &written);
        ensure(again.as_ref() == Ok(&target), || format!("{written:?} is {again:?}"))?;
        let clean = written.bytes().all(|byte| byte.is_ascii_graphic());
        ensure(clean, || format!("not fit for a request line: {written:?}"))?;
        if let Target::Origin(path) | Target::Absolute { path, .. } = &target {
            let (before, query) = split_path(path);
            let joined = query.map_or(before.to_owned(), |query| format!("{before}?{query}"));
            ensure(joined == **path, || format!("{path:?} falls into {before:?}, {query:?}"))?;
        }
    }
    if let Ok(authority) = Authority::parse(text) {
        let again = Authority::parse(&authority.to_string());
        ensure(again.as_ref() == Ok(&authority), || format!("{authority} is {again:?}"))?;
    }
    let Ok(host) = parse(text) else { return Ok(()) };
    let again = parse(&host.to_string());
    ensure(again.as_ref() == Ok(&host), || format!("{host} is {again:?}"))?;
    let Host::Name(name) = &host else { return Ok(()) };
    let lower = !name.bytes().any(|byte| byte.is_ascii_uppercase()) && !name.ends_with('.');
    ensure(lower, || format!("two spellings of {name}"))?;
    let disguise =
        reference::is_address_in_disguise(name) || name.parse::<std::net::IpAddr>().is_ok();
    ensure(!disguise, || format!("{name} is an address"))
}

pub fn judge_config(data: &[u8], print: &dyn Fn(&Config) -> String) -> Verdict {
    let Ok(text) = std::str::from_utf8(data) else { return Ok(()) };
    let config = match Config::parse("config.yaml", text) {
        Ok(config) => config,
        Err(error) => {
            let said = error.to_string();
            let line = !said.is_empty() && !said.chars().any(char::is_control);
            return ensure(line, || format!("not one clean line: {said:?}"));
        }
    };
    // Patterns are compiled by the policy; they may be refused, but no more than that.
    let _ = Policy::compile(&config);
    let printed = print(&config);
    let again =
        Config::parse("printed", &printed).map_err(|error| format!("{error}: {printed}"))?;
    let twice = print(&again);
    ensure(twice == printed, || format!("printed again it is {twice}, not {printed}"))?;
    let secret = config.proxy.api_token.is_some()
        || config.upstream.proxy.is_some()
        || !config.headers.is_empty();
    ensure(secret || again == config, || format!("read again it is {twice}"))
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
