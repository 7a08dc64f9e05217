//! When requests begin.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

/// Tickets the pacing thread hands over at a time at most.
const BATCH: usize = 4096;

/// When requests begin: as soon as a connection is free, or at a constant rate.
pub struct Pace {
    /// Open loop: requests that are due and not begun, and how many were begun.
    open: Option<Open>,
    /// How many may still begin.
    left: std::cell::Cell<u64>,
}

struct Open {
    due: Rc<Semaphore>,
    begun: std::cell::Cell<u64>,
    start: Instant,
    interval: Duration,
}

impl Pace {
    /// Closed loop.
    pub fn closed(limit: Option<u64>) -> Pace {
        Pace { open: None, left: std::cell::Cell::new(limit.unwrap_or(u64::MAX)) }
    }

    /// Open loop, `rate` a second. A thread keeps the time and wakes the ring through a socket:
    /// timers of the runtime come in whole milliseconds.
    pub fn open(rate: f64, limit: Option<u64>) -> Result<Pace, String> {
        if !(rate > 0.0 && rate <= 10_000_000.0) {
            return Err(format!("a rate of {rate} requests a second"));
        }
        let (reader, writer) = UnixStream::pair().map_err(|error| error.to_string())?;
        let interval = Duration::from_secs_f64(1.0 / rate);
        let start = Instant::now() + Duration::from_millis(10);
        std::thread::spawn(move || keep_time(writer, start, interval));
        let due = Rc::new(Semaphore::new(0));
        tokio_uring::spawn(hand_out(reader, Rc::clone(&due)));
        let open = Open { due, begun: std::cell::Cell::new(0), start, interval };
        Ok(Pace { open: Some(open), left: std::cell::Cell::new(limit.unwrap_or(u64::MAX)) })
    }

    /// The time from which the next request's latency counts; none when enough have begun.
    pub async fn next(&self) -> Option<Instant> {
        if let Some(open) = &self.open {
            open.due.acquire().await.ok()?.forget();
        }
        self.left.set(self.left.get().checked_sub(1)?);
        let Some(open) = &self.open else { return Some(Instant::now()) };
        let number = open.begun.replace(open.begun.get() + 1);
        Some(open.start + open.interval.mul_f64(number as f64))
    }
}

fn keep_time(mut writer: UnixStream, start: Instant, interval: Duration) {
    let mut sent = 0_u64;
    loop {
        let next = start + interval.mul_f64(sent as f64);
        let now = Instant::now();
        if next > now {
            std::thread::sleep(next - now);
        }
        let due = (Instant::now() - start).as_secs_f64() / interval.as_secs_f64();
        let batch = (due as u64 + 1).saturating_sub(sent).clamp(1, BATCH as u64);
        if writer.write_all(&vec![0; batch as usize]).is_err() {
            return;
        }
        sent += batch;
    }
}

async fn hand_out(reader: UnixStream, due: Rc<Semaphore>) {
    let stream = tokio_uring::net::UnixStream::from_std(reader);
    let mut buf = vec![0_u8; BATCH];
    loop {
        let (got, back) = stream.read(buf).await;
        buf = back;
        match got {
            Ok(got) if got > 0 => due.add_permits(got),
            _ => return,
        }
    }
}
