//! The TLS port over loopback: who gets in, who does not, and that each refusal says its reason.

mod certificates;
mod cluster;
mod desk;
mod enrolment;
mod manager_api;
mod managers;
mod protocols;
mod rotation;
mod server;
mod stalled;
