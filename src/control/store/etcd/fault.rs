//! What went wrong with one call of one member of an etcd, and whether it can have had an effect.

use std::error::Error;

use tonic::{Code, Status};

use super::error::EtcdError;

/// Why a member did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// There was no connection, so nothing was asked.
    #[error("{0}")]
    Unconnected(String),
    /// It does not do that now, and has not done it.
    #[error("{0}")]
    Busy(String),
    /// It does not know the token any more that it gave for our password.
    #[error("the token of our user has expired")]
    StaleToken,
    /// The connection broke; it may have done it before.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// It did not answer in time, and may do it yet.
    #[error("no answer")]
    Silent,
    /// It says that it does not know what became of it, as while there is no leader.
    #[error("{0}")]
    Lost(String),
    /// It says no.
    #[error("{0}")]
    Refused(#[from] EtcdError),
}

impl Fault {
    /// What a status means (etcd's `api/v3rpc/rpctypes/error.go`), for one who wants the keys below `prefix`.
    pub(super) fn of(status: &Status, prefix: &str) -> Self {
        if let Some(NotConnected(why)) = in_chain(status) {
            return Self::Unconnected(why.clone());
        }
        let why = status.message().trim_start_matches("etcdserver: ").to_owned();
        match status.code() {
            Code::Unauthenticated => Self::StaleToken,
            Code::InvalidArgument if why.contains("revision of auth store is old") => Self::StaleToken,
            Code::InvalidArgument if why.contains("too many operations") || why.contains("too large") => {
                EtcdError::TooLarge { why }.into()
            }
            Code::ResourceExhausted if why.contains("space exceeded") => EtcdError::Full { why }.into(),
            Code::ResourceExhausted if why.contains("larger than max") => EtcdError::TooLarge { why }.into(),
            Code::ResourceExhausted => Self::Busy(why),
            Code::PermissionDenied => Self::denied(&why, prefix),
            Code::InvalidArgument if why.contains("user name is empty") => Self::denied(
                "it wants a user: give --store-user and --store-password-file, or a client certificate",
                prefix,
            ),
            Code::InvalidArgument if why.contains("authentication failed") => {
                Self::denied("user name or password is wrong", prefix)
            }
            Code::FailedPrecondition if why.contains("authentication is not enabled") => {
                Self::denied("it has no users: leave --store-user out", prefix)
            }
            Code::OutOfRange => EtcdError::Compacted.into(),
            Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::DataLoss => match status.source() {
                Some(source) => Self::Broken(deepest(source)),
                None => Self::Lost(why),
            },
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Unimplemented => EtcdError::Refused { why }.into(),
        }
    }

    pub(super) fn denied(why: &str, prefix: &str) -> Self {
        EtcdError::Denied { why: why.to_owned(), prefix: format!("{prefix}/") }.into()
    }

    /// The same of a call that had to be made before the one that matters.
    pub(super) fn before_asking(self) -> Self {
        match self {
            Self::Broken(_) => Self::Unconnected(self.to_string()),
            Self::Silent | Self::Lost(_) => Self::Busy(self.to_string()),
            Self::Unconnected(_) | Self::Busy(_) | Self::StaleToken | Self::Refused(_) => self,
        }
    }

    /// Whether what was asked for may have been done, or may be yet.
    pub(super) const fn may_have_happened(&self) -> bool {
        match self {
            Self::Broken(_) | Self::Silent | Self::Lost(_) => true,
            Self::Unconnected(_) | Self::Busy(_) | Self::StaleToken | Self::Refused(_) => false,
        }
    }

    /// Whether the member may be able to do it in a moment.
    pub(super) const fn is_of_the_living(&self) -> bool {
        match self {
            Self::Silent | Self::Lost(_) | Self::Busy(_) => true,
            Self::Unconnected(_) | Self::StaleToken | Self::Broken(_) | Self::Refused(_) => false,
        }
    }
}

/// There is no connection, so nothing was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NotConnected(pub(super) String);

/// The cause at the bottom of an error.
pub(super) fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn in_chain<'e, E: Error + 'static>(error: &'e (dyn Error + 'static)) -> Option<&'e E> {
    let mut error = error;
    loop {
        error = error.source()?;
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcd_says_tells_whether_anything_can_have_happened() {
        let of = |code, why: &str| Fault::of(&Status::new(code, why), "swarm");
        let stale = of(Code::Unauthenticated, "etcdserver: invalid auth token");
        assert!(matches!(stale, Fault::StaleToken) && !stale.may_have_happened());
        let stale = of(Code::InvalidArgument, "etcdserver: revision of auth store is old");
        assert!(matches!(stale, Fault::StaleToken), "{stale}");
        let leaderless = of(Code::Unavailable, "etcdserver: leader changed");
        assert!(matches!(&leaderless, Fault::Lost(why) if why == "leader changed"));
        assert!(leaderless.may_have_happened() && leaderless.is_of_the_living());
        let busy = of(Code::ResourceExhausted, "etcdserver: too many requests");
        assert!(matches!(busy, Fault::Busy(_)) && !busy.may_have_happened());
        let full = of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        assert!(matches!(full, Fault::Refused(EtcdError::Full { .. })) && !full.may_have_happened());
        let barred = of(Code::PermissionDenied, "etcdserver: permission denied").to_string();
        assert!(barred.contains("\"swarm/\""), "{barred}");
    }

    #[test]
    fn call_before_the_one_that_matters_has_no_effect_on_it() {
        for fault in [Fault::Silent, Fault::Broken("reset".to_owned()), Fault::Lost("no leader".to_owned())] {
            assert!(fault.may_have_happened());
            let said = fault.to_string();
            let before = fault.before_asking();
            assert!(!before.may_have_happened());
            assert_eq!(before.to_string(), said);
        }
    }
}
