//! The process: listeners, one runtime thread per core, signals, the end.
//!
//! What can fail at the start fails before anything listens: sockets are bound first and listen
//! last.

mod accept;
mod bound;
mod clients;
mod helpers;
mod manager;
mod stop;
mod trust;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};
use socket2::Socket;
use thiserror::Error;

use self::accept::{accept_admin, accept_clients, listen};
use self::bound::Bound;
use self::clients::Clients;
use self::helpers::Helpers;
pub use self::manager::{Event, tell};
use self::manager::{Heart, watch};
pub use self::stop::Stop;
use self::stop::{AT_ONCE, STOPPING, Vital};
pub use self::trust::{ca_options, open_doors};
use crate::admin::Admin;
use crate::cache::{self, Cache};
use crate::config::{self, Config, ConfigError, Level, Source};
use crate::http::HeadLimits;
use crate::images::Images;
use crate::live::{Live, Settings};
use crate::net::{Ca, CaError, DialOptions, Dialer, Ktls, Resolver, race};
use crate::policy::Listeners;
use crate::proxy::{Access, Asking, Desk, Drain, Limits, Pseudonym, RequestIds, Worker};
use crate::stats::{SAMPLE, Stats};
use crate::sys;

/// Descriptors of our own: rings, listeners, logs, idle upstream connections.
const FILES_OWN: usize = 128;

/// Entries kept open where there are descriptors enough.
const ENTRIES_OPEN: usize = 1024;

/// Descriptors a client may need at once: its own, its upstream's, and two for a file being filled.
const FILES_PER_CONNECTION: usize = 4;

/// How often idle upstream connections are looked through.
const SWEEP: Duration = Duration::from_secs(10);

/// How often it is written down which repositories are public: what a killed process forgets.
const SAVE: Duration = Duration::from_secs(5);

/// Why the proxy does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration is wrong.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// There is no usable CA.
    #[error("the CA can't be used: {0}")]
    Ca(#[from] CaError),
    /// The cache directory is not usable.
    #[error("cache.dir can't be used: {0}")]
    Cache(io::Error),
    /// The secret of grants can't be read or made.
    #[error("tls.cert_dir can't be used: {0}")]
    Access(io::Error),
    /// The sockets that the service manager handed over won't do.
    #[error("the sockets handed over (LISTEN_FDS) can't be used: {0}")]
    Passed(io::Error),
    /// A port can't be listened on.
    #[error("{key}: can't listen on {address}: {why}")]
    Listen {
        /// The key that says where.
        key: &'static str,
        /// Where.
        address: SocketAddr,
        /// The system's words.
        why: io::Error,
    },
    /// A thread or its runtime could not be started.
    #[error("can't start a worker: {0}")]
    Worker(io::Error),
}

/// A proxy that runs.
pub struct Server {
    /// Where the proxy listens.
    pub proxy: Vec<SocketAddr>,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// The runtime's driver: `io_uring` or `epoll`.
    pub driver: &'static str,
    /// Worker threads.
    pub workers: usize,
    /// The CA.
    pub ca: Arc<Ca>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
    cache: Cache,
    access: Option<Arc<Access>>,
    images: Arc<Images>,
    live: Arc<Live>,
}

/// What one worker thread alone is given.
struct Own {
    /// Those it takes clients from.
    sockets: Vec<Socket>,
    /// The admin listener's, for the worker that has it.
    admin: Option<Socket>,
    /// Beats for as long as the worker turns, where somebody wants to know.
    heart: Option<Heart>,
}

/// What every worker thread is given.
#[derive(Clone)]
struct Shared {
    live: Arc<Live>,
    cache: Cache,
    stats: Arc<Stats>,
    ca: Arc<Ca>,
    ktls: Arc<Ktls>,
    access: Option<Arc<Access>>,
    images: Arc<Images>,
    resolver: Resolver,
    listeners: Vec<SocketAddr>,
    /// The admin port's.
    admin: SocketAddr,
    pseudonym: Arc<Pseudonym>,
    workers: usize,
    /// Which of them it is given to.
    number: usize,
    clients: Arc<Clients>,
    /// Connections of clients that there are descriptors for.
    room: Arc<AtomicUsize>,
    stop: Arc<Stop>,
    helpers: Helpers,
}

