//! The proxy's own pages, and the scripts that point a client at it, run by a real `sh` on roots
//! of the tests' own. `scripts/e2e-docker.sh` runs them with the real clients.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::client::{Client, Response};
use support::proxy::{Proxy, Setup};

const CLIENTS: [&str; 5] = ["docker", "containerd", "podman", "buildkit", "ci"];
const DAEMON: &str = "etc/docker/daemon.json";
const TOOLS: &str = "/usr/local/bin:/usr/bin:/bin";

/// What a job's environment is told.
const NAMED: &str = "\
HTTP_PROXY=http://cache.test:17080
HTTPS_PROXY=http://cache.test:17080
http_proxy=http://cache.test:17080
https_proxy=http://cache.test:17080
NO_PROXY=localhost,127.0.0.1
no_proxy=localhost,127.0.0.1
";
const UNNAMED: &str =
    "HTTP_PROXY=\nHTTPS_PROXY=\nhttp_proxy=\nhttps_proxy=\nNO_PROXY=\nno_proxy=\n";

fn ask(proxy: &Proxy, lines: &str) -> Response {
    let mut client = Client::plain(proxy.address());
    client.wire.send(format!("{lines}\r\n\r\n").as_bytes()).expect("a request");
    let head = client.head();
    client.rest("GET", head)
}

/// A system that has nothing but a certificate store and systemd, and the scripts for it. What they
/// would run inside is written down instead.
struct System {
    dir: tempfile::TempDir,
}

impl System {
    fn new(proxy: &Proxy) -> System {
        let system = System { dir: tempfile::tempdir().expect("a directory") };
        for folder in ["var/lib", "usr/sbin", "usr/local/share/ca-certificates", "etc/docker"] {
            fs::create_dir_all(system.path(folder)).expect("a folder");
        }
        fs::create_dir_all(system.path("usr/lib/systemd")).expect("a folder");
        program(&system.path("usr/sbin/update-ca-certificates"), "");
        fs::create_dir(system.dir.path().join("bin")).expect("a folder");
        let log = system.dir.path().join("ran").display().to_string();
        program(&system.dir.path().join("bin/chroot"), &format!("shift; echo \"$@\" >>'{log}'"));
        for name in CLIENTS {
            let lines = format!("GET /setup/{name} HTTP/1.1\r\nHost: cache.test:17080");
            let script = ask(proxy, &lines);
            assert_eq!(script.status, 200);
            fs::write(system.dir.path().join(name), &script.body).expect("a script");
        }
        system
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("root").join(below)
    }

    /// Runs a client's script; `tools` is where its commands are found.
    fn run_with(&self, tools: &str, name: &str, options: &[&str]) -> Output {
        self.command(tools, name, options).output().expect("sh")
    }

    fn command(&self, tools: &str, name: &str, options: &[&str]) -> Command {
        let bin = self.dir.path().join("bin").display().to_string();
        let root = self.dir.path().join("root");
        let mut sh = Command::new("/bin/sh");
        sh.arg(self.dir.path().join(name)).arg("--root").arg(root).args(options);
        sh.env_clear().env("PATH", format!("{bin}:{tools}")).current_dir("/");
        sh
    }

    fn run(&self, name: &str, options: &[&str]) -> Output {
        self.run_with(TOOLS, name, options)
    }

