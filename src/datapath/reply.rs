//! Answers to ARP and neighbour discovery, made from the table instead of asking around.
//!
//! Called by `datapath::egress` with a question that `forward::policy` found honest.

use std::net::Ipv4Addr;

use crate::drop_reason::DropReason;
use crate::forward::policy::Question;
use crate::forward::{Directory, Remote};
use crate::id::MacAddr;
use crate::wire::{arp, ndp};

/// Room for the longest answer.
pub(super) type ReplyBuffer = [u8; REPLY_ROOM];

pub(super) const EMPTY_REPLY: ReplyBuffer = [0; REPLY_ROOM];

/// Writes the answer to `asker`'s question; its length, or `None` where silence is the answer that
/// duplicate address detection hopes for.
pub(super) fn answer<R: Remote>(
    directory: &Directory<R>,
    asker: MacAddr,
    question: Question,
    reply: &mut ReplyBuffer,
) -> Result<Option<usize>, DropReason> {
    match question {
        Question::Arp(request) => {
            let Some(owner) = directory.by_ip(request.target_ip.into()) else {
                return unknown(request.sender_ip == Ipv4Addr::UNSPECIFIED);
            };
            request.answer(owner.mac()).write_frame(asker, reply);
            Ok(Some(arp::REPLY_LEN))
        }
        Question::Solicitation { asker_ip, target } => {
            let Some(owner) = directory.by_ip(target.into()) else {
                return unknown(asker_ip.is_unspecified());
            };
            let (owner, router) = (owner.mac(), owner.is_gateway());
            ndp::Advertisement { target, owner, router, asker, asker_ip }.write_frame(reply);
            Ok(Some(ndp::ADVERTISEMENT_LEN))
        }
    }
}

fn unknown(is_detection: bool) -> Result<Option<usize>, DropReason> {
    if is_detection { Ok(None) } else { Err(DropReason::UnknownNeighbor) }
}

const REPLY_ROOM: usize = 96;
