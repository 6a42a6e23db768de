//! Child processes that live in another network namespace and do not outlive this process.

#![expect(unsafe_code, reason = "a child enters its namespace between fork and exec")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, set_parent_process_death_signal};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::netns::NetNs;

/// A thread that starts processes.
///
/// A child gets SIGKILL when the *thread* that started it ends (prctl(2), `PR_SET_PDEATHSIG`), so
/// one thread starts them all and ends with the spawner: dropping it kills the children.
#[derive(Debug)]
pub struct Spawner {
    orders: mpsc::Sender<Order>,
}

struct Order {
    command: Command,
    started: mpsc::Sender<io::Result<Child>>,
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system allows no more threads.
    pub fn start() -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<Order>();
        std::thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            for mut order in queue {
                // Nobody waits any more if this fails; the child, if any, is dropped and left running.
                let _ = order.started.send(order.command.spawn());
            }
        })?;
        Ok(Self { orders })
    }

    /// Starts `command` inside `namespace`.
    ///
    /// # Errors
    /// What fork(2), setns(2) or execve(2) said.
    ///
    /// # Panics
    /// Never: the thread lives as long as the spawner.
    pub fn spawn(&self, mut command: Command, namespace: &NetNs) -> io::Result<Child> {
        let namespace = namespace.as_fd().try_clone_to_owned()?;
        let parent = rustix::process::getpid();
        // SAFETY: `enter` makes three system calls and neither allocates nor locks.
        unsafe { command.pre_exec(move || enter(&namespace, parent)) };
        let (started, answer) = mpsc::channel();
        self.orders.send(Order { command, started }).expect("the thread ends after its queue");
        answer.recv().expect("the thread answers each order")
    }
}

fn enter(namespace: &OwnedFd, parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // A parent that died before that call sends no signal any more.
    if rustix::process::getppid() != Some(parent) {
        return Err(io::ErrorKind::Interrupted.into());
    }
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}
