//! Length-prefixed messages over a byte stream: the key channel and enrolment.
//!
//! ```text
//! 0  4  length n of the message, big-endian, at most what the user of the stream allows
//! 4  n  the message
//! ```

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A stream cut into messages. Both directions survive a cancelled call: bytes that were read or
/// accepted for sending stay here.
#[derive(Debug)]
pub struct Frames<S> {
    stream: S,
    longest: usize,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Cuts `stream` into messages of at most `longest` bytes.
    pub fn new(stream: S, longest: usize) -> Self {
        Self { stream, longest, incoming: BytesMut::new(), outgoing: BytesMut::new() }
    }

    /// The stream below.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Sends one message and what a cancelled call left behind.
    ///
    /// # Errors
    /// The message is too long, or the stream fails.
    pub async fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let length = u32::try_from(message.len()).ok().filter(|_| message.len() <= self.longest);
        let length = length.ok_or_else(|| self.too_long(message.len()))?;
        self.outgoing.put_u32(length);
        self.outgoing.put_slice(message);
        while self.outgoing.has_remaining() {
            if self.stream.write_buf(&mut self.outgoing).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        self.stream.flush().await
    }

    /// The next message; `None` when the other side has closed between two messages.
    ///
    /// # Errors
    /// The message is too long, the other side closed within one, or the stream fails.
    pub async fn receive(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return if self.incoming.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    /// Tells the other side that nothing more comes.
    ///
    /// # Errors
    /// The stream fails.
    pub async fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    fn take_message(&mut self) -> io::Result<Option<Bytes>> {
        let Some((header, rest)) = self.incoming.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if length > self.longest {
            return Err(self.too_long(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.incoming.advance(HEADER_BYTES);
        Ok(Some(self.incoming.split_to(length).freeze()))
    }

    fn too_long(&self, length: usize) -> io::Error {
        let message = format!("a message of {length} bytes is over the limit of {}", self.longest);
        io::Error::new(io::ErrorKind::InvalidData, message)
    }
}

const HEADER_BYTES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_of_all_sizes_arrive_whole_and_in_order() {
        let (here, there) = tokio::io::duplex(1000);
        let (mut here, mut there) = (Frames::new(here, LONGEST), Frames::new(there, LONGEST));
        let sizes = [0, 1, 4, 999, 1000, LONGEST];
        let sender = tokio::spawn(async move {
            for size in sizes {
                here.send(&vec![7; size]).await.expect("sent");
            }
        });
        for size in sizes {
            assert_eq!(there.receive().await.expect("a message").map(|m| m.len()), Some(size));
        }
        sender.await.expect("the sender");
        assert_eq!(there.receive().await.expect("the end"), None);
    }

    #[tokio::test]
    async fn message_over_the_limit_is_refused_before_it_is_read() {
        let (here, there) = tokio::io::duplex(1000);
        let mut there = Frames::new(there, LONGEST);
        let mut here = here;
        here.write_all(&[0, 1, 0, 1]).await.expect("sent");
        assert_eq!(there.receive().await.expect_err("too long").kind(), io::ErrorKind::InvalidData);
        let sent = there.send(&vec![0; LONGEST + 1]).await;
        assert_eq!(sent.expect_err("too long").kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn cancelled_receive_loses_no_byte() {
        let (mut here, there) = tokio::io::duplex(1000);
        let mut there = Frames::new(there, LONGEST);
        here.write_all(&[0, 0, 0, 3, b'a']).await.expect("sent");
        let cut = tokio::time::timeout(std::time::Duration::from_millis(10), there.receive()).await;
        assert!(cut.is_err());
        here.write_all(b"bc").await.expect("sent");
        assert_eq!(there.receive().await.expect("a message").as_deref(), Some(&b"abc"[..]));
    }

    #[tokio::test]
    async fn end_within_a_message_is_an_error() {
        let (mut here, there) = tokio::io::duplex(1000);
        here.write_all(&[0, 0, 0, 3, b'a']).await.expect("sent");
        drop(here);
        let error = Frames::new(there, LONGEST).receive().await.expect_err("torn");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    const LONGEST: usize = 64 * 1024;
}
