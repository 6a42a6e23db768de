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
use crate::events::{Event, Events, Noted, Reason, Told};

/// Takes note of a call; one that only looks is not recorded.
pub(super) fn note<C: Call>(events: &Events, caller: Caller, call: &C) -> Noted {
    let request = || Event::LocalRequest {
        uid: caller.uid,
        pid: caller.pid,
        request: C::PATH.trim_start_matches("/v1/").to_owned(),
        subject: call.subject().map(Reason::from),
        failure: None,
    };
    Noted::begin(events, (!C::LOOKS).then(request))
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
