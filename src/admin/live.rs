//! The statistics, and `GET /api/live`: everything the page shows, in one document.

use std::time::{Instant, SystemTime};

use serde_json::{Map, Value, json};

use super::{Answer, rfc3339};
use crate::cache::{Cache, Running};
use crate::config::Cache as CacheConfig;
use crate::stats::{Event, OUTCOMES, Sample, Stats, Times};
use crate::sys;

/// Fills listed: those that have run the longest.
const FILLS_MAX: usize = 50;

/// The answer with the document.
pub(super) fn document(live: &Value) -> Answer {
    let extra = "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n";
    Answer { extra, ..Answer::json(200, live) }
}

/// The document. Looks at the file system.
pub(super) fn figures(stats: &Stats, cache: &Cache, config: &CacheConfig) -> Value {
    let (now, time) = (Instant::now(), SystemTime::now());
    let [hour, day] = stats.history.read(now, &stats.totals());
    let samples = |samples: &[Sample]| -> Vec<Value> {
        samples.iter().map(|sample| sample_json(sample, now)).collect()
    };
    let events = |events: Vec<Event>| events.iter().map(event_json).collect::<Vec<_>>();
    let running = cache.running();
    let fills: Vec<_> = running.iter().take(FILLS_MAX).map(fill_json).collect();
    let space = sys::file::space(&config.dir).ok();
    json!({
        "time": rfc3339(time),
        "version": env!("CARGO_PKG_VERSION"),
        "scanning": cache.is_scanning(),
        "max_size": config.max_size,
        "disk_free": space.as_ref().map(|space| space.free),
        "disk_size": space.as_ref().map(|space| space.total),
        "stats": statistics(stats, cache),
        "history": { "hour": samples(&hour), "day": samples(&day) },
        "fills_running": fills,
        "recent_misses": events(stats.misses_seen.read()),
        "recent_errors": events(stats.errors_seen.read()),
    })
}

/// `GET /api/cache/stats`.
pub(super) fn statistics(stats: &Stats, cache: &Cache) -> Value {
    let sizes = cache.sizes();
    let mut all: Map<String, Value> =
        stats.counters().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let count = |name: &str| all.get(name).and_then(Value::as_u64).unwrap_or_default();
    let (hits, misses) = (count("hits"), count("misses"));
    let asked = hits + misses;
    let rate = if asked == 0 { 0.0 } else { hits as f64 / asked as f64 };
    let figures = stats.figures();
    let saved = figures.saved();
    let sent: u64 = OUTCOMES.iter().map(|outcome| figures.bytes(*outcome)).sum();
    let percent = if sent == 0 { 0.0 } else { saved as f64 * 100.0 / sent as f64 };
    all.insert("bytes_saved".to_owned(), saved.into());
    all.insert("bytes_saved_percent".to_owned(), percent.into());
    all.insert("hit_rate".to_owned(), rate.into());
    all.insert("current_size".to_owned(), sizes.stored.into());
    all.insert("entries".to_owned(), sizes.entries.into());
    all.insert("fills".to_owned(), sizes.fills.into());
    all.insert("time_to_head_us".to_owned(), quantiles(&figures.first_byte));
    all.insert("duration_us".to_owned(), quantiles(&figures.whole));
    Value::Object(all)
}

/// Of each outcome there was: how often, and microseconds at 50, 90, 99 and 99.9 per cent.
fn quantiles(times: &[Option<Times>]) -> Value {
    let all = OUTCOMES.iter().zip(times).filter_map(|(outcome, times)| {
        let times = times.as_ref()?;
        let [p50, p90, p99, p999] = times.quantiles();
        let count = times.count();
        let value = json!({"count": count, "p50": p50, "p90": p90, "p99": p99, "p99.9": p999});
        Some((outcome.as_str().to_owned(), value))
    });
    Value::Object(all.collect())
}

/// `age`: seconds since its end.
fn sample_json(sample: &Sample, now: Instant) -> Value {
    let counted = &sample.counted;
    json!({
        "age": now.saturating_duration_since(sample.end).as_secs_f64(),
        "seconds": sample.span.as_secs_f64(),
        "hits": counted.hits,
        "misses": counted.misses,
        "to_clients": counted.to_clients,
        "from_upstream": counted.from_upstream,
        "saved": counted.saved,
    })
}

fn fill_json(running: &Running) -> Value {
    let (host, path) = running.label.split_at(running.label.find('/').unwrap_or(0));
    json!({
        "host": host,
        "path": path,
        "bytes": running.written,
        "total": running.len,
        "since": rfc3339(running.since),
        "clients": running.followers,
    })
}

fn event_json(event: &Event) -> Value {
    json!({
        "at": rfc3339(event.at),
        "client": event.client,
        "host": event.host,
        "path": event.path,
        "reason": event.reason,
        "status": event.status,
        "message": event.message,
        "request_id": event.request_id,
    })
}
