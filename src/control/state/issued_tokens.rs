//! Join tokens made to order: each with an id, and if wanted with an end or good for one node only.
//!
//! Of a secret its SHA-256 is kept; drawn from 128 bits, it needs no salt and cannot be searched for. The
//! time is an argument, in seconds since 1970: whoever gives it sees to it that it does not go back.
//! An ended token is remembered for a while, so that who still holds it can be told what became of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::model::{Change, Model};
use super::nodes::Takes;
use super::{ClusterState, StateError, subnets};
use crate::cluster::{Node, Role, TokenInfo, TokenName, TokenState};
use crate::id::{NodeId, TokenId};
use crate::membership::TokenSecret;

/// A token to be made.
#[derive(Debug)]
pub struct NewToken {
    /// Its id.
    pub id: TokenId,
    /// Its secret; not kept.
    pub secret: TokenSecret,
    /// What it admits to.
    pub role: Role,
    /// Whether it admits one node only.
    pub once: bool,
    /// How long it lives; for ever without.
    pub life: Option<Duration>,
}

/// A token that was made to order, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct IssuedToken {
    pub(super) id: TokenId,
    /// SHA-256 of the secret, as hexadecimal digits.
    digest: String,
    role: Role,
    once: bool,
    joined: u64,
    made: u64,
    expires: Option<u64>,
    ended: Option<Ended>,
}

/// What ended a token, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Ended {
    at: u64,
    state: TokenState,
}

/// Why a secret admits nobody. Who gets more than [`Self::Unknown`] has shown the right one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// No token has this secret.
    #[error("no token has this secret")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It works once, and this node has joined with it.
    #[error("the token works once, and node {0} has joined with it")]
    Used(NodeId),
    /// An operator removed it.
    #[error("the token was removed")]
    Removed,
}

impl ClusterState {
    /// Makes a token.
    ///
    /// # Errors
    /// When its life is too short or too long, there are too many, or the disk refuses.
    pub fn issue_token(&self, new: &NewToken, now: u64) -> Result<TokenInfo, StateError> {
        let life = new.life.map(|life| life.as_secs());
        if life.is_some_and(|life| !(SHORTEST_LIFE..=LONGEST_LIFE).contains(&life)) {
            return Err(StateError::TokenLife);
        }
        self.change(|model| {
            if model.issued_tokens.values().filter(|token| token.ended(now).is_none()).count() >= MAX_VALID {
                return Err(StateError::TooManyTokens { most: MAX_VALID });
            }
            let token = IssuedToken {
                id: new.id,
                digest: digest(new.secret.as_bytes()),
                role: new.role,
                once: new.once,
                joined: 0,
                made: now,
                expires: life.map(|life| now.saturating_add(life)),
                ended: None,
            };
            let info = token.info(now);
            let mut changes = settle(model, now);
            changes.push(Change::PutToken(token));
            Ok((info, changes))
        })
    }

    /// All tokens, the standing ones first, then as they were made.
    pub fn tokens(&self, now: u64) -> Vec<TokenInfo> {
        let model = self.model();
        let mut issued: Vec<_> = model.issued_tokens.values().collect();
        issued.sort_by_key(|token| (token.made, token.id));
        let standing = [Role::Worker, Role::Manager].map(|role| TokenInfo {
            name: TokenName::Standing(role),
            role,
            state: TokenState::Valid,
            once: false,
            joined: None,
            made_unix_seconds: None,
            expires_unix_seconds: None,
        });
        standing.into_iter().chain(issued.into_iter().map(|token| token.info(now))).collect()
    }

    /// Makes a token void.
    ///
    /// # Errors
    /// When there is none of that id, or the disk refuses. One that has ended stays as it ended.
    pub fn remove_token(&self, id: TokenId, now: u64) -> Result<(), StateError> {
        self.change(|model| {
            let token = model.issued_tokens.get(&id).ok_or(StateError::NoToken { id })?;
            // One that was used up would be as good as new if the node that used it were taken back.
            let is_over = |ended: Ended| !matches!(ended.state, TokenState::Used(_));
            if token.ended(now).is_some_and(is_over) {
                return Ok(((), Vec::new()));
            }
            let ended = Some(Ended { at: now, state: TokenState::Removed });
            Ok(((), vec![Change::PutToken(IssuedToken { ended, ..token.clone() })]))
        })
    }

