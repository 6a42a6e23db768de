//! The processor: what it is, what it can, and how long it takes to wake.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::clock::boot_time;

/// Whether it has instructions for AES and for the multiplication of GCM.
#[cfg(target_arch = "x86_64")]
pub fn has_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

/// Whether it has instructions for AES and for the multiplication of GCM.
#[cfg(target_arch = "aarch64")]
pub fn has_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull")
}

/// Whether it has instructions for AES and for the multiplication of GCM; not known of this one.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn has_aes() -> bool {
    false
}

/// How often the calling thread had to leave its processor to another, though it had more to do.
#[expect(unsafe_code, reason = "getrusage of a thread has no safe wrapper")]
pub fn preemptions() -> u64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage writes one rusage through the pointer, which is to room for one.
    let status = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    if status != 0 {
        return 0;
    }
    // SAFETY: all zero is a valid rusage, and the kernel has filled it.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_nivcsw).unwrap_or_default()
}

/// How long a thread that sleeps on one processor takes to be woken from another: most of it is that the
/// processor leaves its own sleep, which takes a virtual machine longer. The median of some; asking takes a
/// few milliseconds. Zero where the process has one processor.
///
/// # Errors
/// When there is no thread left, or threads may not be put on processors here.
pub fn wake_up_time() -> io::Result<Duration> {
    let allowed = sched_getaffinity(None)?;
    let mut processors = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number));
    let (Some(waker), Some(sleeper)) = (processors.next(), processors.next()) else {
        return Ok(Duration::ZERO);
    };
    let (wake, woken) = mpsc::channel();
    let waking = on_processor(waker, move || {
        for _ in 0..WAKE_UPS {
            std::thread::sleep(ASLEEP);
            // Whoever is to be woken has failed and says so.
            let _ = wake.send(boot_time());
        }
    })?;
    let sleeping =
        on_processor(sleeper, move || woken.into_iter().map(|at| boot_time().since(at)).collect::<Vec<_>>())?;
    let panicked = |_| io::Error::other("a thread has panicked");
    waking.join().map_err(panicked)??;
    let mut times = sleeping.join().map_err(panicked)??;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

/// A thread that does all its work on one processor.
fn on_processor<T: Send + 'static>(
    number: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<std::thread::JoinHandle<io::Result<T>>> {
    std::thread::Builder::new().name("wake-up".into()).spawn(move || {
        let mut only = CpuSet::new();
        only.set(number);
        sched_setaffinity(None, &only)?;
        Ok(work())
    })
}

const WAKE_UPS: usize = 15;
/// About as long as a lane sleeps in a conversation.
const ASLEEP: Duration = Duration::from_micros(200);

/// How many there are in the machine, whether this process may use them or not.
///
/// # Errors
/// When the kernel does not say.
pub fn online() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    count_listed(text.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Of a list like `0-3,8`.
fn count_listed(list: &str) -> Option<usize> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    list.split(',').map(count).sum()
}

/// How many threads of this process can run at once.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What it calls itself, where the kernel knows that (x86).
pub fn model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, model) = text.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(model.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted_as_the_kernel_lists_them() {
        assert_eq!(count_listed("0"), Some(1));
        assert_eq!(count_listed("0-127"), Some(128));
        assert_eq!(count_listed("0-3,8,10-11"), Some(7));
        for strange in ["", "0-", "3-1", "a", "0,,1"] {
            assert_eq!(count_listed(strange), None, "{strange}");
        }
    }

    #[test]
    fn waking_takes_time_and_leaves_the_caller_where_it_may_run() {
        let before = sched_getaffinity(None).unwrap();
        let time = wake_up_time().unwrap();
        assert_eq!(!time.is_zero(), before.count() > 1, "{time:?}");
        assert!(online().unwrap() >= before.count() as usize, "no more than there are");
        assert!(time < Duration::from_millis(100), "{time:?}");
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
