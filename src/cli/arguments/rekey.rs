//! Flags of `overlayd rekey`.

use clap::Args;

use crate::api::types::RekeyRequest;
use crate::id::{HostName, NetworkName};

/// Flags of `overlayd rekey`.
#[derive(Debug, Args)]
pub struct RekeyArguments {
    /// Name or id of a network, for the keys of that alone
    #[arg(value_name = "NET", conflicts_with = "peer")]
    network: Option<NetworkName>,
    /// Name or id of a peer, for the keys with that alone
    #[arg(long, value_name = "NODE")]
    peer: Option<HostName>,
}

impl RekeyArguments {
    pub(in crate::cli) fn request(self) -> RekeyRequest {
        RekeyRequest { network: self.network, peer: self.peer }
    }
}
