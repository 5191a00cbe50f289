// SPDX-License-Identifier: GPL-2.0
//! What happens to the whole system meanwhile.

use std::fs;

use nix::errno::Errno;
use nix::libc;
use nix::unistd::Pid;

use crate::cgroup::Cgroup;
use crate::failure::{Failure, Result};
use crate::settings::Setting;

/// Something that happens to the system, and perhaps to one of the processes.
pub struct Event {
    /// Its name.
    pub name: &'static str,
    /// How often it is chosen, compared with others.
    pub weight: u32,
    /// Lets it happen. What the system does not have fails.
    pub happen: fn(&mut System, Pid) -> std::io::Result<()>,
}

pub const EVENTS: &[Event] = &[
    Event { name: "system-huge-pages", weight: 8, happen: |system, _| system.set(&HUGE) },
    Event { name: "system-large-folios", weight: 8, happen: |system, _| system.set_folio_size() },
    Event { name: "system-ksm", weight: 4, happen: |system, _| system.set(&[KSM]) },
    Event { name: "system-reclaim", weight: 4, happen: |system, _| system.set(&RECLAIM) },
    Event { name: "system-compact", weight: 2, happen: |_, _| fs::write(COMPACT, "1") },
    Event { name: "system-drop-caches", weight: 1, happen: |_, _| fs::write(DROP_CACHES, "3") },
    Event { name: "system-cpu", weight: 1, happen: |system, _| system.set(&[CPU]) },
    Event { name: "system-migrate", weight: 4, happen: migrate },
    Event { name: "cgroup-enter", weight: 4, happen: |system, pid| system.enter_cgroup(pid) },
    Event { name: "cgroup-limit", weight: 4, happen: |system, _| system.limit_cgroup() },
    Event { name: "cgroup-reclaim", weight: 2, happen: |system, _| system.reclaim_cgroup() },
];

/// A file of the kernel's, and what may be written there.
type Choice = (&'static str, &'static [&'static str]);

const HUGE: [Choice; 4] = [
    ("/sys/kernel/mm/transparent_hugepage/enabled", &["always", "madvise", "never"]),
    ("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled", FOLIOS),
    ("/sys/kernel/mm/transparent_hugepage/defrag", &["always", "defer", "madvise", "never"]),
    ("/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs", &["10", "1000"]),
];
const FOLIOS: &[&str] = &["always", "inherit", "madvise", "never"];
/// KB of the large folios that there are.
const FOLIO_SIZES: &[usize] = &[16, 32, 64, 128, 256, 512, 1024];
const KSM: Choice = ("/sys/kernel/mm/ksm/run", &["0", "1", "1", "2"]);
const RECLAIM: [Choice; 2] = [
    ("/sys/kernel/mm/lru_gen/enabled", &["y", "n"]),
    ("/sys/kernel/mm/numa/demotion_enabled", &["0", "1"]),
];
const COMPACT: &str = "/proc/sys/vm/compact_memory";
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";
const CPU: Choice = ("/sys/devices/system/cpu/cpu1/online", &["0", "1"]);

/// Bytes that a memory cgroup may have: all, or so little that some processes are killed.
const LIMITS: &[usize] = &[1 << 40, 1 << 40, 96 << 20, 64 << 20];
const CGROUPS: usize = 2;

/// The system's settings, as they were when this is dropped.
pub struct System {
    rng: fastrand::Rng,
    cgroups: Vec<Cgroup>,
    _settings: Vec<Setting>,
}

impl System {
    /// Begins with all as it is.
    pub fn new(rng: fastrand::Rng) -> Result<Self> {
        let folios = FOLIO_SIZES.iter().map(|size| folio_setting(*size));
        let names =
            HUGE.iter().chain(&RECLAIM).chain([&KSM, &CPU]).map(|(file, _)| (*file).to_owned());
        let there = names.chain(folios).filter(|file| fs::exists(file).unwrap_or(false));
        let settings = there.map(Setting::keep).collect::<Result<_>>()?;
        let cgroups = (0..CGROUPS).map(|number| Cgroup::new(&format!("torture-{number}")));
        let cgroups = match cgroups.collect::<Result<_>>() {
            Err(Failure::Skipped(_)) => Vec::new(),
            result => result?,
        };
        Ok(Self { rng, cgroups, _settings: settings })
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.rng.usize(0..all.len())]
    }

    fn set(&mut self, choices: &[Choice]) -> std::io::Result<()> {
        let (file, values) = self.pick(choices);
        fs::write(file, self.pick(values))
    }

    fn set_folio_size(&mut self) -> std::io::Result<()> {
        let size = self.pick(FOLIO_SIZES);
        fs::write(folio_setting(size), self.pick(FOLIOS))
    }

    fn cgroup(&mut self) -> std::io::Result<&Cgroup> {
        let number = self.rng.usize(0..CGROUPS);
        self.cgroups.get(number).ok_or(std::io::ErrorKind::NotFound.into())
    }

    fn enter_cgroup(&mut self, pid: Pid) -> std::io::Result<()> {
        self.cgroup()?.write("cgroup.procs", &pid.to_string())
    }

    fn limit_cgroup(&mut self) -> std::io::Result<()> {
        let limit = self.pick(LIMITS).to_string();
        let file = self.pick(&["memory.max", "memory.high"]);
        self.cgroup()?.write(file, &limit)
    }

    fn reclaim_cgroup(&mut self) -> std::io::Result<()> {
        self.cgroup()?.write("memory.reclaim", "16M")
    }
}

fn folio_setting(size: usize) -> String {
    format!("/sys/kernel/mm/transparent_hugepage/hugepages-{size}kB/enabled")
}

/// Moves the memory of a process from one node to another, if there are two.
fn migrate(system: &mut System, pid: Pid) -> std::io::Result<()> {
    let nodes = system.pick(&[[1u64, 2], [2, 1]]);
    let [from, to] = nodes.each_ref().map(std::ptr::from_ref);
    // SAFETY: Both masks have the 64 bits of which only the first two are set.
    let ret = unsafe { libc::syscall(libc::SYS_migrate_pages, pid.as_raw(), 64, from, to) };
    Ok(Errno::result(ret).map(drop)?)
}
