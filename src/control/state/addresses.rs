//! Which addresses of one subnet are given out, and which one is next.
//!
//! Pure arithmetic over the subnet's numbers. The next address is the lowest free one above the
//! last one given, so that an address rests as long as possible before it is given again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::cluster::Subnet;

/// The addresses of one subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SubnetAddresses {
    cidr: IpNet,
    gateway: Option<u128>,
    /// First and last address that is given without request.
    first: u128,
    last: u128,
    used: Runs,
    last_given: Option<u128>,
}

impl SubnetAddresses {
    pub(super) fn new(subnet: &Subnet) -> Self {
        let cidr = subnet.cidr;
        let (lowest, highest) = usable(cidr);
        let range = subnet.ip_range.unwrap_or(cidr);
        Self {
            cidr,
            gateway: subnet.gateway.map(number),
            first: lowest.max(number(range.network())),
            last: highest.min(number(range.broadcast())),
            used: Runs::default(),
            last_given: None,
        }
    }

    /// The lowest free address above the last one given, else the lowest free one.
    pub(super) fn next(&self) -> Option<IpAddr> {
        let after = self.last_given.map_or(self.first, |last| last.saturating_add(1).max(self.first));
        let found = self.free_from(after).or_else(|| self.free_from(self.first))?;
        Some(self.address(found))
    }

    /// The address given last without request.
    pub(super) fn last_given(&self) -> Option<IpAddr> {
        self.last_given.map(|n| self.address(n))
    }

    /// Goes on after `address` from now on.
    pub(super) fn set_last_given(&mut self, address: IpAddr) {
        if self.cidr.contains(&address) {
            self.last_given = Some(number(address));
        }
    }

    /// Marks an address as given; true if it was free.
    pub(super) fn take(&mut self, address: IpAddr) -> bool {
        self.used.insert(number(address))
    }

    /// Marks an address as free again; true if it was given.
    pub(super) fn give_back(&mut self, address: IpAddr) -> bool {
        self.used.remove(number(address))
    }

    fn free_from(&self, from: u128) -> Option<u128> {
        let mut free = self.used.next_absent(from);
        if Some(free) == self.gateway {
            free = self.used.next_absent(free + 1);
        }
        (free <= self.last).then_some(free)
    }

    fn address(&self, n: u128) -> IpAddr {
        match self.cidr {
            IpNet::V4(_) => Ipv4Addr::from_bits(u32::try_from(n).expect("a number of an IPv4 subnet")).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(n).into(),
        }
    }
}

/// What an address of a subnet that no endpoint may have is called.
pub(super) fn reserved(subnet: IpNet, address: IpAddr) -> Option<&'static str> {
    match subnet {
        IpNet::V4(net) if IpAddr::V4(net.network()) == address => Some("network"),
        IpNet::V4(net) if IpAddr::V4(net.broadcast()) == address => Some("broadcast"),
        // RFC 4291 §2.6.1
        IpNet::V6(net) if IpAddr::V6(net.network()) == address => Some("subnet-router anycast"),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}

