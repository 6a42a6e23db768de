//! What of an underlay's MTU is left for the packets of containers.

/// The longest IP packet of a container that fits through an underlay in one piece, in bytes.
///
/// ESP pads what it seals to whole words (RFC 4303 §2.4): where the underlay's MTU is none of them, what is left
/// over carries nothing.
pub const fn inner_mtu(underlay: u32, encrypted: bool, over_ipv6: bool) -> u32 {
    let left = underlay.saturating_sub(overhead(encrypted, over_ipv6));
    if encrypted { left - left % ESP_ALIGNMENT } else { left }
}

/// Bytes around the longest packet: outer IP and UDP, VXLAN and inner Ethernet (RFC 7348 §5), and where it is sealed
/// ESP's header, IV, trailer and ICV, and the inner UDP (RFC 4303, 3948).
pub const fn overhead(encrypted: bool, over_ipv6: bool) -> u32 {
    match (encrypted, over_ipv6) {
        (true, false) => 92,
        (true, true) => 112,
        (false, false) => 50,
        (false, true) => 70,
    }
}

const ESP_ALIGNMENT: u32 = 4;
