//! A TLS connection whose other side is a verified node of the cluster.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustls::AlertDescription;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tokio_rustls::{TlsConnector, TlsStream, client};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::transport::server::Connected;
use zeroize::Zeroizing;

use super::{Credentials, OneHandshake, Outcome, Protocol, refusal_in};
use crate::cluster::Role;
use crate::control::identity::CertificateName;
use crate::control::trust::{Expected, Proof, Refusal, Trust};
use crate::id::{NodeId, Version};

/// Who is at the other end of a connection, as its certificate proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The node.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
    /// The version of the cluster's state in which that was so.
    pub issued_at: Version,
    /// Where its packets come from.
    pub address: SocketAddr,
    /// When the certificate that it showed ends.
    pub certificate_expires: OffsetDateTime,
}

impl PeerIdentity {
    fn new(name: CertificateName, address: SocketAddr) -> Self {
        let CertificateName { node, role, issued_at, not_after, .. } = name;
        Self { node, role, issued_at, address, certificate_expires: not_after }
    }
}

/// A TLS stream to a verified node; it fails with the [`Refusal`] as soon as the node or the root of
/// its certificate is no longer trusted or the certificate ends, whether or not anything is being sent.
pub struct PeerStream {
    tls: TlsStream<TcpStream>,
    peer: PeerIdentity,
    proof: Proof,
    expected: Expected,
    changes: WatchStream<Arc<Trust>>,
    expiry: Pin<Box<Sleep>>,
    cut: Option<Refusal>,
    /// The first byte, when it was read to see that the other side accepted us.
    first: Option<u8>,
    /// Its place among those that there may be; given back with the connection.
    place: Option<OwnedSemaphorePermit>,
}

impl PeerStream {
    /// Connects to `address` and verifies that it is whom we expect and that it accepts us too.
    ///
    /// A server judges a client's certificate after the client's handshake is over (RFC 8446
    /// §4.4.2), so this waits for the first byte from the server: in each protocol of ours that
    /// begins at once.
    ///
    /// # Errors
    /// The address cannot be reached, or one side refuses the other.
    pub(in crate::control) async fn connect(
        credentials: &Credentials,
        protocol: Protocol,
        address: SocketAddr,
        expected: Expected,
    ) -> Result<Self, ConnectError> {
        let handshake = credentials.connect(protocol, expected);
        let outcome = handshake.outcome.clone();
        let attempt = async {
            let tls = dial(address, handshake).await?;
            let proof = outcome.proof().expect("a handshake that succeeds has verified a name");
            let mut stream = Self::new(TlsStream::Client(tls), (proof, expected), address, credentials);
            match stream.read_u8().await {
                Ok(byte) => stream.first = Some(byte),
                Err(error) => return Err(ConnectError::of(address, error, &outcome).after_handshake()),
            }
            Ok(stream)
        };
        tokio::time::timeout(CONNECT_TIMEOUT, attempt)
            .await
            .unwrap_or(Err(ConnectError::TimedOut { address }))
    }

    pub(in crate::control) fn new(
        tls: TlsStream<TcpStream>,
        (proof, expected): (Proof, Expected),
        address: SocketAddr,
        credentials: &Credentials,
    ) -> Self {
        // The trust may have changed while the handshake ran: `WatchStream::new` looks at once.
        let changes = WatchStream::new(credentials.watch_trust());
        let name = proof.name;
        let left = (name.not_after - credentials.now()).max(time::Duration::ZERO).unsigned_abs();
        let expiry = Box::pin(tokio::time::sleep(left));
        let peer = PeerIdentity::new(name, address);
        Self { tls, peer, proof, expected, changes, expiry, cut: None, first: None, place: None }
    }