impl Server {
    /// Starts everything, or nothing. `source`: what `config` was read from. `set_level`: has the
    /// log keep to another level.
    pub fn start(
        config: Config,
        source: Source,
        set_level: impl Fn(Level) + Send + Sync + 'static,
    ) -> Result<Server, StartError> {
        let settings = Settings::compile(config)?;
        let config = Arc::clone(&settings.config);
        let files = Files::allot(config.limits.max_connections);
        let workers = match config.proxy.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let bound = Bound::bind(&config, workers)?;
        let ktls = Arc::new(trust::ktls(&config));
        let ca = Ca::open(&ca_options(&config))?.giving_keys(ktls.why().is_none());
        let ca = Arc::new(ca);
        let stats = Arc::new(Stats::new(workers));
        let options = cache::Options {
            dir: config.cache.dir.clone(),
            max_size: config.cache.max_size,
            min_free: config.cache.min_free,
            open_max: files.entries,
            fills_max: config.limits.max_fills.min(files.connections),
        };
        let cache = Cache::open(options, Arc::clone(&stats)).map_err(StartError::Cache)?;
        let access = open_access(&config)?;
        let images = open_images(&cache, &config);
        let stop = Arc::new(Stop::default());
        let (proxy, admin) = (bound.proxy.clone(), bound.admin);
        for warning in open_doors(&config) {
            tracing::warn!("{warning}");
        }
        for warning in ca.warnings() {
            tracing::warn!("{warning}");
        }
        for warning in &settings.tls.warnings {
            tracing::warn!(warning, "a system certificate can't be used");
        }
        let room = Arc::new(AtomicUsize::new(files.connections));
        let apply = applied(cache.clone(), Arc::clone(&room), set_level);
        let live = Arc::new(Live::new(source, settings, apply));
        let shared = Shared {
            live: Arc::clone(&live),
            cache: cache.clone(),
            stats,
            ca: Arc::clone(&ca),
            ktls,
            access: access.clone(),
            images: Arc::clone(&images),
            resolver: Resolver::default(),
            listeners: proxy.iter().copied().chain([admin]).collect(),
            admin,
            pseudonym: Arc::new(Pseudonym::new(pseudonym())),
            workers,
            number: 0,
            clients: Arc::default(),
            room,
            stop: Arc::clone(&stop),
            helpers: Helpers::start().map_err(StartError::Worker)?,
        };
        let (driver, threads) = start_workers(&shared, bound)?;
        scan(cache.clone(), Arc::clone(&images)).map_err(StartError::Worker)?;
        live.watch().map_err(StartError::Worker)?;
        Ok(Server { proxy, admin, driver, workers, ca, stop, threads, cache, access, images, live })
    }

    /// Asks every worker to stop: no new connections, running transfers within the grace, or less
    /// by what is returned.
    pub fn stop(&self) -> Arc<Stop> {
        self.stop.reach(STOPPING);
        Arc::clone(&self.stop)
    }

    /// Whether a worker has ended by a bug.
    pub fn has_lost_worker(&self) -> bool {
        self.stop.has_lost_worker()
    }

    /// Reads the configuration again, and `proxy.users`.
    pub fn reload(&self) {
        // The log says what came of it.
        let _ = self.live.reload();
    }

    /// Waits for the workers to end, and writes down what is to be remembered.
    pub fn join(self) {
        for thread in self.threads {
            // A worker that panicked has said so in the log.
            let _ = thread.join();
        }
        self.cache.close();
        if let Some(access) = self.access
            && let Err(error) = access.save()
        {
            tracing::warn!(%error, "public repositories can't be remembered");
        }
        if let Err(error) = self.images.save_now() {
            tracing::warn!(%error, "images can't be remembered");
        }
    }
}

