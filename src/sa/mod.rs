//! Security associations: one direction of one lane of one peer and network (RFC 4301, RFC 4303).
//!
//! An [`OutboundSa`] seals inner UDP datagrams into ESP packets in place, an [`InboundSa`] opens
//! them; [`key_schedule`] makes their keys out of one key exchange. Not here: who negotiates
//! ([`crate::negotiate`]), the UDP and IP headers around ESP (the socket), the VXLAN inside
//! (`wire`). Each SA belongs to one lane and is touched by no other thread, so nothing here locks.
//!
//! ```text
//!  0  4  SPI                                          \ additional authenticated data
//!  4  4  sequence number, 1 for the first packet      /
//!  8  8  IV = packet counter; nonce = salt[4] || IV[8] (RFC 4106 §4, RFC 7634 §2)
//! 16  n  inner UDP datagram                           \
//!     p  padding 1, 2, 3: (n + p + 2) mod 4 == 0      | encrypted
//!     1  p    1  next header = 17                     /
//!    16  ICV
//! ```

#[cfg_attr(overlayd_null_aead, path = "null_aead.rs")]
pub(crate) mod aead;
pub(crate) mod counter;
pub mod inbound;
pub mod key_schedule;
pub mod limits;
pub mod outbound;
pub mod replay;
mod stack;
pub mod suite;

pub use inbound::{Authenticated, InboundSa};
pub use limits::{LimitOverrides, Limits};
pub use outbound::{OutboundSa, Sealed};
pub use replay::ReplayWindow;
pub use suite::{KeyMaterial, Suite};

/// Whether packets are encrypted: in every build but one with `--cfg overlayd_null_aead`, which is for
/// measuring what the ciphers cost and for nothing else.
pub const ENCRYPTS: bool = cfg!(not(overlayd_null_aead));

/// Bytes before the inner datagram: SPI, sequence number and IV.
pub const HEADER_LEN: usize = 16;

/// The most bytes that sealing adds after the inner datagram: padding, trailer and ICV.
pub const MAX_TRAILER_LEN: usize = 3 + TRAILER_LEN + aead::TAG_LEN;

/// Packets after which a new SA is asked for again: who is told may be too busy to hear of it, and from
/// the soft limit of AES-GCM to the hard one there are 128 times as many.
const REPORT_AGAIN: u64 = 1 << 20;

/// Padding length and next header.
const TRAILER_LEN: usize = 2;

/// The padding bytes of RFC 4303 §2.4, as far as anyone may use them.
const PADDING: [u8; 255] = {
    let mut padding = [0u8; 255];
    let mut value = 0u8;
    while value < 255 {
        padding[value as usize] = value + 1;
        value += 1;
    }
    padding
};

/// The next header of a transport mode SA that carries UDP.
const NEXT_HEADER_UDP: u8 = 17;

/// The next header of a dummy packet (RFC 4303 §2.6).
const NEXT_HEADER_NONE: u8 = 59;
