//! A TCP stream between two containers, measured where it arrives once it has found its pace.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use overlayd::io::clock::boot_time;
use socket2::SockRef;

use super::swarm::{Attached, Family, PATIENCE};

/// Bits per second of what the stream carries, during `time`.
///
/// It is Reno's, which every kernel has: what a machine prefers may, as BBR does, take a busy machine's
/// long round trips for a slow network, and send less than it could.
pub(crate) fn stream_rate(from: &Attached, to: &Attached, time: Duration) -> u64 {
    let bind = || TcpListener::bind((to.address(Family::V4), 0)).unwrap();
    let listener = to.container.run_in(bind).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    let mut sender = from.container.run_in(connect).unwrap();
    SockRef::from(&sender).set_tcp_congestion(b"reno").unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::scope(|scope| {
        // It ends when the receiver has closed.
        scope.spawn(move || while sender.write_all(&[0x5a; 1 << 16]).is_ok() {});
        let (begin, mut block, mut octets) = (boot_time() + WARM, vec![0; 1 << 16], 0);
        loop {
            let length = match receiver.read(&mut block) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                length => length.unwrap(),
            };
            assert!(length > 0, "the sender has given up");
            let now = boot_time();
            if now >= begin + time {
                receiver.shutdown(Shutdown::Both).unwrap();
                drop(receiver);
                return octets * 8 * 1_000 / u64::try_from(time.as_millis()).unwrap();
            }
            octets += if now >= begin { length as u64 } else { 0 };
        }
    })
}

const WARM: Duration = Duration::from_secs(1);
