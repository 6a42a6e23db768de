//! Trains of segments given to the kernel's GRO and to [`Coalescer`].

use overlayd::boot_time::BootTime;
use overlayd::datapath::{
    Arrived, Coalescer, Context, Delivery, Encapsulated, LaneCounters, Merging, Notice, Origin, Outlet, Run,
};
use overlayd::forward::Tables;
use overlayd::id::{LinkSlot, PortSlot};
use overlayd::sa::Sealed;
use overlayd::wire::transport::{CWR, ECE, FIN, PSH, Protocol};
use overlayd::wire::vnet_hdr::VnetHeader;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::flow::{DF, Headers, MF, RST, SYN, URG, payload_of};
use crate::gro::Kernel;
use crate::model;

/// Merges random trains both ways.
pub(crate) fn compare() {
    let kernel = Kernel::new();
    let (mut ours_merged, mut theirs_merged) = (0, 0);
    for seed in 0..CASES {
        let rng = &mut StdRng::seed_from_u64(seed);
        let train = Train::random(rng);
        let ours = train.groups(&merge(&train.frames));
        let in_order: Vec<_> = ours.iter().flat_map(|group| group.members.iter().copied()).collect();
        assert_eq!(in_order, train.with_payload(), "seed {seed}: frames overtake each other or are lost");
        for our in ours.iter().filter(|our| our.members.len() > 1) {
            let is_right = model::merges(&train.members(our));
            assert!(is_right, "seed {seed}: the model does not merge {}", train.describe(our));
        }
        ours_merged += merged(&ours);
        let theirs = train.groups(&kernel.merge(&train.frames));
        compare_with_kernel(&kernel, &train, &ours, &theirs);
        assert_model_is_no_more_liberal(&kernel, &train, rng);
        theirs_merged += merged(&theirs);
    }
    // Of several flows at once ours merges less, by design; but not nothing.
    assert!(ours_merged > 1_000 && ours_merged * 3 > theirs_merged, "{ours_merged} of {theirs_merged}");
}

pub(crate) fn compare_with_kernel(kernel: &Kernel, train: &Train, ours: &[Group], theirs: &[Group]) {
    for our in ours {
        // Ours may begin a run where the kernel goes on with one; so it is asked again, of the run alone.
        let is_whole = || kernel.merge(&train.members(our)) == [our.frame.clone()];
        let is_covered = theirs.iter().any(|their| their.contains(our)) || is_whole();
        assert!(is_covered, "the kernel does not merge {}", train.describe(our));
        let same = theirs.iter().filter(|their| their.members == our.members);
        same.for_each(|their| {
            assert_eq!(our.frame, their.frame, "the kernel's is another: {}", train.describe(our))
        });
    }
}

/// Frames next to each other that the model would merge, the kernel does.
fn assert_model_is_no_more_liberal(kernel: &Kernel, train: &Train, rng: &mut StdRng) {
    let first = rng.random_range(0..train.frames.len() - 1);
    let end = train.frames.len().min(first + rng.random_range(2..5));
    let frames: Vec<_> = train.frames[first..end].iter().map(Vec::as_slice).collect();
    if model::merges(&frames) {
        assert!(kernel.merge(&frames).len() == 1, "the model would merge {:#?}", &train.sent[first..end]);
    }
}

/// How many frames became part of another.
fn merged(groups: &[Group]) -> usize {
    groups.iter().map(|group| group.members.len() - 1).sum()
}

/// Frames in the order in which they arrive.
#[derive(Debug)]
pub(crate) struct Train {
    /// Octets of payload, and the headers before what was done to the frame.
    sent: Vec<(usize, Headers)>,
    pub(crate) frames: Vec<Vec<u8>>,
}

impl Train {
    fn random(rng: &mut StdRng) -> Self {
        let mut flows: Vec<_> = (0..rng.random_range(1..=2)).map(|_| Flow::random(rng)).collect();
        let (mut sent, mut frames) = (Vec::new(), Vec::new());
        // Some flows are well-behaved, so that long runs are seen.
        let mischief = [0.0, 0.02, 0.15][rng.random_range(0..3)];
        let mut current = 0;
        for index in 0..rng.random_range(2..=LONGEST_TRAIN) {
            if rng.random_bool(0.2) {
                current = rng.random_range(0..flows.len());
            }
            let (headers, payload, frame) = flows[current].next(rng, index, mischief);
            sent.push((payload, headers));
            frames.push(frame);
        }
        if rng.random_bool(mischief) {
            let (one, other) = (rng.random_range(0..frames.len()), rng.random_range(0..frames.len()));
            frames.swap(one, other);
            // Payloads name frames by the order of `sent`.
            let tagged = |frame: &[u8]| tag(&frame[payload_of(frame)]);
            if tagged(&frames[one]).is_none() || tagged(&frames[other]).is_none() {
                frames.swap(one, other);
            }
        }
        Self { sent, frames }
    }

