//! Datagrams from the wire: raw, authentic but malformed, replayed with bits changed, and plain.
//!
//! Whatever reaches a container is from an endpoint that is placed on the link or VTEP that brought
//! it, and for that container; everything else is counted as exactly one drop, and nothing goes back
//! to the wire.
//!
//! The low three bits of a record's first octet say what is done with it ([`run`]), bits 4 and 5 name
//! the link or VTEP, the upper two are the ECN of the outer header.

use overlayd::datapath::{
    Coalescer, Context, Delivery, Encapsulated, Ingress, LaneCounters, Merging, Notice, Outlet, Run,
};
use overlayd::forward::Tables;
use overlayd::id::{LinkSlot, PortSlot, Vni, VtepSlot};
use overlayd::sa::{HEADER_LEN, MAX_TRAILER_LEN, OutboundSa, Sealed};
use overlayd::wire::traffic_class::TrafficClass;
use overlayd::wire::vnet_hdr::VnetHeader;
use overlayd::wire::{udp, vxlan};

use super::overlay::{
    At, ENCRYPTED_VNI, LINKS, NOW, PLAIN_VNI, at_port, esp_address, is_for, records, sa_pair, source_of,
    tables, vtep_address,
};

/// Panics where a promise of the way inward is broken.
pub fn run(data: &[u8]) {
    let mut node = Node::new();
    for (what, bytes) in records(data) {
        let link = LINKS[usize::from(what >> 4 & 1)];
        let vtep = VtepSlot::new(u32::from(what >> 4 & 3));
        node.class = TrafficClass::new(what >> 6);
        match what & 7 {
            0 => node.receive_esp(None, bytes),
            1 => node.receive_vxlan(Some(At::Vtep(vtep)), vtep, bytes),
            2 => node.receive_sealed(link, bytes),
            3 => node.receive_sealed(link, &inner_datagram(ENCRYPTED_VNI, bytes)),
            4 => node.receive_vxlan(Some(At::Vtep(vtep)), vtep, &in_vxlan(PLAIN_VNI, bytes)),
            5 => node.receive_vxlan(None, vtep, &in_vxlan(ENCRYPTED_VNI, bytes)),
            6 => node.receive_changed(bytes),
            _ => node.receive_sealed(link, &inner_datagram(PLAIN_VNI, bytes)),
        }
    }
}

/// The node that receives, and its peers as far as they seal.
struct Node {
    tables: Tables,
    ingress: Ingress,
    counters: LaneCounters,
    peers: [OutboundSa; 2],
    /// The last authentic packet.
    sealed: Vec<u8>,
    /// Of the outer headers of what comes.
    class: TrafficClass,
}

impl Node {
    fn new() -> Self {
        let mut ingress = Ingress::new();
        let peers = LINKS.map(|link| {
            let (outbound, inbound) = sa_pair(link);
            ingress.install(link, Box::new(inbound));
            outbound
        });
        let (counters, class) = (LaneCounters::new(), TrafficClass::ZERO);
        Self { tables: tables(), ingress, counters, peers, sealed: Vec::new(), class }
    }

    fn receive_sealed(&mut self, link: LinkSlot, datagram: &[u8]) {
        let mut packet = vec![0; HEADER_LEN];
        packet.extend_from_slice(datagram);
        packet.resize(packet.len() + MAX_TRAILER_LEN, 0);
        let sealed = self.peers[link.index()].seal(NOW, &mut packet, datagram.len());
        packet.truncate(sealed.expect("there is room, and no limit is near").len());
        self.sealed.clone_from(&packet);
        self.receive_esp(Some(At::Link(link)), &packet);
    }

    /// The last authentic packet again with bits changed, or with none changed.
    fn receive_changed(&mut self, bits: &[u8]) {
        let changed = self.sealed.iter().zip(bits.iter().chain(std::iter::repeat(&0))).map(|(a, b)| a ^ b);
        let packet: Vec<u8> = changed.collect();
        self.receive_esp(None, &packet);
    }

    fn receive_esp(&mut self, from: Option<At>, datagram: &[u8]) {
        let outlet = &mut Judge { from, delivered: 0 };
        let before = self.drops();
        let cx = Context { tables: &self.tables, counters: &self.counters, now: NOW };
        let (mut datagram, mut batch) = (datagram.to_vec(), Coalescer::new());
        let from = esp_address(LINKS[0]);
        self.ingress.receive_esp(&cx, from, self.class, &mut datagram, &mut batch, outlet);
        batch.flush(&cx, outlet);
        self.assert_accounted(before, outlet.delivered);
    }

    fn receive_vxlan(&mut self, from: Option<At>, vtep: VtepSlot, datagram: &[u8]) {
        let outlet = &mut Judge { from, delivered: 0 };
        let before = self.drops();
        let cx = Context { tables: &self.tables, counters: &self.counters, now: NOW };
        let (mut datagram, mut batch) = (datagram.to_vec(), Coalescer::new());
        let from_vtep = vtep_address(vtep);
        self.ingress.receive_vxlan(&cx, from_vtep, self.class, &mut datagram, &mut batch, outlet);
        batch.flush(&cx, outlet);
        self.assert_accounted(before, outlet.delivered);
    }

    fn drops(&self) -> u64 {
        self.counters.drops().iter().sum()
    }

    fn assert_accounted(&self, drops_before: u64, delivered: u64) {
        let dropped = self.drops() - drops_before;
        assert_eq!(dropped, u64::from(delivered == 0), "{delivered} delivered, {dropped} drops counted");
    }
}

/// Judges what one datagram leads to.
struct Judge {
    /// Who may have sent it; nobody, if it must not be delivered.
    from: Option<At>,
    delivered: u64,
}

impl Outlet for Judge {
    fn send_esp(&mut self, _: &Run<'_, Sealed>) {
        panic!("what came from the wire goes back to it");
    }

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {
        panic!("what came from the wire goes back to it");
    }

    fn deliver(&mut self, port: PortSlot, _: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        let frame = &pieces.concat();
        let source = source_of(frame);
        let receiver = at_port(port).expect("the port of an endpoint");
        assert_eq!(Some(source.at), self.from, "the source is placed elsewhere");
        assert_eq!(source.is_encrypted, receiver.is_encrypted, "from one network into another");
        assert!(is_for(frame, receiver), "for another endpoint");
        source.assert_speaks(frame);
        self.delivered += 1;
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging { tcp: true, udp: true }
    }

    fn notice(&mut self, _: Notice) {}
}

fn in_vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; vxlan::HEADER_LEN];
    vxlan::write_header(&mut bytes, Vni::new(vni).expect("in range"), None);
    bytes.extend_from_slice(frame);
    bytes
}

/// What a peer seals around a frame; too long a one is cut.
fn inner_datagram(vni: u32, frame: &[u8]) -> Vec<u8> {
    let room = usize::from(u16::MAX) - udp::HEADER_LEN - vxlan::HEADER_LEN;
    let payload = in_vxlan(vni, &frame[..frame.len().min(room)]);
    let mut bytes = vec![0; udp::HEADER_LEN];
    udp::write_header(&mut bytes, 50_000, vxlan::PORT, payload.len());
    bytes.extend_from_slice(&payload);
    bytes
}
