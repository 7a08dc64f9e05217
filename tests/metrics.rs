//! The figures: what `/metrics` says after requests that are known, that Prometheus takes it, and
//! that nobody can make more time series of it than there is room for.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::answer::{Answer, Ending};
use support::client::{Client, Payload};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::wait_until;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn metrics(proxy: &Proxy) -> String {
    let response = proxy.admin("GET", "/metrics", &[]);
    assert_eq!(response.status, 200, "{}", response.text());
    let kind = response.field("Content-Type").unwrap_or_default();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    response.text()
}

/// The value of one series.
fn value(text: &str, series: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(rest.parse().unwrap_or_else(|e| panic!("{series} {rest}: {e}")))
}

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(name)
}

/// Runs promtool with these arguments and this input; what it says.
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut tool = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool (Debian: prometheus)");
    tool.stdin.take().expect("its input").write_all(input.as_bytes()).expect("writing");
    let output = tool.wait_with_output().expect("its output");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// The figures, once so many requests have ended: a client has its answer a moment before.
fn settled(proxy: &Proxy, requests: u64) -> Option<String> {
    let text = metrics(proxy);
    let ended = text.lines().filter(|line| line.starts_with("discobot_requests_total"));
    let number = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
    (ended.filter_map(number).sum::<u64>() == requests).then_some(text)
}

/// Requests of every outcome: a miss, two hits, a pass, a tunnel, a refusal, a failing upstream.
fn use_it(proxy: &Proxy) {
    let registry = Registry::https();
    let body = fresh_body(70_000);
    let path = registry.blob("lab/img", &body);
    let manifest = "/v2/lab/img/manifests/v1";
    let answer = Answer::status(200, "12345").with("RateLimit-Remaining", "99;w=21600");
    registry.main.get(manifest, answer);
    let mut client = proxy.client(&registry.main);
    for _ in 0..3 {
        client.get(&path).assert_is(&body);
    }
    client.get(manifest);
    let cut = fresh_body(9_000);
    let path = blob_path("lab/img", &cut);
    registry.main.get(&path, Answer::ok(&cut).ends_at(100, Ending::Cut));
    client.get(&path);
    proxy.plain().get(&format!("http://{}:65535/v2/", names::DEAD));
    let tunnel = Client::tunnel(proxy.address(), &Origin::http(names::OTHER).authority());
    drop(tunnel.expect("a tunnel"));
    proxy.plain().request("GET", "http://127.0.0.1:25/", &[], Payload::None);
}

fn setup() -> Setup {
    Setup::new().with(json!({ "upstream": { "retries": 0 } }))
}

#[test]
fn a_body_broken_off_after_a_redirect_is_the_fault_of_whoever_sent_it() {
    let setup = setup();
    let proxy = setup.start();
    let registry = Registry::https();
    // The one is stored, the other passes.
    let passed = ("Cache-Control", "no-store");
    for (times, field) in [("X-Kind", "stored"), passed].into_iter().enumerate() {
        let body = fresh_body(90_000);
        let cut = Answer::ok(&body).with(field.0, field.1).ends_at(50_000, Ending::Cut);
        let path = registry.blob_as("lab/img", &body, cut);
        proxy.client(&registry.main).get(&path);
        let series =
            format!("discobot_upstream_errors_total{{host=\"{}\",error=\"closed\"}}", names::CDN);
        wait_until("the fault of the second host", || {
            (value(&metrics(&proxy), &series) == Some((times + 1) as f64)).then_some(())
        });
    }
    let text = metrics(&proxy);
    let first = format!("discobot_upstream_errors_total{{host=\"{}\"", names::REGISTRY);
    assert!(!text.contains(&first), "{text}");
}