    /// Writes down which tokens have expired, so that a clock that is set back later does not revive
    /// them, and forgets those that ended long ago.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn settle_tokens(&self, now: u64) -> Result<(), StateError> {
        self.change_if_needed(|model| Ok(((), settle(model, now))))
    }

    /// The latest moment that the tokens tell of: it has been that late once.
    pub fn tokens_changed(&self) -> u64 {
        let model = self.model();
        let of = |token: &IssuedToken| token.ended.map_or(token.made, |ended| ended.at.max(token.made));
        model.issued_tokens.values().map(of).max().unwrap_or(0)
    }

    /// The role that a secret admits to. It is compared with every token in constant time.
    ///
    /// # Errors
    /// When it admits nobody.
    pub fn role_for_secret(&self, secret: &[u8; 16], now: u64) -> Result<Role, TokenRefusal> {
        Ok(find(&self.model(), secret, now)?.role())
    }

    /// Adds a node that enrols with a token, and names the token: the node and the use of the token are one
    /// change.
    ///
    /// # Errors
    /// When the token admits nobody (any more) or to another role, the node's id is or was in use, or an
    /// address of it lies in a network's subnet.
    pub fn enrol_node(&self, node: Node, secret: &[u8; 16], now: u64) -> Result<TokenName, StateError> {
        self.enrol(node, secret, now, |model, node| {
            if model.nodes.contains_key(&node.id) || model.removed.contains_key(&node.id) {
                return Err(StateError::NodeExists { node: node.id });
            }
            Ok(node)
        })
    }

    /// The same for a node that is a member, whose certificate has expired: of what it says of itself, where
    /// it is reached counts.
    ///
    /// # Errors
    /// As [`Self::enrol_node`]; the node is no member.
    pub fn enrol_again(&self, node: Node, secret: &[u8; 16], now: u64) -> Result<TokenName, StateError> {
        self.enrol(node, secret, now, |model, node| {
            let present = model.member(node.id)?.clone();
            let Node { advertise, data, underlay_mtu, .. } = node;
            Ok(Node { advertise, data, underlay_mtu, ..present })
        })
    }

    /// Removes a node that has enrolled and never heard of it, as [`Self::remove_node`] does; a token that works
    /// once and let it in is as good as new.
    ///
    /// # Errors
    /// As [`Self::remove_node`], which takes nothing else.
    pub fn take_back(&self, id: NodeId, certificate_expiry: u64) -> Result<(), StateError> {
        self.change(|model| {
            let mut changes = self.removal(model, id, certificate_expiry, Takes::Nothing)?;
            let unused = model.issued_tokens.values().filter_map(|token| token.not_used_by(id));
            changes.extend(unused.map(Change::PutToken));
            Ok(((), changes))
        })
    }

    fn enrol(
        &self,
        node: Node,
        secret: &[u8; 16],
        now: u64,
        entry: impl Fn(&Model, Node) -> Result<Node, StateError>,
    ) -> Result<TokenName, StateError> {
        self.change(|model| {
            let found = find(model, secret, now)?;
            if found.role() != node.role {
                return Err(TokenRefusal::Unknown.into());
            }
            let (name, used) = match found {
                Found::Standing(role) => (TokenName::Standing(role), None),
                Found::Issued(token) => (TokenName::Issued(token.id), Some(token.used_by(node.id, now))),
            };
            let node = entry(model, node.clone())?;
            subnets::check_node(model, &node)?;
            Ok((name, used.map(Change::PutToken).into_iter().chain([Change::PutNode(node)]).collect()))
        })
    }
}

