//! setsockopt(2) for the options that neither socket2 nor rustix names.

#![expect(unsafe_code, reason = "some socket options have no safe wrapper")]

use std::io;
use std::os::fd::RawFd;

/// Sets an option whose value is an int.
pub(super) fn set(
    socket: RawFd,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("an int is short");
    // SAFETY: the kernel reads `length` bytes of `value`, which outlives the call.
    let status = unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), length) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
