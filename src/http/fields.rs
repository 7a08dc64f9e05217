//! Header and trailer fields (RFC 9110 5): in order, in one buffer.
//!
//! Names keep the case they were sent in and compare without it. What must stay true: a name is a
//! token and a value holds no control character but HTAB and neither begins nor ends in blanks,
//! whether it came from a peer or from [`Fields::push`]. So writing fields out can never split a
//! message.

use std::fmt;
use std::io::Write as _;
use std::ops::Range;

use super::Malformed;

/// Room left behind the fields of a parsed head, for what a proxy adds to it.
const HEADROOM: usize = 256;
const SPAN_HEADROOM: usize = 4;

/// Fields in order. Lookups walk them: heads have about ten.
#[derive(Clone, Default)]
pub struct Fields {
    /// Every name and value some span points at; removed fields stay behind as dead bytes.
    bytes: Vec<u8>,
    spans: Vec<Span>,
}

/// Where in the buffer a field lies. 32 bits: heads are bounded far below 4 GiB.
#[derive(Clone, Copy)]
struct Span {
    name: u32,
    name_len: u32,
    value: u32,
    value_len: u32,
}

impl Fields {
    /// No fields, and nothing allocated.
    pub fn new() -> Fields {
        Fields::default()
    }

    /// Takes over what httparse found in `block`: field lines and the empty line behind them.
    ///
    /// httparse has checked every byte of names and values. It also takes a bare LF for a line end;
    /// this walk proves that what stands between its tokens is a colon, blanks and CR LF, no more.
    pub(super) fn from_block(
        block: &[u8],
        lines: &[httparse::Header<'_>],
    ) -> Result<Fields, Malformed> {
        if u32::try_from(block.len()).is_err() {
            return Err(Malformed::HeadTooLarge);
        }
        let mut spans = Vec::with_capacity(lines.len() + SPAN_HEADROOM);
        let mut at = 0;
        for line in lines {
            let name = at;
            at += line.name.len();
            if block.get(at) != Some(&b':') {
                return Err(Malformed::FieldName);
            }
            at = skip_blanks(block, at + 1);
            let value = at;
            at = skip_blanks(block, at + line.value.len());
            if block.get(at..at + 2) != Some(b"\r\n") {
                return Err(Malformed::LineEnd);
            }
            at += 2;
            spans.push(Span {
                name: name as u32,
                name_len: line.name.len() as u32,
                value: value as u32,
                value_len: line.value.len() as u32,
            });
        }
        if block.get(at..) != Some(b"\r\n") {
            return Err(Malformed::LineEnd);
        }
        let mut bytes = Vec::with_capacity(at + HEADROOM);
        bytes.extend_from_slice(block.get(..at).unwrap_or_default());
        Ok(Fields { bytes, spans })
    }

    /// How many field lines there are.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The value of the first field of this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.spans.iter().find(|span| self.is_named(span, name)).map(|span| self.value(span))
    }

