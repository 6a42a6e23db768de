//! The messages of the peer key channel, inside mutual TLS, as bytes.
//!
//! ```text
//!  0  4  length of what follows, big-endian, at most MAX_FRAME_LEN
//!  4  1  version = 1
//!  5  1  type
//!  6  n  body
//! ```
//! Bodies, all numbers big-endian; types below 16 concern one network and begin with its id (25 bytes):
//! ```text
//!  1 offer         exchange[8] VNI[4] epoch[8] boot id[16] suites 1+n share[32] nonce[32] SPIs 1+4n
//!  2 answer        exchange[8] suite[1] share[32] nonce[32] SPIs 1+4n
//!  3 active        exchange[8]
//!  4 rekey please  exchange to replace[8], zero for none
//!  5 refused       exchange[8], zero for none; reason[1] detail[8]
//! 16 hello         boot id[16] lanes[1]
//! 17 SPI unknown   SPI[4]
//! 18 membership    payload, certificate, signature, each 4+n
//! 19 removals      payload, certificate, signature, each 4+n
//! 20 whereabouts   for TLS: IP[16] port[2]; for data: IP[16] port[2]; IPv4 as IPv6 (RFC 4291 §2.5.5.2)
//! 21 epoch         network[25] epoch[8]
//! ```
//! Decoding checks lengths and bounds and that nothing is left over; what the numbers mean is
//! [`super::machine`]'s to judge. The frame counts its own length, so two frames one after the other
//! read only one way, which the transcript hash relies on.

use std::marker::PhantomData;
use std::net::{Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::reason::Reason;
use crate::id::{BootId, Epoch, LaneId, NetworkId};
use crate::membership::{Signed, SignedMembership, SignedRemovals};

/// A message of the channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first message on every channel, from both sides.
    Hello(Hello),
    /// Packets came with an SPI that the sender of this message does not know.
    SpiUnknown(u32),
    /// A membership that the sender believes to be newer than the receiver's.
    Membership(Box<SignedMembership>),
    /// The newest list of removed nodes that the sender knows.
    Removals(Box<SignedRemovals>),
    /// The epoch of the newest membership of a network that the sender knows. Who knows a newer one answers
    /// with that, who knows an older one with its epoch.
    Epoch(NetworkId, Epoch),
    /// Where the sender is reached, whatever else was said of it before.
    Whereabouts(Whereabouts),
    /// Concerns one network: for its [`super::Link`].
    Link(LinkFrame),
}

/// What a node says of itself when a channel begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// This run of the agent.
    pub boot_id: BootId,
    /// How many lanes it sends and receives with, 1 to [`LaneId::MAX_LANES`].
    pub lanes: u8,
}

/// Where a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whereabouts {
    /// Its TLS port: key channels and, on a manager, the manager API.
    pub advertise: SocketAddr,
    /// Its encrypted data (UDP).
    pub data: SocketAddr,
}

/// A message for one link, with the bytes it came as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFrame {
    pub(super) network: NetworkId,
    pub(super) message: LinkMessage,
    pub(super) bytes: Bytes,
}

impl LinkFrame {
    /// The network that it concerns.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// The answer of a node that has no link for this frame's network; `None` where an answer
    /// would only be answered in turn.
    pub fn refuse_unknown_network(&self) -> Option<Bytes> {
        let exchange = match &self.message {
            LinkMessage::Offer(offer) => Some(offer.exchange),
            LinkMessage::Answer(answer) => Some(answer.exchange),
            LinkMessage::Active(exchange) => Some(*exchange),
            LinkMessage::RekeyPlease(_) => None,
            LinkMessage::Refused { .. } => return None,
        };
        Some(LinkMessage::Refused { exchange, reason: Reason::UnknownNetwork }.encode(self.network))
    }
}

/// The name of one key exchange, random, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId(std::num::NonZeroU64);

