//! The plugin of container runtimes (CNI SPEC 1.1.0): the binary under the name that a network configuration has
//! as `type`, told by its environment what to do and by standard input for which network.
//!
//! It is a client of the agent like every other command, and keeps nothing: the agent knows each container by the
//! runtime's name for it, so that it can be detached when its namespace is gone.

mod arguments;
mod config;
mod failure;
mod outcome;

use std::env;
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

use serde_json::json;

use self::arguments::Arguments;
use self::config::NetworkConfig;
use self::failure::{Code, Failure};
use self::outcome::Outcome;
use super::{netns, runtime};
use crate::api::Client;
use crate::api::types::{
    AttachRequest, AttachedContainer, ListAttachmentsRequest, MendedBy, ReleaseRequest, StatusRequest,
    Verdict, Verified, VerifiedItem, VerifyRequest,
};
use crate::cluster::CniAttachment;
use crate::config::DEFAULT_SOCKET;
use crate::id::{IfName, RuntimeName};

/// What a runtime wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// Whether the process was started by a runtime: without arguments, and with a command in its environment.
pub fn is_asked() -> bool {
    env::args_os().len() == 1 && env::var_os(COMMAND).is_some()
}

/// Does what the environment and `input` say: what goes to standard output, and whether it was done.
pub fn run(input: &mut impl Read) -> (String, bool) {
    let environment = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    match answer(input, &environment) {
        Ok(answer) => (answer, true),
        Err((version, failure)) => (failure.json(&version), false),
    }
}

fn answer(
    input: &mut impl Read,
    environment: &impl Fn(&str) -> Option<OsString>,
) -> Result<String, (String, Failure)> {
    let mut text = Vec::new();
    let read = input.take(MOST_BYTES).read_to_end(&mut text);
    let config = match read.map_err(|error| Failure::new(Code::Io, format!("standard input: {error}"))) {
        Ok(_) => NetworkConfig::parse(&text),
        Err(failure) => Err(failure),
    };
    let config = config.map_err(|failure| (config::NEWEST.to_owned(), failure))?;
    let failed = |failure| (config.version().to_owned(), failure);
    let verb = verb(environment).map_err(failed)?;
    if verb == Verb::Version {
        return Ok(
            json!({ "cniVersion": config.version(), "supportedVersions": config::VERSIONS }).to_string()
        );
    }
    let socket = config.socket().map_err(failed)?.unwrap_or_else(|| DEFAULT_SOCKET.into());
    let plugin = Plugin { client: Client::new(socket), config: &config, environment };
    let runtime = runtime().map_err(|error| failed(Failure::new(Code::Io, error.to_string())))?;
    runtime.block_on(plugin.execute(verb)).map_err(failed)
}

fn verb(environment: &impl Fn(&str) -> Option<OsString>) -> Result<Verb, Failure> {
    let command = environment(COMMAND).unwrap_or_default();
    Ok(match command.to_str() {
        Some("ADD") => Verb::Add,
        Some("DEL") => Verb::Del,
        Some("CHECK") => Verb::Check,
        Some("GC") => Verb::Gc,
        Some("STATUS") => Verb::Status,
        Some("VERSION") => Verb::Version,
        Some(_) | None => {
            return Err(Failure::new(
                Code::Environment,
                format!("{COMMAND}={} is unknown", command.display()),
            ));
        }
    })
}

/// One call of a runtime.
struct Plugin<'c, E> {
    client: Client,
    config: &'c NetworkConfig,
    environment: &'c E,
}

