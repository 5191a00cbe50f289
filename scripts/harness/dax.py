"""Runs the tests of device-dax and fs-dax in a VM."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import guest, vm
from harness.paths import SCRIPTS, environment
from harness.results import Run

SOURCE = "dax"
# What has the memory, and the type of memory that this is to memremap_pages().
DRIVERS = {"dax_hmem": "generic", "dax_pmem": "generic", "ext4": "fs_dax", "xfs": "fs_dax"}
TIMEOUT = 600  # seconds for a boot

# Persistent memory emulated by RAM behind the SPM. Without the gap it would be one.
PMEM_SIZE, PMEM_GAP = 384 << 20, 64 << 20
PMEM_START = vm.SPM_START + vm.SPM_DEVICES * vm.SPM_DEVICE_SIZE
PMEM = [f"memmap={PMEM_SIZE:#x}!{start:#x}" for start in (PMEM_START, PMEM_START + PMEM_SIZE + PMEM_GAP)]
# For the one test of VFIO, which is that of a bug.
VFIO_TEST = "bugs.vfio"


def new_run(kernel: str, driver: str) -> Run:
    return Run(SOURCE, kernel, driver, DRIVERS[driver])


def run_tests(run: Run, only: Sequence[str], results: Path) -> None:
    print(f"==> dax: {run.name}", file=sys.stderr)
    # PATH has the tools that are not from Debian.
    python = ["env", f"PATH={environment()['PATH']}", "python3", "-B"]
    command = shlex.join([*python, str(SCRIPTS / "guest/dax_tests"), run.driver, *only])
    # Ends with the first crash, after which a process may hang.
    options = [*PMEM, "oops=panic", "panic=-1"]
    devices = vm.VFIO_DEVICES if VFIO_TEST in only else ()
    guest.run_ktap(run, command, results / run.name, TIMEOUT, options, devices, keep_log=True)
