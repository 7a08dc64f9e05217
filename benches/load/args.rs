//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Loads a caching proxy (or any HTTP/1.1 server) and says what it costs.
///
/// The way there follows from the URL: http:// with --proxy is asked in absolute form, https://
/// with --proxy through CONNECT and TLS inside, and without --proxy the server is asked itself.
#[derive(Parser)]
#[command(name = "load")]
pub struct Args {
    /// What is asked for, by turns; {n} stands for a number that is another one in each request
    #[arg(required = true)]
    pub urls: Vec<String>,

    /// The proxy to go through, HOST:PORT
    #[arg(long)]
    pub proxy: Option<String>,

    /// Connect here instead of to the URL's host, HOST:PORT
    #[arg(long, conflicts_with = "proxy")]
    pub connect: Option<String>,

    /// Certificate authorities to trust, PEM
    #[arg(long)]
    pub ca: Option<PathBuf>,

    /// Connections at once
    #[arg(long, short = 'c', default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: u32,

    /// Requests per second, begun on time whatever the server does; latency counts from that time.
    /// Without it every connection asks again as soon as it has its answer
    #[arg(long)]
    pub rate: Option<f64>,

    /// Seconds to measure
    #[arg(long, short = 'd', default_value_t = 10.0)]
    pub duration: f64,

    /// Seconds before that
    #[arg(long, default_value_t = 0.0)]
    pub warm_up: f64,

    /// End after so many requests instead; there is no warm-up then
    #[arg(long, short = 'n')]
    pub requests: Option<u64>,

    /// A connection of its own for every request
    #[arg(long)]
    pub new_connection: bool,

    /// Ask for pieces of so many bytes, each from another place of the body
    #[arg(long)]
    pub range: Option<u64>,

    /// What becomes of the bodies
    #[arg(long, value_enum, default_value_t = Bodies::Read)]
    pub body: Bodies,

    /// Meanwhile have another process, of the lowest priority, ask for this and drop the bodies
    #[arg(long, conflicts_with = "requests")]
    pub beside: Option<String>,

    /// Connections of --beside
    #[arg(long, default_value_t = 8)]
    pub beside_connections: u32,

    /// Open the connections, ask once on each, and say what each costs --pid in memory at rest
    #[arg(long, requires = "pid")]
    pub idle: bool,

    /// The server's process: its CPU seconds and its children's are read
    #[arg(long)]
    pub pid: Option<u32>,

    /// What the results are called
    #[arg(long, default_value = "load")]
    pub name: String,

    /// Write the results here, as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,

    /// Write the latencies here, as HdrHistogram's percentiles
    #[arg(long)]
    pub hgrm: Option<PathBuf>,
}

/// What becomes of bodies.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bodies {
    /// Thrown away in the kernel, never copied; with TLS from the second record on, unread
    Drop,
    /// Read, and decrypted with TLS
    Read,
    /// Read and compared with the digest in the URL
    Hash,
}
