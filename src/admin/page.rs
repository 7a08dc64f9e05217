//! `GET /`: the page. It is drawn here, from the document that `GET /api/live` gives, so that it
//! has its numbers without a script; the script asks for it again and takes over what changed.
//!
//! Names of repositories, paths and hosts are a peer's: nothing of the document gets here but
//! through [`escape`] or as a number.

use std::fmt::Write;

use serde_json::Value;

use super::{Answer, chart};

/// Fields of every answer that is for the page. Only what this port serves itself, no script or
/// style within the page, no frame around it.
const GUARD: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; \
    style-src 'self'; img-src 'self'; connect-src 'self'; frame-ancestors 'none'; \
    base-uri 'none'; form-action 'none'\r\nX-Content-Type-Options: nosniff\r\n\
    Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n\
    Cache-Control: no-store\r\n";

const SHELL: &str = include_str!("page/page.html");

/// What tells nothing about this proxy: what the page loads, and the page itself where the token is
/// missing, which asks for it and has no figures.
pub(super) fn for_everybody(path: &str, has_token: bool) -> Option<Answer> {
    match path {
        "/" if !has_token => Some(html("")),
        "/page.css" => Some(asset("text/css; charset=utf-8", include_str!("page/page.css"))),
        "/page.js" => Some(asset("text/javascript; charset=utf-8", include_str!("page/page.js"))),
        "/page.svg" => Some(asset("image/svg+xml", include_str!("page/page.svg"))),
        _ => None,
    }
}

fn asset(kind: &'static str, text: &str) -> Answer {
    Answer { status: 200, extra: GUARD, kind, body: text.into() }
}

/// Images that the page shows at most.
pub(super) const IMAGES: usize = 10;

/// The page with its figures. `images`: the most used ones, for who has no script to ask for them.
pub(super) fn page(live: &Value, images: Option<&Value>) -> Answer {
    html(&(figures(live) + &images.map(most_used).unwrap_or_default()))
}

fn html(figures: &str) -> Answer {
    // The page has one such mark; what is put in its place is not looked at again.
    let (before, after) = SHELL.split_once("{{figures}}").unwrap_or((SHELL, ""));
    asset("text/html; charset=utf-8", &[before, figures, after].concat())
}

fn figures(live: &Value) -> String {
    let stats = &live["stats"];
    let time = escape(text(&live["time"]));
    let version = escape(text(&live["version"]));
    let (hour, day) = (list(&live["history"]["hour"]), list(&live["history"]["day"]));
    let sections = [
        section("now", "Since the start", &tiles(live)),
        section("disk", "Disk", &disk(live)),
        section("fills", "Fills running", &fills(list(&live["fills_running"]))),
        section("hour", "Last hour", &chart::charts(hour)),
        section("day", "Last 24 hours", &chart::charts(day)),
        section("latency", "Latency", &latency(stats)),
        section("misses", "Recent misses", &events(list(&live["recent_misses"]))),
        section("errors", "Recent errors", &events(list(&live["recent_errors"]))),
    ];
    format!(
        "<p id=\"as-of\" data-live>Version {version}, as of <time datetime=\"{time}\">{}</time> \
         UTC</p>\n{}",
        clock(&time),
        sections.concat()
    )
}

fn section(id: &str, title: &str, inner: &str) -> String {
    format!(
        "<section aria-labelledby=\"{id}-title\" class=\"{id}\"><h2 id=\"{id}-title\">{title}</h2>\
         <div id=\"{id}\" class=\"inner\" data-live>{inner}</div></section>\n"
    )
}

fn tiles(live: &Value) -> String {
    let stats = &live["stats"];
    let count = |name: &str| number(&stats[name]);
    let asked = count("hits") + count("misses");
    let rate = match asked > 0.0 {
        true => format!("{:.1} %", count("hit_rate") * 100.0),
        false => "–".to_owned(),
    };
    let saved = format!("{:.0} % of what clients got", count("bytes_saved_percent"));
    let joined = format!("{} joined a fill", grouped(count("coalesced")));
    let passed = format!("{} passed by the cache", grouped(count("passed")));
    let connections = format!("{} connections open", grouped(count("connections")));
    let rows = [
        ("Hit rate", rate, format!("{} hits", grouped(count("hits")))),
        ("Saved", bytes(count("bytes_saved")), saved),
        ("Misses", grouped(count("misses")), joined),
        ("To clients", bytes(count("bytes_to_clients")), connections),
        ("From upstream", bytes(count("bytes_from_upstream")), passed),
        ("Errors", grouped(count("errors")), format!("{} refused", grouped(count("refused")))),
    ];
    let mut out = "<dl class=\"tiles\">".to_owned();
    for (name, value, more) in rows {
        let _ =
            write!(out, "<div><dt>{name}</dt><dd><b>{value}</b> <small>{more}</small></dd></div>");
    }
    out + "</dl>"
}

