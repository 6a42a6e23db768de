//! What can happen, as data for programs and as a sentence for people.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::cluster::{Role, RotationStep, TokenName};
use crate::id::{EndpointId, HostName, NetworkName, NodeId};
use crate::sa::Suite;

/// Something that happened. No field may hold a secret, or text of any length that others chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// This agent started.
    AgentStarted {
        /// Its version.
        version: String,
    },
    /// This agent stops, as it was told to.
    AgentStopped {},
    /// A program on this machine asked for something by the unix socket.
    LocalRequest {
        /// The user, by the kernel's word.
        uid: u32,
        /// The process, by the kernel's word.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
        /// The call.
        request: String,
        /// What it was about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subject: Option<Reason>,
        /// Why it was not done, if it was not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Reason>,
    },
    /// A program of a user who may not use the unix socket tried it.
    CallerDenied {
        /// The user, by the kernel's word.
        uid: u32,
        /// The process, by the kernel's word.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<i32>,
    },
    /// A node asked this manager for something.
    NodeRequest {
        /// The node.
        node: NodeId,
        /// Its name, where it is a member.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<HostName>,
        /// The address that it came from.
        from: SocketAddr,
        /// The call.
        request: String,
        /// What it was about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        subject: Option<Reason>,
        /// Why it was not done, if it was not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<Reason>,
    },
    /// This manager admitted a node.
    NodeJoined {
        /// The node.
        node: NodeId,
        /// Its name.
        name: HostName,
        /// What it may do.
        role: Role,
        /// The address that it came from.
        from: SocketAddr,
        /// The token that it showed.
        token: TokenName,
    },
    /// This manager did not admit a machine.
    JoinRefused {
        /// The address that it came from.
        from: SocketAddr,
        /// Why not.
        reason: Reason,
    },
    /// A connection to the TLS port was refused.
    ConnectionRefused {
        /// The address that it came from.
        from: SocketAddr,
        /// Why.
        reason: Reason,
    },
    /// A node began a session with this manager.
    SessionBegun {
        /// The node.
        node: NodeId,
        /// The address that it came from.
        from: SocketAddr,
    },
    /// A node has no session with this manager any more.
    SessionEnded {
        /// The node.
        node: NodeId,
    },
    /// This node has a session with a manager.
    ManagerReached {},
    /// This node has no session with any manager any more.
    ManagerLost {
        /// Why.
        reason: Reason,
    },
    /// A peer cannot be connected to.
    PeerUnreachable {
        /// The peer.
        peer: NodeId,
        /// Its name.
        name: HostName,
        /// Why.
        reason: Reason,
    },
    /// Keys for a network were agreed on with a peer and are in use.
    KeysEstablished {
        /// The peer.
        peer: NodeId,
        /// Its name.
        name: HostName,
        /// The network.
        network: NetworkName,
        /// The cipher.
        suite: Suite,
        /// How many times keys were agreed on, since the link began.
        generation: u64,
    },
    /// Keys for a network could not be agreed on with a peer.
    KeyExchangeFailed {
        /// The peer.
        peer: NodeId,
        /// Its name.
        name: HostName,
        /// The network.
        network: NetworkName,
        /// Whether the peer refused, and not this node.
        by_peer: bool,
        /// Why.
        reason: Reason,
    },
    /// The interface of a container was not as it should be, and is again.
    InterfaceMended {
        /// The endpoint.
        endpoint: EndpointId,
        /// Its network.
        network: NetworkName,
        /// The container's network namespace.
        netns: Reason,
        /// What was done.
        what: Reason,
    },
    /// A lane had not what it was given, and has it again.
    LanesMended {
        /// What was done.
        what: Reason,
    },
    /// Something that an agent left behind when it died, or when it could not remove it, was removed.
    LeftoverRemoved {
        /// What it was, and where.
        what: Reason,
    },
    /// This node has a new certificate.
    CertificateRenewed {
        /// When it expires, in seconds since 1970 UTC.
        expires_unix_seconds: u64,
    },
    /// A node was removed from the cluster, as this one learned from a manager or from a peer.
    NodeRemoved {
        /// The node.
        node: NodeId,
    },
    /// A node is a manager now.
    ManagerAdded {
        /// The node.
        node: NodeId,
        /// Its name.
        name: HostName,
    },
    /// A node is a manager no more.
    ManagerGone {
        /// The node.
        node: NodeId,
        /// Its name.
        name: HostName,
    },
    /// This node serves as a manager from now on.
    OfficeTaken {},
    /// This node serves as a manager no more.
    OfficeLeft {},
    /// This node trusts other roots than before, or has a certificate of another.
    RootsChanged {
        /// Those that it trusts, by their SHA-256.
        trusted: Vec<String>,
        /// That of its certificate.
        issuer: String,
    },
    /// This manager has brought the replacement of the root to a step.
    RotationStep {
        /// The step.
        step: RotationStep,
    },
    /// This manager has found the root replaced on every node.
    RotationEnded {},
    /// Packets came that nobody honest has sent, within some seconds.
    ForgedPackets {
        /// How many failed the integrity check.
        unauthentic: u64,
        /// How many had come before.
        replayed: u64,
        /// How many were plaintext for an encrypted network.
        plaintext: u64,
    },
    /// More of one kind happened than are recorded.
    Suppressed {
        /// The kind.
        kind: String,
        /// How many were not recorded.
        count: u64,
    },
}

impl Event {
    /// The name of its kind, as it is in JSON.
    pub fn kind(&self) -> String {
        let json = serde_json::to_value(self).expect("an event has a JSON form");
        json.get("event").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    }

