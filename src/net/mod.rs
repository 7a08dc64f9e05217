//! Byte streams to peers: plain or TLS, incoming or outgoing, and stretches of files into them.
//!
//! A [`Conn`] is one peer. It reads heads and bodies with the limits of `http`, and knows nothing
//! of entries or rules. Reads and writes are tried first (`MSG_DONTWAIT`) and waited for only when
//! the kernel has nothing: an idle connection pins no buffer, and a wait that is dropped loses no
//! bytes, so that both directions of a connection can be waited for at once. Every wait has a limit
//! that counts progress.

mod blocking;
mod body;
mod ca;
mod conn;
mod dial;
mod ktls;
mod lookup;
mod pins;
mod race;
mod relay;
mod resolve;
mod rx;
mod send;
mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use self::blocking::{Secure, Trust};
pub use self::body::BodyReader;
pub use self::ca::{Ca, CaError, CaOptions, Subtree};
pub use self::conn::Conn;
pub use self::dial::{DialOptions, Dialer, Origin, Parent};
pub use self::ktls::{HandOver, Ktls};
pub use self::pins::Pinned;
use self::race::give_way;
pub use self::race::{Either, both, race};
pub use self::relay::{Relayed, relay};
pub use self::resolve::Resolver;
pub use self::send::{bring_in, send_file};
pub use self::tls::{TlsSetup, UpstreamTls, client_config};
use crate::http::Malformed;

/// What goes wrong with a peer. The caller knows which peer it was.
#[derive(Clone, Debug, Error)]
pub enum NetError {
    /// The name has no address.
    #[error("the name {name} does not resolve: {why}")]
    Resolve {
        /// The name asked for.
        name: Box<str>,
        /// The resolver's words.
        why: Box<str>,
    },
    /// No address of it may be connected to.
    #[error("{0}")]
    Denied(Box<str>),
    /// No address of it answered.
    #[error("{target} can't be reached: {why}")]
    Connect {
        /// Host and port.
        target: Box<str>,
        /// The last address's error.
        why: Arc<io::Error>,
    },
    /// The parent proxy does not let us through.
    #[error("the parent proxy {parent} {fault}")]
    Parent {
        /// The parent's host and port.
        parent: Box<str>,
        /// What is wrong with it.
        fault: ParentFault,
    },
    /// No progress for too long.
    #[error("{what} took longer than {}", humantime::format_duration(*limit))]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// The limit that was reached.
        limit: Duration,
    },
    /// The peer ended the stream in the middle of a message.
    #[error("the connection was closed in the middle of a message")]
    Closed,
    /// The file that was to be sent can't be read; the connection is as it was.
    #[error("{0}")]
    File(Arc<io::Error>),
    /// The socket failed.
    #[error("{0}")]
    Io(Arc<io::Error>),
    /// TLS failed: a certificate that is not trusted, a protocol error.
    #[error("TLS: {}", pins::words(.0))]
    Tls(rustls::Error),
    /// Not HTTP, or HTTP of a kind that is refused.
    #[error("{0}")]
    Malformed(Malformed),
    /// More names asked for than the resolver threads take.
    #[error("too many name look-ups under way")]
    Busy,
}

/// What is wrong with a parent proxy.
#[derive(Clone, Debug, Error)]
pub enum ParentFault {
    /// It does not take the credentials of its URL, or wants some.
    #[error("answered 407: it wants credentials, or others than upstream.proxy has")]
    Credentials,
    /// It refuses.
    #[error("answered {0} to CONNECT")]
    Refused(u16),
    /// It can't be reached, or breaks off.
    #[error("failed: {0}")]
    Failed(Box<NetError>),
}

impl NetError {
    /// What went wrong with `parent` on the way to an upstream.
    pub fn of_parent(self, parent: &Parent) -> NetError {
        match self {
            NetError::Parent { .. } => self,
            error => parent.at_fault(ParentFault::Failed(Box::new(error))),
        }
    }

    /// Whether the peer ended TLS with an alert: what a client does that does not trust us.
    pub fn is_alert(&self) -> bool {
        matches!(self, NetError::Tls(rustls::Error::AlertReceived(_)))
    }
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> NetError {
        NetError::Io(Arc::new(error))
    }
}

impl From<Malformed> for NetError {
    fn from(error: Malformed) -> NetError {
        NetError::Malformed(error)
    }
}

impl From<rustls::Error> for NetError {
    fn from(error: rustls::Error) -> NetError {
        NetError::Tls(error)
    }
}
