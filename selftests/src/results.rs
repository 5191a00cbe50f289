// SPDX-License-Identifier: GPL-2.0
//! What comes of running tests.

use std::time::Duration;

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All of its assertions hold.
    Passed,
    /// It could not run: why.
    Skipped(String),
    /// It failed, crashed or hung: what happened.
    Failed(String),
}

/// One run of one test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestRun {
    /// `group.test`, with the number of the repetition if there are several.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Lines that explain it.
    pub output: Vec<String>,
    /// How long it took.
    pub duration: Duration,
}

/// All runs with one memory type, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// Name of the memory type.
    pub name: String,
    /// The runs in order; empty if skipped.
    pub runs: Vec<TestRun>,
    /// Why it was skipped as a whole.
    pub skipped: Option<String>,
}

impl Suite {
    /// Whether any run failed.
    pub fn has_failed(&self) -> bool {
        self.runs.iter().any(|run| matches!(run.outcome, Outcome::Failed(_)))
    }
}