    /// Frames with these headers and so many octets of payload each.
    pub(crate) fn of(sent: Vec<(usize, Headers)>) -> Self {
        let frame = |(index, (len, headers)): (usize, &(usize, Headers))| {
            let mut payload = vec![0x5a; *len];
            payload[..2].copy_from_slice(&u16::try_from(index).unwrap().to_be_bytes());
            headers.frame(&payload)
        };
        let frames = sent.iter().enumerate().map(frame).collect();
        Self { sent, frames }
    }

    /// The frames that carry something, in the order of arrival.
    fn with_payload(&self) -> Vec<usize> {
        self.frames.iter().filter_map(|frame| tag(&frame[payload_of(frame)])).collect()
    }

    /// The frames of a group.
    fn members(&self, group: &Group) -> Vec<&[u8]> {
        let is_member =
            |frame: &&[u8]| tag(&frame[payload_of(frame)]).is_some_and(|tag| group.members.contains(&tag));
        self.frames.iter().map(Vec::as_slice).filter(is_member).collect()
    }

    fn describe(&self, group: &Group) -> String {
        let sent: Vec<_> = group.members.iter().map(|member| (member, &self.sent[*member])).collect();
        format!("{:?}: {sent:#?}", group.members)
    }

    /// Which of the frames each of these, merged or not, consists of.
    pub(crate) fn groups(&self, seen: &[Vec<u8>]) -> Vec<Group> {
        let group = |frame: &Vec<u8>| {
            let (mut payload, mut members) = (&frame[payload_of(frame)], Vec::new());
            while let Some(member) = tag(payload) {
                members.push(member);
                payload = &payload[self.sent[member].0..];
            }
            (!members.is_empty()).then(|| Group { members, frame: frame.clone() })
        };
        seen.iter().filter_map(group).collect()
    }
}

/// Frames that became one.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) members: Vec<usize>,
    frame: Vec<u8>,
}

impl Group {
    fn contains(&self, other: &Self) -> bool {
        self.members.windows(other.members.len()).any(|window| window == other.members)
    }
}

/// A sender with its habits.
struct Flow {
    headers: Headers,
    size: usize,
    id_step: u16,
}

impl Flow {
    fn random(rng: &mut StdRng) -> Self {
        let headers = Headers::random(rng);
        Self { headers, size: rng.random_range(64..1_190), id_step: u16::from(rng.random_bool(0.7)) }
    }

    /// The next frame: its headers, octets of payload, and itself.
    fn next(&mut self, rng: &mut StdRng, index: usize, mischief: f64) -> (Headers, usize, Vec<u8>) {
        let mut bad = || rng.random_bool(mischief);
        let (lose, vary, damage) = (bad(), bad(), bad());
        if lose {
            self.headers.sequence = self.headers.sequence.wrapping_add(self.step());
        }
        let is_last = index % 16 == 15 && rng.random_bool(0.5);
        let len = match rng.random_range(0..40) {
            0 if vary => 0,
            1 if vary => self.size + 1,
            2 | 3 if vary => self.size / 2,
            _ if is_last => self.size - 7,
            _ => self.size,
        };
        let mut headers = self.headers.clone();
        headers.tcp_flags |= if is_last { PSH } else { 0 };
        if vary {
            vary_headers(&mut headers, rng);
            // What a sender changes it may keep.
            if rng.random() {
                self.headers = Headers { tcp_flags: self.headers.tcp_flags, ..headers.clone() };
            }
        }
        let index = u16::try_from(index).unwrap().to_be_bytes();
        let mut payload: Vec<u8> = (0..len).map(|_| rng.random()).collect();
        if let Some(place) = payload.first_chunk_mut::<2>() {
            *place = index;
        }
        let mut frame = headers.frame(&payload);
        if damage {
            damage_frame(&mut frame, &headers, rng);
        }
        let is_repeated = vary && rng.random_bool(0.2);
        if !is_repeated {
            self.headers.sequence = self.headers.sequence.wrapping_add(u32::try_from(len).unwrap());
            self.headers.id = self.headers.id.wrapping_add(self.id_step);
        }
        (headers, len, frame)
    }

