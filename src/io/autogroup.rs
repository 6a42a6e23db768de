//! The weight of this process's session, to which the scheduler gives processors as to one program
//! ("autogroup", sched(7)).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

/// A session that this process leads, so that it is its own and ends with it, and of which the scheduler
/// minds the weight. Its weight is as before when this is dropped.
#[derive(Debug)]
pub struct Autogroup {
    file: File,
    nice: i32,
}

impl Autogroup {
    /// That of this process.
    ///
    /// # Errors
    /// When it leads none, or its weight makes no difference here or is somebody else's choice; the error
    /// says why.
    pub fn open() -> io::Result<Self> {
        if !leads_a_session() {
            return Err(io::Error::other("the agent does not lead a session of its own"));
        }
        Self::open_at(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
    }

    fn open_at(proc: &Path, cgroups: &Path) -> io::Result<Self> {
        let enabled = std::fs::read_to_string(proc.join("sys/kernel/sched_autogroup_enabled"));
        if !enabled.is_ok_and(|enabled| enabled.trim() == "1") {
            return Err(io::Error::other("the kernel does not share processors by session"));
        }
        let memberships = std::fs::read_to_string(proc.join("self/cgroup"))?;
        if has_weight(&memberships, cgroups)? {
            return Err(io::Error::other("the agent's control group has a weight (cpu.weight)"));
        }
        let path = proc.join("self/autogroup");
        let session = std::fs::read_to_string(&path)?;
        match session.trim_end().rsplit_once(' ') {
            Some((_, "0")) => Ok(Self { file: OpenOptions::new().write(true).open(path)?, nice: 0 }),
            Some((_, nice)) => Err(io::Error::other(format!("the agent's session has nice {nice} already"))),
            None => Err(io::Error::other("the agent's session is not told apart from others")),
        }
    }

    /// Gives the session the weight that a program of this nice value has: from -20, the most, to 19.
    ///
    /// # Errors
    /// When the kernel refuses: less than zero takes `CAP_SYS_NICE` or `RLIMIT_NICE`.
    pub fn set_nice(&mut self, nice: i32) -> io::Result<()> {
        for _ in 0..ATTEMPTS {
            match self.file.write_all(nice.to_string().as_bytes()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(BETWEEN),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(io::Error::new(error.kind(), MAY_NOT));
                }
                written => {
                    written?;
                    self.nice = nice;
                    return Ok(());
                }
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

impl Drop for Autogroup {
    fn drop(&mut self) {
        if self.nice != 0
            && let Err(error) = self.set_nice(0)
        {
            tracing::warn!(%error, nice = self.nice, "the agent's session keeps its weight until the agent ends");
        }
    }
}

#[expect(
    unsafe_code,
    reason = "rustix takes the 0 of a session that began outside this PID namespace for a number"
)]
fn leads_a_session() -> bool {
    // SAFETY: getsid takes no pointers; 0 is the calling process.
    let session = unsafe { libc::getsid(0) };
    u32::try_from(session).is_ok_and(|session| session == std::process::id())
}

/// Whether what `/proc/PID/cgroup` says is a control group with a share of processors, in which sessions
/// are not told apart: any but the root of the first version's `cpu`; or, of the second version's, one that
/// has a weight or is in one that has.
fn has_weight(memberships: &str, cgroups: &Path) -> io::Result<bool> {
    let mut unified = None;
    for membership in memberships.lines().filter_map(|line| line.split_once(':')) {
        match membership.1.split_once(':') {
            Some(("", path)) => unified = Some(path),
            Some((controllers, path)) if controllers.split(',').any(|name| name == "cpu") => {
                return Ok(path != "/");
            }
            Some(_) | None => {}
        }
    }
    let Some(path) = unified else { return Ok(false) };
    let mut group = cgroups.to_owned();
    let mut is_weighed = group.join("cpu.weight").exists();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        group.push(name);
        is_weighed |= group.join("cpu.weight").exists();
    }
    // Whoever is shown no control groups, as by `ip netns exec`, is shown no weights either.
    if !is_weighed && !group.exists() {
        return Err(io::Error::other(format!("the agent's control group {path} is not shown here")));
    }
    Ok(is_weighed)
}

const MAY_NOT: &str = "the agent may not (CAP_SYS_NICE, or LimitNICE= of systemd)";
/// Without `CAP_SYS_ADMIN` the kernel refuses to do it twice, for anybody, within a tenth of a second.
const BETWEEN: Duration = Duration::from_millis(110);
const ATTEMPTS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    /// A `/proc` that says this, and the control groups of the second version that have a weight.
    fn open(enabled: &str, session: &str, memberships: &str, weights: &[&str]) -> io::Result<Vec<u8>> {
        let (proc, cgroups) = (tempfile::tempdir()?, tempfile::tempdir()?);
        std::fs::create_dir_all(proc.path().join("sys/kernel"))?;
        std::fs::create_dir(proc.path().join("self"))?;
        std::fs::write(proc.path().join("sys/kernel/sched_autogroup_enabled"), enabled)?;
        std::fs::write(proc.path().join("self/autogroup"), session)?;
        std::fs::write(proc.path().join("self/cgroup"), memberships)?;
        for group in weights {
            std::fs::create_dir_all(cgroups.path().join(group))?;
            std::fs::write(cgroups.path().join(group).join("cpu.weight"), "100\n")?;
        }
        let session = proc.path().join("self/autogroup");
        let mut opened = Autogroup::open_at(proc.path(), cgroups.path())?;
        std::fs::write(&session, "")?;
        opened.set_nice(-8)?;
        drop(opened);
        // The kernel reads each write for itself, a file has them behind each other.
        std::fs::read(session)
    }

    const SESSION: &str = "/autogroup-122 nice 0\n";

    #[test]
    fn weight_is_written_as_the_kernel_reads_it_and_taken_back() {
        let memberships = "9:name=systemd:/a\n4:memory:/b\n2:cpuacct:/c\n1:cpu:/\n0::/\n";
        assert_eq!(open("1\n", SESSION, memberships, &[]).unwrap(), b"-80");
        let memberships = "0::/system.slice\n";
        assert_eq!(open("1\n", SESSION, memberships, &["system.slice/beside"]).unwrap(), b"-80");
    }

    #[test]
    fn weight_that_would_make_no_difference_is_refused() {
        let says = |opened: io::Result<Vec<u8>>| opened.unwrap_err().to_string();
        assert!(says(open("0\n", SESSION, "0::/\n", &[])).contains("by session"));
        let service = "0::/system.slice/overlayd.service\n";
        for group in ["", "system.slice", "system.slice/overlayd.service"] {
            assert!(says(open("1\n", SESSION, service, &[group])).contains("cpu.weight"), "{group}");
        }
        assert!(says(open("1\n", SESSION, service, &[])).contains("/system.slice/overlayd.service"));
        assert!(says(open("1\n", SESSION, "3:cpu,cpuacct:/docker/1\n0::/\n", &[])).contains("cpu.weight"));
    }

    #[test]
    fn weight_that_somebody_has_chosen_is_left() {
        let error = open("1\n", "/autogroup-122 nice -10\n", "0::/\n", &[]).unwrap_err();
        assert_eq!(error.to_string(), "the agent's session has nice -10 already");
        let error = open("1\n", "", "0::/\n", &[]).unwrap_err();
        assert_eq!(error.to_string(), "the agent's session is not told apart from others");
    }
}
