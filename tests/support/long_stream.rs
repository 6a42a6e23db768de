//! TCP streams between two containers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use overlayd::io::clock::boot_time;
use socket2::SockRef;

use super::swarm::{Attached, Family, PATIENCE};

/// A stream that runs until it is dropped, as fast as it can.
///
/// It is Reno's, which every kernel has: what a machine prefers may, as BBR does, take a busy machine's
/// long round trips for a slow network, and send less than it could.
pub(crate) struct Stream {
    receiver: TcpStream,
    octets: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    pub(crate) fn start(from: &Attached, to: &Attached) -> Self {
        let bind = || TcpListener::bind((to.address(Family::V4), 0)).unwrap();
        let listener = to.container.run_in(bind).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        let mut sender = from.container.run_in(connect).unwrap();
        SockRef::from(&sender).set_tcp_congestion(b"reno").unwrap();
        let (receiver, _) = listener.accept().unwrap();
        let octets = Arc::new(AtomicU64::new(0));
        let (mut reader, count) = (receiver.try_clone().unwrap(), Arc::clone(&octets));
        // Both end when the receiver is shut down.
        let pour = std::thread::spawn(move || while sender.write_all(&[0x5a; 1 << 16]).is_ok() {});
        let drain = std::thread::spawn(move || {
            let mut block = vec![0; 1 << 16];
            loop {
                match reader.read(&mut block) {
                    Ok(0) => break,
                    Ok(length) => drop(count.fetch_add(length as u64, Ordering::Relaxed)),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        });
        Self { receiver, octets, threads: vec![pour, drain] }
    }

    /// Bits per second of what it carries during `time`, after another.
    pub(crate) fn rate(&self, settled: Duration, time: Duration) -> u64 {
        std::thread::sleep(settled);
        let read = || (boot_time(), self.octets.load(Ordering::Relaxed));
        let (begin, before) = read();
        std::thread::sleep(time);
        let (end, after) = read();
        assert!(self.threads.iter().all(|thread| !thread.is_finished()), "the stream has ended");
        (after - before) * 8 * 1_000_000 / u64::try_from(end.since(begin).as_micros()).unwrap()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.receiver.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
