//! Who is where, and who may say what: the forwarding tables and the policy on frames.
//!
//! Pure and immutable: the agent builds a snapshot from what the manager says and publishes it;
//! lanes look at it once per batch. Nothing here moves a byte; that is `datapath`'s.

mod directory;
pub mod policy;
mod tables;

pub use directory::{Directory, EndpointSpec, Place, Remote, Row};
pub use tables::{Carrier, LinkRow, NetworkTable, PlainCarrier, PortRow, Tables, TablesBuilder, VtepRow};
