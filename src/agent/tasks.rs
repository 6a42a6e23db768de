//! The tasks of a member: none ends without a word.
//!
//! Each is meant to run until it is stopped. One that returns or panics before is told by name to
//! whoever runs the agent, because the node would go on as half of itself.

use std::collections::HashMap;

use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinHandle, JoinSet};

/// Tasks that are to be watched.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Begins a task; `name` is for people.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.running.spawn(task).id(), name);
    }

    /// Watches them from now on; the first that ends is told to `failed`.
    pub(crate) fn watch(mut self, failed: mpsc::Sender<anyhow::Error>) -> Watched {
        let (stop, mut stopping) = oneshot::channel::<()>();
        let watch = tokio::spawn(async move {
            tokio::select! {
                // Stopped or dropped, it is the end.
                _ = &mut stopping => {}
                Some(ended) = self.running.join_next_with_id() => {
                    let (id, why) = match ended {
                        Ok((id, ())) => (id, "ended".to_owned()),
                        Err(error) => (error.id(), error.to_string()),
                    };
                    let name = self.names.get(&id).copied().unwrap_or("a task");
                    // One that was first may have said more already.
                    let _ = failed.try_send(anyhow::anyhow!("{name}: {why}; the agent cannot go on without it"));
                    let _ = stopping.await;
                }
            }
            self.running.shutdown().await;
        });
        Watched { stop, watch }
    }
}

/// Tasks that are watched; dropping this stops them.
#[derive(Debug)]
pub(crate) struct Watched {
    stop: oneshot::Sender<()>,
    watch: JoinHandle<()>,
}

impl Watched {
    /// Stops them; none runs any more when this returns.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        // It panics only with a task's own panic message on the log already.
        let _ = self.watch.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn task_that_panics_or_returns_is_told_by_name() {
        let (failed, mut failures) = mpsc::channel(1);
        let mut tasks = Tasks::default();
        tasks.spawn("the patient", std::future::pending());
        tasks.spawn("the broken", async { panic!("on purpose") });
        let watched = tasks.watch(failed.clone());
        let told = failures.recv().await.expect("told").to_string();
        assert!(told.contains("the broken") && told.contains("panic"), "{told}");
        watched.stop().await;

        let mut tasks = Tasks::default();
        tasks.spawn("the hasty", async {});
        let watched = tasks.watch(failed);
        let told = failures.recv().await.expect("told").to_string();
        assert!(told.contains("the hasty: ended"), "{told}");
        watched.stop().await;
    }

    #[tokio::test]
    async fn stopped_task_has_let_go_of_everything() {
        let (failed, mut failures) = mpsc::channel(1);
        let held = Arc::new(());
        let mut tasks = Tasks::default();
        let inside = Arc::clone(&held);
        tasks.spawn("the holder", async move {
            let _inside = inside;
            std::future::pending::<()>().await;
        });
        tasks.watch(failed).stop().await;
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(failures.recv().await.is_none(), "a task that is stopped has not failed");
    }
}