/// Has what all cores share take a configuration over from the one before.
fn applied(
    cache: Cache,
    room: Arc<AtomicUsize>,
    set_level: impl Fn(Level) + Send + Sync + 'static,
) -> impl Fn(&Config, &Config) + Send + Sync + 'static {
    move |before, config| {
        if config.logging.level != before.logging.level {
            set_level(config.logging.level);
        }
        let known = open_doors(before);
        for warning in open_doors(config).into_iter().filter(|door| !known.contains(door)) {
            tracing::warn!("{warning}");
        }
        if config.tls.constrain
            && config.intercepted().ne(before.intercepted())
            && let Ok(Some(ca)) = Ca::inspect(&ca_options(config))
        {
            for warning in ca.warnings() {
                tracing::warn!("{warning}");
            }
        }
        if config.limits.max_connections != before.limits.max_connections {
            let files = Files::allot(config.limits.max_connections);
            room.store(files.connections, Ordering::Release);
        }
        cache.set_bounds(cache::Bounds {
            max_size: config.cache.max_size,
            min_free: config.cache.min_free,
            fills_max: config.limits.max_fills.min(room.load(Ordering::Acquire)),
        });
    }
}

/// What is known of rights, where they are looked at.
fn open_images(cache: &Cache, config: &Config) -> Arc<Images> {
    let (images, error) = Images::open(cache.clone(), &config.cache.dir);
    if let Some(error) = error.filter(|error| error.kind() != io::ErrorKind::NotFound) {
        tracing::warn!(%error, "what is known of images, and their pins, can't be read");
    }
    Arc::new(images)
}

fn open_access(config: &Config) -> Result<Option<Arc<Access>>, StartError> {
    match config.cache.access {
        config::Access::Verify => {
            let access = Access::open(&config.tls.cert_dir, &config.cache.dir);
            Ok(Some(Arc::new(access.map_err(StartError::Access)?)))
        }
        config::Access::Trust => Ok(None),
    }
}

fn start_workers(
    shared: &Shared,
    bound: Bound,
) -> Result<(&'static str, Vec<JoinHandle<()>>), StartError> {
    let (ready, started) = channel();
    let mut threads = Vec::new();
    let mut hearts = Vec::new();
    let mut admin = Some(bound.admin_socket);
    for (n, sockets) in bound.sockets.into_iter().enumerate() {
        let heart = Heart::wanted();
        hearts.extend(heart.clone());
        let own = Own { sockets, admin: admin.take(), heart };
        let (shared, ready) = (Shared { number: n, ..shared.clone() }, ready.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || {
            let _vital = Vital(Arc::clone(&shared.stop));
            work(&shared, own, &ready);
        });
        threads.push(thread.map_err(StartError::Worker)?);
    }
    drop(ready);
    let mut driver = "epoll";
    for _ in 0..threads.len() {
        let started = started.recv().map_err(io::Error::other);
        driver = started.and_then(|started| started).map_err(StartError::Worker)?;
    }
    watch(hearts).map_err(StartError::Worker)?;
    Ok((driver, threads))
}

/// How the open files the system allows are shared out.
struct Files {
    /// Stored entries kept open.
    entries: usize,
    /// Client connections.
    connections: usize,
}

impl Files {
    fn allot(connections_max: usize) -> Files {
        let wanted = FILES_OWN + ENTRIES_OPEN + FILES_PER_CONNECTION * connections_max;
        let files = sys::process::raise_open_files(wanted as u64).unwrap_or_else(|error| {
            tracing::warn!(%error, "the limit of open files can't be raised");
            1024
        });
        let files = usize::try_from(files).unwrap_or(wanted);
        let entries = ENTRIES_OPEN.min(files / 8);
        let left = files.saturating_sub(FILES_OWN + entries) / FILES_PER_CONNECTION;
        let connections = left.clamp(1, connections_max);
        if connections < connections_max {
            tracing::info!(
                files,
                connections,
                "limits.max_connections is more than the limit of open files allows: raise it \
                 (LimitNOFILE= in a systemd unit, ulimit -n)"
            );
        }
        Files { entries, connections }
    }
}

