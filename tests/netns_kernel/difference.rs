//! One thing at a time that distinguishes a segment from those before it.

use overlayd::wire::transport::{CWR, ECE, FIN, PSH, Protocol};

use crate::flow::{DF, Headers, RST, SYN, URG};
use crate::gro::Kernel;
use crate::merge::{self, Train, compare_with_kernel};

/// Has trains with each difference merged both ways, of both protocols over both versions of IP.
pub(crate) fn compare() {
    let kernel = Kernel::new();
    for is_ipv6 in [false, true] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let flow = Headers::plain(is_ipv6, protocol);
            for difference in DIFFERENCES.iter().filter(|difference| difference.concerns(&flow)) {
                difference.compare(&kernel, &flow);
            }
        }
    }
}

/// Something that may be in a train.
struct Difference {
    what: &'static str,
    of: Of,
    /// Does it to segments in order, each with its octets of payload.
    make: fn(&mut Vec<(usize, Headers)>),
    /// How many segments then become one frame each time.
    runs: &'static [usize],
    kernels: Kernels,
}

/// What has it.
#[derive(PartialEq, Eq)]
enum Of {
    All,
    V4,
    V6,
    Tcp,
}

/// What kernels do of it.
#[derive(PartialEq, Eq)]
enum Kernels {
    /// The same.
    Same,
    /// More or less, by their age; ours does what all do.
    Differ,
}

impl Difference {
    fn concerns(&self, flow: &Headers) -> bool {
        match self.of {
            Of::All => true,
            Of::V4 => !flow.is_ipv6,
            Of::V6 => flow.is_ipv6,
            Of::Tcp => flow.protocol == Protocol::Tcp,
        }
    }

    fn compare(&self, kernel: &Kernel, flow: &Headers) {
        let mut segments = Vec::new();
        for index in 0..SEGMENTS {
            let mut headers = flow.clone();
            headers.sequence = headers.sequence.wrapping_add(u32::try_from(index * SIZE).unwrap());
            headers.id = headers.id.wrapping_add(u16::try_from(index).unwrap());
            segments.push((SIZE, headers));
        }
        (self.make)(&mut segments);
        let train = Train::of(segments);
        let ours = train.groups(&merge::merge(&train.frames));
        let theirs = train.groups(&kernel.merge(&train.frames));
        let what = format!("{}, IPv6: {}, {:?}", self.what, flow.is_ipv6, flow.protocol);
        let runs: Vec<_> = ours.iter().map(|our| our.members.len()).collect();
        assert_eq!(runs, self.runs, "{what}");
        compare_with_kernel(kernel, &train, &ours, &theirs);
        if self.kernels == Kernels::Same {
            let members: Vec<_> = theirs.iter().map(|their| &their.members).collect();
            assert_eq!(members, ours.iter().map(|our| &our.members).collect::<Vec<_>>(), "{what}");
        }
    }
}

/// From the middle on.
fn rest(segments: &mut [(usize, Headers)], change: impl Fn(&mut Headers)) {
    segments[MIDDLE..].iter_mut().for_each(|(_, headers)| change(headers));
}

/// In the middle alone.
fn one(segments: &mut [(usize, Headers)], change: impl Fn(&mut Headers)) {
    change(&mut segments[MIDDLE].1);
}

/// Everywhere.
fn every(segments: &mut [(usize, Headers)], change: impl Fn(&mut Headers)) {
    segments.iter_mut().for_each(|(_, headers)| change(headers));
}

/// Everywhere but in the middle.
fn except_one(segments: &mut [(usize, Headers)], change: impl Fn(&mut Headers)) {
    let others = segments.iter_mut().enumerate().filter(|(index, _)| *index != MIDDLE);
    others.for_each(|(_, (_, headers))| change(headers));
}

/// Gives the one in the middle another length, with the rest straight behind it.
fn resize(segments: &mut [(usize, Headers)], len: usize) {
    segments[MIDDLE].0 = len;
    let next = segments[MIDDLE].1.sequence.wrapping_add(u32::try_from(len).unwrap());
    for (index, (_, headers)) in (0..).zip(&mut segments[MIDDLE + 1..]) {
        headers.sequence = next.wrapping_add(index * u32::try_from(SIZE).unwrap());
    }
}

/// More by one in each.
fn count(segments: &mut [(usize, Headers)], field: impl Fn(&mut Headers) -> &mut u8) {
    for (more, (_, headers)) in (0..).zip(segments) {
        *field(headers) += more;
    }
}

/// By turns.
fn alternate(segments: &mut [(usize, Headers)], field: impl Fn(&mut Headers) -> &mut u8, values: [u8; 2]) {
    for ((_, headers), value) in segments.iter_mut().zip(values.into_iter().cycle()) {
        *field(headers) = value;
    }
}

const fn difference(
    what: &'static str,
    of: Of,
    make: fn(&mut Vec<(usize, Headers)>),
    runs: &'static [usize],
) -> Difference {
    Difference { what, of, make, runs, kernels: Kernels::Same }
}

const fn differing(
    what: &'static str,
    of: Of,
    make: fn(&mut Vec<(usize, Headers)>),
    runs: &'static [usize],
) -> Difference {
    Difference { kernels: Kernels::Differ, ..difference(what, of, make, runs) }
}

