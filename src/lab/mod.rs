//! Hosts and containers as network namespaces on one machine.