#[test]
fn the_figures_are_those_of_the_requests() {
    let setup = setup();
    let proxy = setup.start();
    use_it(&proxy);
    let of = |outcome: &str, registry: &str| {
        format!("discobot_requests_total{{outcome=\"{outcome}\",registry=\"{registry}\"}}")
    };
    let tunnelled = of("tunnelled", names::OTHER);
    let text = wait_until("the end of all requests", || settled(&proxy, 9));
    let bytes = "discobot_response_bytes_total{outcome=\"hit\",registry=\"registry.test\"}";
    let first = "discobot_first_byte_seconds";
    let rows = [
        (of("hit", names::REGISTRY), 2.0),
        (of("miss", names::REGISTRY), 2.0),
        (of("passed", names::REGISTRY), 1.0),
        (of("intercepted", "other"), 1.0),
        (tunnelled, 1.0),
        (of("passed", "other"), 1.0),
        (of("refused", "other"), 1.0),
        (bytes.to_owned(), 140_000.0),
        ("discobot_saved_bytes_total".to_owned(), 140_000.0),
        (format!("{first}_count{{outcome=\"hit\"}}"), 2.0),
        (format!("{first}_bucket{{outcome=\"hit\",le=\"+Inf\"}}"), 2.0),
        ("discobot_request_duration_seconds_count{outcome=\"passed\"}".to_owned(), 2.0),
        ("discobot_ratelimit_remaining{registry=\"registry.test\"}".to_owned(), 99.0),
        ("discobot_upstream_errors_total{host=\"other\",error=\"connect\"}".to_owned(), 1.0),
        ("discobot_upstream_errors_total{host=\"registry.test\",error=\"closed\"}".to_owned(), 1.0),
        ("discobot_upstream_first_byte_seconds_count{host=\"cdn.example\"}".to_owned(), 1.0),
        ("discobot_hits_total".to_owned(), 2.0),
        ("discobot_handshakes_total".to_owned(), 1.0),
        ("discobot_cache_bytes".to_owned(), 70_000.0),
        ("discobot_cache_max_bytes".to_owned(), 1e9),
        ("discobot_fills".to_owned(), 0.0),
        ("discobot_evictions_total".to_owned(), 0.0),
    ];
    for (series, expected) in rows {
        assert_eq!(value(&text, &series), Some(expected), "{series} in {text}");
    }
    for worker in 0..2 {
        let series = format!("discobot_worker_busy_seconds_total{{worker=\"worker-{worker}\"}}");
        assert!(value(&text, &series) > Some(0.0), "{series} in {text}");
    }
    for part in ["discobot_disk_free_bytes", "discobot_disk_size_bytes"] {
        assert!(value(&text, part) > Some(1e6), "{part} in {text}");
    }
    let version = env!("CARGO_PKG_VERSION");
    assert!(text.contains(&format!("discobot_build_info{{version=\"{version}\"")), "{text}");

    let stats = proxy.stats();
    for (times, outcome) in [("time_to_head_us", "hit"), ("duration_us", "passed")] {
        let times = &stats[times][outcome];
        let quantile = |name: &str| times[name].as_u64().unwrap_or_else(|| panic!("{stats}"));
        assert_eq!(times["count"], json!(2), "{stats}");
        let all = ["p50", "p90", "p99", "p99.9"].map(quantile);
        assert!(all[0] > 0 && all.is_sorted(), "{stats}");
    }
    assert_eq!(stats["bytes_saved"], json!(140_000), "{stats}");
    let percent = stats["bytes_saved_percent"].as_f64().expect("a number");
    assert!(percent > 50.0 && percent < 67.0, "{stats}");
}

#[test]
fn promtool_finds_nothing_to_object_to() {
    let setup = setup();
    let proxy = setup.start();
    use_it(&proxy);
    let said = promtool(&["check", "metrics"], &metrics(&proxy));
    assert_eq!(said.trim(), "");
    let rules = contrib("alerts.yml");
    promtool(&["check", "rules", "--lint-fatal", rules.to_str().expect("UTF-8")], "");
}

#[test]
fn hosts_without_end_make_no_series_without_end() {
    let setup = setup();
    let proxy = setup.start();
    let origin = Origin::at("127.0.1.1", "0.0.0.0:0");
    origin.get("/v2/", Answer::status(200, "{}"));
    let port = origin.address().port();
    for n in 1..=60 {
        // What does not answer gets no label, however early it is asked for.
        let dead = format!("http://{n}.nowhere.test/v2/");
        proxy.plain().get(&dead).assert_own_error(&[503, 504]);
    }
    for n in 1..=60 {
        let answer = proxy.plain().get(&format!("http://127.0.1.{n}:{port}/v2/"));
        assert_eq!(answer.status, 200);
    }
    let text = wait_until("the end of all requests", || settled(&proxy, 120));
    assert!(!text.contains("nowhere"), "{text}");
    let others = "discobot_requests_total{outcome=\"passed\",registry=\"other\"}";
    let others = value(&text, others);
    assert_eq!(others, Some(28.0 + 60.0), "{text}");
    let hosts = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(hosts("discobot_requests_total{outcome=\"passed\""), 33, "{text}");
    assert_eq!(hosts("discobot_upstream_first_byte_seconds_count"), 33, "{text}");
}

