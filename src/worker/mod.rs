//! The loop of one lane: a thread that owns its sockets, SAs and buffers.