fn disk(live: &Value) -> String {
    let (size, most) = (number(&live["stats"]["current_size"]), number(&live["max_size"]));
    let entries = grouped(number(&live["stats"]["entries"]));
    let evicted = grouped(number(&live["stats"]["evictions"]));
    let share = if most > 0.0 { size * 100.0 / most } else { 0.0 };
    let scanning = match live["scanning"] == true {
        true => " The directory is still being scanned.",
        false => "",
    };
    let free = match live["disk_free"].as_f64() {
        Some(free) => format!(
            " The file system has {} of {} free.",
            bytes(free),
            bytes(number(&live["disk_size"]))
        ),
        None => String::new(),
    };
    format!(
        "<progress max=\"100\" value=\"{share:.1}\" aria-label=\"Cache in use\"></progress>\
         <p><b>{}</b> of {} ({share:.0} %) in {entries} entries; {evicted} evicted since the \
         start.{free}{scanning}</p>",
        bytes(size),
        bytes(most)
    )
}

fn fills(fills: &[Value]) -> String {
    if fills.is_empty() {
        return "<p class=\"none\">None: nothing is being fetched.</p>".to_owned();
    }
    let mut out = "<ul class=\"list\">".to_owned();
    for fill in fills {
        let (written, total) = (number(&fill["bytes"]), fill["total"].as_f64());
        let done = total.filter(|total| *total > 0.0).map(|total| written * 100.0 / total);
        let value = done.map(|done| format!(" value=\"{done:.1}\"")).unwrap_or_default();
        let of = match total {
            Some(total) => format!("{} of {}", bytes(written), bytes(total)),
            None => format!("{} so far", bytes(written)),
        };
        let percent = done.map(|done| format!(" ({done:.0} %)")).unwrap_or_default();
        let _ = write!(
            out,
            "<li>{}<progress max=\"100\"{value} aria-label=\"Progress\"></progress>\
             <small>{of}{percent}, {} waiting, since {}</small></li>",
            place(fill),
            grouped(number(&fill["clients"])),
            clock(&escape(text(&fill["since"])))
        );
    }
    out + "</ul>"
}

fn latency(stats: &Value) -> String {
    let tables = [("time_to_head_us", "To the answer’s head"), ("duration_us", "To its end")];
    let mut out = String::new();
    for (name, title) in tables {
        let Some(outcomes) = stats[name].as_object().filter(|outcomes| !outcomes.is_empty()) else {
            continue;
        };
        let _ = write!(
            out,
            "<table><caption>{title}</caption><thead><tr><th scope=\"col\">Outcome</th>\
             <th scope=\"col\">Count</th><th scope=\"col\">50 %</th><th scope=\"col\">90 %</th>\
             <th scope=\"col\">99 %</th><th scope=\"col\">99.9 %</th></tr></thead><tbody>"
        );
        for (outcome, times) in outcomes {
            let _ = write!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td>",
                escape(outcome),
                grouped(number(&times["count"]))
            );
            for quantile in ["p50", "p90", "p99", "p99.9"] {
                let _ = write!(out, "<td>{}</td>", time(number(&times[quantile])));
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table>");
    }
    if out.is_empty() { "<p class=\"none\">No request has ended yet.</p>".to_owned() } else { out }
}

fn events(events: &[Value]) -> String {
    if events.is_empty() {
        return "<p class=\"none\">None since the start.</p>".to_owned();
    }
    let mut out = "<ol class=\"list\">".to_owned();
    for event in events {
        let at = escape(text(&event["at"]));
        let mut more = Vec::new();
        for (name, value) in [
            ("", &event["message"]),
            ("status ", &event["status"]),
            ("client ", &event["client"]),
            ("request ", &event["request_id"]),
        ] {
            match value {
                Value::String(text) if !text.is_empty() => {
                    more.push(format!("{name}{}", escape(text)));
                }
                Value::Number(number) => more.push(format!("{name}{number}")),
                _ => {}
            }
        }
        let _ = write!(
            out,
            "<li><span class=\"row\"><time datetime=\"{at}\">{}</time> \
             <span class=\"reason\">{}</span></span>{}<small>{}</small></li>",
            clock(&at),
            escape(text(&event["reason"])),
            place(event),
            more.join(" · ")
        );
    }
    out + "</ol>"
}

fn most_used(page: &Value) -> String {
    let rows = list(&page["images"]);
    let mut inner = match rows.len() {
        0 => "<p class=\"none\">No image is stored.</p>".to_owned(),
        shown => format!(
            "<p class=\"none\">{shown} of {} images.</p>\
             <table><caption>The most used first</caption><thead><tr>\
             <th scope=\"col\">Image</th><th scope=\"col\">Size</th>\
             <th scope=\"col\">Hits</th><th scope=\"col\">Last use</th></tr></thead><tbody>",
            grouped(number(&page["total"]))
        ),
    };
    for row in rows {
        let tags: Vec<_> = list(&row["tags"]).iter().map(|tag| escape(text(tag))).collect();
        let pinned =
            if row["pinned"] == true { " <span class=\"reason\">pinned</span>" } else { "" };
        let used = text(&row["last_use"]).get(..16).unwrap_or_default().replace('T', " ");
        let _ = write!(
            inner,
            "<tr><th scope=\"row\"><code>{}</code> <small>{}</small>{pinned}</th><td>{}</td>\
             <td>{}</td><td>{}</td></tr>",
            escape(text(&row["image"])),
            tags.join(", "),
            bytes(number(&row["size"])),
            grouped(number(&row["hits"])),
            escape(&used)
        );
    }
    if !rows.is_empty() {
        inner.push_str("</tbody></table>");
    }
    format!("<noscript>{}</noscript>", section("top", "Images", &inner))
}

/// Host and path, a digest in it cut short; the whole is in its title.
fn place(value: &Value) -> String {
    let whole = format!("{}{}", text(&value["host"]), text(&value["path"]));
    let short = match whole.rsplit_once("sha256:") {
        Some((before, digest)) if digest.len() == 64 && digest.is_ascii() => {
            format!("{before}sha256:{}…", &digest[..12])
        }
        _ => whole.clone(),
    };
    format!("<code title=\"{}\">{}</code>", escape(&whole), escape(&short))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], |list| list)
}

