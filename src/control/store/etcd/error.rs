//! Why the cluster's rows in etcd could not be read or changed.

/// Why etcd could not be used, and what the operator does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    /// No address.
    #[error("{address:?} leads to no etcd: {why}; write etcd://HOST:2379[,HOST:2379...][/PREFIX]")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// What is to encrypt connections cannot.
    #[error("etcd cannot be reached over TLS as asked for: {why}")]
    Tls {
        /// What is wrong.
        why: String,
    },
    /// No member answers, or none that has a leader. Nothing was asked of it that could have an effect.
    #[error(
        "etcd cannot be reached, so nothing was changed ({why}); traffic of a cluster that runs goes on: see to it \
         that a majority of etcd's members run and can be reached from here, then try again"
    )]
    Unreachable {
        /// What each member said.
        why: String,
    },
    /// The connection was lost in a change, and what became of it cannot be read.
    #[error(
        "etcd was lost in the middle of this change ({why}), so it is not known yet whether it was made: look before \
         you ask for it again, once etcd is back"
    )]
    Unsettled {
        /// What each member said.
        why: String,
    },
    /// It knows us and does not let us, or does not know us.
    #[error(
        "etcd refuses this manager ({why}): give it the user and password, or the client certificate, of an etcd \
         user that may read and write the keys below {prefix:?}; nothing was changed"
    )]
    Denied {
        /// What etcd said.
        why: String,
        /// What all keys begin with.
        prefix: String,
    },
    /// Others are there.
    #[error(
        "{address} holds the state of cluster {cluster} already: choose another prefix, as in \
         {address}-2, or remove that one for good with `etcdctl del --prefix {prefix}/`; nothing was changed"
    )]
    Taken {
        /// Where.
        address: String,
        /// What all keys begin with.
        prefix: String,
        /// Whose state it is.
        cluster: String,
    },
    /// The state is in another etcd.
    #[error(
        "the cluster's state is at {address} already, and cannot be moved from one etcd to another while managers \
         use it: back it up, restore that, and move it from there; nothing was changed"
    )]
    InUse {
        /// Where it is.
        address: String,
    },
    /// What is there is a copy.
    #[error(
        "{address} holds a copy of the cluster's state, which is where it was, and other managers would go on with \
         it: if the copy is to take its place, stop that etcd first, for good; nothing was changed"
    )]
    Copy {
        /// Where the copy is.
        address: String,
    },
    /// What is there is not what this node's cluster wrote.
    #[error(
        "{address} does not hold the state of this node's cluster ({why}): is it the etcd of another cluster, or was \
         it emptied? Restore etcd's own snapshot, or a backup with `overlayd restore`"
    )]
    Foreign {
        /// Where.
        address: String,
        /// What is there instead.
        why: String,
    },
    /// A later overlayd wrote it.
    #[error(
        "{address} has format {found}, this overlayd knows format {known}: run the overlayd that wrote it"
    )]
    Newer {
        /// Where.
        address: String,
        /// Its format.
        found: u32,
        /// The one that we know.
        known: u32,
    },
    /// More than etcd takes at once.
    #[error(
        "this change is too large for etcd ({why}): start its members with a larger --max-request-bytes and \
         --max-txn-ops; nothing was changed"
    )]
    TooLarge {
        /// What etcd said.
        why: String,
    },
    /// Its disk quota is used up.
    #[error(
        "etcd has no space left ({why}): compact and defragment it, clear the alarm with `etcdctl alarm disarm`, and \
         try again; nothing was changed"
    )]
    Full {
        /// What etcd said.
        why: String,
    },
    /// It said no in another way.
    #[error("etcd refuses: {why}; nothing was changed")]
    Refused {
        /// What etcd said.
        why: String,
    },
    /// What was being read is gone.
    #[error("etcd was compacted while the cluster's state was being read: try again")]
    Compacted,
    /// The key that the rows are sealed with is none.
    #[error(
        "the key of the cluster's rows in etcd is damaged: restore this manager's state directory from a backup"
    )]
    Key,
}

impl EtcdError {
    /// The bare reason, for a message that says itself what became of the change.
    pub(super) fn into_reason(self) -> String {
        if let Self::Unreachable { why }
        | Self::Unsettled { why }
        | Self::Denied { why, .. }
        | Self::TooLarge { why }
        | Self::Full { why }
        | Self::Refused { why } = self
        {
            why
        } else {
            self.to_string()
        }
    }

    /// Whether the same may work later without anybody changing anything here.
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Unsettled { .. } | Self::Full { .. } | Self::Compacted
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_of_unknown_outcome_does_not_say_that_nothing_was_changed() {
        let lost = EtcdError::Unreachable { why: "no answer".to_owned() };
        let unsettled = EtcdError::Unsettled { why: lost.into_reason() }.to_string();
        assert!(unsettled.contains("(no answer)") && !unsettled.contains("nothing"), "{unsettled}");
    }
}
