//! The kernel's GRO, asked what it makes of a train of frames.
//!
//! It merges what a driver hands over in one poll. A TAP hands over each frame by itself, and only the
//! machine's root may have GRO wait for more (`gro_flush_timeout`). So a train comes as a run of
//! `UDP_SEGMENT`, each datagram of which is a frame in a VXLAN in a VXLAN:
//!
//! ```text
//! run -> lo -> cut (`udp_rcv_segment`) -> carrier0, VXLAN -> IP, UDP -> gro0, VXLAN -> packet socket
//! ```
//! A poll of a VXLAN device takes what has gathered for it (`gro_cells_receive`, `gro_cell_poll`): for
//! `carrier0` all that was cut from the run, and as it passes that on within its own poll, all of it for
//! `gro0` as well. Datagrams of a run are equally long; what a frame lacks is padding behind the IP packet
//! that carries it, which IP takes off (`ip_rcv_core`), and which keeps `carrier0` from merging
//! (`inet_gro_receive`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use overlayd::id::{IfName, MacAddr, Vni};
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::{Link, Netlink, NetlinkError, Vxlan};
use overlayd::io::netns::NetNs;
use overlayd::io::packet::PacketSocket;
use overlayd::io::udp::{UdpOptions, UdpSocket};

use crate::flow::{self, TO, TO_V4, TO_V6, payload_of};
use crate::support::frames;

/// A device with the kernel's GRO in front of it, and what comes out of that.
pub(crate) struct Kernel {
    sender: UdpSocket,
    seen: PacketSocket,
    /// Without sockets that want it, the kernel merges no UDP (`udp_gro_receive`).
    _wanting: [UdpSocket; 2],
}

impl Kernel {
    pub(crate) fn new() -> Self {
        let addresses = [format!("{}/24", Ipv4Addr::from(TO_V4)), format!("{}/64", Ipv6Addr::from(TO_V6))];
        let index = Netlink::within(&NetNs::current().unwrap(), |netlink| {
            add_vxlan(netlink, "carrier0", CARRIER, NEAR, CARRIER_MAC, &[format!("{CARRIER_NEAR}/24")])?;
            add_vxlan(netlink, "gro0", INNER, CARRIER_NEAR, MacAddr::new(TO), &addresses)
        })
        .unwrap()
        .index;
        let seen = PacketSocket::open(index).unwrap();
        seen.ignore_outgoing().unwrap();
        let any = [SocketAddr::from(([0; 4], flow::PORT)), SocketAddr::from(([0u16; 8], flow::PORT))];
        let wanting = any.map(|any| UdpSocket::bind(any, &UdpOptions::default()).unwrap());
        assert!(wanting.iter().all(|socket| socket.offloads().coalescing), "this kernel has no UDP_GRO");
        let sender = UdpSocket::bind(SocketAddr::new(FAR, 0), &UdpOptions::default()).unwrap();
        assert!(sender.offloads().segmentation, "this kernel has no UDP_SEGMENT");
        Self { sender, seen, _wanting: wanting }
    }

    /// What it makes of frames that arrive together.
    pub(crate) fn merge<T: AsRef<[u8]>>(&self, train: &[T]) -> Vec<Vec<u8>> {
        let mut run: Vec<_> = train.iter().map(|frame| carried(frame.as_ref())).collect();
        let size = run.iter().map(Vec::len).max().unwrap() + 1;
        run.iter_mut().for_each(|datagram| datagram.resize(size, 0));
        let run = run.concat();
        assert!(run.len() <= LONGEST_RUN && train.len() <= MOST_FRAMES, "{} frames of {size}", train.len());
        let to = SocketAddr::new(NEAR, CARRIER.1);
        let outcome = self.sender.send_run(to, &run, u16::try_from(size).unwrap()).unwrap();
        let is_taken = outcome.datagrams == train.len() && !outcome.gave_up_segmentation;
        assert!(is_taken, "the kernel did not take {} frames as one run: {outcome:?}", train.len());

        let payload = |frame: &[u8]| payload_of(frame).len();
        let expected: usize = train.iter().map(|frame| payload(frame.as_ref())).sum();
        let (mut frames, mut arrived) = (Vec::new(), 0);
        let deadline = boot_time() + PATIENCE;
        let mut buffer = vec![0; 1 << 17];
        while arrived < expected {
            assert!(boot_time() < deadline, "{arrived} of {expected} bytes came through the kernel");
            let Some(len) = self.seen.receive(&mut buffer).unwrap() else { continue };
            if buffer[6..12] == flow::FROM {
                let frame = buffer[..len].to_vec();
                arrived += payload(&frame);
                frames.push(frame);
            }
        }
        frames
    }
}

fn add_vxlan(
    netlink: &Netlink,
    name: &str,
    (vni, port): (u32, u16),
    local: IpAddr,
    mac: MacAddr,
    addresses: &[String],
) -> Result<Link, NetlinkError> {
    let name: IfName = name.parse().unwrap();
    netlink.add_vxlan(&Vxlan { name: &name, vni: Vni::new(vni).unwrap(), local, port })?;
    netlink.set_mac(&netlink.link(&name)?, mac)?;
    let link = netlink.link(&name)?;
    let addresses: Vec<_> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    netlink.configure(&link, &addresses, &[])?;
    Ok(link)
}

/// A frame in both VXLANs.
fn carried(frame: &[u8]) -> Vec<u8> {
    let (from, to) = (SocketAddr::new(CARRIER_FAR, INNER.1), SocketAddr::new(CARRIER_NEAR, INNER.1));
    let macs = (MacAddr::new(flow::FROM), CARRIER_MAC);
    frames::vxlan(CARRIER.0, &frames::udp(macs, from, to, &frames::vxlan(INNER.0, frame)))
}

/// VNI and port.
const CARRIER: (u32, u16) = (4_097, 5_789);
const INNER: (u32, u16) = (4_098, 5_790);
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const CARRIER_MAC: MacAddr = MacAddr::new([2, 0x42, 10, 7, 0, 2]);
const CARRIER_NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 7, 0, 2));
const CARRIER_FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 7, 0, 3));
/// The longest payload of UDP over IPv4.
const LONGEST_RUN: usize = 65_507;
/// `UDP_MAX_SEGMENTS` of Linux before 6.9, and what a poll takes (`NAPI_POLL_WEIGHT`).
const MOST_FRAMES: usize = 64;
const PATIENCE: Duration = Duration::from_secs(5);
