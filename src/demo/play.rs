//! The demo from its first line to its last: each act does something, measures it and tells it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::agent_process::PATIENCE;
use super::kernel_vxlan::KernelVxlan;
use super::packet::Packet;
use super::report::{
    Counters, Finding, HostCounters, Keys, PeerCounters, Pings, RateRow, Rates, Setting, WireFinding,
    WireTrial,
};
use super::screen::Screen;
use super::stage::{CONTAINERS, Stage, UNDERLAY, aside};
use super::{DemoError, DemoOptions};
use crate::api::types::{
    AttachRequest, AttachResponse, CreateNetworkRequest, InitRequest, JoinRequest, PeerState, PeerStatus,
    PeersRequest, StatsRequest, TokenRequest,
};
use crate::boot_time::BootTime;
use crate::id::{NodeId, Spi};
use crate::io::clock::boot_time;
use crate::lab::{Capture, Container, LabError, Ping, PingReport, TcpReport, tcp_throughput, udp_blast};

/// Plays it all.
///
/// # Errors
/// [`DemoError`]; [`DemoError::NotProven`] at the very end, after everything was shown and removed.
pub(super) async fn perform(
    screen: &Screen,
    options: &DemoOptions,
    is_fake_root: bool,
) -> Result<(), DemoError> {
    let mut play = Play { screen, failures: Vec::new() };
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    play.tell(&Setting { kernel, is_fake_root, underlay_mtu: UNDERLAY.mtu })?;
    screen.doing("building the hosts and starting their agents");
    let stage = Stage::build().await?;
    tokio::select! {
        acts = play.acts(&stage, options) => acts?,
        failure = stage.agent_ends() => return Err(failure),
    }
    screen.doing("removing everything");
    let removed = stage.remove().await?;
    play.tell(&removed)?;
    if play.failures.is_empty() { Ok(()) } else { Err(DemoError::NotProven { failures: play.failures }) }
}

struct Play<'a> {
    screen: &'a Screen,
    failures: Vec<String>,
}

/// A network of the demo.
struct DemoNetwork {
    name: &'static str,
    flags: &'static str,
    interface: &'static str,
}

/// The containers' ends of a network.
struct Ends {
    addresses: [Vec<IpAddr>; 2],
    /// Of the interfaces, in bytes.
    mtu: u16,
    /// When the last of them was asked for.
    last_attach: BootTime,
}

