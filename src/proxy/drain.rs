//! Sessions as tasks: how they learn that it is time to stop; a bug in one ends it alone.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Poll, Waker};

/// Says once, to everyone on this core, that no further request is to be begun.
#[derive(Default)]
pub struct Drain {
    begun: Cell<bool>,
    waiting: RefCell<Vec<Option<Waker>>>,
    vacant: RefCell<Vec<usize>>,
}

impl Drain {
    /// Begins: wakes all who wait.
    pub fn begin(&self) {
        self.begun.set(true);
        let wakers: Vec<Waker> =
            self.waiting.borrow_mut().iter_mut().filter_map(Option::take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether it has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Waits until it begins.
    pub async fn begun(&self) {
        let place = Place { drain: self, index: Cell::new(None) };
        poll_fn(|cx| {
            if self.begun.get() {
                return Poll::Ready(());
            }
            place.wait(cx.waker());
            Poll::Pending
        })
        .await;
    }
}

/// One waiter's place, given back when it stops waiting.
struct Place<'a> {
    drain: &'a Drain,
    index: Cell<Option<usize>>,
}

impl Place<'_> {
    fn wait(&self, waker: &Waker) {
        let mut waiting = self.drain.waiting.borrow_mut();
        let index = self.index.get().unwrap_or_else(|| {
            self.drain.vacant.borrow_mut().pop().unwrap_or_else(|| {
                waiting.push(None);
                waiting.len() - 1
            })
        });
        self.index.set(Some(index));
        if let Some(place) = waiting.get_mut(index) {
            *place = Some(waker.clone());
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(index) = self.index.get() {
            if let Some(place) = self.drain.waiting.borrow_mut().get_mut(index) {
                *place = None;
            }
            self.drain.vacant.borrow_mut().push(index);
        }
    }
}

/// Runs a task so that a panic in it ends it alone.
///
/// The task is put on the heap here, and the future that is given back is a pointer to it: as an
/// `async fn` this would hold room for the task a second time, for as long as that runs.
pub fn guarded(task: impl Future<Output = ()>) -> impl Future<Output = ()> {
    let mut task = Box::pin(task);
    poll_fn(move |cx| {
        let poll = AssertUnwindSafe(|| task.as_mut().poll(cx));
        // The panic hook has written what happened.
        catch_unwind(poll).unwrap_or(Poll::Ready(()))
    })
}