    /// The script for CI in a step of a job, whose environment has these variables.
    #[track_caller]
    fn step(&self, variables: &[(&str, &str)], options: &[&str]) -> String {
        let mut sh = self.command(TOOLS, "ci", options);
        let output = sh.envs(variables.iter().copied()).output().expect("sh");
        assert!(output.status.success(), "{variables:?} {options:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Fails where a file that the scripts keep holds these words.
    #[track_caller]
    fn assert_keeps_no(&self, words: &str) {
        for (path, (_, bytes)) in self.files() {
            let kept = path.starts_with(self.path("var/lib"));
            assert!(!kept || !String::from_utf8_lossy(&bytes).contains(words), "{path:?}");
        }
    }

    #[track_caller]
    fn does(&self, name: &str, options: &[&str]) -> String {
        let output = self.run(name, options);
        assert!(output.status.success(), "{name} {options:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Fails unless it says one line and leaves everything as it is.
    #[track_caller]
    fn refuses(&self, name: &str, options: &[&str]) -> String {
        let before = self.files();
        let output = self.run(name, options);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(self.files(), before);
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    }

    /// Everything there is, with its mode and bytes.
    fn files(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        collect(&self.path(""), &mut found);
        found
    }

    fn daemon(&self) -> Value {
        let text = fs::read_to_string(self.path(DAEMON)).expect("a daemon.json");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let meta = entry.metadata().expect("metadata");
        let bytes = if meta.is_file() { fs::read(entry.path()).expect("a file") } else { vec![] };
        found.insert(entry.path(), (meta.permissions().mode(), bytes));
        if meta.is_dir() {
            collect(&entry.path(), found);
        }
    }
}

fn program(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n{body}\n")).expect("a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a mode");
}

fn proxies(more: Value) -> Value {
    let mut all = json!({
        "http-proxy": "http://cache.test:17080",
        "https-proxy": "http://cache.test:17080",
        "no-proxy": "localhost,127.0.0.1",
    });
    for (name, value) in more.as_object().expect("an object") {
        all[name] = value.clone();
    }
    all
}

#[test]
fn the_proxys_own_pages_name_the_address_that_was_used() {
    let setup = Setup::new();
    let proxy = setup.start();
    let text = ask(&proxy, "GET / HTTP/1.1\r\nHost: Cache.test:17080\r\nAccept: */*");
    assert_eq!(text.field("Content-Type"), Some("text/plain; charset=utf-8"));
    let html = ask(&proxy, "GET / HTTP/1.1\r\nHost: cache.test\r\nAccept: text/html, */*;q=0.8");
    assert_eq!(html.field("Content-Type"), Some("text/html; charset=utf-8"));
    for (page, address) in [(&text, "cache.test:17080"), (&html, "cache.test:80")] {
        assert_eq!(page.status, 200);
        let line = format!("curl -fsSL http://{address}/setup/docker | sudo sh");
        assert!(page.text().contains(&line), "{}", page.text());
        // By default it is on loopback.
        let admin = format!("http://{}/ on the proxy's host", proxy.admin_address());
        assert!(page.text().contains(&admin), "{}", page.text());
        assert!(!page.text().contains('@'), "{}", page.text());
    }
    // HTTP/1.0 without a Host: the address that was dialled.
    let plain = ask(&proxy, "GET / HTTP/1.0");
    assert!(plain.text().contains(&format!("http://{}/setup/", proxy.address())));

    let ca = ask(&proxy, "GET /ca.crt HTTP/1.1\r\nHost: x").text();
    assert_eq!(ca, fs::read_to_string(setup.path("certs/ca.crt")).expect("the CA"));
    for name in CLIENTS {
        let script =
            ask(&proxy, &format!("GET /setup/{name} HTTP/1.1\r\nHost: [::1]:17080")).text();
        assert!(script.contains("\nproxy=http://[::1]:17080\n") && script.contains(ca.trim()));
        for left in ["@PROXY@", "@CA@", "@CLIENT@", "@REGISTRIES@", "@PATTERNS@"] {
            assert!(!script.contains(left), "{name}: {left}");
        }
    }
    for strange in ["GET /setup/ HTTP/1.1", "GET /setup/rkt HTTP/1.1", "POST /setup/ci HTTP/1.1"] {
        ask(&proxy, &format!("{strange}\r\nHost: x")).assert_own_error(&[404]);
    }
    // What a shell would read as more than a name is no host.
    for host in ["$(id)", "a;id", "a`id`", "a'b", "a\nb", "a|b", "a b", "a&b", "@CA@"] {
        let answer = ask(&proxy, &format!("GET /setup/docker HTTP/1.1\r\nHost: {host}"));
        answer.assert_own_error(&[400]);
    }
}

#[test]
fn a_script_that_did_not_arrive_whole_does_nothing() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    let before = system.files();
    let path = system.dir.path().join("docker");
    let script = fs::read_to_string(&path).expect("a script");
    let cut = script.trim_end().rfind('\n').expect("a last line");
    for end in [cut, cut / 2, cut / 3] {
        fs::write(&path, &script[..end]).expect("a script");
        system.run("docker", &[]);
        assert_eq!(system.files(), before, "cut after {end} bytes");
    }
}

#[test]
fn a_client_is_pointed_at_the_proxy_once_and_back() {
    let intercept = json!(["docker.io", "*.docker.io", "lab_1.test"]);
    let setup = Setup::new().with(json!({"tls": {"intercept": intercept}}));
    let system = System::new(&setup.start());
    // Odd on purpose: it comes back byte for byte, and with its mode.
    let own = "{ \"log-level\": \"warn\",\r\n\t\"labels\": [\"a={\"]}";
    fs::write(system.path(DAEMON), own).expect("a daemon.json");
    fs::set_permissions(system.path(DAEMON), fs::Permissions::from_mode(0o640)).expect("a mode");
    let before = system.files();
    for name in CLIENTS {
        let shown = system.does(name, &["--dry-run"]);
        assert!(shown.contains("discobot-proxy.crt: "), "{shown}");
        assert!(name == "docker" || system.files().len() > before.len());
        system.does(name, &[]);
        let once = system.files();
        let again = system.does(name, &[]);
        assert!(again.contains("Nothing was to be done."), "{again}");
        assert_eq!(system.files(), once, "{name} again");
    }
    assert_eq!(
        system.daemon(),
        json!({"log-level": "warn", "labels": ["a={"], "proxies": proxies(json!({}))})
    );
    let mode = fs::metadata(system.path(DAEMON)).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    let ca = system.path("usr/local/share/ca-certificates/discobot-proxy.crt");
    let certificate = fs::read_to_string(setup.path("certs/ca.crt")).expect("the CA");
    assert_eq!(fs::read_to_string(&ca).expect("the CA"), certificate);
    let text = |below: &str| fs::read_to_string(system.path(below)).expect(below);
    let unit = text("etc/systemd/system/containerd.service.d/discobot-proxy.conf");
    assert!(
        unit.contains("\n[Service]\nEnvironment=HTTP_PROXY=http://cache.test:17080 "),
        "{unit}"
    );
    let podman = text("etc/containers/containers.conf.d/discobot-proxy.conf");
    assert!(podman.contains("\"HTTPS_PROXY=http://cache.test:17080\""), "{podman}");
    let ca_line = "  ca = [\"/etc/discobot/ca.crt\"]\n";
    let buildkit =
        format!("[registry.\"docker.io\"]\n{ca_line}[registry.\"lab_1.test\"]\n{ca_line}");
    assert_eq!(text("etc/discobot/buildkitd.toml"), buildkit);
    assert!(text("discobot.env").contains("\nhttps_proxy=http://cache.test:17080\n"));

    // Another address takes the place of the first.
    system.does("docker", &["--proxy", "http://ann:p%41ss@other.test:1"]);
    assert_eq!(system.daemon()["proxies"]["https-proxy"], "http://ann:p%41ss@other.test:1");
    system.does("containerd", &["--proxy", "http://ann:p%41ss@other.test:1"]);
    let unit = text("etc/systemd/system/containerd.service.d/discobot-proxy.conf");
    assert!(unit.contains("HTTPS_PROXY=http://ann:p%%41ss@other.test:1 "), "{unit}");

    for name in CLIENTS {
        assert!(ca.exists(), "the CA stays for the others until {name} goes");
        system.does(name, &["--remove"]);
        system.does(name, &["--remove"]);
    }
    assert_eq!(system.files(), before);
    let ran = fs::read_to_string(system.dir.path().join("ran")).expect("what was run");
    assert_eq!(ran, "update-ca-certificates\nupdate-ca-certificates --fresh\n");
}

#[test]
fn daemon_json_is_merged_with_and_nothing_of_it_is_lost() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    let table = [
        (None, json!({})),
        (Some(""), json!({})),
        (Some(" {\n} \n"), json!({})),
        (Some("{\"debug\":true}"), json!({"debug": true})),
        (Some("\n{\n  \"a\": {\"b\": [1, {}]}\n}\n"), json!({"a": {"b": [1, {}]}})),
    ];
    for (text, mut expected) in table {
        let path = system.path(DAEMON);
        match text {
            Some(text) => fs::write(&path, text).expect("a daemon.json"),
            None => assert!(!path.exists()),
        }
        let before = system.files();
        system.does("docker", &[]);
        expected["proxies"] = proxies(json!({}));
        assert_eq!(system.daemon(), expected, "{text:?}");
        system.does("docker", &["--remove"]);
        assert_eq!(system.files(), before, "{text:?}");
    }

    let theirs = "{\"debug\": true, \"proxies\": {\"no-proxy\": \"lab\", \"http-proxy\": \"old\"}}";
    fs::write(system.path(DAEMON), theirs).expect("a daemon.json");
    let before = system.files();
    system.does("docker", &[]);
    let merged = json!({"debug": true, "proxies": proxies(json!({"no-proxy": "lab"}))});
    assert_eq!(system.daemon(), merged);
    system.does("docker", &["--remove"]);
    assert_eq!(system.files(), before);

    // With neither jq nor python3 it says what to put there.
    let tools = system.dir.path().join("tools");
    fs::create_dir(&tools).expect("a folder");
    for tool in ["awk", "cat", "dirname", "grep", "mktemp", "rm", "sed", "tr", "cmp"] {
        symlink(Path::new("/usr/bin").join(tool), tools.join(tool)).expect("a link");
    }
    let output = system.run_with(&tools.display().to_string(), "docker", &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("\"http-proxy\": \"http://cache.test:17080\"")
    );
    assert_eq!(system.files(), before);
}

#[test]
fn what_somebody_changed_since_is_not_taken_back() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    fs::write(system.path(DAEMON), "{\n  \"debug\": true\n}\n").expect("a daemon.json");
    system.does("docker", &[]);
    let text = fs::read_to_string(system.path(DAEMON)).expect("a daemon.json");
    let text = text.replace("true", "true,\n  \"mtu\": 1400");
    fs::write(system.path(DAEMON), text).expect("a daemon.json");
    system.does("docker", &["--proxy", "http://other.test:1"]);
    assert_eq!(system.daemon()["proxies"]["http-proxy"], "http://other.test:1");
    assert_eq!(system.daemon()["mtu"], 1400);
    system.does("docker", &["--remove"]);
    let text = fs::read_to_string(system.path(DAEMON)).expect("a daemon.json");
    assert_eq!(text, "{\n  \"debug\": true,\n  \"mtu\": 1400\n}\n");
}

#[test]
fn what_can_not_be_done_is_refused_in_one_line_before_anything_is_changed() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    let table: [(&[&str], &str); 6] = [
        (&["--sideways"], "there is no option --sideways"),
        (&["--proxy"], "--proxy wants a value"),
        (&["--proxy", "https://x"], "--proxy wants http://HOST:PORT"),
        (&["--proxy", "http://x$(id)"], "special characters"),
        (&["--proxy", "http://x\"y"], "special characters"),
        (&["--unit", "a b"], "no unit is called a b"),
    ];
    for (options, why) in table {
        let said = system.refuses("containerd", options);
        assert!(said.contains(why), "{said}");
    }
    fs::write(system.path(DAEMON), "[]").expect("a daemon.json");
    assert!(system.refuses("docker", &[]).contains("is no JSON object"));
    fs::rename(system.path(DAEMON), system.path("real")).expect("moved");
    symlink("../../real", system.path(DAEMON)).expect("a link");
    fs::write(system.path("real"), "{}").expect("a file");
    let output = system.run("docker", &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is a link to ../../real"));
    fs::remove_file(system.path("usr/sbin/update-ca-certificates")).expect("removed");
    assert!(system.refuses("podman", &[]).contains("install the package ca-certificates"));
}

#[test]
fn a_proxys_password_is_said_to_nobody() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    for name in CLIENTS {
        for options in [&["--dry-run"][..], &[], &["--remove"]] {
            let proxy = ["--proxy", "http://ann:sesame@cache.test:17080"];
            let output = system.run(name, &[&proxy, options].concat());
            assert!(output.status.success(), "{output:?}");
            for said in [output.stdout, output.stderr] {
                let said = String::from_utf8_lossy(&said);
                assert!(!said.contains("sesame"), "{name} {options:?}: {said}");
            }
        }
    }
}

