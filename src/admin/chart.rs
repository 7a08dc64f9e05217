//! Charts of the page: steps in an SVG that fills its frame. What is drawn is said in words, too.

use std::fmt::Write;

use serde_json::Value;

use super::page::{bytes, number};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;

/// The least time shown, in seconds: a proxy that has just begun has no long history.
const SHOWN_MIN: f64 = 120.0;

/// One line or area: its class, its name, and its value at a sample, where it has one there.
type Series = (&'static str, &'static str, fn(&Value) -> Option<f64>);

const HIT_RATE: Series = ("hit", "hit rate", |sample| {
    let (hits, misses) = (number(&sample["hits"]), number(&sample["misses"]));
    (hits + misses > 0.0).then(|| hits * 100.0 / (hits + misses))
});
const SAVED: Series = ("saved", "saved", |sample| per_second(sample, "saved"));
const DOWN: Series = ("down", "to clients", |sample| per_second(sample, "to_clients"));
const UP: Series = ("up", "from upstream", |sample| per_second(sample, "from_upstream"));

fn per_second(sample: &Value, name: &str) -> Option<f64> {
    let seconds = number(&sample["seconds"]);
    (seconds > 0.0).then(|| number(&sample[name]) / seconds)
}

/// The charts of one stretch of time.
pub(super) fn charts(samples: &[Value]) -> String {
    let percent = |value: f64| format!("{value:.0} %");
    let rate = |value: f64| format!("{}/s", bytes(value));
    [
        chart("Hit rate", samples, &[HIT_RATE], Some(100.0), &percent),
        chart("Bandwidth saved", samples, &[SAVED], None, &rate),
        chart("Throughput", samples, &[DOWN, UP], None, &rate),
    ]
    .concat()
}

fn chart(
    title: &str,
    samples: &[Value],
    series: &[Series],
    top: Option<f64>,
    show: &dyn Fn(f64) -> String,
) -> String {
    let begin = |sample: &Value| number(&sample["age"]) + number(&sample["seconds"]);
    let shown = samples.first().map_or(0.0, begin).max(SHOWN_MIN);
    let values = series.iter().flat_map(|(_, _, value)| samples.iter().filter_map(value));
    let top = top.unwrap_or_else(|| values.fold(0.0, f64::max));
    let mut drawn = String::new();
    let mut legend = String::new();
    let mut said = Vec::new();
    for (class, name, value) in series {
        let (line, area) = steps(samples, shown, top, value);
        let _ = write!(
            drawn,
            r#"<path class="area {class}" d="{area}"/><path class="line {class}" d="{line}"/>"#
        );
        let now = samples.iter().rev().find_map(value).map_or("–".to_owned(), show);
        let _ = write!(legend, r#"<span class="key {class}">{name} <b>{now}</b></span>"#);
        said.push(format!("{name} {now}"));
    }
    let minutes = (shown / 60.0).round();
    let since = if minutes < 120.0 {
        format!("{minutes} min ago")
    } else {
        format!("{:.0} h ago", minutes / 60.0)
    };
    let (said, top) = (said.join(", "), show(top));
    format!(
        r#"<figure><figcaption><h3>{title}</h3><p class="legend">{legend}</p></figcaption>
<p class="axis">{top}</p>
<svg viewBox="0 -4 {WIDTH} 208" preserveAspectRatio="none" role="img"
aria-label="{title} since {since}: last {said}; the top is {top}">{drawn}</svg>
<p class="axis"><span>{since}</span><span>now</span></p></figure>
"#
    )
}

/// A line of steps, and the area below it. Where there is no value there is a gap.
fn steps(
    samples: &[Value],
    shown: f64,
    top: f64,
    value: &fn(&Value) -> Option<f64>,
) -> (String, String) {
    let x = |age: f64| (WIDTH * (1.0 - age / shown)).clamp(0.0, WIDTH).round();
    let (mut line, mut area) = (String::new(), String::new());
    let mut last: Option<(f64, f64)> = None;
    for sample in samples {
        let age = number(&sample["age"]);
        let (from, to) = (x(age + number(&sample["seconds"])), x(age));
        let Some(value) = value(sample) else {
            last = None;
            continue;
        };
        let share = if top > 0.0 { value / top } else { 0.0 };
        let y = (HEIGHT * (1.0 - share.clamp(0.0, 1.0))).round();
        match last {
            Some((_, before)) if before == y => {}
            Some(_) => {
                let _ = write!(line, "V{y}");
            }
            None => {
                let _ = write!(line, "M{from} {y}");
            }
        }
        let from = last.map_or(from, |(end, _)| end);
        let _ = write!(line, "H{to}");
        let _ = write!(area, "M{from} {HEIGHT}V{y}H{to}V{HEIGHT}Z");
        last = Some((to, y));
    }
    (line, area)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_have_gaps_where_nothing_was_asked() {
        let sample =
            |age, hits, misses| json!({"age": age, "seconds": 10, "hits": hits, "misses": misses});
        let samples = [sample(90, 1, 1), sample(80, 0, 0), sample(0, 3, 0)];
        let (line, area) = steps(&samples, 100.0, 100.0, &HIT_RATE.2);
        assert_eq!(line, "M0 100H100M900 0H1000");
        assert_eq!(area, "M0 200V100H100V200ZM900 200V0H1000V200Z");
    }
}
