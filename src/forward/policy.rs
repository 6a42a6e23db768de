//! What an endpoint may send, and what a peer may send on behalf of its endpoints.
//!
//! Outward, a container speaks with its own MAC and IP addresses only, and never as a router.
//! Inward, the same is demanded of the peer that the claimed endpoint is placed on; in addition
//! router messages never cross the wire, and ARP and solicitations only where the other end may be
//! no agent ([`Remote::MAY_ASK`]), because every agent answers them itself. A gateway forwards
//! packets from outside the network, but not in the name of the network's other endpoints, and it
//! speaks ARP and neighbour discovery for itself alone. Pure: rows come from the tables, the frame
//! from `wire`. Called by `datapath`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::directory::{Directory, Place, Remote, Row};
use crate::drop_reason::DropReason;
use crate::id::MacAddr;
use crate::wire::arp;
use crate::wire::frame::{Content, Frame};
use crate::wire::ndp::Message;

/// What becomes of a frame that its sender was entitled to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outward {
    /// It goes where its destination MAC says.
    Forward,
    /// It asks for a neighbour, which the table answers.
    Ask(Question),
    /// It tells what the table knows already; nobody needs it.
    Absorb,
}

/// A question for a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// An ARP request or probe.
    Arp(arp::Packet),
    /// A neighbour solicitation.
    Solicitation {
        /// Who asks; `::` in duplicate address detection.
        asker_ip: Ipv6Addr,
        /// The address asked for.
        target: Ipv6Addr,
    },
}

/// Judges a frame that the endpoint `row` of this node sent; `directory` is its network's.
///
/// # Errors
/// When the endpoint may not send it, by name.
pub fn outward<R: Remote>(
    directory: &Directory<R>,
    row: &Row<R>,
    frame: &Frame,
) -> Result<Outward, DropReason> {
    if frame.source != row.mac() {
        return Err(DropReason::SourceMacSpoofed);
    }
    match frame.content {
        Content::Unsupported => Err(DropReason::UnsupportedEthertype),
        Content::Ipv4(packet) => {
            permit(may_send_from(directory, row, packet.source.into()), DropReason::SourceIpSpoofed)?;
            Ok(Outward::Forward)
        }
        Content::Ipv6 { source, listener_report, .. } => {
            let is_report = listener_report && source.is_unspecified();
            permit(is_report || may_send_from(directory, row, source.into()), DropReason::SourceIpSpoofed)?;
            Ok(Outward::Forward)
        }
        Content::Arp(packet) => outward_arp(row, packet),
        Content::Discovery { source, message } => outward_discovery(row, source, message),
    }
}

/// Judges a frame that came from the wire; `from` is the link or VTEP that brought it.
///
/// # Errors
/// When the sender may not send it, by name.
pub fn inward<R: Remote>(directory: &Directory<R>, from: R, frame: &Frame) -> Result<(), DropReason> {
    let row = directory.by_mac_at(frame.source, Place::Remote(from)).ok_or(DropReason::PeerMacSpoofed)?;
    match frame.content {
        Content::Unsupported => Err(DropReason::ForbiddenInner),
        Content::Arp(packet) => {
            permit(R::MAY_ASK, DropReason::ForbiddenInner)?;
            permit(is_own_arp(row, packet), DropReason::PeerNeighborSpoofed)
        }
        Content::Ipv4(packet) => {
            permit(may_send_from(directory, row, packet.source.into()), DropReason::PeerIpSpoofed)
        }
        Content::Ipv6 { source, listener_report, .. } => {
            let is_report = listener_report && source.is_unspecified();
            permit(is_report || may_send_from(directory, row, source.into()), DropReason::PeerIpSpoofed)
        }
        Content::Discovery { source, message } => match message {
            Message::NeighborAdvertisement { target, target_link } => permit(
                row.has(source.into()) && row.has(target.into()) && is_own_link(row, target_link),
                DropReason::PeerNeighborSpoofed,
            ),
            Message::NeighborSolicitation { source_link, .. } => {
                permit(R::MAY_ASK, DropReason::ForbiddenInner)?;
                permit(is_own_solicitation(row, source, source_link), DropReason::PeerNeighborSpoofed)
            }
            Message::Invalid => Err(DropReason::PeerNeighborSpoofed),
            Message::RouterSolicitation | Message::RouterAdvertisement | Message::Redirect => {
                Err(DropReason::ForbiddenInner)
            }
        },
    }
}

