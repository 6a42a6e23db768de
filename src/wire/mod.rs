//! Wire formats: parsing and writing of every header that a lane reads or makes.
//!
//! One file per header, with the RFC's byte diagram. Parsing never allocates, never panics and
//! never trusts a length; writing goes to a caller's buffer at its final offset. What a packet is
//! *allowed* to say is not decided here but in `forward::policy`. Called by `datapath` and, for
//! the arithmetic of sizes, by whoever sets an MTU.

pub mod arp;
pub mod checksum;
pub mod esp;
pub mod ethernet;
pub mod frame;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod mss;
pub mod ndp;
pub mod traffic_class;
pub mod transport;
pub mod udp;
pub mod vnet_hdr;
pub mod vxlan;

/// The bytes contradict their own format or are too short for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes contradict their own format")]
pub struct Malformed;

/// `N` octets of `bytes` from `offset` on, if they are there.
fn octets<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Malformed> {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).copied().ok_or(Malformed)
}

/// Writes `octets` into `bytes` at `offset`.
///
/// # Panics
/// Where the buffer is too short: writers size their buffers by the constants of their header.
fn put<const N: usize>(bytes: &mut [u8], offset: usize, octets: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&octets);
}