fn scan(cache: Cache, images: Arc<Images>) -> io::Result<()> {
    let scan = move || match cache.scan() {
        Ok(entries) => {
            tracing::debug!(entries, "cache scanned");
            images.rebuild();
        }
        Err(error) => tracing::error!(%error, "the cache directory can't be scanned"),
    };
    std::thread::Builder::new().name("scan".to_owned()).spawn(scan).map(drop)
}

/// Eight hexadecimal digits no other process is likely to have.
fn pseudonym() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("discobot-{:08x}", RandomState::new().hash_one(std::process::id()) as u32)
}

/// One worker thread, from its runtime's start to its end.
fn work(shared: &Shared, own: Own, ready: &Sender<io::Result<&'static str>>) {
    let helpers = || Box::new(shared.helpers.clone());
    let uring = |ring: io_uring::Builder| {
        let builder = RuntimeBuilder::<IoUringDriver>::new().uring_builder(ring);
        builder.enable_timer().attach_thread_pool(helpers()).build().ok()
    };
    let uring = match monoio::utils::detect_uring() {
        true => uring(uninterrupted()).or_else(|| uring(io_uring::IoUring::builder())),
        false => None,
    };
    // Whoever started us has given up where nobody listens for this.
    let say = |started| drop(ready.send(started));
    match uring {
        Some(mut runtime) => {
            runtime.block_on(run(shared, own, "io_uring", say));
        }
        None => {
            let builder = RuntimeBuilder::<LegacyDriver>::new();
            match builder.enable_timer().attach_thread_pool(helpers()).build() {
                Ok(mut runtime) => runtime.block_on(run(shared, own, "epoll", say)),
                Err(error) => say(Err(error)),
            }
        }
    }
}

/// A ring of one thread that is not interrupted for what has completed: it comes for it anyway.
/// Linux has this from 6.0 on.
fn uninterrupted() -> io_uring::Builder {
    let mut ring = io_uring::IoUring::builder();
    ring.setup_coop_taskrun().setup_single_issuer();
    ring
}

