//! Streams and runs between two namespaces, compared byte by byte: kernels do not check what
//! super-frames carry.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use overlayd::io::netns::NetNs;
use overlayd::io::udp::{RecvRing, UdpOptions, UdpSocket};
use overlayd::lab::eventually;
use overlayd::wire::traffic_class::TrafficClass;

/// One TCP stream of `len` bytes.
pub(crate) fn assert_stream_is_intact(from: &NetNs, (to, to_ip): (&NetNs, IpAddr), len: usize) {
    let listener = to.run_in(|| TcpListener::bind((to_ip, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let sender = from.run_in(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes = noise(len);
    let mut arrived = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| { sender }.write_all(&bytes).unwrap());
        receiver.read_to_end(&mut arrived).unwrap();
    });
    assert!(arrived == bytes, "{} of {} bytes to {to_ip}, or others", arrived.len(), bytes.len());
}

/// A run of UDP datagrams that the kernel in `from` is to cut.
pub(crate) fn assert_run_is_intact(from: (&NetNs, IpAddr), to: (&NetNs, IpAddr)) {
    assert_run_is_intact_as(TrafficClass::ZERO, from, to);
}

/// The same with a traffic class, which arrives too.
pub(crate) fn assert_run_is_intact_as(
    class: TrafficClass,
    (from, from_ip): (&NetNs, IpAddr),
    (to, to_ip): (&NetNs, IpAddr),
) {
    let options = UdpOptions { coalescing: false, ..UdpOptions::default() };
    let receiver = to.run_in(|| UdpSocket::bind((to_ip, 0).into(), &options)).unwrap().unwrap();
    let sender = from.run_in(|| UdpSocket::bind((from_ip, 0).into(), &options)).unwrap().unwrap();
    let bytes = noise(30_300);
    let outcome = sender.send_run_as(receiver.local_addr().unwrap(), class, &bytes, 1_000).unwrap();
    assert_eq!(outcome.datagrams, 31);
    let (mut ring, mut arrived) = (RecvRing::new(), Vec::new());
    eventually(PATIENCE, || {
        while receiver.recv(&mut ring).unwrap() > 0 {
            for datagram in ring.datagrams() {
                assert_eq!(datagram.class, class);
                arrived.push(datagram.bytes.to_vec());
            }
        }
        arrived.len() >= 31
    });
    assert!(arrived.iter().eq(bytes.chunks(1_000)), "{} datagrams to {to_ip}", arrived.len());
}

/// Bytes that repeat nowhere near.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..len).map(|_| next()).collect()
}

const PATIENCE: Duration = Duration::from_secs(5);
