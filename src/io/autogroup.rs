//! The weight of this process's session, to which the scheduler gives processors as to one program
//! ("autogroup", sched(7)).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use rustix::process::{getpid, getsid};

/// A session that this process leads, so that it is its own and ends with it, and of which the scheduler
/// minds the weight.
#[derive(Debug)]
pub struct Autogroup(File);

impl Autogroup {
    /// That of this process.
    ///
    /// # Errors
    /// When it leads none, or its weight makes no difference here or is somebody else's choice; the error
    /// says why.
    pub fn open() -> io::Result<Self> {
        if getsid(None)? != getpid() {
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
        if memberships.lines().any(|line| has_weight(line, cgroups)) {
            return Err(io::Error::other("the agent's control group has a weight (CPUWeight= of systemd)"));
        }
        let path = proc.join("self/autogroup");
        let session = std::fs::read_to_string(&path)?;
        if !session.trim_end().ends_with(" nice 0") {
            return Err(io::Error::other(format!(
                "its session has a weight already: {}",
                session.trim_end()
            )));
        }
        Ok(Self(OpenOptions::new().write(true).open(path)?))
    }

    /// Gives the session the weight that a program of this nice value has: from -20, the most, to 19.
    ///
    /// # Errors
    /// When the kernel refuses: less than zero takes `CAP_SYS_NICE` or `RLIMIT_NICE`.
    pub fn set_nice(&mut self, nice: i32) -> io::Result<()> {
        self.0.write_all(nice.to_string().as_bytes()).map_err(|error| {
            let is_forbidden = error.kind() == io::ErrorKind::PermissionDenied;
            if is_forbidden { io::Error::new(error.kind(), MAY_NOT) } else { error }
        })
    }
}

/// Whether a line of `/proc/PID/cgroup` is a control group with a share of processors, in which sessions
/// are not told apart: any but the root of the first version's `cpu`, or, of the second version's, one
/// that has a weight or is in one that has.
fn has_weight(line: &str, cgroups: &Path) -> bool {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return false };
    if controllers.is_empty() {
        let group = cgroups.join(path.trim_start_matches('/'));
        let within = group.ancestors().take_while(|group| group.starts_with(cgroups));
        return within.into_iter().any(|group| group.join("cpu.weight").exists());
    }
    controllers.split(',').any(|controller| controller == "cpu") && path != "/"
}

const MAY_NOT: &str = "the agent may not (CAP_SYS_NICE, or LimitNICE= of systemd)";

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
        let mut opened = Autogroup::open_at(proc.path(), cgroups.path())?;
        std::fs::write(proc.path().join("self/autogroup"), "")?;
        opened.set_nice(-8)?;
        std::fs::read(proc.path().join("self/autogroup"))
    }

    const SESSION: &str = "/autogroup-122 nice 0\n";

    #[test]
    fn weight_is_written_as_the_kernel_reads_it() {
        let memberships = "9:name=systemd:/a\n4:memory:/b\n2:cpuacct:/c\n1:cpu:/\n0::/\n";
        assert_eq!(open("1\n", SESSION, memberships, &[]).unwrap(), b"-8");
        let memberships = "0::/system.slice/overlayd.service\n";
        assert_eq!(open("1\n", SESSION, memberships, &["other.slice"]).unwrap(), b"-8");
    }

    #[test]
    fn weight_that_would_make_no_difference_is_refused() {
        let says = |opened: io::Result<Vec<u8>>| opened.unwrap_err().to_string();
        assert!(says(open("0\n", SESSION, "0::/\n", &[])).contains("by session"));
        let service = "0::/system.slice/overlayd.service\n";
        for group in ["", "system.slice", "system.slice/overlayd.service"] {
            assert!(says(open("1\n", SESSION, service, &[group])).contains("CPUWeight="), "{group}");
        }
        assert!(says(open("1\n", SESSION, "3:cpu,cpuacct:/docker/1\n0::/\n", &[])).contains("CPUWeight="));
    }

    #[test]
    fn weight_that_somebody_has_chosen_is_left() {
        let error = open("1\n", "/autogroup-122 nice -10\n", "0::/\n", &[]).unwrap_err();
        assert_eq!(error.to_string(), "its session has a weight already: /autogroup-122 nice -10");
    }
}
