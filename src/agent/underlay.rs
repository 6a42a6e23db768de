//! The underlay of this node, its addresses and its MTU, followed; and what fits through the underlay
//! of a network's members.
//!
//! What the node sees of its own interface counts at once, whether a manager can be told or not; of the
//! others it knows what the view says.
//!
//! A smaller MTU comes into the tables first, so that nothing longer than fits is ever sealed: until the
//! interface of a container follows, it is told by ICMP. What peers send that have not heard yet is up to them.

mod home;
mod narrow;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

pub(crate) use self::home::{Home, route_to};
use self::home::{PATIENCE, Seen};
pub(crate) use self::narrow::Narrow;
use super::attachments::blocking;
use super::dataplane::DataPlane;
use super::office::Office;
use super::sockets::{ChosenBy, DataSockets, bind_tls, bind_vxlan};
use crate::cluster::{NetworkView, Node, inner_mtu};
use crate::config::OffloadConfig;
use crate::control::listener::{Doors, listen};
use crate::control::rpc::ManagerClient;
use crate::control::state::ClusterState;
use crate::control::store::Store;
use crate::control::store::local::NodeSettings;
use crate::control::tls::Credentials;
use crate::datapath::MAX_MTU;
use crate::id::{LaneCount, NodeId};
use crate::io::clock::boot_time;
use crate::io::netlink::{InterfaceAddress, LinkChanges, Netlink};
use crate::io::netns::NetNs;
use crate::negotiate::Whereabouts;
use crate::worker::LaneGone;

/// MTU of the interface that holds an address of this host, in bytes.
pub(crate) async fn mtu_at(address: IpAddr) -> anyhow::Result<u32> {
    let link = tokio::task::spawn_blocking(move || {
        Netlink::within(&NetNs::current()?, |netlink| netlink.holder_of(address))
    });
    Ok(link.await?.context("the underlay's MTU cannot be read")?.mtu)
}

/// Where this node is reached, and over what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Underlay {
    pub(crate) at: Whereabouts,
    /// MTU of the interface that holds the data address, in bytes.
    pub(crate) mtu: u32,
}

impl Underlay {
    /// This node, as it is over it.
    pub(crate) fn of(self, node: &Node) -> Node {
        let Whereabouts { advertise, data } = self.at;
        Node { advertise, data, underlay_mtu: self.mtu, ..node.clone() }
    }
}

/// Follows what the kernel says of the underlay.
pub(crate) struct Follower {
    pub(crate) home: Home,
    /// Whether the next agent would begin with the same settings.
    pub(crate) is_saved: bool,
    pub(crate) offload: OffloadConfig,
    /// How many lanes keys are made for, whatever sockets follow.
    pub(crate) receiving_lanes: LaneCount,
    pub(crate) store: Store,
    pub(crate) dataplane: Arc<DataPlane>,
    pub(crate) client: ManagerClient,
    pub(crate) office: Arc<Office>,
    pub(crate) underlay: watch::Sender<Underlay>,
    /// To [`listen_on`].
    pub(crate) relisten: mpsc::Sender<TcpListener>,
    /// What the operator should know of the sockets.
    pub(crate) warnings: watch::Sender<Vec<String>>,
    /// That there is no socket for plain VXLAN.
    pub(crate) without_vxlan: Option<String>,
}

