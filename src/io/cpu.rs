//! The processor: what it is and what it can.

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
