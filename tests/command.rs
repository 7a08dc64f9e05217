//! `stats`, `images`, `purge` and `pin`: the real binary asks a running one by its admin port.

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use serde_json::{Value, json};
use support::answer::Answer;
use support::body::Body;
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Finished, Proxy, Setup};
use support::registry::{blob_path, manifest_path};
use support::{DEADLINE, wait_until};

const REPOSITORY: &str = "lab/app";

fn ask(setup: &Setup, proxy: &Proxy, command: &[&str]) -> Finished {
    let url = format!("http://{}", proxy.admin_address());
    setup.run(&[command, &["--admin", &url]].concat())
}

/// Standard output of a command that must succeed.
#[track_caller]
fn said(seen: &Finished) -> &str {
    assert_eq!((seen.code, &*seen.stderr), (Some(0), ""), "{seen:?}");
    &seen.stdout
}

/// It must end with this code and one line, with this part.
#[track_caller]
fn fails(seen: &Finished, code: i32, part: &str) {
    assert_eq!((seen.code, seen.stderr.lines().count()), (Some(code), 1), "{seen:?}");
    assert!(seen.stderr.contains(part) && seen.stdout.is_empty(), "no {part:?}: {seen:?}");
}

/// The cells of the row that begins with this.
#[track_caller]
fn row<'a>(table: &'a str, first: &str) -> Vec<&'a str> {
    let line = table.lines().find_map(|line| line.strip_prefix(first));
    line.unwrap_or_else(|| panic!("no {first:?} in {table}")).split_whitespace().collect()
}

/// Pulls an image of one layer under this tag; its bytes.
fn pull(proxy: &Proxy, origin: &Origin, tag: &str) -> u64 {
    let (layer, config) = (fresh_body(300_000), fresh_body(100));
    let part = |body: &Body| json!({"size": body.len(), "digest": body.digest()});
    let document = json!({"schemaVersion": 2, "config": part(&config), "layers": [part(&layer)]});
    let manifest = Body::bytes(document.to_string());
    let answer = Answer::ok(&manifest)
        .with("Content-Type", "application/vnd.oci.image.manifest.v1+json")
        .with("Docker-Content-Digest", manifest.digest());
    let tagged = format!("/v2/{REPOSITORY}/manifests/{tag}");
    let path = manifest_path(REPOSITORY, &manifest);
    origin.get(&tagged, answer.clone());
    origin.get(&path, answer);
    proxy.get(origin, &tagged).assert_is(&manifest);
    proxy.get(origin, &path).assert_is(&manifest);
    for body in [&layer, &config] {
        let path = blob_path(REPOSITORY, body);
        origin.get(&path, Answer::ok(body));
        proxy.get(origin, &path).assert_is(body);
    }
    manifest.len() + layer.len() + config.len()
}

fn listed(setup: &Setup, proxy: &Proxy) -> Vec<Value> {
    let seen = ask(setup, proxy, &["images", "--json"]);
    let list: Value = serde_json::from_str(said(&seen)).expect("JSON");
    list["images"].as_array().expect("a list").clone()
}

#[test]
fn stats_are_a_table_or_as_the_admin_port_has_them() {
    let mut setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let body = fresh_body(300_000);
    origin.get(&blob_path(REPOSITORY, &body), Answer::ok(&body));
    for _ in 0..3 {
        proxy.get(&origin, &blob_path(REPOSITORY, &body)).assert_is(&body);
    }
    proxy.wait_stat("hits", 2);
    let seen = ask(&setup, &proxy, &["stats"]);
    let table = said(&seen);
    assert_eq!((row(table, "hits "), row(table, "misses ")), (vec!["2"], vec!["1"]));
    assert_eq!(row(table, "stored "), ["293.0", "KiB"]);
    let stats: Value =
        serde_json::from_str(said(&ask(&setup, &proxy, &["stats", "--json"]))).expect("JSON");
    assert_eq!((&stats["hits"], &stats["current_size"]), (&json!(2), &json!(300_000)));
    // Without an address it is the configuration's.
    let port = proxy.admin_address().port();
    setup.set(json!({ "proxy": { "api_port": port } }));
    let config = setup.write_config().display().to_string();
    let seen = setup.run(&["stats", "--config", &config]);
    assert_eq!(row(said(&seen), "hits "), ["2"]);
}

#[test]
fn where_nothing_listens_one_line_names_it() {
    let setup = Setup::new();
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", socket.local_addr().expect("its address"));
    drop(socket);
    for command in [&["stats"][..], &["images"], &["pin", "--list"], &["purge", "--all", "--yes"]] {
        fails(&setup.run(&[command, &["--admin", &url]].concat()), 1, &url);
    }
    fails(&setup.run(&["stats", "--admin", "nonsense"]), 2, "--admin wants http://HOST:PORT");
}