impl ExchangeId {
    /// The name that is this number, unless it is zero.
    pub fn new(number: u64) -> Option<Self> {
        std::num::NonZeroU64::new(number).map(Self)
    }

    fn to_wire(this: Option<Self>) -> u64 {
        this.map_or(0, |id| id.0.get())
    }
}

impl std::fmt::Display for ExchangeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LinkMessage {
    Offer(Offer),
    Answer(Answer),
    Active(ExchangeId),
    RekeyPlease(Option<ExchangeId>),
    Refused { exchange: Option<ExchangeId>, reason: Reason },
}

/// Message 1. Numbers are as they came: the machine judges them and names what is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) exchange: ExchangeId,
    pub(super) vni: u32,
    pub(super) epoch: Epoch,
    pub(super) boot_id: BootId,
    pub(super) suites: Vec<u8>,
    pub(super) share: [u8; 32],
    pub(super) nonce: [u8; 32],
    pub(super) spis: Vec<u32>,
}

/// Message 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) exchange: ExchangeId,
    pub(super) suite: u8,
    pub(super) share: [u8; 32],
    pub(super) nonce: [u8; 32],
    pub(super) spis: Vec<u32>,
}

/// Why bytes are no message. The driver closes the channel: the peer is broken or too new.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The length prefix is beyond [`MAX_FRAME_LEN`].
    #[error("the peer announces a message of {0} bytes, more than the {MAX_FRAME_LEN} that are allowed")]
    TooLong(u32),
    /// Another version of the key exchange.
    #[error("the peer speaks version {0} of the key exchange, this node version {VERSION}")]
    Version(u8),
    /// A type that this version does not have.
    #[error("the peer sent a message of unknown type {0}")]
    Type(u8),
    /// The body ends early, or goes on after its end.
    #[error("the peer's message has not the length that its type demands")]
    Length,
    /// A field that is out of its bounds.
    #[error("the peer's message is malformed: {0}")]
    Field(&'static str),
}

/// Takes one whole frame from the front of what has been received; `None` if more is to come.
///
/// # Errors
/// [`MessageError::TooLong`], before anything of that length is stored.
pub fn take_frame(received: &mut BytesMut) -> Result<Option<Bytes>, MessageError> {
    let Some(prefix) = received.first_chunk::<LENGTH_LEN>() else { return Ok(None) };
    let len = u32::from_be_bytes(*prefix);
    let total = LENGTH_LEN + usize::try_from(len).unwrap_or(usize::MAX - LENGTH_LEN);
    if total > MAX_FRAME_LEN {
        return Err(MessageError::TooLong(len));
    }
    Ok((received.len() >= total).then(|| received.split_to(total).freeze()))
}

impl Message {
    /// Reads a frame of [`take_frame`].
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn decode(frame: &Bytes) -> Result<Self, MessageError> {
        let mut body = frame.clone();
        let len = body.try_get_u32().map_err(|_| MessageError::Length)?;
        if usize::try_from(len) != Ok(body.len()) {
            return Err(MessageError::Length);
        }
        let version = u8_of(&mut body)?;
        if version != VERSION {
            return Err(MessageError::Version(version));
        }
        let message = match u8_of(&mut body)? {
            HELLO => {
                let (boot_id, lanes) = (BootId::from_entropy(array(&mut body)?), u8_of(&mut body)?);
                if lanes == 0 || lanes > LaneId::MAX_LANES {
                    return Err(MessageError::Field("a node has 1 to 64 lanes"));
                }
                Self::Hello(Hello { boot_id, lanes })
            }
            SPI_UNKNOWN => Self::SpiUnknown(u32_of(&mut body)?),
            MEMBERSHIP => Self::Membership(Box::new(signed(&mut body)?)),
            REMOVALS => Self::Removals(Box::new(signed(&mut body)?)),
            EPOCH => Self::Epoch(network_id(&mut body)?, epoch(&mut body)?),
            WHEREABOUTS => {
                Self::Whereabouts(Whereabouts { advertise: address(&mut body)?, data: address(&mut body)? })
            }
            kind => {
                let message = LinkMessage::decode(kind, &mut body)?;
                Self::Link(LinkFrame { network: message.0, message: message.1, bytes: frame.clone() })
            }
        };
        if body.has_remaining() { Err(MessageError::Length) } else { Ok(message) }
    }

