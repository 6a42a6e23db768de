//! What managers say of where they are, heeded while there is no session.

use std::net::SocketAddr;

use tokio::sync::{mpsc, watch};

use crate::control::notice::Notice;
use crate::control::rpc::ManagerClient;
use crate::control::session::SessionStatus;

/// Has `client` look first where the latest notice says.
pub(crate) async fn heed(
    mut notices: mpsc::Receiver<Notice>,
    client: ManagerClient,
    session: watch::Receiver<SessionStatus>,
) {
    while let Some(Notice { manager }) = notices.recv().await {
        if *session.borrow() == SessionStatus::Connected {
            continue;
        }
        let known = client.addresses();
        if !known.contains(&manager) {
            tracing::info!(%manager, "a manager says that it is reached there now");
        }
        client.set_addresses(with_first(manager, known));
    }
}

fn with_first(manager: SocketAddr, known: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let others = known.into_iter().filter(|address| *address != manager);
    std::iter::once(manager).chain(others).take(MOST_ADDRESSES).collect()
}

/// A manager that keeps moving must not make the search for others last for ever.
const MOST_ADDRESSES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_notice_is_looked_for_first_and_addresses_do_not_grow_without_end() {
        let at = |host: u8| SocketAddr::from(([192, 0, 2, host], 2377));
        assert_eq!(with_first(at(2), vec![at(1), at(2)]), [at(2), at(1)]);
        let many = with_first(at(0), (1..100).map(at).collect());
        assert_eq!((many.len(), many[0], many[7]), (8, at(0), at(7)));
    }
}
