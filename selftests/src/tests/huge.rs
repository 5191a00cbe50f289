// SPDX-License-Identifier: GPL-2.0
//! To come.

use super::Test;

/// The group's tests.
pub const TESTS: &[Test] = &[];