#[test]
fn the_token_is_the_configurations_or_the_environments() {
    let setup = Setup::new().with(json!({ "proxy": { "api_token": "s3cret-token" } }));
    let proxy = setup.start();
    let config = setup.write_config().display().to_string();
    said(&ask(&setup, &proxy, &["stats", "--config", &config]));
    fails(&ask(&Setup::new(), &proxy, &["stats"]), 1, "set API_TOKEN");
    let setup = setup.env("API_TOKEN", "another");
    fails(&ask(&setup, &proxy, &["stats", "--config", &config]), 1, "set API_TOKEN");
    let setup = Setup::new().env("API_TOKEN", "s3cret-token");
    said(&ask(&setup, &proxy, &["stats"]));
    let setup = Setup::new().env("API_TOKEN", "two words");
    fails(&ask(&setup, &proxy, &["stats"]), 2, "API_TOKEN is visible ASCII");
}

#[test]
fn the_configurations_token_goes_to_its_own_admin_port_and_this_machine_alone() {
    let mut setup = Setup::new().with(json!({ "proxy": { "api_token": "s3cret-token" } }));
    let proxy = setup.start();
    let config = setup.write_config().display().to_string();
    // It leads here, and by its looks it could be anybody's.
    let port = proxy.admin_address().port();
    let elsewhere = format!("http://0.0.0.0:{port}");
    let command = ["stats", "--config", &config, "--admin", &elsewhere];
    fails(&setup.run(&command), 1, "is not sent to other machines: set API_TOKEN");
    let given = Setup::new().env("API_TOKEN", "s3cret-token");
    said(&given.run(&["stats", "--admin", &elsewhere]));
    for admin in ["127.0.0.1", "localhost"] {
        let admin = format!("http://{admin}:{port}");
        said(&setup.run(&["stats", "--config", &config, "--admin", &admin]));
    }
    // Where it is the address of the configuration, whatever it looks like.
    setup.set(json!({ "proxy": { "api_port": port, "api_hosts": ["0.0.0.0"] } }));
    setup.write_config();
    said(&setup.run(&command));
}

