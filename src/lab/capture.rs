//! What crosses an interface, kept in memory, and written as a file for tshark if wanted.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::LabError;
use crate::boot_time::BootTime;
use crate::id::IfName;
use crate::io::clock::boot_time;
use crate::io::epoll::{Epoll, ReadyList};
use crate::io::eventfd::EventFd;
use crate::io::netlink::Netlink;
use crate::io::netns::NetNs;
use crate::io::packet::PacketSocket;

/// A running capture of one interface, each way.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<EventFd>,
    thread: JoinHandle<io::Result<Vec<Vec<u8>>>>,
}

impl Capture {
    /// Starts to capture; every frame sent or received after this returns is in it.
    ///
    /// # Errors
    /// When the interface or a packet socket cannot be had.
    pub fn start(namespace: &NetNs, interface: &IfName) -> Result<Self, LabError> {
        let failed = |source| LabError::Socket { what: "capture", source };
        let link = Netlink::within(namespace, |netlink| netlink.link(interface))?;
        let socket = namespace.run_in(|| PacketSocket::open(link.index))?.map_err(failed)?;
        let stop = Arc::new(EventFd::new().map_err(failed)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || record(&socket, &stopped))
            .map_err(|source| LabError::Thread { source })?;
        Ok(Self { stop, thread })
    }

    /// Stops, and gives every frame in order, from the Ethernet header on.
    ///
    /// # Errors
    /// When the socket failed meanwhile, for example because the interface went.
    pub fn stop(self) -> Result<Vec<Vec<u8>>, LabError> {
        self.stop.wake();
        let frames = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        frames.map_err(|source| LabError::Socket { what: "capture", source })
    }
}

/// Writes frames as a pcap file (the classic format, LINKTYPE_ETHERNET), a microsecond apart.
///
/// # Errors
/// When the file cannot be written.
pub fn write_pcap(path: &Path, frames: &[Vec<u8>]) -> io::Result<()> {
    let mut file = io::BufWriter::new(std::fs::File::create(path)?);
    file.write_all(&PCAP_MAGIC.to_le_bytes())?;
    file.write_all(&2u16.to_le_bytes())?;
    file.write_all(&4u16.to_le_bytes())?;
    // Time zone and accuracy: unused.
    file.write_all(&[0; 8])?;
    file.write_all(&SNAP_LENGTH.to_le_bytes())?;
    file.write_all(&LINKTYPE_ETHERNET.to_le_bytes())?;
    for (number, frame) in (0u32..).zip(frames) {
        let length = u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        for field in [number / 1_000_000, number % 1_000_000, length, length] {
            file.write_all(&field.to_le_bytes())?;
        }
        file.write_all(frame)?;
    }
    file.flush()
}

fn record(socket: &PacketSocket, stop: &EventFd) -> io::Result<Vec<Vec<u8>>> {
    let epoll = Epoll::new()?;
    epoll.add(socket, 0)?;
    epoll.add(stop, 1)?;
    let mut ready = ReadyList::with_capacity(2);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut frames = Vec::new();
    // After the signal, what is on its way gets a moment to arrive.
    let mut end = BootTime::NEVER;
    while boot_time() < end {
        epoll.wait(&mut ready, Some(Duration::from_millis(20)))?;
        while let Some(length) = socket.receive(&mut buffer)? {
            frames.push(buffer[..length].to_vec());
        }
        if stop.clear()? {
            end = boot_time() + Duration::from_millis(30);
        }
    }
    Ok(frames)
}

/// Microseconds, and the byte order of the writer: little-endian here.
const PCAP_MAGIC: u32 = 0xa1b2_c3d4;
const SNAP_LENGTH: u32 = 262_144;
const LINKTYPE_ETHERNET: u32 = 1;

/// A run of datagrams that has not been cut yet, with its headers.
const BUFFER_BYTES: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pcap_file_has_its_headers_where_readers_expect_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("two.pcap");
        write_pcap(&path, &[vec![1; 60], vec![2; 3]]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 60 + 16 + 3);
        assert_eq!(bytes[..4], [0xd4, 0xc3, 0xb2, 0xa1]);
        assert_eq!(bytes[20..24], [1, 0, 0, 0]);
        assert_eq!(bytes[24 + 8..24 + 16], [60, 0, 0, 0, 60, 0, 0, 0]);
        assert_eq!(bytes[24 + 16 + 60 + 16..], [2, 2, 2]);
    }
}
