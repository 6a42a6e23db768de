//! Endpoints of containers of Docker, as its remote drivers have it (libnetwork, `docs/remote.md`): addresses are taken
//! before there is a container, the interface is made here, down, and Docker moves it into the container and back
//! itself. Held is what is not in a container, or not yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;

use super::{Attachments, ask, blocking, container, leftovers};
use crate::api::ApiError;
use crate::boot_time::BootTime;
use crate::cluster::Endpoint;
use crate::control::rpc::ManagerClient;
use crate::control::store::local::{Attachment, AttachmentState, DockerEndpoint};
use crate::id::{EndpointId, IfName, MacAddr, NetworkId, NetworkName, RuntimeName};
use crate::io::clock::boot_time;
use crate::rate::RateLimits;

/// An interface that Docker may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Its name here.
    pub(crate) ifname: IfName,
    /// Its network.
    pub(crate) network: NetworkId,
    /// Where the container sends what is for elsewhere, if the network has a way there.
    pub(crate) gateways: Vec<IpAddr>,
}

/// Held endpoints that Docker is to do something with.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Due>);

#[derive(Debug, Default)]
struct Due {
    /// Since when each is known of.
    since: BTreeMap<EndpointId, BootTime>,
    /// Those that Docker has taken an address of, and takes the one of IPv6 of next.
    halves: BTreeMap<NetworkName, EndpointId>,
}

impl Waiting {
    fn so_far(&self, id: EndpointId, now: BootTime) -> Duration {
        now.since(*self.due().since.entry(id).or_insert(now))
    }

    fn half(&self, network: &NetworkName) -> Option<EndpointId> {
        self.due().halves.get(network).copied()
    }

    fn halve(&self, network: NetworkName, id: EndpointId) {
        self.due().halves.insert(network, id);
    }

    pub(super) fn forget(&self, id: EndpointId) {
        let mut due = self.due();
        due.since.remove(&id);
        due.halves.retain(|_, half| *half != id);
    }

    fn due(&self) -> MutexGuard<'_, Due> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attachments {
    /// Gives a container an address in `subnet`, this one if one is `wanted`.
    ///
    /// An endpoint has an address in each subnet, and Docker takes one after the other without saying for whom: first
    /// that of IPv4. The next container waits until both are taken.
    pub(crate) async fn take_address(
        &self,
        manager: &ManagerClient,
        network: &NetworkName,
        (subnet, wanted): (IpNet, Option<IpAddr>),
    ) -> Result<IpNet, ApiError> {
        let is_first = subnet.addr().is_ipv4();
        if is_first {
            // Docker may have failed in between.
            let _ = tokio::time::timeout(BETWEEN, async {
                while self.waiting.half(network).is_some() {
                    tokio::time::sleep(BETWEEN / 100).await;
                }
            })
            .await;
        }
        let _one = self.enter().await?;
        let mut ips: Vec<IpAddr> = wanted.into_iter().collect();
        if !is_first
            && let Some(half) = self.waiting.half(network)
            && let Some((held, endpoint)) = self.unclaimed(network, |held| held.id == half).await?
        {
            if let Some(given) = within(&endpoint, subnet)
                && wanted.is_none_or(|wanted| wanted == given.addr())
            {
                self.waiting.forget(half);
                return Ok(given);
            }
            let others = endpoint.addresses.iter().map(IpNet::addr);
            ips.extend(others.filter(|address| !subnet.contains(address)));
            self.remove(Some(manager), held).await?;
        }
        let (held, endpoint) = self.hold(manager, network.clone(), ips, None).await?;
        if is_first && endpoint.addresses.len() > 1 {
            self.waiting.halve(held.network, held.id);
        }
        within(&endpoint, subnet)
            .ok_or_else(|| ApiError::internal(format!("network {network} has no subnet {subnet} any more")))
    }

