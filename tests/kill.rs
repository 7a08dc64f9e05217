//! SIGKILL at any moment, and files that change behind the proxy's back: what is served afterwards
//! is whole and right, nothing partial stays on disk, and sizes agree with the files.
//!
//! `DISCOBOT_LONG=1` kills a hundred times instead of a few; `DISCOBOT_SEED` repeats a run's
//! choices (but not the kernel's).

mod support;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::json;
use support::answer::Answer;
use support::body::{Body, sha256};
use support::certs::Trust;
use support::client::{Client, Response, try_dial};
use support::names;
use support::origin::{Origin, fresh_body};
use support::proxy::{Proxy, Setup};
use support::registry::{Registry, blob_path};
use support::seed::{self, Rng};
use support::wait_until;

/// Less than half of all bodies: something is evicted at nearly every fill.
const MAX_SIZE: u64 = 5_000_000;

const CLIENTS: u64 = 4;

/// What upstream has, and what each name may hold.
struct World {
    plain: Origin,
    registry: Registry,
    blobs: Vec<(String, Body)>,
    /// Every version each file of no digest ever has.
    files: Vec<(String, Mutex<Vec<Body>>)>,
}

impl World {
    fn new() -> World {
        let plain = Origin::http(names::SECOND);
        let registry = Registry::https();
        let sizes = [
            0, 1, 16_384, 16_385, 100_000, 300_000, 700_000, 1_000_000, 1_000_001, 1_500_000,
            2_000_000, 2_500_000, 3_000_000,
        ];
        let blobs = sizes.map(|size| {
            let body = fresh_body(size);
            let path = registry.blob("lab/img", &body);
            plain.get(&path, Answer::ok(&body));
            (path, body)
        });
        let files = (0..4).map(|number| (format!("/files/{number}"), Mutex::new(Vec::new())));
        let world = World { plain, registry, blobs: blobs.into(), files: files.collect() };
        for number in 0..world.files.len() {
            world.new_version(number);
        }
        world
    }

    /// From now on upstream has another body for this file.
    fn new_version(&self, number: usize) {
        let (path, versions) = &self.files[number];
        let mut versions = versions.lock().unwrap();
        let body = fresh_body(20_000 + 60_000 * (versions.len() as u64 % 5));
        self.plain.get(path, Answer::ok(&body));
        self.plain.on("PUT", path, Answer::status(204, "").bodiless());
        versions.push(body);
    }

    /// Fails unless a complete answer for this file is one of its versions.
    fn assert_version(&self, number: usize, response: &Response) {
        let versions = self.files[number].1.lock().unwrap();
        let right = versions
            .iter()
            .any(|body| body.len() == response.len && body.sha256() == response.sha256);
        assert!(right, "{} is no version of file {number}: {:?}", response.sha256, response.head);
    }
}

/// A moment for the kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Some time after something is being filled.
    Fill,
    /// Just after a body got its name, while others get theirs.
    Commit,
    /// Just after a body was evicted, while others are.
    Eviction,
    /// While everything is being removed.
    Clearing,
    /// While single entries are being removed.
    Removal,
    /// Any time, the start included.
    Any,
}

const MOMENTS: [Moment; 6] = [
    Moment::Fill,
    Moment::Commit,
    Moment::Eviction,
    Moment::Clearing,
    Moment::Removal,
    Moment::Any,
];

