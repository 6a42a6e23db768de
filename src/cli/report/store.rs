//! What the commands about the store print.

use std::fmt::Write as _;

use crate::api::types::{MigrateStoreResponse, StoreKind, StoreResponse};

pub(in crate::cli) fn store(store: &StoreResponse) -> String {
    let StoreResponse { kind, place, version, trouble } = store;
    let mut text = match kind {
        StoreKind::Embedded => format!(
            "The cluster's state is in this node's state file, {place}.\n\
             It can have one manager; 'overlayd store migrate etcd://HOST:2379' moves it where several can share it.\n"
        ),
        StoreKind::Etcd => format!("The cluster's state is in {place}.\n"),
    };
    match (trouble, version) {
        (None, Some(version)) => {
            writeln!(text, "It can be read and changed; this manager has version {version}.")
        }
        (None, None) => writeln!(text, "It can be read; this manager has not yet."),
        (Some(trouble), Some(version)) => {
            writeln!(
                text,
                "NOT REACHED: {trouble}.\nThis manager goes on with version {version}, and refuses changes."
            )
        }
        (Some(trouble), None) => {
            writeln!(
                text,
                "NOT REACHED: {trouble}.\nThis node carries traffic, and is a manager once it has read it."
            )
        }
    }
    .expect("a String takes all");
    text
}

pub(in crate::cli) fn migrate_store(moved: &MigrateStoreResponse) -> String {
    let place = &moved.place;
    match moved.rows {
        Some(rows) => format!(
            "The cluster's state is in {place} from now on: {rows} rows, sealed.\n\
             Other nodes can be managers now: let them join with 'overlayd token manager', or promote them.\n"
        ),
        None => format!(
            "The cluster's state was in {place} already; this manager reaches it as you said from now on.\n"
        ),
    }
}
