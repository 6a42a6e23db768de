//! Flags of `overlayd events`.

use std::time::Duration;

use clap::Args;

use crate::api::types::EventsRequest;
use crate::events::Timestamp;

/// Flags of `overlayd events`.
#[derive(Debug, Args)]
pub struct EventsArguments {
    /// Begin with what happened since then: an age like 10m, or a time like 2027-01-15T08:00:00Z
    #[arg(long, value_name = "AGE|TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// End with what has happened so far [default: wait for more]
    #[arg(long)]
    no_follow: bool,
}

impl EventsArguments {
    pub(in crate::cli) fn request(&self) -> EventsRequest {
        // To wait for nothing and look at nothing makes no sense: then all is meant.
        let since = self.since.or_else(|| self.no_follow.then(|| Timestamp::now().before(Duration::MAX)));
        EventsRequest { since, follow: !self.no_follow }
    }
}

fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return Ok(Timestamp::now().before(age));
    }
    text.parse().map_err(|_| "write an age like 10m or 2days, or a time like 2027-01-15T08:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_an_age_or_a_time() {
        let now = Timestamp::now();
        let ago = since("10m").expect("an age");
        assert!(ago < now && ago > now.before(Duration::from_secs(601)));
        let time = since("2027-01-15T08:00:00Z").expect("a time");
        assert_eq!(time.to_string(), "2027-01-15T08:00:00.000Z");
        assert_eq!(since("2027-01-15 08:00:00"), Ok(time));
        for bad in ["", "yesterday", "10", "-5m"] {
            assert!(since(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn without_following_everything_is_shown() {
        let all = EventsArguments { since: None, no_follow: true }.request();
        assert!(!all.follow && all.since.is_some_and(|since| since < Timestamp::now()));
        let live = EventsArguments { since: None, no_follow: false }.request();
        assert_eq!(live, EventsRequest { since: None, follow: true });
    }
}
