//! What the program makes of its configuration, its arguments and its environment; and how it
//! refuses what it cannot work with.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};
use support::answer::Answer;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Finished, Setup, run};
use support::registry::blob_path;

/// One line on standard error, and nothing that looks like a panic.
#[track_caller]
fn assert_refused(finished: &Finished, code: i32, parts: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    let lines: Vec<&str> = finished.stderr.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "one line: {finished:?}");
    for part in parts {
        assert!(lines[0].contains(part), "{part:?} is not in {:?}", lines[0]);
    }
    let all = format!("{} {}", finished.stdout, finished.stderr);
    assert!(!all.contains("panicked") && !all.contains("proxy="), "{finished:?}");
}

#[test]
fn a_bad_configuration_is_refused_with_key_and_line() {
    let rows = [
        ("proxy:\n  port: 70000\n", "proxy.port", 2),
        ("proxy:\n  port: http\n", "proxy.port", 2),
        ("proxy:\n  prot: 17080\n", "prot", 2),
        ("# a comment\n\ncachee:\n  dir: x\n", "cachee", 3),
        ("proxy:\n  bind: localhost!\n", "proxy.bind", 2),
        ("cache:\n  max_size: plenty\n", "cache.max_size", 2),
        ("cache:\n  patterns:\n    - \"^/ok\"\n    - \"^/(v2\"\n", "cache.patterns", 4),
        ("cache:\n  access: sometimes\n", "cache.access", 2),
        ("upstream:\n  read_timeout: soon\n", "upstream.read_timeout", 2),
        ("upstream:\n  retries: -1\n", "upstream.retries", 2),
        ("upstream:\n  proxy: \"nonsense://x y\"\n", "upstream.proxy", 2),
        ("logging:\n  level: loud\n", "logging.level", 2),
        ("logging:\n  format: xml\n", "logging.format", 2),
        ("tls:\n  ktls: maybe\n", "tls.ktls", 2),
        ("tls:\n  intercept: [\"a..b\"]\n", "tls.intercept", 2),
        ("proxy:\n  deny_destinations: [300.0.0.0/8]\n", "proxy.deny_destinations", 2),
        ("proxy:\n  allow_clients:\n    - 10.0.0.0/33\n", "proxy.allow_clients", 3),
        ("allowlist:\n  ips: [nowhere]\n", "allowlist.ips", 2),
        ("allowlist:\n  domains: [\"*.*.*\"]\n  enabled: perhaps\n", "allowlist", 0),
        ("headers:\n  r.test:\n    set: { \"Bad Name\": \"x\" }\n", "headers", 3),
        ("headers:\n  r.test:\n    set: { \"X-Y\": \"a\\r\\nB: c\" }\n", "headers", 3),
        ("headers:\n  r.test:\n    replace: {}\n", "replace", 3),
        ("limits:\n  header_size: 64kilo\n", "limits.header_size", 2),
        ("proxy:\n  port: 1\n  port: 2\n", "port", 3),
        ("proxy: [\n", "", 0),
        ("proxy:\n\tport: 1\n", "", 2),
        ("just words\n", "", 0),
        ("proxy: 17080\n", "proxy", 1),
    ];
    let setup = Setup::new();
    let file = setup.path("bad.yaml");
    let path = file.to_str().expect("UTF-8");
    for (text, key, line) in rows {
        fs::write(&file, text).expect("the file");
        for arguments in [&["--config", path][..], &["check", "--config", path]] {
            let finished = setup.run(arguments);
            let place = if line > 0 { format!("bad.yaml:{line}") } else { "bad.yaml".to_owned() };
            assert_refused(&finished, 2, &[key, &place]);
        }
    }
    let made: BTreeSet<String> = names_in(&setup.path(""));
    assert_eq!(made, BTreeSet::from(["bad.yaml".into(), "upstream-ca.pem".into()]), "half-started");
}

#[test]
fn a_file_that_is_not_there_or_no_text_is_refused() {
    let setup = Setup::new();
    assert_refused(&setup.run(&["--config", "nowhere.yaml"]), 2, &["nowhere.yaml"]);
    assert_refused(&setup.run(&["--config", "/"]), 2, &["/"]);
    fs::write(setup.path("binary.yaml"), [0xFF, 0xFE, 0, 1]).expect("the file");
    assert_refused(&setup.run(&["--config", "binary.yaml"]), 2, &["binary.yaml"]);
    fs::write(setup.path("ca.yaml"), "tls:\n  upstream_ca: [nowhere.pem]\n").expect("the file");
    let finished = setup.run(&["--config", "ca.yaml"]);
    assert_refused(&finished, 2, &["tls.upstream_ca", "nowhere.pem"]);
}

