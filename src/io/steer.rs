//! The UDP sockets of several lanes at one address: a group of `SO_REUSEPORT`, in which the kernel
//! gives every datagram to one.
//!
//! For ESP a classic BPF program names the socket by the low bits of the SPI, so that an SA, its
//! window and its packets meet in one lane. A datagram without SPI goes to the first lane, one
//! whose SPI names no lane to any: a lane counts them all. Where the kernel refuses the program,
//! the first lane alone receives. Plain VXLAN has nothing to steer by and needs nothing: by its
//! hash over addresses and ports the kernel keeps every flow in one lane.
//!
//! Only sockets of one user can be in a group (`udp_lib_lport_inuse2` in `net/ipv4/udp.c`). The
//! first is bound without the option, so that a port which anybody has, be it another agent, is
//! refused as it always was.
//!
//! The lanes send ESP from ports of their own. Datagrams of equal addresses and ports may be merged
//! by the receiver's `UDP_GRO` before its program sees the first of them; packets of two lanes,
//! which go to two lanes there, must not be. All that a lane sends to a node goes to one lane there.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use socket2::SockRef;

use super::socket_option::attach_reuseport_program;
use super::udp::{OffloadWatch, Offloads, UdpError, UdpOptions, UdpSocket};
use crate::id::{LaneCount, LaneId};

/// What one lane sends by and receives from.
#[derive(Debug, Clone)]
pub struct LaneSockets {
    /// To send by; another lane may do so too.
    pub send: Arc<UdpSocket>,
    /// To receive from; nobody else does. Absent where other lanes receive everything.
    pub receive: Option<Arc<UdpSocket>>,
}

impl LaneSockets {
    /// What the kernel does for them, now and later.
    pub fn offload_watch(&self) -> OffloadWatch {
        let receive = self.receive.as_ref().unwrap_or(&self.send);
        OffloadWatch::of(&self.send, receive)
    }
}

impl From<UdpSocket> for LaneSockets {
    fn from(both: UdpSocket) -> Self {
        Arc::new(both).into()
    }
}

impl From<Arc<UdpSocket>> for LaneSockets {
    fn from(both: Arc<UdpSocket>) -> Self {
        Self { send: Arc::clone(&both), receive: Some(both) }
    }
}

/// The sockets of all lanes.
#[derive(Debug)]
pub struct Group {
    /// By lane.
    pub lanes: Vec<LaneSockets>,
    /// Why the first lane alone receives, if it does though there are more.
    pub refusal: Option<io::Error>,
}

impl Group {
    /// Binds for ESP: the kernel hands every lane the packets whose SPI names it.
    ///
    /// # Errors
    /// As [`UdpSocket::bind`]; what concerns the steering alone is [`Self::refusal`].
    pub fn bind_esp(local: SocketAddr, lanes: LaneCount, options: &UdpOptions) -> Result<Self, UdpError> {
        Self::bind_steered(local, lanes, options, &by_spi(lanes))
    }

    /// Binds for plain VXLAN: the kernel spreads flows over the lanes.
    ///
    /// # Errors
    /// As [`Self::bind_esp`].
    pub fn bind_vxlan(local: SocketAddr, lanes: LaneCount, options: &UdpOptions) -> Result<Self, UdpError> {
        let first = Arc::new(UdpSocket::bind(local, options)?);
        match join(&first, lanes, options) {
            Ok(others) => {
                let lanes = iter::once(first).chain(others.into_iter().map(Arc::new));
                Ok(Self { lanes: lanes.map(LaneSockets::from).collect(), refusal: None })
            }
            Err(error) => {
                Ok(Self::alone(&first, iter::repeat_n(Arc::clone(&first), others_of(lanes)), error))
            }
        }
    }

    fn bind_steered(
        local: SocketAddr,
        lanes: LaneCount,
        options: &UdpOptions,
        program: &[libc::sock_filter],
    ) -> Result<Self, UdpError> {
        let first = Arc::new(UdpSocket::bind(local, options)?);
        let senders = (0..others_of(lanes)).map(|_| sender(&first, options).map(Arc::new));
        let senders = senders.collect::<Result<Vec<_>, _>>()?;
        let joined = join(&first, lanes, options).and_then(|others| {
            if !others.is_empty() {
                attach_reuseport_program(first.as_fd().as_raw_fd(), program)?;
            }
            Ok(others)
        });
        match joined {
            Ok(others) => {
                let others = others.into_iter().zip(senders);
                let others =
                    others.map(|(receive, send)| LaneSockets { send, receive: Some(Arc::new(receive)) });
                Ok(Self { lanes: iter::once(first.into()).chain(others).collect(), refusal: None })
            }
            Err(error) => Ok(Self::alone(&first, senders, error)),
        }
    }

    /// What the kernel does for the sockets, which is the same for each when they are opened.
    pub fn offloads(&self) -> Offloads {
        let first = self.lanes.first().map(|lane| lane.offload_watch().now());
        first.unwrap_or(Offloads { segmentation: false, coalescing: false })
    }

