// SPDX-License-Identifier: GPL-2.0
//! The kernel's fault injection: one thing in a system call fails that could fail, such as an
//! allocation of memory or an access to the caller's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::failure::{Context, Result, skip};
use crate::settings::Setting;

const FAIL_NTH: &str = "/proc/thread-self/fail-nth";
/// Which failures there are, and that they are not logged.
const SETTINGS: &[(&str, &str)] = &[
    ("/sys/kernel/debug/failslab/ignore-gfp-wait", "N"),
    ("/sys/kernel/debug/failslab/verbose", "0"),
    ("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N"),
    ("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N"),
    ("/sys/kernel/debug/fail_page_alloc/min-order", "0"),
    ("/sys/kernel/debug/fail_page_alloc/verbose", "0"),
    ("/sys/kernel/debug/fail_usercopy/verbose", "0"),
];

/// For the thread that has made it.
#[derive(Debug)]
pub struct FaultInjection {
    file: File,
    _settings: Vec<Setting>,
}

impl FaultInjection {
    /// Prepares it; skips the test if the kernel has none.
    pub fn new() -> Result<Self> {
        let file = match OpenOptions::new().read(true).write(true).open(FAIL_NTH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return skip(format!("no {FAIL_NTH}: CONFIG_FAULT_INJECTION"));
            }
            file => file.context(FAIL_NTH)?,
        };
        // Some kernels have only a part.
        let there = SETTINGS.iter().filter(|(file, _)| fs::exists(file).unwrap_or(false));
        let settings = there.map(|(file, value)| Setting::new(file, value));
        Ok(Self { file, _settings: settings.collect::<Result<_>>()? })
    }

    /// Does something, and returns what it came to and how many things could have failed.
    pub fn count<T>(&self, act: impl FnOnce() -> T) -> Result<(T, u32)> {
        const MANY: u32 = 1 << 30;
        self.set(MANY)?;
        let result = act();
        let left = self.left()?;
        self.set(0)?;
        Ok((result, MANY - left.unwrap_or(MANY)))
    }

    /// Does something of which the `n`th thing fails that can, from 1. Returns what it came to,
    /// and whether there were so many. The memory that it uses should be there already.
    pub fn nth<T>(&self, n: u32, act: impl FnOnce() -> T) -> Result<(T, bool)> {
        self.set(n)?;
        let result = act();
        let has_failed = self.left()? == Some(0);
        self.set(0)?;
        Ok((result, has_failed))
    }

    /// Has the `n`th thing fail from now on; 0: none.
    fn set(&self, n: u32) -> Result {
        while let Err(error) = self.file.write_at(n.to_string().as_bytes(), 0) {
            // This has itself been what failed.
            if error.raw_os_error() != Some(Errno::EFAULT as i32) {
                return Err(error).context(FAIL_NTH);
            }
        }
        Ok(())
    }

    /// How many more had to come; `None` if reading this is what failed.
    fn left(&self) -> Result<Option<u32>> {
        let mut text = [0; 16];
        match self.file.read_at(&mut text, 0) {
            Ok(len) => Ok(Some(String::from_utf8_lossy(&text[..len]).trim().parse()?)),
            Err(error) if error.raw_os_error() == Some(Errno::EFAULT as i32) => Ok(None),
            Err(error) => Err(error).context(FAIL_NTH),
        }
    }
}
