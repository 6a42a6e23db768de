//! The manager API: gRPC over mutual TLS, with JSON messages so that `messages` is its only schema.
//!
//! `server` admits and forwards to whoever implements [`ManagerApi`]; `client` is what agents call.
//! Neither knows what the requests mean. The session stream is driven by `control::session`.

pub mod client;
pub mod codec;
mod dialer;
pub mod error;
pub mod messages;
pub mod pieces;
pub mod server;

pub use self::client::ManagerClient;
pub use self::error::{ErrorKind, ManagerError};
pub use self::server::{ManagerApi, Updates, serve};

/// What `build.rs` generated.
#[expect(unreachable_pub, reason = "generated: tonic-build makes everything pub")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/overlayd.v1.Manager.rs"));
}
