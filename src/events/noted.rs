//! A request that is under way: recorded when it ends, however it ends.

use super::{Event, Events, Reason};

/// Records a request with its outcome when it is told of it, or when it is dropped.
#[derive(Debug)]
pub struct Noted {
    events: Events,
    event: Option<Event>,
}

impl Noted {
    /// Takes note of a request; of none, records nothing.
    pub fn begin(events: &Events, request: Option<Event>) -> Self {
        let mut noted = Self { events: events.clone(), event: request };
        // So it is recorded when the caller hangs up: what was begun may be done all the same.
        noted.set_failure(Some(Reason::of("the caller did not wait for the answer")));
        noted
    }

    /// The request is done, or has failed.
    pub fn end(mut self, failure: Option<Reason>) {
        self.set_failure(failure);
    }

    fn set_failure(&mut self, reason: Option<Reason>) {
        if let Some(Event::LocalRequest { failure, .. } | Event::NodeRequest { failure, .. }) =
            &mut self.event
        {
            *failure = reason;
        }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.events.record(event);
        }
    }
}
