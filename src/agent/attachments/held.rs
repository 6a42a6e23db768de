//! Endpoints of containers of Docker, as its remote drivers have it (libnetwork, `docs/remote.md`): addresses are taken
//! before there is a container, the interface is made here, down, and Docker moves it into the container and back
//! itself. What is in no container, as far as is known, is held: the cluster has its endpoint, no lane its interface.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::MutexGuard;

use super::attaching::ask;
use super::record::answer;
use super::{Attachments, Gate, blocking, container, leftovers};
use crate::api::ApiError;
use crate::boot_time::BootTime;
use crate::cluster::Endpoint;
use crate::control::rpc::ManagerClient;
use crate::control::store::local::{Attachment, AttachmentState, DockerEndpoint, NetnsRef};
use crate::id::{EndpointId, IfName, MacAddr, NetworkId, RuntimeName};
use crate::io::clock::boot_time;
use crate::rate::RateLimits;

/// An interface that Docker may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The endpoint.
    pub(crate) id: EndpointId,
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
    /// By network the endpoint that Docker has taken the first address of last, and takes the second of next.
    halves: BTreeMap<NetworkId, Half>,
}

#[derive(Debug, Clone, Copy)]
struct Half {
    id: EndpointId,
    since: BootTime,
}

impl Waiting {
    fn so_far(&self, id: EndpointId, now: BootTime) -> Duration {
        now.since(*self.due().since.entry(id).or_insert(now))
    }

    fn half(&self, network: NetworkId) -> Option<Half> {
        self.due().halves.get(&network).copied()
    }

    /// Takes note that the first or the second address of an endpoint was taken.
    fn pair(&self, network: NetworkId, endpoint: Endpoint, is_first: bool) {
        let mut due = self.due();
        due.halves.retain(|_, half| half.id != endpoint.id);
        if is_first && endpoint.addresses.len() > 1 {
            due.halves.insert(network, Half { id: endpoint.id, since: boot_time() });
        }
    }

    pub(super) fn forget(&self, id: EndpointId) {
        let mut due = self.due();
        due.since.remove(&id);
        due.halves.retain(|_, half| half.id != id);
    }

