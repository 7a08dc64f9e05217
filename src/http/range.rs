//! Byte ranges (RFC 9110 14): what a request asks for, and what an answer says it holds.
//!
//! One range is understood. Several ranges, another unit and nonsense all mean "serve the whole",
//! which RFC 9110 14.2 allows for any Range field.

use std::fmt;

/// One range as a client asked for it; positions count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=N-`: from N to the end.
    From(u64),
    /// `bytes=A-B`: both included, A <= B.
    FromTo(u64, u64),
    /// `bytes=-N`: the last N bytes.
    Suffix(u64),
}

impl ByteRange {
    /// Where the range lies in a body of `len` bytes: start, and end exclusive, `start < end <=
    /// len`. `None`: no byte of it exists, which is answered with 416.
    pub fn resolve(self, len: u64) -> Option<(u64, u64)> {
        let (start, end) = match self {
            ByteRange::From(start) => (start, len),
            ByteRange::FromTo(start, last) => (start, last.saturating_add(1).min(len)),
            ByteRange::Suffix(count) => (len.saturating_sub(count), len),
        };
        (start < end).then_some((start, end))
    }
}

/// Reads a Range field's value; `None` means the field is to be ignored.
///
/// Numbers beyond 64 bits count as the largest one: as a last position that is "to the end", as a
/// first one it is beyond any body.
pub fn parse_range(value: &[u8]) -> Option<ByteRange> {
    let (unit, set) = value.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let dash = memchr::memchr(b'-', set)?;
    let (first, last) = set.split_at_checked(dash)?;
    let last = last.get(1..)?;
    match (first.is_empty(), last.is_empty()) {
        (true, _) => Some(ByteRange::Suffix(saturating_number(last)?)),
        (false, true) => Some(ByteRange::From(saturating_number(first)?)),
        (false, false) => {
            let (first, last) = (saturating_number(first)?, saturating_number(last)?);
            (first <= last).then_some(ByteRange::FromTo(first, last))
        }
    }
}

/// A Content-Range field's value for bytes (RFC 9110 14.4); `Display` writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// First position.
    pub start: u64,
    /// Last position, included; never before `start`.
    pub end_inclusive: u64,
    /// Length of the whole; `None` where the sender did not know (`*`).
    pub total: Option<u64>,
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/", self.start, self.end_inclusive)?;
        match self.total {
            Some(total) => write!(f, "{total}"),
            None => f.write_str("*"),
        }
    }
}

/// The Content-Range of a 206 that holds `start..end` (end exclusive, as
/// [`ByteRange::resolve`] gives it) of `total` bytes.
pub fn content_range(start: u64, end: u64, total: u64) -> String {
    let end_inclusive = end.saturating_sub(1);
    ContentRange { start, end_inclusive, total: Some(total) }.to_string()
}

/// The Content-Range of a 416 for a body of `total` bytes.
pub fn unsatisfied_range(total: u64) -> String {
    format!("bytes */{total}")
}

/// Reads the Content-Range of a 206. `None`: another unit, `*` for the range (a 416), or numbers
/// that contradict each other or do not fit 64 bits; such an answer is not to be trusted.
pub fn parse_content_range(value: &[u8]) -> Option<ContentRange> {
    let (unit, rest) = value.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes ") {
        return None;
    }
    let (first, rest) = split_once(rest, b'-')?;
    let (last, total) = split_once(rest, b'/')?;
    let (start, end_inclusive) = (number(first)?, number(last)?);
    let total = if total == b"*" { None } else { Some(number(total)?) };
    let fits = start <= end_inclusive && total.is_none_or(|total| end_inclusive < total);
    fits.then_some(ContentRange { start, end_inclusive, total })
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let (before, after) = bytes.split_at_checked(memchr::memchr(at, bytes)?)?;
    Some((before, after.get(1..)?))
}

fn saturating_number(digits: &[u8]) -> Option<u64> {
    let all_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    all_digits.then(|| number(digits).unwrap_or(u64::MAX))
}

/// `1*DIGIT` (RFC 5234) that fits 64 bits; no sign, no blanks.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_range_is_read() {
        let max = u64::MAX;
        for (value, range) in [
            ("bytes=0-", ByteRange::From(0)),
            ("bytes=5-", ByteRange::From(5)),
            ("Bytes=5-5", ByteRange::FromTo(5, 5)),
            ("bytes=0-499", ByteRange::FromTo(0, 499)),
            ("bytes=-1", ByteRange::Suffix(1)),
            ("bytes=-0", ByteRange::Suffix(0)),
            ("bytes=007-", ByteRange::From(7)),
            ("bytes=18446744073709551615-", ByteRange::From(max)),
            ("bytes=1-99999999999999999999", ByteRange::FromTo(1, max)),
            ("bytes=99999999999999999999-", ByteRange::From(max)),
            ("bytes=-99999999999999999999", ByteRange::Suffix(max)),
        ] {
            assert_eq!(parse_range(value.as_bytes()), Some(range), "{value}");
        }
    }

    #[test]
    fn anything_else_means_the_whole() {
        for value in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=1",
            "bytes=5-4",
            "bytes=0-1,3-4",
            "bytes=0-1,",
            "bytes= 0-1",
            "bytes=0 -1",
            "bytes=0-1 ",
            "bytes=+1-2",
            "bytes=--1",
            "bytes=1--2",
            "lines=0-1",
            "bytes 0-1",
            "0-1234",
            "bytes=0x1-2",
            "bytes=1-2-3",
        ] {
            assert_eq!(parse_range(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn ranges_resolve_within_the_body() {
        let max = u64::MAX;
        for (range, len, span) in [
            (ByteRange::From(0), 10, Some((0, 10))),
            (ByteRange::From(9), 10, Some((9, 10))),
            (ByteRange::From(10), 10, None),
            (ByteRange::From(0), 0, None),
            (ByteRange::From(max), max, None),
            (ByteRange::FromTo(0, 0), 10, Some((0, 1))),
            (ByteRange::FromTo(2, 99), 10, Some((2, 10))),
            (ByteRange::FromTo(2, max), 10, Some((2, 10))),
            (ByteRange::FromTo(10, 11), 10, None),
            (ByteRange::Suffix(3), 10, Some((7, 10))),
            (ByteRange::Suffix(30), 10, Some((0, 10))),
            (ByteRange::Suffix(0), 10, None),
            (ByteRange::Suffix(1), 0, None),
        ] {
            assert_eq!(range.resolve(len), span, "{range:?} of {len}");
        }
    }

    #[test]
    fn content_ranges_read_and_print() {
        assert_eq!(content_range(0, 5, 10), "bytes 0-4/10");
        assert_eq!(unsatisfied_range(10), "bytes */10");
        for text in ["bytes 0-4/10", "bytes 9-9/10", "bytes 0-4/*"] {
            let range = parse_content_range(text.as_bytes()).unwrap();
            assert_eq!(range.to_string(), text);
        }
    }

    #[test]
    fn contradictory_content_ranges_are_refused() {
        for value in [
            "",
            "bytes",
            "bytes ",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes 0-4/",
            "bytes 0-4",
            "bytes=0-4/10",
            "bytes 0-4/10 ",
            "bytes  0-4/10",
            "bytes 0-4/+10",
            "bytes 0-99999999999999999999/*",
            "bytes 0-1/99999999999999999999",
            "items 0-4/10",
        ] {
            assert_eq!(parse_content_range(value.as_bytes()), None, "{value}");
        }
    }
}
