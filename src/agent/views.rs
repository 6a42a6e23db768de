//! The view of the cluster, as a manager tells it: followed by the lanes at once, and written down for the next start,
//! with what peers told and it has not.

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
use crate::control::store::local::Hearsay;

/// What the next start is to know.
#[derive(Debug, Clone)]
pub(super) struct Outlook {
    view: Arc<View>,
    hearsay: Hearsay,
}

/// Follows what peers had told this node when it last ran and its view has not: who was left out stays so, and who has
/// moved is found, where no manager can be reached. Called before it serves anybody.
pub(super) async fn recall(store: &Store, dataplane: &DataPlane) -> anyhow::Result<()> {
    let store = store.clone();
    let Hearsay { memberships, moved } = blocking(move || store.hearsay()).await?;
    dataplane.recall(moved).await?;
    for (network, signed) in memberships {
        let adopted = dataplane.adopt(&signed).await?;
        if let Err(error) = adopted {
            tracing::warn!(%network, %error, "a membership in the state file is not believed");
        }
    }
    Ok(())
}

/// Makes the lanes forward by each new view, and keeps it for the next start. A slow disk keeps no removed node in.
pub(super) async fn follow(
    mut views: watch::Receiver<Arc<View>>,
    (dataplane, office): (Arc<DataPlane>, Arc<Office>),
    standing: Arc<Standing>,
    file: impl File<Outlook>,
    failed: mpsc::Sender<anyhow::Error>,
) {
    let mut hearsay = dataplane.hearsay();
    let outlook = Outlook { view: Arc::clone(&views.borrow()), hearsay: hearsay.borrow_and_update().clone() };
    let outlook = watch::Sender::new(outlook);
    let saving = saving::keep(outlook.subscribe(), "the view was", saving::PAUSE, file);
    let following = async {
        loop {
            let changed = tokio::select! {
                changed = views.changed() => changed,
                Ok(()) = hearsay.changed() => {
                    let now = hearsay.borrow_and_update().clone();
                    outlook.send_modify(|outlook| outlook.hearsay = now);
                    continue;
                }
            };
            if changed.is_err() {
                return;
            }
            let view = Arc::clone(&views.borrow_and_update());
            let view = standing.follow(view, office.manager().is_some());
            // Before what peers told of it: none of that is forgotten until the view is saved.
            outlook.send_modify(|outlook| outlook.view = Arc::clone(&view));
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

/// Where they are written down.
pub(super) struct OutlookFile {
    store: Store,
    standing: Arc<Standing>,
    written: Arc<View>,
}

impl OutlookFile {
    /// In the state file, which has the view `written`.
    pub(super) const fn new(store: Store, standing: Arc<Standing>, written: Arc<View>) -> Self {
        Self { store, standing, written }
    }
}

impl File<Outlook> for OutlookFile {
    async fn save(&mut self, outlook: Outlook) -> Result<(), ApiError> {
        let Outlook { view, hearsay } = outlook;
        let new = (!Arc::ptr_eq(&view, &self.written)).then_some(view);
        let (store, saved) = (self.store.clone(), new.clone());
        blocking(move || store.put_outlook(saved.as_deref(), &hearsay)).await?;
        if let Some(view) = new {
            self.standing.stored(&view.roots);
            self.written = view;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::testbed::{PaperCluster, peer};
    use super::*;
    use crate::control::tls::Credentials;
    use crate::control::trust::Trust;
    use crate::id::Version;
    use crate::io::clock::wall_clock;
    use crate::membership::SignedMembership;
    use crate::negotiate::Whereabouts;

    /// A disk that never comes back.
    struct Stuck;

    impl File<Outlook> for Stuck {
        async fn save(&mut self, _: Outlook) -> Result<(), ApiError> {
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

    #[tokio::test]
    async fn node_that_was_left_out_stays_so_though_the_agent_dies_before_a_manager_tells_of_it() {
        let mut lab = Lab::new();
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        let following = lab.follow_in(&store).await;
        let newer = lab.cluster.sign(&lab.cluster.membership(1, 6, &[3]));
        assert_eq!(lab.dataplane.adopt(&newer).await, Ok(Ok(())));
        expect_saved(&store, 1, &[newer]).await;

        let again = lab.start_again(&store).await;
        assert_eq!(again.peers().borrow().keys().copied().collect::<Vec<_>>(), [peer(3)]);

        // Once the manager tells of it, it is not kept twice.
        let network = lab.cluster.network(1, 6, &[3]);
        lab.views.send_replace(lab.cluster.view(vec![network], &[]));
        expect_saved(&store, 2, &[]).await;
        following.abort();
    }

    #[tokio::test]
    async fn node_that_has_moved_is_found_though_the_agent_dies_before_a_manager_tells_of_it() {
        let mut lab = Lab::new();
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        let following = lab.follow_in(&store).await;
        let at = |port| std::net::SocketAddr::from(([192, 0, 2, 77], port));
        let there = Whereabouts { advertise: at(2377), data: at(4500) };
        assert_eq!(lab.dataplane.hear(peer(2), there).await, Ok(true));
        expect("the move is saved", || !store.hearsay().expect("read").moved.is_empty()).await;

        let again = lab.start_again(&store).await;
        assert_eq!(again.peers().borrow()[&peer(2)].node.data, there.data);
        assert_ne!(again.peers().borrow()[&peer(3)].node.data, there.data);
        following.abort();
    }

    async fn expect_saved(store: &Store, version: u64, passed_on: &[SignedMembership]) {
        expect("it is saved", || {
            let view = store.view().expect("read").unwrap_or_default();
            let kept = store.hearsay().expect("read").memberships;
            view.version == Version::new(version) && kept.values().eq(passed_on)
        })
        .await;
    }

    async fn expect(what: &str, is_so: impl Fn() -> bool) {
        let so = async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(10), so).await.is_ok(), "not so: {what}");
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

        fn follow(&self, file: impl File<Outlook> + 'static) -> tokio::task::JoinHandle<()> {
            let followers = (Arc::clone(&self.dataplane), Office::new(None));
            let standing = Arc::clone(&self.standing);
            tokio::spawn(follow(self.views.subscribe(), followers, standing, file, mpsc::channel(1).0))
        }

        /// Follows a first view, of a network with two peers, and keeps what it is told.
        async fn follow_in(&mut self, store: &Store) -> tokio::task::JoinHandle<()> {
            let written = Arc::clone(&self.views.borrow());
            let file = OutlookFile::new(store.clone(), Arc::clone(&self.standing), written);
            let following = self.follow(file);
            let network = self.cluster.network(1, 5, &[2, 3]);
            self.views.send_replace(self.cluster.view(vec![network], &[]));
            self.expect_followed(1).await;
            following
        }

        /// The lanes of the next agent, which knows what was kept.
        async fn start_again(&self, store: &Store) -> DataPlane {
            let again = self.cluster.dataplane();
            let view = store.view().expect("read").expect("saved");
            again.follow(Arc::new(view)).await.expect("a lane");
            recall(store, &again).await.expect("read");
            again
        }

        async fn expect_followed(&self, version: u64) {
            let mut followed = self.dataplane.followed();
            let reached = followed.wait_for(|followed| *followed == Version::new(version));
            let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
            assert!(matches!(reached, Ok(Ok(_))), "view {version} is not followed");
        }
    }
}
