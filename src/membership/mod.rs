//! Who may hold the keys of a network, signed by a manager; join tokens.