/// The first and the last address that an endpoint may have.
fn usable(subnet: IpNet) -> (u128, u128) {
    let (network, broadcast) = (number(subnet.network()), number(subnet.broadcast()));
    match subnet {
        IpNet::V4(_) => (network + 1, broadcast.saturating_sub(1)),
        IpNet::V6(_) => (network + 1, broadcast),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// A set of numbers, kept as its runs of neighbours: finding a gap takes no longer in a full set.
/// It never holds `u128::MAX`, which is a multicast address and thus in no subnet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Runs {
    /// First to last number of each run; runs never touch.
    runs: BTreeMap<u128, u128>,
}

impl Runs {
    fn containing(&self, n: u128) -> Option<(u128, u128)> {
        self.runs.range(..=n).next_back().map(|(&first, &last)| (first, last)).filter(|&(_, last)| n <= last)
    }

    fn next_absent(&self, from: u128) -> u128 {
        self.containing(from).map_or(from, |(_, last)| last + 1)
    }

    fn insert(&mut self, n: u128) -> bool {
        if self.containing(n).is_some() {
            return false;
        }
        let before = n.checked_sub(1).and_then(|b| self.containing(b));
        let last = n.checked_add(1).and_then(|a| self.runs.remove(&a)).unwrap_or(n);
        self.runs.insert(before.map_or(n, |(first, _)| first), last);
        true
    }

    fn remove(&mut self, n: u128) -> bool {
        let Some((first, last)) = self.containing(n) else { return false };
        self.runs.remove(&first);
        if first < n {
            self.runs.insert(first, n - 1);
        }
        if n < last {
            self.runs.insert(n + 1, last);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn addresses_rise_from_the_lowest_and_skip_what_is_reserved() {
        let mut subnet = subnet("10.1.0.0/29", Some("10.1.0.2"), None);
        assert_eq!(take_all(&mut subnet), ["10.1.0.1", "10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6"]);
    }

    #[test]
    fn subnet_router_anycast_address_is_never_given_but_the_last_one_is() {
        let mut subnet = subnet("fd00::/126", None, None);
        assert_eq!(take_all(&mut subnet), ["fd00::1", "fd00::2", "fd00::3"]);
    }

    #[test]
    fn addresses_come_from_the_range() {
        let mut whole = subnet("10.1.0.0/24", None, Some("10.1.0.252/30"));
        assert_eq!(take_all(&mut whole), ["10.1.0.252", "10.1.0.253", "10.1.0.254"]);
    }

    #[test]
    fn address_given_back_rests_until_the_others_were_given() {
        let mut subnet = subnet("10.1.0.0/29", None, None);
        for expected in ["10.1.0.1", "10.1.0.2"] {
            assert_eq!(give(&mut subnet).as_deref(), Some(expected));
        }
        subnet.give_back("10.1.0.1".parse().unwrap());
        assert_eq!(take_all(&mut subnet), ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.1"]);
    }

    proptest! {
        #[test]
        fn runs_are_the_set_that_they_stand_for(ops in prop::collection::vec((any::<bool>(), 0u128..40), 0..200)) {
            let (mut runs, mut model) = (Runs::default(), BTreeSet::new());
            for (insert, n) in ops {
                if insert {
                    prop_assert_eq!(runs.insert(n), model.insert(n));
                } else {
                    prop_assert_eq!(runs.remove(n), model.remove(&n));
                }
                for from in 0..41 {
                    let naive = (from..).find(|n| !model.contains(n)).unwrap();
                    prop_assert_eq!(runs.next_absent(from), naive);
                }
            }
        }

        #[test]
        fn no_address_is_given_twice(ops in prop::collection::vec(prop::option::of(0usize..20), 0..100)) {
            let mut subnet = subnet("10.1.0.0/27", Some("10.1.0.1"), Some("10.1.0.8/29"));
            let mut held: Vec<IpAddr> = Vec::new();
            for op in ops {
                match op {
                    Some(i) if !held.is_empty() => {
                        let gone = held.swap_remove(i % held.len());
                        prop_assert!(subnet.give_back(gone));
                    }
                    _ => match subnet.next() {
                        Some(address) => {
                            prop_assert!(!held.contains(&address));
                            prop_assert!("10.1.0.8/29".parse::<IpNet>().unwrap().contains(&address));
                            prop_assert!(subnet.take(address));
                            subnet.set_last_given(address);
                            held.push(address);
                        }
                        None => prop_assert_eq!(held.len(), 8),
                    },
                }
            }
        }
    }

    fn subnet(cidr: &str, gateway: Option<&str>, range: Option<&str>) -> SubnetAddresses {
        SubnetAddresses::new(&Subnet {
            cidr: cidr.parse().unwrap(),
            gateway: gateway.map(|g| g.parse().unwrap()),
            ip_range: range.map(|r| r.parse().unwrap()),
        })
    }

    fn give(subnet: &mut SubnetAddresses) -> Option<String> {
        let address = subnet.next()?;
        assert!(subnet.take(address));
        subnet.set_last_given(address);
        Some(address.to_string())
    }

    fn take_all(subnet: &mut SubnetAddresses) -> Vec<String> {
        std::iter::from_fn(|| give(subnet)).collect()
    }
}
