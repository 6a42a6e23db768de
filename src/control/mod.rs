//! The control plane: certificates, managers, their API, state on disk.
