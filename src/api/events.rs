//! The audit log over the socket: who calls goes into it, and who asks for it gets it line by line.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, unfold};
use http::header;

use super::error::ApiError;
use super::socket::Caller;
use super::types::{Call, EventsRequest};
use crate::events::{Event, Events, Reason, Told};

/// A call that is under way; it is recorded when it ends, however it ends.
pub(super) struct Noted {
    events: Events,
    event: Option<Event>,
}

impl Noted {
    pub(super) fn begin<C: Call>(events: &Events, caller: Caller, call: &C) -> Self {
        let event = || Event::LocalRequest {
            uid: caller.uid,
            pid: caller.pid,
            request: C::PATH.trim_start_matches("/v1/").to_owned(),
            subject: call.subject().map(Reason::from),
            // So it is recorded when the caller hangs up: a change runs to its end all the same.
            failure: Some(Reason::of("the caller did not wait for the answer")),
        };
        Self { events: events.clone(), event: (!C::LOOKS).then(event) }
    }

    pub(super) fn end(mut self, error: Option<&ApiError>) {
        if let Some(Event::LocalRequest { failure, .. }) = &mut self.event {
            *failure = error.map(Reason::of);
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

/// Answers with the events; the caller's pace is the stream's.
pub(super) async fn stream(events: &Events, request: EventsRequest) -> Result<Response, ApiError> {
    let EventsRequest { since, follow } = request;
    // Before the past is read: what is recorded meanwhile is not passed over.
    let reader = events.reader(since);
    let past = match since {
        None => Vec::new(),
        Some(since) => {
            let events = events.clone();
            let past = tokio::task::spawn_blocking(move || events.past(since)).await;
            past.map_err(|_| ApiError::internal("a task of the agent died"))?
                .map_err(|error| ApiError::internal(error.to_string()))?
        }
    };
    let past = stream::iter(past).map(|recorded| Told::Event(Box::new(recorded)));
    let live = unfold(reader, move |mut reader| async move {
        let told = if follow { reader.next().await } else { reader.take() };
        told.map(|told| (told, reader))
    });
    let lines = past.chain(live).map(|told| Ok::<_, Infallible>(line(&told)));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn line(told: &Told) -> Bytes {
    let mut line = serde_json::to_vec(told).expect("an event has a JSON form");
    line.push(b'\n');
    line.into()
}