    /// How many lanes receive.
    pub fn receiving(&self) -> LaneCount {
        let count = self.lanes.iter().filter(|lane| lane.receive.is_some()).count();
        LaneCount::clamped(count)
    }

    /// The first receives everything; the others only send.
    fn alone(
        first: &Arc<UdpSocket>,
        senders: impl IntoIterator<Item = Arc<UdpSocket>>,
        refusal: io::Error,
    ) -> Self {
        // Nobody is to join it later; where the option was refused there is nothing to take back.
        let _ = SockRef::from(&**first).set_reuse_port(false);
        let others = senders.into_iter().map(|send| LaneSockets { send, receive: None });
        let lanes = iter::once(Arc::clone(first).into()).chain(others).collect();
        Self { lanes, refusal: Some(refusal) }
    }
}

/// Makes the group around a bound socket, whose index in it is 0; the sockets of the other lanes in
/// the order of their indexes. There is no group of one.
fn join(first: &UdpSocket, lanes: LaneCount, options: &UdpOptions) -> io::Result<Vec<UdpSocket>> {
    if lanes == LaneCount::ONE {
        return Ok(Vec::new());
    }
    // A socket joins the group of one that has the option by then (udp_reuseport_add_sock).
    SockRef::from(first).set_reuse_port(true)?;
    let (local, options) = (first.local_addr()?, UdpOptions { reuse_port: true, ..options.clone() });
    (0..others_of(lanes)).map(|_| first.bind_beside(local, &options).map_err(io::Error::other)).collect()
}

/// A socket to send from another port of the same address.
fn sender(first: &UdpSocket, options: &UdpOptions) -> Result<UdpSocket, UdpError> {
    let refused = |option| move |source| UdpError::Option { option, source };
    let local = first.local_addr().map_err(refused("getsockname"))?;
    let sender = first.bind_beside(SocketAddr::new(local.ip(), 0), options)?;
    // Nobody reads it, so what strangers send to it should not take room.
    SockRef::from(&sender).set_recv_buffer_size(0).map_err(refused("SO_RCVBUF"))?;
    Ok(sender)
}

fn others_of(lanes: LaneCount) -> usize {
    usize::from(lanes.get()) - 1
}

