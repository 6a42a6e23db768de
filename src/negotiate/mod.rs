//! How two nodes that share an encrypted network agree on keys, and replace them in time.
//!
//! One [`Link`] per peer and network, a pure state machine: messages, timers and events go in
//! through `handle_*`, what to do comes out of [`Link::poll_action`] and [`Link::poll_timeout`].
//! It is not the channel (mutual TLS, the driver's), nor the SAs (each lane's own). The node with
//! the larger id connects, and it alone offers; the other may only ask, so two exchanges never
//! cross.
//!
//! ```text
//! initiator (larger id)                          responder
//!   offer   ----------------------------------->   installs its inbound SAs
//!           <-----------------------------------   answer
//!   installs both directions
//!   active  ----------------------------------->   installs its outbound SAs
//! ```
//!
//! The old inbound SAs live on for the linger time. `active` is repeated when a new channel comes
//! up, so that both always end with the same generation, wherever the last channel was cut.

pub mod action;
mod exchange;
pub mod machine;
pub mod message;
pub mod reason;
mod rekey;
pub mod spi_pool;

pub use action::{Action, Established, Install, LaneKey};
pub use machine::{Env, Link, LinkConfig, Standing};
pub use message::{ExchangeId, Hello, LinkFrame, MAX_FRAME_LEN, Message, MessageError, take_frame};
pub use reason::Reason;
pub use spi_pool::SpiPool;

#[cfg(test)]
mod tests;