impl<E: Fn(&str) -> Option<OsString>> Plugin<'_, E> {
    async fn execute(&self, verb: Verb) -> Result<String, Failure> {
        match verb {
            Verb::Add => self.add().await,
            Verb::Del => self.del().await.map(|()| String::new()),
            Verb::Check => self.check().await.map(|()| String::new()),
            Verb::Gc => self.collect_garbage().await.map(|()| String::new()),
            Verb::Status | Verb::Version => self.status().await.map(|()| String::new()),
        }
    }

    async fn add(&self) -> Result<String, Failure> {
        self.config.check()?;
        let wishes = self.config.wishes()?;
        let arguments = Arguments::parse(&self.given(ARGUMENTS)?.unwrap_or_default())?;
        let mut addresses = wishes.addresses()?;
        if addresses.is_empty() {
            addresses = arguments.ips;
        }
        let path = self.netns()?;
        let request = AttachRequest {
            network: self.config.network()?,
            netns: netns::resolve(&path)?,
            ifname: self.parsed(INTERFACE)?,
            name: None,
            cni: Some(self.attachment()?),
            addresses,
            mac: wishes.mac.or(arguments.mac),
            rates: wishes.rates()?,
        };
        let attached = self.client.call(&request).await?;
        Ok(Outcome::of(&attached, &path).json(self.config))
    }

    /// Nothing to do is as good: runtimes repeat it until it succeeds.
    async fn del(&self) -> Result<(), Failure> {
        let request = ReleaseRequest { attachment: self.attachment()?, ifname: self.parsed(INTERFACE)? };
        self.client.call(&request).await?;
        Ok(())
    }

    async fn check(&self) -> Result<(), Failure> {
        self.config.check()?;
        let (attachment, ifname): (_, IfName) = (self.attachment()?, self.parsed(INTERFACE)?);
        let differs = |how: String| Failure::new(Code::Differs, how);
        let netns = netns::resolve(&self.netns()?)?;
        let found = self.attached().await?.into_iter().find(|attached| {
            (attached.cni.as_ref(), &attached.ifname) == (Some(&attachment), &ifname)
                && (attached.netns.device, attached.netns.inode) == (netns.device, netns.inode)
        });
        let Some(AttachedContainer { endpoint: Some(endpoint), .. }) = found else {
            let CniAttachment { config, container } = attachment;
            return Err(differs(format!("container {container} has no {ifname} of {config}")));
        };
        let before = self.config.before().ok_or_else(|| {
            Failure::new(Code::Config, "prevResult is missing: what is the container to be like?")
        })?;
        outcome::compare(before, &endpoint, &ifname).map_err(differs)?;
        let verified = self.client.call(&VerifyRequest { endpoint: Some(endpoint.id) }).await?;
        match verified.differing().find(|item| is_amiss(item)) {
            Some(item) => Err(differs(format!("{}: {}: {}", item.of, item.item.name(), item.is))),
            None => Ok(()),
        }
    }

    /// Takes away what the runtime has no more, as far as it can be.
    async fn collect_garbage(&self) -> Result<(), Failure> {
        let (valid, config) = (self.config.valid_attachments()?, self.config.name()?);
        let mut failed = Ok(());
        for AttachedContainer { cni, ifname, .. } in self.attached().await? {
            let Some(attachment) = cni.filter(|cni| cni.config == config) else { continue };
            if !valid.iter().any(|valid| valid.is(&attachment.container, &ifname)) {
                let released = self.client.call(&ReleaseRequest { attachment, ifname }).await;
                failed = released.map(drop).map_err(Failure::from).and(failed);
            }
        }
        failed
    }

    async fn status(&self) -> Result<(), Failure> {
        self.config.check()?;
        let status = self.client.call(&StatusRequest {}).await;
        // Without the agent nothing is carried.
        let status = status.map_err(|error| Failure::from(error).with_code(Code::Degraded))?;
        let (code, message) = match &status.cluster {
            _ if status.locked => {
                (Code::Degraded, "the agent waits for its unlock key: run 'overlayd unlock'")
            }
            None => (Code::Unready, "this node is in no cluster: run 'overlayd join' or 'overlayd init'"),
            Some(cluster) if cluster.removed => (Code::Degraded, "this node was removed from its cluster"),
            Some(cluster) if !cluster.managers.iter().any(|manager| manager.connected) => {
                (Code::Unready, "no manager can be reached: containers that are attached go on")
            }
            Some(_) => return Ok(()),
        };
        Err(Failure::new(code, message))
    }

    async fn attached(&self) -> Result<Vec<AttachedContainer>, Failure> {
        Ok(self.client.call(&ListAttachmentsRequest {}).await?.attachments)
    }

    fn attachment(&self) -> Result<CniAttachment, Failure> {
        let container: RuntimeName = self.parsed(CONTAINER)?;
        Ok(CniAttachment { config: self.config.name()?, container })
    }

    fn netns(&self) -> Result<String, Failure> {
        let path = PathBuf::from(self.wanted(NETNS)?);
        if !path.is_absolute() {
            return Err(Failure::new(Code::Environment, format!("{NETNS}={} is no path", path.display())));
        }
        self.wanted(NETNS)
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&self, name: &str) -> Result<T, Failure> {
        let given = self.wanted(name)?;
        given.parse().map_err(|error| Failure::new(Code::Environment, format!("{name}={given}: {error}")))
    }

    fn wanted(&self, name: &str) -> Result<String, Failure> {
        self.given(name)?.ok_or_else(|| Failure::new(Code::Environment, format!("{name} is not set")))
    }

    fn given(&self, name: &str) -> Result<Option<String>, Failure> {
        let given = (self.environment)(name).map(OsString::into_string).transpose();
        given.map_err(|given| {
            Failure::new(Code::Environment, format!("{name}={} is no text", given.display()))
        })
    }
}

/// Whether it lacks what it cannot do without, which the agent gives again, or is down: what else there is, a plugin
/// after this one may have changed or added.
fn is_amiss(VerifiedItem { item, verdict, .. }: &VerifiedItem) -> bool {
    *item == Verified::Up || matches!(verdict, Verdict::Differs { mended_by: MendedBy::Agent, .. })
}

const ARGUMENTS: &str = "CNI_ARGS";
const COMMAND: &str = "CNI_COMMAND";
const CONTAINER: &str = "CNI_CONTAINERID";
const INTERFACE: &str = "CNI_IFNAME";
const NETNS: &str = "CNI_NETNS";
/// More than a runtime writes.
const MOST_BYTES: u64 = 4 << 20;
