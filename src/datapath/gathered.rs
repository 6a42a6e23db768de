//! The super-frames of a batch, which go to their containers together when all of it has been opened.
//!
//! Each frame that is written to a TAP wakes whoever waits for it in the container. Where processors are
//! shared the program reads it at once and sleeps again, and both are woken for every single super-frame;
//! frames that follow each other closely find it still at work on the one before. Nothing is copied and
//! nothing allocated. Owned by `coalesce`.

use arrayvec::ArrayVec;

use super::coalesce::MAX_SEGMENTS;
use super::egress::deliver;
use super::{Context, Outlet};
use crate::id::PortSlot;
use crate::wire::vnet_hdr::VnetHeader;

/// What is finished and has not been written yet; `'p` is the batch.
#[derive(Debug, Default)]
pub(super) struct Gathered<'p> {
    /// The pieces of one frame behind those of another, last those of one that is begun.
    pieces: ArrayVec<&'p [u8], PIECES>,
    frames: ArrayVec<Finished, FRAMES>,
}

impl<'p> Gathered<'p> {
    /// Whether one more frame can be begun.
    pub(super) fn has_room(&self) -> bool {
        !self.frames.is_full() && self.pieces.remaining_capacity() >= MAX_SEGMENTS
    }

    /// Begins a frame, whose head is known when it is finished.
    pub(super) fn begin(&mut self) {
        self.pieces.push(&[]);
    }

    /// Adds a piece to the frame that is begun, of [`MAX_SEGMENTS`] at most.
    #[inline]
    pub(super) fn add(&mut self, piece: &'p [u8]) {
        self.pieces.push(piece);
    }

    /// Finishes the frame that is begun.
    pub(super) fn finish(&mut self, port: PortSlot, head: &'p [u8], header: VnetHeader) {
        let start = self.frames.last().map_or(0, |frame| frame.end);
        self.pieces[start] = head;
        self.frames.push(Finished { port, header, end: self.pieces.len() });
    }

    /// Hands over what is finished, in its order; no frame is begun.
    pub(super) fn deliver(&mut self, cx: &Context<'_>, outlet: &mut impl Outlet) {
        let mut start = 0;
        for Finished { port, header, end } in self.frames.drain(..) {
            deliver(cx, port, &header, &self.pieces[start..end], outlet);
            start = end;
        }
        self.pieces.clear();
    }
}

#[derive(Debug)]
struct Finished {
    port: PortSlot,
    header: VnetHeader,
    /// Where its pieces end.
    end: usize,
}

/// Those of a batch of the longest frames.
const PIECES: usize = 4 * MAX_SEGMENTS;
/// More are short ones, for which it does not pay to wait.
const FRAMES: usize = 16;
