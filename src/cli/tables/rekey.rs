//! What `overlayd rekey` prints.

use std::fmt::Write as _;

use super::{optional, spis, table, text};
use crate::api::types::{RekeyResponse, RekeyedLink};

pub(in crate::cli) fn rekeyed(done: &RekeyResponse) -> String {
    if done.links.is_empty() {
        return "There are no keys: no other node shares an encrypted network with this one.\n".into();
    }
    let mut table = table(&["PEER", "NETWORK", "KEYS", "SUITE", "SPI OUT", "SPI IN"]);
    for link in &done.links {
        table.add_row([
            link.node_name.to_string(),
            link.network_name.to_string(),
            if link.failure.is_some() { "NOT RENEWED" } else { "new" }.to_owned(),
            optional(link.suite),
            spis(&link.outbound_spis),
            spis(&link.inbound_spis),
        ]);
    }
    let mut text = text(&table);
    for RekeyedLink { node_name, network_name, failure, .. } in &done.links {
        if let Some(failure) = failure {
            writeln!(text, "{node_name} on {network_name}: {failure}").expect("a String takes all");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NetworkId, NodeId, Spi};
    use crate::sa::Suite;

    #[test]
    fn each_link_shows_its_new_spis_or_why_there_are_none() {
        let new = RekeyedLink {
            node: NodeId::from_entropy([0; 16]),
            node_name: "b".parse().expect("a name"),
            network: NetworkId::from_entropy([0; 16]),
            network_name: "red".parse().expect("a name"),
            failure: None,
            suite: Some(Suite::Aes256Gcm),
            outbound_spis: vec![Spi::new(0xabcd_ef00).expect("an SPI")],
            inbound_spis: vec![Spi::new(0x100).expect("an SPI"), Spi::new(0x140).expect("an SPI")],
        };
        let kept = RekeyedLink {
            node_name: "c".parse().expect("a name"),
            failure: Some("it did not answer".into()),
            suite: None,
            outbound_spis: vec![],
            inbound_spis: vec![],
            ..new.clone()
        };
        assert_eq!(
            rekeyed(&RekeyResponse { links: vec![new, kept] }),
            "\
PEER  NETWORK  KEYS         SUITE        SPI OUT     SPI IN
b     red      new          aes-256-gcm  0xabcdef00  0x00000100, 0x00000140
c     red      NOT RENEWED  -            -           -
c on red: it did not answer
"
        );
        assert!(rekeyed(&RekeyResponse { links: vec![] }).starts_with("There are no keys"));
    }
}
