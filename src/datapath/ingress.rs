//! From the wire inward: open, check, and hand to the containers of this node.
//!
//! An ESP packet names its SA, the SA its link, the link its network and the peer whose endpoints
//! may speak. A plain VXLAN packet names its network itself and is believed only if that network
//! is unencrypted and the sender one of its VTEPs. Nothing that came from the wire goes back to it.
//! Each frame is judged by itself before it may be merged with others. Owned and called by one lane.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use foldhash::fast::FixedState;

use super::coalesce::{Arrived, Coalescer, Origin};
use super::egress::deliver;
use super::{Context, Notice, NoticeLimit, Outlet};
use crate::boot_time::BootTime;
use crate::drop_reason::DropReason;
use crate::forward::{Carrier, Directory, Place, Remote, policy};
use crate::id::{LinkSlot, Spi};
use crate::sa::{Authenticated, InboundSa};
use crate::wire::frame::Frame;
use crate::wire::traffic_class::TrafficClass;
use crate::wire::vxlan::RemoteChecksum;
use crate::wire::{esp, mss, udp, vxlan};

/// A lane's way in: its inbound SAs.
#[derive(Debug, Default)]
pub struct Ingress {
    sas: HashMap<Spi, Inbound, FixedState>,
    /// When each of them ends, the next one first.
    ends: BTreeSet<(BootTime, Spi)>,
    unknown_spi_notice: NoticeLimit,
}

impl Ingress {
    /// A way in without keys.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens with `sa` what comes for its SPI from now on, as from the link.
    pub fn install(&mut self, link: LinkSlot, sa: Box<InboundSa>) {
        let (spi, end) = (sa.spi(), sa.expires_at());
        if let Some(before) = self.sas.insert(spi, Inbound { link, sa }) {
            self.ends.remove(&(before.sa.expires_at(), spi));
        }
        self.ends.insert((end, spi));
    }

    /// Lets an SA live until `at` and no longer.
    pub fn retire(&mut self, spi: Spi, at: BootTime) {
        if let Some(Inbound { sa, .. }) = self.sas.get_mut(&spi) {
            self.ends.remove(&(sa.expires_at(), spi));
            sa.set_expiry(at);
            self.ends.insert((sa.expires_at(), spi));
        }
    }

    /// Forgets every SA of a link.
    pub fn remove(&mut self, link: LinkSlot) {
        let Self { sas, ends, .. } = self;
        sas.retain(|spi, inbound| {
            let stays = inbound.link != link;
            if !stays {
                ends.remove(&(inbound.sa.expires_at(), *spi));
            }
            stays
        });
    }

    /// Forgets what has expired; gives the time at which the next one will.
    pub fn expire(&mut self, now: BootTime) -> BootTime {
        while let Some(&(end, spi)) = self.ends.first() {
            if end > now {
                return end;
            }
            self.ends.pop_first();
            self.sas.remove(&spi);
        }
        BootTime::NEVER
    }

    /// The inbound SA with this SPI.
    pub fn inbound(&self, spi: Spi) -> Option<&InboundSa> {
        self.sas.get(&spi).map(|inbound| &*inbound.sa)
    }

    /// Every inbound SA with its link.
    pub fn sas(&self) -> impl Iterator<Item = (LinkSlot, &InboundSa)> {
        self.sas.values().map(|inbound| (inbound.link, &*inbound.sa))
    }

    /// Takes one datagram that came to the ESP port under an outer header of `class`; its bytes are
    /// decrypted in place, and `batch` may keep them until it is flushed.
    pub fn receive_esp<'p>(
        &mut self,
        cx: &Context<'_>,
        from: SocketAddr,
        class: TrafficClass,
        datagram: &'p mut [u8],
        batch: &mut Coalescer<'p>,
        outlet: &mut impl Outlet,
    ) {
        let spi = match esp::classify(datagram) {
            Ok(esp::Datagram::Esp(spi)) => spi,
            Ok(esp::Datagram::NatKeepalive) => return cx.counters.drop_unplaced(DropReason::NatKeepalive, 1),
            Ok(esp::Datagram::NonEspMarker) => return cx.counters.drop_unplaced(DropReason::NonEsp, 1),
            Err(_) => return cx.counters.drop_unplaced(DropReason::MalformedEsp, 1),
        };
        let Some(Inbound { link, sa }) = self.sas.get_mut(&spi) else {
            self.note_unknown_spi(cx, spi, from, outlet);
            return cx.counters.drop_unplaced(DropReason::UnknownSpi, 1);
        };
        let link = *link;
        let delivered = match sa.open(cx.now, datagram) {
            Ok(packet) => receive_authenticated(cx, link, class, packet, batch, outlet),
            Err(reason) => {
                if sa.wants_rekey() {
                    outlet.notice(Notice::RekeyWanted { link, spi });
                }
                if reason == DropReason::UnknownSpi {
                    self.note_unknown_spi(cx, spi, from, outlet);
                }
                Err(reason)
            }
        };
        if let Err(reason) = delivered {
            cx.counters.drop_at_link(link, reason);
        }
    }

    /// Takes one datagram that came to the plain VXLAN port under an outer header of `class`.
    pub fn receive_vxlan<'p>(
        &mut self,
        cx: &Context<'_>,
        from: SocketAddr,
        class: TrafficClass,
        datagram: &'p mut [u8],
        batch: &mut Coalescer<'p>,
        outlet: &mut impl Outlet,
    ) {
        if let Err(reason) = receive_plain(cx, from, class, datagram, batch, outlet) {
            cx.counters.drop_unplaced(reason, 1);
        }
    }

    fn note_unknown_spi(&mut self, cx: &Context<'_>, spi: Spi, from: SocketAddr, outlet: &mut impl Outlet) {
        if self.unknown_spi_notice.permits(cx.now) {
            outlet.notice(Notice::UnknownSpi { spi, from });
        }
    }
}

