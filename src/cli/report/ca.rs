//! What `overlayd ca` prints.

use crate::api::types::CaResponse;

/// The roots as PEM and nothing else, so that they can be put into a file.
pub(in crate::cli) fn roots(answer: &CaResponse) -> String {
    answer.roots.iter().map(|root| root.certificate_pem.as_str()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::CaRoot;
    use crate::id::ClusterId;

    #[test]
    fn root_is_printed_as_it_is_put_into_a_file() {
        let root = |text: &str| CaRoot {
            certificate_pem: text.into(),
            fingerprint_sha256: "00".into(),
            subject: "CN=x".into(),
            begins_unix_seconds: 0,
            ends_unix_seconds: 1,
        };
        let cluster = ClusterId::from_entropy([0; 16]);
        let answer = CaResponse { cluster, roots: vec![root("one\n"), root("two\n")] };
        assert_eq!(roots(&answer), "one\ntwo\n");
    }
}
