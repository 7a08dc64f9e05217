//! What a connection does.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::ToSocketAddrs as _;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use sha2::{Digest as _, Sha256};

use super::args::{Args, Bodies};
use super::pace::Pace;
use super::tally::Tally;
use super::tls;
use super::wire::{Answer, Sink, Way, Wire};

/// How long a request may take; a stall beyond is an error.
const PATIENCE: Duration = Duration::from_secs(120);

/// One URL and the way to it.
pub struct Target {
    way: Way,
    /// Before and behind the number of a request.
    head: (String, Option<String>),
    /// What the body must hash to.
    digest: Option<Vec<u8>>,
    total: Cell<u64>,
}

impl Target {
    pub fn new(url: &str, args: &Args) -> Result<Target, String> {
        let bad = |why: &str| format!("{url}: {why}");
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("no scheme"))?;
        let (authority, path) = rest.split_once('/').ok_or_else(|| bad("no path"))?;
        let secure = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(bad("neither http nor https")),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port),
            _ => (authority, if secure { "443" } else { "80" }),
        };
        let to = args.proxy.clone().or(args.connect.clone());
        let to = to.unwrap_or_else(|| format!("{host}:{port}"));
        let address = to.to_socket_addrs().map_err(|error| format!("{to}: {error}"))?.next();
        let address = address.ok_or_else(|| format!("{to}: no address"))?;
        let tls = if secure {
            let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(name).map_err(|_| bad("no name for TLS"))?;
            Some((tls::config(args.ca.as_deref())?, name))
        } else {
            None
        };
        let connect = (args.proxy.is_some() && secure).then(|| format!("{host}:{port}"));
        let target = match args.proxy.is_some() && !secure {
            true => url.to_owned(),
            false => format!("/{path}"),
        };
        let fields: String = args.header.iter().map(|field| format!("{field}\r\n")).collect();
        let behind = format!(" HTTP/1.1\r\nHost: {authority}\r\n{fields}");
        let head = match target.split_once("{n}") {
            Some((before, after)) => (format!("GET {before}"), Some(format!("{after}{behind}"))),
            None => (format!("GET {target}{behind}"), None),
        };
        let digest = path.split("sha256:").nth(1).and_then(|hex| unhex(hex.get(..64)?));
        let way = Way { address, connect, tls };
        Ok(Target { way, head, digest, total: Cell::new(0) })
    }

    fn request(&self, number: u64, range: Option<(u64, u64)>, out: &mut String) {
        out.clear();
        out.push_str(&self.head.0);
        if let Some(behind) = &self.head.1 {
            // Never the same, in another run neither.
            let _ = write!(out, "{:x}-{:x}{number}", std::process::id(), started());
            out.push_str(behind);
        }
        if let Some((from, to)) = range {
            let _ = write!(out, "Range: bytes={from}-{to}\r\n");
        }
        out.push_str("\r\n");
    }
}

/// What is asked for, and how.
pub struct Load {
    targets: Vec<Target>,
    bodies: Bodies,
    new_connection: bool,
    pub range: Option<u64>,
    /// Latency counts to the first byte of a body.
    pub first_byte: bool,
    number: Cell<u64>,
}

impl Load {
    pub fn new(targets: Vec<Target>, bodies: Bodies, new_connection: bool) -> Load {
        let number = Cell::new(0);
        Load { targets, bodies, new_connection, range: None, first_byte: false, number }
    }

    /// Asks for one byte of each body to learn how many there are.
    pub async fn learn_totals(&self) -> Result<(), String> {
        for target in self.targets.iter().filter(|_| self.range.is_some()) {
            let mut wire = Wire::open(&target.way).await?;
            let mut request = String::new();
            target.request(self.take_number(), Some((0, 0)), &mut request);
            let mut sink = Sink { bodies: Bodies::Read, count: &|_| {}, bytes: &mut |_| {} };
            let answer = wire.ask(request.as_bytes(), &mut sink).await?;
            let total = answer.total.filter(|_| answer.status == 206);
            target.total.set(total.ok_or("the server gives no ranges")?);
        }
        Ok(())
    }

    fn take_number(&self) -> u64 {
        self.number.replace(self.number.get() + 1)
    }

    /// Another stretch for each number, spread over the whole.
    fn stretch(&self, target: &Target, number: u64) -> Option<(u64, u64)> {
        let len = self.range?.clamp(1, target.total.get().max(1));
        let places = target.total.get().saturating_sub(len) + 1;
        let from = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) % places;
        Some((from, from + len - 1))
    }
}

