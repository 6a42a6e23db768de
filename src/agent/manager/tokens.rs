//! A manager's join tokens that were made to order: their secrets, their time, what a refused one is told.

use std::sync::Arc;
use std::time::Duration;

use crate::control::enrol::EnrolRefusal;
use crate::control::rpc::ManagerError;
use crate::control::rpc::messages::{Done, IssueToken, IssuedToken, RemoveToken, TokenList};
use crate::control::state::{NewToken, TokenRefusal};
use crate::id::TokenId;
use crate::io::clock::{boot_time, wall_clock};
use crate::membership::token::{JoinToken, TokenSecret};

use super::Manager;

impl Manager {
    /// The time by which tokens expire, in seconds since 1970.
    pub(super) fn token_time(&self) -> u64 {
        self.token_clock.now(wall_clock(), boot_time(), self.state.tokens_changed())
    }

    /// Writes down now and again which tokens have expired.
    pub(crate) async fn settle_tokens(self: Arc<Self>) {
        let mut known = None;
        loop {
            let now = self.token_time();
            let settled = self.on_state(move |state| state.settle_tokens(now)).await;
            let failure = settled.err().map(|error| error.to_string());
            if let Some(error) = &failure
                && known != failure
            {
                tracing::warn!(%error, "tokens that expired were not written down");
            }
            known = failure;
            tokio::time::sleep(SETTLE_INTERVAL).await;
        }
    }

    pub(super) async fn make_token(&self, request: IssueToken) -> Result<IssuedToken, ManagerError> {
        let secret = TokenSecret::from_entropy(rand::random());
        let token = JoinToken::new(self.credentials.identity().root(), secret.clone()).reveal();
        let new = NewToken {
            id: TokenId::from_entropy(rand::random()),
            secret,
            role: request.role,
            once: request.once,
            life: request.life_seconds.map(Duration::from_secs),
        };
        let now = self.token_time();
        let info = self.on_state(move |state| state.issue_token(&new, now)).await?;
        Ok(IssuedToken { token, info })
    }

    pub(super) fn token_list(&self) -> TokenList {
        TokenList { tokens: self.state.tokens(self.token_time()) }
    }

    pub(super) async fn void_token(&self, request: RemoveToken) -> Result<Done, ManagerError> {
        let now = self.token_time();
        self.on_state(move |state| state.remove_token(request.id, now)).await?;
        Ok(Done {})
    }
}

impl From<TokenRefusal> for EnrolRefusal {
    fn from(refusal: TokenRefusal) -> Self {
        match refusal {
            TokenRefusal::Unknown => Self::WrongSecret,
            TokenRefusal::Expired => Self::TokenExpired,
            TokenRefusal::Used(node) => Self::TokenUsed { node },
            TokenRefusal::Removed => Self::TokenRemoved,
        }
    }
}

