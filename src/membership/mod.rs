//! Who may hold the keys of a network, signed by a manager; the roots of all trust; join tokens.
//!
//! Pure: keys, certificates and randomness come from outside. Managers sign, agents verify, and
//! both pass on what they have, so a membership is believed for its signature and never for who
//! brought it.

pub mod roots;
pub mod signed;
pub mod token;

pub use roots::{Root, RootFingerprint, Roots, UnvouchedRoot};
pub use signed::{KnownMemberships, MembershipError, News, SignedMembership};
pub use token::{JoinToken, TokenError, TokenSecret};