/// What a request that went well leaves.
struct Done {
    /// Where it can be used again.
    wire: Option<Wire>,
    /// When the first byte of the body came; none where it has none.
    first: Option<Instant>,
}

/// Why a request failed.
struct Fault {
    wrong: bool,
    why: String,
}

/// Asks again and again.
pub async fn work(load: &Load, pace: &Pace, tally: &Tally) {
    let mut wires: HashMap<usize, Wire> = HashMap::new();
    let mut request = String::new();
    while let Some(due) = pace.next().await {
        let number = load.take_number();
        let which = number as usize % load.targets.len();
        let wire = wires.remove(&which);
        let turn = once(load, which, number, wire, &mut request, tally);
        match tokio::time::timeout(PATIENCE, turn).await {
            Ok(Ok(done)) => {
                let end = done.first.filter(|_| load.first_byte).unwrap_or_else(Instant::now);
                tally.done(end.saturating_duration_since(due));
                if let Some(wire) = done.wire.filter(|_| !load.new_connection) {
                    wires.insert(which, wire);
                }
            }
            Ok(Err(fault)) => {
                tally.failed(fault.wrong, fault.why);
                // A server that is gone must not be asked in a tight loop.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(_) => tally.failed(false, format!("no whole answer within {PATIENCE:?}")),
        }
    }
}

/// One request.
async fn once(
    load: &Load,
    which: usize,
    number: u64,
    wire: Option<Wire>,
    request: &mut String,
    tally: &Tally,
) -> Result<Done, Fault> {
    let target = &load.targets[which];
    let error = |why: String| Fault { wrong: false, why };
    let mut wire = match wire {
        Some(wire) => wire,
        None => Wire::open(&target.way).await.map_err(error)?,
    };
    let range = load.stretch(target, number);
    target.request(number, range, request);
    let mut hash = (load.bodies == Bodies::Hash).then(Sha256::new);
    let (got, first) = (Cell::new(0), Cell::new(None));
    let count = |bytes| {
        if got.get() == 0 {
            first.set(Some(Instant::now()));
        }
        got.set(got.get() + bytes);
        tally.add_bytes(bytes);
    };
    let mut bytes = |bytes: &[u8]| {
        if let Some(hash) = &mut hash {
            hash.update(bytes);
        }
    };
    let mut sink = Sink { bodies: load.bodies, count: &count, bytes: &mut bytes };
    let answer: Answer = wire.ask(request.as_bytes(), &mut sink).await.map_err(error)?;
    let wanted = if range.is_some() { 206 } else { 200 };
    if answer.status != wanted {
        return Err(error(format!("answered {}", answer.status)));
    }
    let wrong = |why: &str| Fault { wrong: true, why: why.to_owned() };
    if range.is_some_and(|(from, to)| got.get() != to - from + 1) {
        return Err(wrong("a range of another length"));
    }
    if let (Some(hash), Some(digest), None) = (hash, &target.digest, range)
        && hash.finalize().as_slice() != digest
    {
        return Err(wrong("a body with another digest"));
    }
    Ok(Done { wire: answer.again.then_some(wire), first: first.get() })
}

/// Opens connections until `left` is 0, asks once on each and keeps them.
pub async fn hold(load: &Load, tally: &Tally, left: &Cell<u32>) -> Vec<Wire> {
    let mut held = Vec::new();
    let mut request = String::new();
    while let Some(rest) = left.get().checked_sub(1) {
        left.set(rest);
        let number = load.take_number();
        match once(load, 0, number, None, &mut request, tally).await {
            Ok(Done { wire: Some(mut wire), .. }) => {
                wire.rest();
                held.push(wire);
            }
            Ok(_) => tally.failed(false, "the server closes the connection".to_owned()),
            Err(fault) => tally.failed(fault.wrong, fault.why),
        }
    }
    held
}

/// Asks on so many connections and reads nothing; they stay as they are until they are dropped.
pub async fn unread(target: &Target, count: u32) -> Result<Vec<Wire>, String> {
    let (mut held, mut request) = (Vec::new(), String::new());
    target.request(0, None, &mut request);
    for _ in 0..count {
        let mut wire = Wire::open(&target.way).await?;
        wire.post(request.as_bytes()).await?;
        held.push(wire);
    }
    Ok(held)
}

/// Nanoseconds, the same for the whole run.
fn started() -> u128 {
    static STARTED: std::sync::OnceLock<u128> = std::sync::OnceLock::new();
    *STARTED.get_or_init(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap_or_default().as_nanos()
    })
}

/// Only whole, lower-case digests.
fn unhex(hex: &str) -> Option<Vec<u8>> {
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(byte).collect()
}
