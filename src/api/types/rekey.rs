//! New keys at an operator's word.

use serde::{Deserialize, Serialize};

use crate::id::{HostName, NetworkId, NetworkName, NodeId, Spi};
use crate::sa::Suite;

/// Has new keys made now, and waits for them; of every link unless fewer are named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RekeyRequest {
    /// Only of this network, named by its name or its id.
    pub network: Option<NetworkName>,
    /// Only with this peer, named by its name or its id.
    pub peer: Option<HostName>,
}

impl RekeyRequest {
    /// Which links are meant, in words.
    pub fn links(&self) -> String {
        let network = self.network.as_ref().map(|network| format!("network {network}"));
        let peer = self.peer.as_ref().map(|peer| format!("peer {peer}"));
        match network.into_iter().chain(peer).collect::<Vec<_>>() {
            all if all.is_empty() => "every link".to_owned(),
            some => some.join(" "),
        }
    }
}

/// What became of each link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyResponse {
    /// The links, by network.
    pub links: Vec<RekeyedLink>,
}

/// A peer in one encrypted network, and its keys after an exchange or without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RekeyedLink {
    /// The peer.
    pub node: NodeId,
    /// Its name.
    pub node_name: HostName,
    /// The network.
    pub network: NetworkId,
    /// Its name.
    pub network_name: NetworkName,
    /// Why there are no new keys; the old ones, if there are any, stay in use until their limits.
    pub failure: Option<String>,
    /// The suite of the new keys.
    pub suite: Option<Suite>,
    /// SPIs of the new SAs that this node sends on, one for each lane.
    pub outbound_spis: Vec<Spi>,
    /// SPIs of the new SAs that this node receives on.
    pub inbound_spis: Vec<Spi>,
}
