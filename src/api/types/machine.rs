//! What the kernel and the processors of a node do for its packets.

use serde::{Deserialize, Serialize};

/// What lanes ask of the processors while it pays: as configured, and where this machine has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProcessorStatus {
    /// For how long they poll at most before they sleep.
    pub busy_poll_microseconds: u64,
    /// Processors are kept awake while containers converse.
    pub keep_awake: bool,
    /// The agent weighs more than other sessions while it carries streams.
    pub streams_first: bool,
}

/// For how many sockets or TAPs of this node the kernel does something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadStatus {
    /// What.
    pub offload: Offload,
    /// Whether the configuration asks for it.
    pub wanted: bool,
    /// For how many it does it.
    pub used: u64,
    /// Of how many.
    pub of: u64,
}

/// What a kernel can do for many packets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// Sends a run of encrypted packets with one call (`UDP_SEGMENT`).
    EspSegmentation,
    /// Receives one with one call (`UDP_GRO`).
    EspCoalescing,
    /// As [`Self::EspSegmentation`], for unencrypted networks.
    VxlanSegmentation,
    /// As [`Self::EspCoalescing`], for unencrypted networks.
    VxlanCoalescing,
    /// Leaves checksums of what containers send to the agent.
    TapChecksum,
    /// Leaves TCP that containers send or receive in super-frames.
    TapTcp,
    /// The same for UDP.
    TapUdp,
}
