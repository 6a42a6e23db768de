//! The turns of a lane: sleep, take commands, then TAP to wire and wire to TAP in batches.
//!
//! A turn reads a bounded number of frames from every TAP that has some, and one batch from either
//! socket (`reading`), so that none starves another; epoll is level-triggered and brings back what is left.
//! The order within a turn is: commands, then whatever epoll found ready, then what was sealed is sent.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::cache::Cache;

use super::busy_poll::{BusyPoll, Direction, Work};
use super::command::Command;
use super::contention::Contention;
use super::courtesy::Courtesy;
use super::event::{DataSocket, LaneEvent};
use super::inventory::Inventory;
use super::lane::{LaneConfig, Shared};
use super::moderation::Moderation;
use super::ports::Ports;
use super::precedence::{Carried, Streams};
use super::reading::{self, FRAMES_PER_TURN};
use super::vigil::Wakings;
use crate::boot_time::BootTime;
use crate::datapath::{Context, Delivery, Egress, Encapsulated, Ingress, Merging, Notice, Outlet, Run};
use crate::drop_reason::DropReason;
use crate::forward::Tables;
use crate::id::PortSlot;
use crate::io::epoll::{Epoll, ReadyList};
use crate::io::steer::LaneSockets;
use crate::io::udp::{RecvRing, SendOutcome, UdpSocket};
use crate::io::{clock, cpu};
use crate::sa::Sealed;
use crate::wire::vnet_hdr::VnetHeader;

/// A lane between two turns.
#[derive(Debug)]
pub(super) struct Turns {
    tables: Cache<Arc<ArcSwap<Tables>>, Arc<Tables>>,
    egress: Egress,
    ingress: Ingress,
    next_expiry: BootTime,
    wire: Wire,
    received: RecvRing,
    epoll: Epoll,
    busy_poll: BusyPoll,
    wakings: Wakings,
    streams: Streams,
    courtesy: Courtesy,
    contention: Contention,
    moderation: Moderation,
    /// What this turn took off the TAPs.
    taken: Work,
    shared: Arc<Shared>,
}

impl Turns {
    pub(super) fn new(config: LaneConfig, shared: Arc<Shared>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(shared.commands.wake(), COMMAND_TOKEN)?;
        for (receive, token) in receivers(&config.esp, config.vxlan.as_ref()) {
            epoll.add(receive, token)?;
        }
        Ok(Self {
            tables: Cache::new(config.tables),
            egress: Egress::new(config.flood).with_dscp(config.dscp).with_checksums(config.checksums),
            ingress: Ingress::new(),
            next_expiry: BootTime::NEVER,
            wire: Wire {
                esp: config.esp,
                vxlan: config.vxlan,
                ports: Ports::default(),
                now: clock::boot_time(),
                has_carried: false,
                carried: Carried::default(),
                overflow: [0; 2],
                shared: shared.clone(),
            },
            received: RecvRing::new(),
            epoll,
            busy_poll: BusyPoll::new(config.busy_poll),
            wakings: Wakings::new(config.vigil),
            streams: Streams::new(config.precedence),
            courtesy: Courtesy::new(),
            contention: Contention::new(),
            moderation: Moderation::new(),
            taken: Work::default(),
            shared,
        })
    }

    /// Runs until the lane is stopped.
    pub(super) fn run(mut self) {
        let _close = CloseAtEnd(self.shared.clone());
        let mut ready = ReadyList::with_capacity(READY_CAPACITY);
        let mut now = clock::boot_time();
        while !self.shared.commands.is_stopping() {
            let polls = self.busy_poll.is_patient(now);
            let timeout = if polls { Some(Duration::ZERO) } else { self.sleep_limit(now) };
            if let Err(error) = self.epoll.wait(&mut ready, timeout) {
                tracing::error!(%error, "a lane cannot wait for its sockets and ends");
                return;
            }
            now = clock::boot_time();
            if polls && ready.is_empty() {
                std::thread::yield_now();
                let from = std::mem::replace(&mut now, clock::boot_time());
                self.busy_poll.yielded(from, now);
                continue;
            }
            if !polls && !ready.is_empty() {
                self.busy_poll.woken(now);
            }
            let work = self.turn(&ready, now);
            let from = std::mem::replace(&mut now, clock::boot_time());
            let taken = std::mem::take(&mut self.taken);
            let direction = if taken.packets > 0 { Direction::Out } else { Direction::In };
            if std::mem::take(&mut self.wire.has_carried) {
                self.wakings.carried(work, direction, !polls, now);
            }
            self.streams.carried(std::mem::take(&mut self.wire.carried), now);
            // A turn that time began is nobody's word in a conversation.
            if !ready.is_empty() {
                self.busy_poll.served(from, now, work, direction);
            }
            let done = (taken, work.bytes - taken.bytes);
            let is_wanted = || self.contention.is_wanted(now, cpu::preemptions);
            if let Some(pause) = self.moderation.pause_after(done, now, is_wanted) {
                std::thread::sleep(pause);
                now = clock::boot_time();
            }
        }
    }

