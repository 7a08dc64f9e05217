//! The load generator: many connections on one thread and one ring, so that it costs little beside
//! the server it loads. `load --help` says what it can; scripts/load.sh builds and starts it.
//!
//! A closed loop asks again as soon as an answer is there; an open one (`--rate`) begins requests
//! at a constant rate and counts latency from when each was due, so that a stall is counted for
//! every request that it kept waiting.

#[path = "load/args.rs"]
mod args;
#[path = "load/beside.rs"]
mod beside;
#[path = "load/pace.rs"]
mod pace;
#[path = "load/procs.rs"]
mod procs;
#[path = "load/report.rs"]
mod report;
#[path = "load/tally.rs"]
mod tally;
#[path = "load/task.rs"]
mod task;
#[path = "load/tls.rs"]
mod tls;
#[path = "load/wire.rs"]
mod wire;

use std::cell::Cell;
use std::io::{IsTerminal as _, Write as _};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use serde_json::{Value, json};

use args::{Args, Bodies};
use beside::Beside;
use pace::Pace;
use procs::Server;
use report::Results;
use tally::Tally;
use task::{Load, Target};

/// Connections opened at a time by `--idle`.
const OPENERS: u32 = 32;

/// How long after the measured time a run of `--requests` may still take.
const PATIENCE: Duration = Duration::from_secs(600);

fn main() {
    let args = Args::parse();
    let ring = {
        let mut builder = tokio_uring::builder();
        builder.entries(1024);
        builder
    };
    ring.start(async move {
        let outcome = if args.idle { idle(&args).await } else { run(&args).await };
        let code = match outcome {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(why) => {
                eprintln!("load: {why}");
                2
            }
        };
        // From inside: were the ring taken down first, the kernel might still write into buffers of
        // reads under way that are freed with it.
        std::process::exit(code)
    })
}

/// Runs the load; whether all answers were right.
async fn run(args: &Args) -> Result<bool, String> {
    let server = args.pid.map(Server::new);
    let mut targets = Vec::new();
    for url in &args.urls {
        targets.push(Target::new(url, args)?);
    }
    let mut load = Load::new(targets, args.body, args.new_connection);
    (load.range, load.first_byte) = (args.range, args.first_byte);
    load.learn_totals().await?;
    let load = Rc::new(load);
    let main = Rc::new(Tally::new());
    let beside = args.beside.as_deref().map(|url| Beside::start(url, args)).transpose()?;
    let _unread = match &args.beside {
        Some(url) => task::unread(&Target::new(url, args)?, args.unread).await?,
        None => Vec::new(),
    };
    let used = || (server.as_ref().map(Server::cpu), args.core.map(procs::busy));
    let pace = Rc::new(match args.rate {
        Some(rate) => Pace::open(rate, args.requests)?,
        None => Pace::closed(args.requests),
    });
    let before = (Instant::now(), used());
    let running = start(&load, &pace, &main, args.connections);
    let (from, (cpu, busy)) = match args.requests {
        Some(_) => {
            all_done(&running, &main, args).await?;
            before
        }
        None => {
            pass(args.warm_up, &main, "warming up").await;
            main.restart();
            let begin = (Instant::now(), used());
            pass(args.duration, &main, &args.name).await;
            begin
        }
    };
    let elapsed = from.elapsed();
    let after = used();
    let spent = |before: Option<Duration>, after: Option<Duration>| Some(after? - before?);
    let (cpu, busy) = (spent(cpu, after.0), spent(busy, after.1));
    let (name, connections) = (args.name.clone(), args.connections);
    let results = Results { name, connections, elapsed, cpu, busy };
    let beside = beside.map(Beside::end).transpose()?;
    let value = results.json(&main, beside);
    print!("{}", report::table(&value));
    for (why, times) in main.reasons.borrow().iter().take(5) {
        eprintln!("load: {times} times: {why}");
    }
    write(args, &value)?;
    if let Some(path) = &args.hgrm {
        let written = report::write_percentiles(path, &main.latency.borrow());
        written.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let bad = [&value, &value["beside"]].map(|of| of["errors"].as_u64().max(of["wrong"].as_u64()));
    Ok(bad.into_iter().flatten().sum::<u64>() == 0 && main.bytes.get() > 0)
}

fn write(args: &Args, value: &Value) -> Result<(), String> {
    let Some(path) = &args.json else { return Ok(()) };
    let text = format!("{value:#}\n");
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Starts `connections` workers; the counter falls as they end.
fn start(load: &Rc<Load>, pace: &Rc<Pace>, tally: &Rc<Tally>, connections: u32) -> Rc<Cell<u32>> {
    let running = Rc::new(Cell::new(connections));
    for _ in 0..connections {
        let (load, pace) = (Rc::clone(load), Rc::clone(pace));
        let (tally, running) = (Rc::clone(tally), Rc::clone(&running));
        tokio_uring::spawn(async move {
            task::work(&load, &pace, &tally).await;
            running.set(running.get() - 1);
        });
    }
    running
}

/// Lets so many seconds pass, with a line of progress on a terminal.
async fn pass(seconds: f64, tally: &Tally, what: &str) {
    let end = Instant::now() + Duration::from_secs_f64(seconds.max(0.0));
    let mut progress = Progress::new(tally, what);
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        tokio::time::sleep(left.min(Duration::from_millis(250))).await;
        progress.show(tally, left);
    }
    progress.end();
}

async fn all_done(running: &Cell<u32>, tally: &Tally, args: &Args) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    let mut progress = Progress::new(tally, &args.name);
    let mut shown = Instant::now();
    while running.get() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let left = end.checked_duration_since(Instant::now());
        let left = left.ok_or_else(|| format!("not done after {PATIENCE:?}"))?;
        if shown.elapsed() > Duration::from_millis(250) {
            progress.show(tally, left);
            shown = Instant::now();
        }
    }
    progress.end();
    Ok(())
}

