//! What the operator sees: findings on standard output, progress on standard error.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use console::Style;
use indicatif::{ProgressBar, ProgressStyle};

use super::DemoError;

/// The terminal; progress is quiet and text is plain where there is none.
#[derive(Debug)]
pub(super) struct Screen {
    progress: ProgressBar,
    ink: Ink,
}

impl Screen {
    pub(super) fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner:.cyan} {msg}").expect("a template");
        let progress = ProgressBar::new_spinner().with_style(style);
        progress.enable_steady_tick(Duration::from_millis(100));
        Self { progress, ink: Ink { is_coloured: console::colors_enabled() } }
    }

    pub(super) fn ink(&self) -> Ink {
        self.ink
    }

    /// What is going on until something else is.
    pub(super) fn doing(&self, what: impl Into<Cow<'static, str>>) {
        self.progress.set_message(what);
    }

    /// Prints lines that stay.
    pub(super) fn show(&self, lines: &str) -> Result<(), DemoError> {
        let written = self.progress.suspend(|| {
            let mut out = io::stdout().lock();
            out.write_all(lines.as_bytes()).and_then(|()| out.flush())
        });
        written.map_err(|source| DemoError::System { doing: "write to standard output", source })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.progress.finish_and_clear();
    }
}

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ink {
    is_coloured: bool,
}

impl Ink {
    #[cfg(test)]
    pub(super) const PLAIN: Self = Self { is_coloured: false };

    pub(super) fn heading(self, text: &str) -> String {
        self.apply(Style::new().bold().cyan(), text)
    }

    pub(super) fn command(self, text: &str) -> String {
        self.apply(Style::new().bold(), text)
    }

    pub(super) fn aside(self, text: &str) -> String {
        self.apply(Style::new().dim(), text)
    }

    /// `ok` or `FAILED`, six columns wide.
    pub(super) fn verdict(self, holds: bool) -> String {
        if holds {
            self.apply(Style::new().green(), "ok    ")
        } else {
            self.apply(Style::new().red().bold(), "FAILED")
        }
    }

    fn apply(self, style: Style, text: &str) -> String {
        style.force_styling(self.is_coloured).apply_to(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_only_where_they_are_wanted() {
        assert_eq!(Ink::PLAIN.heading("Ping"), "Ping");
        assert_eq!(Ink { is_coloured: true }.heading("Ping"), "\u{1b}[36m\u{1b}[1mPing\u{1b}[0m");
        assert_eq!(Ink::PLAIN.verdict(true).len(), Ink::PLAIN.verdict(false).len());
    }
}
