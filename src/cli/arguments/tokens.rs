//! Flags of `overlayd token`: a role prints its token, `ls` and `rm` look after those made to order.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::role;
use crate::api::types::{IssueTokenRequest, TokenRequest};
use crate::cluster::{Role, TokenName};

/// Flags of `overlayd token`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct TokenArguments {
    /// What a node that joins with it may do
    #[arg(value_name = "worker|manager", value_parser = role(), required = true)]
    role: Option<Role>,
    /// Print the token alone
    #[arg(short, long)]
    pub(in crate::cli) quiet: bool,
    /// Make a new standing token first, so that the old one is void
    #[arg(long, conflicts_with_all = ["ttl", "once"])]
    rotate: bool,
    /// Make a token that expires, like 2h
    #[arg(long, value_name = "DURATION", value_parser = life)]
    ttl: Option<Duration>,
    /// Make a token that one node alone can join with
    #[arg(long)]
    once: bool,
    /// What to do with tokens that were made.
    #[command(subcommand)]
    command: Option<TokenCommand>,
}

/// Commands about tokens.
#[derive(Debug, Clone, Subcommand)]
enum TokenCommand {
    /// List the tokens, without their secrets
    Ls,
    /// Make a token void
    Rm {
        /// Its id, as 'overlayd token ls' shows it
        #[arg(value_name = "ID")]
        token: TokenName,
    },
}

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum TokenWish {
    Standing(TokenRequest),
    Issue(IssueTokenRequest),
    List,
    Remove(TokenName),
}

impl TokenArguments {
    pub(in crate::cli) fn wish(&self) -> TokenWish {
        match &self.command {
            Some(TokenCommand::Ls) => return TokenWish::List,
            Some(TokenCommand::Rm { token }) => return TokenWish::Remove(*token),
            None => {}
        }
        let role = self.role.unwrap_or(Role::Worker);
        if self.once || self.ttl.is_some() {
            let life_seconds = self.ttl.map(|life| life.as_secs());
            return TokenWish::Issue(IssueTokenRequest { role, once: self.once, life_seconds });
        }
        TokenWish::Standing(TokenRequest { role, rotate: self.rotate })
    }
}

fn life(text: &str) -> Result<Duration, String> {
    let life = humantime::parse_duration(text).map_err(|e| format!("{e}; write it like 2h or 30min"))?;
    if life < Duration::from_secs(1) {
        return Err("nobody can join within less than a second".into());
    }
    Ok(life)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, ClientCommand, Command};
    use super::*;

    #[test]
    fn role_alone_is_for_the_standing_token_and_limits_make_another() {
        let standing = |rotate| TokenWish::Standing(TokenRequest { role: Role::Worker, rotate });
        let issue =
            |role, once, life_seconds| TokenWish::Issue(IssueTokenRequest { role, once, life_seconds });
        let id = "0123456789abcdefghijklmno";
        for (given, wish) in [
            (&["worker"][..], standing(false)),
            (&["worker", "--rotate"], standing(true)),
            (&["--rotate", "-q", "worker"], standing(true)),
            (&["worker", "--once"], issue(Role::Worker, true, None)),
            (&["manager", "--ttl", "2h"], issue(Role::Manager, false, Some(7200))),
            (&["--ttl=90s", "--once", "worker"], issue(Role::Worker, true, Some(90))),
            (&["ls"], TokenWish::List),
            (&["rm", id], TokenWish::Remove(id.parse().expect("an id"))),
            (&["rm", "worker"], TokenWish::Remove(TokenName::Standing(Role::Worker))),
        ] {
            assert_eq!(parse(given).expect("a command").wish(), wish, "{given:?}");
        }
    }

    #[test]
    fn contradictions_and_lives_that_are_none_are_refused() {
        for bad in [
            &[][..],
            &["king"],
            &["ls", "worker"],
            &["worker", "ls"],
            &["--once", "ls"],
            &["rm"],
            &["worker", "--rotate", "--once"],
            &["worker", "--rotate", "--ttl", "1h"],
            &["worker", "--ttl", "0s"],
            &["worker", "--ttl", "long"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?} was taken");
        }
    }

    fn parse(given: &[&str]) -> Result<TokenArguments, clap::Error> {
        let cli = Cli::try_parse_from(["overlayd", "token"].iter().chain(given))?;
        let Command::Client(ClientCommand::Token(arguments)) = cli.command else { panic!("not token") };
        Ok(arguments)
    }
}