const SETTLE_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::net::SocketAddr;

    use tokio::net::TcpListener;
    use tokio::sync::{mpsc, watch};

    use super::super::tests::manager;
    use super::*;
    use crate::cluster::{Role, TokenName, TokenState};
    use crate::control::enrol::{self, EnrolError, EnrolRequest, Enrolled, Joining};
    use crate::control::identity::NodeKey;
    use crate::control::listener::{Doors, ManagerDoors, listen};
    use crate::id::NodeId;

    #[tokio::test]
    async fn one_time_token_lets_one_of_twenty_machines_join_that_try_at_once() {
        let (manager, _dir) = manager();
        let address = serve(&manager).await;
        let issued = manager.make_token(once()).await.expect("a token");
        let token: JoinToken = issued.token.parse().expect("a token");
        let attempts = futures_util::future::join_all((10..30).map(|host| join(address, &token, host)));
        let (joined, refused): (Vec<_>, Vec<_>) = attempts.await.into_iter().partition(Result::is_ok);
        let joined: Vec<_> = joined.into_iter().filter_map(Result::ok).collect();
        let [winner] = joined[..] else { panic!("{} joined", joined.len()) };
        for error in refused.into_iter().filter_map(Result::err) {
            let EnrolError::Refused(refusal) = error else { panic!("{error}") };
            let used = EnrolRefusal::TokenUsed { node: winner };
            let later = matches!(refusal, EnrolRefusal::TooManyAttempts { .. });
            assert!(refusal == used || later, "{refusal}");
        }
        let nodes: BTreeSet<_> = manager.state.nodes().into_iter().map(|status| status.node.id).collect();
        assert_eq!(nodes, [manager.credentials.identity().node(), winner].into());
        let listed = manager.token_list().tokens;
        let state = listed.iter().find(|token| token.name == issued.info.name).map(|token| token.state);
        assert_eq!(state, Some(TokenState::Used(winner)));
    }

    #[tokio::test]
    async fn token_of_a_root_that_is_trusted_no_more_admits_nobody_though_its_secret_is_right() {
        let (manager, _dir) = manager();
        let token = manager.token(Role::Worker);
        let admit = |root_hash| {
            let request = EnrolRequest {
                secret: token.secret().clone(),
                csr: NodeKey::generate().expect("a key").request_pem().expect("a request"),
                machine: machine(10),
                former: None,
                root_hash,
            };
            manager.admit(&request, "192.0.2.10:1".parse().expect("an address"))
        };
        assert_eq!(admit(Some([7; 32])).map(|enrolled| enrolled.node), Err(EnrolRefusal::WrongSecret));
        assert_eq!(manager.state.nodes().len(), 1, "it is no node that nobody is");
        admit(Some(token.root_hash())).expect("its root is the cluster's");
        admit(None).expect("it does not say");
        assert_eq!(manager.state.nodes().len(), 3);
    }

    #[tokio::test]
    async fn machine_that_is_refused_leaves_the_token_to_the_next() {
        let (manager, _dir) = manager();
        let address = serve(&manager).await;
        let token = manager.make_token(once()).await.expect("a token").token.parse().expect("a token");
        // It says that it is reached at an address that leads nowhere.
        let error = join(address, &token, 0).await.expect_err("an address that nobody reaches");
        assert!(error.to_string().contains("--advertise-addr"), "{error}");
        join(address, &token, 10).await.expect("the token is as good as new");
    }

    #[tokio::test]
    async fn holders_of_ended_tokens_are_told_what_became_of_them() {
        let (manager, _dir) = manager();
        let address = serve(&manager).await;
        let issued = manager.make_token(once()).await.expect("a token");
        let TokenName::Issued(id) = issued.info.name else { panic!("{:?}", issued.info) };
        manager.void_token(RemoveToken { id }).await.expect("removed");
        let removed = issued.token.parse().expect("a token");
        assert_eq!(refusal(address, &removed).await, EnrolRefusal::TokenRemoved);

        let short = IssueToken { life_seconds: Some(1), ..once() };
        let short = manager.make_token(short).await.expect("a token").token.parse().expect("a token");
        tokio::time::sleep(Duration::from_millis(1100)).await;
        assert_eq!(refusal(address, &short).await, EnrolRefusal::TokenExpired);
        let other = JoinToken::new(manager.credentials.identity().root(), TokenSecret::from_entropy([0; 16]));
        assert_eq!(refusal(address, &other).await, EnrolRefusal::WrongSecret);
    }

    #[tokio::test]
    async fn what_is_printed_and_logged_of_a_token_is_not_its_secret() {
        let (manager, _dir) = manager();
        let issued = manager.make_token(once()).await.expect("a token");
        let shown = format!("{issued:?} {:?}", manager.token_list());
        assert!(!shown.contains(issued.token.rsplit('-').next().expect("a secret")), "{shown}");
    }

    const fn once() -> IssueToken {
        IssueToken { role: Role::Worker, once: true, life_seconds: None }
    }

    pub(in crate::agent::manager) async fn serve(manager: &Arc<Manager>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (key_channels, _) = mpsc::channel(8);
        let (rpc, _) = mpsc::channel(8);
        let (enrol, machines) = mpsc::channel(64);
        let events = manager.events.clone();
        let service = Arc::new(Arc::clone(manager));
        tokio::spawn(enrol::serve(service, machines, events.clone(), manager.joins()));
        let doors =
            Doors { key_channels, manager: watch::channel(Some(ManagerDoors { rpc, enrol })).1, events };
        tokio::spawn(listen(listener, Arc::clone(&manager.credentials), doors));
        address
    }

    async fn join(manager: SocketAddr, token: &JoinToken, host: u8) -> Result<NodeId, EnrolError> {
        let (_, Enrolled { node, .. }) = enrol::enrol(manager, token, machine(host), wall_clock).await?;
        Ok(node)
    }

    fn machine(host: u8) -> Joining {
        let reached = if host == 0 { [0, 0, 0, 0] } else { [192, 0, 2, host] };
        Joining {
            host: "newcomer".parse().expect("a name"),
            advertise: Some(reached.into()),
            advertise_port: 2377,
            data: None,
            underlay_mtu: 1500,
            taken: None,
        }
    }

    async fn refusal(manager: SocketAddr, token: &JoinToken) -> EnrolRefusal {
        let error = join(manager, token, 10).await.expect_err("a token that has ended");
        let EnrolError::Refused(refusal) = error else { panic!("{error}") };
        refusal
    }
}
