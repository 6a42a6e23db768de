//! Wire formats: one file per header, parse and write, no I/O.
