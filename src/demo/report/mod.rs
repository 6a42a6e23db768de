//! What was found, as text: pure, so that tests compare whole screens.

mod counters;
mod pings;
mod rates;
mod removal;
mod setting;
mod wire;

pub(super) use counters::{Counters, HostCounters, PeerCounters};
pub(super) use pings::Pings;
pub(super) use rates::{RateRow, Rates};
pub(super) use removal::Removal;
pub(super) use setting::{Keys, Setting};
pub(super) use wire::{WireFinding, WireTrial};

use super::screen::Ink;

/// One thing that was measured.
pub(super) trait Finding {
    /// The lines that tell it.
    fn render(&self, ink: Ink) -> String;

    /// What is not as it must be, one sentence each.
    fn failures(&self) -> Vec<String>;
}

/// Appends a line to a text.
macro_rules! line {
    ($text:expr) => { $text.push('\n') };
    ($text:expr, $($format:tt)*) => {{
        $text.push_str(&format!($($format)*));
        $text.push('\n');
    }};
}
use line;

/// The direction of traffic between the containers.
const DIRECTIONS: [&str; 2] = ["c1 to c2", "c2 to c1"];
