//! What a manager does for the nodes: admits them, keeps the cluster's state, tells each its view.
//!
//! It joins `control::state`, which decides, to the API and enrolment of `control`, which carry.
//! Calls that touch the disk run where they keep no other call waiting.

mod admission;
mod colleagues;
mod freshness;
mod high_water;
mod joins;
mod nodes;
mod promotion;
mod returning;
mod sessions;
mod telling;
mod tenure;
mod token_clock;
mod tokens;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use self::colleagues::Colleagues;
use self::freshness::Freshness;
use super::authority::{StoredAuthority, StoredAuthorityError, chain};
use crate::cluster::{Node, Role};
use crate::control::enrol::{Enrol, EnrolRefusal, EnrolRequest, Enrolled, JoinCounts};
use crate::control::renewal::Signer;
use crate::control::rpc::messages::{
    Attach, Attached, CaStatus, CaStatusRequest, ChangeNode, ChangedNode, Detach, Done, InspectNetwork,
    InspectNode, Leave, ListNetworks, ListNodes, NetworkDetail, NetworkReply, Networks, NewNetwork,
    NodeDetail, NodeStatus, Nodes, RemoveNetwork, RemoveNode, RemovedNode, Renew, Renewed, RotateCa,
    SessionRequest, Token, TokenRequest,
};
use crate::control::rpc::messages::{IssueToken, IssuedToken, ListTokens, RemoveToken, TokenList};
use crate::control::rpc::messages::{Presence, PresenceRequest, StoreAccess, StoreAccessRequest};
use crate::control::rpc::{ErrorKind, ManagerApi, ManagerError, Updates};
use crate::control::state::{self, ClusterState, StateError};
use crate::control::store::Store;
use crate::control::tls::Credentials;
use crate::control::tls::peer::PeerIdentity;
use crate::control::trust::Trust;
use crate::events::Events;
use crate::id::{HostName, NodeId};
use crate::io::clock::{boot_time, wall_clock};
use crate::membership::Root;
use crate::membership::token::{JoinToken, TokenSecret};

use self::sessions::Sessions;
use self::token_clock::TokenClock;

/// The manager of a cluster, on the node that keeps its state.
pub(crate) struct Manager {
    pub(super) state: ClusterState,
    /// What this node keeps for itself.
    own: Store,
    pub(super) credentials: Arc<Credentials>,
    token_clock: TokenClock,
    pub(super) events: Events,
    joins: Arc<JoinCounts>,
    pub(super) sessions: Sessions,
    colleagues: Colleagues,
    freshness: Freshness,
    /// Whether the cluster's state can be reached.
    store: watch::Sender<bool>,
}

impl Manager {
    /// Serves `state`.
    pub(crate) fn new(
        (state, own): (ClusterState, Store),
        credentials: Arc<Credentials>,
        events: Events,
    ) -> Result<Arc<Self>, StoredAuthorityError> {
        // What cannot be read is told now, and not by the first node that wants a certificate.
        let (this, shown) = (credentials.identity().node(), Arc::clone(&credentials));
        state.serve_as(this, move || shown.identity().issued_at());
        state.name_root(StoredAuthority::open(&state)?.root())?;
        let token_clock = TokenClock::since(state.tokens_changed(), boot_time());
        let manager = Self {
            state,
            own,
            credentials,
            token_clock,
            events,
            joins: Arc::default(),
            sessions: Sessions::default(),
            colleagues: Colleagues::default(),
            freshness: Freshness::default(),
            store: watch::Sender::new(true),
        };
        // Before the first connection is accepted.
        manager.renew_trust();
        Ok(Arc::new(manager))
    }

    /// Holds every node against the list of members from now on, until the state ends.
    pub(crate) async fn keep_trust(self: Arc<Self>) {
        let mut versions = self.state.versions();
        let mut members = None;
        loop {
            versions.borrow_and_update();
            // Most changes are of endpoints.
            let changed = self.state.trust_changed();
            if members.replace(changed) != Some(changed) {
                self.renew_trust();
            }
            if versions.changed().await.is_err() {
                return;
            }
        }
    }