#[test]
fn metrics_are_guarded_as_the_rest_of_the_admin_port_is() {
    let setup = Setup::new().with(json!({ "proxy": { "api_token": "t0ken" } }));
    let proxy = setup.start();
    assert_eq!(proxy.admin("GET", "/metrics", &[]).status, 401);
    let right = [("Authorization", "Bearer t0ken"), ("Accept", OPEN_METRICS)];
    let response = proxy.admin("GET", "/metrics", &right);
    assert_eq!((response.status, response.field("Content-Type")), (200, Some(OPEN_METRICS)));
    assert!(response.text().ends_with("# EOF\n"), "{}", response.text());
    assert_eq!(proxy.admin("POST", "/metrics", &right[..1]).status, 405);
    let foreign = [right[0], ("Host", "evil.example")];
    assert_eq!(proxy.admin("GET", "/metrics", &foreign).status, 403);
}

/// A Prometheus that scrapes one target each second; ends with its value.
struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    fn start(setup: &Setup, target: &str) -> Prometheus {
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": [contrib("alerts.yml")],
            "scrape_configs": [
                { "job_name": "discobot-proxy", "static_configs": [{ "targets": [target] }] },
            ],
        });
        let file = setup.path("prometheus.yml");
        fs::write(&file, config.to_string()).expect("its configuration");
        let mut child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", setup.path("tsdb").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("prometheus (Debian: prometheus)");
        let mut log = BufReader::new(child.stderr.take().expect("its log"));
        let mut said = String::new();
        let address = loop {
            let before = said.len();
            assert!(log.read_line(&mut said).expect("its log") > 0, "it ended: {said}");
            let line = &said[before..];
            if line.contains("Listening on") {
                let (_, rest) = line.split_once("address=").expect("its address");
                break rest.split_whitespace().next().expect("its address").to_owned();
            }
        };
        // Nobody reads the rest, which must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut log.by_ref(), &mut std::io::sink()));
        Prometheus { child, address }
    }

    fn ask(&self, path: &str) -> Value {
        let address = self.address.parse().expect("a socket address");
        let answer = Client::direct(address, &self.address).get(path);
        // It refuses while it starts.
        if answer.status == 200 { answer.json() } else { Value::Null }
    }

    /// The value of an expression, once there is one.
    fn value(&self, expression: &str) -> f64 {
        wait_until(expression, || {
            let answer = self.ask(&format!("/api/v1/query?query={expression}"));
            answer["data"]["result"][0]["value"][1].as_str()?.parse().ok()
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_prometheus_scrapes_it_and_takes_the_rules() {
    let setup = setup();
    let proxy = setup.start();
    use_it(&proxy);
    let prometheus = Prometheus::start(&setup, &proxy.admin_address().to_string());
    assert_eq!(prometheus.value("discobot_hits_total"), 2.0);
    assert_eq!(prometheus.value("discobot_requests_total%7Boutcome=%22hit%22%7D"), 2.0);
    assert_eq!(prometheus.value("up"), 1.0);
    let hits = "discobot_first_byte_seconds_count%7Boutcome=%22hit%22%7D";
    assert_eq!(prometheus.value(hits), 2.0);
    let target = prometheus.ask("/api/v1/targets")["data"]["activeTargets"][0].clone();
    assert_eq!((&target["health"], &target["lastError"]), (&json!("up"), &json!("")), "{target}");
    let rules = wait_until("the rules", || {
        let rules = prometheus.ask("/api/v1/rules")["data"]["groups"][0]["rules"].clone();
        let rules = rules.as_array()?.clone();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    });
    assert!(rules.len() >= 5, "{rules:?}");
}

#[test]
fn the_dashboard_and_the_rules_name_figures_that_are_there() {
    let setup = setup();
    let proxy = setup.start();
    use_it(&proxy);
    let text = metrics(&proxy);
    let dashboard = fs::read_to_string(contrib("grafana-dashboard.json")).expect("the dashboard");
    let panels = serde_json::from_str::<Value>(&dashboard).expect("JSON")["panels"].clone();
    assert!(panels.as_array().is_some_and(|panels| panels.len() >= 10), "{panels}");
    let rules = fs::read_to_string(contrib("alerts.yml")).expect("the rules");
    let both = format!("{dashboard}\n{rules}");
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut named = 0;
    for word in both.split(|c| !of_a_name(c)).filter(|word| word.starts_with("discobot_")) {
        let there = text
            .lines()
            .any(|line| line.strip_prefix(word).is_some_and(|rest| rest.starts_with(['{', ' '])));
        assert!(there, "no {word} in {text}");
        named += 1;
    }
    assert!(named > 30, "only {named}");
}
