// SPDX-License-Identifier: GPL-2.0
//! What commands and module parameters accept and say.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::mman::MapFlags;

use super::local_pages;
use crate::device::Driver;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
use crate::tests::Context;
use crate::uapi::{self, Cmd, FLAG_FAIL_ALLOC, MemoryType};
use crate::{ensure, ensure_eq, ensure_errno, iomem, pattern};

/// Numbers of pages that overflow in bytes are refused, and so are unknown flags; no
/// flags are accepted. In C a size of 2^52 + 1 pages was one page.
pub fn d18_bad_arguments_accepted(ctx: &mut Context) -> Result {
    const TOO_MANY: u64 = (1 << 52) + 1;
    const UNKNOWN: u64 = !FLAG_FAIL_ALLOC;
    let device = ctx.device(0)?;
    let mapping = Mapping::small(1)?;
    mapping.fill(0..1, 1);
    let buffer = Mapping::small(1)?;
    buffer.fill(0..1, 2);
    for request in [
        uapi::READ,
        uapi::WRITE,
        uapi::MIGRATE_TO_DEV,
        uapi::MIGRATE_TO_SYS,
        uapi::SNAPSHOT,
        uapi::EXCLUSIVE,
        uapi::CHECK_EXCLUSIVE,
        uapi::RELEASE,
        uapi::READ_UNLOCKED,
    ] {
        let (addr, ptr) = (mapping.all().addr as u64, buffer.all().addr as u64);
        let mut cmd = Cmd { addr, ptr, npages: TOO_MANY, ..Cmd::default() };
        ensure_eq!(device.raw(request, &mut cmd), Err(Errno::EINVAL), "{request:#x}");
    }
    mapping.check(0..1, 1)?;
    buffer.check(0..1, 2)?;

    for flags in [UNKNOWN, UNKNOWN | FLAG_FAIL_ALLOC, 1 << 1] {
        ensure_errno!(device.set_flags(flags), Errno::EINVAL);
    }
    device.set_flags(FLAG_FAIL_ALLOC)?;
    device.set_flags(0)?;
    device.migrate_to_dev(mapping.all())?;
    Ok(())
}

/// Sizes beyond all memory fail by themselves, and harm nobody.
pub fn d19_unlimited_size(ctx: &mut Context) -> Result {
    const LARGE: usize = (16 << 30) / PAGE_SIZE;
    const HUGE: u64 = (4 << 40) / PAGE_SIZE as u64;
    let device = ctx.device(0)?;
    let mapped = Mapping::file(&device, LARGE, MapFlags::MAP_SHARED);
    ensure_errno!(mapped.map(|mapping| mapping.all()), Errno::ENOMEM);
    Mapping::file(&device, 4, MapFlags::MAP_SHARED)?.check(0..4, 0)?;

    // Only the first page exists, of what to read, and of where to.
    let (mapping, buffer) = (Mapping::small(1)?, Mapping::small(1)?);
    let (addr, ptr) = (mapping.all().addr as u64, buffer.all().addr as u64);
    for request in [uapi::READ, uapi::READ_UNLOCKED, uapi::WRITE] {
        let mut cmd = Cmd { addr, ptr, npages: HUGE, ..Cmd::default() };
        ensure_errno!(device.raw(request, &mut cmd), Errno::EFAULT);
    }
    Ok(())
}

/// The driver owns the special-purpose memory that it uses, and nobody can have it use
/// other memory later.
pub fn d20_memory_of_others(ctx: &mut Context) -> Result {
    let module = if ctx.driver == Driver::Rust { "test_hmm_rs" } else { "test_hmm" };
    let parameters = Path::new("/sys/module").join(module).join("parameters");
    let regions = iomem::device_regions()?;
    for node in &ctx.nodes {
        let is_its =
            |region: &iomem::Region| region.name == iomem::DRIVER || node.ends_with(&region.name);
        ensure!(regions.iter().any(is_its), "{}: {regions:x?}", node.display());
    }

    for name in ["spm_addr_dev0", "spm_addr_dev1"] {
        let path = parameters.join(name);
        // Modules in Rust do not show their parameters, so nobody can write them.
        if ctx.driver == Driver::Rust && !path.exists() {
            continue;
        }
        let value = fs::read_to_string(&path).context(path.display())?;
        let mode = fs::metadata(&path)?.permissions().mode();
        ensure_eq!(mode & 0o777, 0o444, "{name}");
        // To root the mode does not say everything.
        let written =
            OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write(b"1"));
        ensure!(written.is_err(), "{name} can be written");
        ensure_eq!(fs::read_to_string(&path)?, value);

        // 0: the driver has looked for memory itself.
        let start: u64 = value.trim().parse()?;
        let is_claimed = regions.iter().any(|region| region.range.start == start);
        ensure!(start == 0 || is_claimed, "{name} is {start:#x}: {regions:x?}");
    }
    Ok(())
}

/// Success means that pages are on the device, and counts are of pages.
pub fn d21_wrong_counts(ctx: &mut Context) -> Result {
    const COUNT: usize = 4;
    let device = ctx.device(0)?;
    let shared = Mapping::shared(COUNT)?;
    shared.fill(0..COUNT, 1);
    // Mapped by the device, but not to be migrated.
    device.read(shared.all())?;
    ensure_errno!(device.migrate_to_dev(shared.all()).map(|data| data.cpages), Errno::ENOENT);
    ensure_eq!(local_pages(ctx, &device, shared.all())?, 0);
    shared.check(0..COUNT, 1)?;

    let huge = Mapping::huge(HUGE_PAGES)?;
    huge.fill(0..HUGE_PAGES, 1);
    ensure_eq!(device.migrate_to_dev(huge.all())?.cpages, HUGE_PAGES as u64);
    if ctx.memory_type == MemoryType::Private {
        ensure_eq!(crate::pagemap::huge_pages(huge.all())?, HUGE_PAGES);
    }
    ensure_eq!(device.migrate_to_sys(huge.all())?.cpages, HUGE_PAGES as u64);
    ensure_eq!(device.migrate_to_sys(huge.all())?.cpages, 0);
    pattern::check(&device.read(huge.all())?.data, 0, 1)?;
    Ok(())
}
