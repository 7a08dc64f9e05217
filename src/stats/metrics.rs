//! All figures as Prometheus takes them.

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::cores::{Count, Figures, Times};
use super::{OUTCOMES, Stats};

/// In which words the figures are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' older text format.
    Prometheus,
}

impl Dialect {
    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Dialect::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Dialect::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// What others than [`Stats`] know at this moment.
#[derive(Debug)]
pub struct Moment {
    /// Name, meaning and value of what is neither counted nor timed.
    pub gauges: Vec<(&'static str, &'static str, f64)>,
    /// Time on the processor of each worker thread, by its name.
    pub busy: Vec<(String, Duration)>,
    /// What describes this build, by name.
    pub build: Vec<(&'static str, String)>,
}

impl Stats {
    /// Tells everything.
    ///
    /// # Errors
    /// None that could be mended.
    pub fn tell(&self, moment: Moment, dialect: Dialect) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix("discobot");
        self.upstreams.register(&mut registry);
        let figures = self.figures();
        let of_host = |(slot, counts): (usize, &[Count; OUTCOMES.len()])| {
            (self.hosts.name(slot).to_owned(), *counts)
        };
        let hosts = figures.counts.iter().enumerate().map(of_host).collect();
        let counters = self.described().collect();
        let told = Told { counters, moment, hosts, figures };
        registry.register_collector(Box::new(told));
        let mut out = String::new();
        match dialect {
            Dialect::OpenMetrics => text::encode(&mut out, &registry)?,
            Dialect::Prometheus => prometheus_text::encode(&mut out, &registry)?,
        }
        Ok(out)
    }
}

/// Everything at one moment.
struct Told {
    counters: Vec<(&'static str, &'static str, u64)>,
    moment: Moment,
    hosts: Vec<(String, [Count; OUTCOMES.len()])>,
    figures: Figures,
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Told").field("moment", &self.moment).finish_non_exhaustive()
    }
}

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, help, value) in &self.counters {
            // The one of them that also falls.
            if *name == "connections" {
                gauge(&mut encoder, name, help, *value as f64)?;
            } else {
                counter(&mut encoder, name, help, *value)?;
            }
        }
        for (name, help, value) in &self.moment.gauges {
            gauge(&mut encoder, name, help, *value)?;
        }
        let saved = self.figures.saved();
        counter(&mut encoder, "saved_bytes", "Bytes to clients that upstream did not send", saved)?;
        self.requests(&mut encoder)?;
        let (first_byte, whole) = (&self.figures.first_byte, &self.figures.whole);
        let help = "From a request's head to that of its answer";
        times(&mut encoder, "first_byte_seconds", help, first_byte)?;
        let help = "From a request's head to the end of its answer";
        times(&mut encoder, "request_duration_seconds", help, whole)?;
        let mut busy = encoder.encode_descriptor(
            "worker_busy_seconds",
            "Time on the processor",
            None,
            MetricType::Counter,
        )?;
        for (name, time) in &self.moment.busy {
            let labels = [("worker", name.as_str())];
            let seconds = time.as_secs_f64();
            busy.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&seconds, None)?;
        }
        let mut build =
            encoder.encode_descriptor("build", "What is running", None, MetricType::Info)?;
        build.encode_info(&self.moment.build)
    }
}

impl Told {
    /// Only what there was: most hosts see few of the outcomes.
    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        type Value = fn(&Count) -> u64;
        let families: [(&str, &str, Value); 2] = [
            ("requests", "Requests that have ended", |count| count.requests),
            ("response_bytes", "Bytes of the bodies of their answers", |count| count.bytes),
        ];
        for (name, help, value) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (registry, counts) in &self.hosts {
                for (outcome, count) in OUTCOMES.iter().zip(counts) {
                    if count.requests == 0 {
                        continue;
                    }
                    let labels = [("outcome", outcome.as_str()), ("registry", registry)];
                    let mut one = family.encode_family(&labels)?;
                    one.encode_counter::<NoLabelSet, _, u64>(&value(count), None)?;
                }
            }
        }
        Ok(())
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

fn times(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    times: &[Option<Times>; OUTCOMES.len()],
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for (outcome, times) in OUTCOMES.iter().zip(times) {
        let Some(times) = times else { continue };
        let labels = [("outcome", outcome.as_str())];
        let buckets = times.buckets(super::bounds().chain([f64::INFINITY]));
        let (sum, count) = (times.sum().as_secs_f64(), times.count());
        let mut one = family.encode_family(&labels)?;
        one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
    }
    Ok(())
}
