//! Hears of changes that other managers make: watches the head, connecting anew whenever it must.

use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::Duration;

use tokio::time::sleep;

use super::super::rows::Revision;
use super::members::Members;
use super::proto::WatchResponse;

/// What was heard last.
#[derive(Debug, Default)]
pub(super) struct Watch {
    heard: Mutex<Heard>,
}

#[derive(Debug, Default)]
struct Heard {
    /// Who wants to know.
    listener: Option<Thread>,
    /// The last change of the head that was told of.
    latest: Option<i64>,
    /// Changes may have been missed: it has to be read.
    unsure: bool,
    /// Why nothing is heard at present.
    trouble: Option<String>,
}

impl Watch {
    /// Wakes `listener` from now on whenever [`Self::news`] may have another answer.
    pub(super) fn wake(&self, listener: Thread) {
        let mut heard = self.heard.lock().expect(NO_PANIC);
        heard.listener = Some(listener);
        heard.unsure = true;
    }

    /// Whether the rows may be others than at `known`; asked once, it is taken to be looked at.
    pub(super) fn news(&self, known: Revision) -> bool {
        let mut heard = self.heard.lock().expect(NO_PANIC);
        std::mem::take(&mut heard.unsure) || heard.latest.is_some_and(|latest| latest > known.at())
    }

    /// Has [`Self::news`] tell again what could not be looked at.
    pub(super) fn again(&self) {
        self.tell(|heard| heard.unsure = true);
    }

    /// Why nothing is heard at present, if that is so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.heard.lock().expect(NO_PANIC).trouble.clone()
    }

    /// Watches `key` for ever.
    pub(super) async fn keep(self: Arc<Self>, members: Arc<Members>, key: Vec<u8>) {
        loop {
            let asked = members.current();
            let why = match members.watch(key.clone()).await {
                Ok(mut stream) => loop {
                    match stream.message().await {
                        Ok(Some(WatchResponse { canceled: true, cancel_reason, .. })) => break cancel_reason,
                        Ok(Some(response)) => self.hear(&response),
                        Ok(None) => break "the watch was ended".to_owned(),
                        Err(status) => break status.message().to_owned(),
                    }
                },
                Err(why) => why,
            };
            if members.current() == asked {
                members.pass_over(asked);
            }
            tracing::debug!(%why, "the watch of etcd ended");
            self.tell(|heard| heard.trouble = Some(why));
            sleep(PAUSE).await;
        }
    }

    fn hear(&self, response: &WatchResponse) {
        let last = response.events.iter().filter_map(|event| event.kv.as_ref()).next_back();
        self.tell(|heard| {
            heard.trouble = None;
            // From where it begins nothing is missed; what was before has to be read, so that neither a
            // broken connection nor a compaction can lose a change.
            heard.unsure |= response.created;
            if response.created {
                // An etcd that was restored from its own snapshot counts from where that was made.
                heard.latest = None;
            }
            if let Some(kv) = last {
                heard.latest = Some(kv.mod_revision);
            }
        });
    }

    fn tell(&self, change: impl FnOnce(&mut Heard)) {
        let mut heard = self.heard.lock().expect(NO_PANIC);
        change(&mut heard);
        if let Some(listener) = &heard.listener {
            listener.unpark();
        }
    }
}

const PAUSE: Duration = Duration::from_millis(200);
const NO_PANIC: &str = "nothing panics while it holds what was heard";

#[cfg(test)]
mod tests {
    use super::super::proto::{Event, KeyValue};
    use super::*;

    #[test]
    fn etcd_that_was_restored_to_what_was_before_is_looked_at_once() {
        let watch = Watch::default();
        let change = |mod_revision| WatchResponse {
            events: vec![Event { kv: Some(KeyValue { mod_revision, ..KeyValue::default() }) }],
            ..WatchResponse::default()
        };
        let news = |known| watch.news(Revision::new(known, None));
        watch.hear(&change(100));
        assert!(news(99) && !news(100));
        watch.hear(&WatchResponse { created: true, ..WatchResponse::default() });
        assert!(news(50));
        assert!(!news(50), "it is looked at for ever");
        watch.hear(&change(51));
        assert!(news(50) && !news(51));
    }
}