    /// As [`get`](Fields::get); `None` also where the value is not UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The values of every field of this name, in order.
    pub fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        self.spans
            .iter()
            .filter(move |span| self.is_named(span, name))
            .map(move |span| self.value(span))
    }

    /// How many fields of this name there are.
    pub fn count(&self, name: &str) -> usize {
        self.spans.iter().filter(|span| self.is_named(span, name)).count()
    }

    /// Whether there is a field of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.spans.iter().any(|span| self.is_named(span, name))
    }

    /// Names as sent, and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.spans.iter().map(|span| (self.name(span), self.value(span)))
    }

    /// The elements of a comma-separated list over all lines of this name: trimmed, empty ones left
    /// out (RFC 9110 5.6.1). Commas within quoted strings do not separate; a quote that is never
    /// closed is an ordinary character, so that it cannot hide what follows it. Elements that are
    /// not UTF-8 are left out.
    pub fn tokens<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.all(name).flat_map(|line| Elements { line, quotes: true })
    }

    /// Whether the list of this name has this element, whatever its case.
    pub fn has_token(&self, name: &str, token: &str) -> bool {
        self.tokens(name).any(|element| element.eq_ignore_ascii_case(token))
    }

    /// Appends a field; blanks around the value are dropped.
    ///
    /// # Errors
    /// When the name is no token or the value holds CR, LF, NUL or another control character but
    /// HTAB; nothing is changed then.
    pub fn push(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Malformed> {
        let value = trim_blanks(value.as_ref());
        self.check(name, value)?;
        self.append(name, |bytes| bytes.extend_from_slice(value));
        Ok(())
    }

    /// Appends a field with a decimal number for its value.
    ///
    /// # Errors
    /// When the name is no token.
    pub fn push_number(&mut self, name: &str, value: u64) -> Result<(), Malformed> {
        self.check(name, b"")?;
        // Writing to a Vec cannot fail.
        self.append(name, |bytes| _ = write!(bytes, "{value}"));
        Ok(())
    }

    /// Removes every field of this name, then appends one.
    ///
    /// # Errors
    /// As for [`push`](Fields::push).
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), Malformed> {
        let value = trim_blanks(value.as_ref());
        self.check(name, value)?;
        self.remove(name);
        self.append(name, |bytes| bytes.extend_from_slice(value));
        Ok(())
    }

    /// Removes every field of this name.
    pub fn remove(&mut self, name: &str) {
        self.retain(|other, _| !other.eq_ignore_ascii_case(name));
    }

    /// Keeps the fields for which `keep(name, value)` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &[u8]) -> bool) {
        let bytes = &self.bytes;
        self.spans
            .retain(|span| keep(text(bytes, span.name_range()), cut(bytes, span.value_range())));
    }

    /// Removes the fields that are for the next hop alone (RFC 9110 7.6.1): the well-known ones and
    /// those that Connection names.
    ///
    /// Host and Content-Length are kept even when Connection names them: that would let a peer take
    /// the framing or the destination off a message behind the back of whoever judged it.
    pub fn strip_hop_by_hop(&mut self) {
        let named = self.named_by_connection();
        self.strip(&named);
    }

    /// As [`strip_hop_by_hop`](Fields::strip_hop_by_hop), for the trailers of a message with this
    /// head.
    pub fn strip_hop_by_hop_of(&mut self, head: &Fields) {
        if !self.is_empty() {
            self.strip(&head.named_by_connection());
        }
    }

    /// What Connection names beyond the well-known ones.
    fn named_by_connection(&self) -> Vec<Box<str>> {
        self.tokens("connection")
            .filter(|token| {
                !is_hop_by_hop(token)
                    && !token.eq_ignore_ascii_case("close")
                    && !token.eq_ignore_ascii_case("host")
                    && !token.eq_ignore_ascii_case("content-length")
            })
            .map(Box::from)
            .collect()
    }

    fn strip(&mut self, named: &[Box<str>]) {
        self.retain(|name, _| {
            !is_hop_by_hop(name) && !named.iter().any(|other| other.eq_ignore_ascii_case(name))
        });
    }

    /// Appends every field as `Name: value` CR LF; the empty line behind them is the caller's.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let payload = |span: &Span| (span.name_len + span.value_len) as usize + 4;
        out.reserve(self.spans.iter().map(payload).sum::<usize>() + 2);
        for span in &self.spans {
            out.extend_from_slice(cut(&self.bytes, span.name_range()));
            out.extend_from_slice(b": ");
            out.extend_from_slice(self.value(span));
            out.extend_from_slice(b"\r\n");
        }
    }

    fn check(&self, name: &str, value: &[u8]) -> Result<(), Malformed> {
        if !is_token(name.as_bytes()) {
            return Err(Malformed::FieldName);
        }
        if !value.iter().copied().all(is_text) {
            return Err(Malformed::FieldValue);
        }
        let total = self.bytes.len().saturating_add(name.len()).saturating_add(value.len() + 20);
        if u32::try_from(total).is_err() {
            return Err(Malformed::HeadTooLarge);
        }
        Ok(())
    }

    /// For a name and value that passed `check`.
    fn append(&mut self, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(name.as_bytes());
        let middle = self.bytes.len();
        value(&mut self.bytes);
        self.spans.push(Span {
            name: start as u32,
            name_len: name.len() as u32,
            value: middle as u32,
            value_len: (self.bytes.len() - middle) as u32,
        });
    }

    fn is_named(&self, span: &Span, name: &str) -> bool {
        span.name_len as usize == name.len()
            && cut(&self.bytes, span.name_range()).eq_ignore_ascii_case(name.as_bytes())
    }

    fn name(&self, span: &Span) -> &str {
        text(&self.bytes, span.name_range())
    }

    fn value(&self, span: &Span) -> &[u8] {
        cut(&self.bytes, span.value_range())
    }
}

