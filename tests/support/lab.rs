//! A lab: one network and mount namespace with addresses, names and certificates of its own, the
//! real programs that run in it, and a directory for what they write.
//!
//! Its addresses are ordinary ones (a lab has no way to any other network), so that clients which
//! treat 127.0.0.0/8 as special behave as in the field. Ports are fixed: no two labs meet.
//!
//! What must stay true: a lab leaves nothing behind. Every program dies with the test's thread, and
//! the namespaces with the last program.

pub mod clients;
pub mod image;
pub mod public;
pub mod registry;
pub mod site;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::certs::Authority;

const PROXY: &str = "127.0.0.1:17080";
const ADMIN: &str = "127.0.0.1:17081";
/// How long a program may take from its start to its first answer, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A program running in the lab; killed when dropped. What it prints goes to `log`.
pub struct Program {
    child: Child,
    pub log: PathBuf,
}

impl Program {
    /// Asks it to end, and kills it where it does not within ten seconds.
    pub fn stop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let limit = Instant::now() + Duration::from_secs(10);
        while Instant::now() < limit {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.kill();
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.printed();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("---- end of {}", self.log.display());
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The lab's network namespace, for sockets of the test's own.
#[derive(Clone)]
pub struct Namespace(Arc<File>);

impl Namespace {
    pub fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.inside(move || TcpListener::bind(address))
    }

    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.inside(move || TcpStream::connect(address))
    }

    /// Runs `make` on a thread of its own inside; a socket stays in the namespace it was made in.
    #[allow(unsafe_code)]
    pub fn inside<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(move || {
                // SAFETY: setns takes an open descriptor and a flag, and changes this thread alone.
                let result = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
                make()
            });
            entered.join().unwrap()
        })
    }
}

pub struct Lab {
    dir: PathBuf,
    hosts: PathBuf,
    addresses: AtomicU32,
    /// Signs the registries' certificates. The proxy trusts it, no client does.
    pub upstream: Authority,
    /// Signs the certificates of hosts that clients reach through a blind tunnel. Clients trust it.
    pub public: Authority,
    namespace: Namespace,
    holder: Child,
}

impl Lab {
    pub fn new(label: &str) -> Lab {
        let dir = env_dir().join(format!("{label}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let hosts = dir.join("hosts");
        fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
        let enter = "set -e; mount --bind \"$1\" /etc/hosts; ip link set lo up; echo ready; \
                     exec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "setpriv", "--pdeathsig", "KILL", "sh", "-c", enter, "lab"])
            .arg(&hosts)
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut ready = [0; 6];
        holder
            .stdout
            .take()
            .unwrap()
            .read_exact(&mut ready)
            .expect("namespaces can be made (root?)");
        let upstream = Authority::new("lab upstream CA");
        let public = Authority::new("lab public CA");
        let namespace = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
        let namespace = Namespace(Arc::new(namespace));
        Lab { dir, hosts, addresses: AtomicU32::new(2), upstream, public, namespace, holder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Gives the lab one more address, known by `name`.
    pub fn add_host(&self, name: &str) -> Ipv4Addr {
        let last = self.addresses.fetch_add(1, Ordering::Relaxed);
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 0, 0)) + last);
        run(self.command("ip").args(["addr", "add", &format!("{address}/32"), "dev", "lo"]));
        // In place: the bind mount holds on to the file, not to its name.
        let mut hosts = fs::OpenOptions::new().append(true).open(&self.hosts).unwrap();
        writeln!(hosts, "{address} {name}").unwrap();
        address
    }

    /// A command that runs inside, with nothing of the surrounding proxy and certificate settings.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.holder.id().to_string(), "--net", "--mount"])
            .args(["setpriv", "--pdeathsig", "KILL"])
            .arg(program.as_ref())
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
            .env("HOME", &self.dir)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Starts `command`, its output going to `<label>.log`.
    pub fn start(&self, label: &str, command: &mut Command) -> Program {
        let log = self.path(&format!("{label}.log"));
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let child = command
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap_or_else(|error| panic!("{label} starts: {error}"));
        Program { child, log }
    }

    /// Starts `command` and waits until `ready` says so.
    pub fn start_until(
        &self,
        label: &str,
        command: &mut Command,
        ready: impl Fn() -> bool,
    ) -> Program {
        let mut program = self.start(label, command);
        let limit = Instant::now() + START_LIMIT;
        while !ready() {
            assert!(program.is_running(), "{label} ended at its start:\n{}", program.printed());
            assert!(Instant::now() < limit, "{label} is not ready:\n{}", program.printed());
            thread::sleep(Duration::from_millis(50));
        }
        program
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.namespace.connect(address)
    }

    pub fn is_listening(&self, address: SocketAddr) -> bool {
        self.connect(address).is_ok()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if thread::panicking() {
            eprintln!("the lab's files are left in {}", self.dir.display());
        } else {
            // A program that was killed a moment ago may still be going.
            for _ in 0..50 {
                if fs::remove_dir_all(&self.dir).is_ok() {
                    return;
                }
                thread::sleep(Duration::from_millis(100));
            }
            eprintln!("{} could not be removed", self.dir.display());
        }
    }
}

/// The proxy's binary in a lab, with what its clients need to know of it.
pub struct Proxy {
    program: Program,
    cache: PathBuf,
    /// What a client trusts: the proxy's CA, and the public one for hosts that are not intercepted.
    pub bundle: PathBuf,
}

/// The counters of the admin port that the tests compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub hits: u64,
    pub misses: u64,
    pub stores: u64,
    pub errors: u64,
}