    /// The same, in a place that it gives back when it ends.
    pub(in crate::control) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.place = Some(place);
        self
    }

    /// Who is at the other end.
    pub const fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Keying material that only the two ends of this connection know (RFC 8446 §7.5).
    pub(in crate::control) fn export(&self, label: &[u8], context: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut secret = Zeroizing::new([0; 32]);
        match &self.tls {
            TlsStream::Client(tls) => {
                tls.get_ref().1.export_keying_material(&mut secret[..], label, Some(context))
            }
            TlsStream::Server(tls) => {
                tls.get_ref().1.export_keying_material(&mut secret[..], label, Some(context))
            }
        }
        .expect("the handshake is over and the output is not empty");
        secret
    }

    /// Breaks sooner than others do when the other side falls silent.
    pub(in crate::control) fn expect_sound(&self, within: Duration) {
        if let Err(error) = notice_silence(self.tls.get_ref().0, within) {
            tracing::debug!(%error, "TCP options refused");
        }
    }

    fn poll_trust(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(Some(trust)) = Pin::new(&mut self.changes).poll_next(cx) {
            self.cut = trust.admit_still(self.expected, &self.proof).err();
            if self.cut.is_some() {
                break;
            }
        }
        if self.cut.is_none() && self.expiry.as_mut().poll(cx).is_ready() {
            let not_after = self.peer.certificate_expires;
            self.cut = Some(Refusal::Expired { not_after, now: not_after });
        }
        self.check_cut()
    }

    fn check_cut(&self) -> io::Result<()> {
        match &self.cut {
            Some(refusal) => Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal.clone())),
            None => Ok(()),
        }
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_trust(cx)?;
        if into.remaining() > 0
            && let Some(first) = self.first.take()
        {
            into.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tls).poll_read(cx, into)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_trust(cx)?;
        let written = ready!(Pin::new(&mut self.tls).poll_write(cx, from))?;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_trust(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

impl Connected for PeerStream {
    type ConnectInfo = PeerIdentity;

    fn connect_info(&self) -> PeerIdentity {
        self.peer.clone()
    }
}

impl std::fmt::Debug for PeerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerStream").field("peer", &self.peer).field("cut", &self.cut).finish_non_exhaustive()
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP did not get through.
    #[error("{address} cannot be reached: {source}; is the agent running there and the port open?")]
    Unreachable {
        /// Where we went.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// Nothing came back in time.
    #[error("{address} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut {
        /// Where we went.
        address: SocketAddr,
    },
    /// One side refused the other.
    #[error("{address} is refused: {refusal}{}", if *in_handshake { doubt(refusal) } else { "" })]
    Refused {
        /// Where we went.
        address: SocketAddr,
        /// Why.
        refusal: Refusal,
        /// Whether the other side had not proved yet who it is.
        in_handshake: bool,
    },
    /// The connection broke.
    #[error("the connection to {address} broke: {source}")]
    Broken {
        /// Where we went.
        address: SocketAddr,
        /// What the kernel or TLS says.
        source: io::Error,
    },
}

impl ConnectError {
    /// The refusal, where one side refused the other.
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. } => None,
        }
    }

    /// The refusal, if nobody but the other side can have made it: before it has proved who it is, anybody
    /// on the path can send an alert in its name.
    pub(in crate::control) const fn proven_refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, in_handshake: false, .. } => Some(refusal),
            Self::Refused { .. } | Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Broken { .. } => {
                None
            }
        }
    }

    /// Whether the other side, and nobody else, said that this node was removed from the cluster.
    pub fn has_removed_us(&self) -> bool {
        self.proven_refusal() == Some(&Refusal::ByPeer(AlertDescription::CertificateRevoked))
    }

    pub(in crate::control) fn of(address: SocketAddr, source: io::Error, outcome: &Outcome) -> Self {
        match outcome.refusal(&source).or_else(|| refusal_in(&source)) {
            Some(refusal) => Self::Refused { address, refusal, in_handshake: true },
            None => Self::Broken { address, source },
        }
    }

    /// The same once the handshake is over: rustls takes no alert in the clear any more
    /// (`has_decrypted` in its `record_layer.rs`).
    fn after_handshake(mut self) -> Self {
        if let Self::Refused { in_handshake, .. } = &mut self {
            *in_handshake = false;
        }
        self
    }
}

fn doubt(refusal: &Refusal) -> &'static str {
    if *refusal == Refusal::ByPeer(AlertDescription::CertificateRevoked) {
        " (before it has proved who it is, so this is not believed)"
    } else {
        ""
    }
}

/// Connects and shakes hands as a client.
pub(in crate::control) async fn dial(
    address: SocketAddr,
    handshake: OneHandshake<rustls::ClientConfig>,
) -> Result<client::TlsStream<TcpStream>, ConnectError> {
    // The kernel asks again ever more slowly: a new attempt finds a host sooner that has come back.
    let tcp = tokio::time::timeout(TCP_TIMEOUT, TcpStream::connect(address)).await;
    let tcp = tcp
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|source| ConnectError::Unreachable { address, source })?;
    tune(&tcp);
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(handshake.config)
        .connect(name, tcp)
        .await
        .map_err(|source| ConnectError::of(address, source, &handshake.outcome))
}

/// Small messages leave at once, and a silent other side is noticed soon.
pub(in crate::control) fn tune(tcp: &TcpStream) {
    let tuned = tcp.set_nodelay(true).and_then(|()| notice_silence(tcp, SILENCE));
    if let Err(error) = tuned {
        tracing::debug!(%error, "TCP options refused");
    }
}

/// Breaks the connection when nothing was heard of the other side for as long, in whole seconds. With a
/// user timeout the kernel does not count probes (`tcp_keepalive_timer` in `net/ipv4/tcp_timer.c`): it
/// looks whenever one is due. For data that nobody acknowledges its time begins with the first
/// repetition (`retransmits_timed_out`), which comes [`REPETITION`] later.
fn notice_silence(tcp: &TcpStream, after: Duration) -> io::Result<()> {
    let probe = Duration::from_secs(1);
    let keepalive = TcpKeepalive::new().with_time(after.saturating_sub(probe)).with_interval(probe);
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(after.saturating_sub(REPETITION)))
}

/// The kernel's shortest, of 200 ms, and something for its timers.
const REPETITION: Duration = Duration::from_millis(300);
/// A big view may have to wait for a path that is full.
const SILENCE: Duration = Duration::from_secs(6);
/// How long connecting may take, TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// For the part of it in which the host answers at all: the first SYN and one more.
const TCP_TIMEOUT: Duration = Duration::from_secs(2);
