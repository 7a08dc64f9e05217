//! The command line.

#![forbid(unsafe_code)]

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use discobot_proxy::cache::{self, Progress};
use discobot_proxy::command::admin::{self, Failure};
use discobot_proxy::command::warm;
use discobot_proxy::config::{Config, Source};
use discobot_proxy::doctor::{self, Finding};
use discobot_proxy::live::upstream_tls;
use discobot_proxy::logging::LogOutput;
use discobot_proxy::net::Ca;
use discobot_proxy::policy::Policy;
use discobot_proxy::proxy::{Users, refuse_own_parent};
use discobot_proxy::server::{Event, Server, StartError, ca_options, open_doors, tell};
use discobot_proxy::sys::process::{self, Signal};
use indicatif::{ProgressBar, ProgressStyle};

/// A caching proxy for Linux that makes container pulls fast.
///
/// Without a command it runs the proxy, with ./config.yaml where that exists, else with defaults.
#[derive(Parser)]
#[command(
    version,
    after_help = "Environment, over the file: CONFIG_FILE PROXY_PORT API_PORT \
    CERT_DIR LOG_LEVEL LOG_FORMAT\nExit codes: 0 after SIGTERM or SIGINT, 2 for a bad \
    configuration, 3 for a damaged cache, 1 for the rest"
)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Read the configuration and print it as it takes effect.
    Check,
    /// Make the CA where there is none, and print its certificate (PEM).
    Ca {
        #[command(subcommand)]
        command: Option<CaCommand>,
    },
    /// Read the whole cache again, beside a running proxy or without one; remove what is damaged.
    ///
    /// Exit code 0: all entries are whole. 3: damaged ones were found, and removed.
    Verify,
    /// Ask the proxy that runs here with this configuration whether it is well; for a container.
    Health,
    /// Pull images through a running proxy, so that later pulls come from its cache.
    ///
    /// Every part is checked against its digest and thrown away. Private images are pulled with the
    /// credentials that Docker, podman and their helpers keep for this user. Exit code 1: an image
    /// failed, and is named with its reason; the others are pulled all the same.
    Warm(warm::Options),
    #[command(flatten)]
    Admin(admin::Command),
    /// Print a completion script, for a file that the shell reads at its start.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual's pages, as files for `man`.
    #[command(hide = true)]
    Man {
        /// The directory they are written to.
        directory: PathBuf,
    },
    /// Look at this client, or at the proxy's host, and say what keeps pulls from the cache.
    ///
    /// Each finding is ok, warn or fail, with the command that mends it. Exit code 1: one failed.
    Doctor {
        /// Where the proxy is; else HTTPS_PROXY, else this machine.
        #[arg(long, value_name = "URL")]
        proxy: Option<String>,
        /// The system to look at.
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
        /// An image to try: a little of it is pulled, twice.
        image: Option<String>,
    },
}

#[derive(Subcommand)]
enum CaCommand {
    /// Make a new CA in place of the one that is there, and print its certificate (PEM).
    ///
    /// The old one's files are kept beside it. A running proxy goes on with the old CA until it is
    /// restarted; have clients trust the new one before that.
    Rotate,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let source = Source { file: arguments.config };
    let configured = |act: fn(Config) -> ExitCode| match source.load() {
        Ok(config) => act(config),
        Err(error) => complain(2, &error),
    };
    match arguments.command {
        None => match source.load() {
            Ok(config) => run(config, source),
            Err(error) => complain(2, &error),
        },
        Some(Command::Check) => configured(|config| check(&config)),
        Some(Command::Ca { command: None }) => configured(|config| ca(&config)),
        Some(Command::Ca { command: Some(CaCommand::Rotate) }) => {
            configured(|config| rotate(&config))
        }
        Some(Command::Verify) => configured(|config| verify(&config)),
        Some(Command::Doctor { proxy, root, image }) => {
            let options = doctor::Options { proxy, root, image };
            match source.load() {
                Ok(config) => examine(&config, &options),
                Err(error) => complain(2, &error),
            }
        }
        Some(Command::Health) => configured(|config| health(&config)),
        Some(Command::Warm(options)) => match source.load() {
            Ok(config) => warm_up(&config, &options),
            Err(error) => complain(2, &error),
        },
        Some(Command::Admin(command)) => match source.load() {
            Ok(config) => administer(&config, &command),
            Err(error) => complain(2, &error),
        },
        Some(Command::Completions { shell }) => completions(shell),
        Some(Command::Man { directory }) => manual(&directory),
    }
}

fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn manual(directory: &Path) -> ExitCode {
    match clap_mangen::generate_to(Arguments::command(), directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(1, &format!("{}: {error}", directory.display())),
    }
}

fn check(config: &Config) -> ExitCode {
    let checked = Policy::compile(config)
        .and_then(|policy| upstream_tls(config, &policy))
        .and_then(|_| refuse_own_parent(config))
        .and_then(|()| Users::inspect(config));
    if let Err(error) = checked {
        return complain(2, &error);
    }
    // There need not be a CA yet; one that is there has to do.
    match Ca::inspect(&ca_options(config)) {
        Ok(ca) => ca.iter().for_each(warn),
        Err(error) => return complain(1, &error),
    }
    for door in open_doors(config) {
        say(&format_args!("warning: {door}"));
    }
    print(&config.to_yaml())
}

/// Prints what a command was asked for. Whoever reads it may have seen enough and gone: that is no
/// failure.
fn print(text: &str) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            complain(1, &format!("standard output: {error}"))
        }
        _ => ExitCode::SUCCESS,
    }
}

