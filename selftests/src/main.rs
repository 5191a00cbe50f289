// SPDX-License-Identifier: GPL-2.0
//! `hmm-selftests`: see `--help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hmm_selftests::cli::main()
}
