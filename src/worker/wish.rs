//! What lanes ask of the machine or the scheduler, for as long as they ask for it, time and again.
//!
//! A thread of its own does what is asked for, as that takes system calls and lanes have packets to carry,
//! and takes it back a moment after the last lane has asked. Owned by those who ask: `vigil`, `precedence`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

/// Granted while anybody has asked lately; its thread ends soon after the last clone.
#[derive(Debug, Clone)]
pub struct Wish(Arc<Bell>);

impl Wish {
    /// `grant` is called, by the thread that is made for it, whenever that changes. `name` is the thread's,
    /// and what the log calls it when `grant` fails, which ends it.
    ///
    /// # Errors
    /// When the process has no thread left.
    pub fn start(
        name: &'static str,
        grant: impl FnMut(bool) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let heard = Arc::new(Heard::default());
        let keeper = Arc::clone(&heard);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            if let Err(error) = keeper.keep(grant) {
                tracing::warn!(%error, wish = name, "what lanes ask for is not granted any more");
            }
        })?;
        Ok(Self(Arc::new(Bell { heard, thread: thread.thread().clone() })))
    }

    /// Takes no lock: lanes ask.
    pub(super) fn ask(&self) {
        if !self.0.heard.is_asked.swap(true, Ordering::Relaxed) {
            self.0.thread.unpark();
        }
    }

    /// One that nobody grants.
    #[cfg(test)]
    pub(super) fn unheard() -> Self {
        Self(Arc::new(Bell { heard: Arc::default(), thread: std::thread::current() }))
    }

    /// Whether anybody has asked since this looked last.
    #[cfg(test)]
    pub(super) fn take_asked(&self) -> bool {
        self.0.heard.is_asked.swap(false, Ordering::Relaxed)
    }
}

/// What the clones share.
#[derive(Debug)]
struct Bell {
    heard: Arc<Heard>,
    thread: Thread,
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.heard.is_over.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

/// What the thread hears of them.
#[derive(Debug, Default)]
struct Heard {
    /// Since the thread looked last.
    is_asked: AtomicBool,
    is_over: AtomicBool,
}

impl Heard {
    fn keep(&self, mut grant: impl FnMut(bool) -> io::Result<()>) -> io::Result<()> {
        while !self.is_over.load(Ordering::Relaxed) {
            if self.is_asked.swap(false, Ordering::Relaxed) {
                grant(true)?;
                loop {
                    std::thread::sleep(KEPT);
                    if !self.is_asked.swap(false, Ordering::Relaxed) {
                        break;
                    }
                }
                grant(false)?;
            } else {
                std::thread::park();
            }
        }
        Ok(())
    }
}

/// How often a lane looks at what it has carried, and asks.
pub(super) const WINDOW: Duration = Duration::from_millis(50);
/// From one window to the next it may take two to be asked again.
const KEPT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::io::clock::boot_time;

    #[test]
    fn wish_is_granted_while_asked_for_and_a_moment_longer() {
        let (said, heard) = channel();
        let wish = Wish::start("test", move |is_granted| said.send(is_granted).map_err(io::Error::other));
        let wish = wish.unwrap();
        let is_kept_from_the_last_time_on = || {
            wish.ask();
            assert!(heard.recv().unwrap());
            std::thread::sleep(KEPT / 2);
            let asked = boot_time();
            wish.ask();
            while heard.recv_timeout(KEPT * 50).unwrap() {}
            boot_time().since(asked) >= KEPT
        };
        // On a busy machine the sleep may be too long.
        assert!((0..5).any(|_| is_kept_from_the_last_time_on()));
        wish.clone().ask();
        assert!(heard.recv().unwrap());
        drop(wish);
        assert_eq!(heard.iter().collect::<Vec<_>>(), [false], "nobody is left who could ask");
    }
}
