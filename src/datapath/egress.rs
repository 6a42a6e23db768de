//! From a container outward: judge, answer, deliver next door, or seal for a peer.
//!
//! One frame is read into [`Egress::reserve`]'s place and handed in by [`Egress::submit`]; it is
//! sealed where it lies. [`Egress::flush`] sends what has gathered. Owned and called by one lane.

use super::arena::{Encapsulated, SendArena};
use super::flood::{FloodLimit, TokenBucket};
use super::reply::{self, EMPTY_REPLY};
use super::tunnel::{self, EspTunnel, LinkState, Sent, Tunnel, VxlanTunnel};
use super::{Context, MAX_FRAME_LEN, Outlet};
use crate::drop_reason::DropReason;
use crate::forward::policy::{self, Outward};
use crate::forward::{Carrier, Directory, NetworkTable, Place, PortRow, Remote, Row, Tables};
use crate::id::{LinkSlot, PortSlot};
use crate::sa::{OutboundSa, Sealed};
use crate::wire::ethernet;
use crate::wire::frame::Frame;

/// A lane's way out: its outbound SAs, its buffers and its rate limits.
#[derive(Debug)]
pub struct Egress {
    esp: SendArena<Sealed>,
    vxlan: SendArena<Encapsulated>,
    links: Vec<LinkState>,
    flood: Flood,
}

impl Egress {
    /// A way out without keys.
    pub fn new(flood_limit: FloodLimit) -> Self {
        Self {
            esp: SendArena::new(),
            vxlan: SendArena::new(),
            links: Vec::new(),
            flood: Flood { limit: flood_limit, buckets: Vec::new(), copy: vec![0; MAX_FRAME_LEN].into() },
        }
    }

    /// Sends with `sa` to the link from now on.
    pub fn install(&mut self, link: LinkSlot, sa: Box<OutboundSa>) {
        tunnel::link_state(&mut self.links, link).outbound = Some(sa);
    }

    /// Sends nothing to the link from now on.
    pub fn remove(&mut self, link: LinkSlot) {
        tunnel::link_state(&mut self.links, link).outbound = None;
    }

    /// The outbound SA of a link.
    pub fn outbound(&self, link: LinkSlot) -> Option<&OutboundSa> {
        self.links.get(link.index())?.outbound.as_deref()
    }

    /// Makes ready for a port that is new in its slot.
    pub fn add_port(&mut self, port: PortSlot) {
        *self.flood.bucket(port) = TokenBucket::default();
    }

    /// The place to read the port's next frame into.
    pub fn reserve(&mut self, tables: &Tables, port: PortSlot, outlet: &mut impl Outlet) -> &mut [u8] {
        match find(tables, port).map(|(_, network)| network.carrier()) {
            // What an unknown port sends is read all the same, to be counted and dropped.
            Some(Carrier::Esp(_)) | None => tunnel::next_esp_frame(&mut self.esp, outlet),
            Some(Carrier::Vxlan(_)) => tunnel::next_vxlan_frame(&mut self.vxlan, outlet),
        }
    }

    /// Takes the frame that was read into the place reserved for `port`, by the same tables.
    ///
    /// # Panics
    /// When `frame_len` is longer than the place, or nothing was reserved.
    pub fn submit(&mut self, cx: &Context<'_>, port: PortSlot, frame_len: usize, outlet: &mut impl Outlet) {
        cx.counters.sent_by_port(port, frame_len);
        let sent = match find(cx.tables, port) {
            None => Err(DropReason::NoSuchPort),
            Some((row, network)) => match network.carrier() {
                Carrier::Esp(directory) => {
                    let (arena, links) = (&mut self.esp, &mut self.links);
                    let tunnel = EspTunnel { cx: *cx, arena, links, net: row.net(), vni: network.vni() };
                    let sender = Sender::new(port, row, network, directory);
                    sender.and_then(|sender| sender.forward(cx, tunnel, &mut self.flood, frame_len, outlet))
                }
                Carrier::Vxlan(carrier) => {
                    let arena = &mut self.vxlan;
                    let tunnel = VxlanTunnel { arena, carrier, vni: network.vni() };
                    let sender = Sender::new(port, row, network, carrier.directory());
                    sender.and_then(|sender| sender.forward(cx, tunnel, &mut self.flood, frame_len, outlet))
                }
            },
        };
        if let Err(reason) = sent {
            cx.counters.drop_at_port(port, reason);
        }
    }

    /// Sends everything that has gathered.
    pub fn flush(&mut self, outlet: &mut impl Outlet) {
        tunnel::flush_esp(&mut self.esp, outlet);
        tunnel::flush_vxlan(&mut self.vxlan, outlet);
    }
}

