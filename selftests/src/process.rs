// SPDX-License-Identifier: GPL-2.0
//! Child processes of a test.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};

use crate::fail;
use crate::failure::{Context, Failure, Result};

/// How long one process waits for another before it takes that one for dead. Longer than
/// most tests may take: debug kernels are slow.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A forked child that runs a part of the test; killed when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// The child's end is closed when it ends, or hands over why it failed.
    report: File,
    is_reaped: bool,
}

impl Child {
    /// Forks. The child runs `body` and exits, without running anything of the
    /// parent's, destructors included. Call it while the test has no other threads.
    pub fn fork(body: impl FnOnce() -> Result) -> Result<Self> {
        let (reader, writer) = pipe()?;
        // SAFETY: The child of a process with one thread may do all that its parent may,
        // and glibc's fork keeps its allocator usable in the child of one with several.
        match unsafe { fork()? } {
            ForkResult::Parent { child } => {
                Ok(Self { pid: child, report: reader.into(), is_reaped: false })
            }
            ForkResult::Child => {
                drop(reader);
                run_and_exit(body, writer.into())
            }
        }
    }

    /// The child's process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for the child to end, or to fail. Returns whether it did within the limit.
    pub fn ends_within(&self, limit: Duration) -> bool {
        wait_readable_within(&self.report, limit).is_ok()
    }

    /// Waits for the child, at most [`PATIENCE`]; fails as the child did.
    pub fn join(self) -> Result {
        self.join_within(PATIENCE)
    }

    /// As [`join`](Self::join) with another limit.
    pub fn join_within(mut self, limit: Duration) -> Result {
        let (status, report) = self.finish(limit)?;
        match status {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(..) => Err(Failure::Failed(format!("in a child: {report}"))),
            other => fail!("child ended by {other:?}"),
        }
    }

    /// Waits for the child to be killed by a signal, and returns which.
    pub fn join_killed(mut self) -> Result<Signal> {
        match self.finish(PATIENCE)? {
            (WaitStatus::Signaled(_, signal, _), _) => Ok(signal),
            (status, report) => fail!("child ended by {status:?}, not by a signal: {report}"),
        }
    }

    /// Waits for the child to end well, or to be killed by a signal, and returns which.
    pub fn join_or_killed(mut self) -> Result<Option<Signal>> {
        match self.finish(PATIENCE)? {
            (WaitStatus::Exited(_, 0), _) => Ok(None),
            (WaitStatus::Signaled(_, signal, _), _) => Ok(Some(signal)),
            (WaitStatus::Exited(..), report) => fail!("in a child: {report}"),
            (status, _) => fail!("child ended by {status:?}"),
        }
    }

    /// A descriptor for what the child has open as number `fd`, as if it were passed.
    pub fn take_fd(&self, fd: RawFd) -> Result<OwnedFd> {
        // SAFETY: These two only create descriptors.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid.as_raw(), 0) };
        let process = owned_fd(process).context("pidfd_open")?;
        // SAFETY: As above.
        let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
        owned_fd(taken).context("pidfd_getfd")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> std::result::Result<(), Errno> {
        kill(self.pid, signal)
    }

    /// Kills the child and waits until it is gone, and with it its address space.
    pub fn kill(mut self) -> Result {
        self.signal(Signal::SIGKILL)?;
        self.finish(PATIENCE).map(drop)
    }

    fn finish(&mut self, limit: Duration) -> Result<(WaitStatus, String)> {
        let end = Instant::now() + limit;
        let mut report = Vec::new();
        loop {
            wait_readable_within(&self.report, end.saturating_duration_since(Instant::now()))
                .context(format!("child {} after {limit:?}", self.pid))?;
            let mut chunk = [0; 4096];
            match self.report.read(&mut chunk)? {
                0 => break,
                len => report.extend_from_slice(&chunk[..len]),
            }
        }
        let status = waitpid(self.pid, None)?;
        self.is_reaped = true;
        Ok((status, String::from_utf8_lossy(&report).into_owned()))
    }
}

/// What a system call returned that creates a descriptor.
fn owned_fd(result: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(result)?)?;
    // SAFETY: The descriptor is new, so nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.is_reaped && self.signal(Signal::SIGKILL).is_ok() {
            // Nothing can be done about an error here.
            let _ = waitpid(self.pid, None);
        }
    }
}