    fn renew_trust(&self) {
        let members = self.state.nodes().into_iter().map(|status| status.node.id).collect();
        match Trust::new(self.state.id(), self.state.roots()) {
            Ok(trust) => {
                self.credentials.replace_trust(
                    trust
                        .with_removed(self.state.removed_nodes())
                        .with_demoted(self.state.demoted())
                        .with_known(members),
                );
            }
            Err(error) => tracing::error!(%error, "the cluster's root cannot be used"),
        }
    }

    /// The join token of a role. It names the root of this manager's own certificate, which is what a
    /// machine that joins is shown.
    pub(crate) fn token(&self, role: Role) -> JoinToken {
        let identity = self.credentials.identity();
        JoinToken::new(identity.root(), TokenSecret::from_entropy(self.state.token(role)))
    }

    /// How many nodes are in the cluster beside this one.
    pub(crate) fn other_nodes(&self) -> usize {
        self.state.nodes().len().saturating_sub(1)
    }

    /// The other nodes of the cluster.
    pub(crate) fn others(&self) -> Vec<Node> {
        let this = self.credentials.identity().node();
        self.state.nodes().into_iter().map(|status| status.node).filter(|node| node.id != this).collect()
    }

    /// The nodes that have no session, with any manager.
    pub(crate) async fn absent(&self) -> BTreeSet<NodeId> {
        let others = self.others();
        let here = self.sessions.nodes();
        if others.iter().all(|node| here.contains(&node.id)) {
            return BTreeSet::new();
        }
        let census = self.census().await;
        others.into_iter().map(|node| node.id).filter(|id| !census.connected.contains(id)).collect()
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let nodes = self.state.nodes().into_iter().map(|status| status.node);
        nodes.filter(|node| node.role == Role::Manager).map(|node| node.advertise).collect()
    }
}

impl Enrol for Arc<Manager> {
    async fn enrol(&self, request: EnrolRequest, from: SocketAddr) -> Result<Enrolled, EnrolRefusal> {
        let unavailable = |error: ManagerError| EnrolRefusal::Unavailable(error.message);
        self.service_soon().await.map_err(unavailable)?;
        let answer = self.admit_aside(request.clone(), from).await;
        if answer != Err(EnrolRefusal::WrongSecret) || self.state.rows().shared().is_none() {
            return answer;
        }
        // Another manager may have made the token a moment ago.
        let fresh = tokio::time::timeout(FRESHENING, self.freshen()).await;
        fresh.unwrap_or_else(|_| Err(tenure::no_store())).map_err(unavailable)?;
        self.admit_aside(request, from).await
    }

    async fn take_back(&self, node: NodeId) {
        self.take_back_node(node).await;
    }
}

impl ManagerApi for Arc<Manager> {
    fn manager_addresses(&self) -> Vec<SocketAddr> {
        self.addresses()
    }

    fn serves(&self) -> Result<(), ManagerError> {
        self.require_office()
    }

    async fn knows_managers(&self) -> Result<(), ManagerError> {
        self.service_soon().await
    }

    async fn catch_up(&self) {
        // Without the store nothing is changed either.
        if !*self.store.borrow() {
            return;
        }
        let _ = tokio::time::timeout(FRESHENING, self.freshen()).await;
    }

    fn role(&self, caller: &PeerIdentity) -> Role {
        self.state.node(caller.node).map_or(Role::Worker, |node| node.role)
    }

    fn node_name(&self, node: NodeId) -> Option<HostName> {
        Some(self.state.node(node)?.name)
    }

    async fn session(&self, caller: PeerIdentity, request: SessionRequest) -> Result<Updates, ManagerError> {
        self.begin_session(caller, request).await
    }

    async fn create_network(&self, _: PeerIdentity, new: NewNetwork) -> Result<NetworkReply, ManagerError> {
        let network = self.on_state(move |state| state.create_network(new)).await?;
        Ok(NetworkReply { network })
    }

    async fn remove_network(&self, _: PeerIdentity, request: RemoveNetwork) -> Result<Done, ManagerError> {
        self.on_state(move |state| state.remove_network(&request.name)).await?;
        Ok(Done {})
    }

    async fn list_networks(&self, _: PeerIdentity, _: ListNetworks) -> Result<Networks, ManagerError> {
        Ok(Networks { networks: self.state.networks() })
    }