impl Proxy {
    pub const URL: &'static str = "http://127.0.0.1:17080";

    /// Starts it with TLS interception of `intercept`, logging at `level`, the rest at its defaults.
    pub fn start(lab: &Lab, intercept: &[&str], level: &str) -> Proxy {
        let dir = lab.path("proxy");
        fs::create_dir_all(&dir).unwrap();
        let config = dir.join("config.yaml");
        let upstream_ca = dir.join("upstream-ca.pem");
        fs::write(&upstream_ca, lab.upstream.pem()).unwrap();
        let text = format!(
            "proxy: {{bind: \"127.0.0.1\"}}\ntls: {{cert_dir: {dir}/certs, intercept: {intercept:?}, \
             upstream_ca: [{ca}]}}\ncache: {{dir: {dir}/cache}}\nlogging: {{level: {level}}}\n",
            dir = dir.display(),
            ca = upstream_ca.display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = lab.command(env!("CARGO_BIN_EXE_discobot-proxy"));
        command.arg("--config").arg(&config);
        let program = lab.start_until("proxy", &mut command, || {
            lab.is_listening(ADMIN.parse().unwrap()) && lab.is_listening(PROXY.parse().unwrap())
        });
        let bundle = lab.path("client-bundle.pem");
        let own = fs::read_to_string(dir.join("certs/ca.crt")).unwrap();
        fs::write(&bundle, own + lab.public.pem()).unwrap();
        Proxy { program, cache: dir.join("cache"), bundle }
    }

    /// Where the body of `digest` lies once it is stored.
    pub fn stored(&self, digest: &str) -> PathBuf {
        self.cache.join("blobs").join(digest.replace(':', "/"))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.program.printed()
    }

    /// A number of `/proc/PID/status`, such as VmRSS in KiB.
    pub fn status_number(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.program.child.id());
        let text = fs::read_to_string(path).expect("status");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
        line.split_whitespace().find_map(|word| word.parse().ok()).expect("a number")
    }

    pub fn stats(&self, lab: &Lab) -> Stats {
        let body = ask_admin(lab, "GET", "/api/cache/stats");
        let stats: serde_json::Value = serde_json::from_str(&body).expect("stats are JSON");
        let count = |name: &str| stats[name].as_u64().unwrap_or_else(|| panic!("{name}: {body}"));
        Stats {
            hits: count("hits"),
            misses: count("misses"),
            stores: count("stores"),
            errors: count("errors"),
        }
    }
}

/// The images that the admin port lists.
pub fn listed_images(lab: &Lab) -> Vec<serde_json::Value> {
    let body = ask_admin(lab, "GET", "/api/cache/images");
    let mut listed: serde_json::Value = serde_json::from_str(&body).expect("a list is JSON");
    match listed["images"].take() {
        serde_json::Value::Array(images) => images,
        _ => panic!("{body}"),
    }
}

/// Tells the admin port to remove `path`.
pub fn delete(lab: &Lab, path: &str) {
    ask_admin(lab, "DELETE", path);
}

/// The body of the admin port's 200 answer.
fn ask_admin(lab: &Lab, method: &str, path: &str) -> String {
    let mut stream = lab.connect(ADMIN.parse().unwrap()).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer with a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{method} {path}: {head}");
    body.to_owned()
}

/// Runs a command that must succeed and gives what it printed.
pub fn run(command: &mut Command) -> String {
    match attempt(command) {
        Ok(printed) => printed,
        Err(why) => panic!("{why}"),
    }
}

/// Runs a command; `Err` holds the command and what it said where it failed.
pub fn attempt(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?}: {}\n{printed}{said}", output.status))
}

/// Where labs and images lie: cargo's directory for tests' files, on disk and not in the clone.
fn env_dir() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("lab");
    fs::create_dir_all(&dir).unwrap();
    dir
}
