//! Files of text that a command names: a certificate, a key, a password.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use zeroize::Zeroizing;

use super::CliError;

/// The text of a file, which may be secret; what is in it is for the agent to judge.
pub(super) fn read(file: &Path) -> Result<Zeroizing<String>, CliError> {
    File::open(file)
        .and_then(|opened| text(opened, LONGEST_BYTES))
        .map_err(|source| CliError::File { file: file.to_owned(), source })
}

fn text(from: impl Read, most_bytes: usize) -> io::Result<Zeroizing<String>> {
    // What a vector leaves behind when it grows is not wiped.
    let mut text = Zeroizing::new(String::with_capacity(most_bytes + 1));
    from.take(most_bytes as u64 + 1).read_to_string(&mut text)?;
    if text.len() > most_bytes {
        let why = format!("it is longer than {most_bytes} bytes, and so no certificate, key or password");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(text)
}

/// Far above a chain of certificates.
const LONGEST_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_never_ends_is_refused_by_name() {
        assert_eq!(text(&b"12345"[..], 5).expect("read").as_str(), "12345");
        assert!(text(&b"123456"[..], 5).is_err());
        let error = read(Path::new("/dev/zero")).expect_err("endless");
        assert!(error.to_string().contains("/dev/zero"), "{error}");
    }
}
