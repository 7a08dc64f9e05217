//! The cache in every order: fills good and bad, readers, joins, eviction, removal, clearing and
//! broken-off work, step by step in orders that follow from a seed, against a model.
//!
//! Shown: nobody reads the end of a body before it is proven, and so never the whole of a wrong
//! one; every byte read is what upstream sent; an ending is always said, and everybody hears of it;
//! a key has one lease at most; sizes agree with the model at every step, and with the directory at
//! the end and after a restart.
//!
//! `DISCOBOT_SEED=N cargo test --test schedule` begins with that seed; `DISCOBOT_LONG=1` goes on
//! for ten minutes.

mod support;

#[path = "schedule/actors.rs"]
mod actors;
#[path = "schedule/model.rs"]
mod model;
#[path = "schedule/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use discobot_proxy::cache::{Cache, HELD_BACK, Options};
use discobot_proxy::key::{Algorithm, Hasher, Key};
use discobot_proxy::stats::Stats;
use model::Model;
use monoio::blocking::BlockingTask;
use support::seed::{Rng, seeds};
use world::{Mood, Plant, Pool, Work, World, names};

/// Keys that name a digest; two more name a URL.
const DIGESTS: usize = 5;

/// Lengths where something may go wrong, and others.
const LENGTHS: [u64; 10] = [
    0,
    1,
    HELD_BACK - 1,
    HELD_BACK,
    HELD_BACK + 1,
    2 * HELD_BACK,
    2 * HELD_BACK + 1,
    30_000,
    60_000,
    90_000,
];

#[test]
fn every_order_of_fill_reader_eviction_and_removal_agrees_with_the_model() {
    for seed in seeds("schedule", Duration::from_secs(8)) {
        if let Err(fault) = explore(seed, Plant::Nothing) {
            panic!("{fault}\nto see it again: DISCOBOT_SEED={seed}");
        }
    }
}

/// Each fault planted in the harness is noticed, and for what it is.
#[test]
fn a_planted_fault_is_caught() {
    for (plant, signs) in [
        (Plant::EndShownEarly, &["before it was proven"][..]),
        (Plant::WakeLost, &["never woken again"]),
        (Plant::UseForgotten, &["sizes", "a hit on", "a join", "a miss", "a peek"]),
        (Plant::SecondLease, &["sizes", "a second lease"]),
        (Plant::FileLeft, &["files"]),
        (Plant::ByteChanged, &["wrong bytes", "files"]),
        (Plant::EndingUnsaid, &["never woken again", "sizes"]),
    ] {
        let fault = (0..500).find_map(|seed| explore(seed, plant).err());
        let fault = fault.unwrap_or_else(|| panic!("{plant:?} was not noticed"));
        assert!(signs.iter().any(|sign| fault.contains(sign)), "{plant:?}: {fault}");
    }
}

/// The scan lists files and then tells the index of them; what goes in between must not come back.
#[test]
fn what_is_cleared_while_the_scan_runs_stays_cleared() {
    let folder = tempfile::tempdir().expect("a directory");
    let dir = folder.path().to_owned();
    let options = Options { dir, max_size: 1 << 30, min_free: 0, open_max: 4, fills_max: 64 };
    for _ in 0..3 {
        let cache = Cache::open(options.clone(), Arc::new(Stats::default())).expect("a cache");
        let bodies = folder.path().join("blobs/sha256");
        for number in 0..1000 {
            fs::write(bodies.join(format!("{number:064x}")), "x").expect("a body");
        }
        let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
            .with_blocking_strategy(monoio::blocking::BlockingStrategy::ExecuteLocal)
            .build()
            .expect("a runtime");
        let scan = {
            let cache = cache.clone();
            std::thread::spawn(move || cache.scan())
        };
        runtime.block_on(cache.clear()).expect("cleared");
        scan.join().expect("no panic").expect("scanned");
        // Files that are gone are no entries, whichever came first.
        let left = fs::read_dir(&bodies).expect("a folder").count();
        assert_eq!((cache.sizes().entries, cache.sizes().stored), (left, left as u64));
        cache.close();
    }
}

