//! Names to addresses, by the system's resolver: each name asked for once, whoever and on whichever
//! core wants to know it, and its answer kept briefly.
//!
//! The system is asked on threads that do nothing else. A look-up that hangs can't be called off:
//! those who wait for it are let go in time, and its thread counts no more, so that another takes
//! its place. What must stay true: no number of slow names keeps a quick one waiting for long, as
//! long as there are threads left ([`LIMITS`]); beyond that, and where the queue is full, look-ups
//! are refused.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::NetError;
use super::lookup::{Answer, Found, Lookup, Wait};
use crate::http::Host;

/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 16;

/// What bounds the look-ups of the process.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Threads whose look-up is not slow.
    quick: usize,
    /// Threads in all.
    threads: usize,
    /// Names that wait for a thread.
    queue: usize,
    /// Names remembered.
    names: usize,
    /// From when on a look-up is slow.
    slow: Duration,
    /// From when on nobody joins a look-up any more, and the name is asked for anew.
    hung: Duration,
    /// How long addresses are used.
    kept: Duration,
    /// How long a name counts as one that does not resolve.
    kept_failure: Duration,
    /// How long an answer is remembered for [`Resolver::glance`].
    glanced: Duration,
}

/// Addresses are kept for a short time, since a registry's CDN moves, and the system caches anyway.
/// The system's own patience is ten seconds for each name server with its usual settings.
const LIMITS: Limits = Limits {
    quick: 8,
    threads: 64,
    queue: 256,
    names: 4096,
    slow: Duration::from_secs(1),
    hung: Duration::from_secs(30),
    kept: Duration::from_secs(10),
    kept_failure: Duration::from_secs(5),
    glanced: Duration::from_secs(300),
};

/// Finds the addresses of names; a clone is the same one. There is one to a process.
#[derive(Clone)]
pub struct Resolver(Arc<Shared>);

type System = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

struct Shared {
    limits: Limits,
    system: Box<System>,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    lookups: HashMap<Box<str>, Arc<Lookup>>,
    queue: VecDeque<Arc<Lookup>>,
    /// Threads without a look-up, those included that are about to start.
    idle: usize,
    /// Look-ups that threads are at, and since when.
    running: Vec<(u64, Instant)>,
    /// Numbers them.
    begun: u64,
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver::new(LIMITS, ask_system)
    }
}

fn ask_system(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found.map(|address: SocketAddr| address.ip()).collect())
}

impl Resolver {
    fn new(
        limits: Limits,
        system: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static,
    ) -> Resolver {
        let (system, state) = (Box::new(system), Mutex::default());
        Resolver(Arc::new(Shared { limits, system, state, work: Condvar::new() }))
    }

    /// The addresses of `host`, in the order to try them: the families by turns, as RFC 8305
    /// section 4 asks, beginning with the one the system prefers.
    pub async fn resolve(&self, host: &Host, limit: Duration) -> Result<Vec<IpAddr>, NetError> {
        let name = match literal(host) {
            Ok(address) => return Ok(vec![address]),
            Err(name) => name,
        };
        let wait = self.0.ask(name).ok_or(NetError::Busy)?;
        match self.0.wait(wait, limit).await {
            Some(Ok(found)) => Ok(found),
            Some(Err(why)) => Err(NetError::Resolve { name: name.into(), why }),
            None => Err(NetError::TimedOut { what: "the name look-up", limit }),
        }
    }

    /// The addresses of `host` as far as they are known, for those who can do without: nobody waits
    /// longer than `limit` from the beginning of a look-up, however many come while it hangs.
    ///
    /// `outdated`: addresses known from some minutes ago will do. That a name did not resolve then
    /// always does. It is asked for anew all the same.
    pub async fn glance(&self, host: &Host, limit: Duration, outdated: bool) -> Vec<IpAddr> {
        let name = match literal(host) {
            Ok(address) => return vec![address],
            Err(name) => name,
        };
        let Some(wait) = self.0.ask(name) else { return Vec::new() };
        let lookup = Arc::clone(&wait.lookup);
        if let (None, Some(Answer { found, .. })) = (lookup.answer(), &lookup.earlier)
            && (outdated || found.is_err())
        {
            if lookup.wanted_by() == 1 {
                self.0.keep_asking(wait);
            }
            return found.clone().unwrap_or_default();
        }
        let limit = limit.saturating_sub(lookup.age());
        self.0.wait(wait, limit).await.and_then(Result::ok).unwrap_or_default()
    }