async fn run(
    shared: &Shared,
    own: Own,
    driver: &'static str,
    say: impl FnOnce(io::Result<&'static str>),
) {
    let drain = Rc::new(Drain::default());
    let desk = Rc::new(desk(shared, &drain));
    // The epoll driver tries its calls and waits only then; the io_uring one wants them to wait.
    let nonblocking = driver != "io_uring";
    let listen = |socket: Socket| listen(socket, nonblocking);
    let listening: io::Result<Vec<_>> = own.sockets.into_iter().map(listen).collect();
    let (listeners, admin) =
        match listening.and_then(|all| Ok((all, own.admin.map(listen).transpose()?))) {
            Ok(listening) => listening,
            Err(error) => return say(Err(error)),
        };
    let mut accepting = Vec::new();
    for listener in listeners {
        let clients = Arc::clone(&shared.clients);
        accepting.push(monoio::spawn(accept_clients(Rc::clone(&desk), listener, clients)));
    }
    if let Some(listener) = admin {
        monoio::spawn(save_now_and_then(shared.access.clone(), Arc::clone(&shared.images)));
        monoio::spawn(keep_history(Arc::clone(&shared.stats)));
        let admin = Rc::new(admin_of(shared, &drain, driver));
        accepting.push(monoio::spawn(accept_admin(admin, listener)));
    }
    if let Some(heart) = own.heart {
        monoio::spawn(heart.beat());
    }
    say(Ok(driver));
    // Also where no client comes, so that no worker of a former configuration stays for long.
    monoio::spawn(async move {
        loop {
            monoio::time::sleep(SWEEP).await;
            desk.worker().dialer.sweep();
        }
    });
    shared.stop.reached(STOPPING).await;
    drain.begin();
    // Of all cores: a fill of this one may have its readers on others.
    let open = || shared.stats.connections.load(Ordering::Relaxed);
    let all_gone = async {
        for accepting in accepting {
            accepting.await;
        }
        while open() > 0 {
            monoio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let grace = shared.live.config().limits.shutdown_grace;
    let ending = race(all_gone, shared.stop.reached(AT_ONCE));
    if monoio::time::timeout(grace, ending).await.is_err() {
        tracing::warn!(connections = open(), "limits.shutdown_grace is over");
    }
}

/// What goes wrong is said at the end, when it is tried again.
async fn save_now_and_then(access: Option<Arc<Access>>, images: Arc<Images>) {
    loop {
        monoio::time::sleep(SAVE).await;
        let (access, images) = (access.clone(), Arc::clone(&images));
        let save = move || {
            let _ = access.map(|access| access.save());
            images.save()
        };
        let _ = monoio::spawn_blocking(save).await;
    }
}

async fn keep_history(stats: Arc<Stats>) {
    loop {
        monoio::time::sleep(SAMPLE).await;
        stats.history.take(Instant::now(), &stats.totals());
    }
}

fn desk(shared: &Shared, drain: &Rc<Drain>) -> Desk {
    let (generation, drain) = (Arc::clone(shared.live.generation()), Rc::clone(drain));
    let shared = shared.clone();
    Desk::new(generation, move || worker(&shared, &drain))
}

fn worker(shared: &Shared, drain: &Rc<Drain>) -> Worker {
    let settings = shared.live.settings();
    let config = &settings.config;
    let options = DialOptions {
        connect_timeout: config.upstream.connect_timeout,
        read_timeout: config.upstream.read_timeout,
    };
    let room = shared.room.load(Ordering::Acquire);
    Worker {
        policy: settings.policy.clone(),
        cache: shared.cache.clone(),
        stats: Arc::clone(&shared.stats),
        dialer: Dialer::new(options, shared.resolver.clone(), Arc::clone(&settings.tls.client)),
        resolver: shared.resolver.clone(),
        ca: Arc::clone(&shared.ca),
        ktls: Arc::clone(&shared.ktls),
        access: shared.access.clone(),
        images: Arc::clone(&shared.images),
        users: settings.users.clone(),
        asking: Asking::default(),
        limits: Limits {
            heads: HeadLimits::with_size(config.limits.header_size),
            header_timeout: config.limits.header_timeout,
            idle_timeout: config.limits.idle_timeout,
            connect_timeout: config.upstream.connect_timeout,
            read_timeout: config.upstream.read_timeout,
            max_redirects: config.limits.max_redirects,
            max_requests: config.limits.max_requests_per_connection,
            retries: config.upstream.retries,
            max_connections: config.limits.max_connections,
            max_connections_per_client: config.limits.max_connections_per_client,
            connections_served: (room < config.limits.max_connections).then_some(room),
        },
        listeners: Listeners { bound: shared.listeners.clone() },
        admin: shared.admin,
        pseudonym: Arc::clone(&shared.pseudonym),
        drain: Rc::clone(drain),
        number: shared.number,
        request_ids: RequestIds::default(),
        access_log: config.logging.access,
    }
}

fn admin_of(shared: &Shared, drain: &Rc<Drain>, driver: &'static str) -> Admin {
    Admin {
        cache: shared.cache.clone(),
        stats: Arc::clone(&shared.stats),
        images: Arc::clone(&shared.images),
        live: Arc::clone(&shared.live),
        driver,
        workers: shared.workers,
        ktls: Arc::clone(&shared.ktls),
        drain: Rc::clone(drain),
    }
}