impl IssuedToken {
    fn info(&self, now: u64) -> TokenInfo {
        TokenInfo {
            name: TokenName::Issued(self.id),
            role: self.role,
            state: self.ended(now).map_or(TokenState::Valid, |ended| ended.state),
            once: self.once,
            joined: Some(self.joined),
            made_unix_seconds: Some(self.made),
            expires_unix_seconds: self.expires,
        }
    }

    fn ended(&self, now: u64) -> Option<Ended> {
        let expired = self.expires.filter(|&at| at <= now);
        self.ended.or_else(|| expired.map(|at| Ended { at, state: TokenState::Expired }))
    }

    fn refusal(&self, now: u64) -> Option<TokenRefusal> {
        match self.ended(now)?.state {
            TokenState::Valid => None,
            TokenState::Used(by) => Some(TokenRefusal::Used(by)),
            TokenState::Expired => Some(TokenRefusal::Expired),
            TokenState::Removed => Some(TokenRefusal::Removed),
        }
    }

    fn used_by(&self, node: NodeId, now: u64) -> Self {
        let used = self.once.then_some(Ended { at: now, state: TokenState::Used(node) });
        Self { joined: self.joined.saturating_add(1), ended: used.or(self.ended), ..self.clone() }
    }

    /// The token as it was before that node used it up, if that was so.
    fn not_used_by(&self, node: NodeId) -> Option<Self> {
        self.ended.filter(|ended| ended.state == TokenState::Used(node))?;
        Some(Self { joined: self.joined.saturating_sub(1), ended: None, ..self.clone() })
    }
}

enum Found<'m> {
    Standing(Role),
    Issued(&'m IssuedToken),
}

impl Found<'_> {
    const fn role(&self) -> Role {
        match self {
            Self::Standing(role) => *role,
            Self::Issued(token) => token.role,
        }
    }
}

/// The token with this secret; whichever it is, it is compared with all.
fn find<'m>(model: &'m Model, secret: &[u8; 16], now: u64) -> Result<Found<'m>, TokenRefusal> {
    let mut found = model.tokens.role_of(secret).map(Found::Standing);
    let digest = digest(secret);
    for token in model.issued_tokens.values() {
        if token.digest.as_bytes().ct_eq(digest.as_bytes()).into() {
            found = Some(Found::Issued(token));
        }
    }
    let found = found.ok_or(TokenRefusal::Unknown)?;
    if let Found::Issued(token) = &found
        && let Some(refusal) = token.refusal(now)
    {
        return Err(refusal);
    }
    Ok(found)
}

/// The changes that write down what has expired and forget what ended long ago, or is one too many.
fn settle(model: &Model, now: u64) -> Vec<Change> {
    let mut ended: Vec<_> = model
        .issued_tokens
        .values()
        .filter_map(|token| token.ended(now).map(|ended| (ended.at, token, ended)))
        .collect();
    ended.sort_by_key(|(at, token, _)| (std::cmp::Reverse(*at), token.id));
    let change = |(place, (at, token, ended)): (usize, (u64, &IssuedToken, Ended))| {
        if place >= MAX_ENDED || at.saturating_add(REMEMBERED) <= now {
            return Some(Change::ForgetToken(token.id));
        }
        let ended = Some(ended);
        (token.ended != ended).then(|| Change::PutToken(IssuedToken { ended, ..token.clone() }))
    };
    ended.into_iter().enumerate().filter_map(change).collect()
}

fn digest(secret: &[u8; 16]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(secret))
}

/// Tokens that can be valid at a time: every join compares with each.
const MAX_VALID: usize = 256;
/// Tokens that have ended and are remembered.
const MAX_ENDED: usize = 256;
/// How long an ended token is remembered, in seconds.
const REMEMBERED: u64 = 30 * 24 * 3600;
/// In seconds.
const SHORTEST_LIFE: u64 = 1;
/// In seconds; what is to live longer needs no end.
const LONGEST_LIFE: u64 = 10 * 365 * 24 * 3600;
