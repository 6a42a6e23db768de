//! The node's daemon: builds everything, keeps actual equal to desired.
