//! The secrets of the standing join tokens, one for each role. `issued_tokens` has those made to order.

use std::fmt;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::ZeroizeOnDrop;

use super::model::Change;
use super::{ClusterState, StateError};
use crate::cluster::Role;

/// Both secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ZeroizeOnDrop)]
pub struct Tokens {
    /// Who shows this joins as a worker.
    pub worker: [u8; 16],
    /// Who shows this joins as a manager.
    pub manager: [u8; 16],
}

impl Tokens {
    /// The role that a secret admits to, found in constant time.
    pub(super) fn role_of(&self, secret: &[u8; 16]) -> Option<Role> {
        let worker = self.worker.ct_eq(secret);
        let manager = self.manager.ct_eq(secret);
        if manager.into() {
            Some(Role::Manager)
        } else if worker.into() {
            Some(Role::Worker)
        } else {
            None
        }
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens([redacted])")
    }
}

impl ClusterState {
    /// The secret of the token with which a node joins in `role`.
    pub fn token(&self, role: Role) -> [u8; 16] {
        let model = self.model();
        match role {
            Role::Worker => model.tokens.worker,
            Role::Manager => model.tokens.manager,
        }
    }

    /// Replaces the secret of `role`; the old one admits nobody from now on.
    ///
    /// # Errors
    /// When it cannot be written; then the old one stays.
    pub fn rotate_token(&self, role: Role, secret: [u8; 16]) -> Result<(), StateError> {
        self.change(|model| {
            let mut tokens = model.tokens.clone();
            match role {
                Role::Worker => tokens.worker = secret,
                Role::Manager => tokens.manager = secret,
            }
            Ok(((), vec![Change::SetTokens(tokens)]))
        })
    }
}
