//! Who may use the proxy by user and password (`proxy.users`).
//!
//! `file` reads the users, `checks` compares passwords on threads of its own, a bounded number at
//! a time. What was found right is remembered for a short time, so that not every request costs a
//! comparison: as a hash under a secret of this process, never the password.
//!
//! What must stay true: a user who does not exist costs what a wrong password costs; what was found
//! right by a file that was read before counts no more once another was read.

mod checks;
mod file;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::checks::Checks;
use self::file::Table;
use super::answer::Answer;
use super::prove::random_bytes;
use crate::config::{Config, ConfigError};
use crate::http::{Basic, Fields};
use crate::policy::rights::Secret;
use crate::stats::Stats;

/// How long a password that was found right is not compared again.
const KEPT: Duration = Duration::from_secs(60);

/// Passwords remembered as right.
const REMEMBERED_MAX: usize = 1024;

const CHALLENGE: &str = "Proxy-Authenticate: Basic realm=\"discobot-proxy\", charset=\"UTF-8\"\r\n";

const LATER: &str = "Retry-After: 1\r\n";

/// What identifies a user and his password.
type Mark = [u8; 32];

/// The users of the proxy, for the whole process.
pub struct Users {
    known: Arc<Known>,
    checks: Checks,
}

/// The users as a file has them by now.
pub struct Reread(Table);

/// What is known of users and their passwords.
struct Known {
    secret: Secret,
    state: Mutex<State>,
}

struct State {
    table: Arc<Table>,
    /// Passwords that were found right by this table, and until when they count.
    right: HashMap<Mark, Instant>,
}

impl Users {
    /// Reads the file and starts the threads that compare; `None` where there is no such key.
    ///
    /// # Errors
    /// Names `proxy.users` and the line of the file.
    pub fn open(config: &Config) -> Result<Option<Users>, ConfigError> {
        if config.proxy.users.is_none() {
            return Ok(None);
        }
        let table = Users::read(config)?;
        let refuse = |error: io::Error| {
            config.error("proxy.users", &error.to_string(), "threads and random bytes to be had")
        };
        let secret = Secret::new(random_bytes().map_err(refuse)?);
        let state = State { table: Arc::new(table), right: HashMap::new() };
        let known = Arc::new(Known { secret, state: Mutex::new(state) });
        let checks = Checks::start(Arc::clone(&known)).map_err(refuse)?;
        Ok(Some(Users { known, checks }))
    }

    /// Reads the file without using it.
    ///
    /// # Errors
    /// As for [`Users::open`].
    pub fn inspect(config: &Config) -> Result<(), ConfigError> {
        if config.proxy.users.is_some() { Users::read(config).map(drop) } else { Ok(()) }
    }

    fn read(config: &Config) -> Result<Table, ConfigError> {
        let path = config.proxy.users.clone().unwrap_or_default();
        Table::read(&path)
            .map_err(|wrong| config.error("proxy.users", &wrong.found(&path), wrong.expected))
    }

    /// Reads the file again, and uses nothing of it yet. Blocks.
    ///
    /// # Errors
    /// As for [`Users::open`].
    pub fn read_again(config: &Config) -> Result<Reread, ConfigError> {
        Users::read(config).map(Reread)
    }

    /// Goes by what was read from now on.
    pub fn replace(&self, Reread(table): Reread) {
        let users = table.len();
        {
            let mut state = self.known.state();
            state.table = Arc::new(table);
            state.right.clear();
        }
        tracing::info!(users, "proxy.users read");
    }

    /// Whether a request with these fields comes from one of the users; else what to answer.
    /// `limit`: for the comparison.
    pub async fn admit(
        &self,
        stats: &Stats,
        client: IpAddr,
        fields: &Fields,
        limit: Duration,
    ) -> Result<(), Answer> {
        let unknown = |message: &str| {
            Stats::add(&stats.unauthenticated, 1);
            Err(Answer::new(407, "UNAUTHORIZED", message).with(CHALLENGE))
        };
        let mut given = fields.all("proxy-authorization");
        let (Some(value), None) = (given.next(), given.next()) else {
            return unknown("the proxy wants a user: http://USER:PASSWORD@PROXY:PORT");
        };
        let Some(basic) = Basic::parse(value) else {
            return unknown("the proxy wants a user and a password by the Basic scheme");
        };
        let mark = self.known.mark(&basic);
        if self.known.is_right(&mark) {
            return Ok(());
        }
        let check = self.checks.ask(client, basic, mark);
        let right = match check {
            Some(check) => Box::pin(monoio::time::timeout(limit, check)).await.ok(),
            None => None,
        };
        match right {
            Some(true) => Ok(()),
            Some(false) => {
                tracing::info!(%client, "user or password of the proxy is wrong");
                unknown("the proxy does not know this user with this password")
            }
            None => {
                Stats::add(&stats.limited_sign_ins, 1);
                let message = "too many passwords are being compared already";
                Err(Answer::new(503, "TOO_MANY_SIGN_INS", message).with(LATER))
            }
        }
    }
}

impl Known {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark(&self, basic: &Basic) -> Mark {
        let mark = self.secret.mac(|hasher| {
            hasher.update(&(basic.user.len() as u64).to_le_bytes());
            hasher.update(&basic.user);
            hasher.update(&basic.password);
        });
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(mark.bytes()).for_each(|(to, from)| *to = *from);
        bytes
    }

    fn is_right(&self, mark: &Mark) -> bool {
        self.state().right.get(mark).is_some_and(|until| Instant::now() < *until)
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.state().table)
    }

    /// Remembers that a password is right, unless another file was read meanwhile.
    fn note_right(&self, table: &Arc<Table>, mark: Mark) {
        let mut state = self.state();
        if !Arc::ptr_eq(&state.table, table) {
            return;
        }
        let now = Instant::now();
        if state.right.len() >= REMEMBERED_MAX {
            state.right.retain(|_, until| now < *until);
        }
        if state.right.len() >= REMEMBERED_MAX
            && let Some(first) = state.right.iter().min_by_key(|(_, until)| **until)
        {
            let first = *first.0;
            state.right.remove(&first);
        }
        state.right.insert(mark, now + KEPT);
    }

    /// Compares; takes as long for a user who does not exist, whose place another one takes.
    fn compare(&self, basic: &Basic, mark: &Mark) -> bool {
        let table = self.table();
        let known = table.hash_of(&basic.user);
        let hash = known.unwrap_or_else(|| table.stand_in(mark));
        let right = std::hint::black_box(hash.is_of(&basic.password)) & known.is_some();
        if right {
            self.note_right(&table, *mark);
        }
        right
    }
}

#[cfg(test)]
mod tests;
