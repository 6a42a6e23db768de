//! The endpoints of this node: each written down, known to the manager, and its interface in its
//! container as the container's kernel has it.

use crate::agent::attachments::blocking;
use crate::agent::condition::{self, Condition};
use crate::agent::container;
use crate::agent::member::Member;
use crate::api::ApiError;
use crate::api::types::{MendedBy, Verified, VerifiedItem};
use crate::control::store::local::{Attachment, AttachmentState};
use crate::id::{EndpointId, PortSlot};
use crate::io::container_port::ContainerPort;
use crate::io::tap::TapOffloads;

pub(super) async fn items(member: &Member, only: Option<EndpointId>) -> Result<Vec<VerifiedItem>, ApiError> {
    let mut open = Vec::new();
    for lane in member.dataplane.lanes() {
        open.push(lane.inventory().await?.ports);
    }
    let mut items = Vec::new();
    let attachments = member.attachments.all().await?.into_iter();
    for attachment in attachments.filter(|attachment| only.is_none_or(|only| attachment.id == only)) {
        items.extend(endpoint(member, &attachment, &open).await?);
    }
    Ok(items)
}

async fn endpoint(
    member: &Member,
    attachment: &Attachment,
    open: &[Vec<PortSlot>],
) -> Result<Vec<VerifiedItem>, ApiError> {
    let of = format!("{} ({})", attachment.id, attachment.network);
    let differs = |is: &str, should_be: &str, how: &str| {
        vec![VerifiedItem::differs((Verified::Endpoint, &of), is, should_be, (MendedBy::Agent, how))]
    };
    if attachment.state == AttachmentState::Pending {
        return Ok(differs(
            "half attached",
            "attached, or not there",
            "finishes it or takes it back within 2 s",
        ));
    }
    if attachment.state == AttachmentState::Held {
        let is = "held for a container of Docker";
        return Ok(match member.attachments.trouble_of(attachment.id) {
            None => vec![VerifiedItem::ok(Verified::Endpoint, &of, is)],
            Some(trouble) => differs(&format!("{is}: {trouble}"), "in it", "looks again every 2 s"),
        });
    }
    let (netns, id) = (attachment.netns.clone(), attachment.id);
    let seen = blocking(move || {
        let Some(netns) = container::open(&netns)? else { return Ok(None) };
        Condition::of(&netns, id).map(Some).map_err(container::failed)
    });
    let Some(seen) = seen.await? else {
        let path = attachment.netns.path.display();
        let is = format!("its container has ended: {path} is gone");
        return Ok(differs(&is, "gone as well", "removes it within 2 s"));
    };
    let mut items = Vec::new();
    let trouble = member.attachments.trouble_of(attachment.id);
    if member.attachments.is_known(attachment).await {
        items.push(VerifiedItem::ok(Verified::Endpoint, &of, "attached, in the view"));
    } else {
        let how = match &trouble {
            Some(trouble) => format!("tells the manager every two seconds, and fails: {trouble}"),
            None => "tells the manager within 2 s, or when there is a session with one".to_owned(),
        };
        items.extend(differs("attached, not in the view", "in the view", &how));
    }
    let lanes = member
        .dataplane
        .port(attachment.id)
        .await
        .map_or(0, |slot| open.iter().filter(|ports| ports.contains(&slot)).count());
    let granted = member.offloads.granted(attachment.id);
    let looked = Looked { attachment, trouble, lanes: (lanes, open.len()), granted };
    match (seen, member.attachments.wanted(attachment).await) {
        (None, _) => items.push(looked.missing()),
        // What it is to be is not known without its network, which is told above.
        (Some(seen), None) => items.push(looked.interface(&seen)),
        (Some(seen), Some(wanted)) => items.extend(looked.items(&seen, &wanted)),
    }
    Ok(items)
}

/// An interface that was looked at.
struct Looked<'a> {
    attachment: &'a Attachment,
    /// Why mending it fails, if it does.
    trouble: Option<String>,
    /// In how many lanes it is open, and how many there are.
    lanes: (usize, usize),
    /// What its kernel left to the agent when it was asked.
    granted: Option<TapOffloads>,
}