    /// The message as a frame.
    pub fn encode(&self) -> Bytes {
        match self {
            Self::Hello(hello) => frame(HELLO, |body| {
                body.put_slice(hello.boot_id.as_bytes());
                body.put_u8(hello.lanes);
            }),
            Self::SpiUnknown(spi) => frame(SPI_UNKNOWN, |body| body.put_u32(*spi)),
            Self::Membership(signed) => frame(MEMBERSHIP, |body| {
                put_strings(body, [&signed.payload, &signed.certificate, &signed.signature]);
            }),
            Self::Removals(signed) => frame(REMOVALS, |body| {
                put_strings(body, [&signed.payload, &signed.certificate, &signed.signature]);
            }),
            Self::Epoch(network, epoch) => frame(EPOCH, |body| {
                body.put_slice(network.as_str().as_bytes());
                body.put_u64(epoch.get());
            }),
            Self::Whereabouts(Whereabouts { advertise, data }) => frame(WHEREABOUTS, |body| {
                for address in [advertise, data] {
                    let ip = match address.ip() {
                        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                        std::net::IpAddr::V6(ip) => ip,
                    };
                    body.put_slice(&ip.octets());
                    body.put_u16(address.port());
                }
            }),
            Self::Link(link) => link.bytes.clone(),
        }
    }
}

impl LinkMessage {
    pub(super) fn encode(&self, network: NetworkId) -> Bytes {
        let kind = match self {
            Self::Offer(_) => OFFER,
            Self::Answer(_) => ANSWER,
            Self::Active(_) => ACTIVE,
            Self::RekeyPlease(_) => REKEY_PLEASE,
            Self::Refused { .. } => REFUSED,
        };
        frame(kind, |body| {
            body.put_slice(network.as_str().as_bytes());
            match self {
                Self::Offer(offer) => {
                    body.put_u64(ExchangeId::to_wire(Some(offer.exchange)));
                    body.put_u32(offer.vni);
                    body.put_u64(offer.epoch.get());
                    body.put_slice(offer.boot_id.as_bytes());
                    body.put_u8(count(offer.suites.len()));
                    body.put_slice(&offer.suites);
                    put_share(body, &offer.share, &offer.nonce, &offer.spis);
                }
                Self::Answer(answer) => {
                    body.put_u64(ExchangeId::to_wire(Some(answer.exchange)));
                    body.put_u8(answer.suite);
                    put_share(body, &answer.share, &answer.nonce, &answer.spis);
                }
                Self::Active(exchange) => body.put_u64(ExchangeId::to_wire(Some(*exchange))),
                Self::RekeyPlease(exchange) => body.put_u64(ExchangeId::to_wire(*exchange)),
                Self::Refused { exchange, reason } => {
                    let (code, detail) = reason.to_wire();
                    body.put_u64(ExchangeId::to_wire(*exchange));
                    body.put_u8(code);
                    body.put_u64(detail);
                }
            }
        })
    }