    fn due(&self) -> std::sync::MutexGuard<'_, Due> {
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
        network: NetworkId,
        (subnet, wanted): (IpNet, Option<IpAddr>),
    ) -> Result<IpNet, ApiError> {
        let is_first = subnet.addr().is_ipv4();
        let _one = if is_first { self.enter_next(network).await? } else { self.enter().await? };
        let mut ips: Vec<IpAddr> = wanted.into_iter().collect();
        let half = self.waiting.half(network).map(|half| half.id);
        let is_its = |held: &Endpoint| match wanted {
            // Docker may have died since it took it first.
            Some(wanted) if is_first => has(held, wanted),
            Some(_) | None => !is_first && half == Some(held.id),
        };
        if let Some((held, endpoint)) = self.unclaimed(network, is_its).await? {
            if let Some(given) = within(&endpoint, subnet)
                && wanted.is_none_or(|wanted| wanted == given.addr())
            {
                self.waiting.pair(network, endpoint, is_first);
                return Ok(given);
            }
            let others = endpoint.addresses.iter().map(IpNet::addr);
            ips.extend(others.filter(|address| !subnet.contains(address)));
            self.free(manager, held).await?;
        }
        let (_, endpoint) = self.hold(manager, network, ips, None).await?;
        let given = within(&endpoint, subnet);
        self.waiting.pair(network, endpoint, is_first);
        given.ok_or_else(|| ApiError::internal(format!("its network has no subnet {subnet} any more")))
    }

    /// For a container that takes its first address, once no other one is between its first and its second.
    async fn enter_next(&self, network: NetworkId) -> Result<MutexGuard<'_, Gate>, ApiError> {
        loop {
            let one = self.enter().await?;
            match self.waiting.half(network) {
                // Docker may have failed in between.
                Some(half) if boot_time().since(half.since) < BETWEEN => drop(one),
                Some(_) | None => return Ok(one),
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// Gives an address back that no endpoint of Docker's came to have.
    pub(crate) async fn give_back_address(
        &self,
        manager: Option<&ManagerClient>,
        network: NetworkId,
        address: IpAddr,
    ) -> Result<(), ApiError> {
        let one = self.changing.lock().await;
        let held = self.unclaimed(network, |held| has(held, address)).await?;
        let Some((held, Endpoint { id, .. })) = held else { return Ok(()) };
        self.remove(held).await?;
        drop(one);
        self.tell_gone(manager, &[id]).await;
        Ok(())
    }

    /// Has the manager free the addresses of what is held, for they are asked for again.
    async fn free(&self, manager: &ManagerClient, held: Attachment) -> Result<(), ApiError> {
        let id = held.id;
        self.remove(held).await?;
        self.tell_gone(Some(manager), &[id]).await;
        Ok(())
    }

    /// Makes what was taken, or else what is asked for, the endpoint that Docker calls `docker`.
    pub(crate) async fn claim(
        &self,
        manager: &ManagerClient,
        docker: RuntimeName,
        network: NetworkId,
        (addresses, mac): (Vec<IpAddr>, Option<MacAddr>),
    ) -> Result<Endpoint, ApiError> {
        let _one = self.enter().await?;
        if let Some(there) = self.of_docker(&docker).await? {
            return there.endpoint.ok_or_else(|| ApiError::internal("it was claimed without its addresses"));
        }
        let is_it = |held: &Endpoint| {
            !addresses.is_empty()
                && addresses.iter().all(|address| has(held, *address))
                && mac.is_none_or(|mac| held.mac == mac)
        };
        let (mut attachment, endpoint) = match self.unclaimed(network, is_it).await? {
            Some(held) => held,
            None => {
                // Another MAC address is asked for, or Docker has crossed two containers' addresses.
                let has_one = |held: &Endpoint| addresses.iter().any(|address| has(held, *address));
                while let Some((held, _)) = self.unclaimed(network, has_one).await? {
                    self.free(manager, held).await?;
                }
                self.hold(manager, network, addresses, mac).await?
            }
        };
        self.waiting.forget(attachment.id);
        attachment.docker = Some(DockerEndpoint { id: Some(docker), sandbox: None });
        self.put(attachment).await?;
        Ok(endpoint)
    }

    /// Makes the interface of an endpoint, for Docker to move it to `sandbox`. It carries nothing until it is there:
    /// here, somebody might take it for one of the host's.
    pub(crate) async fn place(&self, docker: &RuntimeName, sandbox: PathBuf) -> Result<Placed, ApiError> {
        let attachment = self.of_docker(docker).await?;
        let endpoint =
            attachment.and_then(|attachment| attachment.endpoint).ok_or_else(|| unknown(docker))?;
        let view = self.in_view(&endpoint).await?;
        let _one = self.enter().await?;
        let attachment = self.of_docker(docker).await?.ok_or_else(|| unknown(docker))?;
        // What an earlier attempt has left.
        let mut attachment = self.pick_up(attachment).await?;
        let mtu = self.dataplane.mtu(&view).await;
        let port = container::port(&attachment, &endpoint, &view.network, mtu, self.dataplane.lane_count());
        blocking(move || port.create_here()).await?;
        let (id, ifname) = (attachment.id, attachment.ifname.clone());
        attachment.mtu = Some(mtu);
        attachment.docker = Some(DockerEndpoint { id: Some(docker.clone()), sandbox: Some(sandbox) });
        if let Err(error) = self.put(attachment.clone()).await {
            if let Err(error) = self.pick_up(attachment).await {
                tracing::warn!(endpoint = %id, %error, "an interface could not be taken back");
            }
            return Err(error);
        }
        self.waiting.forget(id);
        let gateways = container::gateways(&endpoint, &view.network);
        Ok(Placed { id, network: endpoint.network, ifname, gateways })
    }

    /// Has an interface carry frames as soon as Docker has moved it.
    pub(crate) async fn follow(&self, id: EndpointId, sandbox: PathBuf) {
        let moved = tokio::time::timeout(SOON, async {
            loop {
                let sandbox = sandbox.clone();
                let looked = blocking(move || container::moved_to(&sandbox, id)).await;
                if looked.is_ok_and(|moved| moved.is_some()) {
                    return;
                }
                tokio::time::sleep(STEP).await;
            }
        });
        // Otherwise it is looked for with the other repairs.
        if moved.await.is_ok()
            && let Err(error) = self.mend(id).await
        {
            tracing::warn!(endpoint = %id, %error, "an interface that Docker has moved carries nothing yet");
        }
    }

    /// Carries nothing for an endpoint from now on, as Docker takes its interface out of the container.
    pub(crate) async fn withdraw(&self, docker: &RuntimeName) -> Result<(), ApiError> {
        let _one = self.changing.lock().await;
        match self.of_docker(docker).await? {
            Some(attachment) => self.hold_again(attachment).await.map(drop),
            None => Ok(()),
        }
    }

    /// Ends an endpoint of Docker's; fine if there is none.
    pub(crate) async fn dismiss(
        &self,
        manager: Option<&ManagerClient>,
        docker: &RuntimeName,
    ) -> Result<(), ApiError> {
        let one = self.changing.lock().await;
        let Some(attachment) = self.of_docker(docker).await? else { return Ok(()) };
        let id = attachment.id;
        self.remove(attachment).await?;
        drop(one);
        self.tell_gone(manager, &[id]).await;
        Ok(())
    }

    /// Looks whether Docker has moved the interface by now, or has forgotten the endpoint.
    pub(super) async fn settle(&self, mut attachment: Attachment) -> Result<(), ApiError> {
        let (id, node) = (attachment.id, self.node);
        let sandbox = attachment.docker.as_ref().and_then(|docker| docker.sandbox.clone());
        let looked_at = sandbox.clone();
        let (moved, is_here) = blocking(move || {
            let moved = looked_at.map(|sandbox| container::moved_to(&sandbox, id)).transpose()?.flatten();
            Ok::<_, ApiError>((moved, container::is_here(id)?))
        })
        .await?;
        if let Some((netns, ifname)) = moved {
            (attachment.state, attachment.netns, attachment.ifname) = (AttachmentState::Ready, netns, ifname);
            self.put(attachment.clone()).await?;
            self.waiting.forget(id);
            return self.reopen(attachment, "Docker has moved the interface to its container").await;
        }
        let waited = self.waiting.so_far(id, boot_time());
        if waited >= LONGEST {
            let is_anywhere =
                move || Ok::<_, ApiError>(leftovers::interfaces(node).iter().any(|left| left.endpoint == id));
            if is_here || sandbox.is_none() || !blocking(is_anywhere).await? {
                let what = format!("endpoint {id} of {}, which Docker has forgotten", attachment.network);
                leftovers::tell(&self.events, &what);
                return self.remove(attachment).await;
            }
            // It lives; that is not looked up each time.
            self.waiting.forget(id);
        }
        match sandbox {
            Some(sandbox) if !is_here && waited >= SOON => Err(unseen(&sandbox)),
            Some(_) | None => Ok(()),
        }
    }

    /// Holds an endpoint that may be in a container, wherever its interface is, and carries nothing for it.
    pub(super) async fn hold_again(&self, mut attachment: Attachment) -> Result<Attachment, ApiError> {
        self.remove_port(attachment.id).await?;
        self.watch.forget(attachment.id);
        self.waiting.forget(attachment.id);
        attachment.netns = home().await?;
        attachment.state = AttachmentState::Held;
        attachment.ifname = name_here(attachment.id);
        if let Some(docker) = &mut attachment.docker {
            docker.sandbox = None;
        }
        self.put(attachment.clone()).await?;
        Ok(attachment)
    }

    /// Takes an endpoint's interface away, and holds the endpoint.
    async fn pick_up(&self, attachment: Attachment) -> Result<Attachment, ApiError> {
        let there = attachment.clone();
        blocking(move || container::remove_interface(&there)).await?;
        self.hold_again(attachment).await
    }

    async fn hold(
        &self,
        manager: &ManagerClient,
        network: NetworkId,
        ips: Vec<IpAddr>,
        mac: Option<MacAddr>,
    ) -> Result<(Attachment, Endpoint), ApiError> {
        let id = EndpointId::from_entropy(rand::random());
        let mut attachment = Attachment {
            id,
            network: network.into(),
            netns: home().await?,
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
            let (endpoint, _) = answer(ask(manager, &mut attachment)).await?;
            // By its id, which a network may have for a name that is made later.
            if endpoint.network != network {
                return Err(ApiError::not_found(format!("there is no network {network} any more")));
            }
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
                // Had the manager made it after all, its view says so, and it is told then.
                self.take_back(attachment).await;
                Err(error)
            }
        }
    }

    /// What was taken in a network, and is no endpoint of Docker's yet.
    async fn unclaimed(
        &self,
        network: NetworkId,
        is_it: impl Fn(&Endpoint) -> bool,
    ) -> Result<Option<(Attachment, Endpoint)>, ApiError> {
        let taken = self.all().await?.into_iter().filter(is_unclaimed);
        let mut taken = taken.filter_map(|attachment| Some((attachment.endpoint.clone()?, attachment)));
        let found = taken.find(|(endpoint, _)| endpoint.network == network && is_it(endpoint));
        Ok(found.map(|(endpoint, attachment)| (attachment, endpoint)))
    }

    async fn of_docker(&self, docker: &RuntimeName) -> Result<Option<Attachment>, ApiError> {
        Ok(self.all().await?.into_iter().find(|attachment| {
            attachment.docker.as_ref().and_then(|docker| docker.id.as_ref()) == Some(docker)
        }))
    }
}

/// Whether it is but addresses so far.
pub(super) fn is_unclaimed(attachment: &Attachment) -> bool {
    let docker = attachment.docker.as_ref();
    attachment.state == AttachmentState::Held && docker.is_some_and(|docker| docker.id.is_none())
}

async fn home() -> Result<NetnsRef, ApiError> {
    blocking(|| container::home().map(|(_, home)| home)).await
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

fn unseen(sandbox: &Path) -> ApiError {
    ApiError::conflict(format!(
        "it carries nothing: its interface was moved, and not to {} as the agent sees it; the agent has to see the \
         mounts of Docker",
        sandbox.display()
    ))
}

/// Docker asks for the second address right after the first, or not at all.
const BETWEEN: Duration = Duration::from_secs(2);
/// How often it is looked whether Docker has done what it is about to do.
const STEP: Duration = Duration::from_millis(20);
/// Docker has finished with an interface by then, unless something is wrong.
const SOON: Duration = Duration::from_secs(5);
/// What Docker has not put into a container by then, it has forgotten, or it was restarted meanwhile.
const LONGEST: Duration = Duration::from_mins(10);