/// An SA and whose packets it opens.
#[derive(Debug)]
struct Inbound {
    link: LinkSlot,
    /// Boxed, so that installing it moves no key.
    sa: Box<InboundSa>,
}

/// How a frame came here.
struct Arrival<R> {
    from: R,
    origin: Origin,
    /// Of the outer header.
    class: TrafficClass,
    /// Of the network.
    mtu: u16,
    /// What its sender left to do.
    checksum: Option<RemoteChecksum>,
}

type Delivered = Result<(), DropReason>;

fn receive_authenticated<'p>(
    cx: &Context<'_>,
    link: LinkSlot,
    class: TrafficClass,
    packet: Authenticated<'p>,
    batch: &mut Coalescer<'p>,
    outlet: &mut impl Outlet,
) -> Delivered {
    let (port, payload) = udp::parse(packet.payload()).map_err(|_| DropReason::MalformedVxlan)?;
    if port != vxlan::PORT {
        return Err(DropReason::MalformedVxlan);
    }
    let vxlan::Packet { vni, checksum, frame } =
        vxlan::parse(payload).map_err(|_| DropReason::MalformedVxlan)?;
    let frame_len = frame.len();
    cx.counters.received_from_link(link, frame_len);
    let row = cx.tables.link(link).ok_or(DropReason::NoSuchPort)?;
    let network = cx.tables.network(row.net).ok_or(DropReason::NoSuchPort)?;
    if vni != network.vni() {
        return Err(DropReason::WrongVni);
    }
    match network.carrier() {
        Carrier::Esp(directory) => {
            let frame = &mut packet.into_payload()[udp::HEADER_LEN + vxlan::HEADER_LEN..][..frame_len];
            let (origin, mtu) = (Origin::Link(link), network.mtu());
            let arrival = Arrival { from: link, origin, class, mtu, checksum };
            receive_frame(cx, directory, arrival, frame, batch, outlet)
        }
        Carrier::Vxlan(_) => Err(DropReason::WrongVni),
    }
}

fn receive_plain<'p>(
    cx: &Context<'_>,
    from: SocketAddr,
    class: TrafficClass,
    datagram: &'p mut [u8],
    batch: &mut Coalescer<'p>,
    outlet: &mut impl Outlet,
) -> Delivered {
    // Here the bits of a checksum that is left are reserved: nothing proves that they are meant.
    let vxlan::Packet { vni, checksum: _, frame } =
        vxlan::parse(datagram).map_err(|_| DropReason::MalformedVxlan)?;
    let frame_len = frame.len();
    if cx.tables.is_encrypted(vni) {
        return Err(DropReason::PlaintextForEncryptedNetwork);
    }
    let (network, carrier) = cx.tables.plain_network(vni).ok_or(DropReason::UnknownVni)?;
    let vtep = carrier.sender(from.ip()).ok_or(DropReason::UnknownVtep)?;
    cx.counters.received_from_vtep(vtep, frame_len);
    let (origin, mtu) = (Origin::Vtep(vtep, vni), network.mtu());
    let arrival = Arrival { from: vtep, origin, class, mtu, checksum: None };
    let frame = &mut datagram[vxlan::HEADER_LEN..];
    let delivered = receive_frame(cx, carrier.directory(), arrival, frame, batch, outlet);
    delivered.inspect_err(|reason| cx.counters.note_drop_at_vtep(vtep, *reason))
}

/// Hands the frame to whom it is for on this node, if its sender may send it.
fn receive_frame<'p, R: Remote>(
    cx: &Context<'_>,
    directory: &Directory<R>,
    Arrival { from, origin, class, mtu, checksum }: Arrival<R>,
    bytes: &'p mut [u8],
    batch: &mut Coalescer<'p>,
    outlet: &mut impl Outlet,
) -> Delivered {
    // Before it may be merged: a run has one traffic class.
    class.enter(bytes)?;
    let arrived = Arrived::new(bytes, checksum)?;
    let Err(arrived) = batch.continue_run(origin, arrived) else { return Ok(()) };
    let frame = Frame::parse(arrived.bytes).map_err(|_| DropReason::MalformedVxlan)?;
    policy::inward(directory, from, &frame)?;
    if frame.destination.is_multicast() {
        batch.flush(cx, outlet);
        for port in directory.local_ports() {
            deliver(cx, *port, &arrived.header(), &[arrived.bytes], outlet);
        }
        return Ok(());
    }
    match directory.place(frame.destination) {
        Some(Place::Local(port)) => {
            mss::clamp(arrived.bytes, mtu, checksum.is_none());
            batch.push(cx, port, origin, arrived, outlet);
            Ok(())
        }
        Some(Place::Remote(_)) | None => Err(DropReason::NotLocal),
    }
}
