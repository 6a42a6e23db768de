//! Which addresses this node has, where its host takes one away and gives another.
//!
//! Data sockets are bound to an address, so those at one that is gone receive nothing. The node then
//! uses another address of the same interface or, when there is none for a while, the one that
//! packets to the others leave from; its lanes get new sockets and keep their keys. An address that
//! no interface of this host ever held, like one that a router translates, is the operator's business.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::boot_time::BootTime;
use crate::control::store::local::NodeSettings;
use crate::io::netlink::InterfaceAddress;

/// The addresses of a node's settings, held against those of its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Home {
    pub(super) settings: NodeSettings,
    gone_since: Option<BootTime>,
}

/// What a look at the host's addresses tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Every address is where it was.
    Here,
    /// One is gone; where another is to be had, these settings use it.
    Gone(Option<Box<NodeSettings>>),
}

impl Home {
    pub(crate) const fn new(settings: NodeSettings) -> Self {
        Self { settings, gone_since: None }
    }

    /// Holds the settings against the addresses of the host; `others` are where other nodes are.
    pub(crate) fn look(&mut self, held: &[InterfaceAddress], others: &[SocketAddr], now: BootTime) -> Seen {
        let is_held = |ip: IpAddr| held.iter().any(|held| held.address.addr() == ip);
        let NodeSettings { listen, advertise, data, advertised_here, .. } = &mut self.settings;
        *advertised_here |= is_held(advertise.ip());
        let may_go = [
            Some(data.ip()),
            Some(advertise.ip()).filter(|ip| *advertised_here || *ip == data.ip()),
            Some(listen.ip()).filter(|ip| !ip.is_unspecified()),
        ];
        let gone: Vec<IpAddr> = may_go.into_iter().flatten().filter(|ip| !is_held(*ip)).collect();
        if let Some(holder) = held.iter().find(|held| held.address.addr() == data.ip()) {
            self.settings.interface = holder.link.name.parse().ok();
        }
        if gone.is_empty() {
            self.gone_since = None;
            return Seen::Here;
        }
        let waited = now.since(*self.gone_since.get_or_insert(now));
        if waited < GRACE {
            return Seen::Gone(None);
        }
        let sources = Sources {
            held,
            others,
            interface: self.settings.interface.as_ref().map(|name| name.as_str()),
            anywhere: waited >= PATIENCE,
        };
        let moved = [false, true].into_iter().try_fold(self.settings.clone(), |settings, is_ipv6| {
            let of_family = |ip: &IpAddr| ip.is_ipv6() == is_ipv6;
            if !gone.iter().any(of_family) {
                return Some(settings);
            }
            Some(moved(settings, &gone, sources.find(is_ipv6)?))
        });
        Seen::Gone(moved.map(Box::new))
    }

    /// The node uses these settings from now on.
    pub(crate) fn settle(&mut self, settings: NodeSettings) {
        *self = Self::new(settings);
    }
}

/// The address that packets to `other` leave from. Connecting a UDP socket sends nothing.
pub(crate) fn route_to(other: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = match other {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(other)?;
    Ok(socket.local_addr()?.ip())
}

/// Where another address may come from.
struct Sources<'a> {
    held: &'a [InterfaceAddress],
    others: &'a [SocketAddr],
    /// The interface that held the address which is gone.
    interface: Option<&'a str>,
    /// Whether other interfaces will do too.
    anywhere: bool,
}

impl Sources<'_> {
    fn find(&self, is_ipv6: bool) -> Option<IpAddr> {
        let usable = |ip: &IpAddr| ip.is_ipv6() == is_ipv6 && !ip.is_loopback() && !is_link_local(*ip);
        let on_interface = |held: &&InterfaceAddress| Some(held.link.name.as_str()) == self.interface;
        let near = self.held.iter().filter(on_interface).map(|held| held.address.addr()).filter(usable);
        let near: Vec<IpAddr> = near.collect();
        let mut others = self.others.iter().filter(|other| other.is_ipv6() == is_ipv6).peekable();
        if others.peek().is_none() {
            // Nobody is there to have a route to.
            return if let [only] = near[..] { Some(only) } else { None };
        }
        let is_here = |ip: &IpAddr| self.held.iter().any(|held| held.address.addr() == *ip);
        let routes: Vec<IpAddr> =
            others.filter_map(|other| route_to(*other).ok()).filter(usable).filter(is_here).collect();
        let same = routes.iter().find(|ip| near.contains(ip));
        same.or_else(|| routes.first().filter(|_| self.anywhere)).copied()
    }
}