#[test]
fn a_killed_proxy_serves_nothing_wrong_afterwards() {
    let mut rng = Rng::new(seed::first("kill"));
    let rounds = if seed::is_long() { 100 } else { 8 };
    let setup = Setup::new().with(json!({
        "cache": { "max_size": MAX_SIZE, "patterns": ["^/v2/.*sha256:", "^/files/"] },
    }));
    let world = World::new();
    let (mut served, mut broken_off, mut half_named) = (0, 0, 0);
    let proxy = setup.start();
    let (path, body) = &world.blobs[1];
    proxy.get(&world.plain, path).assert_is(body);
    proxy.stop();
    let meta = fs::read_to_string(setup.blob(&format!("{}.meta", body.sha256()))).expect("meta");
    let template = meta.replace(&body.sha256(), "NAME");
    for round in 0..rounds {
        let moment = MOMENTS[round % MOMENTS.len()];
        if matches!(moment, Moment::Eviction | Moment::Clearing) {
            place_crumbs(&setup, &template, rng.next());
        }
        let proxy = setup.start();
        load_and_kill(&setup, &world, proxy, moment, &mut rng);
        assert_bodies_whole(&setup, &world, &format!("killed in round {round}, at {moment:?}"));
        broken_off += usize::from(!names(&setup, "partial").is_empty());
        half_named +=
            FOLDERS.map(|folder| lone(&names(&setup, folder)).len()).iter().sum::<usize>();
        let proxy = setup.start();
        let what = format!("started again after round {round}, {moment:?}");
        wait_settled(&setup, &proxy, &what);
        assert_nothing_partial(&setup, &what);
        assert!(proxy.stat("current_size") <= MAX_SIZE, "{what}: {}", proxy.stats());
        served += assert_serves_what_is_there(&setup, &world, &proxy);
        assert_eq!(proxy.stat("errors"), 0, "{what}: {}", proxy.output());
        // The next round goes on with what this start left.
        proxy.kill();
    }
    assert!(served > rounds, "{served} entries outlived {rounds} kills: the test shows nothing");
    assert!(broken_off > 0, "no fill was under way at any of {rounds} kills");
    println!(
        "{rounds} kills: {broken_off} left fills unfinished, {half_named} names were there by \
         half; {served} entries were served afterwards"
    );
}

/// Entries of one byte, used long ago: hundreds go at each eviction and clearing, so that a kill
/// finds one of them half removed.
fn place_crumbs(setup: &Setup, template: &str, salt: u64) {
    for number in 0..500_u64 {
        let body = [salt.to_le_bytes(), number.to_le_bytes()].concat();
        let name = sha256(&body);
        let meta = template.replace("NAME", &name).replace("\"length\":1,", "\"length\":16,");
        fs::write(setup.blob(&format!("{name}.meta")), meta).expect("a meta file");
        fs::write(setup.blob(&name), body).expect("a body");
        let file = File::options().write(true).open(setup.blob(&name)).expect("the body");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("another time");
    }
}

/// Clients pull, push and delete while the proxy is killed.
fn load_and_kill(setup: &Setup, world: &World, proxy: Proxy, moment: Moment, rng: &mut Rng) {
    let killed = AtomicBool::new(false);
    let answers = AtomicU64::new(0);
    let (address, admin, trust) = (proxy.address(), proxy.admin_address(), proxy.trust());
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let load = Load {
                world,
                address,
                admin,
                trust: trust.clone(),
                killed: &killed,
                answers: &answers,
                removes: moment == Moment::Removal,
                rng: Rng::new(rng.next()),
            };
            scope.spawn(move || load.run());
        }
        wait_for(setup, moment, &answers);
        let clearing = (moment == Moment::Clearing)
            .then(|| scope.spawn(move || ask(admin, "DELETE", "/api/cache")));
        let most_us = match moment {
            Moment::Any => 300_000,
            Moment::Fill | Moment::Clearing => 20_000,
            _ => 3_000,
        };
        thread::sleep(Duration::from_micros(rng.next() % most_us));
        killed.store(true, Ordering::SeqCst);
        proxy.kill();
        drop(clearing);
    });
}

/// Waits until what this kill is to interrupt goes on.
fn wait_for(setup: &Setup, moment: Moment, answers: &AtomicU64) {
    let bodies = || names(setup, "blobs/sha256");
    let warm = || answers.load(Ordering::SeqCst) >= 20;
    match moment {
        Moment::Any => {}
        Moment::Fill => {
            wait_until("a fill", || (!names(setup, "partial").is_empty()).then_some(()))
        }
        Moment::Clearing => {}
        Moment::Removal => wait_until("answers", || warm().then_some(())),
        Moment::Commit | Moment::Eviction => {
            let mut before = bodies();
            wait_until("a commit or an eviction", || {
                let after = bodies();
                let (from, to) = match moment {
                    Moment::Commit => (&before, &after),
                    _ => (&after, &before),
                };
                let changed = !to.is_subset(from);
                before = after;
                changed.then_some(())
            });
        }
    }
}

/// One client's doings until the proxy is gone.
struct Load<'a> {
    world: &'a World,
    address: SocketAddr,
    admin: SocketAddr,
    trust: Trust,
    killed: &'a AtomicBool,
    answers: &'a AtomicU64,
    /// Single entries are removed all the time.
    removes: bool,
    rng: Rng,
}

impl<'a> Load<'a> {
    fn run(mut self) {
        loop {
            let result = self.step();
            // The flag is set first, so that nothing fails for the kill's sake without it.
            if self.killed.load(Ordering::SeqCst) {
                return;
            }
            result.unwrap_or_else(|error| panic!("before the kill: {error}"));
        }
    }