    /// Whether anybody who reaches a port can cause it as often as they like.
    pub(super) const fn is_from_outside(&self) -> bool {
        matches!(
            self,
            Self::CallerDenied { .. }
                | Self::JoinRefused { .. }
                | Self::ConnectionRefused { .. }
                | Self::ForgedPackets { .. }
        )
    }

    /// Whether a node of the cluster, or a container of this one, can cause it as often as it likes.
    pub(super) const fn is_from_nodes(&self) -> bool {
        matches!(
            self,
            Self::NodeRequest { .. }
                | Self::SessionBegun { .. }
                | Self::SessionEnded { .. }
                | Self::PeerUnreachable { .. }
                | Self::KeysEstablished { .. }
                | Self::KeyExchangeFailed { .. }
                | Self::InterfaceMended { .. }
        )
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AgentStarted { version } => write!(f, "agent {version} started"),
            Self::AgentStopped {} => f.write_str("agent stops"),
            Self::CallerDenied { uid, pid } => {
                user(f, *uid, *pid)?;
                f.write_str(" may not use this agent")
            }
            Self::LocalRequest { uid, pid, request, subject, failure } => {
                user(f, *uid, *pid)?;
                asked(f, request, subject.as_ref(), failure.as_ref())
            }
            Self::NodeRequest { node, name, from, request, subject, failure } => {
                write!(f, "node {node}")?;
                if let Some(name) = name {
                    write!(f, " ({name})")?;
                }
                write!(f, " at {from}")?;
                asked(f, request, subject.as_ref(), failure.as_ref())
            }
            Self::NodeJoined { node, name, role, from, token } => {
                write!(f, "node {node} ({name}) at {from} joined as {role} with token {token}")
            }
            Self::JoinRefused { from, reason } => write!(f, "{from} may not join: {reason}"),
            Self::ConnectionRefused { from, reason } => write!(f, "connection of {from} refused: {reason}"),
            Self::SessionBegun { node, from } => write!(f, "node {node} at {from} began a session"),
            Self::SessionEnded { node } => write!(f, "node {node} has no session any more"),
            Self::ManagerReached {} => f.write_str("session with a manager"),
            Self::ManagerLost { reason } => write!(f, "no session with a manager: {reason}"),
            Self::PeerUnreachable { peer, name, reason } => {
                write!(f, "{name} ({peer}) cannot be connected to: {reason}")
            }
            Self::KeysEstablished { peer, name, network, suite, generation } => {
                write!(f, "keys with {name} ({peer}) on {network}: {} generation {generation}", suite.name())
            }
            Self::KeyExchangeFailed { peer, name, network, by_peer, reason } => {
                let who = if *by_peer { "refused by" } else { "refused to" };
                write!(f, "keys {who} {name} ({peer}) on {network}: {reason}")
            }
            Self::InterfaceMended { endpoint, network, netns, what } => {
                write!(f, "endpoint {endpoint} of {network} in {netns}: {what}")
            }
            Self::LanesMended { what } => write!(f, "lanes mended: {what}"),
            Self::LeftoverRemoved { what } => write!(f, "leftover removed: {what}"),
            Self::CertificateRenewed { expires_unix_seconds } => {
                let expires = std::time::UNIX_EPOCH + std::time::Duration::from_secs(*expires_unix_seconds);
                write!(f, "certificate renewed, until {}", super::Timestamp(expires))
            }
            Self::NodeRemoved { node } => write!(f, "node {node} was removed from the cluster"),
            Self::ManagerAdded { node, name } => write!(f, "node {node} ({name}) is a manager now"),
            Self::ManagerGone { node, name } => write!(f, "node {node} ({name}) is a manager no more"),
            Self::OfficeTaken {} => f.write_str("this node serves as a manager"),
            Self::OfficeLeft {} => f.write_str("this node serves as a manager no more"),
            Self::RootsChanged { trusted, issuer } => {
                write!(f, "roots trusted: {}; the certificate is of {issuer}", trusted.join(", "))
            }
            Self::RotationStep { step } => write!(f, "the root is being replaced: {}", step.describe()),
            Self::RotationEnded {} => f.write_str("the root is replaced on every node"),
            Self::ForgedPackets { unauthentic, replayed, plaintext } => write!(
                f,
                "packets that nobody honest has sent: {unauthentic} not authentic, {replayed} replayed, \
                 {plaintext} in plaintext for an encrypted network"
            ),
            Self::Suppressed { kind, count } => write!(f, "{count} more events of {kind} are not recorded"),
        }
    }
}

fn user(f: &mut fmt::Formatter<'_>, uid: u32, pid: Option<i32>) -> fmt::Result {
    write!(f, "uid {uid}")?;
    pid.map_or(Ok(()), |pid| write!(f, " (pid {pid})"))
}

fn asked(
    f: &mut fmt::Formatter<'_>,
    request: &str,
    subject: Option<&Reason>,
    failure: Option<&Reason>,
) -> fmt::Result {
    write!(f, " asked for {request}")?;
    if let Some(subject) = subject {
        write!(f, " {subject}")?;
    }
    match failure {
        Some(reason) => write!(f, ", failed: {reason}"),
        None => Ok(()),
    }
}

/// Text in an event: one line, cut where it is too long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Reason(Box<str>);

impl Reason {
    /// The text of anything.
    pub fn of(what: impl fmt::Display) -> Self {
        what.to_string().into()
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        let line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
        let mut line: String = line.take(LONGEST + 1).collect();
        if line.chars().count() > LONGEST {
            line.truncate(line.char_indices().nth(LONGEST - 1).map_or(0, |(place, _)| place));
            line.push('…');
        }
        Self(line.into())
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> Self {
        reason.0.into()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// In characters.
const LONGEST: usize = 300;
