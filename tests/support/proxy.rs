//! The binary under test, in a directory of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::certs::{Authority, Trust};
use super::client::{Client, Payload, Response};
use super::origin::Origin;
use super::{DEADLINE, names, seccomp, wait_until};

/// Variables the program reads, and those that would steer a client: no test inherits them.
const VARIABLES: &[&str] = &[
    "CONFIG_FILE",
    "PROXY_PORT",
    "API_PORT",
    "CERT_DIR",
    "LOG_LEVEL",
    "LOG_FORMAT",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
];

/// Set to anything, this variable has every proxy of the tests hand TLS over to the kernel, which
/// must be able to take it.
pub const KTLS: &str = "DISCOBOT_KTLS";

/// A directory and a configuration; the program can be started on them several times.
pub struct Setup {
    dir: TempDir,
    config: Value,
    env: Vec<(String, String)>,
    /// What calls of io_uring fail with, if they are to.
    refused_io_uring: Option<i32>,
    /// System calls that fail with EIO.
    failing: &'static [libc::c_long],
}

impl Default for Setup {
    fn default() -> Setup {
        Setup::new()
    }
}

impl Setup {
    /// Loopback allowed, free ports, two workers, the tests' registries intercepted and trusted.
    pub fn new() -> Setup {
        names::register();
        let dir = tempfile::Builder::new().prefix("discobot-").tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
        std::fs::write(path("upstream-ca.pem"), Authority::trusted().pem()).expect("the CA file");
        let config = json!({
            "proxy": {
                "bind": "127.0.0.1", "port": 0, "api_bind": "127.0.0.1", "api_port": 0,
                "workers": 2, "deny_destinations": [],
            },
            "tls": {
                "cert_dir": path("certs"),
                "intercept": [names::REGISTRY, names::SECOND],
                "upstream_ca": [path("upstream-ca.pem")],
            },
            "cache": {
                "dir": path("cache"), "max_size": "1GB", "min_free": "1MiB", "access": "trust",
            },
            "upstream": { "connect_timeout": "5s", "read_timeout": "60s" },
            "limits": { "shutdown_grace": "20s" },
        });
        let setup = Setup { dir, config, env: Vec::new(), refused_io_uring: None, failing: &[] };
        match std::env::var_os(KTLS) {
            Some(_) => setup.with(json!({ "tls": { "ktls": "on" } })),
            None => setup,
        }
    }

    /// Merges these keys into the configuration.
    pub fn with(mut self, keys: Value) -> Setup {
        self.set(keys);
        self
    }

    /// As [`Setup::with`], for a setup already in use.
    pub fn set(&mut self, keys: Value) {
        merge(&mut self.config, keys);
    }

    /// Starts the program with this variable.
    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the program where every call of io_uring fails with this error.
    pub fn without_io_uring(mut self, errno: i32) -> Setup {
        self.refused_io_uring = Some(errno);
        self
    }

    /// From now on the program starts on a medium that takes none of these calls (EIO).
    pub fn fail(&mut self, calls: &'static [libc::c_long]) {
        self.failing = calls;
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the body of a digest lies.
    pub fn blob(&self, sha256: &str) -> PathBuf {
        self.path("cache/blobs/sha256").join(sha256)
    }

    /// The program, its files in our directory, not started yet.
    pub fn command(&self) -> Command {
        self.wrapped(env!("CARGO_BIN_EXE_discobot-proxy"), &[])
    }

    /// Another program, with our directory and environment, not started yet.
    pub fn wrapped(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments);
        for name in VARIABLES {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        match self.refused_io_uring {
            Some(errno) => seccomp::forbid_io_uring(&mut command, errno),
            None => seccomp::heed_environment(&mut command),
        }
        if !self.failing.is_empty() {
            seccomp::refuse(&mut command, self.failing, libc::EIO);
        }
        command
    }

    /// Writes the configuration; its path.
    pub fn write_config(&self) -> PathBuf {
        let file = self.path("config.yaml");
        let mut text = String::new();
        write_yaml(&self.config, 0, &mut text);
        std::fs::write(&file, text).expect("the configuration");
        file
    }

    /// Starts it and waits until both ports are open.
    pub fn start(&self) -> Proxy {
        let proxy = self.launch();
        proxy.wait_ready();
        proxy
    }

    /// Starts it and does not wait.
    pub fn launch(&self) -> Proxy {
        let mut command = self.command();
        command.arg("--config").arg(self.write_config());
        let mut proxy = Proxy::spawn(&mut command, self.path("certs/ca.crt"));
        let file = self.config["logging"]["file"].as_str().filter(|file| !file.is_empty());
        proxy.log_file = file.map(PathBuf::from);
        proxy
    }

    /// Starts it with these arguments and waits until both ports are open.
    pub fn start_with(&self, arguments: &[&str]) -> Proxy {
        let mut command = self.command();
        command.args(arguments);
        let proxy = Proxy::spawn(&mut command, self.path("certs/ca.crt"));
        proxy.wait_ready();
        proxy
    }

    /// Starts it from a shell, after this command, and waits until both ports are open.
    pub fn start_after(&self, shell: &str) -> Proxy {
        self.start_in(&["sh"], shell)
    }

    /// As [`Setup::start_after`], with this command line for the shell.
    pub fn start_in(&self, line: &[&str], shell: &str) -> Proxy {
        let (binary, config) = (env!("CARGO_BIN_EXE_discobot-proxy"), self.write_config());
        let script = format!("{shell} && exec {binary} --config {}", config.display());
        let arguments = [&line[1..], &["-c", &script]].concat();
        let mut command = self.wrapped(line[0], &arguments);
        let proxy = Proxy::spawn(&mut command, self.path("certs/ca.crt"));
        proxy.wait_ready();
        proxy
    }

    /// Runs it with these arguments to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command();
        command.args(arguments);
        run(&mut command)
    }

