//! The end: what was built is gone.

use std::time::Duration;

use super::{Finding, Ink, line};

/// What was found after everything was taken away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) struct Removal {
    /// Names of namespaces that are still there.
    pub(in crate::demo) left: Vec<String>,
    /// How long all of it took.
    pub(in crate::demo) elapsed: Duration,
}

impl Finding for Removal {
    fn render(&self, ink: Ink) -> String {
        let mut text = String::new();
        let holds = self.failures().is_empty();
        let what = "both agents stopped with exit status 0; namespaces and files are removed";
        let seconds = self.elapsed.as_secs_f64();
        if holds {
            line!(text, "\n{}", ink.heading(&format!("Done in {seconds:.1} s: {what}")));
        } else {
            line!(text, "\n{} to remove everything after {seconds:.1} s", ink.verdict(holds));
        }
        text
    }

    fn failures(&self) -> Vec<String> {
        if self.left.is_empty() {
            return Vec::new();
        }
        vec![format!("left behind in /run/netns: {}", self.left.join(", "))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_behind_is_named() {
        let clean = Removal { left: Vec::new(), elapsed: Duration::from_millis(5_640) };
        assert!(clean.render(Ink::PLAIN).starts_with("\nDone in 5.6 s: both agents stopped"));
        assert_eq!(clean.failures(), [""; 0]);
        let dirty = Removal { left: vec!["c1".into(), "host2".into()], ..clean };
        assert_eq!(dirty.failures(), ["left behind in /run/netns: c1, host2"]);
        assert!(dirty.render(Ink::PLAIN).starts_with("\nFAILED to remove"));
    }
}