const DIFFERENCES: &[Difference] = &[
    difference("none", Of::All, |_| {}, &[8]),
    difference("a short last segment", Of::All, |all| all[7].0 = SIZE / 2, &[8]),
    difference("a short segment", Of::All, |all| resize(all, SIZE / 2), &[5, 3]),
    difference("a long segment", Of::All, |all| resize(all, SIZE + 1), &[4, 2, 2]),
    difference("a segment too few", Of::Tcp, |all| drop(all.remove(MIDDLE)), &[4, 3]),
    difference("a segment twice", Of::Tcp, |all| all.insert(MIDDLE, all[MIDDLE - 1].clone()), &[4, 5]),
    difference("two in the other order", Of::Tcp, |all| all.swap(3, 4), &[3, 1, 1, 3]),
    difference("all in the other order", Of::Tcp, |all| all.reverse(), &[1; 8]),
    difference("PSH at the end", Of::Tcp, |all| all[7].1.tcp_flags |= PSH, &[8]),
    difference("PSH", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= PSH), &[5, 3]),
    difference("FIN at the end", Of::Tcp, |all| all[7].1.tcp_flags |= FIN, &[8]),
    difference("FIN", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= FIN), &[5, 3]),
    difference("FIN and PSH", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= FIN | PSH), &[5, 3]),
    difference("SYN", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= SYN), &[4, 1, 3]),
    difference("RST", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= RST), &[4, 1, 3]),
    difference("URG", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= URG), &[4, 1, 3]),
    difference("ECE", Of::Tcp, |all| rest(all, |headers| headers.tcp_flags |= ECE), &[4, 4]),
    difference("ECE once", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= ECE), &[4, 1, 3]),
    difference("no ECE once", Of::Tcp, |all| except_one(all, |headers| headers.tcp_flags |= ECE), &[4, 1, 3]),
    differing("CWR", Of::Tcp, |all| one(all, |headers| headers.tcp_flags |= CWR), &[4, 1, 3]),
    differing("CWR at first", Of::Tcp, |all| all[0].1.tcp_flags |= CWR, &[1, 7]),
    differing("CWR in all", Of::Tcp, |all| every(all, |headers| headers.tcp_flags |= CWR), &[1; 8]),
    differing("a reserved flag", Of::Tcp, |all| rest(all, |headers| headers.reserved = 1), &[4, 4]),
    difference("an acknowledgment", Of::Tcp, |all| rest(all, |headers| headers.acknowledgment += 1), &[4, 4]),
    difference("a window", Of::Tcp, |all| rest(all, |headers| headers.window += 1), &[4, 4]),
    difference("a window once", Of::Tcp, |all| one(all, |headers| headers.window += 1), &[4, 1, 3]),
    difference("a time stamp", Of::Tcp, |all| rest(all, |headers| headers.tcp_options[7] += 1), &[4, 4]),
    difference(
        "a time stamp once",
        Of::Tcp,
        |all| one(all, |headers| headers.tcp_options[7] += 1),
        &[4, 1, 3],
    ),
    difference(
        "an echoed time stamp",
        Of::Tcp,
        |all| rest(all, |headers| headers.tcp_options[11] += 1),
        &[4, 4],
    ),
    difference(
        "a time stamp in each",
        Of::Tcp,
        |all| count(all, |headers| &mut headers.tcp_options[7]),
        &[1; 8],
    ),
    difference("more options", Of::Tcp, |all| rest(all, |headers| headers.tcp_options.extend(SACK)), &[4, 4]),
    difference("no options", Of::Tcp, |all| rest(all, |headers| headers.tcp_options.clear()), &[4, 4]),
    difference("no options at all", Of::Tcp, |all| every(all, |headers| headers.tcp_options.clear()), &[8]),
    difference("SACK in all", Of::Tcp, |all| every(all, |headers| headers.tcp_options.extend(SACK)), &[8]),
    difference("CE", Of::All, |all| rest(all, |headers| headers.class |= 3), &[4, 4]),
    difference("CE once", Of::All, |all| one(all, |headers| headers.class |= 3), &[4, 1, 3]),
    difference("CE in all", Of::All, |all| every(all, |headers| headers.class |= 3), &[8]),
    difference(
        "ECT(1) and ECT(0)",
        Of::All,
        |all| alternate(all, |headers| &mut headers.class, [1, 2]),
        &[1; 8],
    ),
    difference("a DSCP", Of::All, |all| rest(all, |headers| headers.class |= 0xb8), &[4, 4]),
    difference("hops", Of::All, |all| rest(all, |headers| headers.hops -= 1), &[4, 4]),
    difference("a port", Of::All, |all| rest(all, |headers| headers.source_port += 1), &[4, 4]),
    difference("a flow label", Of::V6, |all| rest(all, |headers| headers.flow_label += 1), &[4, 4]),
    difference("a flow label in all", Of::V6, |all| every(all, |headers| headers.flow_label = 77), &[8]),
    difference("no DF", Of::V4, |all| rest(all, |headers| headers.flags ^= DF), &[4, 4]),
    difference("no DF in all", Of::V4, |all| every(all, |headers| headers.flags ^= DF), &[8]),
    differing(
        "an identification that stands still",
        Of::V4,
        |all| every(all, |headers| headers.id = 9),
        &[8],
    ),
    differing(
        "an identification that stands still without DF",
        Of::V4,
        |all| every(all, |headers| (headers.id, headers.flags) = (9, 0)),
        &[1; 8],
    ),
    differing("a leap of identifications", Of::V4, |all| rest(all, |headers| headers.id += 700), &[4, 4]),
    differing("an uneven identification", Of::V4, |all| one(all, |headers| headers.id = 700), &[4, 1, 3]),
    differing(
        "identifications by twos",
        Of::V4,
        |all| (0..).zip(all).for_each(|(index, (_, headers))| headers.id = 2 * index),
        &[1; 8],
    ),
    differing("a repeated identification", Of::V4, |all| all[MIDDLE].1.id = all[MIDDLE - 1].1.id, &[4, 1, 3]),
];

/// Of each train, and where it changes.
const SEGMENTS: usize = 8;
const MIDDLE: usize = 4;
const SIZE: usize = 200;
/// A block of SACK.
const SACK: [u8; 12] = [1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9];
