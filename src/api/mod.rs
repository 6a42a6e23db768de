//! The agent's unix socket: HTTP/1.1 with JSON bodies, for the command line, plugins and scrapers.
//!
//! Every call is `POST /v1/<name>` with the JSON of one request type of [`types`] and answers with
//! the JSON of its response type, or with an [`ApiError`]; `GET /metrics` is for Prometheus. It is
//! no network API: who may call is decided by the socket file's owner and group, and checked again
//! by the kernel's word on who is at the other end. The agent implements [`Backend`] and calls
//! [`serve`]; the command line uses [`Client`].

mod client;
pub mod docker;
mod error;
mod events;
mod metrics;
mod server;
mod socket;
#[cfg(test)]
mod tests;
pub mod types;

pub use client::{Client, ClientError, EventStream};
pub use error::{ApiError, ErrorKind};
pub use metrics::serve as serve_metrics;
pub use server::{Backend, serve};
pub use socket::{ApiListener, SocketError};

/// What the program says that it is.
pub const VERSION: &str = if crate::sa::ENCRYPTS {
    env!("CARGO_PKG_VERSION")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " UNSAFE: ENCRYPTS NOTHING")
};
