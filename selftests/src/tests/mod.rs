// SPDX-License-Identifier: GPL-2.0
//! The tests: a table in each module, all of them in [`GROUPS`].

use std::path::PathBuf;
use std::time::Duration;

use crate::device::{Device, Driver};
use crate::failure::{Context as _, Result, skip};
use crate::module::Module;
use crate::uapi::MemoryType;

pub mod access;
pub mod defects;
pub mod errors;
pub mod exclusive;
pub mod fork;
pub mod huge;
pub mod ksm;
pub mod large;
pub mod lifetime;
pub mod memcg;
pub mod migrate;
pub mod parameters;
pub mod pinned;
pub mod pinners;
pub mod processes;
pub mod random;
pub mod snapshot;
mod support;
pub mod torture;
pub mod userfault;

/// All groups, in the order in which they run.
pub const GROUPS: &[Group] = &[
    Group { name: "access", tests: access::TESTS },
    Group { name: "migrate", tests: migrate::TESTS },
    Group { name: "huge", tests: huge::TESTS },
    Group { name: "large", tests: large::TESTS },
    Group { name: "fork", tests: fork::TESTS },
    Group { name: "exclusive", tests: exclusive::TESTS },
    Group { name: "snapshot", tests: snapshot::TESTS },
    Group { name: "pinned", tests: pinned::TESTS },
    Group { name: "pinners", tests: pinners::TESTS },
    Group { name: "memcg", tests: memcg::TESTS },
    Group { name: "ksm", tests: ksm::TESTS },
    Group { name: "userfault", tests: userfault::TESTS },
    Group { name: "errors", tests: errors::TESTS },
    Group { name: "lifetime", tests: lifetime::TESTS },
    Group { name: "processes", tests: processes::TESTS },
    Group { name: random::GROUP, tests: random::TESTS },
    Group { name: defects::GROUP, tests: defects::TESTS },
    Group { name: "parameters", tests: parameters::TESTS },
    Group { name: torture::GROUP, tests: torture::TESTS },
];

/// Tests of one subject.
#[derive(Debug)]
pub struct Group {
    /// First part of the tests' full names.
    pub name: &'static str,
    /// The tests, in the order in which they run.
    pub tests: &'static [Test],
}

/// A test, which runs in a process of its own, once for each memory type.
#[derive(Debug)]
pub struct Test {
    /// Name within the group.
    pub name: &'static str,
    /// Limit before it is taken for hung.
    pub timeout: Duration,
    /// Memory types that it is for.
    pub types: &'static [MemoryType],
    /// Where it is skipped.
    pub exceptions: &'static [Exception],
    /// The test itself.
    pub run: fn(&mut Context) -> Result,
}

impl Test {
    /// A test for all memory types that takes at most a minute.
    pub const fn new(name: &'static str, run: fn(&mut Context) -> Result) -> Self {
        Self {
            name,
            timeout: Duration::from_secs(60),
            types: MemoryType::ALL,
            exceptions: &[],
            run,
        }
    }

    /// Changes the limit.
    pub const fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// Makes it for these memory types only.
    pub const fn only(mut self, types: &'static [MemoryType]) -> Self {
        self.types = types;
        self
    }

    /// Skips it in some cases.
    pub const fn except(mut self, exceptions: &'static [Exception]) -> Self {
        self.exceptions = exceptions;
        self
    }

    /// Why it is skipped with this driver, if it is.
    pub fn exception(&self, driver: Driver) -> Option<&'static str> {
        let applies = |exception: &&Exception| exception.drivers.contains(&driver);
        self.exceptions.iter().find(applies).map(|exception| exception.reason)
    }
}

/// Drivers with which a test cannot pass, for a reason that is known.
#[derive(Debug)]
pub struct Exception {
    /// With these drivers.
    pub drivers: &'static [Driver],
    /// Why.
    pub reason: &'static str,
}

impl Exception {
    /// With `test_hmm`, patched or not.
    pub const fn c(reason: &'static str) -> Self {
        let drivers = &[Driver::C, Driver::UnpatchedC];
        Self { drivers, reason }
    }

    /// With `test_hmm` of an unpatched kernel.
    pub const fn unpatched(reason: &'static str) -> Self {
        Self { drivers: &[Driver::UnpatchedC], reason }
    }
}

/// A [`Test`] named as its function.
#[macro_export]
macro_rules! test {
    ($function:ident) => {
        $crate::tests::Test::new(stringify!($function), $function)
    };
}

/// What a test gets.
#[derive(Debug)]
pub struct Context {
    /// Type of the devices' memory.
    pub memory_type: MemoryType,
    /// The driver of the devices.
    pub driver: Driver,
    /// The two devices of the type.
    pub nodes: [PathBuf; 2],
    /// All devices that the driver has, of this type and others.
    pub all_nodes: Vec<PathBuf>,
    /// What `rng` starts with; the report of a failure names it.
    pub seed: u64,
    /// How the driver is loaded, if somebody has said it.
    pub module: Option<Module>,
    /// For all that is random in the test.
    pub rng: fastrand::Rng,
    /// What the tests of the group `random` do.
    pub random: random::RandomOptions,
    /// What those of the group `torture` do.
    pub torture: torture::TortureOptions,
}

impl Context {
    /// Opens one of the two devices, number 0 or 1.
    pub fn device(&self, number: usize) -> Result<Device> {
        let node = &self.nodes[number];
        Device::open(node).context(node.display())
    }

    /// How the driver is loaded; skips the test if nobody has said it, who may not want it to be
    /// unloaded.
    pub fn module(&self) -> Result<Module> {
        match &self.module {
            Some(module) => Ok(module.clone()),
            None => skip("no --module says how the driver is loaded"),
        }
    }
}