    fn step(&mut self) -> io::Result<()> {
        let (_, body) = &self.world.blobs[self.rng.below(self.world.blobs.len())];
        let number = self.rng.below(self.world.files.len());
        let file = self.world.plain.url(&self.world.files[number].0);
        let remove = if self.removes { 40 } else { 5 };
        match self.rng.below(100) {
            0 => drop(ask(self.admin, "DELETE", "/api/cache")?),
            1..5 => {
                self.world.new_version(number);
                let mut client = Client::on(try_dial(self.address, None)?);
                client.try_start("PUT", &file, &[("Content-Length", "0")])?;
                client.try_head()?;
            }
            5..15 => {
                let response = Client::on(try_dial(self.address, None)?).try_get(&file)?;
                if self.is_complete(&response) {
                    self.world.assert_version(number, &response);
                }
            }
            15..20 => self.leave_early(body)?,
            n if n < 20 + remove => {
                let path = format!("/api/cache/{}", body.digest());
                drop(ask(self.admin, "DELETE", &path)?);
            }
            _ => self.pull(body)?,
        }
        Ok(())
    }

    fn client(&mut self) -> io::Result<(Client, &'a Origin)> {
        let tcp = try_dial(self.address, None)?;
        if self.rng.one_in(2) {
            return Ok((Client::on(tcp), &self.world.plain));
        }
        let origin = &self.world.registry.main;
        Ok((Client::try_secure(tcp, &origin.authority(), &self.trust)?, origin))
    }

    fn pull(&mut self, body: &Body) -> io::Result<()> {
        let (mut client, origin) = self.client()?;
        let response = client.try_get(&origin.url(&blob_path("lab/img", body)))?;
        if self.is_complete(&response) {
            response.assert_is(body);
        }
        Ok(())
    }

    fn leave_early(&mut self, body: &Body) -> io::Result<()> {
        let (mut client, origin) = self.client()?;
        client.try_start("GET", &origin.url(&blob_path("lab/img", body)), &[])?;
        client.try_head().map(drop)
    }

    /// Whether an answer came to its end; before the kill every one does.
    fn is_complete(&self, response: &Response) -> bool {
        if response.whole.is_err() && self.killed.load(Ordering::SeqCst) {
            return false;
        }
        assert_eq!((response.status, &response.whole), (200, &Ok(())), "{}", response.text());
        self.answers.fetch_add(1, Ordering::SeqCst);
        true
    }
}