    /// Forgets the answer for a name none of whose addresses could be reached.
    pub(super) fn forget(&self, host: &Host) {
        if let Host::Name(name) = host {
            let mut state = self.0.lock();
            if state.lookups.get(name).is_some_and(|lookup| lookup.answer().is_some()) {
                state.lookups.remove(name);
            }
        }
    }

    /// Has `address` tried before the others of its name: those were silent, or refused.
    pub(super) fn prefer(&self, host: &Host, address: IpAddr) {
        if let Host::Name(name) = host
            && let Some(lookup) = self.0.lock().lookups.get(name)
        {
            lookup.prefer(address);
        }
    }
}

/// The address that a host is; else its name.
fn literal(host: &Host) -> Result<IpAddr, &str> {
    match host {
        Host::V4(address) => Ok(IpAddr::V4(*address)),
        Host::V6(address) => Ok(IpAddr::V6(*address)),
        // Nobody's name servers say what these are (RFC 6761, section 6.3).
        Host::Name(name) if is_loopback(name) => Ok(Ipv4Addr::LOCALHOST.into()),
        Host::Name(name) => Err(name),
    }
}

fn is_loopback(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

impl Shared {
    /// Joins the look-up of `name`, or begins one; `None`: too many are waiting already.
    fn ask(self: &Arc<Shared>, name: &str) -> Option<Wait> {
        let limits = &self.limits;
        let mut state = self.lock();
        let mut earlier = None;
        if let Some(lookup) = state.lookups.get(name) {
            let answer = lookup.answer();
            if limits.is_current(lookup, answer.as_ref()) {
                return Some(lookup.join());
            }
            earlier = answer.or_else(|| lookup.earlier.clone());
        }
        if state.queue.len() >= limits.queue {
            state.drop_unwanted();
        }
        if state.queue.len() >= limits.queue {
            return None;
        }
        let lookup = Lookup::new(name, earlier.filter(|answer| answer.age() < limits.glanced));
        let wait = lookup.join();
        state.make_room(limits);
        state.lookups.insert(name.into(), Arc::clone(&lookup));
        state.queue.push_back(lookup);
        self.staff(&mut state);
        Some(wait)
    }

    /// Waits for the answer, and now and then sees to it that there are threads to find it.
    async fn wait(self: &Arc<Shared>, mut wait: Wait, limit: Duration) -> Option<Found> {
        let begun = Instant::now();
        loop {
            let left = limit.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return wait.lookup.answer().map(|answer| answer.found);
            }
            match Box::pin(monoio::time::timeout(left.min(self.limits.slow), &mut wait)).await {
                Ok(found) => return Some(found),
                Err(_) => self.staff(&mut self.lock()),
            }
        }
    }

    /// Goes on wanting the answer, for whoever asks next.
    fn keep_asking(self: &Arc<Shared>, wait: Wait) {
        let shared = Arc::clone(self);
        monoio::spawn(async move { shared.wait(wait, shared.limits.hung).await });
    }

    /// Has the queue worked at: wakes idle threads, and starts those that are missing.
    fn staff(self: &Arc<Shared>, state: &mut State) {
        while state.queue.len() > state.idle && state.may_start(&self.limits) {
            let shared = Arc::clone(self);
            let thread = std::thread::Builder::new().name("resolver".to_owned());
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.idle += 1,
                Err(error) => {
                    tracing::warn!(%error, "a resolver thread can't be started");
                    if state.idle + state.running.len() == 0 {
                        let why = format!("no thread to ask on: {error}");
                        state
                            .queue
                            .drain(..)
                            .for_each(|lookup| lookup.finish(Err(why.as_str().into())));
                    }
                    break;
                }
            }
        }
        self.work.notify_all();
    }

    /// A resolver thread, from its start to its end.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.idle + state.quick(&self.limits) > self.limits.quick {
                // It was replaced while it hung.
                state.idle -= 1;
                return;
            }
            let Some(lookup) = state.next() else {
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.idle -= 1;
            state.begun += 1;
            let number = state.begun;
            state.running.push((number, Instant::now()));
            drop(state);
            lookup.finish(match (self.system)(&lookup.name) {
                Ok(found) if found.is_empty() => Err("it has no address".into()),
                Ok(found) => Ok(by_turns(&found)),
                Err(error) => Err(error.to_string().into()),
            });
            state = self.lock();
            state.running.retain(|(other, _)| *other != number);
            state.idle += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limits {
    /// Whether a look-up is to be joined, or its answer used.
    fn is_current(&self, lookup: &Lookup, answer: Option<&Answer>) -> bool {
        match answer {
            None => lookup.age() < self.hung,
            Some(answer) if answer.found.is_ok() => answer.age() < self.kept,
            Some(answer) => answer.age() < self.kept_failure,
        }
    }
}

impl State {
    /// Threads at a look-up that is not slow.
    fn quick(&self, limits: &Limits) -> usize {
        self.running.iter().filter(|(_, since)| since.elapsed() < limits.slow).count()
    }

    fn may_start(&self, limits: &Limits) -> bool {
        self.idle + self.quick(limits) < limits.quick
            && self.idle + self.running.len() < limits.threads
    }

    /// The next look-up that somebody waits for.
    fn next(&mut self) -> Option<Arc<Lookup>> {
        loop {
            let lookup = self.queue.pop_front()?;
            if lookup.wanted_by() > 0 {
                return Some(lookup);
            }
            self.give_up(&lookup);
        }
    }

    fn drop_unwanted(&mut self) {
        let all = std::mem::take(&mut self.queue).into_iter();
        let (wanted, unwanted): (VecDeque<_>, VecDeque<_>) =
            all.partition(|lookup| lookup.wanted_by() > 0);
        self.queue = wanted;
        unwanted.iter().for_each(|lookup| self.give_up(lookup));
    }

    /// Forgets a look-up that was never begun.
    fn give_up(&mut self, lookup: &Arc<Lookup>) {
        if self.lookups.get(&lookup.name).is_some_and(|known| Arc::ptr_eq(known, lookup)) {
            self.lookups.remove(&lookup.name);
        }
    }

    /// Forgets what is of no use any more, and where that is not enough, the oldest answer.
    fn make_room(&mut self, limits: &Limits) {
        if self.lookups.len() < limits.names {
            return;
        }
        self.lookups.retain(|_, lookup| match lookup.answer() {
            Some(answer) => answer.age() < limits.kept,
            None => lookup.age() < limits.hung,
        });
        if self.lookups.len() >= limits.names {
            let ages = self.lookups.iter().filter_map(|(name, lookup)| {
                lookup.answer().map(|answer| (answer.age(), name.clone()))
            });
            if let Some((_, oldest)) = ages.max() {
                self.lookups.remove(&oldest);
            }
        }
    }
}

fn by_turns(found: &[IpAddr]) -> Vec<IpAddr> {
    let Some(first) = found.first() else { return Vec::new() };
    let (preferred, others): (Vec<IpAddr>, Vec<IpAddr>) =
        found.iter().copied().partition(|address| address.is_ipv4() == first.is_ipv4());
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let mut ordered = Vec::new();
    loop {
        let before = ordered.len();
        ordered.extend(preferred.next());
        ordered.extend(others.next());
        if ordered.len() == before || ordered.len() >= ADDRESSES_MAX {
            ordered.truncate(ADDRESSES_MAX);
            return ordered;
        }
    }
}

#[cfg(test)]
mod tests;
