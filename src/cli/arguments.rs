//! The commands and their flags, and the requests that they make.

mod autolock;
mod backup;
mod ca;
mod events;
mod labels;
mod node;
mod rekey;
mod status;
mod store;
mod tokens;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use ipnet::IpNet;

use self::ca::BroughtCa;
pub(super) use self::ca::{CaCommand, of_files};
use super::{CliError, netns};
use crate::api::VERSION;
use crate::api::types::{AttachRequest, CreateNetworkRequest, InitRequest, JoinRequest, SubnetRequest};
use crate::cluster::Role;
use crate::config::{AgentConfig, metrics_address};
use crate::id::{EndpointId, HostName, IfName, MacAddr, NetworkName};
use crate::rate::{Rate, RateLimits};

use self::autolock::{UnlockArguments, UnlockKeyArguments};
pub(super) use self::backup::BackupArguments;
use self::backup::RestoreArguments;
pub use self::events::EventsArguments;
use self::node::LeaveArguments;
pub(super) use self::node::NodeCommand;
use self::store::NewStore;
pub(super) use self::store::StoreCommand;
pub(super) use self::tokens::{TokenArguments, TokenWish};
use rekey::RekeyArguments;
use status::StatusArguments;

/// Encrypted overlay network for containers.
#[derive(Debug, Parser)]
#[command(name = "overlayd", version = VERSION, max_term_width = 110)]
pub struct Cli {
    /// Unix socket of the agent [default: /run/overlayd/agent.sock]
    #[arg(long, global = true, env = "OVERLAYD_SOCKET", value_name = "PATH", hide_env_values = true, help_heading = GLOBAL)]
    pub socket: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// What makes a shell complete the commands and their flags.
    pub fn completion(shell: Shell) -> String {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Self::command(), "overlayd", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node's daemon in the foreground
    Agent(AgentArguments),
    /// Show the main job on this machine: two hosts, an encrypted network, real packets
    Demo,
    /// Measure the ciphers on this machine's processor, and recommend suites and lanes
    Bench {
        /// How long it takes, about
        #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
    /// Show what happens, and who asked for it from where: the audit log, live
    Events(EventsArguments),
    /// Print a script that completes these commands in a shell
    Completion {
        /// The shell that reads it
        shell: Shell,
    },
    /// A call to the agent.
    #[command(flatten)]
    Client(ClientCommand),
}

/// The commands that are calls to the agent.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Make a new cluster with this node as its manager
    Init(Box<InitArguments>),
    /// Print a token that nodes join with, or look after those that were made
    Token(TokenArguments),
    /// Join a cluster
    Join(JoinArguments),
    /// Take this node out of its cluster
    Leave(LeaveArguments),
    /// Back this manager up into a file, sealed with a passphrase
    Backup(BackupArguments),
    /// Make this node the manager that was backed up
    Restore(RestoreArguments),
    /// Let a manager go on that is locked since its agent was started
    Unlock(UnlockArguments),
    /// Print the key that this manager is unlocked with
    UnlockKey(UnlockKeyArguments),
    /// Show where the cluster's state is and whether it can be reached, or move it to etcd
    Store {
        /// What to do about it.
        #[command(subcommand)]
        command: Option<StoreCommand>,
    },
    /// Create a network
    Create(CreateArguments),
    /// List the networks
    Ls,
    /// Show one network with its nodes and endpoints
    Inspect {
        /// Name or id of the network
        #[arg(value_name = "NET")]
        network: NetworkName,
    },
    /// Remove a network that has no endpoints
    Rm {
        /// Name or id of the network
        #[arg(value_name = "NET")]
        network: NetworkName,
    },
    /// Give a container's network namespace an interface in a network
    Attach(AttachArguments),
    /// Take a container's interface out of a network
    #[command(group = ArgGroup::new("target").required(true).args(["netns", "endpoint"]))]
    Detach {
        /// Name or id of the network
        #[arg(value_name = "NET")]
        network: NetworkName,
        /// The container's namespace: a name of 'ip netns', a path, or the id of a process in it
        #[arg(long, value_name = "NAME|PATH|PID")]
        netns: Option<String>,
        /// The endpoint's id, for when the namespace is gone
        #[arg(long, value_name = "ID")]
        endpoint: Option<EndpointId>,
    },
    /// Show how the agent is and what needs attention
    Status(StatusArguments),
    /// Look at the nodes of the cluster, remove or change them
    #[command(subcommand)]
    Node(NodeCommand),
    /// List the peers: keys, traffic and the last drop, for each network shared with them
    Peers,
    /// Have new keys made now, without loss, for every encrypted link of this node or for some
    Rekey(RekeyArguments),
    /// Show what was carried and what was dropped, and why
    Stats,
    /// Print the root certificate that every node trusts, or replace it
    Ca {
        /// What to do with it.
        #[command(subcommand)]
        command: Option<CaCommand>,
    },
}

/// Flags of `overlayd agent`.
#[derive(Debug, Args)]
pub struct AgentArguments {
    /// Configuration file (TOML); flags override it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of keys and state [default: /var/lib/overlayd]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Serve Docker as its network and IPAM driver on this unix socket
    #[arg(long, value_name = "PATH")]
    docker_socket: Option<PathBuf>,
    /// Serve the metrics over TCP as well, to whoever reaches the port
    #[arg(long, value_name = "IP:PORT", value_parser = metrics_address)]
    metrics_listen: Option<SocketAddr>,
    /// Append every key to FILE as Wireshark's esp_sa table: whoever reads it reads the traffic
    #[arg(long, value_name = "FILE")]
    esp_key_log: Option<PathBuf>,
}

impl AgentArguments {
    /// The configuration file under the flags.
    ///
    /// # Errors
    /// When the file is refused or a relative path cannot be made absolute.
    pub fn config(self, socket: Option<PathBuf>) -> Result<AgentConfig, CliError> {
        let mut config = match &self.config {
            Some(file) => AgentConfig::read(file)?,
            None => AgentConfig::default(),
        };
        if let Some(dir) = self.state_dir {
            config.state_dir = absolute(dir)?;
        }
        if let Some(socket) = socket {
            config.socket = absolute(socket)?;
        }
        if let Some(socket) = self.docker_socket {
            config.docker_socket = Some(absolute(socket)?);
        }
        config.metrics_listen = self.metrics_listen.or(config.metrics_listen);
        config.esp_key_log = self.esp_key_log.map(absolute).transpose()?;
        Ok(config)
    }
}

/// Flags of `overlayd init`.
#[derive(Debug, Args)]
pub struct InitArguments {
    /// Address, and port if not 2377, where other nodes reach this one
    #[arg(long, value_name = "IP[:PORT]", value_parser = reachable_address)]
    advertise_addr: SocketAddr,
    /// Address, and port if not the advertised one, to listen on [default: every address of its family]
    #[arg(long, value_name = "IP[:PORT]")]
    listen_addr: Option<String>,
    /// Address that carries the data [default: the advertised one]
    #[arg(long, value_name = "IP")]
    data_addr: Option<IpAddr>,
    /// UDP port of encrypted data on every node
    #[arg(long, value_name = "PORT", default_value_t = 4500, value_parser = clap::value_parser!(u16).range(1..))]
    data_port: u16,
    /// Where the subnets of networks are taken from that are created without one [default: 10.128.0.0/9]
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Vec<IpNet>,
    /// How long a node's certificate lives, from 1h to ten years; it is renewed long before
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = certificate_life)]
    cert_expiry: Duration,
    #[command(flatten)]
    ca: BroughtCa,
    /// Lock this manager whenever its agent is started, until 'overlayd unlock' has its unlock key
    #[arg(long)]
    autolock: bool,
    #[command(flatten)]
    store: NewStore,
}

