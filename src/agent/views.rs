//! The view of the cluster, as a manager tells it: followed by the lanes at once, and written down for the next start.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::attachments::blocking;
use super::dataplane::DataPlane;
use super::office::Office;
use super::saving::{self, File};
use super::standing::Standing;
use crate::api::ApiError;
use crate::cluster::View;
use crate::control::store::Store;

/// Makes the lanes forward by each new view, and keeps it for the next start. A slow disk keeps no removed node in.
pub(super) async fn follow(
    mut views: watch::Receiver<Arc<View>>,
    (dataplane, office): (Arc<DataPlane>, Arc<Office>),
    standing: Arc<Standing>,
    file: impl File<Arc<View>>,
    failed: mpsc::Sender<anyhow::Error>,
) {
    let followed = watch::Sender::new(Arc::clone(&views.borrow()));
    let saving = saving::keep(followed.subscribe(), "the view was", saving::PAUSE, file);
    let following = async {
        while views.changed().await.is_ok() {
            let view = Arc::clone(&views.borrow_and_update());
            let view = standing.follow(view, office.manager().is_some());
            followed.send_replace(Arc::clone(&view));
            if let Err(gone) = dataplane.follow(view).await {
                let _ = failed.send(gone.into()).await;
                return;
            }
        }
    };
    tokio::select! {
        () = following => {}
        () = saving => {}
    }
}

/// Where views are written down.
pub(super) struct ViewFile {
    pub(super) store: Store,
    pub(super) standing: Arc<Standing>,
}

impl File<Arc<View>> for ViewFile {
    async fn save(&mut self, view: Arc<View>) -> Result<(), ApiError> {
        let (store, saved) = (self.store.clone(), Arc::clone(&view));
        blocking(move || store.put_view(&saved)).await?;
        self.standing.stored(&view.roots);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testbed::PaperCluster;
    use super::*;
    use crate::control::tls::Credentials;
    use crate::control::trust::Trust;
    use crate::id::Version;
    use crate::io::clock::wall_clock;

    /// A disk that never comes back.
    struct Stuck;

    impl File<Arc<View>> for Stuck {
        async fn save(&mut self, _: Arc<View>) -> Result<(), ApiError> {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn lanes_follow_one_view_after_the_other_while_the_disk_is_stuck() {
        let mut lab = Lab::new();
        let following = lab.follow(Stuck);
        for version in 1..=3 {
            lab.views.send_replace(lab.cluster.view(Vec::new(), &[]));
            lab.expect_followed(version).await;
        }
        following.abort();
    }

    struct Lab {
        cluster: PaperCluster,
        dataplane: Arc<DataPlane>,
        standing: Arc<Standing>,
        views: watch::Sender<Arc<View>>,
    }

    impl Lab {
        fn new() -> Self {
            let cluster = PaperCluster::new();
            let dataplane = Arc::new(cluster.dataplane());
            let trust = Trust::of(&cluster.identity).expect("a root");
            let credentials = Credentials::new(cluster.identity.clone(), trust, wall_clock).expect("usable");
            Self { cluster, dataplane, standing: Standing::new(credentials), views: watch::Sender::default() }
        }

        fn follow(&self, file: impl File<Arc<View>> + 'static) -> tokio::task::JoinHandle<()> {
            let followers = (Arc::clone(&self.dataplane), Office::new(None));
            let standing = Arc::clone(&self.standing);
            tokio::spawn(follow(self.views.subscribe(), followers, standing, file, mpsc::channel(1).0))
        }

        async fn expect_followed(&self, version: u64) {
            let mut followed = self.dataplane.followed();
            let reached = followed.wait_for(|followed| *followed == Version::new(version));
            let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
            assert!(matches!(reached, Ok(Ok(_))), "view {version} is not followed");
        }
    }
}