/// The same fields in the same order, names in the same case.
impl PartialEq for Fields {
    fn eq(&self, other: &Fields) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Fields {}

/// Names and the sizes of values: values may be credentials, and a `{:?}` ends up in logs.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, value)| (name, value.len()))).finish()
    }
}

impl Span {
    fn name_range(&self) -> Range<usize> {
        let start = self.name as usize;
        start..start + self.name_len as usize
    }

    fn value_range(&self) -> Range<usize> {
        let start = self.value as usize;
        start..start + self.value_len as usize
    }
}

/// Fields that concern one connection only (RFC 9110 7.6.1 and 11.7.3, and those older
/// specifications named).
pub fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 11] = [
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// The elements of one line of a list.
struct Elements<'a> {
    /// What is left of it.
    line: &'a [u8],
    /// Cleared at a quote that is never closed. From there on quotes are ordinary characters:
    /// looking for a partner to each would take quadratic time.
    quotes: bool,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        while !self.line.is_empty() {
            let (element, rest) = self.line.split_at_checked(self.element_end())?;
            self.line = rest.get(1..).unwrap_or_default();
            match std::str::from_utf8(trim_blanks(element)) {
                Ok("") | Err(_) => {}
                Ok(element) => return Some(element),
            }
        }
        None
    }
}

impl Elements<'_> {
    /// Where the comma behind the first element is, or the end of the line.
    fn element_end(&mut self) -> usize {
        let mut at = 0;
        while self.quotes {
            let rest = self.line.get(at..).unwrap_or_default();
            let Some(found) = memchr::memchr2(b',', b'"', rest) else { return self.line.len() };
            at += found;
            if self.line.get(at) == Some(&b',') {
                return at;
            }
            at += 1;
            match self.line.get(at..).and_then(quoted_len) {
                Some(len) => at += len,
                None => self.quotes = false,
            }
        }
        let rest = self.line.get(at..).unwrap_or_default();
        memchr::memchr(b',', rest).map_or(self.line.len(), |found| at + found)
    }
}

/// The length of a quoted string's rest, closing quote included; `None` where it is never closed.
fn quoted_len(rest: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', rest.get(at..)?)?;
        if rest.get(at) == Some(&b'"') {
            return Some(at + 1);
        }
        at += 2;
    }
}

fn cut(bytes: &[u8], range: Range<usize>) -> &[u8] {
    bytes.get(range).unwrap_or_default()
}

/// Names were checked to be tokens when they came in.
fn text(bytes: &[u8], range: Range<usize>) -> &str {
    std::str::from_utf8(cut(bytes, range)).unwrap_or_default()
}

/// Without `OWS` (RFC 9110 5.6.3) at both ends.
fn trim_blanks(bytes: &[u8]) -> &[u8] {
    let visible = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let start = bytes.iter().position(visible).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(visible).map_or(start, |last| last + 1);
    cut(bytes, start..end)
}

fn skip_blanks(bytes: &[u8], mut at: usize) -> usize {
    while matches!(bytes.get(at), Some(b' ' | b'\t')) {
        at += 1;
    }
    at
}

/// `token` (RFC 9110 5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().copied().all(is_tchar)
}

/// `tchar` (RFC 9110 5.6.2).
pub(super) fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What may stand in a field value or a reason phrase: HTAB, SP, VCHAR and obs-text (RFC 9110 5.5).
pub(super) fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests;