    /// Starts it on its configuration and expects it to end by itself.
    pub fn run_config(&self) -> Finished {
        let file = self.write_config();
        self.run(&["--config", file.to_str().expect("UTF-8")])
    }
}

/// What a program that ended by itself left.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end; fails the test when it does not end.
pub fn run(command: &mut Command) -> Finished {
    let mut proxy = Proxy::spawn(command, PathBuf::new());
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(status) = proxy.child.try_wait().expect("waiting for it") {
            proxy.join_output();
            let text = |lines: &Lines| lines.lock().unwrap().join("\n");
            let (stdout, stderr) = (text(&proxy.stdout), text(&proxy.stderr));
            return Finished { code: status.code(), stdout, stderr };
        }
        assert!(Instant::now() < end, "it runs on: {}", proxy.output());
        thread::sleep(Duration::from_millis(5));
    }
}

type Lines = Arc<Mutex<Vec<String>>>;

/// The running program; killed with its value.
pub struct Proxy {
    child: Child,
    stdout: Lines,
    stderr: Lines,
    readers: Vec<thread::JoinHandle<()>>,
    ca: PathBuf,
    log_file: Option<PathBuf>,
    /// The line that says where it listens, once it was there.
    ready: OnceLock<String>,
    started: Instant,
}

impl Proxy {
    fn spawn(command: &mut Command, ca: PathBuf) -> Proxy {
        let started = Instant::now();
        let mut child = command.spawn().expect("starting the binary");
        let mut readers = Vec::new();
        let mut collect = |pipe: Option<Box<dyn Read + Send>>| {
            let lines = Lines::default();
            let pipe = BufReader::new(pipe.expect("a pipe"));
            let sink = lines.clone();
            readers.push(thread::spawn(move || {
                for line in pipe.split(b'\n').map_while(Result::ok) {
                    sink.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                }
            }));
            lines
        };
        let stdout = collect(child.stdout.take().map(|pipe| Box::new(pipe) as _));
        let stderr = collect(child.stderr.take().map(|pipe| Box::new(pipe) as _));
        let ready = OnceLock::new();
        Proxy { child, stdout, stderr, readers, ca, log_file: None, ready, started }
    }

    fn join_output(&mut self) {
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
    }

