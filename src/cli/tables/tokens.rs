//! Join tokens: the one that was made, and all of them.

use std::time::{Duration, UNIX_EPOCH};

use super::{table, text};
use crate::api::types::{IssueTokenResponse, ListTokensResponse, RemoveTokenResponse};
use crate::cluster::{TokenInfo, TokenState};

pub(in crate::cli) fn issued(issued: &IssueTokenResponse) -> String {
    let IssueTokenResponse { token, manager, info } = issued;
    let TokenInfo { name, role, once, expires_unix_seconds, .. } = info;
    let limits = match (*once, expires_unix_seconds.map(moment)) {
        (true, Some(end)) => format!("It works once, until {end}."),
        (true, None) => "It works once.".to_owned(),
        (false, Some(end)) => format!("It works until {end}."),
        (false, None) => "It works until it is removed.".to_owned(),
    };
    format!(
        "To add a {role}, run on it:\n\n    overlayd join --token {token} {manager}\n\n{limits} It cannot be \
         shown again; 'overlayd token rm {name}' makes it void.\n"
    )
}

pub(in crate::cli) fn issued_alone(issued: &IssueTokenResponse) -> String {
    format!("{}\n", issued.token)
}

pub(in crate::cli) fn removed(removed: &RemoveTokenResponse) -> String {
    format!("{} is void\n", removed.token)
}

pub(in crate::cli) fn tokens(listed: &ListTokensResponse) -> String {
    let mut table = table(&["ID", "ROLE", "STATE", "EXPIRES", "USES", "MADE"]);
    for token in &listed.tokens {
        let uses = match (token.once, token.joined) {
            (true, joined) => format!("{} of 1", joined.unwrap_or(0)),
            (false, Some(joined)) => joined.to_string(),
            (false, None) => "-".to_owned(),
        };
        table.add_row([
            token.name.to_string(),
            token.role.to_string(),
            state(token.state),
            token.expires_unix_seconds.map_or_else(|| "never".to_owned(), moment),
            uses,
            token.made_unix_seconds.map_or_else(|| "-".to_owned(), moment),
        ]);
    }
    text(&table)
}

fn state(state: TokenState) -> String {
    match state {
        TokenState::Valid => "valid".to_owned(),
        TokenState::Used(node) => format!("used by {node}"),
        TokenState::Expired => "expired".to_owned(),
        TokenState::Removed => "removed".to_owned(),
    }
}

fn moment(unix_seconds: u64) -> String {
    let moment = UNIX_EPOCH.checked_add(Duration::from_secs(unix_seconds));
    moment.map_or_else(|| "-".to_owned(), |at| humantime::format_rfc3339_seconds(at).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Role, TokenName};
    use crate::id::{NodeId, TokenId};

    #[test]
    fn tokens_are_listed_with_what_became_of_them() {
        let standing = |role| TokenInfo {
            name: TokenName::Standing(role),
            role,
            state: TokenState::Valid,
            once: false,
            joined: None,
            made_unix_seconds: None,
            expires_unix_seconds: None,
        };
        let used = TokenState::Used(NodeId::from_entropy([0; 16]));
        let expiring = TokenInfo {
            joined: Some(3),
            expires_unix_seconds: Some(1_800_007_200),
            ..sample(false, TokenState::Valid)
        };
        let tokens = vec![
            standing(Role::Worker),
            standing(Role::Manager),
            TokenInfo { joined: Some(1), ..sample(true, used) },
            expiring,
            sample(true, TokenState::Removed),
        ];
        assert_eq!(
            super::tokens(&ListTokensResponse { tokens }),
            "\
ID                         ROLE     STATE                              EXPIRES               USES    MADE
worker                     worker   valid                              never                 -       -
manager                    manager  valid                              never                 -       -
0000000000000000000000000  worker   used by 0000000000000000000000000  never                 1 of 1  2027-01-15T08:00:00Z
0000000000000000000000000  worker   valid                              2027-01-15T10:00:00Z  3       2027-01-15T08:00:00Z
0000000000000000000000000  worker   removed                            never                 0 of 1  2027-01-15T08:00:00Z
"
        );
    }

    #[test]
    fn made_token_is_shown_with_its_limits_and_how_to_make_it_void() {
        let response = IssueTokenResponse {
            token: "OVTKN-1-abc-def".into(),
            manager: "192.0.2.1:2377".parse().expect("an address"),
            info: TokenInfo { expires_unix_seconds: Some(1_800_007_200), ..sample(true, TokenState::Valid) },
        };
        assert_eq!(
            issued(&response),
            "To add a worker, run on it:\n\n    overlayd join --token OVTKN-1-abc-def 192.0.2.1:2377\n\n\
             It works once, until 2027-01-15T10:00:00Z. It cannot be shown again; \
             'overlayd token rm 0000000000000000000000000' makes it void.\n"
        );
        assert_eq!(issued_alone(&response), "OVTKN-1-abc-def\n");
    }

    fn sample(once: bool, state: TokenState) -> TokenInfo {
        TokenInfo {
            name: TokenName::Issued(TokenId::from_entropy([0; 16])),
            role: Role::Worker,
            state,
            once,
            joined: Some(0),
            made_unix_seconds: Some(1_800_000_000),
            expires_unix_seconds: None,
        }
    }
}
