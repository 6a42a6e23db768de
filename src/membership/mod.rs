//! Who may hold the keys of a network and who was removed, signed by a manager; the roots of all trust;
//! join tokens.
//!
//! Pure: keys, certificates and randomness come from outside. Managers sign, agents verify, and
//! both pass on what they have, so it is believed for its signature and never for who brought it.

pub mod derived;
pub mod removals;
pub mod roots;
pub mod signed;
pub mod token;

pub use derived::DerivedMembership;
pub use removals::{KnownRemovals, Removals, SignedRemovals};
pub use roots::{Root, RootFingerprint, Roots, UnvouchedRoot};
pub use signed::{KnownMemberships, MembershipError, News, Signature, Signed, SignedMembership, Statement};
pub use token::{JoinToken, TokenError, TokenSecret};
