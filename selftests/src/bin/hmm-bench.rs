// SPDX-License-Identifier: GPL-2.0
//! `hmm-bench`: see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hmm_selftests::bench::main()
}
