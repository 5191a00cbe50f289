// SPDX-License-Identifier: GPL-2.0
//! What the system has at the beginning, and must have at the end.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::HUGE_PAGES;
use crate::tests::Context;
use crate::uapi::MemoryType;
use crate::{ensure, fail};

/// Memory that may be missing at the end, in KB: what the kernel keeps for the next time, such as
/// free objects of its caches on lists of each CPU, and of KASAN, which keeps 1/32 of all memory
/// from being used again (128 MB of 4 GB). A leak of a page for each thousand operations, in ten
/// minutes, is more.
const SLACK: i64 = 32 << 10;
const SLACK_OF_KASAN: i64 = 128 << 10;
/// For workers of the kernel to free what they have.
const PATIENCE: Duration = Duration::from_secs(60);

/// What there is.
#[derive(Debug)]
pub struct Books {
    /// KB
    available: i64,
    /// KB of slab caches that cannot be reclaimed.
    slab: i64,
    /// Pages that each device can hand out, where that is limited.
    free: Vec<usize>,
}

impl Books {
    /// Takes stock when nothing is in use.
    pub fn open(ctx: &Context) -> Result<Self> {
        let mut free = Vec::new();
        for node in &ctx.all_nodes {
            let device = Device::open(node)?;
            device.release().context("when nobody uses the device")?;
            // Private devices take more memory when they have none.
            if device.mem_dev_type() != Ok(MemoryType::Private as u32) {
                free.push(pages_of(&device)?);
            }
        }
        // Also what that has freed.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        Ok(Self { available: meminfo("MemAvailable")?, slab: meminfo("SUnreclaim")?, free })
    }

    /// Fails unless all is there again, but for so many pages that were poisoned.
    pub fn balance(&self, ctx: &Context, poisoned: u64) -> Result {
        let slack = SLACK + if has_kasan() { SLACK_OF_KASAN } else { 0 };
        let end = Instant::now() + PATIENCE;
        loop {
            let now = Self::open(ctx)?;
            println!("{now:?}, at first {self:?}");
            for (now, first) in now.free.iter().zip(&self.free) {
                let lost = first.saturating_sub(*now);
                // One bad page takes the whole huge page with it.
                ensure!(
                    lost <= poisoned as usize * HUGE_PAGES,
                    "{lost} pages of a device are lost"
                );
            }
            let (lost, grown) = (self.available - now.available, now.slab - self.slab);
            if lost <= slack && grown <= slack {
                return Ok(());
            }
            if Instant::now() > end {
                fail!("{lost} KB less are available, slab caches have {grown} KB more");
            }
            thread::sleep(Duration::from_secs(2));
        }
    }
}

/// Whether the kernel has KASAN, of the kind that keeps memory from being used again.
fn has_kasan() -> bool {
    let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    symbols.lines().any(|line| line.ends_with(" kasan_quarantine_put"))
}

/// How many pages a device can hand out. Leaves it empty.
fn pages_of(device: &Device) -> Result<usize> {
    /// More than a device has, in huge pages.
    const MOST: usize = 1024;
    let mapping = Mapping::huge(MOST * HUGE_PAGES)?;
    let mut count = 0;
    for block in 0..MOST {
        let pages = mapping.pages(block * HUGE_PAGES..(block + 1) * HUGE_PAGES);
        match device.migrate_to_dev(pages) {
            Ok(data) => count += data.cpages as usize,
            // Not all of it was migrated.
            Err(Errno::ENOENT) => break,
            Err(errno) => return Err(errno).context("migrating to all of the device"),
        }
    }
    drop(mapping);
    device.release()?;
    Ok(count)
}

/// KB, by the name in /proc/meminfo.
fn meminfo(name: &str) -> Result<i64> {
    const FILE: &str = "/proc/meminfo";
    let text = fs::read_to_string(FILE).context(FILE)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let value = line.and_then(|line| line.split_whitespace().next());
    match value {
        Some(value) => Ok(value.parse()?),
        None => fail!("no {name} in {FILE}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_meminfo() {
        assert!(meminfo("MemTotal").unwrap() > meminfo("MemFree").unwrap());
        assert!(meminfo("Mem").is_err());
    }
}