/// Classic BPF that gives the index of the socket for the payload of a datagram (the program is run
/// behind the UDP header: `run_bpf_filter` in `net/core/sock_reuseport.c`).
fn by_spi(lanes: LaneCount) -> [libc::sock_filter; 4] {
    let instruction = |code: u32, k| {
        let code = u16::try_from(code).expect("all codes are below 256");
        libc::sock_filter { code, jt: 0, jf: 0, k }
    };
    [
        // The first word, in host order; a shorter payload ends the program with 0.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, u32::from(LaneId::MAX_LANES) - 1),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, lanes.get().into()),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Spi;
    use crate::io::udp::RecvRing;
    use std::time::Duration;

    const FOUR: LaneCount = LaneCount::new(4).expect("in range");

    #[test]
    fn datagrams_arrive_at_the_lane_that_their_spi_names() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let group = Group::bind_esp(local.parse().unwrap(), FOUR, &UdpOptions::default()).unwrap();
            assert!(group.refusal.is_none(), "{:?}", group.refusal);
            assert_eq!(group.receiving(), FOUR);
            let thrower = UdpSocket::bind(local.parse().unwrap(), &UdpOptions::default()).unwrap();
            for round in 1..=8 {
                for lane in FOUR.ids() {
                    let spi = Spi::for_lane(round << 20, lane).unwrap();
                    throw(&thrower, &group, &[&spi.get().to_be_bytes()[..], &[7; 20]].concat());
                    assert_eq!(arrived_at(&group), [(lane.index(), 1)], "{spi} by {local}");
                }
            }
        }
    }

    #[test]
    fn run_of_one_lane_arrives_whole_at_one_lane() {
        let group = Group::bind_esp("127.0.0.1:0".parse().unwrap(), FOUR, &UdpOptions::default()).unwrap();
        let thrower = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        let packet = [&0x0012_3403u32.to_be_bytes()[..], &[7; 96]].concat();
        let to = group.lanes[0].send.local_addr().unwrap();
        assert_eq!(thrower.send_run(to, &packet.repeat(40), 100).unwrap().datagrams, 40);
        assert_eq!(arrived_at(&group), [(3, 40)]);
    }

    #[test]
    fn segmentation_that_is_refused_one_lane_is_given_up_by_all_and_told_once() {
        let options = UdpOptions { checksum: false, ..UdpOptions::default() };
        let group = Group::bind_esp("127.0.0.1:0".parse().unwrap(), FOUR, &options).unwrap();
        let to = group.lanes[0].send.local_addr().unwrap();
        let told: Vec<_> = [2, 0, 1, 3, 2]
            .map(|lane| {
                let outcome = group.lanes[lane].send.send_run(to, &[7; 200], 100).unwrap();
                assert_eq!(outcome.datagrams, 2);
                outcome.gave_up_segmentation
            })
            .into();
        assert_eq!(told, [true, false, false, false, false]);
        assert!(group.lanes.iter().all(|lane| !lane.offload_watch().now().segmentation));
    }

    #[test]
    fn what_names_no_lane_arrives_at_one_all_the_same() {
        let group = Group::bind_esp("127.0.0.1:0".parse().unwrap(), FOUR, &UdpOptions::default()).unwrap();
        let thrower = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
        for (datagram, lane) in [
            // A NAT keepalive, and shorter than an SPI.
            (&[0xff][..], 0),
            (&[1, 2, 3], 0),
            // The non-ESP marker.
            (&[0; 9], 0),
            // Lanes 4, 6 and 63 of four.
            (&[1, 0, 0, 4], 0),
            (&[1, 0, 0, 6], 2),
            (&[1, 0, 0, 63], 3),
        ] {
            throw(&thrower, &group, datagram);
            assert_eq!(arrived_at(&group), [(lane, 1)], "{datagram:?}");
        }
    }

    #[test]
    fn lanes_send_esp_from_ports_of_their_own_and_vxlan_from_one() {
        let any = "127.0.0.1:0".parse().unwrap();
        let ports = |group: &Group| {
            let ports = group.lanes.iter().map(|lane| lane.send.local_addr().unwrap().port());
            ports.collect::<std::collections::BTreeSet<_>>()
        };
        let esp = Group::bind_esp(any, FOUR, &UdpOptions::default()).unwrap();
        assert_eq!(ports(&esp).len(), 4);
        let vxlan = Group::bind_vxlan(any, FOUR, &UdpOptions::default()).unwrap();
        assert_eq!(ports(&vxlan).len(), 1);
        assert_eq!(vxlan.receiving(), FOUR);
    }

    #[test]
    fn flows_of_plain_vxlan_are_spread_and_each_stays_in_one_lane() {
        let any = "127.0.0.1:0".parse().unwrap();
        let group = Group::bind_vxlan(any, FOUR, &UdpOptions::default()).unwrap();
        let mut lanes = std::collections::BTreeSet::new();
        for _ in 0..64 {
            let flow = UdpSocket::bind(any, &UdpOptions::default()).unwrap();
            (0..5).for_each(|_| throw(&flow, &group, &[8; 30]));
            let arrived = arrived_at(&group);
            assert!(matches!(arrived[..], [(_, 5)]), "{arrived:?}");
            lanes.insert(arrived[0].0);
        }
        assert_eq!(lanes.len(), 4, "{lanes:?}");
    }

    #[test]
    fn where_the_program_is_refused_the_first_lane_receives_everything() {
        let any = "127.0.0.1:0".parse().unwrap();
        // A program has to end with a return (bpf_check_classic in net/core/filter.c).
        let endless = &by_spi(FOUR)[..3];
        let group = Group::bind_steered(any, FOUR, &UdpOptions::default(), endless).unwrap();
        assert_eq!(group.refusal.as_ref().and_then(io::Error::raw_os_error), Some(libc::EINVAL));
        assert_eq!((group.receiving(), group.lanes.len()), (LaneCount::ONE, 4));
        let thrower = UdpSocket::bind(any, &UdpOptions::default()).unwrap();
        for spi in 0x100..0x140u32 {
            throw(&thrower, &group, &spi.to_be_bytes());
            assert_eq!(arrived_at(&group), [(0, 1)]);
        }
        let joining = UdpOptions { reuse_port: true, ..UdpOptions::default() };
        let to = group.lanes[0].send.local_addr().unwrap();
        assert!(UdpSocket::bind(to, &joining).is_err(), "a later socket could join");
    }

    #[test]
    fn port_that_somebody_has_is_refused_be_it_another_group() {
        let any = "127.0.0.1:0".parse().unwrap();
        for lanes in [LaneCount::ONE, FOUR] {
            let group = Group::bind_esp(any, lanes, &UdpOptions::default()).unwrap();
            let local = group.lanes[0].send.local_addr().unwrap();
            for bind in [Group::bind_esp, Group::bind_vxlan] {
                let taken = bind(local, FOUR, &UdpOptions::default()).unwrap_err();
                assert!(taken.to_string().contains("another process"), "{taken}");
            }
        }
    }

    fn throw(thrower: &UdpSocket, group: &Group, datagram: &[u8]) {
        let to = group.lanes[0].receive.as_ref().unwrap().local_addr().unwrap();
        let length = u16::try_from(datagram.len()).unwrap();
        assert_eq!(thrower.send_run(to, datagram, length).unwrap().datagrams, 1);
    }

    /// Which lanes have how many datagrams to read. Loopback delivers before sending returns, but
    /// for a moment when a softirq is busy.
    fn arrived_at(group: &Group) -> Vec<(usize, usize)> {
        let mut ring = RecvRing::new();
        for _ in 0..500 {
            let mut arrived = Vec::new();
            for (index, lane) in group.lanes.iter().enumerate() {
                let Some(socket) = &lane.receive else { continue };
                let mut count = 0;
                while socket.recv(&mut ring).unwrap() > 0 {
                    count += ring.datagrams().count();
                }
                arrived.extend((count > 0).then_some((index, count)));
            }
            if !arrived.is_empty() {
                return arrived;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Vec::new()
    }
}