#[test]
fn links_in_somebody_elses_folder_lead_nowhere() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    let (runner, victim) = (system.path("runner"), system.path("victim"));
    fs::create_dir(&runner).expect("a folder");
    fs::write(runner.join("run.sh"), "").expect("a file");
    fs::write(runner.join(".env"), "A=1\n").expect("a file");
    fs::write(&victim, "untouched").expect("a file");
    symlink(&victim, runner.join(".env.discobot")).expect("a link");
    system.does("ci", &["--runner", "/runner"]);
    let text = fs::read_to_string(runner.join(".env")).expect("a file");
    assert!(text.starts_with("A=1\nHTTP_PROXY="), "{text}");
    fs::remove_file(runner.join(".env")).expect("a file");
    symlink(&victim, runner.join(".env")).expect("a link");
    let output = system.run("ci", &["--runner", "/runner", "--remove"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::read_to_string(&victim).expect("a file"), "untouched");
}

#[test]
fn what_was_there_first_comes_back_after_a_second_set_up() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    let theirs = "{\"proxies\": {\"http-proxy\": \"http://corp.test:3128\"}}";
    fs::write(system.path(DAEMON), theirs).expect("a daemon.json");
    fs::create_dir(system.path("runner")).expect("a folder");
    fs::write(system.path("runner/.runner"), "{}").expect("a file");
    let own = "no_proxy=internal.corp.test\nA=1\n";
    fs::write(system.path("runner/.env"), own).expect("a file");
    let before = system.files();
    for name in ["docker", "ci"] {
        let runner: &[&str] = if name == "ci" { &["--runner", "/runner"] } else { &[] };
        system.does(name, runner);
        system.does(name, &[runner, &["--proxy", "http://other.test:1"]].concat());
        system.does(name, &[runner, &["--remove"]].concat());
        assert_eq!(system.files(), before, "{name}");
    }
    // Somebody's edit in between can't be told from what jq merged; the first copy stays.
    system.does("docker", &[]);
    let edited = fs::read_to_string(system.path(DAEMON)).expect("a daemon.json");
    fs::write(system.path(DAEMON), format!("{edited}\n")).expect("a daemon.json");
    system.does("docker", &["--proxy", "http://other.test:1"]);
    system.does("docker", &["--remove"]);
    assert_eq!(fs::read_to_string(system.path(DAEMON)).expect("a daemon.json"), theirs);
}

