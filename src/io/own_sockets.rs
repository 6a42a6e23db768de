//! The sockets that this process has bound, by the kernel's tables (proc(5)), not by its own notes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket that listens, or that datagrams come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnSocket {
    /// Its transport.
    pub transport: Transport,
    /// Where it is bound.
    pub at: SocketAddr,
}

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP; connections are left out.
    Tcp,
    /// UDP.
    Udp,
}

/// The sockets of this process in its network namespace.
///
/// The kernel gives its tables page by page, and while others open and close sockets a row between two pages may
/// be missed. So they are read until they say the same twice.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of_this_process() -> io::Result<Vec<OwnSocket>> {
    let mut before = look()?;
    for _ in 0..MOST_LOOKS {
        let now = look()?;
        if now == before {
            break;
        }
        before = now;
    }
    Ok(before.into_values().collect())
}

/// By inode: lanes have sockets at the same address, and a row that was shown twice is one.
fn look() -> io::Result<BTreeMap<u64, OwnSocket>> {
    let mut own = BTreeSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // One that was closed meanwhile is none.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        own.extend(inode.and_then(|inode| inode.parse::<u64>().ok()));
    }
    let mut sockets = BTreeMap::new();
    for (table, transport) in TABLES {
        let rows = match fs::read_to_string(format!("/proc/thread-self/net/{table}")) {
            Ok(rows) => rows,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let bound = rows.lines().filter_map(|row| bound(row, transport));
        let bound = bound.filter(|(inode, _)| own.contains(inode));
        sockets.extend(bound.map(|(inode, at)| (inode, OwnSocket { transport, at })));
    }
    Ok(sockets)
}

/// A row of `/proc/net/tcp` or one of its like: the inode and where it is bound.
fn bound(row: &str, transport: Transport) -> Option<(u64, SocketAddr)> {
    let mut fields = row.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = fields.nth(1)?;
    if transport == Transport::Tcp && state != TCP_LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let at = SocketAddr::new(ip(address)?, u16::from_str_radix(port, 16).ok()?);
    Some((inode, at))
}

/// Words of the network's order, each printed as a number of this machine.
fn ip(hex: &str) -> Option<IpAddr> {
    let mut bytes = Vec::with_capacity(16);
    for word in 0..hex.len() / 8 {
        let word = u32::from_str_radix(hex.get(word * 8..word * 8 + 8)?, 16).ok()?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// Where sockets come and go all the time.
const MOST_LOOKS: u32 = 10;
const TABLES: [(&str, Transport); 4] =
    [("tcp", Transport::Tcp), ("tcp6", Transport::Tcp), ("udp", Transport::Udp), ("udp6", Transport::Udp)];
/// `TCP_LISTEN` of net/tcp_states.h.
const TCP_LISTEN: &str = "0A";

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn bound_sockets_are_found_and_connections_are_not() {
        let (tcp, udp) = (
            TcpListener::bind("127.0.0.1:0").expect("a listener"),
            UdpSocket::bind("127.0.0.1:0").expect("a socket"),
        );
        let (tcp_at, udp_at) = (tcp.local_addr().expect("bound"), udp.local_addr().expect("bound"));
        let connection = TcpStream::connect(tcp_at).expect("a connection");
        let found = of_this_process().expect("/proc");
        let at =
            |transport, at| found.iter().filter(|socket| **socket == OwnSocket { transport, at }).count();
        assert_eq!((at(Transport::Tcp, tcp_at), at(Transport::Udp, udp_at)), (1, 1));
        assert_eq!(at(Transport::Tcp, connection.local_addr().expect("bound")), 0);
        drop(udp);
        let found = of_this_process().expect("/proc");
        assert!(!found.contains(&OwnSocket { transport: Transport::Udp, at: udp_at }));
    }

    #[test]
    fn sockets_that_share_an_address_are_each_found() {
        let share = || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
            socket.set_reuse_port(true).expect("the option");
            socket
        };
        let (one, two) = (share(), share());
        one.bind(&"127.0.0.1:0".parse::<SocketAddr>().expect("an address").into()).expect("a port");
        let at = one.local_addr().expect("bound").as_socket().expect("of IPv4");
        two.bind(&at.into()).expect("the same port");
        let shared = OwnSocket { transport: Transport::Udp, at };
        let found = of_this_process().expect("/proc");
        assert_eq!(found.iter().filter(|socket| **socket == shared).count(), 2);
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let row = "  12: 00000000000000000000000001000000:0949 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1";
        let v6: SocketAddr = "[::1]:2377".parse().expect("an address");
        if cfg!(target_endian = "little") {
            assert_eq!(bound(row, Transport::Tcp), Some((4242, v6)));
        }
        assert_eq!(bound("  sl  local_address rem_address   st", Transport::Tcp), None);
    }
}