impl Play<'_> {
    async fn acts(&mut self, stage: &Stage, options: &DemoOptions) -> Result<(), DemoError> {
        let capture = stage.lab().host(1).capture()?;
        let nodes = self.form_cluster(stage).await?;
        let ends = self.join_containers(stage, &SECRET).await?;
        let keys = self.negotiate(stage, capture, ends.last_attach).await?;
        self.ping(stage, &ends).await?;
        self.measure_rates(stage, &ends, options.tcp_time).await?;
        self.watch_the_wire(stage, &ends, &keys).await?;
        self.count(stage, nodes).await
    }

    fn tell(&mut self, finding: &impl Finding) -> Result<(), DemoError> {
        self.failures.extend(finding.failures());
        self.screen.show(&finding.render(self.screen.ink()))
    }

    fn tell_heading(&self, heading: &str) -> Result<(), DemoError> {
        self.screen.show(&format!("\n{}\n", self.screen.ink().heading(heading)))
    }

    /// Shows a command as it is typed; `aside` is what to know of its answer.
    fn tell_command(&self, host: &str, line: &str, aside: &str) -> Result<(), DemoError> {
        let ink = self.screen.ink();
        let gap = if aside.is_empty() { "" } else { "  " };
        self.screen.show(&format!("  {host}  {}{gap}{}\n", ink.command(line), ink.aside(aside)))
    }

    /// Host 1 makes a cluster, host 2 joins it; gives their ids.
    async fn form_cluster(&self, stage: &Stage) -> Result<[NodeId; 2], DemoError> {
        self.screen.doing("forming the cluster");
        self.tell_heading("A cluster, and an encrypted network that c1 and c2 are attached to")?;
        let addresses = [1, 2].map(|host| stage.lab().host(host).v4());
        let init = format!("overlayd init --advertise-addr {}", addresses[0]);
        let made = stage.command::<InitRequest>(0, &init).await?;
        self.tell_command("host1", &init, "")?;
        let token = stage.command::<TokenRequest>(0, "overlayd token worker").await?.token;
        let join = format!("overlayd join --token {token} {}", made.manager);
        let joined = stage.command::<JoinRequest>(1, &join).await?;
        let shown = join.replace(&token, &format!("{}...", token.chars().take(12).collect::<String>()));
        self.tell_command("host2", &shown, "")?;
        Ok([made.node, joined.node.id])
    }

    /// Creates a network and attaches both containers to it.
    async fn join_containers(&self, stage: &Stage, network: &DemoNetwork) -> Result<Ends, DemoError> {
        let DemoNetwork { name, flags, .. } = network;
        self.screen.doing(format!("making the network {name}"));
        let create = format!("overlayd create {flags} {name}");
        stage.command::<CreateNetworkRequest>(0, &create).await?;
        self.tell_command("host1", &create, "")?;
        let one = self.attach(stage, network, 0).await?;
        let last_attach = boot_time();
        let two = self.attach(stage, network, 1).await?;
        if one.mtu != two.mtu {
            return Err(stage.agent(1).failed(format!("gave an MTU of {}, not {}", two.mtu, one.mtu)));
        }
        let mtu = one.mtu;
        Ok(Ends { addresses: [one, two].map(|attached| addresses(&attached)), mtu, last_attach })
    }

    async fn attach(
        &self,
        stage: &Stage,
        network: &DemoNetwork,
        host: usize,
    ) -> Result<AttachResponse, DemoError> {
        let DemoNetwork { name, interface, .. } = network;
        let ifname = if *interface == "eth0" { String::new() } else { format!(" --ifname {interface}") };
        let attach = format!("overlayd attach {name} --netns {}{ifname}", CONTAINERS[host]);
        let attached = stage.command::<AttachRequest>(host, &attach).await?;
        let own: Vec<_> = addresses(&attached).iter().map(ToString::to_string).collect();
        let aside = format!("{} {}, MTU {}", attached.ifname, own.join(" "), attached.mtu);
        self.tell_command(&stage.host_name(host), &attach, &aside)?;
        Ok(attached)
    }

    /// Waits until both hosts have keys of the encrypted network.
    async fn negotiate(
        &mut self,
        stage: &Stage,
        capture: Capture,
        last_attach: BootTime,
    ) -> Result<Keys, DemoError> {
        self.screen.doing("the hosts agree on keys");
        let peers = [established(stage, 0).await?, established(stage, 1).await?];
        let elapsed = boot_time().since(last_attach);
        let frames = aside(|| capture.stop()).await?;
        let settles = |frame: &&Vec<u8>| Packet::read(frame) == Packet::Control { settles_tls13: true };
        let spis = |spis: &[Spi]| spis.iter().map(|spi| spi.get()).collect::<Vec<_>>();
        let suite =
            |peer: &PeerStatus| peer.suite.map_or_else(|| "no suite".into(), |suite| suite.to_string());
        let keys = Keys {
            suites: peers.each_ref().map(suite),
            outbound: peers.each_ref().map(|peer| spis(&peer.outbound_spis)),
            inbound: peers.each_ref().map(|peer| spis(&peer.inbound_spis)),
            elapsed,
            tls13_handshakes: frames.iter().filter(settles).count(),
        };
        self.tell(&keys)?;
        Ok(keys)
    }

    async fn ping(&mut self, stage: &Stage, ends: &Ends) -> Result<(), DemoError> {
        let mut reports: [[PingReport; 2]; 2] = Default::default();
        for (from, reports) in reports.iter_mut().enumerate() {
            for (family, report) in reports.iter_mut().enumerate() {
                let Some(&to) = ends.addresses[1 - from].get(family) else { continue };
                let container = stage.container(from);
                self.screen.doing(format!("ping {} to {to}", CONTAINERS[from]));
                *report = aside(move || Ping::default().run(container.namespace(), to)).await?;
            }
        }
        self.tell(&Pings { reports })
    }

    async fn measure_rates(&mut self, stage: &Stage, ends: &Ends, time: Duration) -> Result<(), DemoError> {
        self.screen.doing("one TCP stream each way, encrypted");
        let containers = [stage.container(0), stage.container(1)];
        let to = [0, 1].map(|host| ends.addresses[host].first().copied());
        let [Some(one), Some(two)] = to else {
            return Err(stage.agent(0).failed("gave a container no address".into()));
        };
        let streams = aside(move || streams([&containers[0], &containers[1]], [one, two], time)).await?;
        self.screen.doing("one TCP stream each way, kernel VXLAN");
        let lab = Arc::clone(stage.lab());
        let kernel = aside(move || {
            let kernel = KernelVxlan::build(&lab)?;
            let containers = [kernel.container(0), kernel.container(1)];
            streams_of_kernel(containers, time)
        });
        let kernel = kernel.await.map(|streams| RateRow { mtu: KernelVxlan::MTU, streams });
        let overlayd = RateRow { mtu: ends.mtu.into(), streams };
        self.tell(&Rates { overlayd, kernel: kernel.map_err(|error| error.to_string()) })
    }

    /// Captures a canary on the encrypted network, and then on an unencrypted one.
    async fn watch_the_wire(&mut self, stage: &Stage, ends: &Ends, keys: &Keys) -> Result<(), DemoError> {
        let canary = format!("canary-{:032x}", rand::random::<u128>()).into_bytes();
        self.screen.doing("capturing the encrypted network");
        let (sent, arrived, frames) = exchange(stage, ends, &canary).await?;
        let spis = keys.outbound.concat();
        let encrypted = WireTrial { sent, arrived, ..WireTrial::judge(&frames, &canary, &spis) };
        self.tell_heading("An unencrypted network beside it, to check the capture with")?;
        let open = self.join_containers(stage, &OPEN).await?;
        self.screen.doing("capturing the unencrypted network");
        let (sent, arrived, open_frames) = exchange(stage, &open, &canary).await?;
        let plain = WireTrial { sent, arrived, ..WireTrial::judge(&open_frames, &canary, &spis) };
        self.tell(&WireFinding::new(encrypted, &frames, plain))
    }

    async fn count(&mut self, stage: &Stage, nodes: [NodeId; 2]) -> Result<(), DemoError> {
        self.screen.doing("asking the agents for their counters");
        let mut hosts = Vec::new();
        for host in 0..2 {
            let agent = stage.agent(host);
            let (peers, stats) = (agent.ask(&PeersRequest {}).await?, agent.ask(&StatsRequest {}).await?);
            let secret = peers.peers.iter().filter(|peer| peer.network_name.as_str() == SECRET.name);
            let peers = secret.map(|peer| peer_counters(peer, nodes)).collect();
            let mut drops: Vec<(&'static str, u64)> = Vec::new();
            for count in stats.drops.iter().filter(|count| count.packets > 0) {
                let name = count.reason.name();
                match drops.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, packets)) => *packets += count.packets,
                    None => drops.push((name, count.packets)),
                }
            }
            hosts.push(HostCounters { name: stage.host_name(host), peers, drops });
        }
        self.tell(&Counters { hosts })
    }
}

