//! Super-frames given to the kernel and to [`SuperFrame`].

use std::fmt;
use std::num::NonZeroU16;
use std::time::Duration;

use overlayd::datapath::SuperFrame;
use overlayd::id::IfName;
use overlayd::io::clock::boot_time;
use overlayd::io::netlink::Netlink;
use overlayd::io::netns::NetNs;
use overlayd::io::tap::{Tap, TapOffloads};
use overlayd::wire::transport::{CWR, Protocol};
use overlayd::wire::vnet_hdr::{Checksum, Kind, Segmentation, VnetHeader};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::flow::{self, Headers};

/// Cuts random super-frames both ways.
pub(crate) fn compare() {
    let kernel = Kernel::new();
    let (mut segments, mut kinds) = (0, std::collections::BTreeSet::new());
    for seed in 0..CASES {
        let case = Case::random(&mut StdRng::seed_from_u64(seed));
        let ours = case.cut();
        let theirs = kernel.cut(&case, ours.len());
        // As it comes from a container's kernel, when the TAP is told that all can be cut.
        let (header, whole) = kernel.read_whole();
        let VnetHeader { checksum, segmentation, .. } = case.header;
        assert_eq!((header.checksum, header.segmentation), (checksum, segmentation), "seed {seed}: {case:?}");
        assert!(whole == case.frame, "seed {seed}: {case:?}");
        for (index, (our, their)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(our, their, "seed {seed}, segment {index}: {case:?}");
        }
        assert_eq!(ours.len(), theirs.len(), "seed {seed}: {case:?}");
        segments += ours.len();
        kinds.insert((case.headers.is_ipv6, case.headers.protocol == Protocol::Tcp, case.tag.is_some()));
    }
    assert!(segments as u64 > 5 * CASES && kinds.len() == 8, "{segments} segments of {kinds:?}");
}

/// A super-frame.
struct Case {
    headers: Headers,
    tag: Option<[u8; 4]>,
    header: VnetHeader,
    frame: Vec<u8>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, tag {:?}, {:?}", self.headers, self.tag, self.header)
    }
}

impl Case {
    fn random(rng: &mut StdRng) -> Self {
        let mut headers = Headers::random(rng);
        headers.draw_train_flags(rng);
        let size: u16 = if rng.random() { rng.random_range(500..1_400) } else { rng.random_range(8..200) };
        let room = (65_535 - headers.len()).min(usize::from(size) * 100);
        // The kernel drops a super-frame of a single segment.
        let len = rng.random_range(usize::from(size) + 1..=room);
        let payload: Vec<u8> = (0..len).map(|_| rng.random()).collect();
        let mut frame = headers.unfinished(&payload);
        let tag = rng.random_bool(0.3).then(|| [0x81, 0x00, rng.random(), rng.random()]);
        frame.splice(12..12, tag.into_iter().flatten());
        let behind_tag = |offset| u16::try_from(tag.map_or(0, |tag| tag.len()) + offset).unwrap();
        let kind = match (headers.protocol, headers.is_ipv6) {
            (Protocol::Tcp, false) => Kind::Tcp4,
            (Protocol::Tcp, true) => Kind::Tcp6,
            (Protocol::Udp, _) => Kind::Udp,
        };
        let offset = headers.protocol.checksum_offset();
        let header = VnetHeader {
            checksum: Checksum::Partial {
                start: behind_tag(headers.transport()),
                offset: u16::try_from(offset).unwrap(),
            },
            segmentation: Some(Segmentation {
                kind,
                has_cwr: headers.protocol == Protocol::Tcp && headers.tcp_flags & CWR != 0,
                size: NonZeroU16::new(size).unwrap(),
            }),
            header_len: behind_tag(headers.len()),
        };
        Self { headers, tag, header, frame }
    }

    fn cut(&self) -> Vec<Vec<u8>> {
        let cut = SuperFrame::parse(&self.frame, &self.header, self.header.segmentation.unwrap()).unwrap();
        let segment = |index| {
            let mut place = vec![0; cut.longest()];
            let len = cut.write(&self.frame, index, &mut place, false);
            place.truncate(len);
            place
        };
        (0..cut.segments()).map(segment).collect()
    }
}

/// TAPs on a bridge: frames come in by one and leave by two, of which one takes super-frames.
struct Kernel {
    into: Tap,
    out: Tap,
    whole: Tap,
}

impl Kernel {
    fn new() -> Self {
        // So that nobody but the test sends.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let [into_name, out_name, whole_name, bridge_name] =
            ["into0", "out0", "whole0", "br0"].map(|name| name.parse::<IfName>().unwrap());
        let [into, mut out, whole] =
            [&into_name, &out_name, &whole_name].map(|name| Tap::create(name).unwrap());
        assert_eq!(into.offloads(), TapOffloads::ALL, "this kernel cannot show what the test is about");
        out.set_offloads(TapOffloads::NONE).unwrap();
        Netlink::within(&NetNs::current().unwrap(), |netlink| {
            netlink.add_bridge(&bridge_name)?;
            let bridge = netlink.link(&bridge_name)?;
            for name in [&into_name, &out_name, &whole_name] {
                let port = netlink.link(name)?;
                netlink.add_bridge_port(&bridge, &port)?;
                netlink.set_up(&port, true)?;
            }
            netlink.set_up(&bridge, true)
        })
        .unwrap();
        Self { into, out, whole }
    }

    /// The kernel's segments; waits for `expected` and looks whether there are more.
    fn cut(&self, case: &Case, expected: usize) -> Vec<Vec<u8>> {
        assert!(self.into.write_frame(&case.header, &[&case.frame]).unwrap(), "the kernel took no frame");
        let mut segments = Vec::new();
        let deadline = boot_time() + PATIENCE;
        while segments.len() < expected && boot_time() < deadline {
            segments.extend(self.read());
        }
        segments.extend(std::iter::from_fn(|| self.read()));
        segments
    }

    fn read(&self) -> Option<Vec<u8>> {
        let (header, frame) = read(&self.out)?;
        assert_eq!((header.checksum, header.segmentation), (Checksum::Complete, None));
        Some(frame)
    }

    /// What the TAP for super-frames gets, and what the kernel says of it.
    fn read_whole(&self) -> (VnetHeader, Vec<u8>) {
        let deadline = boot_time() + PATIENCE;
        loop {
            assert!(boot_time() < deadline, "nothing for the TAP that takes super-frames");
            if let Some(read) = read(&self.whole) {
                return read;
            }
        }
    }
}

fn read(tap: &Tap) -> Option<(VnetHeader, Vec<u8>)> {
    let (mut head, mut rest) = (vec![0; 2_048], vec![0; 1 << 16]);
    let (header, len) = tap.read_frame(&mut head, &mut rest).unwrap()?;
    head.extend(rest);
    head.truncate(len);
    (head[6..12] == flow::FROM).then_some((header, head))
}

const CASES: u64 = 500;
const PATIENCE: Duration = Duration::from_secs(5);
