// SPDX-License-Identifier: GPL-2.0
//! The command line.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::Parser;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};

use crate::device::{Devices, Driver};
use crate::junit;
use crate::kernel_log::KernelLog;
use crate::ktap::Ktap;
use crate::module::Module;
use crate::pages::PAGE_SIZE;
use crate::results::{Outcome, Suite, TestRun};
use crate::runner::{self, Finished};
use crate::selection::{self, Filter, Selected, Selection};
use crate::tests::{Context, GROUPS, defects, random, torture};
use crate::uapi::MemoryType;

/// Exit status when a test failed.
const TESTS_FAILED: u8 = 1;
/// Exit status when tests could not be run; clap's for usage errors, too.
const CANNOT_RUN: u8 = 2;

/// Tests the kernel's drivers test_hmm and test_hmm_rs, one of which must be loaded.
/// Writes KTAP to standard output.
///
/// Exit status: 0 if no test failed, 1 if one did, 2 if they could not be run.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Tests to run: a part of `group.test`, or a glob [default: all; of the group
    /// `defects` only if the driver is test_hmm_rs or the group is named]
    #[arg(value_name = "FILTER")]
    filters: Vec<Filter>,

    /// List the tests instead of running them
    #[arg(long)]
    list: bool,

    /// Memory types, whose devices must exist [default: those that do]
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_enum)]
    types: Vec<MemoryType>,

    /// Groups of tests to run [default: all]
    #[arg(long = "group", value_name = "GROUP", value_delimiter = ',', value_parser = group_names())]
    groups: Vec<String>,

    /// Leave out the tests that match, of those selected otherwise
    #[arg(long, value_name = "FILTER")]
    skip: Vec<Filter>,

    /// Seed of what is random in the tests [default: a random one]
    #[arg(long)]
    seed: Option<u64>,

    /// Run all tests this many times, with consecutive seeds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,

    /// Folder of the device nodes
    #[arg(long, value_name = "FOLDER", default_value = "/dev")]
    device_dir: PathBuf,

    /// Also write a JUnit file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,

    /// Multiply the tests' time limits
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = factor)]
    timeout_factor: f64,

    /// How the driver is loaded, for tests that unload it
    #[arg(long, value_name = "MODULE [PARAMETER]...")]
    module: Option<Module>,

    #[command(flatten)]
    random: random::RandomOptions,

    #[command(flatten)]
    torture: torture::TortureOptions,

    /// Run this one test in this very process
    #[arg(long, hide = true, requires = "seed", requires = "types")]
    run_here: Option<String>,
}

fn group_names() -> Vec<&'static str> {
    GROUPS.iter().map(|group| group.name).collect()
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        Ok(_) => Err("must be positive".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.run_here {
        Some(name) => run_here(&options, name),
        None if options.list => list(&options),
        None => run(&options),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(CANNOT_RUN)
        }
    }
}

impl Options {
    fn selection(&self) -> Selection {
        Selection {
            filters: self.filters.clone(),
            groups: self.groups.clone(),
            skip: self.skip.clone(),
        }
    }

    /// The types asked for, in their own order.
    fn types(&self) -> Vec<MemoryType> {
        let asked = |t: &MemoryType| self.types.is_empty() || self.types.contains(t);
        MemoryType::ALL.iter().copied().filter(asked).collect()
    }
}

fn list(options: &Options) -> Result<u8, String> {
    for selected in options.selection().tests(true) {
        let asked = options.types();
        let types: Vec<_> = selected.test.types.iter().filter(|t| asked.contains(t)).collect();
        if !types.is_empty() {
            let types: Vec<_> = types.iter().map(|t| t.name()).collect();
            println!("{} {}", selected.name(), types.join(","));
        }
    }
    Ok(0)
}

fn run_here(options: &Options, name: &str) -> Result<u8, String> {
    let selected = selection::find(name).ok_or("no such test")?;
    let (&[memory_type], Some(seed)) = (options.types.as_slice(), options.seed) else {
        return Err("needs one type and a seed".into());
    };
    let devices = Devices::find(&options.device_dir)?;
    let nodes = devices.nodes(memory_type).ok_or_else(|| missing(memory_type))?.clone();
    // A test must not outlive the runner, nor leave its memory on a disk.
    set_pdeathsig(Signal::SIGKILL).map_err(|e| e.to_string())?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|e| e.to_string())?;
    let rng = fastrand::Rng::with_seed(seed);
    let mut context = Context {
        memory_type,
        driver: devices.driver,
        nodes,
        all_nodes: devices.all_nodes().cloned().collect(),
        seed,
        module: options.module.clone(),
        rng,
        random: options.random.clone(),
        torture: options.torture.clone(),
    };
    Ok(runner::run_here(selected.test, &mut context))
}

fn missing(memory_type: MemoryType) -> String {
    format!("no device nodes of type {memory_type}")
}

