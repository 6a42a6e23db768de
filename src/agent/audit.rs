//! What happens by itself and belongs in the audit log: sessions that begin and are lost, forged packets.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::dataplane::DataPlane;
use crate::control::session::SessionStatus;
use crate::drop_reason::DropReason;
use crate::events::{Event, Events, Reason};

/// Records when a manager is reached and lost, until the session's task ends.
pub(super) async fn tell_session(mut session: watch::Receiver<SessionStatus>, events: Events) {
    loop {
        let event = match &*session.borrow_and_update() {
            SessionStatus::Connecting => None,
            SessionStatus::Connected => Some(Event::ManagerReached {}),
            SessionStatus::Disconnected(error) | SessionStatus::Removed(error) => {
                Some(Event::ManagerLost { reason: Reason::of(error) })
            }
        };
        event.into_iter().for_each(|event| events.record(event));
        if session.changed().await.is_err() {
            // The session's own task is missed by whoever watches the tasks.
            return std::future::pending().await;
        }
    }
}

/// Records packets that were forged or replayed, interval by interval; for ever.
pub(super) async fn tell_forgeries(dataplane: Arc<DataPlane>, events: Events) {
    let mut before = Forgeries::of(&dataplane);
    loop {
        tokio::time::sleep(FORGERY_INTERVAL).await;
        let now = Forgeries::of(&dataplane);
        events_of(before, now).into_iter().for_each(|event| events.record(event));
        before = now;
    }
}

/// Packets that nobody honest has sent, since the agent started.
#[derive(Debug, Clone, Copy, Default)]
struct Forgeries {
    unauthentic: u64,
    replayed: u64,
    plaintext: u64,
}

impl Forgeries {
    fn of(dataplane: &DataPlane) -> Self {
        let mut total = Self::default();
        for lane in dataplane.lanes() {
            let drops = lane.counters().drops();
            let of = |reason: DropReason| drops[reason.index()];
            total.unauthentic += of(DropReason::AuthenticationFailed);
            total.replayed += of(DropReason::Replayed);
            total.plaintext += of(DropReason::PlaintextForEncryptedNetwork);
        }
        total
    }
}

fn events_of(before: Forgeries, now: Forgeries) -> Option<Event> {
    let unauthentic = now.unauthentic.saturating_sub(before.unauthentic);
    let replayed = now.replayed.saturating_sub(before.replayed);
    let plaintext = now.plaintext.saturating_sub(before.plaintext);
    // A network may duplicate a packet now and then.
    let is_burst = unauthentic > 0 || plaintext > 0 || replayed >= REPLAYS;
    is_burst.then_some(Event::ForgedPackets { unauthentic, replayed, plaintext })
}

const FORGERY_INTERVAL: Duration = Duration::from_secs(5);
const REPLAYS: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::rpc::{ErrorKind, ManagerError};
    use crate::events::Told;

    #[test]
    fn forgeries_are_told_and_a_duplicate_is_not() {
        let before = Forgeries { unauthentic: 5, replayed: 5, plaintext: 5 };
        assert_eq!(events_of(before, before), None);
        assert_eq!(events_of(before, Forgeries { replayed: 6, ..before }), None);
        let event = events_of(before, Forgeries { unauthentic: 8, replayed: 6, ..before });
        assert_eq!(event, Some(Event::ForgedPackets { unauthentic: 3, replayed: 1, plaintext: 0 }));
        assert!(events_of(before, Forgeries { replayed: 15, ..before }).is_some());
    }

    #[tokio::test]
    async fn session_is_told_when_it_begins_and_when_it_is_lost() {
        let (status, session) = watch::channel(SessionStatus::Connecting);
        let events = Events::default();
        let mut reader = events.reader(None);
        tokio::spawn(tell_session(session, events));
        status.send_replace(SessionStatus::Connected);
        let Some(Told::Event(reached)) = reader.next().await else { panic!("no event") };
        assert_eq!(reached.event, Event::ManagerReached {});
        let error = ManagerError::new(ErrorKind::Unavailable, "it is gone");
        status.send_replace(SessionStatus::Disconnected(error));
        let Some(Told::Event(lost)) = reader.next().await else { panic!("no event") };
        assert_eq!(lost.event, Event::ManagerLost { reason: Reason::of("it is gone") });
    }
}
