//! Futures on one task: the first of two to finish, or both; and the turns of tasks on one core.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use monoio::time::Instant;

/// What the runtime's timers count in; it rounds up.
const TICK: Duration = Duration::from_millis(1);

/// Which of two futures finished first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Either<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

/// Waits for whichever finishes first, the left one where both are ready; the other is dropped.
pub async fn race<A, B>(
    left: impl Future<Output = A>,
    right: impl Future<Output = B>,
) -> Either<A, B> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    poll_fn(|cx| {
        if let Poll::Ready(value) = left.as_mut().poll(cx) {
            return Poll::Ready(Either::Left(value));
        }
        right.as_mut().poll(cx).map(Either::Right)
    })
    .await
}

/// Waits for both; an error of either ends the other.
pub async fn both<A, B, E>(
    left: impl Future<Output = Result<A, E>>,
    right: impl Future<Output = Result<B, E>>,
) -> Result<(A, B), E> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    let (mut first, mut second) = (None, None);
    poll_fn(|cx| {
        if first.is_none()
            && let Poll::Ready(value) = left.as_mut().poll(cx)
        {
            first = Some(value?);
        }
        if second.is_none()
            && let Poll::Ready(value) = right.as_mut().poll(cx)
        {
            second = Some(value?);
        }
        match (first.take(), second.take()) {
            (Some(a), Some(b)) => Poll::Ready(Ok((a, b))),
            (a, b) => {
                (first, second) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

/// Lets the other tasks of this core run once.
///
/// A task that only wakes itself is run again at once by this runtime, ahead of others; one that
/// waits for a new task runs behind those that were waiting.
///
/// Timers, and what other threads have woken, this runtime looks after only when no task is left to
/// run, which peers that always have or take more could put off for ever. So once a millisecond,
/// the clock of its timers, whoever gives way waits for just that: for a timer that is due already.
pub(super) async fn give_way() {
    monoio::spawn(async {}).await;
    if let Some(due) = Instant::now().checked_sub(TICK) {
        // A timer is large, and this is part of whatever reads or sends.
        Box::pin(monoio::time::sleep_until(due)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    #[test]
    fn tasks_that_always_have_more_to_do_hold_up_no_timer() {
        let builder = monoio::RuntimeBuilder::<monoio::FusionDriver>::new().enable_timer();
        builder.build().unwrap().block_on(async {
            let rang = Rc::new(Cell::new(false));
            let busy: Vec<_> = (0..3)
                .map(|_| {
                    let (rang, limit) = (Rc::clone(&rang), Instant::now() + TICK * 30_000);
                    monoio::spawn(async move {
                        while !rang.get() && Instant::now() < limit {
                            give_way().await;
                        }
                    })
                })
                .collect();
            let bell = Rc::clone(&rang);
            monoio::spawn(async move {
                monoio::time::sleep(TICK * 5).await;
                bell.set(true);
            });
            for task in busy {
                task.await;
            }
            assert!(rang.get());
        });
    }
}