/// The endpoint that sent a frame.
struct Sender<'a, R> {
    port: PortSlot,
    row: &'a Row<R>,
    directory: &'a Directory<R>,
    max_len: usize,
}

impl<'a, R: Remote> Sender<'a, R> {
    fn new(
        port: PortSlot,
        row: PortRow,
        network: &NetworkTable,
        directory: &'a Directory<R>,
    ) -> Result<Self, DropReason> {
        let row = row.endpoint(directory).ok_or(DropReason::NoSuchPort)?;
        Ok(Self { port, row, directory, max_len: ethernet::HEADER_LEN + usize::from(network.mtu()) })
    }

    fn forward(
        &self,
        cx: &Context<'_>,
        mut tunnel: impl Tunnel<R>,
        flood: &mut Flood,
        frame_len: usize,
        outlet: &mut impl Outlet,
    ) -> Sent {
        let bytes = tunnel.frame(frame_len);
        let frame = Frame::parse(bytes).map_err(|_| DropReason::MalformedFrame)?;
        let verdict = policy::outward(self.directory, self.row, &frame)?;
        if frame_len > self.max_len {
            return Err(DropReason::FrameTooBig);
        }
        match verdict {
            Outward::Absorb => Ok(()),
            Outward::Ask(question) => {
                let mut reply = EMPTY_REPLY;
                if let Some(len) = reply::answer(self.directory, frame.source, question, &mut reply)? {
                    deliver(cx, self.port, &reply[..len], outlet);
                }
                Ok(())
            }
            Outward::Forward if frame.destination.is_multicast() => {
                self.flood(cx, &mut tunnel, flood, frame_len, frame.flow_hash(), outlet)
            }
            Outward::Forward => {
                let to = self.directory.by_mac(frame.destination).ok_or(DropReason::UnknownDestination)?;
                match to.place() {
                    Place::Local(port) if port == self.port => Err(DropReason::UnknownDestination),
                    Place::Local(port) => {
                        deliver(cx, port, bytes, outlet);
                        Ok(())
                    }
                    Place::Remote(remote) => {
                        let sent = tunnel.send(remote, frame_len, frame.flow_hash(), outlet);
                        sent.inspect_err(|reason| tunnel.note_drop(remote, *reason))
                    }
                }
            }
        }
    }

    /// To every other port of the network here, and once to every node that has one (head-end
    /// replication).
    fn flood(
        &self,
        cx: &Context<'_>,
        tunnel: &mut impl Tunnel<R>,
        flood: &mut Flood,
        frame_len: usize,
        flow_hash: u64,
        outlet: &mut impl Outlet,
    ) -> Sent {
        let limit = flood.limit;
        if !flood.bucket(self.port).take(limit, cx.now) {
            return Err(DropReason::FloodRateLimited);
        }
        let bytes = tunnel.frame(frame_len);
        for port in self.directory.local_ports().iter().filter(|port| **port != self.port) {
            deliver(cx, *port, bytes, outlet);
        }
        let copy = &mut flood.copy[..frame_len];
        copy.copy_from_slice(bytes);
        for remote in self.directory.remotes() {
            if let Err(reason) = tunnel.send_copy(*remote, copy, flow_hash, outlet) {
                tunnel.note_drop(*remote, reason);
                cx.counters.drop_at_port(self.port, reason);
            }
        }
        Ok(())
    }
}

/// What flooding needs: sealing in place destroys the frame, so it is kept aside for the next peer.
#[derive(Debug)]
struct Flood {
    limit: FloodLimit,
    buckets: Vec<TokenBucket>,
    copy: Box<[u8]>,
}

impl Flood {
    fn bucket(&mut self, port: PortSlot) -> &mut TokenBucket {
        if self.buckets.len() <= port.index() {
            self.buckets.resize_with(port.index() + 1, TokenBucket::default);
        }
        &mut self.buckets[port.index()]
    }
}

/// Hands a frame to a container and counts it there.
pub(super) fn deliver(cx: &Context<'_>, port: PortSlot, frame: &[u8], outlet: &mut impl Outlet) {
    if outlet.deliver(port, frame) {
        cx.counters.received_by_port(port, frame.len());
    } else {
        cx.counters.drop_at_port(port, DropReason::TapFull);
    }
}

fn find(tables: &Tables, port: PortSlot) -> Option<(PortRow, &NetworkTable)> {
    let row = tables.port(port)?;
    Some((row, tables.network(row.net())?))
}