    /// How long the lane may sleep before an SA of it expires, or a port has waited long enough.
    fn sleep_limit(&self, now: BootTime) -> Option<Duration> {
        let next = self.wire.ports.wakes_at().map_or(self.next_expiry, |at| at.min(self.next_expiry));
        (next != BootTime::NEVER).then(|| next.since(now))
    }

    fn turn(&mut self, ready: &ReadyList, now: BootTime) -> Work {
        let mut work = Work::default();
        if ready.iter().any(|source| source.token == COMMAND_TOKEN) {
            self.take_commands();
        }
        if now >= self.next_expiry {
            self.next_expiry = self.ingress.expire(now);
        }
        self.wire.now = now;
        self.shared.counters.begin_turn(now);
        self.wire.ports.wake(&self.epoll, &self.shared.counters, now);
        while let Some(port) = self.wire.ports.next_lost() {
            self.wire.give_up_port(&self.epoll, port);
        }
        let expects_a_word = |direction| self.busy_poll.expects_a_word(now, direction);
        let messages = if expects_a_word(Direction::In) { 1 } else { RecvRing::CAPACITY };
        let frames = if expects_a_word(Direction::Out) { 1 } else { FRAMES_PER_TURN };
        let tables = self.tables.load();
        let cx = Context { tables, counters: &self.shared.counters, now };
        for source in ready.iter() {
            match source.token {
                COMMAND_TOKEN => {}
                socket @ (ESP_TOKEN | VXLAN_TOKEN) => {
                    let (ingress, ring, wire) = (&mut self.ingress, &mut self.received, &mut self.wire);
                    let received = reading::read_socket(&cx, ingress, ring, wire, (socket, messages));
                    work.add(received.packets, received.bytes);
                }
                port => {
                    let Some(port) = port_of(port) else { continue };
                    match reading::read_port(&cx, &mut self.egress, &mut self.wire, port, frames) {
                        ControlFlow::Break(()) => self.wire.give_up_port(&self.epoll, port),
                        ControlFlow::Continue(read) => {
                            let Work { packets, bytes } = read.taken;
                            work.add(packets, bytes);
                            self.taken.add(packets, bytes);
                            let turn = (read.is_flood(), bytes);
                            let contention = &mut self.contention;
                            let is_wanted = || contention.is_wanted(now, cpu::preemptions);
                            if let Some(rest) = self.courtesy.served(port, turn, now, is_wanted) {
                                self.wire.ports.rest(port, now + rest);
                            }
                        }
                    }
                    self.wire.ports.pause_spent(&self.epoll, port, now);
                }
            }
        }
        self.egress.flush(&mut self.wire);
        work
    }

    fn take_commands(&mut self) {
        // Cleared first: a command pushed from here on wakes the lane again.
        let _ = self.shared.commands.wake().clear();
        while let Some(envelope) = self.shared.commands.pop() {
            let (command, acknowledge) = envelope.open();
            self.carry_out(command);
            // Whoever asked may have stopped waiting.
            let _ = acknowledge.send(());
        }
    }

