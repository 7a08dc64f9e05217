//! Locks between threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock, also of one that a thread held as it ended by a bug: for values that are whole
/// after each single change.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_a_bug_has_poisoned_is_taken_all_the_same() {
        let shared = Mutex::new(1);
        std::thread::scope(|scope| {
            let broken = scope.spawn(|| {
                let _held = lock(&shared);
                panic!("a bug, made for this test");
            });
            assert!(broken.join().is_err() && shared.is_poisoned());
        });
        *lock(&shared) += 1;
        assert_eq!(*lock(&shared), 2);
    }
}
