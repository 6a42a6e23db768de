//! How long processors may take to leave their sleep: what the kernel is asked for by
//! `/dev/cpu_dma_latency` (`Documentation/power/pm_qos_interface.rst`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// A request of this process, one of all that there are; the kernel keeps the strictest. It asks for
/// nothing at first, and is gone with its owner, however that ends; while the process is stopped
/// (`SIGSTOP`) it stands.
#[derive(Debug)]
pub struct CpuLatency(File);

impl CpuLatency {
    /// A request for all processors of the machine.
    ///
    /// # Errors
    /// When there is no such device here, or it is not for this process.
    pub fn open() -> io::Result<Self> {
        Self::open_at(Path::new(DEVICE))
    }

    fn open_at(device: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().write(true).open(device)?))
    }

    /// Whether a processor that has nothing to do may sleep. One that may not spins, where the kernel's
    /// idle driver knows how; elsewhere this changes nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn allow_sleep(&mut self, is_allowed: bool) -> io::Result<()> {
        let micros = if is_allowed { NO_REQUEST } else { 0 };
        self.0.write_all(&micros.to_ne_bytes())
    }
}

/// Where the request is made.
pub const DEVICE: &str = "/dev/cpu_dma_latency";
/// `PM_QOS_DEFAULT_VALUE`.
const NO_REQUEST: i32 = -1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_made_and_taken_back_in_the_kernels_form() {
        let device = tempfile::NamedTempFile::new().expect("a file");
        let mut latency = CpuLatency::open_at(device.path()).expect("it is there");
        latency.allow_sleep(false).expect("written");
        latency.allow_sleep(true).expect("written");
        let written = std::fs::read(device.path()).expect("read");
        assert_eq!(written, [0_i32.to_ne_bytes(), (-1_i32).to_ne_bytes()].concat());
    }

    #[test]
    fn device_that_is_missing_is_said_to_be() {
        let error = CpuLatency::open_at(Path::new("/nonexistent/cpu_dma_latency")).expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
