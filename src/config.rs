//! The agent's configuration file and its defaults.
