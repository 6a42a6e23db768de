//! The agent's unix socket: requests of the command line, metrics.