impl Follower {
    /// Has the lanes follow the MTU and the address of the underlay, and then tells it to everybody else.
    pub(crate) async fn run(mut self, failed: mpsc::Sender<anyhow::Error>) {
        let changes = LinkChanges::subscribe();
        if let Err(error) = &changes {
            tracing::warn!(%error, "changes of the underlay are noticed late");
        }
        let (mut trouble, mut wait) = (None, Duration::ZERO);
        loop {
            let changed = async {
                match &changes {
                    Ok(changes) => changes.next().await,
                    Err(_) => std::future::pending().await,
                }
            };
            // Not every change of an interface is told as one of what this node looks at.
            let _ = tokio::time::timeout(wait, changed).await;
            // The first look is for what changed before anybody listened.
            if wait != Duration::ZERO {
                tokio::time::sleep(SETTLE).await;
            }
            let looked = self.look().await;
            if looked.as_ref().is_err_and(|error| error.is::<LaneGone>()) {
                let _ = failed.send(looked.expect_err("it was one")).await;
                return;
            }
            wait = if looked.is_ok() { LOOK_INTERVAL } else { AWAY_INTERVAL };
            let error = looked.err().map(|error| format!("{error:#}"));
            if error != trouble {
                self.warnings.send_modify(|warnings| {
                    warnings.retain(|warning| Some(warning) != trouble.as_ref());
                    warnings.extend(error.clone());
                });
                if let Some(error) = &error {
                    tracing::warn!(%error, "the underlay as it was last stands");
                }
            }
            trouble = error;
        }
    }

    /// Looks once; the error is why what there is cannot be followed.
    async fn look(&mut self) -> anyhow::Result<()> {
        let held = addresses().await?;
        let before = self.home.settings.clone();
        let others = self.others().await;
        let seen = self.home.look(&held, &others, boot_time());
        self.is_saved &= self.home.settings == before;
        match seen {
            Seen::Here if !self.is_saved => self.save().await,
            Seen::Here => {}
            Seen::Gone(Some(settings)) => self.relocate(*settings, &held).await?,
            Seen::Gone(None) => anyhow::bail!(
                "an address of this node is gone from its host, and there is no other to be had: {} for TLS, {} for data",
                self.home.settings.advertise.ip(),
                self.home.settings.data.ip()
            ),
        }
        self.look_for_vxlan().await?;
        let data = self.home.settings.data.ip();
        let holder = held.iter().find(|held| held.address.addr() == data);
        let now = holder.context("the data address has just gone")?.link.mtu;
        let before = self.underlay.borrow().mtu;
        if now != before {
            tracing::info!(before, now, "the MTU of the underlay has changed");
            self.dataplane.follow_underlay(now).await?;
            self.underlay.send_modify(|underlay| underlay.mtu = now);
        }
        Ok(())
    }

    /// Has the lanes carry plain VXLAN, once whoever had its port is gone.
    async fn look_for_vxlan(&mut self) -> Result<(), LaneGone> {
        let Some(before) = &self.without_vxlan else { return Ok(()) };
        let lanes = self.dataplane.lane_count();
        let Ok(group) = bind_vxlan(self.home.settings.data, lanes, self.offload) else { return Ok(()) };
        self.dataplane.rebind(None, Some(group)).await?;
        tracing::info!("unencrypted networks are carried now");
        self.warnings.send_modify(|warnings| warnings.retain(|warning| warning != before));
        self.without_vxlan = None;
        Ok(())
    }

    /// Where other nodes are.
    async fn others(&self) -> Vec<SocketAddr> {
        let this = self.underlay.borrow().at.advertise;
        let mut others = self.client.addresses();
        others.retain(|manager| *manager != this);
        let view = self.dataplane.view().await;
        let nodes = view.networks.values().flat_map(|network| &network.nodes);
        others.extend(nodes.filter(|node| node.advertise != this).map(|node| node.data));
        let manager = self.office.manager();
        others.extend(manager.iter().flat_map(|manager| manager.others()).map(|node| node.advertise));
        others
    }