    pub(super) fn carry_out(&mut self, command: Command) {
        match command {
            Command::AddPort { slot, hold, tap, limits } => {
                let _replaced = self.wire.ports.close(&self.epoll, &self.shared.counters, slot);
                self.shared.counters.reset_port(slot);
                self.egress.add_port(slot);
                let token = FIRST_PORT_TOKEN + u64::from(slot.get());
                if let Err(error) = self.wire.ports.open(&self.epoll, (slot, hold), token, (tap, limits)) {
                    tracing::error!(%error, port = %slot, "a lane cannot wait for a TAP");
                    self.shared.events.push(LaneEvent::PortGone { slot, hold });
                }
            }
            Command::RemovePort(slot) => {
                let _asked_for = self.wire.ports.close(&self.epoll, &self.shared.counters, slot);
            }
            Command::InstallInbound { link, sa } => {
                self.next_expiry = self.next_expiry.min(sa.expires_at());
                self.ingress.install(link, sa);
            }
            Command::InstallOutbound { link, sa } => self.egress.install(link, sa),
            Command::RetireInbound { spi, at } => {
                self.ingress.retire(spi, at);
                self.next_expiry = self.next_expiry.min(at);
            }
            Command::DropLink(link) => {
                self.egress.remove(link);
                self.ingress.remove(link);
            }
            Command::RemoveLink(link) => {
                self.egress.remove(link);
                self.ingress.remove(link);
                self.shared.counters.reset_link(link);
            }
            Command::RemoveVtep(vtep) => self.shared.counters.reset_vtep(vtep),
            Command::Rebind { esp, vxlan } => {
                let replaced = [(ESP_TOKEN, esp.is_some()), (VXLAN_TOKEN, true)];
                replaced
                    .into_iter()
                    .filter(|(_, is)| *is)
                    .for_each(|(socket, _)| self.take_what_waits(socket));
                self.wire.rebind(&self.epoll, esp, vxlan);
            }
            Command::TakeInventory(answer) => {
                // Whoever asked may have stopped waiting.
                let _ = answer.send(self.inventory());
            }
            Command::CountOverflow => self.wire.count_overflow(),
            // A turn ends with an empty arena, and the next batch loads the tables anew.
            Command::Sync => {
                self.tables.load();
            }
        }
    }

    /// Takes what has arrived at a socket, as its end is near: it would go with it, uncounted.
    fn take_what_waits(&mut self, socket: u64) {
        self.wire.now = clock::boot_time();
        let Self { ingress, received: ring, wire, .. } = self;
        let cx = Context { tables: self.tables.load(), counters: &self.shared.counters, now: wire.now };
        let mut bytes = 0;
        while bytes < LAST_BYTES {
            let batch = reading::read_socket(&cx, ingress, ring, wire, (socket, RecvRing::CAPACITY));
            if batch.packets == 0 {
                return;
            }
            // Empty datagrams are something, too.
            bytes += batch.bytes + batch.packets;
        }
    }

    fn inventory(&mut self) -> Inventory {
        let now = clock::boot_time();
        let inbound = self.ingress.sas().filter(|(_, sa)| sa.expires_at() > now);
        Inventory {
            inbound: inbound.map(|(link, sa)| (link, sa.spi())).collect(),
            outbound: self.egress.sas().map(|(link, sa)| (link, sa.spi())).collect(),
            ports: self.wire.ports.slots().collect(),
            tables: Arc::clone(self.tables.load()),
        }
    }
}

/// Where the datapath's frames go: the sockets and the TAPs.
#[derive(Debug)]
pub(super) struct Wire {
    esp: LaneSockets,
    vxlan: Option<LaneSockets>,
    pub(super) ports: Ports,
    /// Of the turn.
    now: BootTime,
    /// Whether any frame has reached a container or left the node in this turn.
    has_carried: bool,
    /// What was read off TAPs and written to them in this turn.
    pub(super) carried: Carried,
    /// What the two sockets had dropped when that was last counted.
    overflow: [u32; 2],
    shared: Arc<Shared>,
}

impl Wire {
    /// The socket with this token, where there is one.
    pub(super) fn receiver(&self, token: u64) -> Option<&UdpSocket> {
        receivers(&self.esp, self.vxlan.as_ref()).find(|(_, of)| *of == token).map(|(socket, _)| socket)
    }

    fn count_overflow(&mut self) {
        for (sockets, counted) in [Some(&self.esp), self.vxlan.as_ref()].into_iter().zip(&mut self.overflow) {
            let receive = sockets.and_then(|sockets| sockets.receive.as_ref());
            let Some(dropped) = receive.and_then(|socket| socket.dropped().ok()) else { continue };
            let more = dropped.wrapping_sub(std::mem::replace(counted, dropped));
            self.shared.counters.drop_unplaced(DropReason::SocketOverflow, more.into());
        }
    }

