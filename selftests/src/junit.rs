// SPDX-License-Identifier: GPL-2.0
//! Results as a JUnit file.

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use crate::results::{Outcome, Suite, TestRun};

/// The XML text.
pub fn report(suites: &[Suite]) -> Result<String, quick_junit::SerializeError> {
    let mut report = Report::new(env!("CARGO_PKG_NAME"));
    report.add_test_suites(suites.iter().map(test_suite));
    report.to_string()
}

fn test_suite(suite: &Suite) -> TestSuite {
    let mut xml = TestSuite::new(&suite.name);
    match &suite.skipped {
        // A suite has no such status.
        Some(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason);
            xml.add_test_case(TestCase::new("all", status));
        }
        None => {
            xml.add_test_cases(suite.runs.iter().map(|run| test_case(&suite.name, run)));
        }
    }
    xml.set_time(suite.runs.iter().map(|run| run.duration).sum());
    xml
}

fn test_case(suite: &str, run: &TestRun) -> TestCase {
    let status = match &run.outcome {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Skipped(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason);
            status
        }
        Outcome::Failed(reason) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(reason);
            status
        }
    };
    let mut case = TestCase::new(&run.name, status);
    case.set_classname(suite).set_time(run.duration);
    if !run.output.is_empty() {
        case.set_system_out(run.output.join("\n"));
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn counts_and_messages() {
        let run = |name: &str, outcome| TestRun {
            name: name.into(),
            outcome,
            output: vec!["a < b".into()],
            duration: Duration::from_millis(1500),
        };
        let suites = [
            Suite {
                name: "generic".into(),
                runs: vec![
                    run("a.good", Outcome::Passed),
                    run("a.bad", Outcome::Failed("x is 1".into())),
                ],
                skipped: None,
            },
            Suite { name: "private".into(), runs: vec![], skipped: Some("no nodes".into()) },
        ];
        let xml = report(&suites).unwrap();
        for part in [
            r#"tests="3""#,
            r#"failures="1""#,
            r#"<failure message="x is 1""#,
            r#"<skipped message="no nodes""#,
            r#"name="a.good" classname="generic" time="1.500""#,
            "a &lt; b",
        ] {
            assert!(xml.contains(part), "{part} in {xml}");
        }
    }
}
