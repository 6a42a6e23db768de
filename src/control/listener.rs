//! The TLS port of a node: enrolment, the manager API and key channels, told apart by ALPN.
//!
//! It shakes hands, and hands each connection to its door; it serves nothing itself. A connection
//! that is refused is logged with its address and the reason, ten a second at most.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsStream, server};

use super::enrol::MAX_MESSAGE_BYTES;
use super::frame::Frames;
use super::key_channel::KeyChannel;
use super::refusal_log::RefusalLog;
use super::tls::peer::{PeerStream, tune};
use super::tls::{Credentials, Protocol, refusal_in};
use super::trust::{Expected, Refusal};
use crate::events::{Event, Events, Reason};
use crate::id::NodeId;

/// Where accepted connections go.
#[derive(Debug, Clone)]
pub struct Doors {
    /// Key channels that peers opened.
    pub key_channels: mpsc::Sender<KeyChannel>,
    /// What only managers serve, while this node is one.
    pub manager: watch::Receiver<Option<ManagerDoors>>,
    /// Where refusals are recorded.
    pub events: Events,
}

/// Where a manager's connections go.
#[derive(Debug, Clone)]
pub struct ManagerDoors {
    /// To [`super::rpc::serve`].
    pub rpc: mpsc::Sender<PeerStream>,
    /// To [`super::enrol::serve`].
    pub enrol: mpsc::Sender<EnrolStream>,
}

/// A connection for enrolment: the client is not known yet.
#[derive(Debug)]
pub struct EnrolStream {
    pub(super) frames: Frames<server::TlsStream<TcpStream>>,
    pub(super) from: SocketAddr,
}

/// Accepts connections for ever; dropping the future closes the port and ends all handshakes.
pub async fn listen(listener: TcpListener, credentials: Arc<Credentials>, doors: Doors) {
    let doors = Arc::new((doors, Connections::default()));
    let mut handshakes = JoinSet::new();
    let mut sent_away = JoinSet::new();
    let mut sources = Sources::default();
    let mut log = RefusalLog::default();
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) if sources.begin(source_of(from.ip())) => {
                    tune(&tcp);
                    let (credentials, doors) = (Arc::clone(&credentials), Arc::clone(&doors));
                    handshakes.spawn(async move {
                        let ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, receive(tcp, from, &credentials, (&doors.0, &doors.1)));
                        (from, ended.await.unwrap_or(Err(Rejected::Slow)))
                    });
                }
                Ok((tcp, from)) => {
                    refused(from, &Rejected::Crowded, &mut log, &doors.0.events);
                    // In a flood nobody is told.
                    if sent_away.len() < MAX_SENT_AWAY {
                        sent_away.spawn(tokio::time::timeout(HANDSHAKE_TIMEOUT, send_alert(tcp, ALERT_USER_CANCELED)));
                    }
                }
                Err(error) => {
                    // Out of descriptors (EMFILE): the connection stays queued, and would spin here.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = handshakes.join_next() => match ended {
                Ok((from, result)) => {
                    sources.end(source_of(from.ip()));
                    if let Err(rejected) = result {
                        refused(from, &rejected, &mut log, &doors.0.events);
                    }
                }
                Err(error) => tracing::error!(%error, "a handshake task died"),
            },
            Some(_) = sent_away.join_next() => {}
            _ = second.tick() => log.next_second(),
        }
    }
}

fn refused(from: SocketAddr, rejected: &Rejected, log: &mut RefusalLog, events: &Events) {
    events.record(Event::ConnectionRefused { from, reason: Reason::of(rejected) });
    log.note(from, "connection", rejected);
}