impl InitArguments {
    /// The certificate and the key of a root that is brought.
    pub(super) fn ca_files(&self) -> Option<(PathBuf, PathBuf)> {
        self.ca.files()
    }

    pub(super) fn request(self) -> Result<InitRequest, CliError> {
        let listen = match self.listen_addr {
            None => None,
            Some(text) => Some(listen_address(&text, self.advertise_addr)?),
        };
        Ok(InitRequest {
            advertise: self.advertise_addr,
            listen,
            data_ip: self.data_addr,
            data_port: self.data_port,
            default_addr_pools: self.default_addr_pool,
            cert_expiry_seconds: self.cert_expiry.as_secs(),
            authority: self.ca.read()?,
            autolock: self.autolock.then(autolock::new_key),
            store: self.store.request()?,
        })
    }
}

/// Flags of `overlayd join`.
#[derive(Debug, Args)]
pub struct JoinArguments {
    /// The token that 'overlayd init' or 'overlayd token' printed
    #[arg(long)]
    token: String,
    /// Address, and port if not 2377, where other nodes reach this one [default: towards the manager]
    #[arg(long, value_name = "IP[:PORT]", value_parser = reachable_address)]
    advertise_addr: Option<SocketAddr>,
    /// Address that carries the data [default: the advertised one]
    #[arg(long, value_name = "IP")]
    data_addr: Option<IpAddr>,
    /// A manager of the cluster
    #[arg(value_name = "HOST:PORT", value_parser = host_and_port)]
    manager: String,
}

