//! A manager that knows one secret and one view.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use overlayd::cluster::{Role, View};
use overlayd::control::ca::CertificateAuthority;
use overlayd::control::enrol::{Enrol, EnrolRefusal, EnrolRequest, Enrolled};
use overlayd::control::rpc::messages::{
    Attach, Attached, CaStatus, CaStatusRequest, ChangeNode, ChangedNode, Detach, Documents, Done,
    InspectNetwork, InspectNode, Leave, ListNetworks, ListNodes, NetworkDetail, NetworkReply, Networks,
    NewNetwork, NodeDetail, Nodes, RemoveNetwork, RemoveNode, RemovedNode, Renew, Renewed, RotateCa,
    SessionRequest, Token, TokenRequest, ViewUpdate,
};
use overlayd::control::rpc::messages::{IssueToken, IssuedToken, ListTokens, RemoveToken, TokenList};
use overlayd::control::rpc::messages::{Presence, PresenceRequest, StoreAccess, StoreAccessRequest};
use overlayd::control::rpc::{ErrorKind, ManagerApi, ManagerError, Updates};
use overlayd::control::tls::peer::PeerIdentity;
use overlayd::id::{NodeId, Version};
use overlayd::membership::{Roots, TokenSecret};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;

use crate::cluster::{SECRET, node, noon};

pub(crate) struct Desk {
    authority: Arc<CertificateAuthority>,
    roots: Roots,
    address: SocketAddr,
    view: watch::Sender<Arc<View>>,
    enrolments: watch::Sender<usize>,
    /// Whether who enrols has to wait.
    holds_enrolments: watch::Sender<bool>,
    taken_back: watch::Sender<Vec<NodeId>>,
    has_silent_store: AtomicBool,
    /// Whether somebody leaves, and whether that is to be done.
    leaving: watch::Sender<(bool, bool)>,
}

impl Desk {
    pub(crate) fn new(authority: Arc<CertificateAuthority>, roots: Roots, address: SocketAddr) -> Self {
        let view = View { version: Version::new(1), ..View::default() };
        Self {
            authority,
            roots,
            address,
            view: watch::Sender::new(Arc::new(view)),
            enrolments: watch::Sender::default(),
            holds_enrolments: watch::Sender::default(),
            taken_back: watch::Sender::default(),
            has_silent_store: AtomicBool::new(false),
            leaving: watch::Sender::default(),
        }
    }

    pub(crate) fn silence_store(&self) {
        self.has_silent_store.store(true, Ordering::SeqCst);
    }

    /// Waits until a node asks to leave, which then waits for [`Self::let_leave`].
    pub(crate) async fn await_leaving(&self) {
        self.leaving.subscribe().wait_for(|(leaving, _)| *leaving).await.expect("the desk lives");
    }

    pub(crate) fn let_leave(&self) {
        self.leaving.send_modify(|(_, may)| *may = true);
    }

    pub(crate) fn publish(&self, view: View) {
        self.view.send_replace(Arc::new(view));
    }

    pub(crate) fn enrolments(&self) -> usize {
        *self.enrolments.borrow()
    }

    pub(crate) async fn await_enrolments(&self, count: usize) {
        self.enrolments.subscribe().wait_for(|seen| *seen >= count).await.expect("the desk lives");
    }

    pub(crate) fn hold_enrolments(&self, holds: bool) {
        self.holds_enrolments.send_replace(holds);
    }

    /// Waits until so many nodes were taken back.
    pub(crate) async fn await_taken_back(&self, count: usize) -> Vec<NodeId> {
        let mut taken_back = self.taken_back.subscribe();
        let all = taken_back.wait_for(|all| all.len() >= count).await.expect("the desk lives");
        all.clone()
    }
}

impl Enrol for Desk {
    async fn enrol(&self, request: EnrolRequest, _from: SocketAddr) -> Result<Enrolled, EnrolRefusal> {
        self.enrolments.send_modify(|count| *count += 1);
        self.holds_enrolments.subscribe().wait_for(|holds| !holds).await.expect("the desk lives");
        if !request.secret.matches(&TokenSecret::from_entropy(SECRET)) {
            return Err(EnrolRefusal::WrongSecret);
        }
        let (id, role) = (node(50), Role::Worker);
        let leaf = self
            .authority
            .issue(&request.csr, id, role, noon(), time::Duration::DAY)
            .map_err(|error| EnrolRefusal::Invalid(error.to_string()))?;
        Ok(Enrolled {
            node: id,
            role,
            chain: vec![leaf],
            root: self.authority.root().clone(),
            roots: self.roots.clone(),
            managers: vec![self.address],
            advertise: self.address,
            data: self.address,
        })
    }