    /// Uses other addresses from now on: first the lanes, then whoever is to hear of it.
    async fn relocate(&mut self, settings: NodeSettings, held: &[InterfaceAddress]) -> anyhow::Result<()> {
        let before = &self.home.settings;
        // All that may fail comes first: a port that the lanes have by then could not be bound when it is tried again.
        let tls = if settings.listen == before.listen {
            None
        } else {
            Some(bind_tls(&settings, ChosenBy::Settings).await?)
        };
        if settings.data != before.data {
            let lanes = self.dataplane.lane_count();
            let DataSockets { esp, vxlan, warnings } = DataSockets::bind(settings.data, lanes, self.offload)?;
            // Keys name the lane that receives: as many of them do as did when the agent started.
            if esp.receiving() < self.receiving_lanes {
                anyhow::bail!(
                    "only {} of the {} lanes that have keys would receive at {}{}; it is tried again, and a restart of the \
                     agent makes do with them",
                    esp.receiving().get(),
                    self.receiving_lanes.get(),
                    settings.data,
                    esp.refusal.map(|refusal| format!(": {refusal}")).unwrap_or_default()
                );
            }
            self.without_vxlan = vxlan.as_ref().err().map(ToString::to_string);
            self.dataplane.rebind(Some(esp), vxlan.ok()).await?;
            self.warnings.send_replace(warnings.into_iter().chain(self.without_vxlan.clone()).collect());
        }
        if let Some(tls) = tls {
            // Its task is there as long as this one.
            let _ = self.relisten.send(tls).await;
        }
        tracing::warn!(
            advertise = %settings.advertise, data = %settings.data,
            before = %before.advertise, data_before = %before.data,
            "this node has another address now"
        );
        self.home.settle(settings);
        self.save().await;
        let settings = &self.home.settings;
        let at = Whereabouts { advertise: settings.advertise, data: settings.data };
        let mtu = held.iter().find(|held| held.address.addr() == at.data.ip()).map(|held| held.link.mtu);
        let mtu = mtu.unwrap_or(self.underlay.borrow().mtu);
        self.dataplane.follow_underlay(mtu).await?;
        // Connections from the address that is gone carry nothing any more.
        match self.office.manager() {
            Some(_) => self.client.point_to(at.advertise),
            None => self.client.reconnect(),
        }
        self.underlay.send_replace(Underlay { at, mtu });
        Ok(())
    }

    /// An agent that starts with what was saved before would look again.
    async fn save(&mut self) {
        let (store, settings) = (self.store.clone(), self.home.settings.clone());
        let saved = blocking(move || store.put_settings(&settings)).await;
        self.is_saved = saved.is_ok();
        if let Err(error) = saved {
            tracing::warn!(%error, "the addresses of this node were not saved; trying again");
        }
    }
}

/// The settings of a node that starts, with other addresses where those that it had are gone. One that
/// is not there yet is waited for a while: a host that has just started may be about to have it.
pub(crate) async fn at_home(store: &Store, settings: NodeSettings) -> anyhow::Result<NodeSettings> {
    let mut home = Home::new(settings.clone());
    if home.look(&addresses().await?, &[], boot_time()) == Seen::Here {
        return Ok(settings);
    }
    let read = store.clone();
    let others = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        let view = read.view()?.unwrap_or_default();
        let nodes = ClusterState::nodes_in(&read)?.into_iter().chain(view.managers);
        Ok(nodes.chain(view.networks.into_values().flat_map(|network| network.nodes)).collect::<Vec<_>>())
    });
    let others =
        others.await??.into_iter().map(|node| node.advertise).chain(settings.managers.iter().copied());
    let others: Vec<_> = others.filter(|address| *address != settings.advertise).collect();
    let deadline = boot_time() + PATIENCE + AWAY_INTERVAL;
    loop {
        match home.look(&addresses().await?, &others, boot_time()) {
            Seen::Here => return Ok(settings),
            Seen::Gone(Some(moved)) => {
                let (before, now) = (settings.data, moved.data);
                tracing::warn!(%before, %now, "the address of this node is gone from its host; it uses another");
                let (store, saved) = (store.clone(), NodeSettings::clone(&moved));
                blocking(move || store.put_settings(&saved)).await?;
                return Ok(*moved);
            }
            // What is bound then says what is missing.
            Seen::Gone(None) if boot_time() >= deadline => return Ok(settings),
            Seen::Gone(None) => tokio::time::sleep(START_INTERVAL).await,
        }
    }
}

