//! One lane: a thread that owns its queue of every TAP, its UDP sockets, its SAs and its buffers,
//! and runs each frame to completion.
//!
//! The datapath decides; the lane moves bytes. Commands of the control plane come through a
//! bounded ring and an eventfd, are carried out between batches, and are acknowledged when they are
//! in force. What control has to know comes back through another bounded ring. Started and stopped
//! by the agent.

mod busy_poll;
mod command;
mod contention;
mod courtesy;
mod event;
mod inventory;
mod lane;
mod moderation;
mod ports;
mod precedence;
mod reading;
mod turn;
mod vigil;
mod wish;

#[cfg(test)]
mod tests;

pub use busy_poll::longest_window;
pub use command::Command;
pub use event::{DataSocket, LaneEvent};
pub use inventory::Inventory;
pub use lane::{Lane, LaneConfig, LaneGone, spawn};
pub use precedence::{NICE, Precedence};
pub use vigil::{may_pay, pays};
pub use wish::Wish;

pub use crate::datapath::{Flood, FloodLimit, LaneCounters, PeerCounters, PortCounters, PortLimits};
