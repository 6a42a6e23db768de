//! Frames that need something done to them.

use etherparse::{PacketBuilder, TcpOptionElement};
use overlayd::bench::pair::{ip, ip6, mac};
use overlayd::wire::{ethernet, ipv6, udp};

/// A UDP frame of `len` octets between the first endpoints of both nodes in a network.
pub(crate) fn udp6(network: u8, len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let payload = vec![0x5a; len - ethernet::HEADER_LEN - ipv6::HEADER_LEN - udp::HEADER_LEN];
    PacketBuilder::ethernet2(mac(network, 0).octets(), mac(network + 1, 0).octets())
        .ipv6(ip6(network, 0).octets(), ip6(network + 1, 0).octets(), 64)
        .udp(4000, 4001)
        .write(&mut frame, &payload)
        .expect("a frame");
    frame
}

/// A SYN between them that announces segments of `size`.
pub(crate) fn syn(network: u8, size: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(network, 0).octets(), mac(network + 1, 0).octets())
        .ipv4(ip(network, 0).octets(), ip(network + 1, 0).octets(), 64)
        .tcp(4000, 4001, 7, 60_000)
        .syn()
        .options(&[TcpOptionElement::MaximumSegmentSize(size)])
        .expect("options")
        .write(&mut frame, &[])
        .expect("a frame");
    frame
}