    async fn inspect_network(
        &self,
        _: PeerIdentity,
        request: InspectNetwork,
    ) -> Result<NetworkDetail, ManagerError> {
        Ok(NetworkDetail { view: self.state.inspect(&request.name)? })
    }

    async fn attach(&self, caller: PeerIdentity, request: Attach) -> Result<Attached, ManagerError> {
        self.on_state(move |state| state.attach(caller.node, &request)).await
    }

    async fn detach(&self, caller: PeerIdentity, request: Detach) -> Result<Done, ManagerError> {
        self.on_state(move |state| state.detach(caller.node, request.endpoint)).await?;
        Ok(Done {})
    }

    async fn token(&self, _: PeerIdentity, request: TokenRequest) -> Result<Token, ManagerError> {
        let role = request.role;
        if request.rotate {
            self.on_state(move |state| state.rotate_token(role, rand::random())).await?;
        }
        Ok(Token { token: Manager::token(self, role).reveal() })
    }

    async fn issue_token(&self, _: PeerIdentity, request: IssueToken) -> Result<IssuedToken, ManagerError> {
        self.make_token(request).await
    }

    async fn list_tokens(&self, _: PeerIdentity, _: ListTokens) -> Result<TokenList, ManagerError> {
        Ok(self.token_list())
    }

    async fn remove_token(&self, _: PeerIdentity, request: RemoveToken) -> Result<Done, ManagerError> {
        self.void_token(request).await
    }

    async fn list_nodes(&self, _: PeerIdentity, _: ListNodes) -> Result<Nodes, ManagerError> {
        let census = self.census().await;
        let nodes = self.state.nodes().into_iter().map(|status| NodeStatus {
            connected: census.connected.contains(&status.node.id),
            manager: census.manager(status.node.id),
            node: status.node,
            profile: status.profile,
            endpoints: status.endpoints,
        });
        Ok(Nodes { nodes: nodes.collect() })
    }

    async fn renew(&self, caller: PeerIdentity, request: Renew) -> Result<Renewed, ManagerError> {
        self.renewed(request.csr, caller.node).await
    }

    async fn rotate_ca(&self, _: PeerIdentity, request: RotateCa) -> Result<Done, ManagerError> {
        Manager::rotate(self, request).await
    }

    async fn ca_status(&self, _: PeerIdentity, _: CaStatusRequest) -> Result<CaStatus, ManagerError> {
        Ok(Manager::rotation_status(self).await)
    }

    async fn leave(&self, caller: PeerIdentity, _: Leave) -> Result<Done, ManagerError> {
        self.dismiss(caller).await
    }

    async fn remove_node(&self, caller: PeerIdentity, node: RemoveNode) -> Result<RemovedNode, ManagerError> {
        self.remove(&caller, node).await
    }

    async fn inspect_node(&self, _: PeerIdentity, node: InspectNode) -> Result<NodeDetail, ManagerError> {
        self.describe(&node).await
    }

    async fn store_access(
        &self,
        _: PeerIdentity,
        _: StoreAccessRequest,
    ) -> Result<StoreAccess, ManagerError> {
        Manager::store_access(self)
    }

    async fn presence(&self, _: PeerIdentity, _: PresenceRequest) -> Result<Presence, ManagerError> {
        Ok(self.presence_here())
    }

    async fn change_node(&self, _: PeerIdentity, node: ChangeNode) -> Result<ChangedNode, ManagerError> {
        self.change(node).await
    }
}

/// A manager signs for itself: with an expired certificate it could call nobody.
impl Signer for Arc<Manager> {
    async fn sign(&self, csr: String) -> Result<Renewed, ManagerError> {
        self.renewed(csr, self.credentials.identity().node()).await
    }
}

