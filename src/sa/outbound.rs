//! The sending end of one SA: it turns an inner UDP datagram into an ESP packet, in place.

use std::fmt;

use super::aead::{Aead, TAG_LEN};
use super::counter::Counter;
use super::limits::Limits;
use super::stack::made_on_heap;
use super::suite::{KeyMaterial, Suite};
use super::{HEADER_LEN, NEXT_HEADER_UDP, PADDING, REPORT_AGAIN, TRAILER_LEN};
use crate::boot_time::BootTime;
use crate::drop_reason::DropReason;
use crate::id::Spi;

/// One outbound SA, owned by one lane. At a hard limit it seals nothing any more, for ever.
pub struct OutboundSa {
    spi: Spi,
    suite: Suite,
    counter: Counter,
    aead: Aead,
    limits: Limits,
    created: BootTime,
    expires_at: BootTime,
    packets: u64,
    bytes: u64,
    /// Packets before which no new SA is asked for, whatever limit has been crossed.
    next_report: u64,
}

impl OutboundSa {
    /// An SA that has sent nothing; limits above the suite's standard are cut to it.
    pub fn new(spi: Spi, key: KeyMaterial, limits: Limits, now: BootTime) -> Box<Self> {
        let suite = key.suite();
        let limits = limits.lowered_to(Limits::standard(suite));
        made_on_heap(|| Self {
            spi,
            suite,
            counter: Counter::new(key.salt()),
            aead: Aead::new(&key),
            limits,
            created: now,
            expires_at: now + limits.hard_age,
            packets: 0,
            bytes: 0,
            next_report: 0,
        })
    }

    /// Seals the inner datagram `packet[16..16 + plain_len]`: writes the ESP header and IV before
    /// it, padding, trailer and ICV after it. `packet` has room for [`super::MAX_TRAILER_LEN`]
    /// bytes more than the datagram.
    ///
    /// # Errors
    /// `SaExpired` and `SaExhausted` at the hard limits, `FrameTooBig` if `packet` is too short.
    /// Nothing is sent and no sequence number used up then.
    #[inline]
    pub fn seal(&mut self, now: BootTime, packet: &mut [u8], plain_len: usize) -> Result<Sealed, DropReason> {
        if now >= self.expires_at {
            return Err(DropReason::SaExpired);
        }
        let pad_len = (4 - (plain_len + TRAILER_LEN) % 4) % 4;
        let body_end = HEADER_LEN + plain_len + pad_len + TRAILER_LEN;
        let len = body_end + TAG_LEN;
        let packet = packet.get_mut(..len).ok_or(DropReason::FrameTooBig)?;
        let bytes = self.bytes + len as u64;
        if self.packets >= self.limits.hard_packets || bytes > self.limits.hard_bytes {
            return Err(DropReason::SaExhausted);
        }
        let nonce = self.counter.mint().ok_or(DropReason::SaExhausted)?;

        packet[..4].copy_from_slice(&self.spi.get().to_be_bytes());
        packet[4..8].copy_from_slice(&nonce.sequence().to_be_bytes());
        packet[8..HEADER_LEN].copy_from_slice(&nonce.iv());
        let pad_start = HEADER_LEN + plain_len;
        packet[pad_start..pad_start + pad_len].copy_from_slice(&PADDING[..pad_len]);
        packet[body_end - 2] = pad_len.to_le_bytes()[0];
        packet[body_end - 1] = NEXT_HEADER_UDP;

        let (header, rest) = packet.split_at_mut(HEADER_LEN);
        let (body, icv) = rest.split_at_mut(body_end - HEADER_LEN);
        let tag = self.aead.seal(nonce, &header[..8], body).map_err(|_| DropReason::FrameTooBig)?;
        icv.copy_from_slice(&tag);
        self.packets += 1;
        self.bytes = bytes;
        Ok(Sealed { len })
    }

    /// True when a soft limit of packets or bytes has been crossed, and again every 2^20 packets.
    #[inline]
    pub fn wants_rekey(&mut self) -> bool {
        let crossed = self.packets >= self.limits.soft_packets || self.bytes >= self.limits.hard_bytes / 2;
        let is_due = crossed && self.packets >= self.next_report;
        if is_due {
            self.next_report = self.packets + REPORT_AGAIN;
        }
        is_due
    }

    /// The receiver's SPI.
    pub const fn spi(&self) -> Spi {
        self.spi
    }

    /// The cipher.
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// Packets sealed.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Bytes of the ESP packets sealed.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the SA was made.
    pub const fn created(&self) -> BootTime {
        self.created
    }

    /// From when on nothing can be sealed.
    pub const fn expires_at(&self) -> BootTime {
        self.expires_at
    }
}

impl fmt::Debug for OutboundSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutboundSa({}, {}, {} packets, [redacted])", self.spi, self.suite, self.packets)
    }
}

/// Proof that a packet has been sealed, with its length from the SPI to the ICV. Only
/// [`OutboundSa::seal`] makes one, and a packet is sent only against one.
#[derive(Debug)]
#[must_use = "a sealed packet that is not sent is a hole in the sequence numbers"]
pub struct Sealed {
    len: usize,
}

impl Sealed {
    /// Bytes of the ESP packet.
    #[expect(clippy::len_without_is_empty, reason = "a sealed packet is never empty")]
    pub const fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_sa_is_asked_for_again_while_none_comes_long_before_the_hard_limit() {
        let key = KeyMaterial::new(Suite::Aes256Gcm, &[7; KeyMaterial::LEN]);
        let limits = Limits::standard(Suite::Aes256Gcm);
        let spi = Spi::new(0x1000).expect("no reserved SPI");
        let mut sa = OutboundSa::new(spi, key, limits, BootTime::default());
        let mut asked = Vec::new();
        for packets in (0..=limits.hard_packets).step_by(1 << 18) {
            sa.packets = packets;
            if sa.wants_rekey() {
                asked.push(packets);
            }
        }
        let expected: Vec<_> = (limits.soft_packets..=limits.hard_packets).step_by(1 << 20).collect();
        assert_eq!(asked, expected);
    }
}
