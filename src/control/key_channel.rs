//! The peer key channel: messages between two nodes over mutual TLS, and the secret that binds
//! their key exchanges to it.
//!
//! It knows nothing of what the messages mean (`negotiate` does). The connecting side is the node
//! with the larger id; the accepting side greets with an empty message, by which the other learns
//! that it was accepted. One task owns a channel; every call survives being cancelled.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::frame::Frames;
use super::tls::peer::{ConnectError, PeerIdentity, PeerStream};
use super::tls::{Credentials, Protocol, refusal_in};
use super::trust::{Expected, Refusal};
use crate::id::NodeId;
use crate::negotiate::MAX_FRAME_LEN;

/// A key channel to one verified node. It breaks by itself when the node is removed.
#[derive(Debug)]
pub struct KeyChannel {
    frames: Frames<PeerStream>,
    /// The peer took too long to take a message; nothing more is sent or believed.
    stalled: bool,
}

impl KeyChannel {
    /// Connects to `expected` at `address`.
    ///
    /// # Errors
    /// The address cannot be reached, another node answers, or one side refuses the other.
    pub async fn connect(
        credentials: &Credentials,
        address: SocketAddr,
        expected: NodeId,
    ) -> Result<Self, ConnectError> {
        let stream =
            PeerStream::connect(credentials, Protocol::Key, address, Expected::Node(expected)).await?;
        let mut frames = Frames::new(stream, MAX_FRAME_LEN);
        match frames.receive().await {
            Ok(Some(greeting)) if greeting.is_empty() => Ok(Self::of(frames)),
            Ok(_) => Err(ConnectError::Broken { address, source: io::ErrorKind::InvalidData.into() }),
            Err(source) => Err(ConnectError::Broken { address, source }),
        }
    }

    /// Greets the node that connected.
    pub(super) async fn accept(stream: PeerStream) -> io::Result<Self> {
        let mut frames = Frames::new(stream, MAX_FRAME_LEN);
        frames.send(&[]).await?;
        Ok(Self::of(frames))
    }

    const fn of(frames: Frames<PeerStream>) -> Self {
        Self { frames, stalled: false }
    }

    /// Who is at the other end.
    pub const fn peer(&self) -> &PeerIdentity {
        self.frames.get_ref().peer()
    }

    /// Sends one message. A cancelled call has taken the message: the next one sends the rest of it.
    ///
    /// # Errors
    /// The message is over [`MAX_FRAME_LEN`], the channel broke, the peer is no longer trusted, or it reads too
    /// slowly: then the channel is over, or a peer that reads nothing could hold up its task for ever.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), ChannelError> {
        if !self.stalled
            && let Ok(sent) = tokio::time::timeout(SEND_TIMEOUT, self.frames.send(message)).await
        {
            return Ok(sent?);
        }
        self.stalled = true;
        Err(ChannelError::Stalled)
    }

    /// The next message; `None` when the peer has closed the channel.
    ///
    /// # Errors
    /// The channel broke, stalled when something was sent, or the peer is no longer trusted.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ChannelError> {
        if self.stalled {
            return Err(ChannelError::Stalled);
        }
        Ok(self.frames.receive().await?)
    }

    /// The secret for one key exchange with this transcript hash, the same at both ends.
    pub fn export(&self, transcript_hash: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        self.frames.get_ref().export(EXPORTER_LABEL, transcript_hash)
    }

    /// Tells the peer that nothing more comes.
    pub async fn close(mut self) {
        match tokio::time::timeout(CLOSE_TIMEOUT, self.frames.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(peer = %self.peer().node, %error, "key channel did not close cleanly");
            }
            Err(_elapsed) => tracing::debug!(peer = %self.peer().node, "key channel did not close in time"),
        }
    }
}

/// Why a key channel ended.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The peer is no longer trusted, or no longer trusts us.
    #[error("the key channel is refused: {0}")]
    Refused(Refusal),
    /// The peer does not read what it is sent.
    #[error("the peer did not take a message within {} s", SEND_TIMEOUT.as_secs())]
    Stalled,
    /// The connection broke.
    #[error("the key channel broke: {0}")]
    Broken(io::Error),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        match refusal_in(&error) {
            Some(refusal) => Self::Refused(refusal),
            None => Self::Broken(error),
        }
    }
}

const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const EXPORTER_LABEL: &[u8] = b"EXPERIMENTAL overlayd sa v1";
