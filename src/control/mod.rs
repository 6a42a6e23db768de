//! The control plane: certificates, managers, their API, state on disk.

pub mod state;
pub mod store;