impl Manager {
    async fn renewed(&self, csr: String, node: NodeId) -> Result<Renewed, ManagerError> {
        let life = self.certificate_life();
        let issue = move |state: &ClusterState| {
            let authority = StoredAuthority::open(state);
            // What it may do is the state's word, of the version that the certificate names: its own certificate
            // may be of before that was changed, and since this was asked it may have been made a worker.
            let (role, version) = state.role_at(node)?;
            Ok(authority.map(|authority| {
                let leaf = authority.issue_at(version, &csr, (node, role), wall_clock(), life);
                leaf.map(|leaf| (leaf, authority.root().clone()))
            }))
        };
        let failed = |kind, error: &dyn std::error::Error| ManagerError::new(kind, error.to_string());
        let issued = self.on_state(issue).await?.map_err(|error| failed(ErrorKind::Internal, &error))?;
        let (leaf, root) = issued.map_err(|error| failed(ErrorKind::Invalid, &error))?;
        Ok(Renewed { chain: chain(&self.state, leaf, &root), root: Some(Root::plain(root.to_vec())) })
    }

    pub(super) fn certificate_life(&self) -> time::Duration {
        time::Duration::try_from(self.state.certificate_life()).unwrap_or(time::Duration::MAX)
    }

    pub(super) async fn on_state<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ClusterState) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, ManagerError> {
        let state = self.state.clone();
        let done = tokio::task::spawn_blocking(move || work(&state)).await;
        let done = done.map_err(|_| ManagerError::new(ErrorKind::Internal, "a task of the manager died"))?;
        Ok(done?)
    }
}

impl From<StateError> for EnrolRefusal {
    fn from(error: StateError) -> Self {
        if let StateError::Token(refusal) = error {
            return refusal.into();
        }
        match error.kind() {
            state::ErrorKind::Invalid | state::ErrorKind::Conflict => Self::Invalid(error.to_string()),
            state::ErrorKind::NotFound
            | state::ErrorKind::Denied
            | state::ErrorKind::Barred
            | state::ErrorKind::Unavailable
            | state::ErrorKind::Internal => Self::Unavailable(error.to_string()),
        }
    }
}

