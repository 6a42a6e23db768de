//! Keeping the processors awake while containers converse.
//!
//! A processor that has nothing to do sleeps, and to leave its sleep takes a virtual machine longer than
//! all that is done for a packet, at every step from program to lane to lane to program. The kernel can be
//! asked to let its processors spin instead, as drivers of network cards ask it for (`e1000_change_mtu`).
//! That costs all that the processors would have slept, so it is asked for only where it pays, while lanes
//! are woken for one word after the other, and for a moment after. Streams and floods do not gain by it:
//! more gathers while a processor wakes. Owned by `turn`; the request, by a thread of its own.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::busy_poll::Work;
use crate::boot_time::BootTime;

/// Keeps the processors awake as long as it is asked to, time and again; ends with its last clone.
#[derive(Debug, Clone)]
pub struct Vigil {
    ask: SyncSender<()>,
}

impl Vigil {
    /// `allow_sleep` is called, by a thread that is made for it, whenever that changes.
    ///
    /// # Errors
    /// When the process has no thread left.
    pub fn start(mut allow_sleep: impl FnMut(bool) -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (ask, asked) = sync_channel(1);
        std::thread::Builder::new().name("vigil".into()).spawn(move || {
            let mut keep = || -> io::Result<()> {
                while let Ok(()) = asked.recv() {
                    allow_sleep(false)?;
                    let ended = loop {
                        if let Err(ended) = asked.recv_timeout(KEPT) {
                            break ended;
                        }
                    };
                    allow_sleep(true)?;
                    if ended == RecvTimeoutError::Disconnected {
                        break;
                    }
                }
                Ok(())
            };
            if let Err(error) = keep() {
                tracing::warn!(%error, "the processors are not kept awake any more");
            }
        })?;
        Ok(Self { ask })
    }

    fn ask(&self) {
        // Full: it has been asked already. Closed: the kernel refuses, and that has been said.
        let _ = self.ask.try_send(());
    }
}

/// How often a lane has been woken lately, and for what.
#[derive(Debug)]
pub(super) struct Wakings {
    vigil: Option<Vigil>,
    /// When the window began.
    since: BootTime,
    /// For which it was woken.
    words: u32,
    has_bulk: bool,
}

impl Wakings {
    pub(super) fn new(vigil: Option<Vigil>) -> Self {
        Self { vigil, since: BootTime::from_nanos(0), words: 0, has_bulk: false }
    }

    /// The lane has carried frames of containers, until `now`; `was_asleep` before.
    #[inline]
    pub(super) fn carried(&mut self, work: Work, was_asleep: bool, now: BootTime) {
        let Some(vigil) = &self.vigil else { return };
        if now.since(self.since) >= WINDOW {
            (self.since, self.words, self.has_bulk) = (now, 0, false);
        }
        self.has_bulk |= !work.is_light();
        if was_asleep && !self.has_bulk {
            self.words += 1;
            if self.words == OFTEN {
                vigil.ask();
            }
        }
    }
}

/// Whether it may pay to keep so many processors awake, where a wake-up takes so long.
pub fn may_pay(processors: usize, asleep: Duration) -> bool {
    processors <= FEW && asleep >= LONG
}

/// Whether it pays where a wake-up takes so long, and so long if they are kept awake.
pub fn pays(asleep: Duration, awake: Duration) -> bool {
    awake * 2 <= asleep
}

const WINDOW: Duration = Duration::from_millis(50);
/// In a window: 200 a second.
const OFTEN: u32 = 10;
/// After it was asked last. From one window to the next it may take two to be asked again.
const KEPT: Duration = Duration::from_millis(100);
/// All of them spin, whichever the packets need.
const FEW: usize = 8;
/// Some times what a processor of its own takes to leave a light sleep.
const LONG: Duration = Duration::from_micros(20);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::io::clock::boot_time;

    fn at(micros: u64) -> BootTime {
        BootTime::from_nanos(1_000_000_000 + micros * 1000)
    }

    const WORD: Work = Work { packets: 1, bytes: 80 };

    /// A lane's view of a vigil, and how often it has asked.
    fn wakings() -> (Wakings, Receiver<()>) {
        let (ask, asked) = sync_channel(100);
        (Wakings::new(Some(Vigil { ask })), asked)
    }

    #[test]
    fn lane_that_is_woken_for_many_words_asks_once_in_a_window() {
        let (mut wakings, asked) = wakings();
        for number in 0..500 {
            wakings.carried(WORD, true, at(number * 2_000));
        }
        assert_eq!(asked.try_iter().count(), 20, "a second of pings, 2 ms apart");
    }

    #[test]
    fn lane_that_is_woken_now_and_then_or_not_asleep_does_not() {
        let (mut wakings, asked) = wakings();
        for number in 0..500 {
            wakings.carried(WORD, true, at(number * 6_000));
            wakings.carried(WORD, false, at(number * 6_000 + 100));
        }
        assert_eq!(asked.try_iter().count(), 0);
    }

    #[test]
    fn stream_is_carried_by_processors_that_sleep() {
        let (mut wakings, asked) = wakings();
        for number in 0..5_000 {
            wakings.carried(Work { packets: 1, bytes: 60_000 }, true, at(number * 100));
            wakings.carried(WORD, true, at(number * 100 + 50));
        }
        assert_eq!(asked.try_iter().count(), 0, "its acknowledgments are words");
    }

    #[test]
    fn processors_are_kept_awake_while_asked_for_and_a_moment_longer() {
        let (said, heard) = channel();
        let vigil = Vigil::start(move |is_allowed| said.send(is_allowed).map_err(io::Error::other)).unwrap();
        let is_kept_from_the_last_time_on = || {
            vigil.ask();
            assert!(!heard.recv().unwrap());
            std::thread::sleep(KEPT / 2);
            let asked = boot_time();
            vigil.ask();
            while !heard.recv_timeout(KEPT * 50).unwrap() {}
            boot_time().since(asked) >= KEPT
        };
        // On a busy machine the sleep may be too long.
        assert!((0..5).any(|_| is_kept_from_the_last_time_on()));
        vigil.clone().ask();
        assert!(!heard.recv().unwrap());
        drop(vigil);
        assert_eq!(heard.iter().collect::<Vec<_>>(), [true], "nobody is left who could ask");
    }

    #[test]
    fn pays_only_where_wake_ups_are_dear_and_processors_few() {
        let micros = Duration::from_micros;
        assert!(may_pay(2, micros(50)) && may_pay(8, micros(20)));
        assert!(!may_pay(9, micros(50)) && !may_pay(2, micros(19)));
        assert!(pays(micros(50), micros(25)) && !pays(micros(50), micros(26)));
        assert!(!may_pay(1, Duration::ZERO), "nobody is woken from elsewhere");
    }
}