/// Serves the TLS port, on one listener after the other.
pub(crate) async fn listen_on(
    (mut listener, mut others): (TcpListener, mpsc::Receiver<TcpListener>),
    credentials: Arc<Credentials>,
    doors: Doors,
) {
    loop {
        tokio::select! {
            () = listen(listener, Arc::clone(&credentials), doors.clone()) => return,
            Some(other) = others.recv() => listener = other,
        }
    }
}

/// Every address of this host.
async fn addresses() -> anyhow::Result<Vec<InterfaceAddress>> {
    let read = || Netlink::within(&NetNs::current()?, Netlink::addresses);
    tokio::task::spawn_blocking(read).await?.context("the addresses of this host cannot be read")
}

/// MTU of the containers' interfaces in a network, in bytes: what fits through the smallest underlay
/// of its members without a fragment, or the operator's if that is less. The underlay of the node
/// `this` has the MTU `own`, if it is known better than by the view.
pub(crate) fn effective_mtu(view: &NetworkView, this: NodeId, own: Option<u32>) -> u16 {
    let fits = |underlay| inner_mtu(underlay, view.network.encrypted, is_over_ipv6(view));
    let left = smallest(view, this, own).map(|(_, underlay)| fits(underlay));
    let wanted = view.network.mtu.map(u32::from);
    let mtu = match (wanted, left) {
        (Some(wanted), Some(left)) => wanted.min(left),
        (Some(mtu), None) | (None, Some(mtu)) => mtu,
        (None, None) => fits(DEFAULT_UNDERLAY_MTU),
    };
    u16::try_from(mtu).unwrap_or(MAX_MTU).clamp(least_mtu(view), MAX_MTU)
}

/// The member with the smallest underlay, and that one's MTU.
fn smallest(view: &NetworkView, this: NodeId, own: Option<u32>) -> Option<(&Node, u32)> {
    let underlay = |node: &Node| own.filter(|_| node.id == this).unwrap_or(node.underlay_mtu);
    view.nodes.iter().map(|node| (node, underlay(node))).min_by_key(|(_, mtu)| *mtu)
}

/// The smallest MTU that an interface of the network may have.
fn least_mtu(view: &NetworkView) -> u16 {
    let has_ipv6 = view.network.subnets.iter().any(|subnet| matches!(subnet.cidr, IpNet::V6(_)));
    if has_ipv6 { LEAST_MTU_IPV6 } else { LEAST_MTU_IPV4 }
}

/// Whether some member is reached over IPv6, which has the longer header.
fn is_over_ipv6(view: &NetworkView) -> bool {
    view.nodes.iter().any(|node| node.data.is_ipv6())
}