/// The settings with `to` in place of each address of its family that is gone.
fn moved(mut settings: NodeSettings, gone: &[IpAddr], to: IpAddr) -> NodeSettings {
    let is_gone = |ip: IpAddr| ip.is_ipv6() == to.is_ipv6() && gone.contains(&ip);
    let before = settings.advertise;
    for address in [&mut settings.listen, &mut settings.advertise, &mut settings.data] {
        if is_gone(address.ip()) {
            address.set_ip(to);
        }
    }
    settings
        .managers
        .iter_mut()
        .filter(|manager| **manager == before)
        .for_each(|own| *own = settings.advertise);
    settings
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// An address that is taken and given again at once, as by a program that configures anew, has not gone.
const GRACE: Duration = Duration::from_millis(300);
/// How long an interface may be without any address before those of others will do: one that loses
/// its address often has it again soon, and a node that went elsewhere would stay there.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::netlink::Link;

    const NOBODY: &[SocketAddr] = &[];

    #[test]
    fn another_address_of_the_interface_takes_the_place_of_one_that_is_gone() {
        let mut home = home("192.0.2.1", "192.0.2.1");
        assert_eq!(look(&mut home, &["eth0 192.0.2.1/24"], 0), Seen::Here);
        assert_eq!(look(&mut home, &["eth0 192.0.2.7/24", "lo 127.0.0.1/8"], 100), Seen::Gone(None));
        let moved = expect_moved(look(&mut home, &["eth0 192.0.2.7/24", "eth0 fe80::1/64"], 500));
        assert_eq!(moved, settings("192.0.2.7", "192.0.2.7"));
    }

    #[test]
    fn address_that_comes_back_at_once_was_never_gone() {
        let mut home = home("192.0.2.1", "192.0.2.1");
        look(&mut home, &["eth0 192.0.2.1/24"], 0);
        assert_eq!(look(&mut home, &["eth0 192.0.2.7/24"], 100), Seen::Gone(None));
        assert_eq!(look(&mut home, &["eth0 192.0.2.7/24", "eth0 192.0.2.1/24"], 200), Seen::Here);
        assert_eq!(look(&mut home, &["eth0 192.0.2.7/24"], 450), Seen::Gone(None));
    }

    #[test]
    fn addresses_of_other_interfaces_are_not_taken_while_nobody_is_known_there() {
        let mut home = home("192.0.2.1", "192.0.2.1");
        look(&mut home, &["eth0 192.0.2.1/24"], 0);
        look(&mut home, &["docker0 172.17.0.1/16"], 100);
        assert_eq!(look(&mut home, &["docker0 172.17.0.1/16"], 60_000), Seen::Gone(None));
    }

    #[test]
    fn which_of_two_addresses_is_not_guessed() {
        let mut home = home("192.0.2.1", "192.0.2.1");
        look(&mut home, &["eth0 192.0.2.1/24"], 0);
        look(&mut home, &[], 100);
        let two = ["eth0 192.0.2.7/24", "eth0 198.51.100.7/24"];
        assert_eq!(look(&mut home, &two, 1_000), Seen::Gone(None));
    }

    #[test]
    fn advertised_address_of_a_router_stays_and_one_of_this_host_goes_with_it() {
        let mut translated = home("203.0.113.1", "192.0.2.1");
        look(&mut translated, &["eth0 192.0.2.1/24"], 0);
        look(&mut translated, &["eth0 192.0.2.7/24"], 100);
        let moved = expect_moved(look(&mut translated, &["eth0 192.0.2.7/24"], 500));
        assert_eq!(moved, NodeSettings { advertised_here: false, ..settings("203.0.113.1", "192.0.2.7") });

        let mut own = home("198.51.100.1", "192.0.2.1");
        look(&mut own, &["eth0 192.0.2.1/24", "eth0 198.51.100.1/24"], 0);
        look(&mut own, &["eth0 192.0.2.1/24"], 100);
        let moved = expect_moved(look(&mut own, &["eth0 192.0.2.1/24"], 500));
        assert_eq!(moved, settings("192.0.2.1", "192.0.2.1"));
    }

    #[test]
    fn port_that_listened_at_the_address_alone_moves_with_it() {
        let mut home = home("192.0.2.1", "192.0.2.1");
        home.settings.listen = "192.0.2.1:2377".parse().expect("an address");
        look(&mut home, &["eth0 192.0.2.1/24"], 0);
        look(&mut home, &["eth0 192.0.2.7/24"], 100);
        let moved = expect_moved(look(&mut home, &["eth0 192.0.2.7/24"], 500));
        assert_eq!(moved.listen, "192.0.2.7:2377".parse().expect("an address"));
    }

    #[test]
    fn advertised_address_of_its_own_that_goes_while_no_agent_runs_goes_with_the_host() {
        let mut before = home("198.51.100.1", "192.0.2.1");
        look(&mut before, &["eth0 192.0.2.1/24", "eth0 198.51.100.1/24"], 0);
        let mut after = Home::new(before.settings);
        assert_eq!(look(&mut after, &["eth0 192.0.2.1/24"], 0), Seen::Gone(None));
        let moved = expect_moved(look(&mut after, &["eth0 192.0.2.1/24"], 500));
        assert_eq!(moved, settings("192.0.2.1", "192.0.2.1"));
    }

    fn home(advertise: &str, data: &str) -> Home {
        Home::new(NodeSettings { advertised_here: false, ..settings(advertise, data) })
    }

    fn settings(advertise: &str, data: &str) -> NodeSettings {
        let at = |ip: &str, port| SocketAddr::new(ip.parse().expect("an address"), port);
        NodeSettings {
            listen: at("0.0.0.0", 2377),
            advertise: at(advertise, 2377),
            data: at(data, 4500),
            managers: vec![at(advertise, 2377)],
            interface: Some("eth0".parse().expect("a name")),
            advertised_here: true,
        }
    }

    fn look(home: &mut Home, held: &[&str], milliseconds: u64) -> Seen {
        let held = held.iter().map(|line| {
            let (name, address) = line.split_once(' ').expect("an interface and an address");
            let link = Link {
                index: 1,
                name: name.to_owned(),
                mac: None,
                mtu: 1500,
                up: true,
                carrier: true,
                kind: None,
                alias: None,
                queues: None,
            };
            InterfaceAddress { link, address: address.parse().expect("an address") }
        });
        let now = BootTime::default() + Duration::from_millis(milliseconds);
        home.look(&held.collect::<Vec<_>>(), NOBODY, now)
    }

    fn expect_moved(seen: Seen) -> NodeSettings {
        match seen {
            Seen::Gone(Some(settings)) => *settings,
            Seen::Gone(None) | Seen::Here => panic!("{seen:?}"),
        }
    }
}
