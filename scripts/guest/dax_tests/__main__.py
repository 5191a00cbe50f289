"""Tests of device-dax and fs-dax, run in the VM by dax.py; prints KTAP.

    python3 -B scripts/guest/dax_tests dax_hmem|dax_pmem|ext4|xfs [part of a test's name...]

dax_hmem is device-dax on special-purpose memory, dax_pmem on persistent memory;
ext4 and xfs are mounted with -o dax=always on persistent memory. It all overwrites
/dev/pmem0 and /dev/pmem1.
"""

import os
import sys

import runner
from checks import run


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in runner.DRIVERS:
        print(__doc__, file=sys.stderr)
        return 2
    if not os.path.ismount("/sys/kernel/debug"):
        run("mount", "-t", "debugfs", "none", "/sys/kernel/debug")
    return 0 if runner.run_all(sys.argv[1], sys.argv[2:]) else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # Without waiting for children, one of which may hang.
    os._exit(status)