    fn step(&self) -> u32 {
        u32::try_from(self.size).unwrap()
    }
}

/// Something that another frame of the flow has otherwise.
fn vary_headers(headers: &mut Headers, rng: &mut StdRng) {
    match rng.random_range(0..20) {
        0 => headers.class ^= 1 << rng.random_range(0..8),
        1 => headers.class ^= 3,
        2 => headers.hops -= 1,
        3 => headers.flow_label ^= 1 << rng.random_range(0..20),
        4 => headers.flags ^= DF,
        5 => headers.id = rng.random(),
        6 => headers.id = headers.id.wrapping_add(1),
        7 => headers.tcp_flags |= PSH,
        8 => headers.tcp_flags |= FIN,
        9 => headers.tcp_flags |= [SYN, RST, URG][rng.random_range(0..3)],
        10 => headers.tcp_flags ^= CWR,
        11 => headers.tcp_flags ^= ECE,
        12 => headers.reserved ^= 1 << rng.random_range(0..4),
        13 => headers.acknowledgment = headers.acknowledgment.wrapping_add(1),
        14 => headers.window ^= 1,
        15 => headers.urgent ^= 1,
        16 => headers.sequence = headers.sequence.wrapping_add(1),
        17 => headers.source_port ^= 1,
        18 => headers.tcp_flags = 0,
        _ => match headers.tcp_options.last_mut() {
            Some(last) => *last ^= 1,
            None => headers.tcp_options = vec![1, 1, 1, 0],
        },
    }
}

/// Something that no sender means.
fn damage_frame(frame: &mut Vec<u8>, headers: &Headers, rng: &mut StdRng) {
    let start = headers.transport();
    match rng.random_range(0..6) {
        0 => frame.extend([0; 3]),
        1 => frame[start + headers.protocol.checksum_offset()] ^= 1,
        2 if !headers.is_ipv6 => frame[24] ^= 1,
        3 if !headers.is_ipv6 => frame[20] |= MF,
        4 if headers.protocol == Protocol::Udp => frame[start + 6..start + 8].fill(0),
        5 if headers.protocol == Protocol::Udp => frame[start + 5] ^= 1,
        _ => {
            let last = frame.len() - 1;
            frame[last] ^= 1;
        }
    }
}

/// The number of the frame that this payload begins with.
fn tag(payload: &[u8]) -> Option<usize> {
    payload.first_chunk().map(|number| usize::from(u16::from_be_bytes(*number)))
}

/// What ours makes of a batch of frames.
pub(crate) fn merge(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (tables, counters) = (Tables::default(), LaneCounters::new());
    let cx = Context { tables: &tables, counters: &counters, now: BootTime::from_nanos(1) };
    let (mut frames, mut seen) = (frames.to_vec(), Seen(Vec::new()));
    let mut batch = Coalescer::new();
    for frame in &mut frames {
        let (origin, frame) = (Origin::Link(LinkSlot::new(0)), Arrived::new(frame, None).unwrap());
        if let Err(frame) = batch.continue_run(origin, frame) {
            batch.push(&cx, PortSlot::new(0), origin, frame, &mut seen);
        }
    }
    batch.flush(&cx, &mut seen);
    seen.0
}

struct Seen(Vec<Vec<u8>>);

impl Outlet for Seen {
    fn send_esp(&mut self, _: &Run<'_, Sealed>) {}

    fn send_vxlan(&mut self, _: &Run<'_, Encapsulated>) {}

    fn deliver(&mut self, _: PortSlot, _: &VnetHeader, pieces: &[&[u8]]) -> Delivery {
        self.0.push(pieces.concat());
        Delivery::Taken
    }

    fn merging(&self, _: PortSlot) -> Merging {
        Merging { tcp: true, udp: true }
    }

    fn notice(&mut self, _: Notice) {}
}

const CASES: u64 = 500;
/// So that neither of the limits of a run, 64 segments and 64 KiB, is reached, nor that of a train
/// that the kernel is asked about.
const LONGEST_TRAIN: usize = 48;
