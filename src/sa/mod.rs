//! Security associations: one direction of one lane of one peer and network (RFC 4301, 4303).
