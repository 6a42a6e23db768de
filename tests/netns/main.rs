//! Whole agents on hosts of their own, each in namespaces: what a user sees of them.
//!
//! One program, because linking one takes long. Beside it are programs for what wants the machine for
//! itself, what brings an allocator, and what needs no agent.

#![expect(clippy::unwrap_used, reason = "this is how a test fails")]

mod address;
mod autolock;
mod backup;
mod bad_input;
mod ca;
mod certificates;
mod cni;
mod docker;
mod esp_wire;
mod etcd;
mod events;
mod fail_closed;
mod hostile;
mod keys;
mod labels;
mod lanes;
mod mtu;
mod offloads;
mod overlay;
mod rekey;
mod removal;
mod restart;
mod scale;
mod silence;
mod state;
#[path = "../support/mod.rs"]
mod support;
mod syscalls;
mod tutorial;
mod verify;
mod vlan;
mod vxlan_interop;

use support::test_program;

// What takes longest begins first.
test_program! {
    modules:
    rekey
    state
    address
    autolock
    backup
    bad_input
    ca
    certificates
    cni
    docker
    esp_wire
    etcd
    events
    fail_closed
    hostile
    keys
    labels
    lanes
    mtu
    offloads
    overlay
    removal
    restart
    scale
    silence
    syscalls
    tutorial
    verify
    vlan
    vxlan_interop
}
