//! Watches a rotation of the root to its end: a bar, and each node that is waited for, or a line of JSON for each
//! change. It only watches: the managers go on by themselves when it is interrupted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::{CliError, report};
use crate::api::types::{CaRotation, CaStatusRequest, CaStatusResponse, RotateCaRequest};
use crate::api::{Client, ClientError};
use crate::cluster::RotationStep;
use crate::id::{HostName, NodeId};

/// Begins a rotation and waits for its end; what goes to standard output last.
pub(super) async fn follow(
    client: &Client,
    request: &RotateCaRequest,
    json: bool,
) -> Result<String, CliError> {
    let mut status = client.call(request).await?;
    let mut screen = Screen::new(json);
    while status.rotation.is_some() {
        screen.show(&mut status);
        tokio::time::sleep(INTERVAL).await;
        status = ask(client).await?;
    }
    screen.show(&mut status);
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
    progress: Progress,
}

impl Screen {
    fn new(json: bool) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let bar = if json || !is_terminal { ProgressBar::hidden() } else { ProgressBar::new(0) };
        let style =
            ProgressStyle::with_template("{bar:30} {wide_msg}").expect("the template is constant and right");
        let bar = bar.with_style(style);
        Self { json, is_terminal, bar, shown: None, progress: Progress::default() }
    }

    fn show(&mut self, status: &mut CaStatusResponse) {
        let Some(rotation) = &mut status.rotation else { return self.say(&self.progress.end()) };
        self.progress.steady(rotation);
        if !self.json {
            let news = self.progress.news(rotation);
            self.bar.set_length(rotation.node_count * STEPS);
            self.bar.set_position(position(rotation));
            self.bar.set_message(summary(rotation));
            return self.say(&news);
        }
        let text = line(status);
        if self.shown.as_ref() != Some(&text) {
            // A reader that has gone does not stop the rotation.
            let mut out = io::stdout().lock();
            let _written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            self.shown = Some(text);
        }
    }

    fn say(&self, lines: &[String]) {
        for line in lines {
            if self.is_terminal {
                self.bar.println(line);
            } else {
                let _written = writeln!(io::stderr().lock(), "{line}");
            }
        }
    }
}

/// What was said of a rotation.
#[derive(Debug, Default)]
struct Progress {
    step: Option<RotationStep>,
    /// Who is waited for, with its name and why.
    waiting: BTreeMap<NodeId, (HostName, String)>,
    offline_since: BTreeMap<NodeId, u64>,
}

impl Progress {
    /// Since when a node is offline is known in whole seconds only, and told anew each time: what was told first
    /// stays.
    fn steady(&mut self, rotation: &mut CaRotation) {
        let before = std::mem::take(&mut self.offline_since);
        for node in &mut rotation.waiting {
            let Some(since) = &mut node.offline_since_unix_seconds else { continue };
            if let Some(before) = before.get(&node.node).filter(|before| before.abs_diff(*since) <= UNSURE) {
                *since = *before;
            }
            self.offline_since.insert(node.node, *since);
        }
    }

    /// What is new: a step, whom it waits for and why, each once, and who is waited for no more.
    fn news(&mut self, rotation: &CaRotation) -> Vec<String> {
        let is_new = self.step != Some(rotation.step);
        let mut lines = if is_new { self.end() } else { Vec::new() };
        if is_new {
            self.waiting.clear();
            lines.push(format!("Step {}", report::ca::step(rotation)));
        }
        self.step = Some(rotation.step);
        let mut before = std::mem::take(&mut self.waiting);
        for node in &rotation.waiting {
            let said = report::ca::waiting(node);
            if before.remove(&node.node).is_none_or(|(_, before)| before != said) {
                lines.push(format!("  waiting for {said}"));
            }
            self.waiting.insert(node.node, (node.name.clone(), said));
        }
        lines.extend(before.iter().map(|(id, (name, _))| no_more(*id, name)));
        lines
    }

    /// Nobody is waited for any more.
    fn end(&self) -> Vec<String> {
        self.waiting.iter().map(|(id, (name, _))| no_more(*id, name)).collect()
    }
}

fn no_more(id: NodeId, name: &HostName) -> String {
    format!("  {name} ({id}) is waited for no more")
}

