//! The lanes kept equal to what they were given: looked at every two seconds, and mended.
//!
//! Commands are acknowledged and tables are published whole, so nothing is known that makes a lane differ. Should
//! one all the same, this fails closed: keys that a lane has and that were not agreed on are dropped with all of
//! their link's, and what it lacks comes with new keys, since none is given twice. Tables are made anew, of the
//! view alone. Keys that are just agreed on look like a difference for a moment, so only what two looks find is
//! mended.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::attachments::Attachments;
use super::keys::Keys;
use super::lane_state::{LaneState, StraySas};
use super::peer::Wish;
use super::placement::LinkKey;
use super::rekey::Wished;
use super::slots::Hold;
use crate::cluster::View;
use crate::forward::Tables;
use crate::id::{LinkSlot, NetworkId, PortHold, PortSlot};
use crate::worker::LaneGone;

/// Looks at the lanes and mends them, for ever.
pub(super) async fn keep(keys: Arc<Keys>, rekeys: mpsc::Sender<Wished>, attachments: Arc<Attachments>) {
    let mut upkeep = Upkeep::new(keys, rekeys);
    loop {
        let pause = if upkeep.seen.is_empty() { INTERVAL } else { SECOND_LOOK };
        tokio::time::sleep(pause).await;
        // Whoever hears the lanes says that one has ended.
        let Ok(mended) = upkeep.look().await else { return std::future::pending().await };
        for stray in mended {
            attachments.told_mended_lanes(&stray.to_string());
            if let Stray::Port { slot, hold } = stray {
                attachments.port_gone(slot, hold).await;
            }
        }
    }
}

/// What the last look has found.
struct Upkeep {
    keys: Arc<Keys>,
    rekeys: mpsc::Sender<Wished>,
    seen: BTreeSet<Stray>,
    /// The view and each lane's tables that were found to be equal.
    sound: Option<(Arc<View>, Vec<Arc<Tables>>)>,
}

impl Upkeep {
    fn new(keys: Arc<Keys>, rekeys: mpsc::Sender<Wished>) -> Self {
        Self { keys, rekeys, seen: BTreeSet::new(), sound: None }
    }

    /// Looks once, and mends what the look before has found as well; ports are left to the caller.
    async fn look(&mut self) -> Result<Vec<Stray>, LaneGone> {
        let lanes = LaneState::look(&self.keys.dataplane).await?;
        let mut found = self.stray_keys(&lanes);
        found.extend(missing_ports(&lanes));
        found.extend(self.wrong_tables(&lanes));
        let mended: Vec<Stray> = found.intersection(&self.seen).cloned().collect();
        for stray in &mended {
            self.mend(stray).await?;
        }
        self.seen = if mended.is_empty() { found } else { BTreeSet::new() };
        Ok(mended)
    }

    async fn mend(&self, stray: &Stray) -> Result<(), LaneGone> {
        let dataplane = &self.keys.dataplane;
        match stray {
            Stray::Tables { .. } => dataplane.publish_anew().await,
            Stray::Ended { slot, .. } => dataplane.forget_stray_keys(*slot).await,
            Stray::Keys { link: (network, node), hold, sas, .. } => {
                if !sas.unknown.is_empty() {
                    dataplane.forget_keys(((*network, *node), *hold)).await?;
                }
                let (answer, _nobody_waits) = oneshot::channel();
                // Where the node is just leaving its cluster, there are to be none.
                let _sent_or_not = self.rekeys.send((*node, vec![Wish { network: *network, answer }])).await;
                Ok(())
            }
            Stray::Port { .. } => Ok(()),
        }
    }

    fn stray_keys(&self, lanes: &LaneState) -> BTreeSet<Stray> {
        let (status, sas, peers) = (self.keys.status(), lanes.sas(), self.keys.dataplane.peers());
        let peers = peers.borrow();
        let hold = |(network, node): &LinkKey| Some(peers.get(node)?.links.get(network)?.hold);
        let links = lanes.links.iter().filter_map(|(link, slot)| {
            let status = status.get(link);
            let stray = sas.get(slot).cloned().unwrap_or_default().stray(status)?;
            let generation = status.and_then(|status| Some(status.established.as_ref()?.generation));
            Some(Stray::Keys { link: *link, hold: hold(link)?, generation, sas: stray })
        });
        let ended = lanes.ended_sas(&sas).into_keys().map(|slot| Stray::Ended { slot });
        links.chain(ended).collect()
    }

