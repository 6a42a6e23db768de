//! A wake-up for a thread that sleeps in [`super::epoll`]: eventfd(2), nonblocking.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

/// A counter that makes its descriptor readable; shared by the waker and the woken.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// A new one, not signalled.
    ///
    /// # Errors
    /// When the process or the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Makes the descriptor readable. Waking twice before [`Self::clear`] is waking once.
    pub fn wake(&self) {
        // The only refusal is EAGAIN at 2^64-2 unread wake-ups: it is readable then anyway.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Takes the signal back; true if there was one.
    ///
    /// # Errors
    /// None are known on Linux; passed on all the same.
    pub fn clear(&self) -> io::Result<bool> {
        let mut count = [0u8; 8];
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_is_seen_once() {
        let event = EventFd::new().unwrap();
        assert!(!event.clear().unwrap());
        event.wake();
        event.wake();
        assert!(event.clear().unwrap());
        assert!(!event.clear().unwrap());
    }
}