/// Why a connection did not reach its door.
#[derive(Debug, thiserror::Error)]
enum Rejected {
    #[error("{0}")]
    Refused(Refusal),
    #[error("the handshake took over {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
    #[error("too many handshakes at a time")]
    Crowded,
    #[error("node {0} has {MAX_CONNECTIONS_OF_NODE} connections to this manager already")]
    Insatiable(NodeId),
    #[error("this node is stopping")]
    Stopping,
    #[error("the connection broke: {0}")]
    Broken(io::Error),
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

async fn receive(
    tcp: TcpStream,
    from: SocketAddr,
    credentials: &Credentials,
    (doors, connections): (&Doors, &Connections),
) -> Result<(), Rejected> {
    let mut acceptor = pin!(LazyConfigAcceptor::new(Acceptor::default(), tcp));
    let start = match acceptor.as_mut().await {
        Ok(start) => start,
        Err(error) => {
            if let Some(tcp) = acceptor.take_io() {
                drain(tcp).await;
            }
            return Err(refusal_in(&error).map_or(Rejected::Broken(error), Rejected::Refused));
        }
    };
    let protocol = match choose(&start, doors) {
        Ok(protocol) => protocol,
        Err((refusal, alert)) => {
            send_alert(start.io, alert).await;
            return Err(refusal.into());
        }
    };
    let handshake = credentials.accept(protocol);
    let tls = match start.into_stream(handshake.config).into_fallible().await {
        Ok(tls) => tls,
        Err((error, tcp)) => {
            let refusal = handshake.outcome.refusal(&error);
            drain(tcp).await;
            return Err(refusal.map_or(Rejected::Broken(error), Rejected::Refused));
        }
    };
    let node = || {
        let proof = handshake.outcome.proof();
        let proof = proof.ok_or(Rejected::Refused(Refusal::NoCertificate))?;
        Ok::<_, Rejected>((proof, Expected::AnyNode))
    };
    let manager = doors.manager.borrow().clone();
    let stopping = match (protocol, manager) {
        (Protocol::Key, _) => {
            let stream = PeerStream::new(TlsStream::Server(tls), node()?, from, credentials);
            let channel = KeyChannel::accept(stream).await.map_err(Rejected::Broken)?;
            doors.key_channels.send(channel).await.is_err()
        }
        (Protocol::Manager, Some(manager)) => {
            let stream = PeerStream::new(TlsStream::Server(tls), node()?, from, credentials);
            manager.rpc.send(connections.admit(stream)?).await.is_err()
        }
        (Protocol::Enrol, Some(manager)) => manager
            .enrol
            .send(EnrolStream { frames: Frames::new(tls, MAX_MESSAGE_BYTES), from })
            .await
            .is_err(),
        (Protocol::Manager | Protocol::Enrol, None) => {
            return Err(Refusal::NotServed { protocol: protocol.name() }.into());
        }
    };
    if stopping { Err(Rejected::Stopping) } else { Ok(()) }
}

/// The protocol that the client asks for, or the refusal with its alert (RFC 8446 §6).
fn choose(start: &StartHandshake<TcpStream>, doors: &Doors) -> Result<Protocol, (Refusal, u8)> {
    let hello = start.client_hello();
    let offers_tls_1_3 = hello.cipher_suites().iter().any(|suite| u16::from(*suite).to_be_bytes()[0] == 0x13);
    if !offers_tls_1_3 {
        return Err((Refusal::OldTls, ALERT_PROTOCOL_VERSION));
    }
    let protocol = hello
        .alpn()
        .and_then(Protocol::offered)
        .ok_or((Refusal::NoProtocol, ALERT_NO_APPLICATION_PROTOCOL))?;
    match protocol {
        Protocol::Key => Ok(protocol),
        Protocol::Manager | Protocol::Enrol if doors.manager.borrow().is_some() => Ok(protocol),
        Protocol::Manager | Protocol::Enrol => {
            Err((Refusal::NotServed { protocol: protocol.name() }, ALERT_NO_APPLICATION_PROTOCOL))
        }
    }
}

async fn send_alert(mut tcp: impl AsyncWrite + tokio::io::AsyncRead + Unpin, description: u8) {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    if tcp.write_all(&[ALERT, 3, 3, 0, 2, FATAL, description]).await.is_ok() {
        drain(tcp).await;
    }
}

/// Closes so that the other side can read the alert: unread bytes would make the kernel reset the
/// connection (RFC 1122 §4.2.2.13) and throw the alert away.
async fn drain(mut tcp: impl AsyncWrite + tokio::io::AsyncRead + Unpin) {
    if tcp.shutdown().await.is_ok() {
        let rest = async { while matches!(tcp.read(&mut [0; 4096]).await, Ok(1..)) {} };
        // A client that never closes is left after this.
        let _closed_or_not = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
    }
}

/// The connections of each node to the manager API: without a bound, the requests that one begins and never ends
/// would fill the memory.
#[derive(Debug, Default)]
struct Connections {
    places: Mutex<HashMap<NodeId, Arc<Semaphore>>>,
}

impl Connections {
    fn admit(&self, stream: PeerStream) -> Result<PeerStream, Rejected> {
        let node = stream.peer().node;
        let mut places = self.places.lock().expect("nothing panics while it counts");
        places.retain(|_, places| places.available_permits() < MAX_CONNECTIONS_OF_NODE);
        let of_node = places.entry(node).or_insert_with(|| Arc::new(Semaphore::new(MAX_CONNECTIONS_OF_NODE)));
        let place = Arc::clone(of_node).try_acquire_owned().map_err(|_| Rejected::Insatiable(node))?;
        Ok(stream.holding(place))
    }
}

/// How many handshakes each source has begun and not ended.
#[derive(Debug, Default)]
struct Sources {
    begun: HashMap<IpAddr, usize>,
    total: usize,
}

impl Sources {
    fn begin(&mut self, source: IpAddr) -> bool {
        if self.total >= MAX_HANDSHAKES {
            return false;
        }
        let begun = self.begun.entry(source).or_default();
        if *begun >= MAX_HANDSHAKES_OF_SOURCE {
            return false;
        }
        *begun += 1;
        self.total += 1;
        true
    }

