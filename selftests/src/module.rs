// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading a kernel module.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use crate::ensure;
use crate::failure::{Context, Result};
use crate::process::PATIENCE;

/// A module, and the parameters with which it is loaded: `NAME [PARAMETER=VALUE]...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    name: String,
    parameters: Vec<String>,
}

impl FromStr for Module {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let mut words = text.split_whitespace().map(str::to_owned);
        let name = words.next().ok_or("no name")?;
        Ok(Self { name, parameters: words.collect() })
    }
}

impl std::fmt::Display for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.parameters.join(" "))
    }
}

impl Module {
    /// The same module with other parameters.
    pub fn with<const N: usize>(&self, parameters: [String; N]) -> Self {
        Self { name: self.name.clone(), parameters: parameters.into() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is loaded.
    pub fn is_loaded(&self) -> bool {
        fs::exists(format!("/sys/module/{}/refcnt", self.name)).unwrap_or(false)
    }

    /// Loads it, and what it depends on.
    pub fn load(&self) -> Result {
        let status = Command::new("modprobe").arg(&self.name).args(&self.parameters).status();
        ensure!(status.context("modprobe")?.success(), "modprobe {self} fails");
        Ok(())
    }

    /// Unloads it; waits for what it waits for at its end. `EAGAIN` if it is in use.
    pub fn unload(&self) -> Result<(), Errno> {
        let name = c_string(&self.name)?;
        // SAFETY: The name is a string that outlives the call.
        let ret =
            unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
        Errno::result(ret).map(drop)
    }

    /// The same, perhaps after the last file is closed for good.
    pub fn unload_when_unused(&self) -> Result {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.unload() {
                Err(Errno::EAGAIN) if Instant::now() < end => {
                    thread::sleep(Duration::from_millis(5));
                }
                result => return result.context(format!("unloading {self}")),
            }
        }
    }

    /// Prepares to load it by a single system call. What it depends on must be there.
    pub fn file(&self) -> Result<ModuleFile> {
        let found = Command::new("modinfo").args(["-n", &self.name]).output().context("modinfo")?;
        let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        let file = File::open(&path).context(path)?;
        Ok(ModuleFile { file, parameters: c_string(&self.parameters.join(" "))? })
    }
}

/// A module to be loaded.
#[derive(Debug)]
pub struct ModuleFile {
    file: File,
    parameters: CString,
}

impl ModuleFile {
    /// Loads it; the error is that of its beginning, too.
    pub fn load(&self) -> Result<(), Errno> {
        let (fd, parameters) = (self.file.as_raw_fd(), self.parameters.as_ptr());
        // SAFETY: The parameters are a string that outlives the call.
        let ret = unsafe { libc::syscall(libc::SYS_finit_module, fd, parameters, 0) };
        Errno::result(ret).map(drop)
    }
}

fn c_string(text: &str) -> Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read() {
        let module: Module = "test_hmm  device_type=generic spm_addr_dev0=0x1".parse().unwrap();
        assert_eq!(module.parameters.len(), 2);
        assert_eq!(module.to_string().parse(), Ok(module));
        assert!(" ".parse::<Module>().is_err());
    }

    #[test]
    fn what_there_is_not() {
        let module: Module = "no_such_module".parse().unwrap();
        assert!(!module.is_loaded());
        assert!(module.unload().is_err());
        assert!(module.file().is_err());
    }
}
