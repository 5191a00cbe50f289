// SPDX-License-Identifier: GPL-2.0
//! Measured times.

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::{Pid, getppid};

use super::buffer::PageSize;
use crate::device::Driver;
use crate::ensure;
use crate::failure::{Context, Result};
use crate::pages::PAGE_SIZE;
use crate::uapi::MemoryType;

/// What an operation is done on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Of all buffers.
    pub page_size: PageSize,
    /// Pages that the operation is for; 0: it is for none.
    pub pages: usize,
    /// Files that are open, each with as many pages on the device.
    pub files: usize,
    /// Chunks of device memory, all but the last one full of pages of one more file.
    pub chunks: usize,
    /// Threads that do it, each with so many pages.
    pub threads: usize,
}

impl Setup {
    /// By one thread with one file, and no more memory on the device.
    pub fn new(page_size: PageSize, pages: usize) -> Self {
        Self { page_size, pages, files: 1, chunks: 1, threads: 1 }
    }
}

/// What was measured of an operation.
#[derive(Debug)]
struct Row {
    operation: &'static str,
    setup: Setup,
    /// Nanoseconds of each round.
    elapsed: Vec<u128>,
}

/// Collects the time that operations take.
#[derive(Debug, Default)]
pub struct Meter {
    rows: Vec<Row>,
    /// Of a process.
    idle: Option<ClockId>,
    /// Whether somebody else looks at each operation.
    pub pauses: bool,
}

impl Meter {
    /// Collects no time in which a process ran that runs when no other has anything to do.
    pub fn without(idle: Pid) -> Result<Self> {
        let idle = clock_getcpuclockid(idle).context("the process that runs when idle")?;
        Ok(Self { idle: Some(idle), ..Self::default() })
    }

    fn idle_time(&self) -> Result<Duration, Errno> {
        self.idle.map_or(Ok(Duration::ZERO), |clock| Ok(clock.now()?.into()))
    }

    /// Says where it is, and waits until whoever looks at the operation is ready.
    fn pause(&self, place: &str, operation: &str, setup: Setup) -> Result {
        if self.pauses {
            let Setup { page_size, pages, files, .. } = setup;
            println!("{place} {operation} {} {pages} {files}", page_size.pages() * PAGE_SIZE);
            ensure!(io::stdin().read_line(&mut String::new())? > 0, "standard input has ended");
        }
        Ok(())
    }

    /// Makes a system call that nothing else makes, for a trace to show where the operation is.
    fn mark(&self) {
        if self.pauses {
            let _ = getppid();
        }
    }

    /// Does an operation and notes how long it takes.
    pub fn measure<T>(
        &mut self,
        operation: &'static str,
        setup: Setup,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.pause("begin", operation, setup)?;
        let idle = self.idle_time()?;
        let start = Instant::now();
        self.mark();
        let value = work().context(operation)?;
        self.mark();
        let elapsed = start.elapsed();
        let elapsed = elapsed.saturating_sub(self.idle_time()? - idle);
        self.pause("end", operation, setup)?;
        self.note(operation, setup, elapsed);
        Ok(value)
    }

    /// Notes how long an operation took.
    pub fn note(&mut self, operation: &'static str, setup: Setup, elapsed: Duration) {
        let elapsed = elapsed.as_nanos();
        match self.rows.iter_mut().find(|row| (row.operation, row.setup) == (operation, setup)) {
            Some(row) => row.elapsed.push(elapsed),
            None => self.rows.push(Row { operation, setup, elapsed: vec![elapsed] }),
        }
    }

    /// Writes a JSON object a row to standard output.
    pub fn print(&self, memory_type: MemoryType, driver: Driver) {
        for Row { operation, setup, elapsed } in &self.rows {
            let Setup { page_size, pages, files, chunks, threads } = setup;
            let page_size = page_size.pages() * PAGE_SIZE;
            println!(
                "{{\"driver\": \"{driver}\", \"memory_type\": \"{memory_type}\", \
                 \"page_size\": {page_size}, \"operation\": \"{operation}\", \
                 \"pages\": {pages}, \"files\": {files}, \"chunks\": {chunks}, \
                 \"threads\": {threads}, \"elapsed\": {elapsed:?}}}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fail;

    #[test]
    fn rounds_of_an_operation_are_one_row() {
        let mut meter = Meter::default();
        let small = Setup::new(PageSize::Small, 1);
        let huge = Setup { page_size: PageSize::Huge, ..small };
        for setup in [small, huge, small] {
            assert_eq!(meter.measure("read", setup, || Ok(7)), Ok(7));
        }
        let rounds: Vec<_> = meter.rows.iter().map(|row| (row.setup, row.elapsed.len())).collect();
        assert_eq!(rounds, [(small, 2), (huge, 1)]);
    }

    #[test]
    fn the_time_of_another_process_is_left_out() {
        let mut meter = Meter::without(Pid::this()).unwrap();
        let setup = Setup::new(PageSize::Small, 1);
        const BUSY: Duration = Duration::from_millis(50);
        let start = Instant::now();
        let before = meter.idle_time().unwrap();
        let idle = meter.idle.unwrap();
        let works = || -> Result {
            while Duration::from(idle.now()?) - before < 2 * BUSY {}
            Ok(())
        };
        meter.measure("read", setup, works).unwrap();
        let left = Duration::from_nanos(u64::try_from(meter.rows[0].elapsed[0]).unwrap());
        assert!(left + BUSY < start.elapsed(), "{left:?}, all of them idle");
    }

    #[test]
    fn a_failure_names_the_operation() {
        let setup = Setup::new(PageSize::Small, 1);
        let fails = || -> Result { fail!("no memory") };
        let failure = Meter::default().measure("read", setup, fails).unwrap_err();
        assert!(failure.to_string().starts_with("read: "), "{failure}");
    }
}