impl JoinArguments {
    pub(super) fn request(self) -> JoinRequest {
        JoinRequest {
            token: self.token,
            manager: self.manager,
            advertise: self.advertise_addr,
            data_ip: self.data_addr,
        }
    }
}

/// Flags of `overlayd create`.
#[derive(Debug, Args)]
pub struct CreateArguments {
    /// Let frames leave a node only inside ESP
    #[arg(long)]
    encrypted: bool,
    /// IPv4 or IPv6 subnet; repeat it for dual stack [default: one from the cluster's pool]
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<IpNet>,
    /// Gateway address in a subnet; once for each subnet
    #[arg(long, value_name = "IP", requires = "subnet")]
    gateway: Vec<IpAddr>,
    /// Part of a subnet to give addresses from; once for each subnet
    #[arg(long, value_name = "CIDR", requires = "subnet")]
    ip_range: Vec<IpNet>,
    /// MTU of the containers' interfaces [default: what the underlay carries]
    #[arg(long, value_name = "N")]
    mtu: Option<u16>,
    /// Label to keep with the network; may be repeated
    #[arg(long = "label", value_name = "K=V", value_parser = labels::one)]
    labels: Vec<(String, String)>,
    /// Let only nodes with this label be members (overlayd node update); may be repeated
    #[arg(long = "node-label", value_name = "K=V", value_parser = labels::one)]
    node_labels: Vec<(String, String)>,
    /// Name of the network
    #[arg(value_name = "NET")]
    network: NetworkName,
}

impl CreateArguments {
    pub(super) fn request(self) -> Result<CreateNetworkRequest, CliError> {
        let mut subnets: Vec<SubnetRequest> = self
            .subnet
            .into_iter()
            .map(|cidr| SubnetRequest { cidr, gateway: None, ip_range: None })
            .collect();
        for gateway in self.gateway {
            let subnet = containing(&mut subnets, &gateway.into(), "--gateway", &gateway.to_string())?;
            if let Some(first) = subnet.gateway.replace(gateway) {
                return Err(CliError::Usage(format!("--gateway: {first} and {gateway} are in one subnet")));
            }
        }
        for range in self.ip_range {
            let subnet = containing(&mut subnets, &range, "--ip-range", &range.to_string())?;
            if let Some(first) = subnet.ip_range.replace(range) {
                return Err(CliError::Usage(format!("--ip-range: {first} and {range} are in one subnet")));
            }
        }
        Ok(CreateNetworkRequest {
            name: self.network,
            encrypted: self.encrypted,
            subnets,
            mtu: self.mtu,
            labels: labels::all("--label", self.labels)?,
            node_labels: labels::all("--node-label", self.node_labels)?,
        })
    }
}

