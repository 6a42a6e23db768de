//! What there is on a node, held against what should be.

use serde::{Deserialize, Serialize};

use crate::id::EndpointId;

/// Has the agent look at everything that it is answerable for. Nothing is changed by it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Only at this endpoint of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<EndpointId>,
}

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VerifyResponse {
    /// All of it.
    pub items: Vec<VerifiedItem>,
}

impl VerifyResponse {
    /// What is not as it should be.
    pub fn differing(&self) -> impl Iterator<Item = &VerifiedItem> {
        self.items.iter().filter(|item| item.verdict != Verdict::Ok {})
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedItem {
    /// What of the thing.
    pub item: Verified,
    /// The thing.
    pub of: String,
    /// How it is.
    pub is: String,
    /// Whether that is how it should be.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl VerifiedItem {
    /// Something that is as it should be.
    pub fn ok(item: Verified, of: impl ToString, is: impl ToString) -> Self {
        Self { item, of: of.to_string(), is: is.to_string(), verdict: Verdict::Ok {} }
    }

    /// Something that is not.
    pub fn differs(
        (item, of): (Verified, impl ToString),
        is: impl ToString,
        should_be: impl ToString,
        (by, how): (MendedBy, impl ToString),
    ) -> Self {
        let verdict =
            Verdict::Differs { should_be: should_be.to_string(), mended_by: by, how: how.to_string() };
        Self { item, of: of.to_string(), is: is.to_string(), verdict }
    }
}

/// Whether something is as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verdict {
    /// It is.
    Ok {},
    /// It is not.
    Differs {
        /// How it should be.
        should_be: String,
        /// Whose business that is.
        mended_by: MendedBy,
        /// What they do.
        how: String,
    },
}

/// Who mends something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MendedBy {
    /// The agent, by itself.
    Agent,
    /// Whoever runs it.
    Operator,
}

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// The session with a manager.
    Manager,
    /// What the manager has told of a network.
    View,
    /// The signed membership in force.
    Membership,
    /// What the lanes look a network up in.
    Tables,
    /// The SAs of a peer in a network.
    Keys,
    /// An attachment, and that the manager knows it.
    Endpoint,
    /// The TAP of a container.
    Interface,
    /// Its name there.
    Name,
    /// Whether it is up.
    Up,
    /// Its Ethernet address.
    Mac,
    /// Its MTU.
    Mtu,
    /// Its addresses.
    Addresses,
    /// The routes that lead out of it.
    Routes,
    /// What its kernel leaves to the agent.
    Offloads,
    /// An address of the underlay.
    Underlay,
    /// A socket of the node.
    Socket,
    /// A file of the agent, and who may read it.
    File,
    /// What was left behind by an agent.
    Leftovers,
}

impl Verified {
    /// Its name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::View => "view",
            Self::Membership => "membership",
            Self::Tables => "tables",
            Self::Keys => "keys",
            Self::Endpoint => "endpoint",
            Self::Interface => "interface",
            Self::Name => "name",
            Self::Up => "up",
            Self::Mac => "mac",
            Self::Mtu => "mtu",
            Self::Addresses => "addresses",
            Self::Routes => "routes",
            Self::Offloads => "offloads",
            Self::Underlay => "underlay",
            Self::Socket => "socket",
            Self::File => "file",
            Self::Leftovers => "leftovers",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_says_its_state_beside_what_it_is() {
        let ok = VerifiedItem::ok(Verified::Mtu, "eth0", 1408);
        let json = serde_json::to_string(&ok).expect("JSON");
        assert_eq!(json, r#"{"item":"mtu","of":"eth0","is":"1408","state":"ok"}"#);
        let other =
            VerifiedItem::differs((Verified::Mtu, "eth0"), 9000, 1408, (MendedBy::Operator, "set it"));
        let json = serde_json::to_string(&other).expect("JSON");
        assert!(json.contains(r#""state":"differs","should_be":"1408","mended_by":"operator""#), "{json}");
        let items = vec![ok, serde_json::from_str(&json).expect("an item")];
        assert_eq!(VerifyResponse { items }.differing().collect::<Vec<_>>(), [&other]);
    }
}