fn run(options: &Options) -> Result<u8, String> {
    if sysconf(SysconfVar::PAGE_SIZE) != Ok(Some(PAGE_SIZE as i64)) {
        return Err(format!("the system's pages are not of {PAGE_SIZE} bytes"));
    }
    let devices = Devices::find(&options.device_dir)?;
    if devices.is_empty() {
        return Err(format!("no device nodes in {}", options.device_dir.display()));
    }
    if let Some(&t) = options.types.iter().find(|&&t| devices.nodes(t).is_none()) {
        return Err(missing(t));
    }
    let with_defects = devices.driver == Driver::Rust;
    let tests = options.selection().tests(with_defects);
    let types = options.types();
    if !tests.iter().any(|s| s.test.types.iter().any(|t| types.contains(t))) {
        return Err("no test matches".into());
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut notes = vec![format!("driver {}, seed {seed}", devices.driver)];
    if options.selection().tests(true).len() > tests.len() {
        notes.push(format!(
            "not run, for they crash this driver's kernel: group {}",
            defects::GROUP
        ));
    }
    let suites = run_suites(options, &devices, &tests, seed, &notes).map_err(|e| e.to_string())?;
    if let Some(path) = &options.junit {
        write_junit(path, &suites)?;
    }
    Ok(if suites.iter().any(Suite::has_failed) { TESTS_FAILED } else { 0 })
}

fn write_junit(path: &Path, suites: &[Suite]) -> Result<(), String> {
    let xml = junit::report(suites).map_err(|e| e.to_string())?;
    std::fs::write(path, xml).map_err(|e| format!("{}: {e}", path.display()))
}

fn run_suites(
    options: &Options,
    devices: &Devices,
    tests: &[Selected],
    seed: u64,
    notes: &[String],
) -> io::Result<Vec<Suite>> {
    let types = options.types();
    let mut ktap = Ktap::new(io::stdout().lock(), types.len(), notes)?;
    let mut log = KernelLog::open();
    let mut suites = Vec::new();
    for memory_type in types {
        let of_type = tests.iter().filter(|s| s.test.types.contains(&memory_type));
        let of_type: Vec<_> = of_type.copied().collect();
        let mut suite = Suite { name: memory_type.name().into(), runs: Vec::new(), skipped: None };
        if devices.nodes(memory_type).is_none() {
            suite.skipped = Some(missing(memory_type));
        } else if of_type.is_empty() {
            suite.skipped = Some("none of the tests selected is for this type".into());
        } else {
            ktap.start_suite(&suite.name, of_type.len() * options.repeat as usize)?;
            for repetition in 0..options.repeat {
                for selected in &of_type {
                    let seed = seed.wrapping_add(repetition);
                    let mut run = run_test(options, selected, memory_type, seed, &mut log)?;
                    if options.repeat > 1 {
                        run.name += &format!(".{}", repetition + 1);
                    }
                    ktap.run(&run)?;
                    suite.runs.push(run);
                }
            }
        }
        ktap.end_suite(&suite)?;
        suites.push(suite);
    }
    Ok(suites)
}

/// Runs a test in a new process of this program.
fn run_test(
    options: &Options,
    selected: &Selected,
    memory_type: MemoryType,
    seed: u64,
    log: &mut Option<KernelLog>,
) -> io::Result<TestRun> {
    let name = selected.name();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--run-here", &name, "--type", memory_type.name()]);
    command.args(["--seed", &seed.to_string()]).arg("--device-dir").arg(&options.device_dir);
    if let Some(module) = &options.module {
        command.args(["--module", &module.to_string()]);
    }
    let (mut factor, mut longer) = (options.timeout_factor, Duration::ZERO);
    if selected.group == random::GROUP {
        command.args(options.random.arguments());
        factor *= options.random.timeout_factor();
    }
    if selected.group == torture::GROUP {
        command.args(options.torture.arguments());
        longer = options.torture.duration();
    }
    let limit = selected.test.timeout.mul_f64(factor) + longer;
    let finished = runner::run_isolated(command, limit, runner::GRACE)?;
    let Finished { mut outcome, mut output, duration } = finished;
    let complaints = log.as_mut().map(KernelLog::complaints).unwrap_or_default();
    if !complaints.is_empty() {
        output.extend(complaints);
        outcome = match outcome {
            Outcome::Failed(reason) => Outcome::Failed(format!("{reason}; the kernel complained")),
            _ => Outcome::Failed("the kernel complained".into()),
        };
    }
    if matches!(outcome, Outcome::Failed(_)) {
        output.push(format!("again: --type {memory_type} --seed {seed} {name}"));
    }
    Ok(TestRun { name, outcome, output, duration })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        Options::try_parse_from(std::iter::once("hmm-selftests").chain(arguments.iter().copied()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn types_in_order_without_repetition() {
        let options = parse(&["--type", "generic,private", "--type", "generic"]).unwrap();
        assert_eq!(options.types(), [MemoryType::Private, MemoryType::Generic]);
        assert_eq!(parse(&[]).unwrap().types(), MemoryType::ALL);
    }

    #[test]
    fn bad_usage() {
        for bad in [
            &["--type", "device"][..],
            &["--group", "none"],
            &["--repeat", "0"],
            &["--timeout-factor", "-1"],
            &["--timeout-factor", "inf"],
            &["a["],
            &["--seed", "x"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