    /// Gives an address back that no endpoint of Docker's came to have.
    pub(crate) async fn give_back_address(
        &self,
        manager: Option<&ManagerClient>,
        network: &NetworkName,
        address: IpAddr,
    ) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        let has_it = |held: &Endpoint| has(held, address);
        match self.unclaimed(network, has_it).await? {
            Some((held, _)) => self.remove(manager, held).await,
            None => Ok(()),
        }
    }

    /// Makes what was taken, or else what is asked for, the endpoint that Docker calls `docker`.
    pub(crate) async fn claim(
        &self,
        manager: &ManagerClient,
        docker: RuntimeName,
        network: &NetworkName,
        (addresses, mac): (Vec<IpAddr>, Option<MacAddr>),
    ) -> Result<Endpoint, ApiError> {
        let _one = self.enter().await?;
        if let Some(there) = self.of_docker(&docker).await? {
            return there.endpoint.ok_or_else(|| unfinished(&docker));
        }
        let is_it =
            |held: &Endpoint| !addresses.is_empty() && addresses.iter().all(|address| has(held, *address));
        let (mut attachment, endpoint) = match self.unclaimed(network, is_it).await? {
            Some((held, endpoint)) if mac.is_none_or(|mac| endpoint.mac == mac) => (held, endpoint),
            Some((held, _)) => {
                self.remove(Some(manager), held).await?;
                self.hold(manager, network.clone(), addresses, mac).await?
            }
            None => self.hold(manager, network.clone(), addresses, mac).await?,
        };
        self.waiting.forget(attachment.id);
        attachment.docker = Some(DockerEndpoint { id: Some(docker), sandbox: None });
        self.put(attachment).await?;
        Ok(endpoint)
    }

    /// Makes the interface of an endpoint, for Docker to move it to `sandbox`.
    pub(crate) async fn place(&self, docker: &RuntimeName, sandbox: PathBuf) -> Result<Placed, ApiError> {
        let _one = self.enter().await?;
        let attachment = self.of_docker(docker).await?.ok_or_else(|| unknown(docker))?;
        // What an earlier attempt has left.
        let attachment = self.pick_up(attachment).await?;
        let placed = self.place_in_view(attachment.clone(), sandbox).await;
        if placed.is_err() {
            self.pick_up(attachment).await?;
        }
        placed
    }

    /// Carries nothing for an endpoint from now on, as Docker takes its interface out of the container.
    pub(crate) async fn withdraw(&self, docker: &RuntimeName) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        let Some(mut attachment) = self.of_docker(docker).await? else { return Ok(()) };
        self.remove_port(attachment.id).await?;
        self.watch.forget(attachment.id);
        (attachment.state, attachment.netns) = (AttachmentState::Held, container::home()?.1);
        attachment.ifname = name_here(attachment.id);
        attachment.docker = Some(DockerEndpoint { id: Some(docker.clone()), sandbox: None });
        self.put(attachment).await
    }

    /// Ends an endpoint of Docker's; fine if there is none.
    pub(crate) async fn dismiss(
        &self,
        manager: Option<&ManagerClient>,
        docker: &RuntimeName,
    ) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        match self.of_docker(docker).await? {
            Some(attachment) => self.remove(manager, attachment).await,
            None => Ok(()),
        }
    }

    /// Goes on with what was held when the last agent ended.
    pub(super) async fn restore_held(&self, mut attachment: Attachment) -> Result<(), ApiError> {
        let DockerEndpoint { id, sandbox } = attachment.docker.clone().unwrap_or_default();
        if id.is_none() {
            // Docker asks for the address itself, should it go on.
            self.take_back(None, attachment).await;
            return Ok(());
        }
        let Some(sandbox) = sandbox else { return self.pick_up(attachment).await.map(drop) };
        let (id, lanes) = (attachment.id, self.dataplane.lane_count());
        if let Some((netns, ifname)) = blocking(move || container::moved_to(&sandbox, id)).await? {
            (attachment.state, attachment.netns, attachment.ifname) = (AttachmentState::Ready, netns, ifname);
            self.put(attachment.clone()).await?;
            return self.reopen(attachment).await;
        }
        match blocking(move || container::reopen_held(id, lanes)).await? {
            Some(queues) => self.add_port(id, queues, attachment.rates).await,
            None => Ok(()),
        }
    }

    /// Looks whether Docker has moved the interface by now, or has forgotten the endpoint.
    pub(super) async fn settle(
        &self,
        manager: Option<&ManagerClient>,
        mut attachment: Attachment,
    ) -> Result<(), ApiError> {
        let (id, docker) = (attachment.id, attachment.docker.clone().unwrap_or_default());
        let looked_at = docker.sandbox.clone();
        let (moved, is_here) = blocking(move || {
            let moved = looked_at.map(|sandbox| container::moved_to(&sandbox, id)).transpose()?.flatten();
            Ok::<_, ApiError>((moved, container::is_here(id)?))
        })
        .await?;
        if let Some((netns, ifname)) = moved {
            (attachment.state, attachment.netns, attachment.ifname) = (AttachmentState::Ready, netns, ifname);
            self.put(attachment.clone()).await?;
            self.waiting.forget(id);
            tracing::info!(endpoint = %id, netns = %attachment.netns.path.display(), "Docker has moved the interface");
            self.listen_to(&attachment).await;
            return Ok(());
        }
        let waited = self.waiting.so_far(id, boot_time());
        if let Some(sandbox) = docker.sandbox
            && !is_here
            && self.dataplane.port(id).await.is_some()
        {
            // It carries frames, wherever it is.
            return if waited < SOON { Ok(()) } else { Err(unseen(&sandbox)) };
        }
        if waited >= LONGEST {
            let what = format!("endpoint {id} of {}, which Docker has forgotten", attachment.network);
            leftovers::tell(&self.events, &what);
            self.remove(manager, attachment).await?;
        }
        Ok(())
    }

    async fn place_in_view(&self, mut attachment: Attachment, sandbox: PathBuf) -> Result<Placed, ApiError> {
        let endpoint = attachment.endpoint.clone();
        let endpoint = endpoint.ok_or_else(|| ApiError::internal("it has no endpoint"))?;
        let view = self.in_view(&endpoint).await?;
        let (mtu, lanes) = (self.dataplane.mtu(&view).await, self.dataplane.lane_count());
        let port = container::port(&attachment, &endpoint, &view.network, mtu, lanes);
        let queues = blocking(move || port.create_here(lanes)).await?;
        self.add_port(attachment.id, queues, attachment.rates).await?;
        attachment.mtu = Some(mtu);
        if let Some(docker) = &mut attachment.docker {
            docker.sandbox = Some(sandbox);
        }
        let ifname = attachment.ifname.clone();
        self.put(attachment).await?;
        Ok(Placed {
            ifname,
            network: endpoint.network,
            gateways: container::gateways(&endpoint, &view.network),
        })
    }

    /// Takes an endpoint's interface away, and holds the endpoint.
    async fn pick_up(&self, mut attachment: Attachment) -> Result<Attachment, ApiError> {
        self.remove_port(attachment.id).await?;
        self.watch.forget(attachment.id);
        let there = attachment.clone();
        attachment.netns = blocking(move || {
            container::remove_interface(&there)?;
            container::home().map(|(_, home)| home)
        })
        .await?;
        attachment.state = AttachmentState::Held;
        attachment.ifname = name_here(attachment.id);
        if let Some(docker) = &mut attachment.docker {
            docker.sandbox = None;
        }
        self.put(attachment.clone()).await?;
        Ok(attachment)
    }

    async fn hold(
        &self,
        manager: &ManagerClient,
        network: NetworkName,
        ips: Vec<IpAddr>,
        mac: Option<MacAddr>,
    ) -> Result<(Attachment, Endpoint), ApiError> {
        let id = EndpointId::from_entropy(rand::random());
        let mut attachment = Attachment {
            id,
            network,
            netns: container::home()?.1,
            ifname: name_here(id),
            name: None,
            cni: None,
            docker: Some(DockerEndpoint::default()),
            ips,
            mac,
            rates: RateLimits::default(),
            state: AttachmentState::Pending,
            endpoint: None,
            mtu: None,
        };
        self.put(attachment.clone()).await?;
        let held = async {
            let (endpoint, _) = ask(manager, &mut attachment).await?;
            attachment.state = AttachmentState::Held;
            attachment.endpoint = Some(endpoint.clone());
            self.put(attachment.clone()).await?;
            Ok(endpoint)
        };
        match held.await {
            Ok(endpoint) => {
                self.lost.forget(&attachment.network);
                Ok((attachment, endpoint))
            }
            Err(error) => {
                self.take_back(Some(manager), attachment).await;
                Err(error)
            }
        }
    }

    /// What was taken in a network, and is no endpoint of Docker's yet.
    async fn unclaimed(
        &self,
        network: &NetworkName,
        is_it: impl Fn(&Endpoint) -> bool,
    ) -> Result<Option<(Attachment, Endpoint)>, ApiError> {
        let taken = self.all().await?.into_iter().filter(|attachment| {
            attachment.state == AttachmentState::Held
                && attachment.network == *network
                && attachment.docker.as_ref().is_some_and(|docker| docker.id.is_none())
        });
        let mut taken = taken.filter_map(|attachment| Some((attachment.endpoint.clone()?, attachment)));
        Ok(taken.find(|(endpoint, _)| is_it(endpoint)).map(|(endpoint, attachment)| (attachment, endpoint)))
    }

    async fn of_docker(&self, docker: &RuntimeName) -> Result<Option<Attachment>, ApiError> {
        Ok(self.all().await?.into_iter().find(|attachment| {
            attachment.docker.as_ref().and_then(|docker| docker.id.as_ref()) == Some(docker)
        }))
    }
}

