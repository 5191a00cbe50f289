// SPDX-License-Identifier: GPL-2.0
//! Memory cgroups, in a hierarchy (version 2) that is mounted for the tests.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::fail;
use crate::failure::{Context, Result, skip};

const MOUNT_POINT: &str = "/tmp/hmm-selftests-cgroup2";

/// A cgroup that accounts memory, removed when dropped; nobody may be in it then.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
}

impl Cgroup {
    /// Makes one. Skips the test if the kernel has no memory cgroups of version 2.
    pub fn new(name: &str) -> Result<Self> {
        let top = Path::new(MOUNT_POINT);
        fs::create_dir_all(top)?;
        if !top.join("cgroup.procs").exists() {
            let no_data = None::<&str>;
            mount(Some("cgroup2"), top, Some("cgroup2"), MsFlags::empty(), no_data)
                .context("mounting cgroup2")?;
        }
        let controllers = fs::read_to_string(top.join("cgroup.controllers"))?;
        if !controllers.split_whitespace().any(|controller| controller == "memory") {
            return skip("no memory controller for cgroups of version 2");
        }
        fs::write(top.join("cgroup.subtree_control"), "+memory").context("+memory")?;
        let folder = top.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&folder)?;
        Ok(Self { folder })
    }

    /// Moves the calling process into it.
    pub fn enter(&self) -> Result {
        fs::write(self.folder.join("cgroup.procs"), "0").context("cgroup.procs")
    }

    /// Bytes charged to it, of which it may hold some in reserve for each CPU.
    pub fn charged(&self) -> Result<usize> {
        Ok(self.read("memory.current")?.trim().parse()?)
    }

    /// Sets the limit, in bytes.
    pub fn set_limit(&self, bytes: usize) -> Result {
        fs::write(self.folder.join("memory.max"), bytes.to_string()).context("memory.max")
    }

    /// How often something has happened, a line of `memory.events`.
    pub fn events(&self, name: &str) -> Result<usize> {
        let text = self.read("memory.events")?;
        let mut fields = text.lines().filter_map(|line| line.split_once(' '));
        match fields.find(|(field, _)| *field == name) {
            Some((_, count)) => Ok(count.parse()?),
            None => fail!("no {name} in memory.events"),
        }
    }

    /// Writes to one of its files.
    pub fn write(&self, file: &str, value: &str) -> std::io::Result<()> {
        fs::write(self.folder.join(file), value)
    }

    fn read(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.folder.join(file)).context(file)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A failing test may leave a process there for a moment, but not for long.
        for _ in 0..100 {
            match fs::remove_dir(&self.folder) {
                Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
                _ => return,
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
