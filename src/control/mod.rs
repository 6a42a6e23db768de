//! The control plane: certificates, managers, their API, state on disk.

mod attempts;
pub mod ca;
pub mod enrol;
pub mod former;
pub mod frame;
pub mod identity;
pub mod key_channel;
pub mod listener;
mod refusal_log;
pub mod renewal;
pub mod rpc;
pub mod session;
pub mod state;
pub mod store;
pub mod tls;
pub mod trust;
