//! What is written down for the next start while it changes: the newest at any time, again and again while that fails,
//! and nobody waits for it.

use std::time::Duration;

use tokio::sync::watch;

use crate::api::ApiError;

/// Where values of one kind are written down.
pub(super) trait File<T>: Send {
    /// Writes one down in place of the last.
    fn save(&mut self, value: T) -> impl Future<Output = Result<(), ApiError>> + Send;
}

/// Saves what `values` tell from now on. One that cannot be saved is tried again until it is, or there is a newer one;
/// `what` is for people.
pub(super) async fn keep<T: Clone + Send + Sync>(
    mut values: watch::Receiver<T>,
    what: &str,
    pause: Duration,
    mut file: impl File<T>,
) {
    while values.changed().await.is_ok() {
        let mut told = None;
        loop {
            let newest = values.borrow_and_update().clone();
            let Err(error) = file.save(newest).await else { break };
            let error = error.to_string();
            if told.as_ref() != Some(&error) {
                tracing::warn!(%error, "{what} not saved: a restart would begin with an older one; trying again");
            }
            told = Some(error);
            if let Ok(Err(_)) = tokio::time::timeout(pause, values.changed()).await {
                return;
            }
        }
    }
}

/// Until what could not be saved is tried again.
pub(super) const PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// A disk that is full for so many tries, and tells of each.
    struct Disk {
        refuses: usize,
        tried: mpsc::UnboundedSender<u32>,
    }

    impl File<u32> for Disk {
        async fn save(&mut self, value: u32) -> Result<(), ApiError> {
            self.tried.send(value).expect("somebody listens");
            let is_full = self.refuses > 0;
            self.refuses = self.refuses.saturating_sub(1);
            if is_full { Err(ApiError::internal("no space left")) } else { Ok(()) }
        }
    }

    #[tokio::test]
    async fn what_could_not_be_saved_is_saved_later_though_nothing_changes() {
        let (values, (tried, mut tries)) = (watch::Sender::new(0), mpsc::unbounded_channel());
        let disk = Disk { refuses: 2, tried };
        let saving = tokio::spawn(keep(values.subscribe(), "it was", Duration::from_millis(1), disk));
        values.send_replace(1);
        for _ in 0..3 {
            assert_eq!(tries.recv().await, Some(1));
        }
        values.send_replace(2);
        assert_eq!(tries.recv().await, Some(2), "what is saved is not saved again");
        drop(values);
        saving.await.expect("it ends with who tells");
        assert_eq!(tries.recv().await, None);
    }

    #[tokio::test]
    async fn newer_value_takes_the_place_of_one_that_cannot_be_saved() {
        let (values, (tried, mut tries)) = (watch::Sender::new(0), mpsc::unbounded_channel());
        let disk = Disk { refuses: 1, tried };
        let saving = tokio::spawn(keep(values.subscribe(), "it was", Duration::MAX, disk));
        values.send_replace(1);
        assert_eq!(tries.recv().await, Some(1));
        values.send_replace(2);
        assert_eq!(tries.recv().await, Some(2));
        saving.abort();
    }
}
