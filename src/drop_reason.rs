//! Why a packet was dropped: the one list that counters, `overlayd stats` and the metrics share.

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many reasons there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The stable name in statistics and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// One sentence for the operator.
            pub const fn explanation(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc,)+).trim_ascii(),)*
                }
            }
        }
    };
}

drop_reasons! {
    /// From a container: shorter than an Ethernet header, or its headers contradict its length.
    MalformedFrame = "malformed_frame",
    /// From a container: longer than the network's MTU allows.
    FrameTooBig = "frame_too_big",
    /// From a container: neither ARP, IPv4 nor IPv6, or these behind two VLAN tags or a provider's.
    UnsupportedEthertype = "unsupported_ethertype",
    /// From a container: the source MAC is not the endpoint's own.
    SourceMacSpoofed = "source_mac_spoofed",
    /// From a container: the source IP address is not the endpoint's own.
    SourceIpSpoofed = "source_ip_spoofed",
    /// From a container: an ARP or neighbour message names an identity that is not its own.
    NeighborSpoofed = "neighbor_spoofed",
    /// From a container: a router advertisement or redirect; no endpoint may send one.
    RogueRouterMessage = "rogue_router_message",
    /// From a container: the destination MAC belongs to no endpoint of the network.
    UnknownDestination = "unknown_destination",
    /// From a container: ARP or neighbour discovery for an address that nobody has.
    UnknownNeighbor = "unknown_neighbor",
    /// From a container: broadcast or multicast above the endpoint's rate limit.
    FloodRateLimited = "flood_rate_limited",
    /// To a peer: no key has been negotiated yet, or the last one was removed.
    NoKey = "no_key",
    /// To a peer: the SA reached its hard packet or byte limit and a new one is not there yet.
    SaExhausted = "sa_exhausted",
    /// To a peer: the SA is older than its hard age limit and a new one is not there yet.
    SaExpired = "sa_expired",
    /// To a peer: the kernel refused the datagram (no route, socket buffer full, too big for the path); what the
    /// full queue of a device drops is in SndbufErrors of /proc/net/snmp alone.
    SendFailed = "send_failed",
    /// To a container: more than its rate limit (`--ingress-rate`), and the queue before it was full.
    RateLimited = "rate_limited",
    /// To a container: the TAP's queue was full or the TAP is gone.
    TapFull = "tap_full",
    /// From a port that has been detached, or for a network that has been removed meanwhile.
    NoSuchPort = "no_such_port",
    /// From the wire: the lane was too slow, and the receive buffer of its socket full.
    SocketOverflow = "socket_overflow",
    /// From the wire: a NAT keepalive (RFC 3948 §2.3); harmless.
    NatKeepalive = "nat_keepalive",
    /// From the wire: the non-ESP marker or a dummy packet; nothing to deliver.
    NonEsp = "non_esp",
    /// From the wire: too short or malformed for ESP.
    MalformedEsp = "malformed_esp",
    /// From the wire: no SA has this SPI.
    UnknownSpi = "unknown_spi",
    /// From the wire: older than the replay window.
    ReplayTooOld = "replay_too_old",
    /// From the wire: a sequence number seen before.
    Replayed = "replayed",
    /// From the wire: the integrity check failed.
    AuthenticationFailed = "authentication_failed",
    /// From the wire: authentic, but padding or trailer are not as RFC 4303 has them.
    BadTrailer = "bad_trailer",
    /// From the wire: not UDP to port 4789 with a valid VXLAN header inside.
    MalformedVxlan = "malformed_vxlan",
    /// From the wire: authentic, but for another network's VNI than the SA's.
    WrongVni = "wrong_vni",
    /// From the wire: plaintext VXLAN for an encrypted network.
    PlaintextForEncryptedNetwork = "plaintext_for_encrypted_network",
    /// From the wire: plaintext VXLAN for a VNI that this node has not.
    UnknownVni = "unknown_vni",
    /// From the wire: plaintext VXLAN from an address that is no member's.
    UnknownVtep = "unknown_vtep",
    /// From the wire: the inner source MAC is not placed on the sending peer.
    PeerMacSpoofed = "peer_mac_spoofed",
    /// From the wire: the inner source IP address is not placed on the sending peer.
    PeerIpSpoofed = "peer_ip_spoofed",
    /// From the wire: an ARP or neighbour message with a sender that is not placed on the peer.
    PeerNeighborSpoofed = "peer_neighbor_spoofed",
    /// From the wire: congestion was marked on the way, and the inner packet's sender knows no ECN.
    EcnIncapable = "ecn_incapable",
    /// From the wire: the inner destination is not an endpoint of this node; there is no transit.
    NotLocal = "not_local",
    /// From the wire: a frame of a kind that never crosses the overlay (ARP, router messages, a second VLAN tag,
    /// a provider's).
    ForbiddenInner = "forbidden_inner",
}

impl DropReason {
    /// The index of the reason's counter.
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indexes_match() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(!reason.explanation().is_empty());
        }
    }
}
