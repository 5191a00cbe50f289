// SPDX-License-Identifier: GPL-2.0
//! What the drivers' operations cost, measured by `hmm-bench`.

mod buffer;
mod meter;
mod operations;
mod smaps;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::unistd::Pid;

use crate::device::Devices;
use crate::failure::{Context, Failure, Result};
use crate::pages::HUGE_PAGES;
use crate::uapi::MemoryType;
use meter::Meter;
use operations::Bench;

/// Measures what the operations of the driver test_hmm or test_hmm_rs cost, whichever is
/// loaded. Writes a JSON object a line to standard output, with the time that each round
/// took, in nanoseconds: instructions in a VM whose clock counts them.
///
/// Exit status: 0 if all was measured, 1 otherwise.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Memory type, whose devices must exist
    #[arg(long = "type", value_name = "TYPE", value_enum)]
    memory_type: MemoryType,

    /// Sizes of the memory that is migrated and accessed, in pages; multiples of 512
    #[arg(long, value_name = "PAGES", value_delimiter = ',', value_parser = whole_huge_pages)]
    pages: Vec<usize>,

    /// How many files are open, each with memory on the device
    #[arg(long, value_name = "FILES", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    files: Vec<u16>,

    /// How many chunks of device memory there are, all but one full of pages of another file;
    /// private memory only
    #[arg(long, value_name = "CHUNKS", value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(1..))]
    chunks: Vec<u16>,

    /// How many threads migrate small pages at once, on one file and on a file each
    #[arg(long, value_name = "THREADS", value_delimiter = ',', conflicts_with_all = ["idle", "pause"],
          value_parser = clap::value_parser!(u16).range(1..))]
    threads: Vec<u16>,

    /// How often to measure all of it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,

    /// A process that runs when no other has anything to do: its time is not counted
    #[arg(long, value_name = "PID")]
    idle: Option<i32>,

    /// Before and after each operation, print "begin" or "end", the operation, the size of the
    /// pages in bytes, how many and of how many files, and wait for a line; right before and right
    /// after it, call getppid, which nothing else does
    #[arg(long)]
    pause: bool,

    /// Folder of the device nodes
    #[arg(long, value_name = "FOLDER", default_value = "/dev")]
    device_dir: PathBuf,
}

fn whole_huge_pages(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(pages) if pages > 0 && pages % HUGE_PAGES == 0 => Ok(pages),
        Ok(_) => Err(format!("must be a multiple of {HUGE_PAGES}")),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result {
    let memory_type = options.memory_type;
    let devices = Devices::find(&options.device_dir).map_err(Failure::Failed)?;
    let Some([node, _]) = devices.nodes(memory_type) else {
        crate::fail!("no device nodes of type {memory_type}");
    };
    if !options.chunks.is_empty() && memory_type.is_cpu_accessible() {
        crate::fail!("devices of type {memory_type} have one chunk only");
    }
    // The program is not to be read from its file while something is measured.
    mlockall(MlockAllFlags::MCL_CURRENT).context("mlockall")?;
    let mut meter = options
        .idle
        .map_or_else(|| Ok(Meter::default()), |pid| Meter::without(Pid::from_raw(pid)))?;
    meter.pauses = options.pause;
    let mut bench = Bench { memory_type, node, meter };
    let sizes = bench.page_sizes()?;
    for _ in 0..options.rounds {
        for &size in &sizes {
            for &pages in &options.pages {
                bench.one_file(size, pages)?;
            }
            for &files in &options.files {
                bench.several_files(size, files.into())?;
            }
        }
        for chunks in options.chunks.iter().copied().map(usize::from) {
            bench.several_chunks(&sizes, chunks)?;
        }
        for threads in options.threads.iter().copied().map(usize::from) {
            bench.several_threads(threads, 1)?;
            if threads > 1 {
                bench.several_threads(threads, threads)?;
            }
        }
    }
    bench.meter.print(memory_type, devices.driver);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn sizes() {
        assert_eq!(whole_huge_pages("1024"), Ok(1024));
        for bad in ["0", "513", "-512", "x"] {
            assert!(whole_huge_pages(bad).is_err(), "{bad}");
        }
    }
}
