//! discobot-proxy: a caching proxy that makes container pulls fast.
//!
//! # The idea
//!
//! **A cache entry is a file that grows, and every client, the first one included, is a reader at
//! its own offset.** One *fill* per key appends; any number of readers follow it; a finished entry
//! is the same thing whose length has stopped changing. Hit, miss, joined miss and range are one
//! body path: [`proxy`]'s `deliver`.
//!
//! # Layers
//!
//! | layer | modules | may use |
//! |---|---|---|
//! | 3 | `main`, [`server`], [`logging`], [`doctor`], [`command`] | everything below |
//! | 2 | [`proxy`], [`images`], [`live`], [`admin`] | layers 1 and 0 |
//! | 1 | [`policy`] | http, key, config |
//! | 1 | [`cache`] | sys, key, stats |
//! | 1 | [`net`] | sys, http |
//! | 0 | [`sys`], [`http`], [`key`], [`stats`], [`config`] | nothing of the crate |
//!
//! `cache` knows bytes, not HTTP. `net` sends stretches of files and does not know what an entry
//! is.
//! `policy` decides and never does. Only `proxy` knows all three.
//!
//! # How a request flows
//!
//! A `session` reads a head; `exchange` asks policy whether it is allowed and under which
//! [`key::Key`] its answer lies, and the cache whether it is there.
//!
//! - **Hit**: the reader's spans go to the client, by `sendfile` or through TLS.
//! - **Miss**: upstream is asked, redirects are followed, a fill is spawned, and the client becomes
//!   its first reader. A client that leaves ends its reader, not the fill.
//! - **Join**: somebody fills it already: what is written goes out at once, the rest as it grows.
//! - **Pass**: request up, answer down, nothing kept.
//! - **Tunnel**: CONNECT is relayed as bytes, or opened with a leaf of our own CA; inside, a new
//!   session runs.
//!
//! # The configuration
//!
//! A core's `Worker` is made of one configuration and never changes. Another configuration
//! ([`live`]) makes another worker; each request keeps the one it began with.
//!
//! # Threads
//!
//! One runtime thread per core, each with listeners of its own (`SO_REUSEPORT`), upstream
//! connections of its own, and the fills its clients began. [`cache::Cache`], its entries,
//! [`net::Resolver`] and [`stats::Stats`] are all that is shared. What blocks runs on helper
//! threads: files being opened, named and removed. Names are looked up on threads of their own: a
//! look-up that hangs keeps nothing else; passwords of the proxy's users are compared on two more.
//! The janitor thread unlinks what was evicted and writes
//! down last uses.

#![deny(unsafe_code)]
#![warn(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

pub mod sys;

pub mod config;
pub mod http;
pub mod key;
pub mod stats;

pub mod cache;
pub mod net;
pub mod policy;

pub mod admin;
pub mod images;
pub mod live;
pub mod proxy;

pub mod command;
pub mod doctor;
pub mod logging;
pub mod server;
