//! setsockopt(2) and getsockopt(2) for the options that neither socket2 nor rustix names.

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

/// Lets a classic BPF program choose among the sockets of the group of `SO_REUSEPORT` that this one
/// is in, by the index that it returns.
pub(super) fn attach_reuseport_program(socket: RawFd, program: &[libc::sock_filter]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let length = libc::socklen_t::try_from(size_of_val(&program)).expect("a small structure");
    // SAFETY: the kernel reads `length` bytes of `program` and copies the `len` instructions that it
    // points to, which are borrowed for the call; it writes neither.
    let status = unsafe {
        libc::setsockopt(
            socket,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option whose value is an array of 32-bit words; those that the kernel does not have are zero.
pub(super) fn words<const N: usize>(
    socket: RawFd,
    level: libc::c_int,
    option: libc::c_int,
) -> io::Result<[u32; N]> {
    let mut words = [0; N];
    let mut length = libc::socklen_t::try_from(size_of_val(&words)).expect("an array of some words is short");
    // SAFETY: the kernel writes at most `length` bytes to `words` and their number to `length`.
    let status =
        unsafe { libc::getsockopt(socket, level, option, words.as_mut_ptr().cast(), &raw mut length) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(words) }
}
