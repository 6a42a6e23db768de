//! Secrets that the operator gives: never as an argument, which every user of the machine could see.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use console::Term;
use zeroize::Zeroizing;

use super::CliError;

/// The first line of `file` if one is given; otherwise what is typed at the terminal, unseen, or
/// the first line of standard input.
pub(super) fn read(file: Option<&Path>, what: &'static str) -> Result<Zeroizing<String>, CliError> {
    let line = match file {
        Some(file) => File::open(file).and_then(first_line),
        None if io::stdin().is_terminal() => ask(what),
        None => first_line(io::stdin()),
    };
    let from = source(file);
    let failed = |source| CliError::Secret { what: what.to_lowercase(), from: from.clone(), source };
    let line = line.map_err(failed)?;
    if line.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::UnexpectedEof, "it is empty")));
    }
    Ok(line)
}

/// Where [`read`] reads it from.
pub(super) fn source(file: Option<&Path>) -> String {
    match file {
        Some(file) => file.display().to_string(),
        None if io::stdin().is_terminal() => "the terminal".to_owned(),
        None => "standard input".to_owned(),
    }
}

/// As [`read`], for a secret that is new: what is typed is asked for twice.
pub(super) fn choose(file: Option<&Path>, what: &'static str) -> Result<Zeroizing<String>, CliError> {
    let chosen = read(file, what)?;
    if file.is_none() && io::stdin().is_terminal() {
        let again = ask("The same again").map_err(|source| CliError::Secret {
            what: what.to_lowercase(),
            from: "the terminal".to_owned(),
            source,
        })?;
        if again != chosen {
            return Err(CliError::TypedDifferently);
        }
    }
    Ok(chosen)
}

fn ask(what: &str) -> io::Result<Zeroizing<String>> {
    let terminal = Term::stderr();
    terminal.write_str(&format!("{what}: "))?;
    let line = terminal.read_secure_line().map(Zeroizing::new);
    terminal.write_line("")?;
    line
}

fn first_line(from: impl Read) -> io::Result<Zeroizing<String>> {
    // What a vector leaves behind when it grows is not wiped.
    let mut text = Zeroizing::new(String::with_capacity(LONGEST_BYTES));
    from.take(LONGEST_BYTES as u64).read_to_string(&mut text)?;
    Ok(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
}

const LONGEST_BYTES: usize = 4096;
