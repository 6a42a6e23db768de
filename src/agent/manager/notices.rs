//! Looks for the nodes that do not find this manager.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Manager;
use crate::agent::underlay::Underlay;
use crate::cluster::Node;
use crate::control::notice::Notice;

impl Manager {
    /// Tells every node that has no session where this manager is, for ever: one that only knows an
    /// earlier address would look there in vain.
    pub(crate) async fn tell_whereabouts(self: Arc<Self>, here: watch::Receiver<Underlay>) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            let notice = Notice { manager: here.borrow().at.advertise };
            for nodes in self.without_session().chunks(AT_A_TIME) {
                let mut telling = JoinSet::new();
                for node in nodes {
                    let (credentials, notice) = (Arc::clone(&self.credentials), notice.clone());
                    let (id, name, address) = (node.id, node.name.clone(), node.advertise);
                    telling.spawn(async move {
                        match notice.give(&credentials, address, id).await {
                            Ok(()) => tracing::info!(node = %name, "a node without session was told where this manager is"),
                            // It is down, as a rule.
                            Err(error) => tracing::debug!(node = %name, %error, "a node without session cannot be told"),
                        }
                    });
                }
                let _told_or_not = telling.join_all().await;
            }
        }
    }

    fn without_session(&self) -> Vec<Node> {
        let this = self.credentials.identity().node();
        let sessions = self.sessions.nodes();
        let nodes = self.state.nodes().into_iter().map(|status| status.node);
        nodes.filter(|node| node.id != this && !sessions.contains(&node.id)).collect()
    }
}

/// Nodes come back by themselves within a moment when their manager was only restarted.
const SHORTEST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const AT_A_TIME: usize = 32;