#[test]
fn a_steps_environment_gets_our_lines_and_is_copied_nowhere() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    let before = system.files();
    // Without a newline at its end, as a step's last echo may have left it.
    fs::write(system.path("step-1"), "TOKEN=s3cret").expect("a file");
    let first = [("GITHUB_ENV", "/step-1")];
    let told = || fs::read_to_string(system.path("step-1")).expect("a file");
    let shown = system.step(&first, &["--dry-run"]);
    assert!(shown.contains("/step-1: name the proxy, for the next steps"), "{shown}");
    assert_eq!(told(), "TOKEN=s3cret");
    system.step(&first, &[]);
    assert_eq!(told(), format!("TOKEN=s3cret\n{NAMED}"));
    assert!(system.step(&first, &[]).contains("Nothing was to be done."));
    assert_eq!(told(), format!("TOKEN=s3cret\n{NAMED}"));
    system.assert_keeps_no("s3cret");

    // The next step has another file, and what the first one said in its environment.
    fs::write(system.path("step-2"), "").expect("a file");
    let second = [("GITHUB_ENV", "/step-2"), ("HTTPS_PROXY", "http://cache.test:17080")];
    system.step(&second, &["--remove"]);
    assert_eq!(fs::read_to_string(system.path("step-2")).expect("a file"), UNNAMED);
    assert!(system.step(&second, &["--remove"]).contains("Nothing was to be done."));
    // In one step the last word counts, and another proxy is none of ours.
    system.step(&first, &["--remove"]);
    assert_eq!(told(), format!("TOKEN=s3cret\n{NAMED}{UNNAMED}"));
    let other = [("GITHUB_ENV", "/step-2"), ("HTTPS_PROXY", "http://corp.test:3128")];
    system.step(&other, &["--remove"]);
    for step in ["step-1", "step-2"] {
        fs::remove_file(system.path(step)).expect("a file");
    }
    assert_eq!(system.files(), before);
}

