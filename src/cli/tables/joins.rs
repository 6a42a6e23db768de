//! How joins ended.

use super::text;
use crate::api::types::JoinTotals;

/// One line of numbers.
pub(super) fn table(joins: JoinTotals) -> String {
    let JoinTotals { admitted, refused, turned_away } = joins;
    let mut table = super::table(&["JOINED", "REFUSED", "TOLD TO WAIT"]);
    table.add_row([admitted, refused, turned_away].map(|count| count.to_string()));
    text(&table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_are_one_line() {
        let text = table(JoinTotals { admitted: 3, refused: 10, turned_away: 7 });
        assert_eq!(text, "JOINED  REFUSED  TOLD TO WAIT\n3       10       7\n");
    }
}
