//! Futures on one task: the first of two to finish, or both; and the turns of tasks on one core.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

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
pub(super) async fn give_way() {
    monoio::spawn(async {}).await;
}