    fn decode(kind: u8, body: &mut Bytes) -> Result<(NetworkId, Self), MessageError> {
        if !(OFFER..=REFUSED).contains(&kind) {
            return Err(MessageError::Type(kind));
        }
        let network = network_id(body)?;
        let exchange = ExchangeId::new(body.try_get_u64().map_err(|_| MessageError::Length)?);
        let named = exchange.ok_or(MessageError::Field("the exchange id is zero"));
        let message = match kind {
            OFFER => Self::Offer(Offer {
                exchange: named?,
                vni: u32_of(body)?,
                epoch: epoch(body)?,
                boot_id: BootId::from_entropy(array(body)?),
                suites: {
                    let count = bounded(u8_of(body)?, MAX_SUITES, "too many cipher suites")?;
                    (0..count).map(|_| u8_of(body)).collect::<Result<_, _>>()?
                },
                share: array(body)?,
                nonce: array(body)?,
                spis: spis(body)?,
            }),
            ANSWER => Self::Answer(Answer {
                exchange: named?,
                suite: u8_of(body)?,
                share: array(body)?,
                nonce: array(body)?,
                spis: spis(body)?,
            }),
            ACTIVE => Self::Active(named?),
            REKEY_PLEASE => Self::RekeyPlease(exchange),
            _ => {
                let code = u8_of(body)?;
                let detail = body.try_get_u64().map_err(|_| MessageError::Length)?;
                let reason = Reason::from_wire(code, detail)
                    .ok_or(MessageError::Field("a reason of refusal that this version does not have"))?;
                Self::Refused { exchange, reason }
            }
        };
        Ok((network, message))
    }
}

fn frame(kind: u8, write_body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut frame = BytesMut::with_capacity(256);
    frame.put_u32(0);
    frame.put_u8(VERSION);
    frame.put_u8(kind);
    write_body(&mut frame);
    let len = u32::try_from(frame.len() - LENGTH_LEN).unwrap_or(u32::MAX);
    frame[..LENGTH_LEN].copy_from_slice(&len.to_be_bytes());
    frame.freeze()
}

fn put_strings(body: &mut BytesMut, strings: [&String; 3]) {
    for string in strings {
        body.put_u32(u32::try_from(string.len()).unwrap_or(u32::MAX));
        body.put_slice(string.as_bytes());
    }
}

fn put_share(body: &mut BytesMut, share: &[u8; 32], nonce: &[u8; 32], spis: &[u32]) {
    body.put_slice(share);
    body.put_slice(nonce);
    body.put_u8(count(spis.len()));
    for spi in spis {
        body.put_u32(*spi);
    }
}

fn count(len: usize) -> u8 {
    u8::try_from(len).expect("a node offers at most 64 SPIs and 3 suites")
}

fn bounded(count: u8, max: u8, error: &'static str) -> Result<u8, MessageError> {
    if count > max { Err(MessageError::Field(error)) } else { Ok(count) }
}

fn spis(body: &mut Bytes) -> Result<Vec<u32>, MessageError> {
    let count = bounded(u8_of(body)?, LaneId::MAX_LANES, "more SPIs than a node can have lanes")?;
    (0..count).map(|_| u32_of(body)).collect()
}

fn network_id(body: &mut Bytes) -> Result<NetworkId, MessageError> {
    let text = array::<25>(body)?;
    let id = std::str::from_utf8(&text).ok().and_then(|id| id.parse().ok());
    id.ok_or(MessageError::Field("the network id is none"))
}

fn epoch(body: &mut Bytes) -> Result<Epoch, MessageError> {
    body.try_get_u64().map(Epoch::new).map_err(|_| MessageError::Length)
}

fn u8_of(body: &mut Bytes) -> Result<u8, MessageError> {
    body.try_get_u8().map_err(|_| MessageError::Length)
}

fn u32_of(body: &mut Bytes) -> Result<u32, MessageError> {
    body.try_get_u32().map_err(|_| MessageError::Length)
}

fn array<const N: usize>(body: &mut Bytes) -> Result<[u8; N], MessageError> {
    let mut array = [0; N];
    body.try_copy_to_slice(&mut array).map_err(|_| MessageError::Length)?;
    Ok(array)
}

/// An address that a node can be reached at.
fn address(body: &mut Bytes) -> Result<SocketAddr, MessageError> {
    let ip = Ipv6Addr::from_octets(array(body)?).to_canonical();
    let port = body.try_get_u16().map_err(|_| MessageError::Length)?;
    if ip.is_unspecified() || ip.is_multicast() || port == 0 {
        return Err(MessageError::Field("no node can be reached at the address"));
    }
    Ok(SocketAddr::new(ip, port))
}

