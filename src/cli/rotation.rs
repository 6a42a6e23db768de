//! Watches a rotation of the root to its end: a bar and whom it waits for, or a line of JSON for each
//! change. It only watches: the managers go on by themselves when it is interrupted.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, report};
use crate::api::types::{CaRotation, CaStatusRequest, CaStatusResponse, RotateCaRequest};
use crate::api::{Client, ClientError};
use crate::cluster::RotationStep;

/// Begins a rotation and waits for its end; what goes to standard output last.
pub(super) async fn follow(
    client: &Client,
    request: &RotateCaRequest,
    json: bool,
) -> Result<String, CliError> {
    let mut status = client.call(request).await?;
    let mut screen = Screen::new(json);
    while let Some(rotation) = &status.rotation {
        screen.show(&status, rotation);
        tokio::time::sleep(INTERVAL).await;
        status = ask(client).await?;
    }
    screen.bar.finish_and_clear();
    Ok(if json { line(&status) } else { report::ca::replaced(&status) })
}

/// A manager or agent that is just being restarted is no reason to stop watching.
async fn ask(client: &Client) -> Result<CaStatusResponse, ClientError> {
    let mut attempts = 0;
    loop {
        match client.call(&CaStatusRequest {}).await {
            Err(_) if attempts < ATTEMPTS => attempts += 1,
            answer => return answer,
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Where the progress is shown.
struct Screen {
    json: bool,
    is_terminal: bool,
    bar: ProgressBar,
    shown: Option<String>,
}

impl Screen {
    fn new(json: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let bar = if json || !is_terminal { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style =
            ProgressStyle::with_template("{bar:30} {msg}").expect("the template is constant and right");
        Self { json, is_terminal, bar: bar.with_style(style), shown: None }
    }

    fn show(&mut self, status: &CaStatusResponse, rotation: &CaRotation) {
        let text = if self.json { line(status) } else { progress(rotation) };
        if self.shown.as_ref() == Some(&text) {
            return;
        }
        // A reader that has gone does not stop the rotation.
        if self.json {
            let mut out = io::stdout().lock();
            let _written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        } else if self.is_terminal {
            self.bar.set_length(rotation.node_count * STEPS);
            self.bar.set_position(position(rotation));
            self.bar.set_message(text.clone());
        } else {
            let _written = writeln!(io::stderr().lock(), "{text}");
        }
        self.shown = Some(text);
    }
}

/// The step and those that are waited for, as many as a screen holds.
fn progress(rotation: &CaRotation) -> String {
    let mut text = format!("Step {}", report::ca::step(rotation));
    for node in rotation.waiting.iter().take(MOST_NAMED) {
        write!(text, "\n  waiting for {}", report::ca::waiting(node)).expect("a String takes all");
    }
    if let Some(more) = rotation.waiting.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
        write!(text, "\n  and for {more} more").expect("a String takes all");
    }
    text
}

/// How many nodes have done their part, over all steps.
fn position(rotation: &CaRotation) -> u64 {
    let before = RotationStep::ALL.iter().filter(|step| **step < rotation.step).count();
    let before = u64::try_from(before).unwrap_or(0) * rotation.node_count;
    let waiting = u64::try_from(rotation.waiting.len()).unwrap_or(u64::MAX);
    before + rotation.node_count.saturating_sub(waiting)
}

fn line(status: &CaStatusResponse) -> String {
    let mut line = serde_json::to_string(status).expect("a response came out of JSON");
    line.push('\n');
    line
}

const INTERVAL: Duration = Duration::from_millis(250);
/// A minute, in intervals.
const ATTEMPTS: u32 = 240;
const MOST_NAMED: usize = 10;
const STEPS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::WaitingNode;
    use crate::id::NodeId;

    #[test]
    fn bar_counts_what_nodes_have_done_over_all_steps() {
        assert_eq!(position(&rotation(RotationStep::Trust, 5)), 0);
        assert_eq!(position(&rotation(RotationStep::Trust, 1)), 4);
        assert_eq!(position(&rotation(RotationStep::Reissue, 5)), 5);
        assert_eq!(position(&rotation(RotationStep::Retire, 0)), 15);
    }

    #[test]
    fn no_more_nodes_are_named_than_a_screen_holds() {
        let text = progress(&rotation(RotationStep::Trust, 12));
        assert!(text.starts_with("Step 1 of 3, every node trusts the new root too: "), "{text}");
        assert_eq!(text.matches("waiting for").count(), 10);
        assert!(text.ends_with("and for 2 more"), "{text}");
        assert!(!progress(&rotation(RotationStep::Trust, 10)).contains("more"));
    }

    fn rotation(step: RotationStep, waiting: usize) -> CaRotation {
        let node = WaitingNode {
            node: NodeId::from_entropy([0; 16]),
            name: "b".parse().expect("a name"),
            why: step.lacking().into(),
            connected: true,
            offline_since_unix_seconds: None,
        };
        CaRotation {
            step,
            begun_unix_seconds: 0,
            old_sha256: "a".into(),
            new_sha256: "b".into(),
            node_count: 5,
            waiting: vec![node; waiting],
        }
    }
}