impl Looked<'_> {
    fn of(&self) -> String {
        format!("{} {}", self.attachment.netns.path.display(), self.attachment.ifname)
    }

    fn given_again(&self) -> String {
        match &self.trouble {
            Some(trouble) => format!("gives it again every two seconds, and fails: {trouble}"),
            None => "gives it again within 2 s".to_owned(),
        }
    }

    fn missing(&self) -> VerifiedItem {
        let how = self.given_again();
        let item = (Verified::Interface, self.of());
        VerifiedItem::differs(item, "missing", "there", (MendedBy::Agent, how))
    }

    fn interface(&self, seen: &Condition) -> VerifiedItem {
        let (open, lanes) = self.lanes;
        let queues = seen.link.queues.map_or(open, |queues| usize::try_from(queues).unwrap_or(usize::MAX));
        let is_whole = seen.link.carrier && open == lanes && queues == lanes;
        let kind = seen.link.kind.as_deref().unwrap_or("of no kind");
        let is = format!("{kind}, {queues} queues, open in {open} lanes");
        if is_whole {
            return VerifiedItem::ok(Verified::Interface, self.of(), is);
        }
        let should_be = format!("{lanes} queues, open in {lanes} lanes");
        let how = match &self.trouble {
            Some(trouble) => format!("opens it again every two seconds, and fails: {trouble}"),
            None => "opens it again within 2 s".to_owned(),
        };
        VerifiedItem::differs((Verified::Interface, self.of()), is, should_be, (MendedBy::Agent, how))
    }

    fn items(&self, seen: &Condition, wanted: &ContainerPort) -> Vec<VerifiedItem> {
        let of = self.of();
        let link = &seen.link;
        let there = |what: &str| {
            format!("left as somebody set it; in the container: ip link set {} {what}", link.name)
        };
        let set = |item, is: String, should_be: String, what: &str| {
            if is == should_be {
                VerifiedItem::ok(item, &of, is)
            } else {
                VerifiedItem::differs((item, &of), is, should_be, (MendedBy::Operator, there(what)))
            }
        };
        let up = |is: bool| if is { "up" } else { "down" }.to_owned();
        let is_followed = self.attachment.mtu.map(u32::from) == Some(wanted.mtu);
        let mac = link.mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string());
        vec![
            self.interface(seen),
            set(Verified::Name, link.name.clone(), wanted.name.to_string(), &format!("name {}", wanted.name)),
            set(Verified::Up, up(link.up), up(true), "up, which brings its routes back"),
            if link.mac == Some(wanted.mac) {
                VerifiedItem::ok(Verified::Mac, &of, mac)
            } else {
                let how = (MendedBy::Agent, self.given_again());
                VerifiedItem::differs((Verified::Mac, &of), mac, wanted.mac, how)
            },
            if is_followed {
                let (is, should_be) = (link.mtu.to_string(), wanted.mtu.to_string());
                set(Verified::Mtu, is, should_be, &format!("mtu {}", wanted.mtu))
            } else {
                let how = (MendedBy::Agent, "follows the network within 2 s");
                VerifiedItem::differs((Verified::Mtu, &of), link.mtu, wanted.mtu, how)
            },
            self.addresses(seen, wanted),
            self.routes(seen, wanted),
        ]
        .into_iter()
        .chain(self.offloads(seen))
        .collect()
    }

    fn addresses(&self, seen: &Condition, wanted: &ContainerPort) -> VerifiedItem {
        let should = condition::addresses(wanted);
        let (is, of) = (list(&seen.addresses), self.of());
        if seen.addresses == should {
            return VerifiedItem::ok(Verified::Addresses, of, is);
        }
        let missing = should.iter().any(|address| !seen.addresses.contains(address));
        let more = seen.addresses.iter().find(|address| !should.contains(address));
        let name = &seen.link.name;
        let how = match (missing, more) {
            (false, Some(more)) => (
                MendedBy::Operator,
                format!(
                    "what the container sends from {} is dropped; in the container: ip address del {more} dev {name}",
                    more.addr()
                ),
            ),
            (true, _) if !seen.link.up => self.not_while_down(),
            (..) => (MendedBy::Agent, self.given_again()),
        };
        VerifiedItem::differs((Verified::Addresses, of), is, list(&should), how)
    }

    /// Routes that somebody added are none of the agent's business.
    fn routes(&self, seen: &Condition, wanted: &ContainerPort) -> VerifiedItem {
        let should = condition::routes(wanted);
        let (is, of) = (list(seen.routes.intersection(&should)), self.of());
        if should.is_subset(&seen.routes) {
            return VerifiedItem::ok(Verified::Routes, of, is);
        }
        let how = if seen.link.up { (MendedBy::Agent, self.given_again()) } else { self.not_while_down() };
        VerifiedItem::differs((Verified::Routes, of), is, list(&should), how)
    }

    /// Nothing where either is not known.
    fn offloads(&self, seen: &Condition) -> Option<VerifiedItem> {
        let (is, granted) = (seen.offloads?, self.granted?);
        let of = self.of();
        let text = |offloads: TapOffloads| {
            let TapOffloads { checksum, tcp, udp } = offloads;
            let parts = [("checksum", checksum), ("TCP", tcp), ("UDP", udp)];
            list(parts.into_iter().filter(|(_, is_on)| *is_on).map(|(name, _)| name))
        };
        if is == granted {
            return Some(VerifiedItem::ok(Verified::Offloads, of, text(is)));
        }
        let on = |is_on: bool| if is_on { "on" } else { "off" };
        let how = format!(
            "left as somebody set it; in the container: ethtool -K {} tx-checksum-ip-generic {} tso {} \
             tx-udp-segmentation {}",
            seen.link.name,
            on(granted.checksum),
            on(granted.tcp),
            on(granted.udp)
        );
        let item = (Verified::Offloads, of);
        Some(VerifiedItem::differs(item, text(is), text(granted), (MendedBy::Operator, how)))
    }

    fn not_while_down(&self) -> (MendedBy, String) {
        (MendedBy::Agent, "gives it again when the interface is up".to_owned())
    }
}

