//! Numbered datagrams between two containers at a steady rate, each accounted for.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use overlayd::drop_reason::DropReason;
use overlayd::io::clock::boot_time;
use socket2::SockRef;

use super::swarm::{Agent, Attached, Family};

/// A stream that runs until it is stopped.
pub(crate) struct PacedStream<'s> {
    agents: Vec<&'s Agent>,
    from: &'s Attached,
    to: &'s Attached,
    before: Losses,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<(u64, u64)>,
}

/// What became of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PacedReport {
    pub(crate) sent: u64,
    /// Different ones that arrived.
    pub(crate) received: u64,
    /// That arrived once more.
    pub(crate) repeated: u64,
    /// For which a queue or a socket of the kernel had no room: the machine was too slow.
    pub(crate) overload: u64,
}

/// What counts losses: the agents, and the kernel in the two containers.
struct Losses {
    drops: BTreeMap<DropReason, u64>,
    kernel: u64,
}

impl<'s> PacedStream<'s> {
    /// Begins to send, counted in bits of payload; `agents` are those on the way.
    pub(crate) fn start(
        agents: &[&'s Agent],
        (from, to): (&'s Attached, &'s Attached),
        bits_per_second: u64,
    ) -> Self {
        let before = Losses::now(agents, from, to);
        let per_second = bits_per_second / 8 / LENGTH as u64;
        let bind = |end: &Attached| {
            let address = SocketAddr::new(end.address(Family::V4), 0);
            end.container.run_in(|| UdpSocket::bind(address).unwrap()).unwrap()
        };
        let (source, sink) = (bind(from), bind(to));
        source.connect(sink.local_addr().unwrap()).unwrap();
        SockRef::from(&sink).set_recv_buffer_size(BUFFER_BYTES).unwrap();
        sink.set_read_timeout(Some(QUIET)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || send(&source, per_second, &stopped));
        let receiver = std::thread::spawn(move || receive(&sink));
        Self { agents: agents.to_vec(), from, to, before, stop, sender, receiver }
    }

    /// Ends it, waits for what is under way, and asserts that nothing was lost but what the machine was
    /// too slow for: that is counted, to the last datagram.
    pub(crate) fn stop_without_loss(self) -> PacedReport {
        self.stop.store(true, Ordering::SeqCst);
        let sent = self.sender.join().unwrap();
        let (received, repeated) = self.receiver.join().unwrap();
        let Losses { mut drops, kernel } = Losses::now(&self.agents, self.from, self.to);
        drops.iter_mut().for_each(|(reason, n)| *n -= self.before.drops.get(reason).unwrap_or(&0));
        drops.retain(|_, n| *n > 0);
        let by_sockets = drops.remove(&DropReason::SocketOverflow).unwrap_or(0);
        let overload = kernel - self.before.kernel + by_sockets;
        let report = PacedReport { sent, received, repeated, overload };
        assert_eq!(drops, BTreeMap::new(), "{report:?}");
        assert!(sent > 0 && received + overload == sent && repeated == 0, "{report:?}");
        report
    }
}

impl Losses {
    fn now(agents: &[&Agent], from: &Attached, to: &Attached) -> Self {
        let mut drops = BTreeMap::new();
        for drop in agents.iter().flat_map(|agent| agent.stats().drops) {
            *drops.entry(drop.reason).or_default() += drop.packets;
        }
        Self { drops, kernel: from.tx_dropped() + to.overflown() as u64 }
    }
}

fn send(source: &UdpSocket, per_second: u64, stop: &AtomicBool) -> u64 {
    let (begin, mut sent) = (boot_time(), 0u64);
    let mut datagram = [0x5a; LENGTH];
    while !stop.load(Ordering::SeqCst) {
        let due = u64::try_from(boot_time().since(begin).as_micros()).unwrap() * per_second / 1_000_000;
        // A thread that was kept from running does not make up for it at once.
        let due = due.min(sent + BURST);
        while sent < due {
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            source.send(&datagram).unwrap();
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sent
}

/// Counts those that arrive until none has for a while.
fn receive(sink: &UdpSocket) -> (u64, u64) {
    let (mut seen, mut received, mut repeated) = (Vec::new(), 0, 0);
    let mut datagram = [0; LENGTH + 1];
    while let Ok(length) = sink.recv(&mut datagram) {
        assert_eq!(length, LENGTH);
        let number = usize::try_from(u64::from_be_bytes(*datagram.first_chunk().unwrap())).unwrap();
        if seen.len() <= number {
            seen.resize(number + 1, false);
        }
        let counter = if std::mem::replace(&mut seen[number], true) { &mut repeated } else { &mut received };
        *counter += 1;
    }
    (received, repeated)
}

/// Bytes of a datagram.
const LENGTH: usize = 1300;
const BURST: u64 = 64;
const BUFFER_BYTES: usize = 4 << 20;
/// Longer than a busy machine keeps a packet under way.
const QUIET: Duration = Duration::from_secs(3);