/// One cache from its first entry to its restart.
fn explore(seed: u64, plant: Plant) -> Result<(), String> {
    let jobs = Arc::new(Mutex::new(Vec::new()));
    let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new()
        .attach_thread_pool(Box::new(Pool(Arc::clone(&jobs))))
        .build()
        .expect("a runtime");
    // All of it happens within one poll: the runtime is there only to take the jobs down.
    runtime.block_on(async { live(seed, plant, jobs) })
}

fn live(seed: u64, plant: Plant, jobs: Arc<Mutex<Vec<BlockingTask>>>) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a directory");
    let mut rng = Rng::new(seed);
    let (keys, truths) = keys(&mut rng);
    let max_size = rng.pick(&[60_000, 150_000, 16 * 1024 * 1024 + 100_000]);
    let mood = mood(&mut rng, plant);
    let mut model = Model::new(max_size, truths);
    model.forgetful = plant == Plant::UseForgotten;
    let world = World::open(folder.path(), Arc::clone(&jobs), keys, model, (plant, rng))
        .expect("a new cache");
    spawn_actors(&world, folder.path());
    world.run(&mood)?;
    world.cache.close();
    let counted = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let did = (counted(&world.stats.stores), counted(&world.stats.evictions));
    let ought = (world.model.borrow().stores, world.model.borrow().evictions);
    if did != ought {
        return Err(format!("(stores, evictions) counted as {did:?}, not {ought:?}"));
    }
    if plant == Plant::FileLeft {
        fs::write(folder.path().join("blobs/sha256").join("0".repeat(64)), "x").expect("a file");
    }
    compare_files(&world, folder.path())?;
    restart(Rc::try_unwrap(world).map_err(|_| "a task outlives its run")?, folder.path(), jobs)
}

fn keys(rng: &mut Rng) -> (Vec<Key>, Vec<Option<Vec<u8>>>) {
    let mut keys = Vec::new();
    let mut truths = Vec::new();
    while keys.len() < DIGESTS {
        let len = rng.pick(&LENGTHS) as usize;
        let body = noise(rng.below(50_000), len);
        let algorithm = if keys.is_empty() { Algorithm::Sha512 } else { Algorithm::Sha256 };
        let mut hasher = Hasher::new(algorithm);
        hasher.update(&body);
        let key = Key::Digest(hasher.finish());
        if !keys.contains(&key) {
            keys.push(key);
            truths.push(Some(body));
        }
    }
    for path in ["/a", "/b"] {
        keys.push(Key::for_url("https", "registry.test", 443, path));
        truths.push(None);
    }
    (keys, truths)
}

/// Bytes of which no two stretches are alike.
pub fn noise(from: usize, len: usize) -> Vec<u8> {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| {
        let mut rng = Rng::new(7);
        std::iter::repeat_with(|| rng.next().to_le_bytes()).take(1 << 15).flatten().collect()
    });
    noise[from..from + len].to_vec()
}

fn mood(rng: &mut Rng, plant: Plant) -> Mood {
    let (tasks_first, arrivals) = (rng.pick(&[0, 1, 3, 12]), 1 + rng.below(15));
    let mut now_and_then = |of: usize| (plant == Plant::Nothing && rng.one_in(2)).then_some(of);
    Mood {
        tasks_first,
        arrivals,
        kills: now_and_then(100),
        refusals: now_and_then(25),
        sweeps: now_and_then(150),
        spurious: now_and_then(10),
    }
}

