//! What happens to one packet in each direction, without I/O.
