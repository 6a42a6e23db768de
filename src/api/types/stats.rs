//! The counters.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::JoinTotals;
use crate::drop_reason::DropReason;
use crate::id::{EndpointId, HostName, LaneId, NetworkName, NodeId};
use crate::rate::RateLimits;

/// Asks for the counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatsRequest {}

/// The counters since the agent started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StatsResponse {
    /// Drops; counters that are zero may be left out.
    pub drops: Vec<DropCount>,
    /// What went to and came from each peer, per network.
    pub peers: Vec<PeerTraffic>,
    /// What went to and came from each local endpoint.
    pub endpoints: Vec<EndpointTraffic>,
    /// What a manager was asked for by machines that want to join; nothing on other nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joins: Option<JoinTotals>,
    /// How often something of a container's interface was given again.
    #[serde(default)]
    pub mendings: u64,
}

/// One drop counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The lane.
    pub lane: LaneId,
    /// Why.
    #[serde(with = "drop_reason_name")]
    pub reason: DropReason,
    /// How many.
    pub packets: u64,
}

/// Packets and bytes in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes of the container's frames.
    pub bytes: u64,
}

/// The counters of one peer in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTraffic {
    /// The peer.
    pub node: NodeId,
    /// Its name.
    pub node_name: HostName,
    /// The network's name.
    pub network_name: NetworkName,
    /// To the peer.
    pub sent: Traffic,
    /// From the peer.
    pub received: Traffic,
}

/// The counters of one local endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointTraffic {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its name.
    pub name: Option<HostName>,
    /// The network's name.
    pub network_name: NetworkName,
    /// From the container.
    pub sent: Traffic,
    /// To the container.
    pub received: Traffic,
    /// What it may send and receive.
    #[serde(default)]
    pub rates: RateLimits,
}

mod drop_reason_name {
    use super::{Deserialize, Deserializer, DropReason, Serializer};

    pub(in crate::api::types) fn serialize<S: Serializer>(
        reason: &DropReason,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_str(reason.name())
    }

    pub(in crate::api::types) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<DropReason, D::Error> {
        let name = String::deserialize(from)?;
        let known = DropReason::ALL.iter().find(|reason| reason.name() == name);
        known.copied().ok_or_else(|| serde::de::Error::custom(format!("unknown drop reason {name:?}")))
    }
}

pub(super) mod optional_drop_reason {
    use super::{Deserialize, Deserializer, DropReason, Serialize, Serializer, drop_reason_name};

    #[derive(Serialize, Deserialize)]
    struct Named(#[serde(with = "drop_reason_name")] DropReason);

    pub(in crate::api::types) fn serialize<S: Serializer>(
        reason: &Option<DropReason>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        reason.map(Named).serialize(to)
    }

    pub(in crate::api::types) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<DropReason>, D::Error> {
        Ok(Option::<Named>::deserialize(from)?.map(|Named(reason)| reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_reasons_cross_the_socket_by_name() {
        for &reason in DropReason::ALL {
            let count = DropCount { lane: LaneId::new(3).expect("a lane"), reason, packets: 7 };
            let json = serde_json::to_string(&count).expect("JSON");
            assert!(json.contains(reason.name()), "{json}");
            assert_eq!(serde_json::from_str::<DropCount>(&json).expect("a count"), count);
        }
    }
}
