//! Who may hold the keys of a network, signed by a manager; join tokens.
//!
//! Pure: keys, certificates and randomness come from outside. Managers sign, agents verify, and
//! both pass on what they have, so a membership is believed for its signature and never for who
//! brought it.

pub mod signed;
pub mod token;

pub use signed::{KnownMemberships, MembershipError, News, SignedMembership};
pub use token::{JoinToken, TokenError, TokenSecret};