/// Ethernet's: what a network without a member that says more is cut to.
const DEFAULT_UNDERLAY_MTU: u32 = 1500;
/// Below it the kernel takes IPv6 from an interface, with its addresses (`addrconf_notify` in
/// net/ipv6/addrconf.c), and RFC 8200 §5 allows no less: what then does not fit is lost and counted.
pub(super) const LEAST_MTU_IPV6: u16 = 1280;
/// What every host must take (RFC 791 §3.1); the kernel learns of no smaller path (`ip_rt_min_pmtu`).
const LEAST_MTU_IPV4: u16 = 576;
/// Where interfaces come and go by the hundred, one look is for many of them.
const SETTLE: Duration = Duration::from_millis(20);
/// How often the underlay is looked at, without having been told of a change.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// The same, while an address is gone.
const AWAY_INTERVAL: Duration = Duration::from_millis(350);
/// The same, while an agent that starts has no address.
const START_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::super::testbed::{PaperCluster, peer};
    use super::*;
    use crate::control::trust::Trust;
    use crate::io::clock::wall_clock;
    use crate::wire::{esp, ethernet, ipv4, ipv6, udp, vxlan};

    #[tokio::test]
    async fn move_whose_tls_port_is_taken_leaves_everything_and_is_finished_when_the_port_is_free() {
        let mut lab = Lab::new([127, 77, 45, 1].into());
        let there = IpAddr::from([127, 77, 45, 2]);
        let taken = std::net::TcpListener::bind((there, 0)).expect("a port");
        let listen = taken.local_addr().expect("an address");
        let settings = NodeSettings { listen, ..settings_at(there) };
        lab.follower.relocate(settings.clone(), &[]).await.expect_err("the port is taken");
        let at = lab.underlay.borrow().at;
        assert_eq!(at.data, lab.follower.home.settings.data, "others are told of where it is not");

        drop(taken);
        lab.follower.relocate(settings.clone(), &[]).await.expect("the port is free");
        assert_eq!(lab.underlay.borrow().at.data, settings.data);
        let listener = lab.relistened.try_recv().expect("it listens there");
        assert_eq!(listener.local_addr().expect("an address"), listen);
    }

    #[tokio::test]
    async fn move_to_where_fewer_lanes_would_receive_than_have_keys_is_put_off() {
        let mut lab = Lab::new([127, 77, 45, 4].into());
        // Its lane is one of two, of which the kernel would have the first alone receive.
        lab.follower.receiving_lanes = LaneCount::clamped(2);
        let settings = settings_at([127, 77, 45, 5].into());
        let before = lab.underlay.borrow().at;
        lab.follower.relocate(settings.clone(), &[]).await.expect_err("packets would be lost");
        assert_eq!((lab.underlay.borrow().at, lab.follower.home.settings.data), (before, before.data));
        UdpSocket::bind(settings.data).expect("no lane has its port");

        lab.follower.receiving_lanes = LaneCount::ONE;
        lab.follower.relocate(settings.clone(), &[]).await.expect("every lane receives");
        assert_eq!(lab.underlay.borrow().at.data, settings.data);
    }

    /// A node whose addresses are followed.
    struct Lab {
        follower: Follower,
        underlay: watch::Receiver<Underlay>,
        relistened: mpsc::Receiver<TcpListener>,
        _dir: tempfile::TempDir,
    }

    impl Lab {
        fn new(here: IpAddr) -> Self {
            let cluster = PaperCluster::new();
            let dir = tempfile::tempdir().expect("a directory");
            let trust = Trust::of(&cluster.identity).expect("a root");
            let credentials = Credentials::new(cluster.identity.clone(), trust, wall_clock).expect("usable");
            let settings = settings_at(here);
            let at = Whereabouts { advertise: settings.advertise, data: settings.data };
            let (moving, underlay) = watch::channel(Underlay { at, mtu: 1500 });
            let (relisten, relistened) = mpsc::channel(1);
            let follower = Follower {
                home: Home::new(settings),
                is_saved: true,
                offload: OffloadConfig::default(),
                receiving_lanes: LaneCount::ONE,
                store: Store::create(dir.path()).expect("a state file"),
                dataplane: Arc::new(cluster.dataplane()),
                client: ManagerClient::new(credentials, Vec::new()),
                office: Office::new(None),
                underlay: moving,
                relisten,
                warnings: watch::Sender::default(),
                without_vxlan: None,
            };
            Self { follower, underlay, relistened, _dir: dir }
        }
    }

    fn settings_at(ip: IpAddr) -> NodeSettings {
        let free = UdpSocket::bind((ip, 0)).and_then(|socket| socket.local_addr()).expect("a port");
        NodeSettings {
            listen: (ip, 0).into(),
            advertise: (ip, 2377).into(),
            data: free,
            managers: Vec::new(),
            interface: None,
            advertised_here: false,
        }
    }

    /// An encrypted network of this node and a peer with these underlays.
    fn network(cluster: &PaperCluster, mtu: Option<u16>, underlays: [u32; 2]) -> NetworkView {
        let mut view = cluster.network(1, 1, &[2]);
        view.network.mtu = mtu;
        for node in &mut view.nodes {
            node.underlay_mtu = underlays[usize::from(node.id == peer(2))];
        }
        view
    }

    #[test]
    fn smallest_underlay_of_the_members_counts_and_the_own_one_as_it_is_now() {
        let cluster = PaperCluster::new();
        let this = cluster.this();
        for (underlays, own, expected) in [
            ([1500, 1500], None, 1408),
            ([9000, 9000], None, 8908),
            ([9000, 1500], None, 1408),
            ([1500, 9000], Some(9000), 8908),
            ([9000, 9000], Some(1500), 1408),
            ([9000, 1400], Some(9000), 1308),
            ([1450, 1500], None, 1356),
            ([9001, 9001], Some(9001), 8908),
            ([65_535, 65_535], Some(65_535), MAX_MTU),
        ] {
            let view = network(&cluster, None, underlays);
            assert_eq!(effective_mtu(&view, this, own), expected, "{underlays:?} {own:?}");
        }
    }

    /// Also where ESP pads, as on underlays of 1,450, 1,442 and 9,001 bytes.
    #[test]
    fn longest_frame_fits_through_any_underlay_and_no_longer_one_does() {
        let headers = |ip: usize| ip + udp::HEADER_LEN;
        for (ip, over_ipv6) in [(headers(ipv4::HEADER_LEN), false), (headers(ipv6::HEADER_LEN), true)] {
            let frame = |mtu: u32| ethernet::HEADER_LEN + usize::try_from(mtu).expect("small");
            let sealed = |mtu| ip + esp::sealed_len(frame(mtu));
            let plain = |mtu| ip + vxlan::HEADER_LEN + frame(mtu);
            for underlay in (1_400..1_510).chain(8_990..9_010) {
                let fits = usize::try_from(underlay).expect("small");
                let mtu = inner_mtu(underlay, true, over_ipv6);
                assert!((14..=mtu).all(|mtu| sealed(mtu) <= fits), "{underlay}");
                assert!(sealed(mtu + 1) > fits, "{underlay}");
                let mtu = inner_mtu(underlay, false, over_ipv6);
                assert_eq!(plain(mtu), fits, "{underlay}");
            }
        }
    }

    #[test]
    fn overheads_are_those_of_the_headers() {
        let cluster = PaperCluster::new();
        let mut view = network(&cluster, None, [1500, 1500]);
        let this = cluster.this();
        assert_eq!(effective_mtu(&view, this, None), 1408);
        view.network.encrypted = false;
        assert_eq!(effective_mtu(&view, this, None), 1450);
        for node in &mut view.nodes {
            node.data = "[2001:db8::1]:4500".parse().expect("an address");
        }
        assert_eq!(effective_mtu(&view, this, None), 1430);
        view.network.encrypted = true;
        assert_eq!(effective_mtu(&view, this, None), 1388);
    }

    #[test]
    fn operators_mtu_holds_unless_it_does_not_fit_any_more() {
        let cluster = PaperCluster::new();
        let view = network(&cluster, Some(1300), [9000, 1500]);
        assert_eq!(effective_mtu(&view, cluster.this(), None), 1300);
        assert_eq!(effective_mtu(&view, cluster.this(), Some(1300)), 1208);
        let nobody = NetworkView { nodes: Vec::new(), ..view };
        assert_eq!(effective_mtu(&nobody, cluster.this(), Some(500)), 1300);
    }

    #[test]
    fn ipv6_keeps_what_it_needs_and_ipv4_what_every_host_takes() {
        let cluster = PaperCluster::new();
        let mut view = network(&cluster, None, [1300, 1500]);
        view.network.subnets[0].cidr = "fd00::/64".parse().expect("a subnet");
        assert_eq!(effective_mtu(&view, cluster.this(), None), 1280);
        view.network.subnets[0].cidr = "10.0.0.0/24".parse().expect("a subnet");
        assert_eq!(effective_mtu(&view, cluster.this(), None), 1208);
        assert_eq!(effective_mtu(&view, cluster.this(), Some(68)), 576);
    }
}
