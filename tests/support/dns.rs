//! A name server of the test's own, at a loopback address that is nobody else's, and the program
//! started so that it asks there and nowhere else.
//!
//! It knows `/etc/hosts` as every other test does; only what does not stand there is asked for. Each
//! question is counted. A name can be held: then its questions are answered when it is let go.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::proxy::{Proxy, Setup};
use super::wait_until;

const A: u16 = 1;
const AAAA: u16 = 28;

/// A running name server; ends with its value.
pub struct Dns {
    address: Ipv4Addr,
    shared: Arc<Shared>,
}

struct Shared {
    socket: UdpSocket,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    names: HashMap<String, Vec<IpAddr>>,
    held: HashSet<String>,
    waiting: Vec<(String, Vec<u8>, SocketAddr)>,
    asked: HashMap<String, usize>,
    over: bool,
}

impl Default for Dns {
    fn default() -> Dns {
        Dns::start()
    }
}

impl Dns {
    /// One that knows no name.
    pub fn start() -> Dns {
        let (address, socket) = wait_until("a free loopback address", || {
            let address = own_address();
            UdpSocket::bind((address, 53)).ok().map(|socket| (address, socket))
        });
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket option");
        let shared = Arc::new(Shared { socket, known: Mutex::default() });
        let serving = shared.clone();
        thread::spawn(move || serving.serve());
        Dns { address, shared }
    }

    /// These are the name's addresses from now on; none: it does not exist.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.known().names.insert(name.to_owned(), addresses.to_vec());
    }

    /// Questions for this name get no answer from now on.
    pub fn hold(&self, name: &str) {
        self.known().held.insert(name.to_owned());
    }

    /// Answers all questions for this name, those that wait and those to come.
    pub fn let_go(&self, name: &str) {
        let mut known = self.known();
        known.held.remove(name);
        let (now, later) =
            std::mem::take(&mut known.waiting).into_iter().partition(|(held, ..)| held == name);
        known.waiting = later;
        let now: Vec<_> = now;
        for (name, question, peer) in now {
            let _ = self.shared.socket.send_to(&known.answer(&name, &question), peer);
        }
    }

    /// How often this name's IPv4 addresses were asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.known().asked.get(name).copied().unwrap_or(0)
    }

    /// Starts the program as [`Setup::start`] does, in a mount namespace where this is the only
    /// name server. The system's resolver waits for its answers as long as any test runs.
    pub fn start_proxy(&self, setup: &Setup) -> Proxy {
        let resolv = setup.path("resolv.conf");
        let lines = format!(
            "nameserver {}\nsearch elsewhere.invalid\noptions timeout:30 attempts:5 ndots:0\n",
            self.address
        );
        std::fs::write(&resolv, lines).expect("resolv.conf");
        let nsswitch = setup.path("nsswitch.conf");
        std::fs::write(&nsswitch, "hosts: files dns\n").expect("nsswitch.conf");
        let mut script = format!("mount --bind {} /etc/resolv.conf", resolv.display());
        if Path::new("/etc/nsswitch.conf").exists() {
            script.push_str(&format!(" && mount --bind {} /etc/nsswitch.conf", nsswitch.display()));
        }
        setup.start_in(&["unshare", "--mount", "sh"], &script)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.shared.known.lock().unwrap()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        if let Ok(mut known) = self.shared.known.lock() {
            known.over = true;
        }
    }
}

/// A loopback address that is hardly anybody else's: whoever binds there has every port to himself.
pub fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = std::process::id().wrapping_mul(64) + NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, b, c, d] = number.to_be_bytes();
    // 127.64.0.0/10: away from the tests' named hosts, and from network and broadcast addresses.
    Ipv4Addr::new(127, 64 | (b & 63), c, d.clamp(1, 254))
}

impl Shared {
    fn serve(&self) {
        let mut buffer = [0; 1500];
        loop {
            let received = self.socket.recv_from(&mut buffer);
            let mut known = self.known.lock().unwrap();
            if known.over {
                return;
            }
            match received {
                Ok((len, peer)) => known.take(&self.socket, &buffer[..len], peer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("the name server: {error}"),
            }
        }
    }
}

impl Known {
    fn take(&mut self, socket: &UdpSocket, question: &[u8], peer: SocketAddr) {
        let Some((name, kind, _)) = parse(question) else { return };
        if kind == A {
            *self.asked.entry(name.clone()).or_default() += 1;
        }
        if self.held.contains(&name) {
            self.waiting.push((name, question.to_vec(), peer));
            return;
        }
        let _ = socket.send_to(&self.answer(&name, question), peer);
    }

    /// The whole answer to a question (RFC 1035 4.1).
    fn answer(&self, name: &str, question: &[u8]) -> Vec<u8> {
        let (_, kind, end) = parse(question).expect("a question");
        let addresses = self.names.get(name).map_or(&[][..], Vec::as_slice);
        let matching = addresses.iter().filter_map(|address| match (address, kind) {
            (IpAddr::V4(v4), A) => Some(v4.octets().to_vec()),
            (IpAddr::V6(v6), AAAA) => Some(v6.octets().to_vec()),
            _ => None,
        });
        let records: Vec<Vec<u8>> = matching.collect();
        let code = if addresses.is_empty() { 3 } else { 0 };
        let mut out = question[..2].to_vec();
        // An answer of authority, recursion wanted and to be had.
        out.extend([0x85, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
        out.extend(&question[12..end]);
        for record in records {
            // The question's name, the kind, class IN, no seconds to live.
            out.extend([0xC0, 12]);
            out.extend(kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, 0, 0, record.len() as u8]);
            out.extend(record);
        }
        out
    }
}

/// Name and kind of the first question, and where it ends.
fn parse(message: &[u8]) -> Option<(String, u16, usize)> {
    let mut at = 12;
    let mut labels = Vec::new();
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + len)?).to_lowercase());
        at += len;
    }
    let kind = u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}
