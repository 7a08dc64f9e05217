//! What the fuzzed code is compared with: readings of the same grammars that are as plain and slow
//! as they can be, and share nothing with the crate.

/// Name and value.
type Field = (Vec<u8>, Vec<u8>);

/// A head as lines.
pub struct Lines {
    pub start: Vec<u8>,
    pub fields: Vec<Field>,
    /// Bytes up to the end of the empty line.
    pub len: usize,
}

impl Lines {
    /// Whether the first line ends where one of a request or response does.
    pub fn begins_well(&self) -> bool {
        let words: Vec<&[u8]> = self.start.split(|byte| *byte == b' ').collect();
        let request = matches!(words[..], [_, _, b"HTTP/1.0" | b"HTTP/1.1"]);
        request || self.start.starts_with(b"HTTP/1.")
    }
}

/// RFC 9112 2.1 and 5, without judging the first line. `None`: no whole head, or none at all.
pub fn lines(data: &[u8]) -> Option<Lines> {
    let (start, mut at) = line(data, 0)?;
    let mut fields = Vec::new();
    loop {
        let (text, next) = line(data, at)?;
        at = next;
        if text.is_empty() {
            return Some(Lines { start: start.to_vec(), fields, len: at });
        }
        fields.push(field(text)?);
    }
}

/// The line at `at`, and where the next one begins.
fn line(data: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = data.get(at..)?;
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let text = rest[..end].strip_suffix(b"\r")?;
    text.iter().all(|byte| is_text(*byte)).then_some((text, at + end + 1))
}

fn field(text: &[u8]) -> Option<Field> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&text[..colon], &text[colon + 1..]);
    let value = value.trim_ascii_start().trim_ascii_end();
    is_token(name).then(|| (name.to_vec(), value.to_vec()))
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

pub fn is_token(text: &[u8]) -> bool {
    let separator = |byte: &u8| b"\"(),/:;<=>?@[\\]{}".contains(byte);
    !text.is_empty() && text.iter().all(|byte| byte.is_ascii_graphic() && !separator(byte))
}

/// How a body is delimited, of a request with these fields; `None` for what must be refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Delimited {
    None,
    Length(u64),
    Chunked,
}

pub fn delimited(fields: &[Field], http11: bool) -> Option<Delimited> {
    let all = |wanted: &str| -> Vec<&[u8]> {
        let named = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()));
        named.map(|(_, value)| value.as_slice()).collect()
    };
    match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Some(Delimited::None),
        ([length], []) => {
            let text = std::str::from_utf8(length).ok()?;
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).map(Delimited::Length)
        }
        ([], [coding]) if http11 && coding.eq_ignore_ascii_case(b"chunked") => {
            Some(Delimited::Chunked)
        }
        _ => None,
    }
}

/// How a chunked body ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Ends {
    /// There is more to come.
    More,
    /// There is more to come, or it is wrong already: that is not looked at in half a line.
    Open,
    At(usize),
    Wrong,
}

pub struct Unchunked {
    pub body: Vec<u8>,
    pub trailers: Vec<Field>,
    pub ends: Ends,
}

/// RFC 9112 7.1, with the limits of the crate: lines of 4096 bytes, trailers of 16 KiB and 64.
pub fn unchunk(data: &[u8]) -> Unchunked {
    let mut body = Vec::new();
    let mut at = 0;
    let (trailers, ends) = loop {
        let size = match size_line(&data[at..]) {
            Ok((size, len)) => {
                at += len;
                size
            }
            Err(ends) => break (Vec::new(), ends),
        };
        if size == 0 {
            break trailer_section(data, at);
        }
        let rest = &data[at..];
        let len = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        body.extend_from_slice(&rest[..len]);
        match &rest[len..] {
            [b'\r', b'\n', ..] => at += len + 2,
            [] | [b'\r'] => break (Vec::new(), Ends::More),
            _ => break (Vec::new(), Ends::Wrong),
        }
    };
    Unchunked { body, trailers, ends }
}

/// The size and the length of a size line.
fn size_line(data: &[u8]) -> Result<(u64, usize), Ends> {
    let Some(end) = data.iter().position(|byte| *byte == b'\n') else {
        return Err(match data.len() {
            0 => Ends::More,
            1..=4096 => Ends::Open,
            _ => Ends::Wrong,
        });
    };
    if end >= 4096 {
        return Err(Ends::Wrong);
    }
    let text = data[..end].strip_suffix(b"\r").ok_or(Ends::Wrong)?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let number = std::str::from_utf8(&text[..digits]).unwrap_or_default();
    if !(1..=16).contains(&digits) || !are_extensions(&text[digits..]) {
        return Err(Ends::Wrong);
    }
    Ok((u64::from_str_radix(number, 16).map_err(|_| Ends::Wrong)?, end + 1))
}

