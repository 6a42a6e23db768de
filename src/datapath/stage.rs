//! Where a container's frame is read to: its beginning at its final offset in the arena, and what is
//! longer than the network's MTU behind a buffer that then takes the whole.
//!
//! A frame of ordinary length is so sealed where it was read; a super-frame, which has to be cut
//! anyhow, is completed here by copying the beginning alone. Owned by `datapath::egress`.

use super::MAX_FRAME_LEN;

/// The place of one frame, in two parts.
#[derive(Debug)]
pub struct Place<'a> {
    /// Its beginning.
    pub head: &'a mut [u8],
    /// What does not fit there.
    pub rest: &'a mut [u8],
}

impl Place<'_> {
    /// Copies a whole frame in, for those who have it already.
    ///
    /// # Panics
    /// When it is longer than a super-frame may be.
    pub fn fill(self, frame: &[u8]) {
        let (head, rest) = frame.split_at(frame.len().min(self.head.len()));
        self.head[..head.len()].copy_from_slice(head);
        self.rest[..rest.len()].copy_from_slice(rest);
    }
}

/// The buffer of super-frames.
#[derive(Debug)]
pub(super) struct Stage {
    bytes: Box<[u8]>,
    /// How much of the frame is read elsewhere.
    head_len: usize,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; MAX_SUPER_FRAME_LEN].into(), head_len: 0 }
    }

    /// The place of a frame whose beginning goes to `head`.
    pub(super) fn place<'a>(&'a mut self, head: &'a mut [u8]) -> Place<'a> {
        self.head_len = head.len();
        Place { rest: &mut self.bytes[head.len()..], head }
    }

    /// Whether a frame of `frame_len` bytes lies in the head of the last place alone.
    pub(super) fn is_spared(&self, frame_len: usize) -> bool {
        frame_len <= self.head_len
    }

    /// How much of a frame lies in the head of the last place.
    pub(super) fn head_len(&self, frame_len: usize) -> usize {
        frame_len.min(self.head_len)
    }

    /// The frame that was gathered last.
    pub(super) fn gathered(&self, frame_len: usize) -> &[u8] {
        &self.bytes[..frame_len]
    }

    /// The whole frame, of which `head` was read elsewhere.
    pub(super) fn gather(&mut self, head: &[u8], frame_len: usize) -> &[u8] {
        self.bytes[..head.len()].copy_from_slice(head);
        &self.bytes[..frame_len]
    }
}

/// The longest super-frame (`GSO_LEGACY_MAX_SIZE` of Linux, which tun.c keeps to) with Ethernet header
/// and VLAN tag, and no less than the longest frame.
const MAX_SUPER_FRAME_LEN: usize = (1 << 16) + 18;

const _: () = assert!(MAX_SUPER_FRAME_LEN > MAX_FRAME_LEN);
