//! The rules of the kernel's GRO for one flow of plain TCP or UDP over IP, read from Linux 6.18
//! (`inet_gro_receive`, `inet_gro_flush`, `tcp_gro_receive`, `udp_gro_receive_segment`), where kernels
//! differ the strictest: for what the one that the tests run on merges and others do not.

use overlayd::wire::checksum;
use overlayd::wire::transport::{CWR, FIN, PSH, Protocol, Transport};

use crate::flow::{DF, RST, SYN, URG, payload_of};

/// Whether the kernel would make one frame of all of these.
pub(crate) fn merges(frames: &[&[u8]]) -> bool {
    frames.iter().all(|frame| is_candidate(frame))
        && !ends_run(frames[0], frames[0])
        && (1..frames.len()).all(|index| follows(&frames[..index], frames[index]))
}

/// Complete, right, and straight behind a plain IP header.
fn is_candidate(frame: &[u8]) -> bool {
    let Ok(Some(transport)) = Transport::locate(frame) else { return false };
    let Transport { protocol, is_ipv6, start, end, .. } = transport;
    let is_header_plain = if is_ipv6 {
        start == 54
    } else {
        start == 34 && frame[20] & !DF == 0 && frame[21] == 0 && checksum::plain(&frame[14..34]) == 0
    };
    let length = u16::try_from(end - start).unwrap();
    let is_udp_plain = || word(frame, start + 4) == length && word(frame, start + 6) != 0;
    let sum = transport.pseudo_header(frame, length).plus(&frame[start..end]).checksum();
    let is_empty = payload_of(frame).is_empty();
    is_header_plain
        && end == frame.len()
        && !is_empty
        && sum == 0
        && (protocol == Protocol::Tcp || is_udp_plain())
}

/// Whether nothing may come behind this frame of a run: it is shorter than the first, or urgent.
fn ends_run(first: &[u8], frame: &[u8]) -> bool {
    let is_urgent = is_tcp(frame) && tcp_flags(frame) & (URG | PSH | RST | SYN | FIN) != 0;
    payload_of(frame).len() < payload_of(first).len() || is_urgent
}

fn follows(run: &[&[u8]], next: &[u8]) -> bool {
    let (first, last) = (run[0], run[run.len() - 1]);
    let start = transport(first);
    let same = |from: usize, to: usize| first[from..to] == next[from..to];
    let is_same_flow =
        same(0, 14) && start == transport(next) && is_tcp(first) == is_tcp(next) && same(start, start + 4);
    let is_same_ip =
        if start == 54 { same(14, 18) && same(20, 54) } else { same(14, 16) && same(20, 24) && same(26, 34) };
    is_same_flow
        && is_same_ip
        && (start == 54 || id_follows(run, next))
        && !ends_run(first, last)
        && payload_of(next).len() <= payload_of(first).len()
        && (!is_tcp(first) || tcp_follows(run, next, start))
}

/// Identifications stand still or count, as the second has shown.
fn id_follows(run: &[&[u8]], next: &[u8]) -> bool {
    let step = |frame: &[u8]| word(frame, 18).wrapping_sub(word(run[0], 18));
    let is_fixed = step(run.get(1).unwrap_or(&next)) == 0;
    step(next) == if is_fixed { 0 } else { u16::try_from(run.len()).unwrap() }
}

fn tcp_follows(run: &[&[u8]], next: &[u8], start: usize) -> bool {
    let (first, last) = (run[0], run[run.len() - 1]);
    let number = |frame: &[u8]| u32::from_be_bytes(*frame[start + 4..].first_chunk().unwrap());
    let payload = payload_of(next);
    let is_in_order =
        number(next) == number(last).wrapping_add(u32::try_from(payload_of(last).len()).unwrap());
    // Acknowledgment; length, reserved bits and window; options.
    let is_same = [(8, 13), (14, 16), (20, payload.start - start)]
        .into_iter()
        .all(|(from, to)| first[start + from..start + to] == next[start + from..start + to]);
    let flags = tcp_flags(next);
    is_in_order
        && payload.start == payload_of(first).start
        && is_same
        && flags & CWR == 0
        && (flags ^ tcp_flags(first)) & !(FIN | PSH) == 0
}

fn is_tcp(frame: &[u8]) -> bool {
    let protocol = if transport(frame) == 54 { frame[20] } else { frame[23] };
    protocol == Protocol::Tcp.number()
}

fn tcp_flags(frame: &[u8]) -> u8 {
    frame[transport(frame) + 13]
}

/// Where the transport begins, if the IP header is a plain one.
fn transport(frame: &[u8]) -> usize {
    if frame[12..14] == [0x86, 0xdd] { 54 } else { 34 }
}

fn word(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}
