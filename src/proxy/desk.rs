//! Where the sessions of a core get the worker for their next request.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Worker;

/// Counts the configurations that have been in force, for all cores.
pub type Generation = Arc<AtomicU64>;

/// The worker of one core, of the configuration that is in force. As long as that stays, looking
/// costs one load that no core writes to; when it changes, each core makes a worker of its own at
/// the next look.
pub struct Desk {
    generation: Generation,
    seen: Cell<u64>,
    worker: RefCell<Rc<Worker>>,
    make: Box<dyn Fn() -> Worker>,
}

impl Desk {
    /// `make`: a worker of what is in force.
    pub fn new(generation: Generation, make: impl Fn() -> Worker + 'static) -> Desk {
        let seen = Cell::new(generation.load(Ordering::Acquire));
        let worker = RefCell::new(Rc::new(make()));
        Desk { generation, seen, worker, make: Box::new(make) }
    }

    /// The worker for what begins here.
    pub fn worker(&self) -> Rc<Worker> {
        let generation = self.generation.load(Ordering::Acquire);
        if self.seen.replace(generation) != generation {
            self.renew();
        }
        Rc::clone(&self.worker.borrow())
    }

    /// Of which configuration the last worker was that was given out.
    pub fn generation(&self) -> u64 {
        self.seen.get()
    }

    #[cold]
    fn renew(&self) {
        let old = self.worker.replace(Rc::new((self.make)()));
        old.dialer.retire();
    }
}