#[test]
fn bad_variables_are_refused_by_their_names() {
    for (name, value) in [
        ("PROXY_PORT", "http"),
        ("PROXY_PORT", "65536"),
        ("API_PORT", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("CONFIG_FILE", "/nowhere/config.yaml"),
    ] {
        let setup = Setup::new().env(name, value);
        let shown = if name == "CONFIG_FILE" { value } else { name };
        assert_refused(&setup.run(&["check"]), 2, &[shown]);
    }
}

#[test]
fn variables_override_the_file() {
    let setup = Setup::new()
        .with(json!({ "proxy": { "port": 1, "api_port": 1 }, "logging": { "level": "error" } }))
        .env("PROXY_PORT", "0")
        .env("API_PORT", "0")
        .env("LOG_LEVEL", "info")
        .env("LOG_FORMAT", "json");
    let own = setup.path("other-certs");
    let setup = setup.env("CERT_DIR", own.to_str().expect("UTF-8"));
    let proxy = setup.start();
    assert!(own.join("ca.crt").exists() && !setup.path("certs").exists());
    let origin = Origin::http(names::REGISTRY);
    let body = fresh_body(777);
    let path = blob_path("lab/img", &body);
    origin.get(&path, Answer::ok(&body));
    proxy.get(&origin, &path).assert_is(&body);
    proxy.get(&origin, &path).assert_hit();
    proxy.wait_log(&["cache hit"]);
    let lines = proxy.log();
    proxy.stop();
    for line in &lines {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(event.is_object());
    }
    let hit = lines.iter().find(|line| line.contains("cache hit")).expect("the line");
    assert!(hit.contains(&path) && hit.contains("777") && hit.contains(names::REGISTRY), "{hit}");
}

#[test]
fn no_configuration_is_needed() {
    let setup = Setup::new().env("PROXY_PORT", "0").env("API_PORT", "0");
    let proxy = setup.start_with(&[]);
    let output = proxy.output();
    for part in ["certs/ca.crt", &proxy.address().port().to_string()] {
        assert!(output.contains(part), "{part} in {output}");
    }
    assert!(output.contains("io_uring") || output.contains("epoll"), "the driver: {output}");
    let mode = fs::metadata(setup.path("certs/ca.key")).expect("ca.key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(setup.path("cache/blobs/sha256").is_dir());
    assert!(proxy.address().ip().is_unspecified());
    assert!(proxy.admin_address().ip().is_loopback());
    // The default refuses loopback destinations.
    let port = proxy.address().port();
    let mut client = support::client::Client::plain(([127, 0, 0, 1], port).into());
    client.get("http://registry.test:1/").assert_own_error(&[403]);
    proxy.stop();
}

#[test]
fn config_yaml_of_the_working_directory_is_read() {
    let setup = Setup::new();
    setup.write_config();
    let proxy = setup.start_with(&[]);
    assert!(proxy.address().ip().is_loopback());
    proxy.stop();
    fs::write(setup.path("config.yaml"), "proxy:\n  port: x\n").expect("the file");
    assert_refused(&setup.run(&[]), 2, &["config.yaml:2", "proxy.port"]);
}

#[test]
fn config_file_is_named_by_the_variable() {
    let setup = Setup::new();
    let written = setup.write_config();
    let named = setup.path("named.yaml");
    fs::rename(&written, &named).expect("renaming");
    let setup = setup.env("CONFIG_FILE", named.to_str().expect("UTF-8"));
    let proxy = setup.start_with(&[]);
    assert!(proxy.address().ip().is_loopback());
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let setup = Setup::new();
    for arguments in [&["check"][..], &["ca"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = setup.command();
        let ended = command.args(arguments).stdout(writer).output().expect("running it");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*said), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn check_prints_what_takes_effect_and_reads_it_back() {
    let secrets = json!({
        "headers": { "registry.test": { "set": { "Authorization": "Bearer sup3rs3cret" } } },
        "proxy": { "api_token": "t0psecret" },
        "upstream": { "proxy": "http://user:passw0rd@proxy.test:3128" },
        "cache": { "max_size": "20GB" },
    });
    let setup = Setup::new().with(secrets);
    let file = setup.write_config();
    let path = file.to_str().expect("UTF-8");
    let first = setup.run(&["check", "--config", path]);
    let mut warnings = first.stderr.lines();
    assert!(warnings.all(|line| line.starts_with("discobot-proxy: warning: ")));
    assert_eq!(first.code, Some(0), "{first:?}");
    for part in ["max_size", "registry.test", "header_timeout", "proxy.test:3128", "Authorization"]
    {
        assert!(first.stdout.contains(part), "{part} in {}", first.stdout);
    }
    for secret in ["sup3rs3cret", "t0psecret", "passw0rd"] {
        assert!(!first.stdout.contains(secret), "{secret} in {}", first.stdout);
    }
    assert!(!setup.path("certs").exists() && !setup.path("cache").exists(), "check makes files");

    let again = setup.path("again.yaml");
    fs::write(&again, &first.stdout).expect("the file");
    let second = setup.run(&["check", "--config", again.to_str().expect("UTF-8")]);
    assert_eq!((second.code, &second.stdout), (Some(0), &first.stdout), "{second:?}");

    let defaults = Setup::new().run(&["check"]);
    assert_eq!(defaults.code, Some(0), "{defaults:?}");
    for part in ["17080", "17081", "21474836480", "*.docker.io", "127.0.0.0/8"] {
        assert!(defaults.stdout.contains(part), "{part} in {}", defaults.stdout);
    }
}

#[test]
fn ca_makes_the_certificate_once_and_prints_it() {
    let setup = Setup::new();
    let file = setup.write_config();
    let path = file.to_str().expect("UTF-8");
    let first = setup.run(&["ca", "--config", path]);
    assert_eq!(first.code, Some(0), "{first:?}");
    let pem = fs::read_to_string(setup.path("certs/ca.crt")).expect("ca.crt");
    assert_eq!(first.stdout.trim(), pem.trim());
    support::certs::Trust::pem(&pem);
    let mode = fs::metadata(setup.path("certs/ca.key")).expect("ca.key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = setup.run(&["ca", "--config", path]);
    assert_eq!((second.code, second.stdout), (Some(0), first.stdout));
    let proxy = setup.start();
    assert_eq!(fs::read_to_string(setup.path("certs/ca.crt")).expect("ca.crt"), pem);
    drop(proxy);
}

#[test]
fn version_help_and_nonsense() {
    let setup = Setup::new();
    let version = setup.run(&["--version"]);
    assert_eq!(version.code, Some(0));
    assert!(version.stdout.contains("discobot-proxy") && version.stdout.contains("0.1"));
    let help = setup.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for part in ["check", "ca", "--config"] {
        assert!(help.stdout.contains(part), "{}", help.stdout);
    }
    for nonsense in ["--nonsense", "nonsense"] {
        let finished = setup.run(&[nonsense]);
        assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
        assert!(!finished.stderr.is_empty() && !finished.stderr.contains("panicked"));
    }
}

#[test]
fn a_taken_port_is_said_and_nothing_half_started() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("its address").port();
    for key in ["port", "api_port"] {
        let setup = Setup::new().with(json!({ "proxy": { key: port } }));
        let finished = setup.run_config();
        assert_refused(&finished, 1, &[&port.to_string()]);
    }
}

#[test]
fn a_running_proxys_port_is_taken() {
    let first = Setup::new();
    let proxy = first.start();
    let port = proxy.address().port();
    // Listeners with SO_REUSEPORT share a port unless somebody looks.
    let second = Setup::new().with(json!({ "proxy": { "port": port } }));
    assert_refused(&second.run_config(), 1, &[&port.to_string()]);
    assert_eq!(proxy.admin("GET", "/health", &[]).status, 200);
}

#[test]
fn directories_that_cannot_be_written_are_said() {
    for (section, key) in [("cache", "dir"), ("tls", "cert_dir")] {
        let setup = Setup::new();
        let file = setup.path("a-file");
        fs::write(&file, "not a directory").expect("the file");
        let below = file.join("below");
        for bad in [&file, &below, Path::new("/proc/nonexistent/dir")] {
            let bad = bad.to_str().expect("UTF-8").to_owned();
            let mut one = Setup::new();
            one.set(json!({ section: { key: bad } }));
            assert_refused(&one.run_config(), 1, &[&bad]);
        }
    }
}

#[test]
fn a_read_only_file_system_is_said() {
    for (section, key) in [("cache", "dir"), ("tls", "cert_dir")] {
        let setup = Setup::new();
        let folder = setup.path("read-only");
        fs::create_dir(&folder).expect("the mount point");
        let folder = folder.to_str().expect("UTF-8").to_owned();
        let mut setup = setup;
        setup.set(json!({ section: { key: folder } }));
        let config = setup.write_config();
        // Root ignores permission bits, so the file system itself refuses; in a mount namespace
        // of its own, which ends with the program.
        let script = format!(
            "mount -t tmpfs -o ro none {folder} && exec {} --config {}",
            env!("CARGO_BIN_EXE_discobot-proxy"),
            config.display()
        );
        let mut command = setup.wrapped("unshare", &["-m", "sh", "-c", &script]);
        assert_refused(&run(&mut command), 1, &[&folder]);
    }
}

#[test]
fn half_a_ca_is_refused_and_kept() {
    let whole = Setup::new();
    let file = whole.write_config();
    assert_eq!(whole.run(&["ca", "--config", file.to_str().expect("UTF-8")]).code, Some(0));
    let read = |name: &str| fs::read(whole.path("certs").join(name)).expect(name);
    let (certificate, key) = (read("ca.crt"), read("ca.key"));
    let other = Setup::new();
    let other_file = other.write_config();
    other.run(&["ca", "--config", other_file.to_str().expect("UTF-8")]);
    let foreign_key = fs::read(other.path("certs/ca.key")).expect("ca.key");

    type Row<'a> = (Option<&'a [u8]>, Option<&'a [u8]>, &'a str);
    let rows: [Row<'_>; 5] = [
        (Some(&certificate), None, "ca.key"),
        (None, Some(&key), "ca.crt"),
        (Some(b"garbage"), Some(&key), "ca.crt"),
        (Some(&certificate), Some(b"garbage"), "ca.key"),
        (Some(&certificate), Some(&foreign_key), "ca."),
    ];
    for (certificate, key, named) in rows {
        let setup = Setup::new();
        let folder = setup.path("certs");
        fs::create_dir(&folder).expect("certs");
        for (name, content) in [("ca.crt", certificate), ("ca.key", key)] {
            if let Some(content) = content {
                let mut options = fs::OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create(true)
                    .mode(0o600)
                    .open(folder.join(name))
                    .expect(name);
                file.write_all(content).expect(name);
            }
        }
        let before = names_in(&folder);
        let config = setup.write_config();
        let path = config.to_str().expect("UTF-8");
        for arguments in [&["--config", path][..], &["ca", "--config", path]] {
            assert_refused(&setup.run(arguments), 1, &[named]);
        }
        assert_eq!(names_in(&folder), before, "a user's CA must not be overwritten");
        if let Some(certificate) = certificate {
            assert_eq!(fs::read(folder.join("ca.crt")).expect("ca.crt"), certificate);
        }
    }
}

#[test]
fn what_is_open_to_more_than_one_might_think_is_said() {
    let rule = json!({ "registry.example": { "set": { "Authorization": "Bearer x" } } });
    for (keys, said) in [
        (json!({ "cache": { "access": "trust" } }), Some("cache.access is trust")),
        (json!({ "headers": rule }), Some("`headers` puts in counts as every client's")),
        (json!({ "headers": { "registry.example": {} } }), None),
        (json!({ "proxy": { "api_bind": "0.0.0.0" } }), Some("may clear the cache")),
        (json!({ "proxy": { "api_bind": "::", "api_token": "x" } }), None),
        (json!({ "proxy": { "api_bind": "::1" } }), None),
        (json!({ "proxy": { "api_bind": "::ffff:127.0.0.1" } }), None),
    ] {
        let setup = Setup::new().with(json!({ "cache": { "access": "verify" } })).with(keys);
        let config = setup.write_config();
        let checked = setup.run(&["check", "--config", config.to_str().expect("UTF-8")]);
        assert_eq!(checked.code, Some(0), "{checked:?}");
        let lines: Vec<_> = checked.stderr.lines().collect();
        assert_eq!(lines.len(), usize::from(said.is_some()), "{lines:?}");
        assert!(said.is_none_or(|said| lines[0].contains(said)), "{lines:?}");
    }
    let setup = Setup::new().with(json!({ "headers": rule }));
    let proxy = setup.start();
    proxy.wait_log(&["WARN", "`headers` puts in counts as every client's"]);
    proxy.wait_log(&["WARN", "cache.access is trust"]);
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).expect("the folder").flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