fn outward_arp<R: Remote>(row: &Row<R>, packet: arp::Packet) -> Result<Outward, DropReason> {
    permit(is_own_arp(row, packet), DropReason::NeighborSpoofed)?;
    Ok(match packet.operation {
        arp::Operation::Request if !row.has(packet.target_ip.into()) => Outward::Ask(Question::Arp(packet)),
        arp::Operation::Reply if R::MAY_ASK => Outward::Forward,
        arp::Operation::Request | arp::Operation::Reply => Outward::Absorb,
    })
}

fn outward_discovery<R: Remote>(
    row: &Row<R>,
    source: Ipv6Addr,
    message: Message,
) -> Result<Outward, DropReason> {
    let is_own = row.has(source.into());
    match message {
        Message::NeighborSolicitation { target, source_link } => {
            permit(is_own_solicitation(row, source, source_link), DropReason::NeighborSpoofed)?;
            if row.has(target.into()) {
                return Ok(Outward::Absorb);
            }
            Ok(Outward::Ask(Question::Solicitation { asker_ip: source, target }))
        }
        Message::NeighborAdvertisement { target, target_link } => {
            let is_honest = is_own && row.has(target.into()) && is_own_link(row, target_link);
            permit(is_honest, DropReason::NeighborSpoofed)?;
            Ok(Outward::Forward)
        }
        // The overlay has no routers: the question is for an address that nobody has.
        Message::RouterSolicitation => Err(DropReason::UnknownNeighbor),
        Message::RouterAdvertisement | Message::Redirect => Err(DropReason::RogueRouterMessage),
        Message::Invalid => Err(DropReason::NeighborSpoofed),
    }
}

/// Whether an endpoint may send a packet from `source`: one of its own addresses or, if it is a
/// gateway, an address outside the network.
fn may_send_from<R: Remote>(directory: &Directory<R>, row: &Row<R>, source: IpAddr) -> bool {
    row.has(source) || row.is_gateway() && is_forwardable(source) && directory.by_ip(source).is_none()
}

/// Whether a router may forward a packet from `source` (RFC 1812 §5.3.7, RFC 4291
/// §2.5).
const fn is_forwardable(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(ip) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
        }
        IpAddr::V6(ip) => {
            !(ip.is_unspecified() || ip.is_loopback() || ip.is_unicast_link_local() || ip.is_multicast())
        }
    }
}

/// Whether an ARP packet speaks of its sender alone; a probe names no sender address (RFC 5227).
fn is_own_arp<R: Remote>(row: &Row<R>, packet: arp::Packet) -> bool {
    let is_probe = packet.operation == arp::Operation::Request && packet.sender_ip == Ipv4Addr::UNSPECIFIED;
    packet.sender_mac == row.mac() && (is_probe || row.has(packet.sender_ip.into()))
}

/// Whether a solicitation speaks of its sender alone; duplicate address detection comes from `::`
/// and names no link-layer address (RFC 4861 §7.1.1).
fn is_own_solicitation<R: Remote>(row: &Row<R>, source: Ipv6Addr, source_link: Option<MacAddr>) -> bool {
    let is_detection = source.is_unspecified() && source_link.is_none();
    is_detection || row.has(source.into()) && is_own_link(row, source_link)
}

fn is_own_link<R: Remote>(row: &Row<R>, link: Option<MacAddr>) -> bool {
    link.is_none_or(|mac| mac == row.mac())
}

fn permit(is_permitted: bool, otherwise: DropReason) -> Result<(), DropReason> {
    if is_permitted { Ok(()) } else { Err(otherwise) }
}
