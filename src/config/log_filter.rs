//! What the log tells.

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What is logged: a level, or directives as `tracing_subscriber` has them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

impl LogFilter {
    /// The directives, which parse.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".into())
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(directives: String) -> Result<Self, String> {
        // A word that is no level would be taken for a module, and nothing else be logged.
        let is_word = |directive: &&str| {
            let is_module = directive.contains("::") || directive.split('=').next() == Some("overlayd");
            !is_module && !directive.contains(['=', '[']) && directive.parse::<LevelFilter>().is_err()
        };
        if let Some(word) = directives.split(',').map(str::trim).filter(|word| !word.is_empty()).find(is_word)
        {
            return Err(format!("log level {word:?} is none: write error, warn, info, debug or trace"));
        }
        match EnvFilter::try_new(&directives) {
            Ok(_) if !directives.trim().is_empty() => Ok(Self(directives)),
            Ok(_) => Err("log level is empty: write error, warn, info, debug or trace".into()),
            Err(e) => Err(format!(
                "log level {directives:?} is not valid ({e}): write error, warn, info, debug or trace, \
                 or directives like \"info,overlayd::control=debug\""
            )),
        }
    }
}