/// A request to the admin port; its status line.
fn ask(address: SocketAddr, method: &str, path: &str) -> io::Result<String> {
    let mut tcp = try_dial(address, None)?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    tcp.write_all(head.as_bytes())?;
    let mut text = String::new();
    tcp.read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// The files in a folder of the cache.
fn names(setup: &Setup, folder: &str) -> HashSet<String> {
    let files = fs::read_dir(setup.path("cache").join(folder)).expect("a folder").flatten();
    files.map(|file| file.file_name().into_string().expect("UTF-8")).collect()
}

/// Bodies without their `.meta`, and the other way round.
fn lone(names: &HashSet<String>) -> Vec<&String> {
    let partner = |name: &str| match name.strip_suffix(".meta") {
        Some(body) => body.to_owned(),
        None => format!("{name}.meta"),
    };
    names.iter().filter(|name| !names.contains(&partner(name))).collect()
}

/// Bodies in a folder of the cache: name and path of each.
fn bodies(setup: &Setup, folder: &str) -> Vec<(String, PathBuf)> {
    let all = names(setup, folder).into_iter().filter(|name| !name.ends_with(".meta"));
    all.map(|name| (name.clone(), setup.path("cache").join(folder).join(name))).collect()
}

fn sha256_of(path: &Path) -> String {
    sha256(&fs::read(path).expect("a body"))
}

/// Whatever has a final name is whole, at any moment.
fn assert_bodies_whole(setup: &Setup, world: &World, what: &str) {
    for (name, path) in bodies(setup, "blobs/sha256") {
        assert_eq!(sha256_of(&path), name, "{what}");
    }
    for (name, path) in bodies(setup, "urls/sha256") {
        let found = sha256_of(&path);
        let known = world.files.iter().any(|(_, versions)| {
            versions.lock().unwrap().iter().any(|body| body.sha256() == found)
        });
        assert!(known, "{what}: {name} is no version of any file");
    }
}

const FOLDERS: [&str; 3] = ["blobs/sha256", "blobs/sha512", "urls/sha256"];

/// Waits until the scan is done and sizes agree with the files.
fn wait_settled(setup: &Setup, proxy: &Proxy, what: &str) {
    let scanning = || proxy.admin("GET", "/health", &[]).json()["scanning"].clone();
    wait_until("the scan", || (scanning() == json!(false)).then_some(()));
    let mut seen = (0, 0);
    let agree = || {
        let all = FOLDERS.iter().flat_map(|folder| bodies(setup, folder));
        let on_disk = all.filter_map(|(_, path)| fs::metadata(path).ok()).map(|file| file.len());
        seen = (proxy.stat("current_size"), on_disk.sum());
        (seen.0 == seen.1).then_some(())
    };
    wait_until(&format!("current_size to be what the files have, {what}"), agree);
}

/// No part, no `.meta` without its body, no body without its `.meta`.
fn assert_nothing_partial(setup: &Setup, what: &str) {
    assert_eq!(names(setup, "partial"), HashSet::new(), "{what}");
    for folder in FOLDERS {
        let names = names(setup, folder);
        assert_eq!(lone(&names), Vec::<&String>::new(), "{what}");
    }
}

/// Asks for everything; what is there is a hit, and right. The number of hits.
fn assert_serves_what_is_there(setup: &Setup, world: &World, proxy: &Proxy) -> usize {
    let mut clients = [&world.plain, &world.registry.main].map(|origin| {
        let prefix = origin.url("/v2/lab/img/blobs/sha256:");
        (proxy.client(origin), prefix)
    });
    let stored = bodies(setup, "blobs/sha256");
    for (number, (name, _)) in stored.iter().enumerate() {
        let (client, prefix) = &mut clients[number % 2];
        let hit = client.get(&format!("{prefix}{name}"));
        assert_eq!((hit.status, &hit.whole, &hit.sha256), (200, &Ok(()), name));
        hit.assert_hit();
    }
    let hits = stored.len();
    let stored = bodies(setup, "urls/sha256").len();
    let mut file_hits = 0;
    for (number, (path, _)) in world.files.iter().enumerate() {
        let response = proxy.get(&world.plain, path);
        assert_eq!((response.status, &response.whole), (200, &Ok(())));
        world.assert_version(number, &response);
        file_hits += usize::from(response.field("X-Cache") == Some("HIT"));
    }
    assert!(file_hits <= stored, "{file_hits} hits on {stored} files");
    hits + file_hits
}

#[test]
fn what_was_being_named_or_removed_at_the_kill_is_gone_after_the_start() {
    let setup =
        Setup::new().with(json!({ "cache": { "patterns": ["^/v2/.*sha256:", "^/files/"] } }));
    let origin = Origin::http(names::SECOND);
    let proxy = setup.start();
    let stored = |path: &dyn Fn(&Body) -> String| {
        let body = fresh_body(50_000);
        let path = path(&body);
        origin.get(&path, Answer::ok(&body));
        proxy.get(&origin, &path).assert_is(&body);
        (path, body)
    };
    let all = [
        stored(&|body| blob_path("lab/img", body)),
        stored(&|body| format!("/files/{}", body.sha256())),
    ];
    proxy.kill();
    // Between the two names of a commit, between the two of a removal; and before them.
    for folder in ["blobs/sha256", "urls/sha256"] {
        bodies(&setup, folder).iter().for_each(|(_, file)| fs::remove_file(file).expect("a body"));
    }
    for name in ["7.part", "7.meta.part"] {
        fs::write(setup.path("cache/partial").join(name), "half").expect("a part");
    }
    let proxy = setup.start();
    wait_settled(&setup, &proxy, "after the kill");
    assert_nothing_partial(&setup, "after the kill");
    for (path, body) in &all {
        let again = proxy.get(&origin, path);
        again.assert_is(body);
        again.assert_not_hit();
        proxy.get(&origin, path).assert_hit();
    }
    assert_eq!(proxy.stat("errors"), 0, "{}", proxy.output());
}

/// What happens to a file behind the proxy's back.
const DAMAGES: [fn(&Path); 5] = [
    |file| resize(file, |len| len - 1),
    |file| resize(file, |_| 0),
    |file| resize(file, |len| len + 1),
    |file| resize(file, |len| len * 2),
    |file| fs::remove_file(file).expect("removing a body"),
];

fn resize(file: &Path, to: fn(u64) -> u64) {
    let file = OpenOptions::new().write(true).open(file).expect("a body");
    let len = file.metadata().expect("its length").len();
    file.set_len(to(len)).expect("another length");
}

/// Whether the proxy has a file open when that is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Open,
    Closed,
    /// The proxy does not run.
    Stopped,
}