/// Told from those of other nodes by its alias, and unique on the machine as endpoints are.
fn name_here(id: EndpointId) -> IfName {
    format!("ovd{}", &id.as_str()[..12]).parse().expect("15 digits and letters")
}

fn within(endpoint: &Endpoint, subnet: IpNet) -> Option<IpNet> {
    endpoint.addresses.iter().find(|address| subnet.contains(&address.addr())).copied()
}

fn has(endpoint: &Endpoint, address: IpAddr) -> bool {
    endpoint.addresses.iter().any(|has| has.addr() == address)
}

fn unknown(docker: &RuntimeName) -> ApiError {
    ApiError::not_found(format!("this node has no endpoint {docker} of Docker's"))
}

fn unfinished(docker: &RuntimeName) -> ApiError {
    ApiError::conflict(format!("endpoint {docker} of Docker's is not finished: try again"))
}

fn unseen(sandbox: &Path) -> ApiError {
    ApiError::conflict(format!(
        "its interface was moved, and not to {} as the agent sees it: the agent has to see the mounts of Docker, or \
         the container is cut off when the agent is started again",
        sandbox.display()
    ))
}

/// Docker asks for the second address right after the first.
const BETWEEN: Duration = Duration::from_secs(2);
/// Docker is through with what it does to an interface.
const SOON: Duration = Duration::from_secs(10);
/// Nothing that Docker does with an endpoint that is in no container takes as long: it has forgotten it.
const LONGEST: Duration = Duration::from_mins(10);