/// The step and those that are waited for, as many as a line holds; each of them is said beside it.
fn summary(rotation: &CaRotation) -> String {
    let mut text = report::ca::step(rotation);
    let named: Vec<_> = rotation.waiting.iter().take(MOST_NAMED).map(|node| node.name.as_str()).collect();
    if !named.is_empty() {
        write!(text, "; waiting for {}", named.join(", ")).expect("a String takes all");
    }
    if let Some(more) = rotation.waiting.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
        write!(text, " and {more} more").expect("a String takes all");
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
const MOST_NAMED: usize = 3;
/// Seconds: what is left of whole ones, here and at the manager, and a clock that is set a little.
const UNSURE: u64 = 2;
const STEPS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::WaitingNode;

    #[test]
    fn bar_counts_what_nodes_have_done_over_all_steps() {
        assert_eq!(position(&rotation(RotationStep::Trust, 5)), 0);
        assert_eq!(position(&rotation(RotationStep::Trust, 1)), 4);
        assert_eq!(position(&rotation(RotationStep::Reissue, 5)), 5);
        assert_eq!(position(&rotation(RotationStep::Retire, 0)), 15);
    }

    #[test]
    fn each_node_is_named_once_with_why_and_once_more_when_it_is_waited_for_no_more() {
        let mut progress = Progress::default();
        let news = progress.news(&rotation(RotationStep::Trust, 12));
        assert!(news[0].starts_with("Step 1 of 3, every node trusts the new root too: "), "{news:?}");
        let named =
            |news: &[String], n: u8| news.iter().filter(|line| line.contains(&id(n).to_string())).count();
        assert!((0..12).all(|n| named(&news, n) == 1), "{news:?}");
        assert_eq!(news.len(), 13);
        assert!(
            news[1].ends_with("b (0000000000000000000000000): does not trust the new root yet"),
            "{news:?}"
        );
        assert_eq!(progress.news(&rotation(RotationStep::Trust, 12)), [""; 0]);

        let gone = format!("  b ({}) is waited for no more", id(11));
        assert_eq!(progress.news(&rotation(RotationStep::Trust, 11)), [gone]);
        let mut left = rotation(RotationStep::Trust, 11);
        left.waiting[4].connected = false;
        let news = progress.news(&left);
        assert!(
            news.len() == 1 && news[0].ends_with("offline since before the manager was started"),
            "{news:?}"
        );
        // Those that are left have done it when the next step begins, and the last one's at the end.
        let news = progress.news(&rotation(RotationStep::Reissue, 1));
        assert!((1..11).all(|n| named(&news, n) == 1) && named(&news, 0) == 2, "{news:?}");
        assert_eq!(progress.end(), [format!("  b ({}) is waited for no more", id(0))]);
    }

    #[test]
    fn moment_since_which_a_node_is_offline_does_not_flicker() {
        let mut progress = Progress::default();
        let since = |progress: &mut Progress, seconds| {
            let mut rotation = rotation(RotationStep::Trust, 1);
            rotation.waiting[0].connected = false;
            rotation.waiting[0].offline_since_unix_seconds = Some(seconds);
            progress.steady(&mut rotation);
            rotation.waiting[0].offline_since_unix_seconds
        };
        for told in [1000, 1001, 999, 1000] {
            assert_eq!(since(&mut progress, told), Some(1000));
        }
        assert_eq!(since(&mut progress, 1060), Some(1060), "it was there meanwhile");
    }

    #[test]
    fn line_of_the_bar_names_as_many_as_it_holds() {
        assert!(
            summary(&rotation(RotationStep::Trust, 5)).ends_with(": 0 of 5; waiting for b, b, b and 2 more")
        );
        assert!(summary(&rotation(RotationStep::Trust, 3)).ends_with("; waiting for b, b, b"));
        assert!(summary(&rotation(RotationStep::Trust, 0)).ends_with(": 5 of 5"));
    }

    fn id(n: u8) -> NodeId {
        NodeId::from_entropy([n; 16])
    }

    fn rotation(step: RotationStep, waiting: usize) -> CaRotation {
        let node = |n: usize| WaitingNode {
            node: id(u8::try_from(n).expect("few nodes")),
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
            waiting: (0..waiting).map(node).collect(),
        }
    }
}
