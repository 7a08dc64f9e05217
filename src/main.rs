//! The command line.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use discobot_proxy::cache::{self, Progress};
use discobot_proxy::config::{Config, ConfigError};
use discobot_proxy::logging::LogOutput;
use discobot_proxy::net::Ca;
use discobot_proxy::policy::Policy;
use discobot_proxy::proxy::refuse_own_parent;
use discobot_proxy::server::{Server, StartError, upstream_tls};
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
    Ca,
    /// Read the whole cache again, beside a running proxy or without one; remove what is damaged.
    ///
    /// Exit code 0: all entries are whole. 3: damaged ones were found, and removed.
    Verify,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return complain(2, &error),
    };
    match arguments.command {
        None => run(config),
        Some(Command::Check) => check(&config),
        Some(Command::Ca) => ca(&config),
        Some(Command::Verify) => verify(&config),
    }
}

fn load(file: Option<&Path>) -> Result<Config, ConfigError> {
    Config::load(file, |name| std::env::var(name).ok())
}

fn check(config: &Config) -> ExitCode {
    let checked = Policy::compile(config)
        .and_then(|policy| upstream_tls(config, &policy))
        .and_then(|_| refuse_own_parent(config));
    if let Err(error) = checked {
        return complain(2, &error);
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
    match Ca::open(&config.tls.cert_dir) {
        Ok(ca) => print(ca.certificate_pem()),
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

fn run(config: Config) -> ExitCode {
    // Before any thread starts, so that all of them inherit it.
    if let Err(error) = process::block_signals() {
        return complain(1, &error);
    }
    let log = match LogOutput::start(&config.logging) {
        Ok(log) => log,
        Err(error) => return complain(1, &error),
    };
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a bug: please report it")));
    let server = match Server::start(config) {
        Ok(server) => server,
        Err(error @ StartError::Config(_)) => return complain(2, &error),
        Err(error) => return complain(1, &error),
    };
    say_ready(&server);
    loop {
        match process::wait_signal() {
            Ok(Signal::Reopen) => {
                log.reopen();
                tracing::info!("log reopened");
            }
            Ok(Signal::Stop) => break,
            Err(error) => {
                tracing::error!(%error, "signals can't be waited for");
                break;
            }
        }
    }
    tracing::info!("stopping: running transfers may finish, a second signal ends them");
    server.stop();
    std::thread::spawn(|| {
        while !matches!(process::wait_signal(), Ok(Signal::Stop) | Err(_)) {}
        std::process::exit(0);
    });
    server.join();
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

fn complain(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    // Where nobody reads that, the exit code says it.
    let _ = writeln!(std::io::stderr(), "discobot-proxy: {error}");
    ExitCode::from(code)
}
