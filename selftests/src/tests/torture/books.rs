// SPDX-License-Identifier: GPL-2.0
//! What the system has at the beginning, and must have at the end.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::device::Device;
use crate::failure::{Context as _, Result};
use crate::memory::Mapping;
use crate::pages::{HUGE_PAGES, PAGE_SIZE};
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

/// What may explain that less is available, though nothing is lost, in KB: what the page
/// allocator keeps in reserve, for which settings of huge pages are a reason.
const RESERVE: &str = "/proc/sys/vm/min_free_kbytes";

/// What there is.
#[derive(Debug)]
pub struct Books {
    /// KB, by the names in /proc/meminfo.
    memory: BTreeMap<String, i64>,
    /// KB
    reserve: i64,
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
        let reserve = fs::read_to_string(RESERVE).context(RESERVE)?.trim().parse()?;
        let mut memory = meminfo()?;
        memory.insert(ON_LISTS.into(), pages_on_lists()? * (PAGE_SIZE >> 10) as i64);
        Ok(Self { memory, reserve, free })
    }

    /// Fails unless all is there again, but for so many pages that were poisoned.
    pub fn balance(&self, ctx: &Context, poisoned: u64) -> Result {
        let slack = SLACK + if has_kasan() { SLACK_OF_KASAN } else { 0 };
        let end = Instant::now() + PATIENCE;
        loop {
            let now = Self::open(ctx)?;
            println!("{}", self.changes(&now));
            for (now, first) in now.free.iter().zip(&self.free) {
                let lost = first.saturating_sub(*now);
                // One bad page takes the whole huge page with it.
                ensure!(
                    lost <= poisoned as usize * HUGE_PAGES,
                    "{lost} pages of a device are lost"
                );
            }
            let lost = self.available()? - now.available()?;
            let grown = now.of("SUnreclaim")? - self.of("SUnreclaim")?;
            if lost <= slack && grown <= slack {
                return Ok(());
            }
            if Instant::now() > end {
                fail!("{lost} KB less are available, slab caches have {grown} KB more");
            }
            thread::sleep(Duration::from_secs(2));
        }
    }

    /// KB, those on the lists of each CPU included, which do not count as free.
    fn available(&self) -> Result<i64> {
        Ok(self.of("MemAvailable")? + self.of(ON_LISTS)?)
    }

    /// KB
    fn of(&self, name: &str) -> Result<i64> {
        match self.memory.get(name) {
            Some(value) => Ok(*value),
            None => fail!("no {name} in {MEMINFO}"),
        }
    }

    /// For people: what has become more or less by over a MB.
    fn changes(&self, now: &Self) -> String {
        let of_memory = self.memory.iter().filter_map(|(name, before)| {
            let change = now.memory.get(name)? - before;
            (change.abs() > 1 << 10).then(|| format!("{name} {change:+} KB"))
        });
        let reserve = format!("kept in reserve {} KB, at first {}", now.reserve, self.reserve);
        let free = format!("pages of devices {:?}, at first {:?}", now.free, self.free);
        of_memory.chain([reserve, free]).collect::<Vec<_>>().join("; ")
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

/// Free pages that each CPU has for itself: there can be tens of MB.
fn pages_on_lists() -> Result<i64> {
    let text = fs::read_to_string(ZONES).context(ZONES)?;
    let counts = text.lines().filter_map(|line| line.trim_start().strip_prefix("count:"));
    let counts = counts.map(|count| count.trim().parse::<i64>());
    counts.sum::<Result<i64, _>>().context(ZONES)
}

const ON_LISTS: &str = "free on lists of CPUs";
const ZONES: &str = "/proc/zoneinfo";
const MEMINFO: &str = "/proc/meminfo";

/// KB, by name; without numbers that are not in KB.
fn meminfo() -> Result<BTreeMap<String, i64>> {
    let text = fs::read_to_string(MEMINFO).context(MEMINFO)?;
    let number = |line: &str| {
        let (name, value) = line.strip_suffix(" kB")?.split_once(':')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    Ok(text.lines().filter_map(number).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_meminfo() {
        let memory = meminfo().unwrap();
        assert!(memory["MemTotal"] > memory["MemFree"]);
        assert!(!memory.contains_key("Mem"));
        assert!(pages_on_lists().unwrap() >= 0);
    }

    #[test]
    fn changes_are_named() {
        let books = |available, reserve| Books {
            memory: [("MemAvailable".into(), available), (ON_LISTS.into(), 7)].into(),
            reserve,
            free: vec![512],
        };
        assert_eq!(
            books(9000, 100).changes(&books(5000, 200)),
            "MemAvailable -4000 KB; kept in reserve 200 KB, at first 100; \
             pages of devices [512], at first [512]"
        );
        assert_eq!(books(9000, 100).available(), Ok(9007));
        assert!(books(1, 1).of("SUnreclaim").is_err());
    }
}
