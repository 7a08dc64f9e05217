use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;

const EXAMPLE: &str = include_str!("../../config.example.yaml");

fn no_env(_: &str) -> Option<String> {
    None
}

fn parse(yaml: &str) -> Config {
    Config::parse("config.yaml", yaml).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(yaml: &str) -> String {
    match Config::parse("config.yaml", yaml) {
        Ok(config) => panic!("accepted: {yaml}\n{}", config.to_yaml()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_example_is_the_defaults() {
    assert_eq!(parse(EXAMPLE), Config::default());
}

#[test]
fn the_example_has_every_key_and_a_comment_on_it() {
    for (section, keys) in read::SECTIONS {
        let body = EXAMPLE.split(&format!("\n{section}:")).nth(1).unwrap();
        for key in *keys {
            let line = body.lines().find(|line| line.trim().starts_with(&format!("{key}:")));
            let (_, comment) = line.unwrap_or_default().split_once(" # ").unwrap_or_default();
            assert!(comment.len() > 5, "{section}.{key}");
        }
    }
}

#[test]
fn what_says_nothing_is_the_defaults() {
    for yaml in ["", "\n", "# nothing\n", "---\n", "proxy:\nlimits: {}\nheaders:\n", "\u{feff}"] {
        assert_eq!(parse(yaml), Config::default(), "{yaml:?}");
    }
}

/// Every key with another value than its default.
const OTHERS: &str = r#"
proxy:
  bind: ["::", 192.0.2.1]
  port: 0
  api_bind: ::1
  api_port: 0
  api_hosts: [Proxy.Corp.example, localhost]
  api_token: t0ken
  workers: 1024
  allow_clients: [10.1.2.3/8]
  users: /etc/users
  deny_destinations: []
  connect_ports: [443, 8000-9000]
tls:
  cert_dir: /etc/certs
  intercept: ["*"]
  upstream_ca: [a.pem, /b.pem]
  ktls: off
cache:
  enabled: false
  dir: /var/cache
  max_size: 20GB
  min_free: 0
  patterns: ['^/a', "^/b"]
  access: trust
upstream:
  connect_timeout: 500ms
  read_timeout: 5m
  retries: 0
  proxy: http://user:pass@proxy:3128
  no_proxy: [.corp, 10.0.0.0/8]
headers:
  "Registry.Example.com":
    set: { Authorization: "Bearer s3cret", X-Number: 0012 }
    append: { X-Via: build }
  "*.corp":
allowlist:
  enabled: true
  domains: [ghcr.io, "*.docker.io"]
  ips: [fd00::/8]
logging:
  level: WARN
  format: json
  file: /var/log/x.log
limits:
  header_size: 1MiB
  header_timeout: 1s
  idle_timeout: 1h
  max_connections: 1
  max_connections_per_client: 3
  max_requests_per_connection: 4
  max_admin_connections: 5
  max_fills: 6
  max_redirects: 0
  shutdown_grace: 0s
"#;

#[test]
fn every_key_is_read() {
    let config = parse(OTHERS);
    assert_eq!(config.proxy.bind.len(), 2);
    assert_eq!(config.proxy.api_hosts, ["proxy.corp.example", "localhost"]);
    assert_eq!(config.proxy.api_token, Some(Secret::new("t0ken")));
    assert_eq!(config.proxy.allow_clients, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!((config.tls.ktls, config.cache.access), (Ktls::Off, Access::Trust));
    assert_eq!((config.cache.max_size, config.cache.min_free), (20_000_000_000, 0));
    assert_eq!(config.upstream.connect_timeout, Duration::from_millis(500));
    assert_eq!(config.headers[0].scope.pattern.as_str(), "registry.example.com");
    assert_eq!(config.headers[0].set[1].value.expose(), "0012");
    assert_eq!(config.logging.file, Some(PathBuf::from("/var/log/x.log")));
    assert_eq!((config.logging.level, config.limits.max_redirects), (Level::Warn, 0));
    assert_eq!(config.limits.header_size, 1 << 20);
    assert_ne!(config.tls, Config::default().tls);
    let printed = config.to_yaml();
    assert_eq!(parse(&printed).to_yaml(), printed);
}

#[test]
fn pins_are_read_and_printed() {
    let (a, b) = (Pin::new([7; 32]), Pin::new([0xF8; 32]));
    let config = parse(&format!("tls:\n  pins:\n    Reg.corp: [{a}]\n    '*.lab': ['{a}', {b}]\n"));
    let rules = &config.tls.pins;
    assert_eq!((rules[0].pattern.as_str(), &rules[0].keys[..]), ("reg.corp", &[a][..]));
    assert_eq!((rules[1].pattern.as_str(), &rules[1].keys[..]), ("*.lab", &[a, b][..]));
    assert_eq!(parse(&config.to_yaml()), config);
}

#[test]
fn anchors_save_repetition() {
    let config = parse("headers:\n  a.io: &a {set: {X-A: 1}}\n  b.io: *a\n");
    assert_eq!(config.headers[0].set, config.headers[1].set);
}

#[test]
fn what_is_printed_reads_as_the_same_and_has_every_key() {
    let printed = Config::default().to_yaml();
    assert_eq!(parse(&printed), Config::default(), "{printed}");
    for (section, keys) in read::SECTIONS {
        let (_, body) = printed.split_once(&format!("{section}:")).unwrap();
        for key in *keys {
            assert!(body.contains(&format!("\n  {key}:")), "{section}.{key}");
        }
    }
    let odd = parse("cache: {dir: \"a\\\"\\\\b\\u00e9\\n c: #\", patterns: ['\\d\"']}\n");
    assert_eq!(parse(&odd.to_yaml()), odd, "{}", odd.to_yaml());
}

#[test]
fn secrets_are_masked() {
    let config = parse(
        r#"
proxy: { api_token: s3cret }
upstream: { proxy: "http://u:s3cret@p:1" }
headers:
  a.io:
    set: { Authorization: s3cret, cookie: s3cret, PRIVATE-TOKEN: s3cret, X-Api-Key: s3cret }
    append: { X-Via: build }
"#,
    );
    let printed = config.to_yaml();
    assert!(!printed.contains("s3cret"), "{printed}");
    assert!(printed.contains("\"X-Via\": \"build\""), "{printed}");
    assert!(printed.contains("proxy: \"http://u:***@p:1\""), "{printed}");
    assert_eq!(parse(&printed).to_yaml(), printed);
    assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
}

#[test]
fn errors_do_not_repeat_secrets() {
    for yaml in [
        "proxy: {api_token: 's3cret s3cret'}",
        "proxy: {api_token: [s3cret]}",
        "upstream: {proxy: 's3cret@proxy'}",
        "headers: s3cret",
        "headers: {a.io: s3cret}",
        "headers: {a.io: {set: s3cret}}",
        "headers: {a.io: {set: [s3cret]}}",
        "headers: {a.io: {set: {X: [s3cret]}}}",
        "headers: {a.io: {set: {X: \"s3cret\\r\\ns3cret\"}}}",
        "headers: {a.io: {set: {X: 's3cretë'}}}",
        "headers: {a.io: {set: {Authorization: s3cret, authorization: s3cret}}}",
    ] {
        let error = refusal(yaml);
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn bad_configurations_are_refused_in_one_line() {
    let table: Vec<(&str, &str)> =
        BAD.split("\n\n").filter_map(|case| case.split_once("\n=> ")).collect();
    assert!(table.len() >= 25);
    let mut wrong = String::new();
    for (yaml, expected) in table {
        let found = refusal(&yaml.replace('→', "\t"));
        if found != expected.trim_end() {
            wrong.push_str(&format!("{yaml}\n=> {found}\n\n"));
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// YAML, then the error it gives; an arrow stands for a tab.
const BAD: &str = include_str!("bad.txt");

#[test]
fn the_environment_stands_over_the_file() {
    let set = |name: &str| {
        let value = match name {
            "PROXY_PORT" => "1",
            "API_PORT" => "2",
            "CERT_DIR" => "/c",
            "LOG_LEVEL" => "DEBUG",
            "LOG_FORMAT" => "json",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let config = read::parse("f", "proxy: {port: 5, api_port: 6, workers: 7}", &set).unwrap();
    assert_eq!((config.proxy.port, config.proxy.api_port, config.proxy.workers), (1, 2, 7));
    assert_eq!(config.tls.cert_dir, Path::new("/c"));
    assert_eq!((config.logging.level, config.logging.format), (Level::Debug, Format::Json));
}

#[test]
fn errors_name_the_variable() {
    let error = |name: &'static str, value: &'static str, yaml: &str| {
        let env = |asked: &str| (asked == name).then(|| value.to_owned());
        read::parse("f", yaml, &env).unwrap_err().to_string()
    };
    for (name, value, expected) in [
        ("PROXY_PORT", "http", "found \"http\", expected a whole number from 0 to 65535"),
        ("API_PORT", "65536", "found \"65536\", expected a whole number from 0 to 65535"),
        ("PROXY_PORT", "17081", "found 17081, expected a port that is not proxy.api_port's too"),
        ("API_PORT", "17080", "found 17080, expected a port that is not proxy.port's too"),
        ("LOG_LEVEL", "loud", "found \"loud\", expected error, warn, info, debug or trace"),
        ("LOG_FORMAT", "xml", "found \"xml\", expected text or json"),
        ("CERT_DIR", "a\0b", "found \"a\\0b\", expected a path"),
    ] {
        assert_eq!(error(name, value, ""), format!("{name}: {expected}"));
    }
    assert_eq!(
        error("PROXY_PORT", "7", "proxy:\n  api_port: 7\n"),
        "f:2: proxy.api_port: found 7, expected a port that is not proxy.port's too"
    );
}

#[test]
fn files_are_found_or_missed() {
    let dir = std::env::temp_dir().join(format!("discobot-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("c.yaml");
    std::fs::write(&file, "proxy: {port: 5}\n").unwrap();
    assert_eq!(Config::load(Some(&file), no_env).unwrap().proxy.port, 5);
    let empty = Config::load(Some(&file), |_| Some(String::new())).unwrap();
    assert_eq!(empty.proxy.port, 5);
    let named = |path: &Path| {
        let path = path.to_string_lossy().into_owned();
        move |name: &str| (name == "CONFIG_FILE").then(|| path.clone())
    };
    assert_eq!(Config::load(None, named(&file)).unwrap().proxy.port, 5);

    let missing = dir.join("missing.yaml");
    let error = Config::load(Some(&missing), named(&file)).unwrap_err().to_string();
    let why = "No such file or directory (os error 2)";
    let shown = missing.display();
    assert_eq!(error, format!("{shown}: found no readable file ({why}), expected a YAML file"));
    let error = Config::load(None, named(&missing)).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("CONFIG_FILE: found \"{shown}\", no readable file ({why}), expected a YAML file")
    );
    assert!(Config::load(Some(&dir), no_env).is_err());

    std::fs::write(&file, b"a: 1\nb: \xff\n").unwrap();
    let error = Config::load(Some(&file), no_env).unwrap_err().to_string();
    assert!(
        error.ends_with("found bytes on line 2 that are not UTF-8, expected a YAML file in UTF-8")
    );
    std::fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = Config::load(Some(&file), no_env).unwrap_err().to_string();
    assert!(error.ends_with("found more than 1 MiB, expected a YAML file of at most 1 MiB"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn errors_made_elsewhere_know_the_place() {
    let config = parse("cache:\n  patterns:\n    - a\n    - b\n");
    let error = config.error("cache.patterns[1]", "x", "y").to_string();
    assert_eq!(error, "config.yaml:4: cache.patterns[1]: found x, expected y");
    let error = config.error("proxy.port", "x", "y").to_string();
    assert_eq!(error, "proxy.port: found x, expected y");
}
