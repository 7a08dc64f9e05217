//! What a stored head says, read once for as long as the entry's file is open.

use super::prove::SOURCE;
use super::record::REQUEST_ID;
use crate::cache::Body;
use crate::http::{FIELDS_MAX, Fields, HeadLimits, Parsed, parse_response};
use crate::policy::rights::RepositoryId;

/// The name under which an entry's head says what was asked for, without a query. It never leaves
/// the proxy.
pub const URL: &str = "X-Discobot-Url";

/// Bytes of it at most.
pub const URL_MAX: usize = 1024;

/// What is known of an entry.
pub struct Stored {
    /// The fields that every answer from it has.
    pub fields: Fields,
    /// The repository its bytes came from.
    pub source: Option<RepositoryId>,
    /// Those fields as lines, and what else every hit says.
    pub lines: Vec<u8>,
}

impl Stored {
    /// What is known of the entry with this body; `None` where its head can't be read.
    pub fn of(body: &Body) -> Option<&Stored> {
        body.prepared(Stored::read)?.as_ref()
    }

    fn read(body: &Body) -> Option<Stored> {
        let mut fields = parse(&body.head)?;
        let source = fields.get_str(SOURCE).and_then(RepositoryId::parse);
        fields.remove(SOURCE);
        fields.remove(URL);
        // An answer has its own request's.
        fields.remove(REQUEST_ID);
        let mut lines = Vec::new();
        fields.write_to(&mut lines);
        let date = humantime::format_rfc3339_seconds(body.stored);
        lines.extend_from_slice(format!("X-Cache: HIT\r\nX-Cache-Date: {date}\r\n").as_bytes());
        Some(Stored { fields, source, lines })
    }
}

/// What a stored head says.
pub struct Described {
    /// The media type.
    pub kind: Option<String>,
    /// What was asked for, `host/path`; of entries by their URL alone.
    pub url: Option<String>,
    /// The repository its bytes came from.
    pub source: Option<RepositoryId>,
}

/// Reads a stored head.
pub fn described(head: &[u8]) -> Described {
    let fields = parse(head);
    let text = |name| fields.as_ref()?.get_str(name).map(str::to_owned);
    let source = text(SOURCE).as_deref().and_then(RepositoryId::parse);
    Described { kind: text("content-type"), url: text(URL), source }
}

fn parse(head: &[u8]) -> Option<Fields> {
    const STATUS: &[u8] = b"HTTP/1.1 200 OK\r\n";
    let head = [STATUS, head, b"\r\n"].concat();
    // Upstream may have sent as many fields as it may, and ours came on top.
    let limits = HeadLimits { fields: FIELDS_MAX, ..HeadLimits::with_size(head.len()) };
    match parse_response(&head, &limits) {
        Ok(Parsed::Complete { head, .. }) => Some(head.fields),
        _ => None,
    }
}
