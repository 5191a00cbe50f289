// SPDX-License-Identifier: GPL-2.0
//! Files whose pages can be neither moved nor reclaimed.

use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount as mount_at};
use nix::sched::{CloneFlags, unshare};

use crate::failure::{Context, Result};

/// Hidden from this process as long as it lives.
const MOUNT_POINT: &str = "/mnt";

/// Mounts a ramfs that only this process sees; it is gone with the process.
pub fn mount() -> Result<PathBuf> {
    const NONE: Option<&Path> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare")?;
    mount_at(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    mount_at(NONE, MOUNT_POINT, Some("ramfs"), MsFlags::empty(), NONE).context("ramfs")?;
    Ok(MOUNT_POINT.into())
}
