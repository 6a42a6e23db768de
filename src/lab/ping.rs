//! Echo requests and replies (RFC 792, RFC 4443) over raw sockets, so that no `ping` need be installed.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::LabError;
use crate::io::clock::boot_time;
use crate::io::netns::NetNs;

/// A series of echo requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// How many.
    pub count: u16,
    /// From one request to the next.
    pub interval: Duration,
    /// How long each reply may take.
    pub timeout: Duration,
    /// What each request carries; the reply must carry the same.
    pub payload: Vec<u8>,
}

impl Default for Ping {
    /// Five requests of 56 bytes, 50 ms apart, 1 s for each reply: as ping(8), but quicker.
    fn default() -> Self {
        Self {
            count: 5,
            interval: Duration::from_millis(50),
            timeout: Duration::from_secs(1),
            payload: (0..56).collect(),
        }
    }
}

impl Ping {
    /// Sends the series from a namespace and waits for the replies.
    ///
    /// # Errors
    /// When no raw socket can be had; requests that cannot be sent are counted as lost.
    pub fn run(&self, from: &NetNs, to: IpAddr) -> Result<PingReport, LabError> {
        let report = from.run_in(|| self.exchange(to))?;
        report.map_err(|source| LabError::Socket { what: "ping", source })
    }

    fn exchange(&self, to: IpAddr) -> io::Result<PingReport> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        let id = rand::random::<u16>();
        let mut report = PingReport::default();
        for sequence in 0..self.count {
            let sent_at = boot_time();
            report.sent += 1;
            let request = echo_request(to, id, sequence, &self.payload);
            if let Err(error) = socket.send_to(&request, &SocketAddr::new(to, 0).into()) {
                report.last_error = Some(error.to_string());
            } else if self.await_reply(&socket, to, &request)? {
                report.round_trips.push(boot_time().since(sent_at));
            }
            if sequence + 1 < self.count {
                std::thread::sleep(self.interval.saturating_sub(boot_time().since(sent_at)));
            }
        }
        Ok(report)
    }

    /// Reads until the reply to `request` is there (true) or its time is over.
    fn await_reply(&self, socket: &Socket, to: IpAddr, request: &[u8]) -> io::Result<bool> {
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let deadline = boot_time() + self.timeout;
        loop {
            let left = deadline.since(boot_time());
            if left.is_zero() {
                return Ok(false);
            }
            socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match (&*socket).read(&mut buffer) {
                Ok(length) if is_reply(to, &buffer[..length], request) => return Ok(true),
                Ok(_) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What became of a series.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PingReport {
    /// Requests.
    pub sent: u32,
    /// How long each reply took, in order; none for those that did not come.
    pub round_trips: Vec<Duration>,
    /// Why a request could not be sent, if so.
    pub last_error: Option<String>,
}

impl PingReport {
    /// How many replies came.
    pub fn received(&self) -> usize {
        self.round_trips.len()
    }

    /// Every request had its reply.
    pub fn is_complete(&self) -> bool {
        u32::try_from(self.round_trips.len()) == Ok(self.sent)
    }

    /// The mean of the round trips; none without a reply.
    pub fn mean(&self) -> Option<Duration> {
        let count = u32::try_from(self.round_trips.len()).ok().filter(|count| *count > 0)?;
        Some(self.round_trips.iter().sum::<Duration>() / count)
    }
}

/// Type, code, checksum, identifier, sequence number, payload.
fn echo_request(to: IpAddr, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if to.is_ipv4() { ICMP_ECHO_REQUEST } else { ICMPV6_ECHO_REQUEST };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(payload);
    if to.is_ipv4() {
        // The kernel fills in ICMPv6's, which covers addresses that it alone chooses.
        let checksum = internet_checksum(&message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    message
}

fn is_reply(to: IpAddr, packet: &[u8], request: &[u8]) -> bool {
    let (kind, message) = match to {
        // A raw IPv4 socket gives the IP header as well.
        IpAddr::V4(to) => {
            let header_len = usize::from(packet.first().map_or(0, |first| first & 0x0f)) * 4;
            if packet.get(12..16) != Some(&to.octets()) {
                return false;
            }
            (ICMP_ECHO_REPLY, packet.get(header_len..).unwrap_or_default())
        }
        IpAddr::V6(_) => (ICMPV6_ECHO_REPLY, packet),
    };
    message.first() == Some(&kind) && message.get(4..) == request.get(4..)
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

const ICMP_ECHO_REPLY: u8 = 0;
const ICMP_ECHO_REQUEST: u8 = 8;
const ICMPV6_ECHO_REQUEST: u8 = 128;
const ICMPV6_ECHO_REPLY: u8 = 129;
const MAX_PACKET_BYTES: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_echo_request_checks_out_and_only_its_own_reply_is_taken() {
        let to: IpAddr = "192.0.2.1".parse().unwrap();
        let request = echo_request(to, 0x1234, 1, b"canary!");
        assert_eq!(internet_checksum(&request), 0);

        let mut reply = vec![0x45; 20];
        reply[12..16].copy_from_slice(&[192, 0, 2, 1]);
        reply.extend(&request);
        assert!(!is_reply(to, &reply, &request), "the request itself is no reply");
        reply[20] = ICMP_ECHO_REPLY;
        assert!(is_reply(to, &reply, &request));
        reply[15] = 2;
        assert!(!is_reply(to, &reply, &request), "another host's reply");
    }
}
