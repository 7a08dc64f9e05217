//! Results as a table, as JSON and as percentiles.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::tally::Tally;

/// What one run gave.
pub struct Results {
    pub name: String,
    pub connections: u32,
    pub elapsed: Duration,
    /// Of the server.
    pub cpu: Option<Duration>,
    /// How long the server's core was busy.
    pub busy: Option<Duration>,
}

impl Results {
    pub fn json(&self, main: &Tally, beside: Option<Value>) -> Value {
        let mut value = self.numbers(main);
        value["name"] = json!(self.name);
        value["connections"] = json!(self.connections);
        value["seconds"] = json!(self.elapsed.as_secs_f64());
        if let Some(cpu) = self.cpu {
            let requests = main.requests.get();
            let more = beside.as_ref().and_then(|beside| beside["bytes"].as_u64());
            let bytes = main.bytes.get() + more.unwrap_or(0);
            value["cpu_seconds"] = json!(cpu.as_secs_f64());
            value["cpu_us_per_request"] = ratio(cpu.as_secs_f64() * 1e6, requests as f64);
            value["cpu_s_per_gb"] = ratio(cpu.as_secs_f64(), bytes as f64 / 1e9);
        }
        if let Some((busy, cpu)) = self.busy.zip(self.cpu) {
            let others = busy.saturating_sub(cpu).as_secs_f64();
            value["others"] = json!(others / self.elapsed.as_secs_f64());
        }
        if let Some(beside) = beside {
            value["beside"] = beside;
        }
        value
    }

    fn numbers(&self, tally: &Tally) -> Value {
        let seconds = self.elapsed.as_secs_f64();
        let latency = tally.latency.borrow();
        let ms = |nanos: u64| nanos as f64 / 1e6;
        let at = |quantile: f64| json!(ms(latency.value_at_quantile(quantile)));
        json!({
            "requests": tally.requests.get(),
            "bytes": tally.bytes.get(),
            "requests_per_second": ratio(tally.requests.get() as f64, seconds),
            "gb_per_second": ratio(tally.bytes.get() as f64 / 1e9, seconds),
            "errors": tally.errors.get(),
            "wrong": tally.wrong.get(),
            "reasons": *tally.reasons.borrow(),
            "latency_ms": {
                "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999),
                "max": ms(latency.max()), "mean": latency.mean() / 1e6,
            },
        })
    }
}

fn ratio(of: f64, to: f64) -> Value {
    if to > 0.0 { json!(of / to) } else { Value::Null }
}

/// The results for people.
pub fn table(results: &Value) -> String {
    let number = |value: &Value, digits: usize| {
        value.as_f64().map_or("-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let latency = &results["latency_ms"];
    let mut rows = vec![
        ("requests/s", number(&results["requests_per_second"], 1)),
        ("GB/s", number(&results["gb_per_second"], 3)),
        ("p50 ms", number(&latency["p50"], 3)),
        ("p90 ms", number(&latency["p90"], 3)),
        ("p99 ms", number(&latency["p99"], 3)),
        ("p99.9 ms", number(&latency["p99.9"], 3)),
        ("max ms", number(&latency["max"], 3)),
    ];
    if results.get("cpu_seconds").is_some() {
        rows.push(("CPU us/request", number(&results["cpu_us_per_request"], 1)));
        rows.push(("CPU s/GB", number(&results["cpu_s_per_gb"], 3)));
    }
    if let Some(beside) = results.get("beside") {
        rows.push(("GB/s beside", number(&beside["gb_per_second"], 3)));
        rows.push(("errors beside", beside["errors"].to_string()));
    }
    rows.push(("errors", results["errors"].to_string()));
    rows.push(("wrong", results["wrong"].to_string()));
    let titles = rows.iter().map(|(title, value)| format!("{title:>0$}", value.len()));
    let values = rows.iter().map(|(title, value)| format!("{value:>0$}", title.len()));
    let (titles, values): (Vec<_>, Vec<_>) = (titles.collect(), values.collect());
    format!("{}\n{}\n", titles.join("  "), values.join("  "))
}

/// The form that HdrHistogram's plotters read; milliseconds.
pub fn write_percentiles(path: &Path, latency: &Histogram<u64>) -> io::Result<()> {
    let mut out = io::BufWriter::new(fs::File::create(path)?);
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut count = 0;
    for step in latency.iter_quantiles(5) {
        count += step.count_since_last_iteration();
        let value = step.value_iterated_to() as f64 / 1e6;
        let quantile = step.quantile_iterated_to();
        write!(out, "{value:>12.6} {quantile:>14.12} {count:>10}")?;
        if quantile < 1.0 {
            writeln!(out, " {:>14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, " {:>14}", "inf")?;
        }
    }
    let ms = |nanos: f64| nanos / 1e6;
    writeln!(
        out,
        "#[Mean    = {:>12.6}, StdDeviation   = {:>12.6}]",
        ms(latency.mean()),
        ms(latency.stdev())
    )?;
    writeln!(
        out,
        "#[Max     = {:>12.6}, Total count    = {:>12}]",
        ms(latency.max() as f64),
        latency.len()
    )?;
    let buckets = latency.buckets();
    writeln!(
        out,
        "#[Buckets = {buckets:>12}, SubBuckets     = {:>12}]",
        latency.distinct_values() / usize::from(buckets).max(1)
    )?;
    out.flush()
}