/// One line on a terminal; nothing elsewhere.
struct Progress<'a> {
    what: &'a str,
    since: Instant,
    last: (u64, u64),
    shown: bool,
}

impl<'a> Progress<'a> {
    fn new(tally: &Tally, what: &'a str) -> Progress<'a> {
        let last = (tally.requests.get(), tally.bytes.get());
        let shown = std::io::stderr().is_terminal();
        Progress { what, since: Instant::now(), last, shown }
    }

    fn show(&mut self, tally: &Tally, left: Duration) {
        if !self.shown {
            return;
        }
        let now = (tally.requests.get(), tally.bytes.get());
        let seconds = self.since.elapsed().as_secs_f64();
        let requests = now.0.saturating_sub(self.last.0) as f64 / seconds;
        let rate = now.1.saturating_sub(self.last.1) as f64 / 1e9 / seconds;
        let (bad, what) = (tally.errors.get() + tally.wrong.get(), self.what);
        let left = left.as_secs();
        eprint!(
            "\r\x1b[K{what}: {requests:.0} requests/s, {rate:.2} GB/s, {bad} bad, {left} s left"
        );
        let _ = std::io::stderr().flush();
        (self.last, self.since) = (now, Instant::now());
    }

    fn end(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// Opens the connections, asks once on each, and measures what they cost the server at rest.
async fn idle(args: &Args) -> Result<bool, String> {
    let server = Server::new(args.pid.ok_or("--pid is missing")?);
    let load = Rc::new(Load::new(vec![Target::new(&args.urls[0], args)?], Bodies::Read, false));
    let tally = Rc::new(Tally::new());
    let open = |count: u32| {
        let (load, tally) = (Rc::clone(&load), Rc::clone(&tally));
        async move {
            let left = Rc::new(Cell::new(count));
            let tasks = (0..OPENERS.min(count)).map(|_| {
                let (load, tally, left) = (Rc::clone(&load), Rc::clone(&tally), Rc::clone(&left));
                tokio_uring::spawn(async move { task::hold(&load, &tally, &left).await })
            });
            let tasks: Vec<_> = tasks.collect();
            let mut held = Vec::new();
            for task in tasks {
                held.extend(task.await.unwrap_or_default());
            }
            held
        }
    };
    // What the first connections make the server keep is no connection's cost.
    drop(open(OPENERS.min(args.connections)).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = server.rss();
    let held = open(args.connections).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let each = (server.rss() as f64 - before as f64) / (held.len().max(1) as f64);
    println!("{} connections held, {each:.2} KiB each; {before} KiB before", held.len());
    let value = json!({
        "name": args.name, "connections": held.len(), "rss_before_kib": before,
        "kib_per_connection": each, "errors": tally.errors.get(), "wrong": 0,
        "reasons": *tally.reasons.borrow(),
    });
    write(args, &value)?;
    Ok(held.len() == args.connections as usize)
}
