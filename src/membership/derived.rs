//! A membership as it is told to a node that knows who the members are: the signature without the statement.
//!
//! In a large network the list of members is long and changes by one. The node puts the statement together
//! again from the members that it knows; the hash tells whether that is what was signed, and the signature is
//! checked afterwards as that of any other membership.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::signed::{SignedMembership, payload_of};
use crate::cluster::Membership;
use crate::id::Epoch;

/// A [`SignedMembership`] without the members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DerivedMembership {
    /// Its epoch.
    pub epoch: Epoch,
    /// SHA-256 of the statement as it was signed, base64.
    pub sha256: String,
    /// As in [`SignedMembership`].
    pub certificate: String,
    /// The same.
    pub signature: String,
}

impl DerivedMembership {
    /// What is told to who knows `membership`; `None` if the statement that was signed cannot be put together
    /// from that.
    pub fn new(signed: &SignedMembership, membership: &Membership) -> Option<Self> {
        (signed.payload == payload_of(membership)).then(|| Self {
            epoch: membership.epoch,
            sha256: hash(&signed.payload),
            certificate: signed.certificate.clone(),
            signature: signed.signature.clone(),
        })
    }

    /// The membership that was signed, which has the epoch of this; `None` if it is another.
    pub fn signed(self, membership: &Membership) -> Option<SignedMembership> {
        let payload = payload_of(membership);
        let Self { certificate, signature, .. } = self;
        (hash(&payload) == self.sha256).then(|| SignedMembership::of(payload, certificate, signature))
    }
}

fn hash(payload: &str) -> String {
    BASE64.encode(&Sha256::digest(payload))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::id::{NetworkId, NodeId, Vni};
    use crate::membership::Signature;

    #[test]
    fn membership_is_put_together_from_the_members_and_no_others() {
        let signed = SignedMembership::sign(&membership(5), |_| Ok::<_, Infallible>(signature())).unwrap();
        let derived = DerivedMembership::new(&signed, &membership(5)).unwrap();
        assert_eq!(derived.clone().signed(&membership(5)), Some(signed.clone()));
        assert_eq!(derived.signed(&membership(4)), None);
        assert_eq!(DerivedMembership::new(&signed, &membership(6)), None);
    }

    #[test]
    fn its_length_does_not_depend_on_how_many_members_there_are() {
        let length = |members| {
            let signed = SignedMembership::sign(&membership(members), |_| Ok::<_, Infallible>(signature()));
            let derived = DerivedMembership::new(&signed.unwrap(), &membership(members)).unwrap();
            serde_json::to_string(&derived).unwrap().len()
        };
        assert_eq!(length(1), length(200));
    }

    fn membership(members: u8) -> Membership {
        Membership {
            network: NetworkId::from_entropy([1; 16]),
            vni: Vni::new(4096).unwrap(),
            epoch: Epoch::new(7),
            nodes: (0..members).map(|n| NodeId::from_entropy([n; 16])).collect(),
        }
    }

    fn signature() -> Signature {
        Signature::new(b"certificate", b"signature")
    }
}