    /// A turn ends with an empty arena, so nothing waits to leave by the sockets before.
    fn rebind(&mut self, epoll: &Epoll, esp: Option<LaneSockets>, vxlan: Option<LaneSockets>) {
        self.count_overflow();
        // Of those that go, closing them would do: nobody else has them.
        receivers(&self.esp, self.vxlan.as_ref()).for_each(|(receive, _)| drop(epoll.remove(receive)));
        let (esp, counted) = esp.map_or((self.esp.clone(), self.overflow[0]), |esp| (esp, 0));
        (self.esp, self.vxlan, self.overflow) = (esp, vxlan, [counted, 0]);
        for (receive, token) in receivers(&self.esp, self.vxlan.as_ref()) {
            if let Err(error) = epoll.add(receive, token) {
                tracing::error!(%error, "a lane receives nothing by its new socket");
            }
        }
    }

    fn give_up_port(&mut self, epoll: &Epoll, port: PortSlot) {
        if let Some(hold) = self.ports.close(epoll, &self.shared.counters, port) {
            self.shared.events.push(LaneEvent::PortGone { slot: port, hold });
        }
    }
}

impl Outlet for Wire {
    fn send_esp(&mut self, run: &Run<'_, Sealed>) {
        let sent = self.esp.send.send_run_as(run.to(), run.class(), run.bytes(), run.segment());
        let lost = self.shared.account(DataSocket::Esp, sent, run.packets());
        self.has_carried |= lost < run.packets() as u64;
        if lost > 0 {
            self.shared.counters.note_drops_at_link(run.peer(), DropReason::SendFailed, lost);
        }
    }

    fn send_vxlan(&mut self, run: &Run<'_, Encapsulated>) {
        let sent = self.vxlan.as_ref().map_or(Err(io::ErrorKind::NotConnected.into()), |vxlan| {
            vxlan.send.send_run_as(run.to(), run.class(), run.bytes(), run.segment())
        });
        let lost = self.shared.account(DataSocket::Vxlan, sent, run.packets());
        self.has_carried |= lost < run.packets() as u64;
        if lost > 0 {
            self.shared.counters.note_drops_at_vtep(run.peer(), DropReason::SendFailed, lost);
        }
    }

    fn deliver(&mut self, port: PortSlot, header: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        self.carried.add_pieces(header, pieces);
        let delivery = self.ports.deliver(port, header, pieces, self.now);
        self.has_carried |= delivery == Delivery::Taken;
        delivery
    }

    fn merging(&self, port: PortSlot) -> Merging {
        self.ports.merging(port)
    }

    fn notice(&mut self, notice: Notice) {
        self.shared.events.push(notice.into());
    }
}

impl Shared {
    /// Counts what was lost of a run; how much that was.
    fn account(&self, socket: DataSocket, sent: io::Result<SendOutcome>, packets: usize) -> u64 {
        let sent = sent.ok();
        let lost = (packets - sent.map_or(0, |outcome| outcome.datagrams.min(packets))) as u64;
        if lost > 0 {
            self.counters.drop_unplaced(DropReason::SendFailed, lost);
        }
        if sent.is_some_and(|outcome| outcome.gave_up_segmentation) {
            self.events.push(LaneEvent::SegmentationGivenUp { socket });
        }
        lost
    }
}

/// Closes the rings however the thread ends.
struct CloseAtEnd(Arc<Shared>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The sockets to be waited for, with their tokens.
fn receivers<'s>(
    esp: &'s LaneSockets,
    vxlan: Option<&'s LaneSockets>,
) -> impl Iterator<Item = (&'s UdpSocket, u64)> {
    let sockets = [(Some(esp), ESP_TOKEN), (vxlan, VXLAN_TOKEN)].into_iter();
    sockets.filter_map(|(sockets, token)| Some((&**sockets?.receive.as_ref()?, token)))
}

fn port_of(token: u64) -> Option<PortSlot> {
    u32::try_from(token.checked_sub(FIRST_PORT_TOKEN)?).ok().map(PortSlot::new)
}

const COMMAND_TOKEN: u64 = 0;
pub(super) const ESP_TOKEN: u64 = 1;
const VXLAN_TOKEN: u64 = 2;
const FIRST_PORT_TOKEN: u64 = 16;
const READY_CAPACITY: usize = 256;
/// Of a socket that is about to be closed: about what its buffer holds, which takes milliseconds.
const LAST_BYTES: usize = 8 << 20;
