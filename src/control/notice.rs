//! A manager's word of where it is, to a node that does not find it: after it was restored on
//! another machine, or its machine has another address.
//!
//! The manager connects (mutual TLS, so it is known to be one), the node greets with an empty
//! message, the manager sends its address as JSON, and the node confirms with an empty message.
//! The node believes no more than that it may look there: who answers shows a manager's certificate
//! as ever.

use std::io;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::frame::Frames;
use super::tls::peer::{ConnectError, PeerStream};
use super::tls::{Credentials, Protocol};
use super::trust::Expected;
use crate::id::NodeId;

/// Where a manager says that it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Its TLS port.
    pub manager: SocketAddr,
}

impl Notice {
    /// Gives it to `node` at `address`; returns when the node has it.
    ///
    /// # Errors
    /// The address cannot be reached, another node answers, or one side refuses the other.
    pub async fn give(
        &self,
        credentials: &Credentials,
        address: SocketAddr,
        node: NodeId,
    ) -> Result<(), ConnectError> {
        let broken = |source| ConnectError::Broken { address, source };
        let stream =
            PeerStream::connect(credentials, Protocol::Notice, address, Expected::Node(node)).await?;
        let exchange = async {
            let mut frames = Frames::new(stream, MAX_MESSAGE_BYTES);
            expect_empty(&mut frames).await?;
            frames.send(&serde_json::to_vec(self)?).await?;
            expect_empty(&mut frames).await?;
            frames.close().await
        };
        tokio::time::timeout(EXCHANGE_TIMEOUT, exchange)
            .await
            .unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            .map_err(broken)
    }

    /// Takes one from a manager that connected.
    pub(super) async fn take(stream: PeerStream) -> io::Result<Self> {
        let mut frames = Frames::new(stream, MAX_MESSAGE_BYTES);
        frames.send(&[]).await?;
        let message = frames.receive().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let notice = serde_json::from_slice(&message)?;
        frames.send(&[]).await?;
        Ok(notice)
    }
}

async fn expect_empty(frames: &mut Frames<PeerStream>) -> io::Result<()> {
    match frames.receive().await? {
        Some(message) if message.is_empty() => Ok(()),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

const EXCHANGE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// An address and its name.
const MAX_MESSAGE_BYTES: usize = 1 << 10;
