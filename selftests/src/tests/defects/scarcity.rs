// SPDX-License-Identifier: GPL-2.0
//! When system memory is short of huge pages.

use std::fs::{self, File};
use std::io::Write;

use nix::errno::Errno;

use super::{local_pages, ramfs};
use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::tests::Context;
use crate::{ensure_eq, pagemap};

/// A file is closed, or all memory of the device released, and there is no huge page in the
/// system to evict its own to, so they are evicted to small ones. In C this went wrong.
pub fn d09_close_without_free_huge_page(ctx: &mut Context) -> Result {
    evict_without_free_huge_page(ctx, |device| {
        drop(device);
        Ok(())
    })
    .context("close")?;
    evict_without_free_huge_page(ctx, |device| device.release()).context("release")
}

fn evict_without_free_huge_page(
    ctx: &mut Context,
    evict: impl FnOnce(Device) -> Result<(), Errno>,
) -> Result {
    const COUNT: usize = 4 * HUGE_PAGES;
    let device = ctx.device(0)?;
    let mapping = Mapping::huge(COUNT)?;
    mapping.fill(0..COUNT, 1);
    ensure_eq!(pagemap::huge_pages(mapping.all())?, COUNT);
    device.migrate_to_dev(mapping.all())?;
    ensure_eq!(local_pages(ctx, &device, mapping.all())?, COUNT);

    let only_small = OnlySmallPages::new()?;
    evict(device)?;
    ensure_eq!(local_pages(ctx, &ctx.device(0)?, mapping.all())?, 0);
    mapping.check(0..COUNT, 1)?;
    drop(only_small);
    mapping.check(0..COUNT, 1)?;
    Ok(())
}

/// As long as it exists, the system has free memory, but no huge page.
pub(super) struct OnlySmallPages {
    _taken: Vec<Mapping>,
}

impl OnlySmallPages {
    /// Pages of each of two files, which lie in turns and cannot be moved. Those of one become free:
    /// more than the watermarks of the zones, also while fragmentation boosts them.
    const FILE_PAGES: usize = 16384;

    pub(super) fn new() -> Result<Self> {
        let folder = ramfs::mount()?;
        let doomed = folder.join("doomed");
        let mut files = [File::create(folder.join("kept"))?, File::create(&doomed)?];
        for _ in 0..Self::FILE_PAGES {
            for file in &mut files {
                file.write_all(&[1; PAGE_SIZE])?;
            }
        }
        let mut taken = take_hugetlb()?;
        drop(files);
        fs::remove_file(doomed)?;
        // What the files have left behind, or reclaim finds.
        loop {
            let page = Mapping::huge(HUGE_PAGES)?;
            page.write(0, 0, 1);
            if pagemap::huge_pages(page.all())? == 0 {
                return Ok(Self { _taken: taken });
            }
            taken.push(page);
        }
    }
}

/// Reserves all the huge pages that there are.
fn take_hugetlb() -> Result<Vec<Mapping>> {
    // They go when the mappings go, so this need not be undone.
    const LIMIT: &str = "/proc/sys/vm/nr_overcommit_hugepages";
    fs::write(LIMIT, "1000000").context(LIMIT)?;
    let mut taken = Vec::new();
    // Much at once first, for speed.
    for count in [64, 1] {
        loop {
            match Mapping::hugetlb(count * HUGE_PAGES) {
                Ok(mapping) => taken.push(mapping),
                Err(Errno::ENOMEM) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Ok(taken)
}
