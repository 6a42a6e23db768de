//! The key exchange between two nodes as a pure state machine.
