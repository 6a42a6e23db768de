//! overlayd: an encrypted overlay network for containers.
//!
//! The pure core (`wire`, `sa`, `forward`, `datapath`, `negotiate`, `membership`) has no I/O, no
//! clock and no unsafe code; time and randomness are arguments. `io` holds every system call,
//! `worker` runs one lane on top of both, and `control`, `api`, `cli` and `agent` are the control
//! plane. ARCHITECTURE.md draws the picture.

pub mod agent;
pub mod api;
pub mod bench;
pub mod boot_time;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod datapath;
pub mod demo;
pub mod drop_reason;
pub mod events;
pub mod file_lock;
pub mod forward;
pub mod id;
pub mod io;
pub mod lab;
pub mod membership;
pub mod negotiate;
pub mod rate;
pub mod sa;
pub mod unlock_key;
pub mod wire;
pub mod worker;
