//! Traffic between two namespaces, measured: one TCP stream, or a burst of UDP datagrams.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::LabError;
use crate::io::clock::boot_time;
use crate::io::netns::NetNs;

/// What one TCP stream carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpReport {
    /// Bytes that the receiver read.
    pub bytes: u64,
    /// From the connection to the last byte.
    pub elapsed: Duration,
}

impl TcpReport {
    /// The rate at the receiver, in bits per second.
    pub fn bits_per_second(&self) -> u64 {
        let nanos = self.elapsed.as_nanos().max(1);
        u64::try_from(u128::from(self.bytes) * 8 * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
    }
}

/// Sends as much as one TCP stream carries from `from` to `to`, which has the address `to_ip`.
///
/// # Errors
/// When it cannot be connected within 5 s, or stands still for 5 s.
pub fn tcp_throughput(
    from: &NetNs,
    to: &NetNs,
    to_ip: IpAddr,
    duration: Duration,
) -> Result<TcpReport, LabError> {
    let failed = |source| LabError::Socket { what: "TCP stream", source };
    let listener = to.run_in(|| TcpListener::bind(SocketAddr::new(to_ip, 0)))?.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let sender = from.run_in(|| TcpStream::connect_timeout(&address, PATIENCE))?.map_err(failed)?;
    let (receiver, _) = listener.accept().map_err(failed)?;
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| pour(sender, duration));
        let report = drain(receiver);
        sent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        report
    })
    .map_err(failed)
}

/// What became of a burst of datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpReport {
    /// Datagrams that the sender's kernel took.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
}

/// Sends `count` datagrams of `payload` from `from` to `to`, which has the address `to_ip`, as fast
/// as the kernel takes them, and counts those that arrive unchanged.
///
/// # Errors
/// When a socket cannot be had.
pub fn udp_blast(
    from: &NetNs,
    to: &NetNs,
    to_ip: IpAddr,
    payload: &[u8],
    count: u64,
) -> Result<UdpReport, LabError> {
    let failed = |source| LabError::Socket { what: "UDP burst", source };
    let any = SocketAddr::new(if to_ip.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
    let receiver = to.run_in(|| UdpSocket::bind(SocketAddr::new(to_ip, 0)))?.map_err(failed)?;
    let sender = from.run_in(|| UdpSocket::bind(any))?.map_err(failed)?;
    let address = receiver.local_addr().map_err(failed)?;
    receiver.set_read_timeout(Some(QUIET)).map_err(failed)?;
    let received = std::thread::scope(|scope| {
        let counted = scope.spawn(|| count_equal(&receiver, payload, count));
        let sent = (0..count).filter(|_| sender.send_to(payload, address).is_ok()).count();
        let received = counted.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        received.map(|received| (sent, received))
    });
    let (sent, received) = received.map_err(failed)?;
    Ok(UdpReport { sent: u64::try_from(sent).unwrap_or(u64::MAX), received })
}

fn pour(mut stream: TcpStream, duration: Duration) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let block = vec![0x5a; BLOCK_BYTES];
    let end = boot_time() + duration;
    while boot_time() < end {
        stream.write_all(&block)?;
    }
    stream.shutdown(std::net::Shutdown::Write)
}

fn drain(mut stream: TcpStream) -> io::Result<TcpReport> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut block = vec![0; BLOCK_BYTES];
    let (begin, mut bytes) = (boot_time(), 0);
    loop {
        let length = stream.read(&mut block)?;
        if length == 0 {
            return Ok(TcpReport { bytes, elapsed: boot_time().since(begin) });
        }
        bytes += u64::try_from(length).expect("a block is short");
    }
}

/// Counts until `enough` have come, or none for a while.
fn count_equal(socket: &UdpSocket, payload: &[u8], enough: u64) -> io::Result<u64> {
    let mut buffer = vec![0; 1 << 16];
    let mut received = 0;
    while received < enough {
        match socket.recv(&mut buffer) {
            Ok(length) => received += u64::from(&buffer[..length] == payload),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(received)
}

/// How long a stream may stand still.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long after the last datagram none is expected any more.
const QUIET: Duration = Duration::from_millis(500);

const BLOCK_BYTES: usize = 1 << 17;
