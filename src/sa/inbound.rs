//! The receiving end of one SA: it checks, opens and strips an ESP packet, in place.

use std::fmt;

use zeroize::Zeroizing;

use super::aead::{Aead, TAG_LEN};
use super::counter::nonce;
use super::limits::Limits;
use super::replay::ReplayWindow;
use super::stack::made_on_heap;
use super::suite::{KeyMaterial, SALT_LEN, Suite};
use super::{HEADER_LEN, NEXT_HEADER_NONE, NEXT_HEADER_UDP, PADDING, REPORT_AGAIN, TRAILER_LEN};
use crate::boot_time::BootTime;
use crate::drop_reason::DropReason;
use crate::id::Spi;

/// One inbound SA, owned by the lane that its SPI names.
pub struct InboundSa {
    spi: Spi,
    suite: Suite,
    salt: Zeroizing<[u8; SALT_LEN]>,
    aead: Aead,
    window: ReplayWindow,
    limits: Limits,
    created: BootTime,
    expires_at: BootTime,
    packets: u64,
    bytes: u64,
    failed_opens: u64,
    /// Failures before which no new SA is asked for.
    next_report: u64,
}

impl InboundSa {
    /// An SA that has received nothing. It outlives the sender's hard age by the linger time, so
    /// that no packet under way is lost to a difference of clocks.
    pub fn new(spi: Spi, key: KeyMaterial, limits: Limits, now: BootTime) -> Box<Self> {
        let suite = key.suite();
        let limits = limits.lowered_to(Limits::standard(suite));
        made_on_heap(|| Self {
            spi,
            suite,
            salt: key.salt(),
            aead: Aead::new(&key),
            window: ReplayWindow::new(),
            limits,
            created: now,
            expires_at: now + limits.hard_age + limits.linger,
            packets: 0,
            bytes: 0,
            failed_opens: 0,
            next_report: limits.failed_opens,
        })
    }

    /// Opens `packet`, from the SPI to the ICV. The IV is the one on the wire: the Linux kernel's
    /// own is not its sequence number (`crypto/seqiv.c`).
    ///
    /// # Errors
    /// The reason to drop it. An SA past its expiry answers `UnknownSpi`: it is gone but for the
    /// memory. Until the tag has verified nothing of the SA changes but the count of failures.
    #[inline]
    pub fn open<'p>(&mut self, now: BootTime, packet: &'p mut [u8]) -> Result<Authenticated<'p>, DropReason> {
        if now >= self.expires_at {
            return Err(DropReason::UnknownSpi);
        }
        let packet_len = packet.len() as u64;
        let (header, rest) = packet.split_first_chunk_mut::<HEADER_LEN>().ok_or(DropReason::MalformedEsp)?;
        let (body, icv) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(DropReason::MalformedEsp)?;
        if body.len() < TRAILER_LEN {
            return Err(DropReason::MalformedEsp);
        }
        let [_, _, _, _, s0, s1, s2, s3, iv @ ..] = *header;
        let sequence = u32::from_be_bytes([s0, s1, s2, s3]);
        self.window.check(sequence)?;
        if self.aead.open(nonce(&self.salt, iv), &header[..8], body, icv).is_err() {
            self.failed_opens += 1;
            return Err(DropReason::AuthenticationFailed);
        }
        self.window.accept(sequence);
        self.packets += 1;
        self.bytes += packet_len;
        let payload_len = payload_len(body)?;
        Ok(Authenticated { payload: &mut body[..payload_len] })
    }

    /// True when too many packets have failed the integrity check, and again every 2^20 that do.
    #[inline]
    pub fn wants_rekey(&mut self) -> bool {
        let is_due = self.failed_opens >= self.next_report;
        if is_due {
            self.next_report = self.failed_opens + REPORT_AGAIN;
        }
        is_due
    }

    /// Our SPI.
    pub const fn spi(&self) -> Spi {
        self.spi
    }

    /// The cipher.
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// Authentic packets.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Bytes of the authentic ESP packets.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Packets that failed the integrity check.
    pub const fn failed_opens(&self) -> u64 {
        self.failed_opens
    }

    /// When the SA was made.
    pub const fn created(&self) -> BootTime {
        self.created
    }

    /// From when on nothing is opened.
    pub const fn expires_at(&self) -> BootTime {
        self.expires_at
    }

    /// Moves the expiry, never beyond what the SA was made with.
    pub fn set_expiry(&mut self, at: BootTime) {
        self.expires_at = at.min(self.created + self.limits.hard_age + self.limits.linger);
    }
}

impl fmt::Debug for InboundSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InboundSa({}, {}, {} packets, [redacted])", self.spi, self.suite, self.packets)
    }
}

/// An authentic inner UDP datagram, header on, padding off. Only [`InboundSa::open`] makes one,
/// and delivery accepts nothing else.
#[derive(Debug)]
pub struct Authenticated<'p> {
    payload: &'p mut [u8],
}

impl<'p> Authenticated<'p> {
    /// The datagram.
    pub const fn payload(&self) -> &[u8] {
        self.payload
    }

    /// The datagram, to change in place.
    pub const fn into_payload(self) -> &'p mut [u8] {
        self.payload
    }
}

/// How much of a decrypted body is the inner datagram (RFC 4303 §2.4 to §2.7).
#[inline]
fn payload_len(body: &[u8]) -> Result<usize, DropReason> {
    let [data @ .., pad_len, next_header] = body else { return Err(DropReason::BadTrailer) };
    let pad_len = usize::from(*pad_len);
    let unpadded = data.len().checked_sub(pad_len).ok_or(DropReason::BadTrailer)?;
    if data[unpadded..] != PADDING[..pad_len] {
        return Err(DropReason::BadTrailer);
    }
    match *next_header {
        NEXT_HEADER_UDP => Ok(without_tfc_padding(&data[..unpadded])),
        NEXT_HEADER_NONE => Err(DropReason::NonEsp),
        _ => Err(DropReason::BadTrailer),
    }
}

/// Traffic flow confidentiality padding is what follows the end that the inner UDP header names.
/// A header that contradicts the length is left to the VXLAN parser to refuse.
#[inline]
fn without_tfc_padding(datagram: &[u8]) -> usize {
    match *datagram {
        [_, _, _, _, high, low, _, _, ..] => {
            let udp_len = usize::from(u16::from_be_bytes([high, low]));
            if udp_len >= UDP_HEADER_LEN { udp_len.min(datagram.len()) } else { datagram.len() }
        }
        _ => datagram.len(),
    }
}

const UDP_HEADER_LEN: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_sa_is_asked_for_again_while_none_comes_and_forgeries_go_on() {
        let key = KeyMaterial::new(Suite::Aes256Gcm, &[7; KeyMaterial::LEN]);
        let limits = Limits { failed_opens: 3, ..Limits::standard(Suite::Aes256Gcm) };
        let spi = Spi::new(0x1000).expect("no reserved SPI");
        let mut sa = InboundSa::new(spi, key, limits, BootTime::default());
        let mut asked = Vec::new();
        for failed_opens in [2, 3, 4, (1 << 20) + 2, (1 << 20) + 3, (1 << 20) + 4, 1 << 22] {
            sa.failed_opens = failed_opens;
            asked.push(sa.wants_rekey());
        }
        assert_eq!(asked, [false, true, false, false, true, false, true]);
    }
}