fn run_and_exit(body: impl FnOnce() -> Result, mut report: File) -> ! {
    let result = catch_unwind(AssertUnwindSafe(body));
    let text = match result {
        Ok(Ok(())) => None,
        Ok(Err(failure)) => Some(failure.to_string()),
        Err(_) => Some("panic, see above".into()),
    };
    if let Some(text) = &text {
        // The exit status tells all the same if the parent is gone.
        let _ = report.write_all(text.as_bytes());
    }
    // SAFETY: Ends the process at once, which is meant: what is still on the stack is
    // the parent's to clean up.
    unsafe { libc::_exit(i32::from(text.is_some())) }
}

/// Waits until there is something to read, at most [`PATIENCE`].
pub fn wait_readable(fd: impl AsFd) -> Result {
    wait_readable_within(fd, PATIENCE)
}

fn wait_readable_within(fd: impl AsFd, limit: Duration) -> Result {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    // Round up, so as not to give up early.
    let millis = limit.as_millis().saturating_add(1);
    let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
    loop {
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Ok(0) => fail!("nothing came in time"),
            result => return result.map(drop).map_err(Failure::from),
        }
    }
}

/// A gate between processes: `open` lets one `pass` through, whichever comes first.
/// Make it before the fork; it works either way.
#[derive(Debug)]
pub struct Gate(EventFd);

impl Gate {
    /// A closed gate.
    pub fn new() -> Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_SEMAPHORE | EfdFlags::EFD_CLOEXEC)?))
    }

    /// Lets one process pass.
    pub fn open(&self) -> Result {
        self.0.write(1)?;
        Ok(())
    }

    /// Waits until it may pass; fails after [`PATIENCE`].
    pub fn pass(&self) -> Result {
        wait_readable(&self.0).context("waiting for another process")?;
        self.0.read()?;
        Ok(())
    }
}

/// The CPUs that this thread may run on.
pub fn cpus() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(THIS_THREAD)?;
    Ok((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true)).collect())
}

/// Keeps this thread, and what it forks, on one CPU.
pub fn stay_on(cpu: usize) -> Result {
    let mut one = CpuSet::new();
    one.set(cpu)?;
    sched_setaffinity(THIS_THREAD, &one)?;
    Ok(())
}

/// The same, whichever that is: pages cannot be migrated while another CPU is about to
/// move them between the lists of reclaim, as after `MADV_FREE`, and nobody tells it to
/// go on.
pub fn stay_on_one_cpu() -> Result {
    let first = *cpus()?.first().expect("it runs on one");
    stay_on(first)
}

const THIS_THREAD: Pid = Pid::from_raw(0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ensure_eq;

    #[test]
    fn a_childs_failure_is_the_tests() {
        assert_eq!(Child::fork(|| Ok(())).unwrap().join(), Ok(()));
        let failed = Child::fork(|| {
            ensure_eq!(1 + 1, 3);
            Ok(())
        });
        let text = failed.unwrap().join().unwrap_err().to_string();
        assert!(text.contains("1 + 1 is 2, expected 3"), "{text}");
    }

    #[test]
    fn signals() {
        let child = Child::fork(|| Ok(nix::sys::signal::raise(Signal::SIGUSR1)?)).unwrap();
        assert_eq!(child.join_killed(), Ok(Signal::SIGUSR1));
        assert!(Child::fork(|| Ok(())).unwrap().join_killed().is_err());
    }

    #[test]
    fn a_hanging_child_is_given_up_and_killed() {
        let child = Child::fork(|| {
            loop {
                nix::unistd::pause();
            }
        })
        .unwrap();
        let pid = child.pid();
        assert!(!child.ends_within(Duration::from_millis(50)));
        assert!(child.join_within(Duration::from_millis(50)).is_err());
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }

    #[test]
    fn a_childs_open_file_outlives_it() {
        let (reader, writer) = pipe().unwrap();
        let number = writer.as_raw_fd();
        let taken = Gate::new().unwrap();
        let child = Child::fork(|| taken.pass()).unwrap();
        drop(writer);
        let mut writer = File::from(child.take_fd(number).unwrap());
        taken.open().unwrap();
        child.join().unwrap();
        writer.write_all(b"x").unwrap();
        drop(writer);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn gates_order_processes() {
        let (go, done) = (Gate::new().unwrap(), Gate::new().unwrap());
        let child = Child::fork(|| {
            go.pass()?;
            done.open()
        })
        .unwrap();
        go.open().unwrap();
        done.pass().unwrap();
        child.join().unwrap();
    }
}
