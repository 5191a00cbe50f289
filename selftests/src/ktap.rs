// SPDX-License-Identifier: GPL-2.0
//! Results in KTAP version 1: a test for each memory type, whose subtests are the
//! tests.

use std::io::{self, Write};

use crate::results::{Outcome, Suite, TestRun};

const VERSION: &str = "KTAP version 1";
const INDENT: &str = "    ";

/// Writes results as they come; flushes after each, so that a crash of the machine
/// leaves what is known.
pub struct Ktap<W: Write> {
    out: W,
    suites: usize,
    runs: usize,
}

impl<W: Write> Ktap<W> {
    /// Starts a report on this many memory types, with lines about all of it.
    pub fn new(mut out: W, suites: usize, notes: &[String]) -> io::Result<Self> {
        writeln!(out, "{VERSION}")?;
        for note in notes {
            writeln!(out, "# {note}")?;
        }
        writeln!(out, "1..{suites}")?;
        out.flush()?;
        Ok(Self { out, suites: 0, runs: 0 })
    }

    /// Starts a memory type of which this many results will come.
    pub fn start_suite(&mut self, name: &str, runs: usize) -> io::Result<()> {
        self.runs = 0;
        writeln!(self.out, "{INDENT}{VERSION}")?;
        writeln!(self.out, "{INDENT}# Subtest: {name}")?;
        writeln!(self.out, "{INDENT}1..{runs}")?;
        self.out.flush()
    }

    /// One result within a memory type.
    pub fn run(&mut self, run: &TestRun) -> io::Result<()> {
        self.runs += 1;
        let explanation = match &run.outcome {
            Outcome::Failed(reason) => reason.lines().collect(),
            Outcome::Passed | Outcome::Skipped(_) => Vec::new(),
        };
        for line in run.output.iter().map(String::as_str).chain(explanation) {
            writeln!(self.out, "{INDENT}# {line}")?;
        }
        let result = result(&run.outcome, self.runs, &run.name);
        writeln!(self.out, "{INDENT}{result}")?;
        self.out.flush()
    }

    /// Ends a memory type; one that is skipped needs no start.
    pub fn end_suite(&mut self, suite: &Suite) -> io::Result<()> {
        self.suites += 1;
        let outcome = match &suite.skipped {
            Some(reason) => Outcome::Skipped(reason.clone()),
            None if suite.has_failed() => Outcome::Failed(String::new()),
            None => Outcome::Passed,
        };
        writeln!(self.out, "{}", result(&outcome, self.suites, &suite.name))?;
        self.out.flush()
    }
}

fn result(outcome: &Outcome, number: usize, name: &str) -> String {
    match outcome {
        Outcome::Passed => format!("ok {number} {name}"),
        Outcome::Skipped(reason) => format!("ok {number} {name} # SKIP {reason}"),
        Outcome::Failed(_) => format!("not ok {number} {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn run(name: &str, outcome: Outcome, output: &[&str]) -> TestRun {
        let output = output.iter().map(|line| (*line).into()).collect();
        TestRun { name: name.into(), outcome, output, duration: Duration::ZERO }
    }

    #[test]
    fn nested_report() {
        let runs = vec![
            run("a.good", Outcome::Passed, &["seen"]),
            run("a.bad", Outcome::Failed("x is 1\nexpected 2".into()), &["log"]),
            run("a.not_here", Outcome::Skipped("no gup_test".into()), &[]),
        ];
        let generic = Suite { name: "generic".into(), runs, skipped: None };
        let private =
            Suite { name: "private".into(), runs: Vec::new(), skipped: Some("no nodes".into()) };
        let mut out = Vec::new();
        let mut ktap = Ktap::new(&mut out, 2, &["seed 7".into()]).unwrap();
        ktap.end_suite(&private).unwrap();
        ktap.start_suite("generic", 3).unwrap();
        for run in &generic.runs {
            ktap.run(run).unwrap();
        }
        ktap.end_suite(&generic).unwrap();
        let expected = "\
KTAP version 1
# seed 7
1..2
ok 1 private # SKIP no nodes
    KTAP version 1
    # Subtest: generic
    1..3
    # seen
    ok 1 a.good
    # log
    # x is 1
    # expected 2
    not ok 2 a.bad
    ok 3 a.not_here # SKIP no gup_test
not ok 2 generic
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
