//! Labels as flags: `K=V`, each key once.

use std::collections::BTreeMap;

use crate::cli::CliError;

pub(super) fn one(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("write it as KEY=VALUE".into()),
    }
}

/// All that were given with one flag.
pub(super) fn all(flag: &str, given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, CliError> {
    let mut labels = BTreeMap::new();
    for (key, value) in given {
        if let Some(first) = labels.insert(key.clone(), value) {
            return Err(CliError::Usage(format!("{flag} {key} is given twice, first as {first:?}")));
        }
    }
    Ok(labels)
}