#[test]
fn a_runners_env_is_merged_with_and_copied_nowhere() {
    let setup = Setup::new();
    let system = System::new(&setup.start());
    let options = ["--runner", "/srv/runner"];
    fs::create_dir_all(system.path("srv/runner")).expect("a folder");
    assert!(system.refuses("ci", &options).contains("/srv/runner is no Actions runner"));
    let own = "LANG=C.UTF-8\nhttps_proxy=http://corp.test:3128\nTOKEN=s3cret";
    let env = system.path("srv/runner/.env");
    for (name, text) in [
        (".runner", "{}"),
        (".path", "/usr/local/bin:/usr/bin"),
        (".service", "actions.runner.org-app.host.service\n"),
        (".env", own),
    ] {
        fs::write(system.path("srv/runner").join(name), text).expect("a file");
    }
    fs::set_permissions(&env, fs::Permissions::from_mode(0o640)).expect("a mode");
    let before = system.files();
    let told = || fs::read_to_string(&env).expect("a file");

    let shown = system.does("ci", &options);
    assert!(shown.contains("next start of actions.runner.org-app.host.service"), "{shown}");
    assert_eq!(told(), format!("LANG=C.UTF-8\nTOKEN=s3cret\n{NAMED}"));
    system.assert_keeps_no("s3cret");
    let once = system.files();
    assert!(system.does("ci", &options).contains("Nothing was to be done."));
    assert_eq!(system.files(), once);
    let user = [&options[..], &["--proxy", "http://ann:sesame@cache.test:17080"]].concat();
    system.does("ci", &user);
    let mode = fs::metadata(&env).expect("metadata").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds a password");
    system.does("ci", &[&options[..], &["--remove"]].concat());
    assert_eq!(system.files(), before);

    // What somebody adds meanwhile stays.
    system.does("ci", &options);
    fs::write(&env, format!("{}MORE=1\n", told())).expect("a file");
    system.does("ci", &[&options[..], &["--remove"]].concat());
    assert_eq!(told(), format!("{own}\nMORE=1"));
    fs::write(&env, own).expect("a file");
    assert_eq!(system.files(), before);
}

#[test]
fn a_builder_is_told_the_hosts_of_patterns_one_by_one() {
    let intercept = json!(["docker.io", "*.pkg.dev", "*.dkr.ecr.*.amazonaws.com"]);
    let setup = Setup::new().with(json!({"tls": {"intercept": intercept}}));
    let system = System::new(&setup.start());
    let said = system.does("buildkit", &[]);
    assert!(said.contains("opens *.pkg.dev, *.dkr.ecr.*.amazonaws.com too"), "{said}");
    let hosts = ["--registry", "europe-docker.pkg.dev", "--registry", "1.dkr.ecr.eu.amazonaws.com"];
    system.does("buildkit", &hosts);
    let text = fs::read_to_string(system.path("etc/discobot/buildkitd.toml")).expect("a file");
    for host in ["docker.io", hosts[1], hosts[3]] {
        let lines = format!("[registry.\"{host}\"]\n  ca = [\"/etc/discobot/ca.crt\"]\n");
        assert!(text.contains(&lines), "{text}");
    }
    assert!(!text.contains('*'), "{text}");
    assert!(system.refuses("buildkit", &["--registry", "*.pkg.dev"]).contains("name of a host"));
}