fn signed<S>(body: &mut Bytes) -> Result<Signed<S>, MessageError> {
    let [payload, certificate, signature] = [string(body)?, string(body)?, string(body)?];
    Ok(Signed { payload, certificate, signature, says: PhantomData })
}

fn string(body: &mut Bytes) -> Result<String, MessageError> {
    let len = usize::try_from(u32_of(body)?).map_err(|_| MessageError::Length)?;
    if len > body.len() {
        return Err(MessageError::Length);
    }
    String::from_utf8(body.split_to(len).into()).map_err(|_| MessageError::Field("text is not UTF-8"))
}

/// The most bytes of a frame, its length prefix counted: a membership of 30,000 nodes fits.
pub const MAX_FRAME_LEN: usize = 1 << 20;

const VERSION: u8 = 1;
const LENGTH_LEN: usize = 4;
const MAX_SUITES: u8 = 16;

const OFFER: u8 = 1;
const ANSWER: u8 = 2;
const ACTIVE: u8 = 3;
const REKEY_PLEASE: u8 = 4;
const REFUSED: u8 = 5;
const HELLO: u8 = 16;
const SPI_UNKNOWN: u8 = 17;
const MEMBERSHIP: u8 = 18;
const REMOVALS: u8 = 19;
const WHEREABOUTS: u8 = 20;
const EPOCH: u8 = 21;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Membership;
    use crate::id::{NodeId, Vni};
    use crate::membership::Signature;
    use proptest::prelude::*;

    #[test]
    fn every_message_reads_back_as_written() {
        for frame in one_of_each() {
            let message = Message::decode(&frame).unwrap();
            assert_eq!(message.encode(), frame, "{message:?}");
            if let Message::Link(link) = message {
                assert_eq!(link.message.encode(link.network), frame, "{:?}", link.message);
            }
        }
    }

    #[test]
    fn every_truncated_or_prolonged_message_is_refused() {
        for frame in one_of_each() {
            for len in 0..frame.len() {
                assert!(Message::decode(&frame.slice(..len)).is_err());
                let mut short = BytesMut::from(&frame[..len]);
                if let Some(prefix) = short.first_chunk_mut::<LENGTH_LEN>() {
                    *prefix = u32::try_from(len - LENGTH_LEN).unwrap().to_be_bytes();
                    assert!(Message::decode(&short.freeze()).is_err(), "{len} of {frame:?}");
                }
            }
            let mut long = BytesMut::from(&frame[..]);
            long.put_u8(0);
            let len = u32::try_from(long.len() - LENGTH_LEN).unwrap();
            long[..LENGTH_LEN].copy_from_slice(&len.to_be_bytes());
            assert_eq!(Message::decode(&long.freeze()), Err(MessageError::Length), "{frame:?}");
        }
    }

    #[test]
    fn frames_come_out_of_a_stream_whole_and_a_giant_one_is_refused_unread() {
        let frames = one_of_each();
        let mut stream = BytesMut::new();
        let mut out = Vec::new();
        for byte in frames.concat() {
            stream.put_u8(byte);
            out.extend(take_frame(&mut stream).unwrap());
        }
        assert_eq!(out, frames);
        let mut giant = BytesMut::from(&[0xff; 5][..]);
        assert_eq!(take_frame(&mut giant), Err(MessageError::TooLong(u32::MAX)));
    }

    #[test]
    fn another_version_and_an_unknown_type_are_named() {
        let mut bytes = BytesMut::from(&one_of_each()[0][..]);
        bytes[4] = 9;
        assert_eq!(Message::decode(&bytes.clone().freeze()), Err(MessageError::Version(9)));
        (bytes[4], bytes[5]) = (1, 99);
        assert_eq!(Message::decode(&bytes.freeze()), Err(MessageError::Type(99)));
    }

    #[test]
    fn membership_of_as_many_nodes_as_a_network_may_have_fits_in_a_frame() {
        let nodes = (0..30_000_u32).map(|n| {
            let mut entropy = [0; 16];
            entropy[..4].copy_from_slice(&n.to_be_bytes());
            NodeId::from_entropy(entropy)
        });
        let membership = Membership {
            network: NetworkId::from_entropy([3; 16]),
            vni: Vni::new(Vni::MAX).unwrap(),
            epoch: Epoch::new(u64::MAX),
            nodes: nodes.collect(),
        };
        let text = || "A".repeat(8192);
        let sign = |_: &[u8]| Ok::<_, MessageError>(Signature { certificate: text(), signature: text() });
        let signed = SignedMembership::sign(&membership, sign).unwrap();
        let frame = Message::Membership(Box::new(signed.clone())).encode();
        assert!(frame.len() < MAX_FRAME_LEN, "{}", frame.len());
        assert_eq!(Message::decode(&frame), Ok(Message::Membership(Box::new(signed))));
    }

    #[test]
    fn whereabouts_at_which_nobody_can_be_reached_are_refused() {
        let data = "192.0.2.1:4500".parse().unwrap();
        for nowhere in ["0.0.0.0:2377", "224.0.0.1:2377", "[::]:2377", "[ff02::1]:2377", "192.0.2.1:0"] {
            let advertise = nowhere.parse().unwrap();
            let message = Message::Whereabouts(Whereabouts { advertise, data }).encode();
            assert!(matches!(Message::decode(&message), Err(MessageError::Field(_))), "{nowhere}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind: u8) {
            let hostile = frame(kind, |body| body.put_slice(&bytes));
            let _ = Message::decode(&hostile);
            let _ = Message::decode(&Bytes::from(bytes.clone()));
            let _ = take_frame(&mut BytesMut::from(&bytes[..]));
        }
    }

    fn one_of_each() -> Vec<Bytes> {
        let network = NetworkId::from_entropy([3; 16]);
        let exchange = ExchangeId::new(77).unwrap();
        let offer = Offer {
            exchange,
            vni: 7,
            epoch: Epoch::new(4),
            boot_id: BootId::from_entropy([1; 16]),
            suites: vec![1, 3],
            share: [5; 32],
            nonce: [6; 32],
            spis: vec![256, 257],
        };
        let answer = Answer { exchange, suite: 1, share: [7; 32], nonce: [8; 32], spis: vec![0xffff_ffff] };
        let (payload, none) = ("{}".to_owned(), String::new());
        let (certificate, signature, says) = ("AAAA".into(), none.clone(), PhantomData);
        let signed = SignedMembership { payload: payload.clone(), certificate, signature, says };
        let (certificate, signature, says) = (none, "BBBB".into(), PhantomData);
        let removals = SignedRemovals { payload, certificate, signature, says };
        let mut frames = vec![
            Message::Hello(Hello { boot_id: BootId::from_entropy([1; 16]), lanes: 2 }).encode(),
            Message::SpiUnknown(0x1234_5678).encode(),
            Message::Membership(Box::new(signed)).encode(),
            Message::Removals(Box::new(removals)).encode(),
            Message::Epoch(network, Epoch::new(5)).encode(),
            Message::Whereabouts(Whereabouts {
                advertise: "192.0.2.1:2377".parse().unwrap(),
                data: "[2001:db8::1]:4500".parse().unwrap(),
            })
            .encode(),
            LinkMessage::Offer(offer).encode(network),
            LinkMessage::Answer(answer).encode(network),
            LinkMessage::Active(exchange).encode(network),
            LinkMessage::RekeyPlease(None).encode(network),
            LinkMessage::RekeyPlease(Some(exchange)).encode(network),
        ];
        frames.extend(
            Reason::one_of_each()
                .into_iter()
                .map(|reason| LinkMessage::Refused { exchange: Some(exchange), reason }.encode(network)),
        );
        frames
    }
}
