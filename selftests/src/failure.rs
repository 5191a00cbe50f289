// SPDX-License-Identifier: GPL-2.0
//! How a test ends other than well, and the assertions that make it so.
//!
//! Assertions return an error rather than panic, so that mappings, devices and
//! child processes are cleaned up on the way.

use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::panic::Location;

use nix::errno::Errno;

/// Why a test ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Something was not as it must be: what, and where in the tests.
    Failed(String),
    /// The test cannot run here: why.
    Skipped(String),
}

/// Result of a test, or of a part of it.
pub type Result<T = (), E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// A failure at the caller's place in the source.
    #[track_caller]
    pub fn failed(message: impl Display) -> Self {
        let at = Location::caller();
        Self::Failed(format!("{}:{}: {message}", at.file(), at.line()))
    }

    /// The same with what was being done in front.
    fn within(self, context: impl Display) -> Self {
        match self {
            Self::Failed(message) => Self::Failed(format!("{context}: {message}")),
            skipped => skipped,
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(message) => f.write_str(message),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

// `Failure` is no `Error` itself, or this would overlap with `From<T> for T`.
impl<E: Error> From<E> for Failure {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::failed(error)
    }
}

/// Skips the test; only for what the machine lacks, never for what fails.
pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Failure::Skipped(reason.into()))
}

/// Adds to an error what was being done.
pub trait Context<T> {
    /// Puts `context` in front of the error's text.
    #[track_caller]
    fn context(self, context: impl Display) -> Result<T>;
}

impl<T, E: Into<Failure>> Context<T> for std::result::Result<T, E> {
    #[track_caller]
    fn context(self, context: impl Display) -> Result<T> {
        match self {
            Ok(value) => Ok(value),
            Err(error) => Err(error.into().within(context)),
        }
    }
}

/// Compares for [`ensure_eq!`](crate::ensure_eq).
#[track_caller]
pub fn equal<A: PartialEq<B> + Debug, B: Debug>(
    left: &A,
    right: &B,
    expression: &str,
    note: &str,
) -> Result {
    if left == right {
        return Ok(());
    }
    let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
    Err(Failure::failed(format!("{expression} is {left:?}, expected {right:?}{note}")))
}

/// Compares for [`ensure_errno!`](crate::ensure_errno).
#[track_caller]
pub fn refused<T: Debug>(
    result: std::result::Result<T, Errno>,
    errno: Errno,
    expression: &str,
) -> Result {
    match result {
        Err(found) if found == errno => Ok(()),
        Err(found) => Err(Failure::failed(format!("{expression}: {found}, expected {errno}"))),
        Ok(value) => {
            Err(Failure::failed(format!("{expression} succeeded ({value:?}), expected {errno}")))
        }
    }
}

/// Ends the test as failed, with a message like `format!`.
#[macro_export]
macro_rules! fail {
    ($($message:tt)+) => {
        return Err($crate::failure::Failure::failed(format!($($message)+)))
    };
}

/// Fails the test unless the condition holds; the message is optional.
#[macro_export]
macro_rules! ensure {
    ($condition:expr $(,)?) => {
        if !$condition {
            $crate::fail!("not true: {}", stringify!($condition));
        }
    };
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            $crate::fail!("not true: {}: {}", stringify!($condition), format!($($message)+));
        }
    };
}

/// Fails the test unless the first value equals the second, the expected one.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        $crate::failure::equal(&$left, &$right, stringify!($left), "")?
    };
    ($left:expr, $right:expr, $($message:tt)+) => {
        $crate::failure::equal(&$left, &$right, stringify!($left), &format!($($message)+))?
    };
}

/// Fails the test unless the `Result<_, Errno>` is this error.
#[macro_export]
macro_rules! ensure_errno {
    ($result:expr, $errno:expr $(,)?) => {
        $crate::failure::refused($result, $errno, stringify!($result))?
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(result: Result) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn names_values_and_place() {
        let line = line!() + 2;
        let check = |value: u32| -> Result {
            ensure_eq!(value, 4, "page {}", 7);
            Ok(())
        };
        assert_eq!(check(4), Ok(()));
        assert_eq!(text(check(5)), format!("{}:{line}: value is 5, expected 4 (page 7)", file!()));
    }

    #[test]
    fn question_mark_names_its_place() {
        let line = line!() + 2;
        let check = || -> Result {
            Err(Errno::EBUSY)?;
            Ok(())
        };
        assert_eq!(text(check()), format!("{}:{line}: {}", file!(), Errno::EBUSY));
    }

    #[test]
    fn errno_must_match() {
        let check = |result: std::result::Result<u8, Errno>| -> Result {
            ensure_errno!(result, Errno::EFAULT);
            Ok(())
        };
        assert_eq!(check(Err(Errno::EFAULT)), Ok(()));
        assert!(text(check(Err(Errno::EINVAL))).contains("EINVAL"));
        assert!(text(check(Ok(3))).contains("succeeded (3)"));
    }

    #[test]
    fn context_comes_first_and_keeps_skips() {
        let failed: Result = Err(Errno::EIO).context("migrating");
        assert!(text(failed).starts_with("migrating: "));
        let skipped: Result = skip("no gup_test");
        assert_eq!(skipped.context("pinning"), skip("no gup_test"));
    }
}
