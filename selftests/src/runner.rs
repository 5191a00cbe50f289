// SPDX-License-Identifier: GPL-2.0
//! Runs a test in a process of its own, which may crash or hang.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, pipe2};

use crate::failure::{Failure, skip};
use crate::results::Outcome;
use crate::tests::{Context, Test};

/// Exit status of a test's process when it passes.
pub const PASSED: u8 = 0;
/// Exit status of a test's process when it fails.
pub const FAILED: u8 = 1;
/// Exit status of a test's process that is skipped; the reason is its last line.
pub const SKIPPED: u8 = 4;
/// What Rust exits with after a panic.
const PANICKED: i32 = 101;

/// How long killed processes may take to be gone.
pub const GRACE: Duration = Duration::from_secs(10);
/// More output than this is not kept, in bytes.
const MAX_OUTPUT: usize = 1 << 16;

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// What its end says of the test.
    pub outcome: Outcome,
    /// What it printed, to standard output or error.
    pub output: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

/// Runs a test in this process; returns its exit status.
pub fn run_here(test: &Test, context: &mut Context) -> u8 {
    let result = match test.exception(context.driver) {
        Some(reason) => skip(reason),
        None => (test.run)(context),
    };
    match result {
        Ok(()) => PASSED,
        Err(Failure::Failed(message)) => {
            eprintln!("{message}");
            FAILED
        }
        Err(Failure::Skipped(reason)) => {
            eprintln!("{reason}");
            SKIPPED
        }
    }
}

/// Runs a command as a process group of its own. Kills the group when the command is
/// over or takes longer than `limit`, and gives up after `grace` on what cannot even be
/// killed.
pub fn run_isolated(
    mut command: Command,
    limit: Duration,
    grace: Duration,
) -> io::Result<Finished> {
    let start = Instant::now();
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let mut child = command.spawn()?;
    // It has the pipe's other end, too.
    drop(command);
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let output = Output::collect(reader.into());
    let end = in_background(move || waitid(Id::Pid(group), UNREAPED));

    let status = end.recv_timeout(limit).ok();
    let exited = status.is_some();
    let (mut outcome, mut notes) = match status {
        Some(status) => (outcome(status?), Vec::new()),
        None => (Outcome::Failed(format!("hung: no end after {limit:?}")), stacks(group)),
    };
    let duration = start.elapsed();

    // Until the child is reaped, this cannot be another group.
    killpg(group, Signal::SIGKILL)?;
    // The end of the output is that of the group's files. Closing these may take its time, too.
    let closed = output.ended.recv_timeout(grace).is_ok();
    if closed && (exited || end.recv_timeout(grace).is_ok()) {
        child.wait()?;
    } else {
        notes.push("cannot be killed:".into());
        notes.extend(stacks(group));
        if let Outcome::Failed(reason) = &mut outcome {
            reason.push_str("; cannot be killed");
        } else {
            outcome = Outcome::Failed("left a process that cannot be killed".into());
        }
    }
    let mut lines = output.lines();
    if let Outcome::Skipped(reason) = &mut outcome {
        *reason = lines.pop().unwrap_or_default();
    }
    lines.extend(notes);
    Ok(Finished { outcome, output: lines, duration })
}

/// Waits for the end of a process, but leaves it a zombie, so that its number stays its
/// own.
const UNREAPED: WaitPidFlag = WaitPidFlag::WEXITED.union(WaitPidFlag::WNOWAIT);

fn outcome(status: WaitStatus) -> Outcome {
    let failed = |reason: String| Outcome::Failed(reason);
    match status {
        WaitStatus::Exited(_, status) if status == i32::from(PASSED) => Outcome::Passed,
        WaitStatus::Exited(_, status) if status == i32::from(SKIPPED) => {
            Outcome::Skipped(String::new())
        }
        WaitStatus::Exited(_, status) if status == i32::from(FAILED) => failed("failed".into()),
        WaitStatus::Exited(_, PANICKED) => failed("panicked".into()),
        WaitStatus::Exited(_, status) => failed(format!("ended with exit status {status}")),
        WaitStatus::Signaled(_, signal, _) => failed(format!("killed by {signal}")),
        other => failed(format!("ended by {other:?}")),
    }
}

/// Runs something that may never end; nobody waits for its thread.
fn in_background<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        // Nobody listens any more once the limit is over.
        let _ = sender.send(work());
    });
    receiver
}

/// What a group of processes prints.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Output {
    fn collect(mut reader: File) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&bytes);
        let ended = in_background(move || {
            let mut chunk = [0; 4096];
            while let Ok(len @ 1..) = reader.read(&mut chunk) {
                let mut bytes = collected.lock().expect("no panics");
                let free = MAX_OUTPUT - bytes.len();
                bytes.extend_from_slice(&chunk[..len.min(free)]);
            }
        });
        Self { bytes, ended }
    }

    fn lines(&self) -> Vec<String> {
        let bytes = self.bytes.lock().expect("no panics");
        let mut lines: Vec<_> =
            String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect();
        if bytes.len() == MAX_OUTPUT {
            lines.push("(more output was dropped)".into());
        }
        lines
    }
}

/// Where in the kernel the threads of a process group are.
fn stacks(group: Pid) -> Vec<String> {
    let mut lines = Vec::new();
    for process in numbered("/proc".as_ref()) {
        for task in numbered(&process.join("task")) {
            // Any of these may end meanwhile.
            let Ok(stat) = fs::read_to_string(task.join("stat")) else { continue };
            if process_group(&stat) == Some(group.as_raw()) {
                lines.push(stat.split_whitespace().take(3).collect::<Vec<_>>().join(" "));
                let stack = fs::read_to_string(task.join("stack")).unwrap_or_default();
                lines.extend(stack.lines().map(|line| format!("  {line}")));
            }
        }
    }
    lines
}

/// The entries of a folder that are numbers.
fn numbered(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
        .map(|entry| entry.path())
        .collect()
}

/// Field 5 of a `stat` file in /proc; field 2, in parentheses, may have anything in it.
fn process_group(stat: &str) -> Option<i32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Driver;
    use crate::failure::Result;
    use crate::uapi::MemoryType;

    fn status_of(run: fn(&mut Context) -> Result) -> u8 {
        let mut context = Context {
            memory_type: MemoryType::Generic,
            driver: Driver::Rust,
            nodes: ["/dev/null".into(), "/dev/null".into()],
            all_nodes: Vec::new(),
            seed: 1,
            module: None,
            rng: fastrand::Rng::with_seed(1),
            random: Default::default(),
            torture: Default::default(),
        };
        run_here(&Test::new("test", run), &mut context)
    }

    #[test]
    fn exit_status() {
        assert_eq!(status_of(|_| Ok(())), PASSED);
        assert_eq!(status_of(|_| Err(Failure::failed("x"))), FAILED);
        assert_eq!(status_of(|_| skip("x")), SKIPPED);
    }

    #[test]
    fn group_of_a_process_with_an_odd_name() {
        assert_eq!(process_group("12 (a ) b (c) S 1 34 34 0"), Some(34));
        assert_eq!(process_group(""), None);
    }

    #[test]
    fn stacks_of_this_process() {
        let lines = stacks(nix::unistd::getpgrp());
        let own = format!("{} (", std::process::id());
        assert!(lines.iter().any(|line| line.starts_with(&own)), "{lines:?}");
    }
}