/// A number, 0 where there is none.
pub(super) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// The time of day of an RFC 3339 time.
fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}

/// Bytes in powers of a thousand, three digits.
pub(super) fn bytes(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    scaled(bytes, 1000.0, &UNITS)
}

/// Microseconds as people read them.
fn time(us: f64) -> String {
    match us {
        us if us < 1e6 => scaled(us, 1000.0, &["µs", "ms", "s"]),
        us if us < 120e6 => scaled(us / 1e6, 1e9, &["s"]),
        us => format!("{:.0} min", us / 60e6),
    }
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step - 0.5 && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let places = if unit == 0 && step < 1e6 || value >= 99.95 { 0 } else { 1 };
    format!("{value:.places$} {}", units.get(unit).unwrap_or(&""))
}

/// A whole number, its digits in groups of three.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Text as HTML, within quotes too.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // A name that turns the text after it round is shown for what it is.
            c if c.is_control()
                || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                out.push('\u{fffd}');
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_peers_words_are_no_markup() {
        let evil = "\"><script>alert(1)</script>' {{figures}}";
        let event = json!({"at": evil, "host": evil, "path": evil, "reason": evil, "message": evil,
            "request_id": evil, "client": evil, "status": 502});
        let fill = json!({"host": evil, "path": evil, "since": evil, "bytes": 1, "total": 2});
        let live = json!({"time": evil, "version": evil, "recent_misses": [event],
            "recent_errors": [event], "fills_running": [fill],
            "stats": {"duration_us": {evil: {"count": 1}}}});
        let images = json!({"images": [{"image": evil, "tags": [evil], "last_use": evil}]});
        let page = String::from_utf8(page(&live, Some(&images)).body).unwrap();
        let shell = SHELL.replace("{{figures}}", "");
        for mark in ["<script", "'"] {
            assert_eq!(page.matches(mark).count(), shell.matches(mark).count(), "{mark}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;&#39; {{figures}}"));
    }

    #[test]
    fn numbers_are_for_people() {
        let shown = [0.0, 999.0, 1000.0, 12_345.0, 999_999.0, 2.5e12].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "12.3 kB", "1.0 MB", "2.5 TB"]);
        let shown = [7.0, 1500.0, 250_000.0, 2.5e6, 600e6].map(time);
        assert_eq!(shown, ["7 µs", "1.5 ms", "250 ms", "2.5 s", "10 min"]);
        assert_eq!(grouped(1_234_567.0), "1\u{202f}234\u{202f}567");
    }
}
