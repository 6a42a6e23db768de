//! What `overlayd status --verify` prints.

use std::fmt::Write as _;

use super::{table, text};
use crate::api::types::{MendedBy, Verdict, VerifiedItem, VerifyResponse};

pub(in crate::cli) fn verified(verified: &VerifyResponse) -> String {
    let mut table = table(&["ITEM", "OF", "STATE", "IS", "SHOULD BE"]);
    for VerifiedItem { item, of, is, verdict } in &verified.items {
        let (state, should_be) = match verdict {
            Verdict::Ok {} => ("ok", "-"),
            Verdict::Differs { should_be, .. } => ("DIFFERS", should_be.as_str()),
        };
        table.add_row([item.name(), of, state, is, should_be]);
    }
    let mut text = text(&table);
    for VerifiedItem { item, of, verdict, .. } in verified.differing() {
        if let Verdict::Differs { mended_by, how, .. } = verdict {
            let who = match mended_by {
                MendedBy::Agent => "the agent",
                MendedBy::Operator => "for you",
            };
            writeln!(text, "{} of {of}, {who}: {how}", item.name()).expect("a String takes all");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Verified;

    #[test]
    fn each_item_has_its_row_and_what_differs_says_who_does_what() {
        let items = vec![
            VerifiedItem::ok(Verified::Keys, "b on red", "generation 2"),
            VerifiedItem::differs(
                (Verified::Routes, "/run/netns/web eth0"),
                "none",
                "10.1.0.0/24",
                (MendedBy::Agent, "gives it again within 2 s"),
            ),
            VerifiedItem::differs(
                (Verified::File, "/run/a.sock"),
                "0666",
                "0600",
                (MendedBy::Operator, "chmod 600 /run/a.sock"),
            ),
        ];
        assert_eq!(
            verified(&VerifyResponse { items }),
            "\
ITEM    OF                   STATE    IS            SHOULD BE
keys    b on red             ok       generation 2  -
routes  /run/netns/web eth0  DIFFERS  none          10.1.0.0/24
file    /run/a.sock          DIFFERS  0666          0600
routes of /run/netns/web eth0, the agent: gives it again within 2 s
file of /run/a.sock, for you: chmod 600 /run/a.sock
"
        );
    }
}