#[test]
fn a_file_shortened_or_grown_is_noticed_before_a_byte_of_it_is_sent() {
    let setup =
        Setup::new().with(json!({ "cache": { "patterns": ["^/v2/.*sha256:", "^/files/"] } }));
    let origins = [Origin::http(names::SECOND), Origin::https(names::REGISTRY)];
    for held in [Held::Open, Held::Closed, Held::Stopped] {
        let mut proxy = setup.start();
        let mut victims = Vec::new();
        for (number, damage) in DAMAGES.iter().enumerate() {
            for (origin, size) in [(0, 10_000), (0, 400_000), (1, 10_000), (1, 400_000)] {
                let origin = &origins[origin];
                let (body, folder) = (fresh_body(size), ["blobs/sha256", "urls/sha256"]);
                let path = match number % 2 {
                    0 => blob_path("lab/img", &body),
                    _ => format!("/files/{}", body.sha256()),
                };
                origin.get(&path, Answer::ok(&body));
                proxy.get(origin, &path).assert_is(&body);
                let mut files = bodies(&setup, folder[number % 2]).into_iter();
                let file = files.find(|(_, file)| sha256_of(file) == body.sha256());
                victims.push((origin, path, body, file.expect("its file").1, damage));
            }
        }
        let damage_all = || victims.iter().for_each(|(_, _, _, file, damage)| damage(file));
        match held {
            Held::Open => damage_all(),
            Held::Closed => {
                proxy.stop();
                proxy = setup.start();
                wait_settled(&setup, &proxy, "before the damage");
                damage_all();
            }
            Held::Stopped => {
                proxy.stop();
                damage_all();
                proxy = setup.start();
            }
        }
        for (origin, path, body, file, _) in victims {
            let again = proxy.get(origin, &path);
            again.assert_is(&body);
            again.assert_not_hit();
            assert_eq!(origin.count("GET", &path), 2, "{held:?}");
            let hit = proxy.get(origin, &path);
            hit.assert_is(&body);
            hit.assert_hit();
            assert_eq!(sha256_of(&file), body.sha256(), "{held:?}");
        }
        let settled = format!("mended, {held:?}");
        wait_settled(&setup, &proxy, &settled);
        assert_nothing_partial(&setup, &settled);
        proxy.stop();
    }
}

#[test]
fn a_body_served_from_memory_is_right_and_its_file_is_looked_at_now_and_then() {
    let setup = Setup::new();
    let proxy = setup.start();
    let origin = Origin::http(names::SECOND);
    for damage in DAMAGES {
        let body = fresh_body(10_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        proxy.get(&origin, &path).assert_is(&body);
        proxy.get(&origin, &path).assert_hit();
        damage(&setup.blob(&body.sha256()));
        wait_until("the damage is noticed", || {
            let response = proxy.get(&origin, &path);
            response.assert_is(&body);
            (origin.count("GET", &path) == 2).then_some(())
        });
        proxy.get(&origin, &path).assert_hit();
        assert_eq!(sha256_of(&setup.blob(&body.sha256())), body.sha256());
    }
}

#[test]
fn a_file_cut_in_mid_transfer_ends_the_transfer_and_is_fetched_anew() {
    let setup = Setup::new();
    let proxy = setup.start();
    for origin in [Origin::http(names::SECOND), Origin::https(names::REGISTRY)] {
        let body = fresh_body(32_000_000);
        let path = blob_path("lab/img", &body);
        origin.get(&path, Answer::ok(&body));
        proxy.get(&origin, &path).assert_is(&body);
        let mut client = proxy.client(&origin);
        let mut transfer = client.begin(&origin.url(&path));
        assert_eq!(transfer.head.field("X-Cache"), Some("HIT"));
        transfer.read_to(&mut client, 10_000);
        resize(&setup.blob(&body.sha256()), |len| len - 1);
        let response = transfer.finish(&mut client);
        assert!(response.whole.is_err(), "{} bytes of a shorter file", response.len);
        let again = proxy.get(&origin, &path);
        again.assert_is(&body);
        again.assert_not_hit();
        proxy.get(&origin, &path).assert_hit();
    }
}