#[test]
fn images_are_listed_and_purged() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let one = pull(&proxy, &origin, "1");
    let two = pull(&proxy, &origin, "2");
    let name = format!("{}/{REPOSITORY}", origin.authority());
    let whole = || {
        let images = listed(&setup, &proxy);
        let stored: u64 = images.iter().filter_map(|image| image["stored"].as_u64()).sum();
        (images.len() == 2 && stored == one + two).then_some(())
    };
    wait_until("both images", whole);
    let seen = ask(&setup, &proxy, &["images", "--sort", "image"]);
    let cells = row(said(&seen), &format!("{name}:1 "));
    assert_eq!((&cells[..4], cells.last()), (&["293.3", "KiB", "293.3", "KiB"][..], Some(&"-")));

    let image = format!("{name}:1");
    let purge = ["purge", "--image", &image];
    fails(&ask(&setup, &proxy, &purge), 2, "add --yes");
    let dry = ask(&setup, &proxy, &[&purge[..], &["--dry-run"]].concat());
    assert_eq!(said(&dry), "would remove 3 entries of 293.3 KiB");
    assert_eq!(proxy.stat("current_size"), one + two);
    let done = ask(&setup, &proxy, &[&purge[..], &["--yes"]].concat());
    assert_eq!(said(&done), "removed 3 entries of 293.3 KiB");
    assert_eq!(proxy.stat("current_size"), two);
    fails(&ask(&setup, &proxy, &[&purge[..], &["--yes"]].concat()), 1, "answers 404: ");

    said(&ask(&setup, &proxy, &["purge", "--older-than", "7d", "--yes"]));
    assert_eq!(proxy.stat("current_size"), two);
    said(&ask(&setup, &proxy, &["purge", "--repository", &name, "--yes"]));
    assert_eq!(proxy.stat("current_size"), 0);
    pull(&proxy, &origin, "3");
    said(&ask(&setup, &proxy, &["purge", "--all", "--yes"]));
    assert_eq!(proxy.stat("current_size"), 0);
    for wrong in [&["purge", "--yes"][..], &["purge", "--all", "--image", "a"], &["pin"]] {
        assert_eq!(ask(&setup, &proxy, wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn pins_are_made_listed_and_removed() {
    let setup = Setup::new();
    let proxy = setup.start();
    let pinned = "docker.io/library/alpine:latest";
    assert_eq!(said(&ask(&setup, &proxy, &["pin", "alpine"])), format!("{pinned}: pinned"));
    let list = ask(&setup, &proxy, &["pin", "--list"]);
    assert_eq!(row(said(&list), pinned)[..2], ["0", "B"]);
    let remove = ["pin", "--remove", "alpine"];
    said(&ask(&setup, &proxy, &remove));
    fails(&ask(&setup, &proxy, &remove), 1, &format!("404: {pinned} is not pinned"));
    assert_eq!(said(&ask(&setup, &proxy, &["pin", "--list"])).lines().count(), 1);
}

/// A command on a terminal of its own, and who sits before it.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    /// What is shown, in pieces.
    output: Receiver<Vec<u8>>,
    shown: String,
}

impl Terminal {
    fn new(setup: &Setup, proxy: &Proxy, command: &str) -> Terminal {
        let (binary, admin) = (env!("CARGO_BIN_EXE_discobot-proxy"), proxy.admin_address());
        // Whoever starts the tests may have told them to ignore Ctrl-C.
        let line =
            format!("exec env --default-signal=INT {binary} {command} --admin http://{admin}");
        // The exit code is the command's.
        let mut script = setup.wrapped("script", &["-qec", &line, "/dev/null"]);
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().expect("script, of util-linux");
        let (keys, mut screen) = (child.stdin.take().expect("keys"), child.stdout.take());
        let (piece, output) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Some(Ok(n @ 1..)) = screen.as_mut().map(|screen| screen.read(&mut bytes)) {
                if piece.send(bytes[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Terminal { child, keys, output, shown: String::new() }
    }

    /// Waits until this is shown.
    #[track_caller]
    fn shows(&mut self, part: &str) {
        while !self.shown.contains(part) {
            let Ok(piece) = self.output.recv_timeout(DEADLINE) else {
                panic!("no {part:?} in {:?}", self.shown)
            };
            self.shown.push_str(&String::from_utf8_lossy(&piece));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("keys");
    }

    /// Its exit code, and all that was shown.
    fn ends(mut self) -> (Option<i32>, String) {
        let begun = Instant::now();
        while let Ok(piece) = self.output.recv_timeout(DEADLINE) {
            self.shown.push_str(&String::from_utf8_lossy(&piece));
            assert!(begun.elapsed() < DEADLINE, "it does not end: {}", self.shown);
        }
        let ended = wait_until("its end", || self.child.try_wait().expect("waiting for it"));
        (ended.code(), std::mem::take(&mut self.shown))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_purge_on_a_terminal_asks_and_takes_only_a_yes_for_one() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let stored = pull(&proxy, &origin, "1");
    // n, nothing, another word, and the end of the input.
    for keys in ["n\n", "\n", "yea\n", "\x04"] {
        let mut terminal = Terminal::new(&setup, &proxy, "purge --all");
        terminal.shows("remove 3 entries of 293.3 KiB? [y/N] ");
        terminal.press(keys);
        let (code, shown) = terminal.ends();
        assert_eq!(code, Some(1), "{keys:?}: {shown}");
        assert!(shown.contains("nothing was removed"), "{keys:?}: {shown}");
        assert_eq!(proxy.stat("current_size"), stored, "{keys:?}");
    }
    let mut terminal = Terminal::new(&setup, &proxy, "purge --all");
    terminal.shows("[y/N] ");
    assert_eq!(proxy.stat("current_size"), stored, "before it was answered");
    terminal.press("y\n");
    let (code, shown) = terminal.ends();
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("removed 3 entries of 293.3 KiB"), "{shown}");
    assert_eq!(proxy.stat("current_size"), 0);
}

#[test]
fn a_purge_says_what_stays_because_it_is_pinned() {
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let one = pull(&proxy, &origin, "1");
    let image = format!("{}/{REPOSITORY}:1", origin.authority());
    said(&ask(&setup, &proxy, &["pin", &image]));
    pull(&proxy, &origin, "2");
    let what = "3 entries of 293.3 KiB (3 pinned entries stay)";
    let dry = ask(&setup, &proxy, &["purge", "--all", "--dry-run"]);
    assert_eq!(said(&dry), format!("would remove {what}"));
    let mut terminal = Terminal::new(&setup, &proxy, "purge --all");
    terminal.shows(&format!("remove {what}? [y/N] "));
    terminal.press("n\n");
    assert_eq!(terminal.ends().0, Some(1));
    let done = ask(&setup, &proxy, &["purge", "--all", "--yes"]);
    assert_eq!(said(&done), format!("removed {what}"));
    assert_eq!(proxy.stat("current_size"), one);
}

#[test]
fn watched_stats_take_the_place_of_those_before_until_they_are_interrupted() {
    /// To the upper left corner, and all below it away.
    const AFRESH: &str = "\u{1b}[H\u{1b}[J";
    let setup = Setup::new();
    let origin = Origin::http(names::REGISTRY);
    let proxy = setup.start();
    let mut terminal = Terminal::new(&setup, &proxy, "stats --watch 1");
    terminal.shows(AFRESH);
    let body = fresh_body(300_000);
    origin.get(&blob_path(REPOSITORY, &body), Answer::ok(&body));
    proxy.get(&origin, &blob_path(REPOSITORY, &body)).assert_is(&body);
    // In a later table; none of them is cut.
    terminal.shows("293.0 KiB");
    terminal.press("\u{3}");
    let (code, shown) = terminal.ends();
    assert_eq!(code, Some(130), "{shown:?}");
    let tables: Vec<_> = shown.split(AFRESH).skip(1).collect();
    assert!(tables.len() > 1, "{shown:?}");
    for table in &tables[..tables.len() - 1] {
        assert!(table.starts_with("hits ") && table.contains("\nevictions "), "{table:?}");
    }
    // Where there is no terminal, nothing that a terminal would obey.
    assert!(!said(&ask(&setup, &proxy, &["stats"])).contains('\u{1b}'));
}