/// Flags of `overlayd attach`.
#[derive(Debug, Args)]
pub struct AttachArguments {
    /// Name or id of the network
    #[arg(value_name = "NET")]
    network: NetworkName,
    /// The container's namespace: a name of 'ip netns', a path, or the id of a process in it
    #[arg(long, value_name = "NAME|PATH|PID")]
    netns: String,
    /// Name of the interface in the container
    #[arg(long, default_value = "eth0")]
    ifname: IfName,
    /// Name of the endpoint, for people
    #[arg(long, value_name = "HOST")]
    name: Option<HostName>,
    /// Address to have; once for each subnet [default: free ones]
    #[arg(long, value_name = "IP")]
    ip: Vec<IpAddr>,
    /// MAC address to have [default: from the IPv4 address]
    #[arg(long)]
    mac: Option<MacAddr>,
    /// What the container may send, like 100mbit [default: no limit]
    #[arg(long, value_name = "RATE")]
    egress_rate: Option<Rate>,
    /// What it may be sent, like 2.5gbit [default: no limit]
    #[arg(long, value_name = "RATE")]
    ingress_rate: Option<Rate>,
}

impl AttachArguments {
    pub(super) fn request(self) -> Result<AttachRequest, CliError> {
        Ok(AttachRequest {
            network: self.network,
            netns: netns::resolve(&self.netns)?,
            ifname: self.ifname,
            name: self.name,
            cni: None,
            addresses: self.ip,
            mac: self.mac,
            rates: RateLimits { egress: self.egress_rate, ingress: self.ingress_rate },
        })
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(|source| CliError::System { doing: "make the path absolute", source })
}

fn containing<'s>(
    subnets: &'s mut [SubnetRequest],
    range: &IpNet,
    flag: &str,
    given: &str,
) -> Result<&'s mut SubnetRequest, CliError> {
    subnets
        .iter_mut()
        .find(|subnet| subnet.cidr.contains(range))
        .ok_or_else(|| CliError::Usage(format!("{flag} {given} is in none of the subnets given by --subnet")))
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(["worker", "manager"])
        .map(|role| if role == "manager" { Role::Manager } else { Role::Worker })
}

/// `IP`, `IP:PORT`, `[IPv6]` or `[IPv6]:PORT`.
fn address(text: &str, default_port: u16) -> Result<SocketAddr, String> {
    let bracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let bare = text.parse::<IpAddr>().ok().or_else(|| bracketed?.parse::<Ipv6Addr>().ok().map(IpAddr::V6));
    match (bare, text.parse::<SocketAddr>()) {
        (Some(ip), _) => Ok(SocketAddr::new(ip, default_port)),
        (None, Ok(address)) if address.port() != 0 => Ok(address),
        (None, Ok(_)) => Err("port 0 is no port".into()),
        (None, Err(_)) => Err("write it as IP or IP:PORT, an IPv6 address with a port as [IP]:PORT".into()),
    }
}

fn listen_address(text: &str, advertised: SocketAddr) -> Result<SocketAddr, CliError> {
    address(text, advertised.port()).map_err(|e| CliError::Usage(format!("--listen-addr: {e}")))
}

fn reachable_address(text: &str) -> Result<SocketAddr, String> {
    let address = address(text, CONTROL_PORT)?;
    let ip = address.ip();
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
        return Err("other nodes cannot reach it; give an address of an interface of this host".into());
    }
    Ok(address)
}

fn host_and_port(text: &str) -> Result<String, String> {
    if let Ok(address) = address(text, CONTROL_PORT) {
        return Ok(address.to_string());
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|&port| port != 0)),
        None => (text, Some(CONTROL_PORT)),
    };
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    match port {
        Some(port) if is_name => Ok(format!("{host}:{port}")),
        Some(_) | None => Err("write it as HOST:PORT, an IPv6 address as [IP]:PORT".into()),
    }
}

fn certificate_life(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("{e}; write it like 2160h or 90days"))
}

