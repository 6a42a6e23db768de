//! `overlayd node …` and `overlayd leave`: their arguments, and the requests that they make.

use clap::{Args, Subcommand};

use crate::api::types::{ChangeNodeRequest, InspectNodeRequest, LeaveRequest, NodeChange, RemoveNodeRequest};
use crate::id::HostName;

/// Commands about nodes.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes
    Ls,
    /// Show one node with its endpoints
    Inspect(NodeArgument),
    /// Remove another node from the cluster, whether it wants to or not
    Rm {
        /// The node.
        #[command(flatten)]
        node: NodeArgument,
        /// Remove it though it is connected or has endpoints, which are cut off
        #[arg(long)]
        force: bool,
    },
    /// Make a worker a manager
    Promote(NodeArgument),
    /// Make a manager a worker
    Demote(NodeArgument),
}

/// A node of the cluster.
#[derive(Debug, Args)]
pub struct NodeArgument {
    /// Name or id of the node
    #[arg(value_name = "NODE")]
    node: HostName,
}

impl NodeArgument {
    pub(in crate::cli) fn inspect(self) -> InspectNodeRequest {
        InspectNodeRequest { node: self.node }
    }

    pub(in crate::cli) fn remove(self, force: bool) -> RemoveNodeRequest {
        RemoveNodeRequest { node: self.node, force }
    }

    pub(in crate::cli) fn change(self, change: NodeChange) -> ChangeNodeRequest {
        ChangeNodeRequest { node: self.node, change }
    }
}

/// Flags of `overlayd leave`.
#[derive(Debug, Args)]
pub struct LeaveArguments {
    /// Leave at any price: endpoints are cut off, and no manager needs to hear of it
    #[arg(long)]
    force: bool,
}

impl LeaveArguments {
    pub(in crate::cli) fn request(self) -> LeaveRequest {
        LeaveRequest { force: self.force }
    }
}
