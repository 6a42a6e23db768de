//! Waiting for many descriptors: epoll(7), level-triggered, with a caller-chosen token each.
//!
//! Level-triggered, because a lane serves each source for a bounded batch and must be told again
//! about what it left. A lane calls it; the control plane uses tokio.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;

/// An epoll instance.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    /// A new instance that watches nothing.
    ///
    /// # Errors
    /// When the process or the system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Reports `token` from now on whenever `source` is readable or has failed.
    ///
    /// # Errors
    /// `AlreadyExists` when it is watched; `PermissionDenied` for descriptors that cannot be polled.
    pub fn add(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.fd, source, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// Stops watching `source`; events of it that were already fetched stay in their [`ReadyList`].
    ///
    /// # Errors
    /// `NotFound` when it is not watched.
    pub fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.fd, source)?)
    }

    /// Sleeps until something is ready or `timeout` (none: for ever) has passed, and fills `ready`.
    ///
    /// A signal or a whole day ends the sleep with an empty list.
    ///
    /// # Errors
    /// None are known for a valid instance; passed on all the same.
    pub fn wait(&self, ready: &mut ReadyList, timeout: Option<Duration>) -> io::Result<()> {
        // Kernels before 5.11 count the timeout in milliseconds of an int.
        let timeout = timeout.map(|t| t.min(LONGEST_SLEEP)).and_then(|t| Timespec::try_from(t).ok());
        ready.events.clear();
        match epoll::wait(&self.fd, rustix::buffer::spare_capacity(&mut ready.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Epoll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Room for the events of one [`Epoll::wait`]; made once, used for every wait.
pub struct ReadyList {
    events: Vec<epoll::Event>,
}

impl ReadyList {
    /// Room for `capacity` events; what does not fit is reported by the next wait.
    ///
    /// # Panics
    /// When `capacity` is zero.
    pub fn with_capacity(capacity: usize) -> Self {
        assert!(capacity > 0, "epoll_wait(2) refuses an empty buffer");
        Self { events: Vec::with_capacity(capacity) }
    }

    /// Whether the last wait found nothing.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// What the last wait found.
    pub fn iter(&self) -> impl Iterator<Item = Ready> + '_ {
        self.events.iter().map(|event| {
            let (flags, data) = (event.flags, event.data);
            Ready {
                token: data.u64(),
                readable: flags.contains(EventFlags::IN),
                failed: flags.intersects(EventFlags::ERR | EventFlags::HUP),
            }
        })
    }
}

/// One source that has something to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// What [`Epoll::add`] was given.
    pub token: u64,
    /// There is something to read.
    pub readable: bool,
    /// The source is broken or gone (a TAP whose device was deleted); reading tells why. It is
    /// reported again by every wait until the source is removed.
    pub failed: bool,
}

const LONGEST_SLEEP: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::eventfd::EventFd;

    #[test]
    fn a_ready_source_is_reported_by_its_token_until_it_is_served() {
        let (epoll, event) = (Epoll::new().unwrap(), EventFd::new().unwrap());
        let mut ready = ReadyList::with_capacity(4);
        epoll.add(&event, 7).unwrap();
        epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert_eq!(ready.iter().count(), 0);

        event.wake();
        for _ in 0..2 {
            epoll.wait(&mut ready, None).unwrap();
            let seen: Vec<_> = ready.iter().collect();
            assert_eq!(seen, [Ready { token: 7, readable: true, failed: false }]);
        }

        event.clear().unwrap();
        epoll.wait(&mut ready, Some(Duration::from_millis(1))).unwrap();
        assert_eq!(ready.iter().count(), 0);
    }

    #[test]
    fn a_removed_source_is_silent() {
        let (epoll, event) = (Epoll::new().unwrap(), EventFd::new().unwrap());
        let mut ready = ReadyList::with_capacity(4);
        epoll.add(&event, 7).unwrap();
        event.wake();
        epoll.remove(&event).unwrap();
        epoll.wait(&mut ready, Some(Duration::ZERO)).unwrap();
        assert_eq!(ready.iter().count(), 0);
        assert_eq!(epoll.remove(&event).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
