//! A running lane seen from control: commands, events, counters and its end. Its TAPs are tried in
//! `tests/netns_lane.rs`, where there are some.

use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::lane::Shared;
use super::turn::Turns;
use super::*;
use crate::drop_reason::DropReason;
use crate::forward::{NetworkTable, Tables, TablesBuilder};
use crate::id::{LaneId, LinkSlot, NetSlot, PortSlot, Spi, Vni};
use crate::io::clock::boot_time;
use crate::io::epoll::{Epoll, ReadyList};
use crate::io::udp::{UdpOptions, UdpSocket};
use crate::sa::{InboundSa, KeyMaterial, Limits, OutboundSa, Suite};
use crate::wire::traffic_class::Dscp;
use crate::wire::vxlan::LeftChecksums;

const LINK: LinkSlot = LinkSlot::new(0);

#[tokio::test]
async fn commands_are_acknowledged_once_carried_out() {
    let lane = TestLane::start();
    lane.lane.execute(Command::Sync).await.unwrap();
    lane.lane.execute(Command::InstallOutbound { link: LINK, sa: outbound() }).await.unwrap();
    lane.lane.execute(Command::InstallInbound { link: LINK, sa: inbound(0x1000) }).await.unwrap();
    lane.lane.execute(Command::DropLink(LINK)).await.unwrap();
    lane.lane.execute(Command::RemovePort(PortSlot::new(3))).await.unwrap();
}

#[tokio::test]
async fn many_commands_at_once_are_all_acknowledged() {
    let lane = TestLane::start();
    let commands = (0..2000).map(|_| lane.lane.execute(Command::Sync));
    let done = futures_util::future::join_all(commands).await;
    assert!(done.iter().all(Result::is_ok));
}

#[tokio::test]
async fn published_tables_are_in_use_after_sync() {
    let lane = TestLane::start();
    let plaintext = [8, 0, 0, 0, 0, 0, 7, 0, 1, 2, 3];
    lane.throw(lane.vxlan, &plaintext);
    lane.wait_for(DropReason::UnknownVni, 1).await;
    let vni = Vni::new(7).expect("in range");
    let network = Arc::new(NetworkTable::encrypted(vni, 1408, Vec::new()));
    lane.tables.store(Arc::new(TablesBuilder::default().network(NetSlot::new(0), network).build()));
    lane.lane.execute(Command::Sync).await.unwrap();
    lane.throw(lane.vxlan, &plaintext);
    lane.wait_for(DropReason::PlaintextForEncryptedNetwork, 1).await;
}

#[tokio::test]
async fn garbage_on_either_port_is_counted_and_unknown_spi_told_once() {
    let lane = TestLane::start();
    lane.throw(lane.esp, &[0xff]);
    lane.throw(lane.esp, &[0; 9]);
    lane.throw(lane.esp, &[1; 9]);
    lane.throw(lane.esp, &[1; 99]);
    lane.throw(lane.esp, &[1; 99]);
    lane.throw(lane.esp, &[]);
    lane.throw(lane.vxlan, &[1; 3]);
    lane.throw(lane.vxlan, &[]);
    for (reason, count) in [
        (DropReason::NatKeepalive, 1),
        (DropReason::NonEsp, 1),
        (DropReason::MalformedEsp, 2),
        (DropReason::UnknownSpi, 2),
        (DropReason::MalformedVxlan, 2),
    ] {
        lane.wait_for(reason, count).await;
    }
    let event = lane.lane.next_event().await;
    assert!(matches!(event, Some(LaneEvent::UnknownSpi { spi, .. }) if spi.get() == 0x0101_0101));
    let second = tokio::time::timeout(Duration::from_millis(50), lane.lane.next_event()).await;
    assert!(second.is_err(), "told twice in a second: {second:?}");
}

#[tokio::test]
async fn lane_goes_on_at_other_sockets_with_its_keys_and_counters() {
    let mut lane = TestLane::start();
    lane.lane.execute(Command::InstallInbound { link: LINK, sa: inbound(0x0101_0101) }).await.unwrap();
    lane.throw(lane.esp, &[0xff]);
    lane.wait_for(DropReason::NatKeepalive, 1).await;
    let bind = || UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    let (esp, vxlan) = (bind(), bind());
    let before = (lane.esp, lane.vxlan);
    (lane.esp, lane.vxlan) = (esp.local_addr().unwrap(), vxlan.local_addr().unwrap());
    lane.lane.rebind(Some(esp.into()), Some(vxlan.into())).await.unwrap();
    lane.throw(lane.esp, &[0xff]);
    lane.throw(lane.esp, &[1; 99]);
    lane.throw(lane.vxlan, &[1; 3]);
    for (reason, count) in [
        (DropReason::NatKeepalive, 2),
        (DropReason::AuthenticationFailed, 1),
        (DropReason::MalformedVxlan, 1),
        (DropReason::UnknownSpi, 0),
    ] {
        lane.wait_for(reason, count).await;
    }
    for address in [before.0, before.1] {
        UdpSocket::bind(address, &UdpOptions::default()).expect("the port is free again");
    }
}

