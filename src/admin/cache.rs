//! What is stored, by way of the admin listener: images, entries, pins, and what is removed.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Admin, Answer, failure, not_allowed, off_core, refusal, rfc3339};
use crate::http::{Method, RequestHead};
use crate::images::{
    Entry, Images, LIMIT_MAX, Listed, NotPurged, Order, PINS_MAX, Purge, Query, Sort,
};
use crate::key::{Image, Key, Repository};
use crate::proxy::{Described, described};

/// Rows of a page where nothing is said.
const LIMIT: usize = 50;

/// What is wrong with a query, in a sentence.
type Wrong = String;

impl Admin {
    /// Answers for what lies below `/api/cache/` and is about many entries.
    pub(super) async fn cache(
        &self,
        head: &RequestHead,
        (path, query): (&str, Option<&str>),
        body: &[u8],
    ) -> Answer {
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        let fields = match fields(query.unwrap_or_default()) {
            Ok(fields) => fields,
            Err(why) => return refusal(400, "BAD_QUERY", &why),
        };
        let result = match (path, &head.method) {
            ("/api/cache", method) if *method == Method::DELETE && !body.is_empty() => {
                Err("what to remove is said in the query, not in a body".to_owned())
            }
            ("/api/cache", method) if *method == Method::DELETE => match purge(&fields) {
                Ok(purge) => return self.purge(purge).await,
                Err(why) => Err(why),
            },
            ("/api/cache", _) => return not_allowed("Allow: DELETE\r\n"),
            ("/api/cache/images", _) if reads => match page(&fields, Sort::Stored) {
                Ok(query) => return self.show(move |images| images_page(images, &query)).await,
                Err(why) => Err(why),
            },
            ("/api/cache/entries", _) if reads => match page(&fields, Sort::Image) {
                Ok(query) => return self.show(move |images| entries_page(images, &query)).await,
                Err(why) => Err(why),
            },
            ("/api/cache/pins", _) if reads => match only(&fields, &[]) {
                Ok(()) => return self.show(pins).await,
                Err(why) => Err(why),
            },
            ("/api/cache/pins", method) if *method == Method::POST => match pinned(&fields, body) {
                Ok(image) => return self.show(move |images| pin(images, &image)).await,
                Err(why) => Err(why),
            },
            ("/api/cache/pins", method) if *method == Method::DELETE => {
                match pinned(&fields, body) {
                    Ok(image) => return self.show(move |images| unpin(images, &image)).await,
                    Err(why) => Err(why),
                }
            }
            ("/api/cache/pins", _) => return not_allowed("Allow: GET, HEAD, POST, DELETE\r\n"),
            _ => return not_allowed("Allow: GET, HEAD\r\n"),
        };
        result.map_or_else(|why: Wrong| refusal(400, "BAD_QUERY", &why), |()| failure(&path))
    }

    async fn show(&self, make: impl FnOnce(&Images) -> Answer + Send + 'static) -> Answer {
        let images = Arc::clone(&self.images);
        off_core(move || make(&images)).await
    }

    async fn purge(&self, purge: Purge) -> Answer {
        let images = Arc::clone(&self.images);
        let has_pins = monoio::spawn_blocking(move || images.has_pins());
        // Where nobody can tell, what is pinned is looked for one by one.
        let is_spared = !purge.force && has_pins.await.unwrap_or(true);
        if purge.dry_run || purge.is_narrowed() || is_spared {
            return self.show(move |images| purged(images, &purge)).await;
        }
        let answer = self.clear().await;
        self.show(|images| {
            images.forget_all();
            answer
        })
        .await
    }
}

fn purged(images: &Images, purge: &Purge) -> Answer {
    match images.purge(purge) {
        Ok(purged) => {
            let (removed, freed) = (purged.removed.count, purged.removed.freed);
            if !purge.dry_run {
                tracing::info!(removed, freed, "cache purged");
            }
            Answer::json(
                200,
                &json!({
                    "status": "ok", "removed": removed, "freed": freed, "pinned": purged.pinned,
                    "dry_run": purge.dry_run,
                }),
            )
        }
        Err(why @ NotPurged::Unknown(_)) => refusal(404, "NOT_FOUND", &why.to_string()),
        Err(why @ NotPurged::Pinned(_)) => refusal(409, "PINNED", &why.to_string()),
        Err(why @ NotPurged::Scanning) => refusal(503, "SCANNING", &why.to_string()),
        Err(NotPurged::Cache(error)) => failure(&error),
    }
}

