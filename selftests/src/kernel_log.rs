// SPDX-License-Identifier: GPL-2.0
//! Complaints of the kernel, which fail the test they come with.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc::O_NONBLOCK;

const KMSG: &str = "/dev/kmsg";

/// What no test may make the kernel say.
const COMPLAINTS: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "BUG at ",
    "Oops",
    "general protection fault",
    "KASAN: ",
    "UBSAN: ",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "suspicious RCU usage",
    "INFO: task ",
    "Out of memory: Killed",
    "Bad page",
    "list_add corruption",
    "list_del corruption",
    "refcount_t: ",
];

/// The kernel's log from when it was opened.
#[derive(Debug)]
pub struct KernelLog(File);

impl KernelLog {
    /// Opens the log; `None` where one may not read it.
    pub fn open() -> Option<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(KMSG).ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// Complaints since the last call.
    pub fn complaints(&mut self) -> Vec<String> {
        // A record is at most 8 KB.
        let mut record = [0; 8192];
        let mut complaints = Vec::new();
        loop {
            match self.0.read(&mut record) {
                Ok(len) => complaints.extend(complaint(&String::from_utf8_lossy(&record[..len]))),
                // The oldest records were overwritten; reading goes on behind them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return complaints,
            }
        }
    }
}

/// The text of a record if it is a complaint by the kernel.
fn complaint(record: &str) -> Option<String> {
    let (head, text) = record.split_once(';')?;
    let facility = head.split(',').next()?.parse::<u32>().ok()? >> 3;
    let line = text.lines().next()?;
    let is_complaint = facility == 0 && COMPLAINTS.iter().any(|phrase| line.contains(phrase));
    is_complaint.then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_complaints_of_the_kernel_only() {
        let warning = "4,100,5,-;WARNING: CPU: 1 PID: 2 at mm/x.c:3\n KEY=v\n";
        assert_eq!(complaint(warning).unwrap(), "WARNING: CPU: 1 PID: 2 at mm/x.c:3");
        assert_eq!(complaint("6,101,6,-;test_hmm_rs: loaded\n"), None);
        assert_eq!(complaint("12,101,6,-;daemon: WARNING: low\n"), None);
        assert_eq!(complaint("garbage"), None);
    }
}
