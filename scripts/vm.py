#!/usr/bin/env python3
"""Boots a kernel from build/modules in a VM and runs a command in it, or a shell.

The VM's root file system is the host's, read-only; /tmp is its own. The command
sees two regions of special-purpose memory, SPM_ADDR_DEV0 and SPM_ADDR_DEV1 in
its environment. Ends with the command's status.
"""

import argparse
import os

from harness import target, vm
from harness.errors import Exit
from harness.paths import RESULTS, environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="series", choices=("series", "base", "debug"))
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    parser.add_argument("command", nargs="?", default="")
    args = parser.parse_args()
    if not args.command:
        os.execvpe("env", ["env", *vm.vng_command(args.kernel)], environment())
    console_log = RESULTS / "vm/console.log"
    result = vm.run(
        args.kernel, args.command, console_log, args.timeout, lambda _, line: print(line, flush=True)
    )
    if not vm.report(result, console_log) or result.status is None:
        return Exit.FAILED
    return result.status


if __name__ == "__main__":
    target.exit_with(main)
