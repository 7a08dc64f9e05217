//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  One blob through the proxy as 64 clients ask for it, for ten seconds, each body checked:
    load.sh --proxy 127.0.0.1:17080 --ca certs/ca.crt -c 64 --body hash \\
      https://registry.example.com/v2/app/blobs/sha256:HEX
  What clients wait for at 500 requests a second, whatever the proxy does, with what it costs it:
    load.sh --proxy 127.0.0.1:17080 -c 32 --rate 500 --pid \"$(pidof discobot-proxy)\" \\
      http://registry.example.com/v2/app/manifests/sha256:HEX
  With a token:
    load.sh --header 'Authorization: Bearer TOKEN' ...

Ends with 0 where all answers were right, with 1 where some were not.";

/// Loads a caching proxy (or any HTTP/1.1 server) and says what it costs.
///
/// The way there follows from the URL: http:// with --proxy is asked in absolute form, https://
/// with --proxy through CONNECT and TLS inside, and without --proxy the server is asked itself.
#[derive(Parser)]
#[command(name = "load", bin_name = "load.sh", after_help = EXAMPLES)]
pub struct Args {
    /// What is asked for, by turns; the letter n in braces stands for a number that is another one
    /// in each request
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

    /// A field of each request, 'NAME: VALUE'; may be given several times
    #[arg(long)]
    pub header: Vec<String>,

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

    /// What becomes of the bodies; said twice, the last counts
    #[arg(long, value_enum, default_value_t = Bodies::Read, overrides_with = "body")]
    pub body: Bodies,

    /// Meanwhile have another process, of the lowest priority, ask for this and drop the bodies
    #[arg(long, conflicts_with = "requests")]
    pub beside: Option<String>,

    /// Connections of --beside
    #[arg(long, default_value_t = 8)]
    pub beside_connections: u32,

    /// Further connections that ask for --beside's URL and read nothing
    #[arg(long, default_value_t = 0, requires = "beside")]
    pub unread: u32,

    /// Latency counts to the first byte of a body instead of its last
    #[arg(long)]
    pub first_byte: bool,

    /// Open the connections, ask once on each, and say what each costs --pid in memory at rest
    #[arg(long, requires = "pid")]
    pub idle: bool,

    /// The server's process: its CPU seconds and its children's are read
    #[arg(long)]
    pub pid: Option<u32>,

    /// The core that the server has to itself: what others take of it is told
    #[arg(long, requires = "pid")]
    pub core: Option<u32>,

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