    async fn take_back(&self, node: NodeId) {
        self.taken_back.send_modify(|all| all.push(node));
    }
}

fn nothing<T>() -> Result<T, ManagerError> {
    Err(ManagerError::new(ErrorKind::Unavailable, "this desk does nothing"))
}

impl ManagerApi for Desk {
    fn manager_addresses(&self) -> Vec<SocketAddr> {
        vec!["192.0.2.1:2377".parse().expect("an address")]
    }

    async fn catch_up(&self) {
        if self.has_silent_store.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    async fn session(
        &self,
        _caller: PeerIdentity,
        _request: SessionRequest,
    ) -> Result<Updates, ManagerError> {
        let views = WatchStream::new(self.view.subscribe());
        Ok(Box::pin(views.map(|view| Documents::from(&ViewUpdate::full(&view)))))
    }

    async fn create_network(&self, _: PeerIdentity, _: NewNetwork) -> Result<NetworkReply, ManagerError> {
        nothing()
    }

    async fn remove_network(&self, _: PeerIdentity, _: RemoveNetwork) -> Result<Done, ManagerError> {
        nothing()
    }

    async fn list_networks(&self, _: PeerIdentity, _: ListNetworks) -> Result<Networks, ManagerError> {
        Ok(Networks { networks: vec![] })
    }

    async fn inspect_network(
        &self,
        _: PeerIdentity,
        request: InspectNetwork,
    ) -> Result<NetworkDetail, ManagerError> {
        let message = format!("there is no network {:?}", request.name.as_str());
        Err(ManagerError::new(ErrorKind::NotFound, message))
    }

    async fn attach(&self, _: PeerIdentity, _: Attach) -> Result<Attached, ManagerError> {
        nothing()
    }

    async fn detach(&self, _: PeerIdentity, _: Detach) -> Result<Done, ManagerError> {
        nothing()
    }

    async fn token(&self, _: PeerIdentity, _: TokenRequest) -> Result<Token, ManagerError> {
        nothing()
    }

    async fn issue_token(&self, _: PeerIdentity, _: IssueToken) -> Result<IssuedToken, ManagerError> {
        nothing()
    }

    async fn list_tokens(&self, _: PeerIdentity, _: ListTokens) -> Result<TokenList, ManagerError> {
        nothing()
    }

    async fn remove_token(&self, _: PeerIdentity, _: RemoveToken) -> Result<Done, ManagerError> {
        nothing()
    }

    async fn list_nodes(&self, _: PeerIdentity, _: ListNodes) -> Result<Nodes, ManagerError> {
        nothing()
    }

    async fn renew(&self, caller: PeerIdentity, request: Renew) -> Result<Renewed, ManagerError> {
        let leaf = self
            .authority
            .issue(&request.csr, caller.node, caller.role, noon(), time::Duration::days(90))
            .map_err(|error| ManagerError::new(ErrorKind::Invalid, error.to_string()))?;
        Ok(Renewed { chain: vec![leaf], root: None })
    }

    async fn rotate_ca(&self, _: PeerIdentity, _: RotateCa) -> Result<Done, ManagerError> {
        nothing()
    }

    async fn ca_status(&self, _: PeerIdentity, _: CaStatusRequest) -> Result<CaStatus, ManagerError> {
        nothing()
    }

    async fn remove_node(&self, _: PeerIdentity, _: RemoveNode) -> Result<RemovedNode, ManagerError> {
        nothing()
    }

    async fn inspect_node(&self, _: PeerIdentity, _: InspectNode) -> Result<NodeDetail, ManagerError> {
        nothing()
    }

    async fn change_node(&self, _: PeerIdentity, _: ChangeNode) -> Result<ChangedNode, ManagerError> {
        nothing()
    }

    async fn presence(&self, caller: PeerIdentity, _: PresenceRequest) -> Result<Presence, ManagerError> {
        Ok(Presence { connected: vec![caller.node], away: vec![], has_store: true })
    }

    async fn store_access(
        &self,
        _: PeerIdentity,
        _: StoreAccessRequest,
    ) -> Result<StoreAccess, ManagerError> {
        nothing()
    }

    async fn leave(&self, _: PeerIdentity, _: Leave) -> Result<Done, ManagerError> {
        self.leaving.send_modify(|(leaving, _)| *leaving = true);
        self.leaving.subscribe().wait_for(|(_, may)| *may).await.expect("the desk lives");
        Ok(Done {})
    }
}