fn list(things: impl IntoIterator<Item = impl ToString>) -> String {
    let things: Vec<String> = things.into_iter().map(|thing| thing.to_string()).collect();
    if things.is_empty() { "none".to_owned() } else { things.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::super::condition::testbed;
    use super::*;
    use crate::api::types::Verdict;
    use crate::control::store::local::NetnsRef;
    use crate::id::EndpointId;
    use crate::rate::RateLimits;
    use ipnet::IpNet;

    fn attachment() -> Attachment {
        Attachment {
            id: EndpointId::from_entropy([1; 16]),
            network: "red".parse().expect("a name"),
            netns: NetnsRef { path: "/run/netns/web".into(), dev: 4, inode: 5 },
            ifname: "eth0".parse().expect("a name"),
            name: None,
            cni: None,
            docker: None,
            ips: Vec::new(),
            mac: None,
            rates: RateLimits::default(),
            state: AttachmentState::Ready,
            endpoint: None,
            mtu: Some(1408),
        }
    }

    fn wanted() -> ContainerPort {
        testbed::wanted(&["10.1.0.2/24"])
    }

    fn whole() -> Condition {
        testbed::whole(&wanted())
    }

    /// What differs: of what, how it is, how it should be, by whom it is mended.
    fn differing(
        seen: &Condition,
        trouble: Option<&str>,
    ) -> Vec<(Verified, String, String, MendedBy, String)> {
        let attachment = attachment();
        let trouble = trouble.map(ToOwned::to_owned);
        let granted = Some(TapOffloads::ALL);
        let looked = Looked { attachment: &attachment, trouble, lanes: (2, 2), granted };
        let items = looked.items(seen, &wanted());
        assert_eq!(items.len(), 8);
        let differs = items.into_iter().filter_map(|item| match item.verdict {
            Verdict::Ok {} => None,
            Verdict::Differs { should_be, mended_by, how } => {
                Some((item.item, item.is, should_be, mended_by, how))
            }
        });
        differs.collect()
    }

    #[test]
    fn each_kind_of_difference_has_its_name_and_says_whose_it_is() {
        assert_eq!(differing(&whole(), None), []);
        let (agent, you) = (MendedBy::Agent, MendedBy::Operator);
        type Change = fn(&mut Condition);
        let cases: [(Change, Verified, &str, &str, MendedBy); 10] = [
            (|seen| seen.link.carrier = false, Verified::Interface, "tun, 2 queues", "2 queues", agent),
            (|seen| seen.link.queues = Some(1), Verified::Interface, "tun, 1 queues", "2 queues", agent),
            (|seen| seen.link.name = "net1".into(), Verified::Name, "net1", "eth0", you),
            (|seen| seen.link.up = false, Verified::Up, "down", "up", you),
            (|seen| seen.link.mac = None, Verified::Mac, "none", "02:42:0a:01:00:02", agent),
            (|seen| seen.link.mtu = 900, Verified::Mtu, "900", "1408", you),
            (|seen| seen.addresses.clear(), Verified::Addresses, "none", "10.1.0.2/24", agent),
            (
                |seen| seen.addresses.extend(["192.0.2.7/32".parse::<IpNet>().expect("an address")]),
                Verified::Addresses,
                "10.1.0.2/24, 192.0.2.7/32",
                "10.1.0.2/24",
                you,
            ),
            (
                |seen| seen.routes.clear(),
                Verified::Routes,
                "none",
                "default via 10.1.0.1, 10.1.0.0/24",
                agent,
            ),
            (
                |seen| seen.offloads = Some(TapOffloads::NONE),
                Verified::Offloads,
                "none",
                "checksum, TCP, UDP",
                you,
            ),
        ];
        for (change, item, is, should_be, by) in cases {
            let mut seen = whole();
            change(&mut seen);
            let differing = differing(&seen, None);
            let [(found, was, should, mended_by, how)] = differing.as_slice() else {
                panic!("{differing:?}")
            };
            assert_eq!((*found, *mended_by), (item, by), "{differing:?}");
            assert!(was.starts_with(is) && should.starts_with(should_be), "{differing:?}");
            assert!(how.contains(if by == you { "in the container: " } else { "again within 2 s" }), "{how}");
        }
    }

    #[test]
    fn what_cannot_be_given_again_says_why() {
        let mut seen = whole();
        seen.routes.clear();
        let told = differing(&seen, Some("File exists"));
        assert!(matches!(&told[..], [(.., how)] if how.ends_with("fails: File exists")), "{told:?}");
        seen.link.up = false;
        let told = differing(&seen, None);
        assert!(matches!(&told[..], [_, (.., how)] if how.contains("when the interface is up")), "{told:?}");
    }
}