/// The first page of the images, those with most hits first, as `GET /api/cache/images` has it.
pub(super) fn most_used(images: &Images, limit: usize) -> Value {
    let (sort, order) = (Sort::Hits, Order::Descending);
    listed(images, &Query { page: 1, limit, q: String::new(), sort, order })
}

fn images_page(images: &Images, query: &Query) -> Answer {
    Answer::json(200, &listed(images, query))
}

fn listed(images: &Images, query: &Query) -> Value {
    let page = images.list(query);
    let shown = |listed: &Listed| {
        json!({
            "image": listed.row.repository.to_string(), "tags": listed.row.tags,
            "digest": listed.row.digest.to_string(), "size": listed.size, "stored": listed.stored,
            "shared": listed.shared, "last_use": rfc3339(at(listed.used_ms)), "hits": listed.hits,
            "pinned": listed.pinned,
        })
    };
    let rows: Vec<Value> = page.rows.iter().map(shown).collect();
    let (number, limit) = (query.page, query.limit);
    json!({"images": rows, "total": page.total, "page": number, "limit": limit})
}

fn entries_page(images: &Images, query: &Query) -> Answer {
    let page = images.entries(query);
    let shown = |entry: &Entry| {
        let Described { kind, url, .. } = described(&entry.head);
        let url = url.or_else(|| entry.url.clone());
        let key = match &entry.key {
            Key::Digest(digest) => digest.to_string(),
            Key::Url(_) => entry.key.hex(),
        };
        json!({
            "key": key, "url": url, "size": entry.held.size, "stored": rfc3339(entry.stored),
            "last_use": rfc3339(at(entry.held.used_ms)), "hits": entry.held.hits, "type": kind,
            "pinned": entry.held.pinned,
        })
    };
    let rows: Vec<Value> = page.rows.iter().map(shown).collect();
    let (number, limit) = (query.page, query.limit);
    Answer::json(
        200,
        &json!({"entries": rows, "total": page.total, "page": number, "limit": limit}),
    )
}

fn pins(images: &Images) -> Answer {
    let pins: Vec<Value> = images
        .pins()
        .into_iter()
        .map(|pin| {
            let since = rfc3339(at(pin.since_ms));
            json!({"image": pin.image.to_string(), "bytes": pin.bytes, "since": since})
        })
        .collect();
    Answer::json(200, &json!({"pins": pins}))
}

fn pin(images: &Images, image: &Image) -> Answer {
    match images.pin(image) {
        Ok(Some(is_new)) => {
            let status = if is_new { 201 } else { 200 };
            Answer::json(status, &json!({"status": "ok", "image": image.to_string()}))
        }
        Ok(None) => refusal(409, "TOO_MANY", &format!("there are {PINS_MAX} pins already")),
        Err(error) => failure(&error),
    }
}

fn unpin(images: &Images, image: &Image) -> Answer {
    match images.unpin(image) {
        Ok(true) => Answer::json(200, &json!({"status": "ok", "image": image.to_string()})),
        Ok(false) => refusal(404, "NOT_FOUND", &format!("{image} is not pinned")),
        Err(error) => failure(&error),
    }
}

/// The names and values of a query.
fn fields(query: &str) -> Result<Vec<(String, String)>, Wrong> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for field in query.split('&').filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        let decoded = |text| decode(text).ok_or_else(|| format!("{field:?} is badly encoded"));
        let (name, value) = (decoded(name)?, decoded(value)?);
        if value.is_empty() {
            return Err(format!("{name} has no value"));
        }
        if fields.iter().any(|(other, _)| *other == name) {
            return Err(format!("{name} is given twice"));
        }
        fields.push((name, value));
    }
    Ok(fields)
}

