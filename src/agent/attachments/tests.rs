//! Attachments on paper, over the state file and a lane, and a manager that says nothing.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;

use super::super::testbed::{PaperCluster, THIS, endpoint_id, network_id};
use super::Attachments;
use crate::agent::offloads::OffloadBook;
use crate::api::types::{DetachRequest, DetachTarget};
use crate::cluster::{Endpoint, NetworkView};
use crate::config::OffloadConfig;
use crate::control::rpc::ManagerClient;
use crate::control::store::Store;
use crate::control::store::local::{Attachment, AttachmentState, DockerEndpoint, NetnsRef};
use crate::control::tls::Credentials;
use crate::control::trust::Trust;
use crate::events::Events;
use crate::io::clock::wall_clock;
use crate::rate::RateLimits;

/// A node whose containers have all ended.
pub(super) struct Lab {
    cluster: PaperCluster,
    pub(super) attachments: Attachments,
    _dir: tempfile::TempDir,
}

impl Lab {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        let cluster = PaperCluster::new();
        let dataplane = Arc::new(cluster.dataplane());
        let offloads = Arc::new(OffloadBook::new(OffloadConfig::default()));
        let attachments = Attachments::new(store, cluster.this(), dataplane, offloads, Events::default());
        Self { cluster, attachments, _dir: dir }
    }

    /// A view that has an endpoint here; it is that of [`Self::pending`] 1.
    pub(super) async fn follow_endpoint_here(&mut self) {
        let network = self.cluster.network(1, 1, &[2]);
        let view = self.cluster.view(vec![network], &[]);
        self.attachments.dataplane.follow(view).await.expect("a lane");
    }

    /// What a manager answers, and tells in a view.
    pub(super) fn answer(&self, attachment: &Attachment) -> (Endpoint, NetworkView) {
        let view = self.cluster.network(1, 1, &[2]);
        let here = view.endpoints.iter().find(|endpoint| endpoint.node == self.cluster.this());
        let endpoint = Endpoint { id: attachment.id, ..here.expect("one is here").clone() };
        (endpoint, view)
    }

    pub(super) fn pending(&self, network: u8) -> Attachment {
        Attachment {
            id: endpoint_id(network, THIS),
            network: format!("net-{network}").parse().expect("a name"),
            netns: NetnsRef { path: PathBuf::from("/run/netns/of-nobody"), dev: 1, inode: 1 },
            // Every namespace has one: whatever goes wrong, none is made.
            ifname: "lo".parse().expect("a name"),
            name: None,
            cni: None,
            docker: None,
            ips: Vec::new(),
            mac: None,
            rates: RateLimits::default(),
            state: AttachmentState::Pending,
            endpoint: None,
            mtu: None,
        }
    }

    /// One of Docker's that is in no container.
    pub(super) fn held(&self, network: u8) -> Attachment {
        let pending = self.pending(network);
        let (endpoint, _) = self.answer(&pending);
        let endpoint = Some(Endpoint { network: network_id(network), ..endpoint });
        let docker = Some(DockerEndpoint::default());
        Attachment { state: AttachmentState::Held, endpoint, docker, ..pending }
    }

    pub(super) fn detachment(&self, attachment: &Attachment) -> DetachRequest {
        let target = DetachTarget::Endpoint(attachment.id);
        DetachRequest { network: attachment.network.clone(), target }
    }
}

/// A manager whose host takes connections and whose process answers nothing.
pub(super) struct SilentManager {
    listener: TcpListener,
    pub(super) client: ManagerClient,
}

impl SilentManager {
    pub(super) async fn new(lab: &Lab) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let trust = Trust::of(&lab.cluster.identity).expect("a root");
        let credentials = Credentials::new(lab.cluster.identity.clone(), trust, wall_clock).expect("usable");
        let address = listener.local_addr().expect("an address");
        Self { client: ManagerClient::new(credentials, vec![address]), listener }
    }

    /// Resolves once somebody asks it.
    pub(super) async fn asked(&self) {
        let (connection, _) = self.listener.accept().await.expect("a connection");
        // It stays open: whoever asked waits.
        std::mem::forget(connection);
    }
}

#[tokio::test]
async fn endpoint_that_was_removed_here_is_no_leftover_until_a_view_lacks_it() {
    let mut lab = Lab::new().await;
    let held = lab.held(1);
    lab.attachments.put(held.clone()).await.expect("written");
    lab.follow_endpoint_here().await;
    lab.attachments.detach(None, &lab.detachment(&held)).await.expect("detached");
    let known = lab.attachments.dataplane.view().await;
    assert_eq!(lab.attachments.dead_endpoints(&known, &[]), [held.id], "the view is of before");
    lab.attachments.reconcile(None).await.expect("nothing to do");
    assert!(lab.attachments.departed.has(held.id), "an ordinary detachment is reported as a leftover");
    let view = lab.cluster.view(Vec::new(), &[]);
    lab.attachments.dataplane.follow(view).await.expect("a lane");
    lab.attachments.reconcile(None).await.expect("nothing to do");
    assert!(!lab.attachments.departed.has(held.id), "it is remembered for ever");
}
