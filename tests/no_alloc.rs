//! The way of a packet allocates nothing: a counting allocator watches warm lanes at work.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use overlayd::bench::pair::{self, NEIGHBOR_PORT, PLAIN, PLAIN_PORT, Pair};
use overlayd::datapath::{Admission, RateLimit, Shaper};
use overlayd::drop_reason::DropReason;
use overlayd::id::MacAddr;
use overlayd::sa::Suite;
use overlayd::wire::vnet_hdr::VnetHeader;
use overlayd::wire::{arp, checksum};

#[test]
fn sealing_and_opening_a_packet_allocates_nothing() {
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
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
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
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
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
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
fn answering_and_dropping_allocate_nothing() {
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
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
    // UDP with DF.
    let too_big = pair::frame(9_100);
    pair.send(&question, 1);
    pair.send(&spoofed, 1);
    pair.send(&too_big, 1);
    let allocations = allocations_during(|| {
        pair.send(&question, 100);
        pair.send(&spoofed, 100);
        pair.send(&too_big, 50);
    });
    assert_eq!((allocations, pair.answered(), pair.on_the_wire()), (0, 101 + 51, 0));
}

#[test]
fn the_plain_network_allocates_nothing_either() {
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
    let frame = pair::plain_frame(1_400, pair::mac(PLAIN + 1, 0));
    let (header, super_frame) = pair::super_frame_in(PLAIN, 30_000, 1_300);
    let mut both = || {
        pair.send_from(PLAIN_PORT, &VnetHeader::COMPLETE, &frame, 64);
        assert_eq!(pair.receive(), 64);
        pair.send_from(PLAIN_PORT, &header, &super_frame, 4);
        assert_eq!(pair.on_the_wire(), 4 * 24);
        assert_eq!(pair.receive(), 4, "merged again");
    };
    both();
    let allocations = allocations_during(|| (0..100).for_each(|_| both()));
    assert_eq!(allocations, 0);
}

#[test]
fn frames_to_the_container_next_door_allocate_nothing() {
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
    let neighbor = pair::mac(PLAIN, 1);
    let frame = pair::plain_frame(1_400, neighbor);
    let (header, mut super_frame) = pair::super_frame_in(PLAIN, 30_000, 1_300);
    super_frame[..6].copy_from_slice(&neighbor.octets());
    let mut both = || {
        pair.send_from(PLAIN_PORT, &VnetHeader::COMPLETE, &frame, 10);
        pair.send_from(PLAIN_PORT, &header, &super_frame, 10);
    };
    both();
    let allocations = allocations_during(|| (0..100).for_each(|_| both()));
    assert_eq!((allocations, pair.answered(), pair.on_the_wire()), (0, 101 * 20, 0));
    assert_eq!(pair.counters().port(NEIGHBOR_PORT).frames_received, 101 * 20);
}

#[test]
fn answering_a_neighbor_solicitation_allocates_nothing() {
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
    let (asker, target) = (pair::ip6(PLAIN, 0), pair::ip6(PLAIN + 1, 0));
    let [.., a, b, c] = target.octets();
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    group[11..].copy_from_slice(&[1, 0xff, a, b, c]);
    let mut message = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &[1, 1]].concat();
    message.extend(pair::mac(PLAIN, 0).octets());
    let sum = checksum::ipv6(asker, group.into(), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut question = [&[0x33, 0x33, 0xff, a, b, c][..], &pair::mac(PLAIN, 0).octets()].concat();
    question.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    question.extend([asker.octets(), group].concat());
    question.extend(message);
    let mut ask = || pair.send_from(PLAIN_PORT, &VnetHeader::COMPLETE, &question, 100);
    ask();
    assert_eq!(allocations_during(ask), 0);
    assert_eq!((pair.answered(), pair.on_the_wire()), (200, 0));
}

#[test]
fn dropping_what_comes_from_the_wire_allocates_nothing() {
    let mut pair = Pair::new(Suite::Aes256Gcm, 100);
    let frame = pair::frame(300);
    let plaintext = [&[8, 0, 0, 0, 0, 0, 7, 0][..], &frame].concat();
    let spoofed = [&[8, 0, 0, 0, 0, 0, 9, 0][..], &frame].concat();
    let mut all = || {
        pair.throw(&[0xff], 10);
        pair.throw(&[1; 9], 10);
        pair.throw(&[1; 99], 10);
        pair.throw(&plaintext, 10);
        pair.throw(&spoofed, 10);
        assert_eq!(pair.receive(), 0);
        pair.send(&frame, 10);
        assert_eq!(pair.receive_changed(|packet| packet[60] ^= 1), 0);
    };
    all();
    assert_eq!(allocations_during(|| (0..100).for_each(|_| all())), 0);
    for reason in [
        DropReason::NatKeepalive,
        DropReason::MalformedEsp,
        DropReason::UnknownSpi,
        DropReason::PlaintextForEncryptedNetwork,
        DropReason::PeerMacSpoofed,
        DropReason::AuthenticationFailed,
    ] {
        assert_eq!(pair.counters().dropped(reason), 101 * 10, "{reason:?}");
    }
}

#[test]
fn frames_that_wait_for_a_limit_allocate_nothing() {
    let rate = "10mbit".parse().expect("a rate");
    let mut shaper = Shaper::new(Arc::new(RateLimit::new(rate)));
    let mut now = pair::NOW;
    let mut refused = 0;
    let allocations = allocations_during(|| {
        for len in [1_400, 60, 60_000] {
            for _ in 0..4_000 {
                refused += u32::from(
                    shaper.admit(&VnetHeader::COMPLETE, &[&[0; 60_000][..len]], now) == Admission::Refuse,
                );
            }
            while let Some(at) = shaper.wakes_at() {
                now = now.max(at);
                shaper.release(now);
            }
        }
    });
    assert_eq!(allocations, 0);
    assert!(refused > 3_000, "{refused}: the queue was never full");
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