/// Percent-encoding, and `+` as it is: tags may have none, and times no space.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Refuses what is not among `known`.
fn only(fields: &[(String, String)], known: &[&str]) -> Result<(), Wrong> {
    match fields.iter().find(|(name, _)| !known.contains(&&**name)) {
        Some((name, _)) if known.is_empty() => Err(format!("there is no {name:?} here")),
        Some((name, _)) => Err(format!("there is no {name:?} here, but {}", known.join(", "))),
        None => Ok(()),
    }
}

fn purge(fields: &[(String, String)]) -> Result<Purge, Wrong> {
    only(fields, &["image", "repository", "older_than", "all", "dry_run", "force"])?;
    let (mut purge, mut all) = (Purge::default(), fields.is_empty());
    let flag = |name: &str, value: &str| match value {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(format!("{name} is 1 or 0, not {value:?}")),
    };
    for (name, value) in fields {
        match &**name {
            "image" => purge.image = Some(Image::parse(value)?),
            "repository" => purge.repository = Some(Repository::parse(value)?),
            "older_than" => purge.unused_since_ms = Some(before(value)?),
            "all" => all = flag(name, value)?,
            "dry_run" => purge.dry_run = flag(name, value)?,
            _ => purge.force = flag(name, value)?,
        }
    }
    // A shell cuts an unquoted address at its first &.
    if !purge.is_narrowed() && !all && !purge.dry_run {
        return Err("say what: image=, repository=, older_than= or all=1".to_owned());
    }
    Ok(purge)
}

/// So long ago, in milliseconds since 1970.
fn before(value: &str) -> Result<u64, Wrong> {
    let wrong = |_| format!("older_than is a time such as 7d or 12h, not {value:?}");
    let age = humantime::parse_duration(value).map_err(wrong)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(u64::try_from(now.saturating_sub(age).as_millis()).unwrap_or(u64::MAX))
}

/// `not`: by what these rows can't be sorted.
fn page(fields: &[(String, String)], not: Sort) -> Result<Query, Wrong> {
    only(fields, &["page", "limit", "q", "sort", "order"])?;
    let sorts = [
        ("size", Sort::Size),
        ("last_use", Sort::LastUse),
        ("hits", Sort::Hits),
        ("image", Sort::Image),
        ("stored", Sort::Stored),
    ];
    let (sort, order) = (Sort::LastUse, Order::Descending);
    let mut query = Query { page: 1, limit: LIMIT, q: String::new(), sort, order };
    let number = |name: &str, value: &str, most: usize| match value.parse::<usize>() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("{name} is a number from 1 to {most}, not {value:?}")),
    };
    for (name, value) in fields {
        match &**name {
            "page" => query.page = number(name, value, u32::MAX as usize)?,
            "limit" => query.limit = number(name, value, LIMIT_MAX)?,
            "q" => query.q = value.to_ascii_lowercase(),
            "order" if value == "asc" => query.order = Order::Ascending,
            "order" if value == "desc" => query.order = Order::Descending,
            "order" => return Err(format!("order is asc or desc, not {value:?}")),
            _ => {
                let fit = || sorts.iter().filter(|(_, sort)| *sort != not);
                let found = fit().find(|(name, _)| name == value).map(|(_, sort)| *sort);
                let names: Vec<&str> = fit().map(|(name, _)| *name).collect();
                let wrong = || format!("sort is one of {}, not {value:?}", names.join(", "));
                query.sort = found.ok_or_else(wrong)?;
            }
        }
    }
    Ok(query)
}

/// The image of a pin: in the query, or in a document.
fn pinned(fields: &[(String, String)], body: &[u8]) -> Result<Image, Wrong> {
    only(fields, &["image"])?;
    if let Some((_, image)) = fields.first() {
        return Image::parse(image);
    }
    let document: Value = serde_json::from_slice(body).unwrap_or_default();
    match document["image"].as_str() {
        Some(image) => Image::parse(image),
        None => Err("which image? say ?image=ghcr.io/org/app:1.2".to_owned()),
    }
}

fn at(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}
