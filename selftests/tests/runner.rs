// SPDX-License-Identifier: GPL-2.0
//! Commands that fail in every way, on any machine.

use std::process::Command;
use std::time::{Duration, Instant};

use hmm_selftests::results::Outcome;
use hmm_selftests::runner::{Finished, run_isolated};

const LIMIT: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(5);

fn run(script: &str, limit: Duration, grace: Duration) -> Finished {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    run_isolated(command, limit, grace).unwrap()
}

fn failed(reason: &str) -> Outcome {
    Outcome::Failed(reason.into())
}

#[test]
fn passes_and_shows_its_output() {
    let finished = run("echo out; echo err >&2", LIMIT, GRACE);
    assert_eq!(finished.outcome, Outcome::Passed);
    assert_eq!(finished.output, ["out", "err"]);
}

#[test]
fn fails() {
    let finished = run("echo page 3; exit 1", LIMIT, GRACE);
    assert_eq!(finished.outcome, failed("failed"));
    assert_eq!(finished.output, ["page 3"]);
    assert_eq!(run("exit 101", LIMIT, GRACE).outcome, failed("panicked"));
    assert_eq!(run("exit 3", LIMIT, GRACE).outcome, failed("ended with exit status 3"));
}

#[test]
fn is_skipped_for_the_reason_in_its_last_line() {
    let finished = run("echo looking; echo no gup_test; exit 4", LIMIT, GRACE);
    assert_eq!(finished.outcome, Outcome::Skipped("no gup_test".into()));
    assert_eq!(finished.output, ["looking"]);
}

#[test]
fn crashes() {
    let finished = run("echo before; kill -SEGV $$", LIMIT, GRACE);
    assert_eq!(finished.outcome, failed("killed by SIGSEGV"));
    assert_eq!(finished.output, ["before"]);
}

#[test]
fn hangs_with_children() {
    let start = Instant::now();
    let finished = run("echo before; sleep 60 & sleep 60", Duration::from_millis(300), GRACE);
    assert_eq!(finished.outcome, failed("hung: no end after 300ms"));
    assert_eq!(finished.output[0], "before");
    let sleeping = finished.output.iter().filter(|line| line.contains("(sleep)")).count();
    assert_eq!(sleeping, 2, "{:?}", finished.output);
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn children_left_behind_are_killed() {
    let finished = run("sleep 60 & echo $!", LIMIT, GRACE);
    assert_eq!(finished.outcome, Outcome::Passed);
    let stat = format!("/proc/{}/stat", finished.output[0]);
    // It closes its output a moment before it is dead; a zombie is.
    let is_dead = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
    let end = Instant::now() + GRACE;
    while !is_dead() {
        assert!(Instant::now() < end, "{stat} lives");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_cannot_be_killed_is_given_up() {
    // Out of reach in a session of its own, which stands for a process in D state.
    let start = Instant::now();
    let finished =
        run("echo before; setsid sleep 4 & sleep 0.2", LIMIT, Duration::from_millis(500));
    assert_eq!(finished.outcome, failed("left a process that cannot be killed"));
    assert_eq!(finished.output[0], "before");
    assert!(start.elapsed() < Duration::from_secs(3));
}
