//! Forwarding tables: who is where, as one immutable snapshot.