/// `*( BWS ";" BWS name [ BWS "=" BWS value ] )`, a value being a token or a quoted string.
fn are_extensions(mut text: &[u8]) -> bool {
    while !text.is_empty() {
        let Some(rest) = blanks(text).strip_prefix(b";") else { return false };
        let Some(rest) = token(blanks(rest)) else { return false };
        text = rest;
        if let Some(value) = blanks(rest).strip_prefix(b"=") {
            let value = blanks(value);
            let Some(rest) = token(value).or_else(|| quoted(value)) else { return false };
            text = rest;
        }
    }
    true
}

fn blanks(text: &[u8]) -> &[u8] {
    &text[text.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count()..]
}

/// What follows a token.
fn token(text: &[u8]) -> Option<&[u8]> {
    let len = text.iter().take_while(|byte| is_token(&[**byte])).count();
    (len > 0).then(|| &text[len..])
}

/// What follows a quoted string.
fn quoted(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"\"")?;
    loop {
        rest = match rest {
            [b'"', after @ ..] => return Some(after),
            [b'\\', byte, after @ ..] | [byte, after @ ..] if is_text(*byte) => after,
            _ => return None,
        }
    }
}

fn trailer_section(data: &[u8], from: usize) -> (Vec<Field>, Ends) {
    let mut fields = Vec::new();
    let (mut at, mut wrong) = (from, false);
    loop {
        let Some(end) = data[at..].iter().position(|byte| *byte == b'\n') else {
            let open = data.len() - from <= 16 * 1024;
            return (Vec::new(), if open { Ends::Open } else { Ends::Wrong });
        };
        let text = &data[at..at + end];
        at += end + 1;
        let long = at - from > 16 * 1024;
        match text {
            _ if long => return (Vec::new(), Ends::Wrong),
            b"" => return (Vec::new(), Ends::Wrong),
            b"\r" if wrong || fields.len() > 64 => return (Vec::new(), Ends::Wrong),
            b"\r" => return (fields, Ends::At(at)),
            text => {
                let text = text.strip_suffix(b"\r").unwrap_or(b"");
                let clean = text.iter().all(|byte| is_text(*byte));
                match field(text).filter(|_| clean) {
                    Some(field) => fields.push(field),
                    None => wrong = true,
                }
            }
        }
    }
}

/// What a Range field asks of a body of `len` bytes (RFC 9110 14.1.2). `None`: nothing, `Some`: the
/// positions, start and end, or that there are none.
pub fn range(value: &[u8], len: u64) -> Option<Option<(u64, u64)>> {
    let text = std::str::from_utf8(value).ok()?;
    let (unit, set) = text.split_once('=')?;
    let (first, last) = set.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !unit.eq_ignore_ascii_case("bytes") || !digits(first) || !digits(last) {
        return None;
    }
    // Beyond 64 bits all numbers are alike.
    let number = |text: &str| {
        let text = text.trim_start_matches('0');
        if text.len() > 20 { u128::MAX } else { text.parse().unwrap_or(0) }.min(u64::MAX.into())
    };
    let len = u128::from(len);
    let (start, end) = match (first, last) {
        ("", "") => return None,
        ("", count) => (len.saturating_sub(number(count)), len),
        (first, "") => (number(first), len),
        (first, last) if number(first) > number(last) => return None,
        (first, last) => (number(first), (number(last) + 1).min(len)),
    };
    Some((start < end).then_some((start as u64, end as u64)))
}

/// Whether the C library's `inet_aton` takes a host for an IPv4 address.
pub fn is_address_in_disguise(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let numbers: Option<Vec<u64>> = parts.iter().map(|part| c_number(part)).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() <= 4) else { return false };
    let (last, rest) = match numbers.split_last() {
        Some((last, rest)) => (*last, rest),
        None => return false,
    };
    rest.iter().all(|number| *number < 256) && last < 1 << (8 * (4 - rest.len()))
}

/// A number as C's `strtoul` reads it with base 0.
fn c_number(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let (digits, radix) = match lower.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if lower.len() > 1 && lower.starts_with('0') => (&lower[1..], 8),
        None => (lower.as_str(), 10),
    };
    let all = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    if all { u64::from_str_radix(digits, radix).ok() } else { None }
}
