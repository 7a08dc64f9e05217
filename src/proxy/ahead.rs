//! A range so far ahead of a running fill that the client is not to wait for it: it is asked of
//! upstream, past the cache, while the fill goes on.

use super::Worker;
use super::deliver::Part;
use super::exchange::Request;
use super::fetch::{Fetched, Recipe};
use crate::http::range::{ContentRange, parse_content_range};
use crate::key::Digest;

/// How far a range may begin ahead of what a running fill has, and still wait for it. Beyond, the
/// range is asked of upstream, uncached, while the fill goes on; where upstream does not give it,
/// it waits all the same.
const AHEAD_MAX: u64 = 1024 * 1024 * 1024;

/// Whether a part is not to be waited for when so many bytes are there.
pub fn is_far_ahead(part: Part, written: u64) -> bool {
    part.start() > written.saturating_add(AHEAD_MAX)
}

/// Asks upstream for the part that the client wants. `None` where it does not give exactly that:
/// the fill will.
pub async fn fetch_part(
    worker: &Worker,
    request: &Request,
    part: Part,
    digest: Option<Digest>,
) -> Option<Fetched> {
    let Part::Range(start, end, len) = part else { return None };
    let mut recipe = Recipe { as_asked: true, ..request.recipe() };
    if digest.is_some() {
        // It was held against the digest, of which upstream's own ETag says nothing.
        recipe.fields.remove("if-range");
    }
    let fetched = recipe.fetch(worker, None).await.ok()?;
    let (status, fields) = (fetched.head.status, &fetched.head.fields);
    let given = fields.get("content-range").and_then(parse_content_range)?;
    let wanted = ContentRange { start, end_inclusive: end - 1, total: Some(len) };
    let is_it = status == 206 && given == wanted && !fields.contains("content-encoding");
    is_it.then_some(fetched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_range_beyond_the_limit_is_far_ahead() {
        let from = |start: u64| Part::Range(start, u64::MAX, u64::MAX);
        for (part, written, far) in [
            (from(AHEAD_MAX), 0, false),
            (from(AHEAD_MAX + 1), 0, true),
            (from(AHEAD_MAX + 1), 1, false),
            (from(5 * AHEAD_MAX), 4 * AHEAD_MAX, false),
            (from(5 * AHEAD_MAX), 4 * AHEAD_MAX - 1, true),
            (from(u64::MAX - 1), u64::MAX - 1, false),
            (Part::Whole(Some(u64::MAX)), 0, false),
            (Part::Unsatisfiable(u64::MAX), 0, false),
            (Part::NotModified, 0, false),
        ] {
            assert_eq!(is_far_ahead(part, written), far, "{part:?}, {written} written");
        }
    }
}