/// The lane has no thread here, so what arrives waits.
#[test]
fn what_waits_at_the_sockets_before_is_taken_before_they_are_closed() {
    let any = "127.0.0.1:0".parse().unwrap();
    let bind = || UdpSocket::bind(any, &UdpOptions::default()).unwrap();
    let (esp, vxlan) = (bind(), bind());
    let (arrivals, thrower) = (Epoll::new().unwrap(), StdSocket::bind(any).unwrap());
    let mut arrived = ReadyList::with_capacity(1);
    for (socket, datagram) in [(&esp, &[0xff][..]), (&vxlan, &[1; 3][..])] {
        thrower.send_to(datagram, socket.local_addr().unwrap()).unwrap();
        arrivals.add(socket, 0).unwrap();
        arrivals.wait(&mut arrived, None).unwrap();
        arrivals.remove(socket).unwrap();
    }
    let shared = Arc::new(Shared::new().unwrap());
    let config = config(esp, vxlan, Arc::default());
    let mut turns = Turns::new(config, shared.clone()).unwrap();
    turns.carry_out(Command::Rebind { esp: Some(bind().into()), vxlan: Some(bind().into()) });
    let counted =
        [DropReason::NatKeepalive, DropReason::MalformedVxlan].map(|at| shared.counters.dropped(at));
    assert_eq!(counted, [1, 1]);
}

#[tokio::test]
async fn lane_that_gets_a_socket_for_vxlan_later_keeps_that_for_esp() {
    let mut lane = TestLane::start();
    lane.lane.rebind(None, None).await.unwrap();
    assert!(lane.lane.offloads().1.is_none());
    lane.throw(lane.esp, &[0xff]);
    lane.wait_for(DropReason::NatKeepalive, 1).await;
    let vxlan = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    lane.vxlan = vxlan.local_addr().unwrap();
    lane.lane.rebind(None, Some(vxlan.into())).await.unwrap();
    lane.throw(lane.vxlan, &[1; 3]);
    lane.throw(lane.esp, &[0xff]);
    lane.wait_for(DropReason::MalformedVxlan, 1).await;
    lane.wait_for(DropReason::NatKeepalive, 2).await;
}

#[tokio::test]
async fn retired_sa_is_forgotten_at_its_time() {
    let lane = TestLane::start();
    lane.lane.execute(Command::InstallInbound { link: LINK, sa: inbound(0x0101_0101) }).await.unwrap();
    lane.throw(lane.esp, &[1; 99]);
    lane.wait_for(DropReason::AuthenticationFailed, 1).await;
    let spi = Spi::new(0x0101_0101).expect("no reserved SPI");
    let at = boot_time() + Duration::from_millis(20);
    lane.lane.execute(Command::RetireInbound { spi, at }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    lane.throw(lane.esp, &[1; 99]);
    lane.wait_for(DropReason::UnknownSpi, 1).await;
    assert_eq!(lane.lane.counters().link(LINK).last_drop, Some(DropReason::AuthenticationFailed));
}

#[tokio::test]
async fn stopped_lane_ends_its_thread_and_frees_its_ports() {
    let TestLane { lane, esp, .. } = TestLane::start();
    lane.stop();
    UdpSocket::bind(esp, &UdpOptions::default()).expect("the port is free again");
}

#[tokio::test]
async fn ended_lane_refuses_commands_and_has_no_more_events() {
    let TestLane { lane, .. } = TestLane::start();
    lane.end_thread_for_test();
    assert_eq!(lane.next_event().await, None);
    assert_eq!(lane.execute(Command::Sync).await, Err(LaneGone));
}

struct TestLane {
    lane: Lane,
    tables: Arc<ArcSwap<Tables>>,
    esp: SocketAddr,
    vxlan: SocketAddr,
    thrower: StdSocket,
}

impl TestLane {
    fn start() -> Self {
        let any = "127.0.0.1:0".parse().expect("an address");
        let bind = || UdpSocket::bind(any, &UdpOptions::default()).expect("a socket");
        let (esp, vxlan) = (bind(), bind());
        let addresses = (esp.local_addr().expect("bound"), vxlan.local_addr().expect("bound"));
        let tables = Arc::new(ArcSwap::from_pointee(Tables::default()));
        let lane = spawn(config(esp, vxlan, tables.clone())).expect("a thread");
        let thrower = StdSocket::bind(any).expect("a socket");
        Self { lane, tables, esp: addresses.0, vxlan: addresses.1, thrower }
    }

    fn throw(&self, to: SocketAddr, datagram: &[u8]) {
        self.thrower.send_to(datagram, to).expect("loopback takes it");
    }

    async fn wait_for(&self, reason: DropReason, count: u64) {
        for _ in 0..500 {
            if self.lane.counters().dropped(reason) >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.lane.counters().dropped(reason), count, "{reason:?}");
    }
}

fn config(esp: UdpSocket, vxlan: UdpSocket, tables: Arc<ArcSwap<Tables>>) -> LaneConfig {
    LaneConfig {
        id: LaneId::new(0).expect("a lane"),
        esp: esp.into(),
        vxlan: Some(vxlan.into()),
        tables,
        flood: FloodLimit::default().into(),
        busy_poll: Duration::from_micros(100),
        vigil: None,
        precedence: None,
        dscp: Dscp::Hidden,
        checksums: LeftChecksums::Passed,
    }
}

fn key() -> KeyMaterial {
    KeyMaterial::new(Suite::Aes256Gcm, &[7; KeyMaterial::LEN])
}

fn inbound(spi: u32) -> Box<InboundSa> {
    let spi = Spi::new(spi).expect("no reserved SPI");
    InboundSa::new(spi, key(), Limits::standard(Suite::Aes256Gcm), boot_time())
}

fn outbound() -> Box<OutboundSa> {
    let spi = Spi::new(0x2000).expect("no reserved SPI");
    OutboundSa::new(spi, key(), Limits::standard(Suite::Aes256Gcm), boot_time())
}