const GLOBAL: &str = "For every command";
/// The TCP port of managers and of the key channel between nodes.
const CONTROL_PORT: u16 = 2377;

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_argument_has_a_help_of_one_line() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                let name = argument.get_id();
                assert!(
                    !help.is_empty() && !help.contains('\n') && help.len() <= 100,
                    "{} {name}: {help:?}",
                    command.get_name()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn addresses_have_a_default_port_and_brackets_around_ipv6() {
        for (given, parsed) in [
            ("192.0.2.1", "192.0.2.1:2377"),
            ("192.0.2.1:99", "192.0.2.1:99"),
            ("2001:db8::1", "[2001:db8::1]:2377"),
            ("[2001:db8::1]", "[2001:db8::1]:2377"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ] {
            assert_eq!(reachable_address(given).map(|a| a.to_string()).as_deref(), Ok(parsed));
        }
        for bad in ["", "host", "192.0.2.1:0", "192.0.2.1:x", "0.0.0.0", "::", "224.0.0.1", "[192.0.2.1]"] {
            assert!(reachable_address(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_manager_is_named_by_host_and_port() {
        for (given, parsed) in [
            ("m1.example:2400", "m1.example:2400"),
            ("m1", "m1:2377"),
            ("192.0.2.1:2377", "192.0.2.1:2377"),
            ("2001:db8::1", "[2001:db8::1]:2377"),
        ] {
            assert_eq!(host_and_port(given).as_deref(), Ok(parsed));
        }
        for bad in ["", ":2377", "m1:", "m1:0", "m1:99999", "http://m1:2377", "m 1:2377"] {
            assert!(host_and_port(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn gateways_and_ranges_find_their_subnets() {
        let request = create(&[
            "--subnet=10.1.0.0/16",
            "--subnet=fd00:1::/64",
            "--gateway=fd00:1::1",
            "--gateway=10.1.0.1",
            "--ip-range=10.1.2.0/24",
            "--label=a=b=c",
            "--encrypted",
            "red",
        ])
        .expect("a request");
        let [four, six] = &request.subnets[..] else { panic!("two subnets: {request:?}") };
        assert_eq!(four.gateway, "10.1.0.1".parse().ok());
        assert_eq!(four.ip_range, "10.1.2.0/24".parse().ok());
        assert_eq!((six.gateway, six.ip_range), ("fd00:1::1".parse().ok(), None));
        assert_eq!(request.labels["a"], "b=c");
        assert!(request.encrypted);
    }

    #[test]
    fn contradictory_subnets_and_labels_are_usage_errors() {
        for bad in [
            &["--subnet=10.1.0.0/16", "--gateway=10.2.0.1", "red"][..],
            &["--subnet=10.1.0.0/16", "--gateway=10.1.0.1", "--gateway=10.1.0.2", "red"],
            &["--subnet=10.1.0.0/24", "--ip-range=10.1.0.0/16", "red"],
            &["--label=a=1", "--label=a=2", "red"],
        ] {
            let error = create(bad).expect_err("a contradiction was taken");
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }

    #[test]
    fn flags_override_the_configuration_file() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(&file, "state_dir = \"/a\"\nsocket = \"/s\"\n").expect("written");
        let path = file.path().to_str().expect("text");
        let cli = Cli::parse_from(["overlayd", "agent", "--config", path, "--state-dir", "/b"]);
        let Command::Agent(arguments) = cli.command else { panic!("not agent") };
        let config = arguments.config(None).expect("a configuration");
        assert_eq!((config.state_dir, config.socket), ("/b".into(), "/s".into()));
        let cli = Cli::parse_from(["overlayd", "--socket", "/t", "agent", "--esp-key-log", "keys"]);
        let Command::Agent(arguments) = cli.command else { panic!("not agent") };
        let config = arguments.config(cli.socket).expect("a configuration");
        assert_eq!(config.socket, PathBuf::from("/t"));
        assert!(config.esp_key_log.is_some_and(|file| file.is_absolute()));
    }

    #[test]
    fn certificates_live_an_hour_at_least() {
        assert_eq!(certificate_life("2160h"), Ok(Duration::from_secs(2160 * 3600)));
        assert!(certificate_life("long").is_err());
    }

    fn create(arguments: &[&str]) -> Result<CreateNetworkRequest, CliError> {
        let cli = Cli::parse_from(["overlayd", "create"].iter().chain(arguments));
        let Command::Client(ClientCommand::Create(arguments)) = cli.command else { panic!("not create") };
        arguments.request()
    }
}