    fn end(&mut self, source: IpAddr) {
        self.total = self.total.saturating_sub(1);
        if let Some(begun) = self.begun.get_mut(&source) {
            *begun -= 1;
            if *begun == 0 {
                self.begun.remove(&source);
            }
        }
    }
}

/// An IPv6 host commonly has a /64 to itself, so that is one source.
pub(super) fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_HANDSHAKES: usize = 256;
const MAX_HANDSHAKES_OF_SOURCE: usize = 64;
const MAX_SENT_AWAY: usize = 64;
/// An agent has one; another while it renews its certificate, and others while those that broke are noticed.
const MAX_CONNECTIONS_OF_NODE: usize = 16;
const ALERT_PROTOCOL_VERSION: u8 = 70;
/// "Canceled for some reason unrelated to a protocol failure" (RFC 8446 §6.1): too many at a time.
const ALERT_USER_CANCELED: u8 = 90;
const ALERT_NO_APPLICATION_PROTOCOL: u8 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_is_an_ipv4_address_or_an_ipv6_half() {
        let of = |text: &str| source_of(text.parse().expect("an address")).to_string();
        assert_eq!(of("192.0.2.1"), "192.0.2.1");
        assert_eq!(of("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }

    #[test]
    fn one_host_of_ipv6_cannot_take_all_handshakes_by_changing_its_address() {
        let mut sources = Sources::default();
        let begun = (0..1000u128).filter(|host| {
            let address = Ipv6Addr::from_bits(0x2001_0db8 << 96 | host);
            sources.begin(source_of(address.into()))
        });
        assert_eq!(begun.count(), MAX_HANDSHAKES_OF_SOURCE);
    }

    #[test]
    fn one_source_cannot_take_all_handshakes() {
        let mut sources = Sources::default();
        let greedy = IpAddr::from([192, 0, 2, 1]);
        assert_eq!((0..1000).filter(|_| sources.begin(greedy)).count(), MAX_HANDSHAKES_OF_SOURCE);
        assert!(sources.begin(IpAddr::from([192, 0, 2, 2])));
        sources.end(greedy);
        assert!(sources.begin(greedy));
    }
}