    fn wrong_tables(&mut self, lanes: &LaneState) -> BTreeSet<Stray> {
        if self.sound.as_ref().is_some_and(|sound| is_same(sound, lanes)) {
            return BTreeSet::new();
        }
        let networks = lanes.view.networks.iter().filter_map(|(id, view)| {
            let what = lanes.wrong_tables(view, &lanes.expected(self.keys.node, view)?)?;
            Some(Stray::Tables { network: Some(*id), what })
        });
        let surplus = lanes.surplus_network().map(|what| Stray::Tables { network: None, what });
        let wrong: BTreeSet<Stray> = networks.chain(surplus).collect();
        let tables = || lanes.inventories.iter().map(|lane| Arc::clone(&lane.tables)).collect();
        self.sound = wrong.is_empty().then(|| (Arc::clone(&lanes.view), tables()));
        wrong
    }
}

fn missing_ports(lanes: &LaneState) -> impl Iterator<Item = Stray> {
    let is_missing = |slot| lanes.inventories.iter().any(|lane| !lane.ports.contains(&slot));
    let missing = lanes.ports.values().filter(move |(slot, _)| is_missing(*slot));
    missing.map(|(slot, hold)| Stray::Port { slot: *slot, hold: *hold })
}

/// What lanes have and should not, or lack.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Stray {
    /// The tables are not of the view.
    Tables { network: Option<NetworkId>, what: String },
    /// The SAs of a link are not those that it has agreed on.
    Keys { link: LinkKey, hold: Hold, generation: Option<u64>, sas: StraySas },
    /// There are SAs in a slot that no link holds.
    Ended { slot: LinkSlot },
    /// An interface is not open in every lane.
    Port { slot: PortSlot, hold: PortHold },
}

impl std::fmt::Display for Stray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tables { network: Some(network), what } => {
                write!(f, "tables of network {network} published anew ({what})")
            }
            Self::Tables { network: None, what } => write!(f, "tables published anew ({what})"),
            Self::Keys { link: (network, node), sas, .. } if sas.unknown.is_empty() => {
                write!(f, "new keys with {node} on network {network}, as SAs were missing")
            }
            Self::Keys { link: (network, node), .. } => {
                write!(
                    f,
                    "keys with {node} on network {network} dropped and made anew, as there were SAs that were not agreed on"
                )
            }
            Self::Ended { slot } => write!(f, "SAs of a link that has ended dropped (slot {slot})"),
            Self::Port { slot, .. } => write!(f, "interface opened again, as a lane had not (slot {slot})"),
        }
    }
}

/// Whether nothing was published since.
fn is_same((view, tables): &(Arc<View>, Vec<Arc<Tables>>), lanes: &LaneState) -> bool {
    let now = lanes.inventories.iter().map(|lane| &lane.tables);
    Arc::ptr_eq(view, &lanes.view)
        && tables.len() == lanes.inventories.len()
        && tables.iter().zip(now).all(|(before, now)| Arc::ptr_eq(before, now))
}

