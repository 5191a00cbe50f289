// SPDX-License-Identifier: GPL-2.0
//! What reclaim finds that it can do nothing with; in the VM of torture, as it takes swap space.

use std::fs;

use crate::cgroup::Cgroup;
use crate::ensure;
use crate::failure::{Context as _, Result, skip};
use crate::memory::Mapping;
use crate::pagemap;
use crate::process::Child;
use crate::settings::LargeFolios;
use crate::tests::Context;

/// A device has a page of each large folio for itself when all are to be swapped out.
pub fn reclaim_exclusive(ctx: &mut Context) -> Result {
    const FOLIO: usize = LargeFolios::PAGES_OF_64_KB;
    const COUNT: usize = 64 * FOLIO;

    // There is a line for each, after the first.
    if fs::read_to_string("/proc/swaps")?.lines().count() < 2 {
        return skip("no swap space");
    }
    let _folios = LargeFolios::of_pages(FOLIO)?;
    let cgroup = Cgroup::new("reclaim")?;
    let ctx = &*ctx;
    let child = Child::fork(|| {
        cgroup.enter()?;
        let device = ctx.device(0)?;
        let mapping = Mapping::anonymous(COUNT)?;
        mapping.fill(0..COUNT, 1);
        ensure!(pagemap::tail_pages(mapping.all())? > 0, "there are large folios");
        for page in (0..COUNT).step_by(FOLIO) {
            device.exclusive(mapping.pages(page..page + 1)).context("exclusive")?;
        }
        // Fails if there is less than that, which there is.
        let _ = cgroup.write("memory.reclaim", "1G");
        mapping.check(0..COUNT, 1)?;
        Ok(())
    })?;
    child.join()
}
