//! Attempts at the same thing in several places, of which one is enough: each begins when one before has
//! failed, or nothing has come of them for a while; who is slow is not given up for that.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// What the first attempt brings that succeeds, or why each has failed. The others are dropped then.
pub(super) async fn first<T, E>(
    attempts: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>,
    patience: Duration,
) -> Result<T, Vec<E>> {
    let mut unbegun = attempts.into_iter().peekable();
    let mut under_way: FuturesUnordered<_> = unbegun.next().into_iter().collect();
    let mut failures = Vec::new();
    while !under_way.is_empty() {
        tokio::select! {
            Some(ended) = under_way.next() => match ended {
                Ok(success) => return Ok(success),
                Err(failure) => failures.push(failure),
            },
            () = tokio::time::sleep(patience), if unbegun.peek().is_some() => {}
        }
        under_way.extend(unbegun.next());
    }
    Err(failures)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::Pin;

    use tokio::sync::Notify;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(1000);

    type Attempt<'a> = Pin<Box<dyn Future<Output = Result<&'static str, &'static str>> + 'a>>;

    #[tokio::test]
    async fn silent_place_keeps_nobody_waiting() {
        let attempts: [Attempt<'_>; 2] = [Box::pin(pending()), Box::pin(ready(Ok("second")))];
        assert_eq!(first(attempts, SOON).await, Ok("second"));
    }

    #[tokio::test]
    async fn place_that_refuses_is_not_waited_for() {
        let attempts: [Attempt<'_>; 2] = [Box::pin(ready(Err("refused"))), Box::pin(ready(Ok("second")))];
        assert_eq!(first(attempts, NEVER).await, Ok("second"));
    }

    #[tokio::test]
    async fn slow_place_wins_over_one_that_never_answers() {
        let begun = Notify::new();
        let slow = async {
            begun.notified().await;
            Ok("slow")
        };
        let never = async {
            begun.notify_one();
            pending().await
        };
        let attempts: [Attempt<'_>; 2] = [Box::pin(slow), Box::pin(never)];
        assert_eq!(first(attempts, SOON).await, Ok("slow"));
    }

    #[tokio::test]
    async fn all_failures_are_told() {
        let attempts = ["one", "two", "three"].map(|why| ready(Err::<(), _>(why)));
        assert_eq!(first(attempts, NEVER).await, Err(vec!["one", "two", "three"]));
        assert_eq!(first(Vec::<Attempt<'_>>::new(), NEVER).await, Err(vec![]));
    }
}