const INTERVAL: Duration = Duration::from_secs(2);
/// Longer than an exchange of keys takes on a busy machine to be noted after the lanes have them.
const SECOND_LOOK: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use tokio::sync::watch;

    use super::super::testbed::{PaperCluster, endpoint_id, network_id, peer};
    use super::super::underlay::Underlay;
    use super::*;
    use crate::boot_time::BootTime;
    use crate::control::tls::Credentials;
    use crate::control::trust::Trust;
    use crate::events::Events;
    use crate::id::{BootId, LaneCount, LaneId, Spi};
    use crate::io::clock::{boot_time, wall_clock};
    use crate::negotiate::{Established, ExchangeId, Hello, Install, LaneKey, Whereabouts};
    use crate::rate::RateLimits;
    use crate::sa::{InboundSa, KeyMaterial, LimitOverrides, Limits, OutboundSa, Suite};
    use crate::worker::Command;

    #[tokio::test]
    async fn lanes_that_have_what_they_were_given_are_left_alone() {
        let mut lab = Lab::new().await;
        lab.keys.set_status(lab.link(), |status| {
            status.lingering = vec![spi(7)];
            status.coming = [vec![spi(8)], vec![spi(9)]];
        });
        lab.receive(lab.slot().await, 7).await;
        lab.receive(lab.slot().await, 8).await;
        assert_eq!(lab.mended().await, [""; 0]);

        // A generation that is over: nobody can send with it, and a lane knows it until there is another.
        lab.retire(&[1, 7, 8]).await;
        lab.keys.set_status(lab.link(), |status| {
            let over = status.established.take().expect("keys");
            (status.over, status.lingering, status.coming) = (over.outbound, Vec::new(), Default::default());
        });
        assert_eq!(lab.mended().await, [""; 0]);
    }

    #[tokio::test]
    async fn what_two_looks_do_not_both_find_is_left_alone() {
        let mut lab = Lab::new().await;
        for more in [7, 8, 9] {
            lab.receive(lab.slot().await, more).await;
            assert_eq!(lab.look().await, [""; 0]);
            lab.retire(&[more]).await;
        }
        assert!(lab.wishes().is_empty());
    }

    #[tokio::test]
    async fn change_that_comes_while_the_lanes_are_looked_at_is_no_fault() {
        let mut lab = Lab::new().await;
        let dataplane = Arc::clone(&lab.keys.dataplane);
        for epoch in [2, 4] {
            let network = lab.cluster.network(1, epoch, &[]);
            let alone = lab.cluster.view(vec![network], &[]);
            let (mended, followed) = tokio::join!(lab.look(), dataplane.follow(alone));
            assert_eq!((mended, followed), (vec![], Ok(())));
            let network = lab.cluster.network(1, epoch + 1, &[2]);
            dataplane.follow(lab.cluster.view(vec![network], &[])).await.expect("a lane");
            let slot = lab.slot().await;
            lab.receive(slot, 1).await;
            lab.send(slot, 2).await;
        }
        assert_eq!(lab.mended().await, [""; 0]);
        assert!(lab.wishes().is_empty());
    }

    #[tokio::test]
    async fn tables_that_are_not_of_the_view_are_made_anew() {
        let mut lab = Lab::new().await;
        assert_eq!(lab.mended().await, [""; 0]);
        let right = lab.tables.load_full();
        let elsewhere = lab.other_view().await;
        for (wrong, told) in [(Arc::default(), "the network is missing"), (elsewhere, "is missing")] {
            lab.tables.store(wrong);
            assert!(lab.mended().await.concat().contains(told), "{told}");
            let (now, network) = (lab.tables.load_full(), network_id(1));
            assert!(now.networks().map(|table| table.vni()).eq(right.networks().map(|table| table.vni())));
            assert_eq!(lab.mended().await, [""; 0], "{network} is as before");
        }
        assert!(lab.wishes().is_empty());
    }

    #[tokio::test]
    async fn removal_that_a_peer_told_before_the_manager_is_no_fault_of_the_lanes() {
        let mut lab = Lab::new().await;
        let removals = lab.cluster.sign_removals(1, &[2]);
        assert_eq!(lab.keys.dataplane.adopt_removals(removals).await, Ok(Ok(())));
        assert_eq!(
            lab.mended().await,
            [""; 0],
            "the view still has an endpoint on the node that was removed"
        );
    }

    #[tokio::test]
    async fn keys_that_were_not_agreed_on_are_dropped_with_those_of_their_link_and_new_ones_are_asked_for() {
        for is_inbound in [true, false] {
            let mut lab = Lab::new().await;
            let slot = lab.slot().await;
            if is_inbound {
                lab.receive(slot, 7).await
            } else {
                lab.send(slot, 7).await
            }
            assert!(lab.mended().await.concat().contains("were not agreed on"));
            assert_eq!(lab.spis().await, [vec![], vec![]], "a lane has keys that nobody agreed on");
            assert_eq!(lab.wishes(), [lab.link()]);
        }
    }

    #[tokio::test]
    async fn keys_that_a_lane_lacks_are_asked_for_anew_and_the_others_stay_in_use() {
        let mut lab = Lab::new().await;
        lab.retire(&[1]).await;
        assert!(lab.mended().await.concat().contains("SAs were missing"));
        assert_eq!(lab.spis().await, [vec![], vec![spi(2)]]);
        assert_eq!(lab.wishes(), [lab.link()]);
    }

    #[tokio::test]
    async fn keys_in_a_slot_that_no_link_holds_are_dropped() {
        let mut lab = Lab::new().await;
        lab.receive(LinkSlot::new(40), 7).await;
        lab.send(LinkSlot::new(41), 8).await;
        assert_eq!(lab.mended().await.len(), 2);
        assert_eq!(lab.spis().await, [vec![spi(1)], vec![spi(2)]], "keys of a link went, or others stayed");
        assert!(lab.wishes().is_empty());
    }

    #[tokio::test]
    async fn interface_that_a_lane_has_not_open_is_told() {
        let mut lab = Lab::new().await;
        let nothing = (Vec::new(), RateLimits::default());
        lab.keys.dataplane.add_port(endpoint_id(1, 1), nothing.0, nothing.1).await.expect("a lane");
        let told = lab.mended().await;
        assert!(told.len() == 1 && told[0].contains("opened again"), "{told:?}");
    }

    /// A node with one lane and one link, whose keys are 1 to receive and 2 to send.
    struct Lab {
        cluster: PaperCluster,
        tables: Arc<ArcSwap<Tables>>,
        keys: Arc<Keys>,
        upkeep: Upkeep,
        rekeys: mpsc::Receiver<Wished>,
    }

    impl Lab {
        async fn new() -> Self {
            let mut cluster = PaperCluster::new();
            let tables = Arc::default();
            let dataplane = Arc::new(cluster.dataplane_over(&tables));
            dataplane.follow(cluster.view(vec![cluster.network(1, 1, &[2])], &[])).await.expect("a lane");
            let trust = Trust::of(&cluster.identity).expect("a root");
            let credentials = Credentials::new(cluster.identity.clone(), trust, wall_clock).expect("usable");
            let here = ([127, 0, 0, 1], 1).into();
            let at = Whereabouts { advertise: here, data: here };
            let keys = Arc::new(Keys::new(
                (Hello { boot_id: BootId::from_entropy([1; 16]), lanes: 1 }, LaneCount::ONE),
                (vec![SUITE], LimitOverrides::default()),
                dataplane,
                credentials,
                (None, Events::default()),
                (watch::channel(Underlay { at, mtu: 1500 }).1, mpsc::channel(1).0),
            ));
            let (wanted, rekeys) = mpsc::channel(8);
            let lab = Self { cluster, tables, upkeep: Upkeep::new(Arc::clone(&keys), wanted), keys, rekeys };
            let exchange = ExchangeId::new(1).expect("an id");
            let (limits, created) = (Limits::standard(SUITE), boot_time());
            let lane = LaneId::new(0).expect("a lane");
            let sa = |number| vec![LaneKey { lane, spi: spi(number), key: key() }];
            let install = Install { exchange, generation: 1, limits, inbound: sa(1), outbound: sa(2) };
            let hold = lab.keys.dataplane.peers().borrow()[&peer(2)].links[&network_id(1)].hold;
            assert_eq!(lab.keys.install((lab.link(), hold), false, install).await, Ok(true));
            let (inbound, outbound) = (vec![spi(1)], vec![spi(2)]);
            lab.keys.set_status(lab.link(), |status| {
                let (generation, suite) = (1, SUITE);
                status.established =
                    Some(Established { exchange, generation, suite, inbound, outbound, created, limits });
            });
            lab
        }

        fn link(&self) -> LinkKey {
            (network_id(1), peer(2))
        }

        async fn slot(&self) -> LinkSlot {
            self.keys.dataplane.links().await[&self.link()]
        }

        /// The tables of another cluster of the same node, one of whose networks is this one's.
        async fn other_view(&mut self) -> Arc<Tables> {
            let (tables, mut network) = (Arc::default(), self.cluster.network(1, 1, &[2]));
            let other = self.cluster.dataplane_over(&tables);
            network.endpoints.clear();
            other.follow(self.cluster.view(vec![network], &[])).await.expect("a lane");
            tables.load_full()
        }

        async fn look(&mut self) -> Vec<String> {
            let mended = self.upkeep.look().await.expect("a lane");
            mended.iter().map(ToString::to_string).collect()
        }

        /// What two looks mend, of which the first mends nothing.
        async fn mended(&mut self) -> Vec<String> {
            assert_eq!(self.look().await, [""; 0]);
            self.look().await
        }

        /// The links that new keys were asked for.
        fn wishes(&mut self) -> Vec<LinkKey> {
            let wished = std::iter::from_fn(|| self.rekeys.try_recv().ok());
            wished
                .flat_map(|(node, wishes)| wishes.into_iter().map(move |wish| (wish.network, node)))
                .collect()
        }

        /// What the lane receives and sends with.
        async fn spis(&self) -> [Vec<Spi>; 2] {
            let inventory = self.keys.dataplane.lanes()[0].inventory().await.expect("a lane");
            [inventory.inbound, inventory.outbound].map(|sas| sas.into_iter().map(|(_, spi)| spi).collect())
        }

        async fn receive(&self, link: LinkSlot, number: u32) {
            let sa = InboundSa::new(spi(number), key(), Limits::standard(SUITE), boot_time());
            self.command(Command::InstallInbound { link, sa }).await;
        }

        async fn send(&self, link: LinkSlot, number: u32) {
            let sa = OutboundSa::new(spi(number), key(), Limits::standard(SUITE), boot_time());
            self.command(Command::InstallOutbound { link, sa }).await;
        }

        async fn retire(&self, numbers: &[u32]) {
            for number in numbers {
                self.command(Command::RetireInbound { spi: spi(*number), at: BootTime::default() }).await;
            }
        }

        async fn command(&self, command: Command) {
            self.keys.dataplane.lanes()[0].execute(command).await.expect("a lane");
        }
    }

    fn spi(number: u32) -> Spi {
        Spi::for_lane((number + 100) << LaneId::BITS, LaneId::new(0).expect("a lane")).expect("an SPI")
    }

    fn key() -> KeyMaterial {
        KeyMaterial::new(SUITE, &[3; KeyMaterial::LEN])
    }

    const SUITE: Suite = Suite::Aes256Gcm;
}
