//! The way of a packet allocates nothing: a counting allocator watches warm lanes at work.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

#[path = "../benches/pair/mod.rs"]
mod pair;

use overlayd::id::MacAddr;
use overlayd::wire::arp;
use pair::Pair;

#[test]
fn sealing_and_opening_a_packet_allocates_nothing() {
    let mut pair = Pair::new(100);
    let frame = pair::frame(1400);
    pair.send(&frame, 64);
    assert_eq!(pair.receive(), 64, "warm");
    let allocations = allocations_during(|| {
        for _ in 0..100 {
            pair.send(&frame, 64);
            assert_eq!(pair.receive(), 64);
        }
    });
    assert_eq!(allocations, 0);
}

#[test]
fn cutting_and_merging_a_super_frame_allocates_nothing() {
    let mut pair = Pair::new(100);
    let (header, frame) = pair::super_frame(30_000, 1_300);
    pair.send_as(&header, &frame, 4);
    assert_eq!(pair.on_the_wire(), 4 * 24);
    assert_eq!(pair.receive(), 4, "merged again");
    let allocations = allocations_during(|| {
        for _ in 0..100 {
            pair.send_as(&header, &frame, 4);
            assert_eq!(pair.receive(), 4);
        }
    });
    assert_eq!(allocations, 0);
}

#[test]
fn flooding_allocates_nothing() {
    let mut pair = Pair::new(100);
    let frame = pair::broadcast(300);
    pair.send(&frame, 1);
    assert_eq!(pair.receive(), 1, "warm");
    let allocations = allocations_during(|| {
        pair.send(&frame, 200);
        assert_eq!(pair.receive(), 200);
    });
    assert_eq!(allocations, 0);
}

#[test]
fn answering_arp_and_dropping_allocate_nothing() {
    let mut pair = Pair::new(100);
    let mut question = [0; arp::REPLY_LEN];
    arp::Packet {
        operation: arp::Operation::Request,
        sender_mac: pair::mac(0, 0),
        sender_ip: pair::ip(0, 0),
        target_mac: MacAddr::new([0; 6]),
        target_ip: pair::ip(1, 50),
    }
    .write_frame(MacAddr::BROADCAST, &mut question);
    let mut spoofed = pair::frame(100);
    spoofed[6] ^= 4;
    pair.send(&question, 1);
    pair.send(&spoofed, 1);
    let allocations = allocations_during(|| {
        pair.send(&question, 100);
        pair.send(&spoofed, 100);
    });
    assert_eq!((allocations, pair.answered(), pair.on_the_wire()), (0, 101, 0));
}

#[test]
fn allocations_are_seen_at_all() {
    assert_eq!(allocations_during(|| drop(std::hint::black_box(vec![1u8; 10]))), 1);
}

fn allocations_during(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

thread_local! {
    // Tests run on threads of their own, and so count for themselves.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged; the count touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
