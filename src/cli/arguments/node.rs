//! `overlayd node …` and `overlayd leave`: their arguments, and the requests that they make.

use std::collections::BTreeSet;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use super::labels;
use crate::api::types::{
    ChangeNodeRequest, InspectNodeRequest, LeaveRequest, NodeChange, NodeUpdate, RemoveNodeRequest,
};
use crate::cli::CliError;
use crate::cluster::Availability;
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
    /// Say whether a node takes containers, and label it
    Update(UpdateArguments),
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

/// Flags of `overlayd node update`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
pub struct UpdateArguments {
    #[command(flatten)]
    node: NodeArgument,
    /// Whether containers may be attached there; drain leaves alone those that are
    #[arg(long, group = "what", value_name = "active|drain", value_parser = availability())]
    availability: Option<Availability>,
    /// Label to give it, in the place of one with the same key; may be repeated
    #[arg(long, group = "what", value_name = "K=V", value_parser = labels::one)]
    label_add: Vec<(String, String)>,
    /// Label to take from it, with its endpoints in networks that ask for the label; may be repeated
    #[arg(long, group = "what", value_name = "K")]
    label_rm: Vec<String>,
}

impl UpdateArguments {
    pub(in crate::cli) fn request(self) -> Result<ChangeNodeRequest, CliError> {
        let label_add = labels::all("--label-add", self.label_add)?;
        let label_remove: BTreeSet<String> = self.label_rm.into_iter().collect();
        if let Some(key) = label_remove.iter().find(|key| label_add.contains_key(*key)) {
            return Err(CliError::Usage(format!("{key} is named by --label-add and by --label-rm")));
        }
        let update = NodeUpdate { availability: self.availability, label_add, label_remove };
        Ok(self.node.change(NodeChange::Update(update)))
    }
}

fn availability() -> impl TypedValueParser<Value = Availability> {
    PossibleValuesParser::new(["active", "drain"])
        .map(|availability| if availability == "drain" { Availability::Drain } else { Availability::Active })
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
