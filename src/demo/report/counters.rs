//! The agents' own counters.

use indicatif::{DecimalBytes, HumanCount};

use super::{Finding, Ink, line};
use crate::api::types::Traffic;

/// The counters of both hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Counters {
    pub(in crate::demo) hosts: Vec<HostCounters>,
}

/// The counters of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct HostCounters {
    pub(in crate::demo) name: String,
    pub(in crate::demo) peers: Vec<PeerCounters>,
    /// Names of reasons and how often, all lanes together; none that are zero.
    pub(in crate::demo) drops: Vec<(&'static str, u64)>,
}

/// The counters of one peer in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct PeerCounters {
    pub(in crate::demo) peer: String,
    pub(in crate::demo) network: String,
    pub(in crate::demo) state: String,
    pub(in crate::demo) sent: Traffic,
    pub(in crate::demo) received: Traffic,
}

impl Finding for Counters {
    fn render(&self, ink: Ink) -> String {
        let mut text = String::new();
        let title = format!("{:<35}{:<27}received", "Counters of the agents", "sent");
        line!(text, "\n{}", ink.heading(&title));
        for host in &self.hosts {
            for peer in &host.peers {
                let who = format!("{} to {} on {}", host.name, peer.peer, peer.network);
                let holds = is_used(peer);
                let (sent, received) = (told(peer.sent), told(peer.received));
                line!(text, "  {} {who:<26}{sent:<27}{received}, {}", ink.verdict(holds), peer.state);
            }
        }
        let drops: Vec<_> = self.hosts.iter().map(drops).collect();
        line!(text, "         dropped: {}", drops.join("; "));
        text
    }

    fn failures(&self) -> Vec<String> {
        let each = self.hosts.iter().flat_map(|host| host.peers.iter().map(move |peer| (host, peer)));
        let unused = each.filter(|(_, peer)| !is_used(peer));
        unused
            .map(|(host, peer)| {
                format!("{} counts no traffic with {} on {}", host.name, peer.peer, peer.network)
            })
            .collect()
    }
}

fn is_used(peer: &PeerCounters) -> bool {
    [peer.sent, peer.received].iter().all(|traffic| traffic.packets > 0 && traffic.bytes > 0)
}

fn told(traffic: Traffic) -> String {
    format!("{} frames, {}", HumanCount(traffic.packets), DecimalBytes(traffic.bytes))
}

fn drops(host: &HostCounters) -> String {
    if host.drops.is_empty() {
        return format!("{} nothing", host.name);
    }
    let reasons: Vec<_> = host.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!("{} {}", host.name, reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_told_by_host_peer_and_network() {
        let traffic = |packets, bytes| Traffic { packets, bytes };
        let peer = PeerCounters {
            peer: "host2".into(),
            network: "secret".into(),
            state: "established".into(),
            sent: traffic(1_234_567, 1_500_000_000),
            received: traffic(10, 900),
        };
        let idle = PeerCounters { sent: traffic(0, 0), ..peer.clone() };
        let counters = Counters {
            hosts: vec![
                HostCounters {
                    name: "host1".into(),
                    peers: vec![peer],
                    drops: vec![("no_key", 3), ("replay", 1)],
                },
                HostCounters { name: "host2".into(), peers: vec![idle], drops: Vec::new() },
            ],
        };
        assert_eq!(
            counters.render(Ink::PLAIN),
            "\nCounters of the agents             sent                       received\n\
             \x20 ok     host1 to host2 on secret  1,234,567 frames, 1.50 GB  10 frames, 900 B, established\n\
             \x20 FAILED host2 to host2 on secret  0 frames, 0 B              10 frames, 900 B, established\n\
             \x20        dropped: host1 no_key 3, replay 1; host2 nothing\n"
        );
        assert_eq!(counters.failures(), ["host2 counts no traffic with host2 on secret"]);
    }
}
