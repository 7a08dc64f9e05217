//! How a route of an origin behaves once: status, fields, body, and everything that can go wrong
//! with it. Built by chaining; the plain cases read as prose, the faults are each one call.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::DEADLINE;
use super::body::Body;

/// A place where an origin stops until the test opens it.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    open: bool,
    arrived: usize,
}

impl Gate {
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }

    /// Waits until `count` have come to the gate since it was made.
    pub fn wait_arrivals(&self, count: usize) {
        let end = Instant::now() + DEADLINE;
        let mut state = self.0.0.lock().unwrap();
        while state.arrived < count {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} came to the gate", state.arrived);
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }

    /// The origin's side: stops here until open (or until the test has surely failed).
    pub(super) fn pass(&self) {
        let end = Instant::now() + 2 * DEADLINE;
        let mut state = self.0.0.lock().unwrap();
        state.arrived += 1;
        self.0.1.notify_all();
        while !state.open && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            state = self.0.1.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// How the length of the body is said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Delimited {
    Length,
    Chunked,
    /// By the end of the connection.
    Close,
    /// Not at all, and no body: 204, 304.
    Nothing,
}

/// How a connection ends in mid-body.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// FIN (and no close_notify under TLS).
    Cut,
    /// RST.
    Reset,
}

/// One answer.
#[derive(Clone)]
pub struct Answer {
    pub(super) status: u16,
    pub(super) fields: Vec<(String, String)>,
    pub(super) body: Body,
    pub(super) delimited: Delimited,
    pub(super) claimed: Option<u64>,
    pub(super) end: Option<(u64, Ending)>,
    pub(super) corrupt: Option<u64>,
    pub(super) head_gate: Option<Gate>,
    pub(super) gates: Vec<(u64, Gate)>,
    pub(super) drip: Option<(u64, Duration)>,
    pub(super) ranges: bool,
    pub(super) refuse_authorization: bool,
    pub(super) wants: Option<(String, String)>,
    pub(super) signed: Option<String>,
    pub(super) raw: Option<Vec<u8>>,
    pub(super) stays: bool,
    pub(super) interim: Vec<u16>,
    pub(super) final_gate: Option<Gate>,
    pub(super) early: bool,
    pub(super) reads_on: bool,
    pub(super) echo: bool,
    pub(super) drop_idle: bool,
    pub(super) trailers: Vec<(String, String)>,
}

impl Answer {
    /// A status and a body of `Content-Length`.
    pub fn status(status: u16, body: impl Into<Body>) -> Answer {
        Answer {
            status,
            fields: Vec::new(),
            body: body.into(),
            delimited: Delimited::Length,
            claimed: None,
            end: None,
            corrupt: None,
            head_gate: None,
            gates: Vec::new(),
            drip: None,
            ranges: false,
            refuse_authorization: false,
            wants: None,
            signed: None,
            raw: None,
            stays: false,
            interim: Vec::new(),
            final_gate: None,
            early: false,
            reads_on: false,
            echo: false,
            drop_idle: false,
            trailers: Vec::new(),
        }
    }

    /// 200 with this body.
    pub fn ok(body: &Body) -> Answer {
        Answer::status(200, body.clone())
    }

    /// A redirect; `location` goes out as it is.
    pub fn redirect(status: u16, location: impl Into<String>) -> Answer {
        Answer::status(status, "<a href>moved</a>").with("Location", location)
    }

    /// 101 to another protocol, whose server sends back what it gets.
    pub fn upgrade(protocol: &str) -> Answer {
        let mut answer = Answer::status(101, "").with("Upgrade", protocol);
        answer.delimited = Delimited::Nothing;
        answer.echo = true;
        answer.with("Connection", "Upgrade")
    }

    /// These bytes instead of an HTTP answer; the connection ends after them.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Answer {
        let mut answer = Answer::status(0, "");
        answer.raw = Some(bytes.into());
        answer
    }

    /// Raw bytes, after which the connection waits for the next request all the same.
    pub fn stays(mut self) -> Answer {
        self.stays = true;
        self
    }

    /// Adds a field.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Answer {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// Chunked instead of by length.
    pub fn chunked(mut self) -> Answer {
        self.delimited = Delimited::Chunked;
        self
    }

    /// Chunked, with a field after the body (RFC 9112 7.1.2).
    pub fn trailer(mut self, name: &str, value: &str) -> Answer {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self.chunked()
    }

    /// The end of the connection ends the body.
    pub fn until_close(mut self) -> Answer {
        self.delimited = Delimited::Close;
        self
    }

    /// No body and no word of its length.
    pub fn bodiless(mut self) -> Answer {
        self.delimited = Delimited::Nothing;
        self
    }

    /// Says another Content-Length than the body has.
    pub fn claims(mut self, length: u64) -> Answer {
        self.claimed = Some(length);
        self
    }

    /// Ends the connection after `at` bytes of the body.
    pub fn ends_at(mut self, at: u64, how: Ending) -> Answer {
        self.end = Some((at, how));
        self
    }

    /// Flips the byte at this offset.
    pub fn corrupt_at(mut self, at: u64) -> Answer {
        self.corrupt = Some(at);
        self
    }

    /// Stops before the head.
    pub fn gate_head(mut self, gate: &Gate) -> Answer {
        self.head_gate = Some(gate.clone());
        self
    }

    /// Stops before the body's byte `at`; all before it has been sent by then.
    pub fn gate_at(mut self, at: u64, gate: &Gate) -> Answer {
        self.gates.push((at, gate.clone()));
        self.gates.sort_by_key(|(at, _)| *at);
        self
    }

    /// Sends a byte at a time from `at` on, and pauses after each.
    pub fn drips_from(mut self, at: u64, pause: Duration) -> Answer {
        self.drip = Some((at, pause));
        self
    }

    /// Honours single ranges (RFC 9110 14).
    pub fn ranges(mut self) -> Answer {
        self.ranges = true;
        self
    }

    /// 400 to a request with Authorization, as S3 answers a signed URL.
    pub fn refuses_authorization(mut self) -> Answer {
        self.refuse_authorization = true;
        self
    }

    /// 401 with this challenge to a request without exactly this Authorization.
    pub fn wants(mut self, authorization: &str, challenge: &str) -> Answer {
        self.wants = Some((authorization.to_owned(), challenge.to_owned()));
        self
    }

    /// 403 to a request with another query, as a CDN answers a signed URL that has expired.
    pub fn signed(mut self, query: &str) -> Answer {
        self.signed = Some(query.to_owned());
        self
    }

    /// Sends these 1xx heads first.
    pub fn interim(mut self, statuses: &[u16]) -> Answer {
        self.interim = statuses.to_vec();
        self
    }

    /// Stops between the 1xx heads and the final one.
    pub fn gate_final(mut self, gate: &Gate) -> Answer {
        self.final_gate = Some(gate.clone());
        self
    }

    /// Answers before the request's body is read, then closes.
    pub fn early(mut self) -> Answer {
        self.early = true;
        self
    }

    /// Answers before the request's body is read, then reads it and goes on.
    pub fn early_and_reads_on(mut self) -> Answer {
        self.reads_on = true;
        self.early()
    }

    /// Behind what it says, sends back what it gets.
    pub fn echoes(mut self) -> Answer {
        self.echo = true;
        self
    }

    /// Closes the connection behind the answer without saying so in it.
    pub fn drops_connection(mut self) -> Answer {
        self.drop_idle = true;
        self
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Body {
        Body::bytes(text)
    }
}

impl From<&Body> for Body {
    fn from(body: &Body) -> Body {
        body.clone()
    }
}