    /// When it was spawned.
    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until both ports are open.
    pub fn wait_ready(&self) {
        let end = Instant::now() + DEADLINE;
        while self.port("admin").is_none() || self.port("proxy").is_none() {
            let ended = self.readers.iter().all(thread::JoinHandle::is_finished);
            assert!(!ended, "it ended instead of listening: {}", self.output());
            assert!(Instant::now() < end, "it does not listen: {}", self.output());
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn port(&self, name: &str) -> Option<SocketAddr> {
        if self.ready.get().is_none() {
            let is_it = |line: &String| line.contains("proxy") && line.contains("admin");
            let _ = self.ready.set(self.log().into_iter().find(is_it)?);
        }
        let line = self.ready.get()?;
        // `name=ADDRESS` in the text format, `"name":"ADDRESS"` in JSON.
        let (_, rest) = line
            .split_once(&format!("{name}="))
            .or_else(|| line.split_once(&format!("\"{name}\":\"")))?;
        rest.split([' ', '"', ',']).next()?.parse().ok()
    }

    /// Log lines so far, from standard output or the configured file.
    pub fn log(&self) -> Vec<String> {
        match &self.log_file {
            None => self.stdout.lock().unwrap().clone(),
            Some(file) => {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                text.lines().map(str::to_owned).collect()
            }
        }
    }

    /// The proxy port.
    pub fn address(&self) -> SocketAddr {
        self.port("proxy").expect("the start-up line")
    }

    /// The admin port.
    pub fn admin_address(&self) -> SocketAddr {
        self.port("admin").expect("the start-up line")
    }

    /// Trust in its CA.
    pub fn trust(&self) -> Trust {
        Trust::pem(&std::fs::read_to_string(&self.ca).expect("ca.crt"))
    }

    /// A connection for requests to this origin: plain, or TLS inside a tunnel.
    pub fn client(&self, origin: &Origin) -> Client {
        match origin.is_tls() {
            true => Client::secure(self.address(), &origin.authority(), &self.trust()),
            false => self.plain(),
        }
    }

    /// A plain connection.
    pub fn plain(&self) -> Client {
        Client::plain(self.address())
    }

    /// GET on a connection of its own.
    pub fn get(&self, origin: &Origin, path: &str) -> Response {
        self.get_with(origin, path, &[])
    }

    /// GET with these fields, on a connection of its own.
    pub fn get_with(&self, origin: &Origin, path: &str, fields: &[(&str, &str)]) -> Response {
        self.client(origin).get_with(&origin.url(path), fields)
    }

    /// A request to the admin port.
    pub fn admin(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
        let address = self.admin_address();
        let mut client = Client::direct(address, &address.to_string());
        client.request(method, path, fields, Payload::None)
    }

    /// `/api/cache/stats`.
    pub fn stats(&self) -> Value {
        let response = self.admin("GET", "/api/cache/stats", &[]);
        assert_eq!(response.status, 200, "{response:?}");
        response.json()
    }

    /// One counter of the stats.
    #[track_caller]
    pub fn stat(&self, name: &str) -> u64 {
        let stats = self.stats();
        stats[name].as_u64().unwrap_or_else(|| panic!("no counter {name} in {stats}"))
    }

    /// Waits until this counter has this value.
    #[track_caller]
    pub fn wait_stat(&self, name: &str, value: u64) {
        let mut last = 0;
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            last = self.stat(name);
            if last == value {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("{name} is {last}, not {value}: {}", self.output());
    }

    /// Standard output and standard error so far.
    pub fn output(&self) -> String {
        let text = |lines: &Lines| lines.lock().unwrap().join("\n");
        format!("--- stdout\n{}\n--- stderr\n{}", text(&self.stdout), text(&self.stderr))
    }

    /// Waits for a log line with all of these parts, and gives it.
    pub fn wait_log(&self, parts: &[&str]) -> String {
        wait_until(&format!("a log line with {parts:?}"), || {
            self.log().into_iter().find(|line| parts.iter().all(|part| line.contains(part)))
        })
    }

    /// Sends a signal, by name.
    pub fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.pid());
        let status = Command::new("sh").args(["-c", &line]).status().expect("sh");
        assert!(status.success(), "{line}");
    }

    /// Waits for the end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let status = wait_until("the program's end", || self.child.try_wait().expect("waiting"));
        self.join_output();
        status
    }

    /// SIGTERM; the exit code and all that was logged.
    pub fn terminate(mut self) -> (Option<i32>, String) {
        self.signal("TERM");
        let status = self.wait_exit();
        (status.code(), self.output())
    }

    /// SIGTERM, which must end it with exit code 0; all that was logged.
    #[track_caller]
    pub fn stop(self) -> String {
        let (code, output) = self.terminate();
        assert_eq!(code, Some(0), "{output}");
        output
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A number of `/proc/PID/status`, such as VmRSS in KiB.
    pub fn status_number(&self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
        let digits: String = line.chars().filter(char::is_ascii_digit).collect();
        digits.parse().expect("a number")
    }

    /// Descriptors it has open.
    pub fn descriptors(&self) -> usize {
        let folder = Path::new("/proc").join(self.pid().to_string()).join("fd");
        std::fs::read_dir(folder).expect("its descriptors").count()
    }

    /// CPU time of each of its threads so far, in clock ticks.
    pub fn thread_ticks(&self) -> Vec<u64> {
        let tasks = Path::new("/proc").join(self.pid().to_string()).join("task");
        let tasks = std::fs::read_dir(tasks).expect("its threads").flatten();
        let ticks = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            // The name in parentheses may hold spaces; user and system time are the 12th and 13th
            // fields behind it.
            let rest = stat.rsplit_once(')')?.1;
            let fields: Vec<&str> = rest.split_whitespace().collect();
            Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
        };
        tasks.filter_map(ticks).collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.join_output();
            eprintln!("{}", self.output());
        }
    }
}

fn merge(base: &mut Value, keys: Value) {
    match (base, keys) {
        (Value::Object(base), Value::Object(keys)) => {
            for (name, value) in keys {
                merge(base.entry(name).or_insert(Value::Null), value);
            }
        }
        (base, keys) => *base = keys,
    }
}

/// Block-style YAML, as a user would write it.
fn write_yaml(value: &Value, depth: usize, out: &mut String) {
    let Value::Object(map) = value else {
        // JSON scalars and arrays are YAML too.
        out.push_str(&format!("{value}\n"));
        return;
    };
    for (name, value) in map {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(inner) if inner.is_empty() => {
                out.push_str(&format!("{indent}{}: {{}}\n", json!(name)));
            }
            Value::Object(_) => {
                out.push_str(&format!("{indent}{}:\n", json!(name)));
                write_yaml(value, depth + 1, out);
            }
            _ => {
                out.push_str(&format!("{indent}{}: ", json!(name)));
                write_yaml(value, depth + 1, out);
            }
        }
    }
}