impl From<StateError> for ManagerError {
    fn from(error: StateError) -> Self {
        let kind = match error.kind() {
            state::ErrorKind::Invalid => ErrorKind::Invalid,
            state::ErrorKind::NotFound => ErrorKind::NotFound,
            state::ErrorKind::Conflict => ErrorKind::Conflict,
            state::ErrorKind::Denied => ErrorKind::Denied,
            state::ErrorKind::Barred => ErrorKind::Barred,
            state::ErrorKind::Unavailable => ErrorKind::Unavailable,
            state::ErrorKind::Internal => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

pub(super) const NO_PANIC: &str = "nothing panics while nodes are counted";
/// How long one who asks waits for what others have changed of who may.
const FRESHENING: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::super::authority::first_identity;
    use super::super::member::payload_signer;
    use super::*;
    use crate::control::ca::CertificateAuthority;
    use crate::control::renewal;
    use crate::control::state::{NewCluster, Tokens};
    use crate::id::{ClusterId, Version};
    use crate::membership::SignedMembership;

    #[tokio::test]
    async fn node_that_left_is_barred_for_as_long_as_any_certificate_of_it_can_live() {
        let (manager, _dir) = manager();
        // It came with an old certificate, and may have had a new one signed a moment ago.
        let caller = worker(&manager);
        assert!(manager.credentials.trust().admit_node(caller.node).is_ok());
        let left = ManagerApi::leave(&manager, caller.clone(), Leave {}).await;
        assert_eq!(left, Ok(Done {}));
        manager.renew_trust();
        assert!(manager.credentials.trust().admit_node(caller.node).is_err());
        let almost = wall_clock() + manager.certificate_life() - Duration::from_secs(60);
        manager
            .state
            .forget_expired(u64::try_from(almost.unix_timestamp()).expect("after 1970"))
            .expect("done");
        assert!(manager.state.removed_nodes().contains(&caller.node));
    }

    #[tokio::test]
    async fn manager_renews_its_own_certificate_without_a_connection() {
        let (manager, _dir) = manager();
        let before = manager.credentials.identity();
        renewal::renew(&manager.credentials, &manager, &|_| Ok(())).await.expect("renewed");
        let after = manager.credentials.identity();
        assert_eq!((after.node(), after.role()), (before.node(), Role::Manager));
        assert_ne!(after.chain(), before.chain());
        // What was signed before stays in force, and so does what is signed from now on.
        let signer = payload_signer(&manager.credentials);
        let membership = crate::cluster::Membership {
            network: crate::id::NetworkId::from_entropy([1; 16]),
            vni: crate::id::Vni::new(4096).expect("a VNI"),
            epoch: crate::id::Epoch::new(1),
            nodes: [before.node()].into(),
        };
        let signed = SignedMembership::sign(&membership, signer).expect("signed");
        let verified =
            signed.verify(&manager.state.roots(), after.cluster(), &std::collections::BTreeSet::new());
        assert_eq!(verified, Ok(membership));
    }

    #[tokio::test]
    async fn manager_that_does_not_reach_the_store_admits_nobody_and_does_not_say_who_is_a_manager() {
        let (manager, _dir) = manager();
        assert_eq!(ManagerApi::knows_managers(&manager).await, Ok(()));
        manager.store.send_replace(false);
        let refused = ManagerApi::knows_managers(&manager).await.expect_err("refused");
        assert_eq!(refused.kind, ErrorKind::Unavailable);
        // Not that the token is none, which another manager may have made.
        let request = EnrolRequest {
            secret: TokenSecret::from_entropy([1; 16]),
            csr: String::new(),
            machine: crate::control::enrol::Joining {
                host: "new".parse().expect("a name"),
                advertise: None,
                advertise_port: 2377,
                data: None,
                underlay_mtu: 1500,
                taken: None,
            },
            former: None,
            root_hash: None,
        };
        let refused = manager.enrol(request, SocketAddr::from(([192, 0, 2, 2], 40000))).await;
        assert!(matches!(refused, Err(EnrolRefusal::Unavailable(_))), "{refused:?}");
    }

    #[tokio::test]
    async fn worker_that_was_a_manager_a_moment_ago_gets_a_workers_certificate() {
        let (manager, _dir) = manager();
        let mut caller = worker(&manager);
        // By its certificate.
        caller.role = Role::Manager;
        let key = crate::control::identity::NodeKey::generate().expect("a key");
        let request = Renew { csr: key.request_pem().expect("a request") };
        let renewed = ManagerApi::renew(&manager, caller.clone(), request).await.expect("renewed");
        let name = crate::control::identity::CertificateName::parse(&renewed.chain[0]).expect("a name");
        assert_eq!((name.node, name.role), (caller.node, Role::Worker));
    }

    pub(in crate::agent) fn manager() -> (Arc<Manager>, tempfile::TempDir) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::create(dir.path()).expect("a state file");
        let cluster = ClusterId::from_entropy([7; 16]);
        let authority = CertificateAuthority::create(cluster, wall_clock()).expect("an authority");
        let life = Duration::from_secs(7200);
        let identity = first_identity(&authority, life).expect("an identity");
        let trust = Trust::of(&identity).expect("a root");
        let credentials = Credentials::new(identity.clone(), trust, wall_clock).expect("credentials");
        let new = NewCluster {
            id: cluster,
            ca: StoredAuthority::store(&authority),
            root: authority.root().to_vec(),
            pools: Vec::new(),
            certificate_life: life,
            tokens: Tokens { worker: rand::random(), manager: rand::random() },
        };
        let state = ClusterState::create(store.clone(), new, payload_signer(&credentials)).expect("a state");
        state.add_node(node(identity.node(), Role::Manager, 1)).expect("added");
        (Manager::new((state, store), credentials, Events::default()).expect("a manager"), dir)
    }

    fn worker(manager: &Manager) -> PeerIdentity {
        let id = NodeId::from_entropy([9; 16]);
        manager.state.add_node(node(id, Role::Worker, 2)).expect("added");
        manager.renew_trust();
        let address = SocketAddr::from(([192, 0, 2, 2], 40000));
        PeerIdentity {
            node: id,
            role: Role::Worker,
            issued_at: Version::new(0),
            address,
            certificate_expires: wall_clock(),
        }
    }

    pub(in crate::agent) fn node(id: NodeId, role: Role, host: u8) -> Node {
        Node {
            id,
            name: format!("node-{host}").parse().expect("a name"),
            role,
            advertise: SocketAddr::from(([192, 0, 2, host], 2377)),
            data: SocketAddr::from(([192, 0, 2, host], 4500)),
            underlay_mtu: 1500,
        }
    }
}