/// Mostly clients; one comes after the other.
fn spawn_actors(world: &Rc<World>, dir: &Path) {
    let clients_most = world.one_in(2);
    for number in 0..20 + world.below(100) {
        let key = world.below(world.keys.len());
        let name = |what: &str| format!("{what} {number} of key {key}");
        let choice = if clients_most { world.below(24) } else { world.below(12) };
        let own = Rc::clone(world);
        match choice {
            0 | 1 => world.invite(name("peeker"), actors::peeker(own, key)),
            2 | 5 => world.invite(name("refiller"), actors::refiller(own, key)),
            3 => world.invite(name("remover"), actors::remover(own, key)),
            4 if world.one_in(8) => world.invite(name("clearer"), actors::clearer(own)),
            _ => world.invite(name("client"), actors::client(own, key)),
        }
    }
    match world.plant {
        Plant::SecondLease => world.spawn("thief".to_owned(), remove_in_secret(Rc::clone(world))),
        Plant::ByteChanged => {
            world.spawn("vandal".to_owned(), change_a_byte(Rc::clone(world), dir.to_owned()));
        }
        _ => {}
    }
}

/// The plant [`Plant::SecondLease`].
async fn remove_in_secret(world: Rc<World>) {
    for key in &world.keys {
        for _ in 0..20 {
            world.pause().await;
        }
        let _ = world.doing(&Rc::new(Work::Plain), world.cache.remove(key)).await;
    }
}

/// The plant [`Plant::ByteChanged`].
async fn change_a_byte(world: Rc<World>, dir: std::path::PathBuf) {
    for _ in 0..100 {
        world.pause().await;
        let stored = world.model.borrow().entries().next();
        if let Some((key, _)) = stored {
            let path = dir.join(&names(&world.keys[key])[0]);
            let mut bytes = fs::read(&path).unwrap_or_default();
            if let Some(byte) = bytes.first_mut() {
                *byte ^= 1;
                let _ = fs::write(&path, bytes);
            }
        }
    }
}

/// Exactly what the model says is stored lies in the directory.
fn compare_files(world: &World, dir: &Path) -> Result<(), String> {
    let model = world.model.borrow();
    let mut found = BTreeMap::new();
    for folder in ["blobs/sha256", "blobs/sha512", "urls/sha256", "partial"] {
        for entry in fs::read_dir(dir.join(folder)).expect("a folder").flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            found.insert(format!("{folder}/{file}"), entry.path());
        }
    }
    for (key, generation) in model.entries() {
        let (body, [name, meta]) = (&model.generations[generation].source, names(&world.keys[key]));
        let path = found.remove(&name).ok_or(format!("among the files {name} is missing"))?;
        if fs::read(path).expect("a body") != *body {
            return Err(format!("the files of {name} hold other bytes"));
        }
        let path = found.remove(&meta).ok_or(format!("among the files {meta} is missing"))?;
        let text = fs::read_to_string(path).expect("a meta file");
        if text.lines().nth(1) != Some(generation.to_string().as_str()) {
            return Err(format!("the files of {name} hold another head: {text}"));
        }
    }
    let left: Vec<_> = found.keys().collect();
    if left.is_empty() { Ok(()) } else { Err(format!("files that should be gone: {left:?}")) }
}

/// What was stored is found again by the next process.
fn restart(world: World, dir: &Path, jobs: Arc<Mutex<Vec<BlockingTask>>>) -> Result<(), String> {
    let World { cache, keys, model, rng, .. } = world;
    drop(cache);
    let entries: Vec<_> = model.borrow().entries().collect();
    let again =
        World::open(dir, jobs, keys, model.into_inner(), (Plant::Nothing, rng.into_inner()))
            .map_err(|error| format!("the cache does not open again: {error}"))?;
    for (key, _) in &entries {
        again.invite(format!("second look at {key}"), actors::client(Rc::clone(&again), *key));
    }
    let mood = Mood {
        tasks_first: 1,
        arrivals: 1,
        kills: None,
        refusals: None,
        sweeps: None,
        spurious: None,
    };
    again.run(&mood)?;
    again.cache.close();
    let stored: Vec<_> = again.model.borrow().entries().map(|(key, _)| key).collect();
    if stored.len() == entries.len() { Ok(()) } else { Err(format!("{entries:?}: {stored:?}")) }
}