fn peer_counters(peer: &PeerStatus, nodes: [NodeId; 2]) -> PeerCounters {
    // Both hosts bear this machine's name.
    let host = nodes.iter().position(|node| *node == peer.node);
    PeerCounters {
        peer: host.map_or_else(|| peer.node_name.to_string(), |host| format!("host{}", host + 1)),
        network: peer.network_name.to_string(),
        state: peer.state.name().to_owned(),
        sent: peer.sent,
        received: peer.received,
    }
}

/// The addresses of an endpoint, IPv4 first.
fn addresses(attached: &AttachResponse) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = attached.endpoint.addresses.iter().map(ipnet::IpNet::addr).collect();
    addresses.sort();
    addresses
}

/// Waits until a host has the keys of the encrypted network, both ways.
async fn established(stage: &Stage, host: usize) -> Result<PeerStatus, DemoError> {
    let deadline = boot_time() + PATIENCE;
    let agent = stage.agent(host);
    let mut last = "knows no peer".to_owned();
    while boot_time() < deadline {
        let peers = agent.ask(&PeersRequest {}).await?.peers;
        if let Some(peer) = peers.into_iter().find(|peer| peer.network_name.as_str() == SECRET.name) {
            if peer.state == PeerState::Established {
                return Ok(peer);
            }
            last = format!("is {:?} ({})", peer.state, peer.failure.as_deref().unwrap_or("no failure"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(agent.failed(format!("has no keys after {} s: it {last}", PATIENCE.as_secs())))
}

/// One stream each way, one after the other.
fn streams(
    containers: [&Container; 2],
    addresses: [IpAddr; 2],
    time: Duration,
) -> Result<[TcpReport; 2], LabError> {
    let [one, two] = containers.map(Container::namespace);
    Ok([tcp_throughput(one, two, addresses[1], time)?, tcp_throughput(two, one, addresses[0], time)?])
}

fn streams_of_kernel(containers: [&Container; 2], time: Duration) -> Result<[TcpReport; 2], LabError> {
    streams(containers, [KernelVxlan::address(0), KernelVxlan::address(1)], time)
}

/// Sends the canary both ways while the underlay is captured: how many were sent, how many arrived,
/// and every frame of the underlay.
async fn exchange(stage: &Stage, ends: &Ends, canary: &[u8]) -> Result<(u64, u64, Vec<Vec<u8>>), DemoError> {
    let capture = stage.lab().host(1).capture()?;
    let (mut sent, mut arrived) = (0, 0);
    for (from, to) in [(0, 1), (1, 0)] {
        for address in ends.addresses[to].iter().copied() {
            let (source, target) = (stage.container(from), stage.container(to));
            let canary = canary.to_vec();
            let report =
                aside(move || udp_blast(source.namespace(), target.namespace(), address, &canary, CANARIES));
            let report = report.await?;
            sent += report.sent;
            arrived += report.received;
        }
    }
    Ok((sent, arrived, aside(|| capture.stop()).await?))
}

const SECRET: DemoNetwork = DemoNetwork {
    name: "secret",
    flags: "--encrypted --subnet 10.1.0.0/24 --subnet fd00:1::/64",
    interface: "eth0",
};

/// What proves that the capture would show a canary.
const OPEN: DemoNetwork =
    DemoNetwork { name: "open", flags: "--subnet 10.2.0.0/24 --subnet fd00:2::/64", interface: "eth1" };

/// Sent each way, by each family of addresses.
const CANARIES: u64 = 50;
