//! How many machines asked to join, and what became of it.

use std::sync::Arc;

use super::Manager;
use crate::api::types::JoinTotals;
use crate::control::enrol::JoinCounts;

impl Manager {
    /// Where enrolment counts.
    pub(crate) fn joins(&self) -> Arc<JoinCounts> {
        Arc::clone(&self.joins)
    }

    /// What `overlayd stats` shows.
    pub(crate) fn join_totals(&self) -> JoinTotals {
        let Self { joins, .. } = self;
        JoinTotals { admitted: joins.admitted(), refused: joins.refused(), turned_away: joins.turned_away() }
    }
}