fn ca(config: &Config) -> ExitCode {
    match Ca::open(&ca_options(config)) {
        Ok(ca) => {
            warn(&ca);
            print(ca.certificate_pem())
        }
        Err(error) => complain(1, &error),
    }
}

fn rotate(config: &Config) -> ExitCode {
    let rotated = match Ca::rotate(&ca_options(config)) {
        Ok(rotated) => rotated,
        Err(error) => return complain(1, &error),
    };
    warn(&rotated.ca);
    for path in &rotated.kept {
        say(&format_args!("the old CA is kept in {}", path.display()));
    }
    say(&format_args!(
        "next: 1. have every client trust the new certificate, {}, beside the old one; 2. restart \
         the proxy: until then it uses the old CA (SIGHUP is not enough); 3. take the old \
         certificate from the clients, and delete the old key",
        rotated.ca.certificate_path().display()
    ));
    print(rotated.ca.certificate_pem())
}

fn warn(ca: &Ca) {
    for warning in ca.warnings() {
        say(&format_args!("warning: {warning}"));
    }
}

fn examine(config: &Config, options: &doctor::Options) -> ExitCode {
    let mut tell = |finding: &Finding| _ = print(&finding.to_string());
    match doctor::examine(config, options, &mut tell) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => complain(2, &error),
    }
}

fn warm_up(config: &Config, options: &warm::Options) -> ExitCode {
    let mut tell = |line: &str| _ = print(&format!("{line}\n"));
    match warm::run(config, options, &mut tell, &mut |failure| say(failure)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => complain(2, &error),
    }
}

fn administer(config: &Config, command: &admin::Command) -> ExitCode {
    match admin::run(config, command, &mut std::io::stdout().lock()) {
        Ok(()) | Err(Failure::Gone) => ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => complain(2, &error),
        Err(Failure::Failed(error)) => complain(1, &error),
    }
}

fn health(config: &Config) -> ExitCode {
    match doctor::health(config) {
        Ok(said) => print(&format!("{}\n", said.trim_end())),
        Err(error) => complain(1, &error),
    }
}

/// Exit code of a verification that found damage, and removed it.
const DAMAGED: u8 = 3;

fn verify(config: &Config) -> ExitCode {
    let bar = ProgressBar::new(0).with_style(bar_style());
    let tell = |progress: Progress<'_>| match progress {
        Progress::Total(bytes) => bar.set_length(bytes),
        Progress::Read(bytes) => bar.inc(bytes),
        Progress::Damaged(key, why) => {
            // The exit code tells, and the removal goes on, where nobody reads it.
            bar.suspend(|| _ = print(&format!("damaged, removed: {}: {why}\n", key.hex())));
        }
    };
    let result = cache::verify(&config.cache.dir, &tell);
    bar.finish_and_clear();
    match result {
        Ok(report) => {
            let printed = print(&format!(
                "{} whole, {} damaged and removed, {} gone meanwhile, {} bytes read\n",
                report.whole, report.damaged, report.gone, report.bytes
            ));
            if report.damaged == 0 { printed } else { ExitCode::from(DAMAGED) }
        }
        Err(error) => complain(1, &format!("{}: {error}", config.cache.dir.display())),
    }
}

/// On a terminal only: elsewhere nothing is drawn.
fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Why the proxy ends though nobody told it to.
const LOST: &str = "a worker thread ended by a bug, which the log names";

fn run(config: Config, source: Source) -> ExitCode {
    // Before any thread starts, so that all of them inherit it.
    if let Err(error) = process::block_signals().and_then(|()| process::forbid_core_dumps()) {
        return complain(1, &error);
    }
    let log = match LogOutput::start(&config.logging) {
        Ok(log) => log,
        Err(error) => return complain(1, &error),
    };
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a bug: please report it")));
    let server = match Server::start(config, source, log.set_level()) {
        Ok(server) => server,
        Err(error @ StartError::Config(_)) => return complain(2, &error),
        Err(error) => return complain(1, &error),
    };
    say_ready(&server);
    tell(Event::Ready);
    loop {
        match process::wait_signal() {
            Ok(Signal::Reopen) => {
                tell(Event::Reloading);
                log.reopen();
                tracing::info!("log reopened");
                server.reload();
                tell(Event::Ready);
            }
            Ok(Signal::Stop) if server.has_lost_worker() => return complain(1, &LOST),
            Ok(Signal::Stop) => break,
            Err(error) => {
                tracing::error!(%error, "signals can't be waited for");
                break;
            }
        }
    }
    tell(Event::Stopping);
    tracing::info!("stopping: running transfers may finish, a second signal ends them");
    let stop = server.stop();
    let second = Arc::clone(&stop);
    std::thread::spawn(move || {
        while !matches!(process::wait_signal(), Ok(Signal::Stop) | Err(_)) {}
        second.at_once();
    });
    server.join();
    if stop.has_lost_worker() {
        return complain(1, &LOST);
    }
    tracing::info!("stopped");
    ExitCode::SUCCESS
}

fn say_ready(server: &Server) {
    let join = |addresses: &[std::net::SocketAddr]| {
        addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    };
    tracing::info!(
        proxy = %join(&server.proxy),
        admin = %join(&[server.admin]),
        ca = %server.ca.certificate_path().display(),
        driver = %server.driver,
        workers = server.workers,
        "ready: point clients at the proxy address and have them trust the CA"
    );
}

fn say(what: &dyn std::fmt::Display) {
    // Where nobody reads that, the exit code says it.
    let _ = writeln!(std::io::stderr(), "discobot-proxy: {what}");
}

fn complain(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    say(error);
    ExitCode::from(code)
}
