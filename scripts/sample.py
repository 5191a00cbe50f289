#!/usr/bin/env python3
"""Runs the tests of the sample driver rust_svm in a VM that has its device: QEMU's NVMe
controller with a persistent memory region.

Prints a table. Fails when a test fails, or when the kernel complains.
"""

import argparse
import shlex
from pathlib import Path

from harness import guest, options, tables, target
from harness.paths import SCRIPTS
from harness.results import Report, Run

TARGET = "sample"
TIMEOUT = 900  # seconds

DISK_SIZE = 1 << 20


def device(disk: Path) -> list[str]:
    """The options that give QEMU such a controller, which copies by way of a disk."""
    disk.parent.mkdir(parents=True, exist_ok=True)
    with open(disk, "wb") as file:
        file.truncate(DISK_SIZE)
    return [
        "-object memory-backend-ram,id=pmr,size=128M",
        f"-drive if=none,id=disk,format=raw,cache=unsafe,file={disk}",
        "-device nvme,serial=rust-svm,drive=disk,pmrdev=pmr",
    ]


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    parser.add_argument("filter", nargs="*", help="a part of the tests' names")
    args = parser.parse_args()
    folder = target.default_folder(TARGET, args.kernel)

    with target.reporting(folder.name, folder) as report:
        run = Run(TARGET, args.kernel, "rust_svm", "private")
        report.runs = [run]
        python = ["env", f"PYTHONPATH={SCRIPTS / 'guest/dax_tests'}", "python3", "-B"]
        command = shlex.join([*python, str(SCRIPTS / "guest/svm_tests.py"), *args.filter])
        timeout = TIMEOUT * (guest.DEBUG_TIMEOUT_FACTOR if args.kernel == "debug" else 1)
        guest.run_ktap(run, command, folder, timeout, qemu=device(folder / "disk"))
    tables.save(tables.table(report.runs, ("driver", "memory_type")), folder)
    tables.print_failures(report.runs)
    tables.print_totals(report.runs)
    return report


if __name__ == "__main__":
    target.exit_with(main)
