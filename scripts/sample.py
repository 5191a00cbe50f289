#!/usr/bin/env python3
"""Runs the tests of the sample driver rust_svm in a VM that has its device: QEMU's NVMe
controller with a persistent memory region. One boot for each way by which DMA gets to
memory: as it is, by an IOMMU, and by bounce buffers.

Prints a table. Fails when a test fails, or when the kernel complains.
"""

import argparse
import shlex
import sys
from pathlib import Path

from harness import guest, options, tables, target, vm
from harness.paths import SCRIPTS
from harness.results import Report, Run

TARGET = "sample"
TIMEOUT = 600  # seconds for a boot
# What each way takes, of the kernel's options and of QEMU's.
WAYS: dict[str, tuple[list[str], list[str]]] = {
    "direct": ([], []),
    "iommu": ([], ["-device intel-iommu"]),
    "swiotlb": (["swiotlb=force"], []),
}
# More boots, for a test of its own each: how often writes to the disk fail, after the first.
FAILING = {"error": "engine_error", "dead": "dead_engine"}
ONCE = {"error": "on", "dead": "off"}
DISK_SIZE = 1 << 20


def device(disk: Path, once: str | None) -> list[str]:
    """The options that give QEMU such a controller, which copies by way of a disk; one to
    which writes fail from the second on, if it fails, maybe only once."""
    disk.parent.mkdir(parents=True, exist_ok=True)
    with open(disk, "wb") as file:
        file.truncate(DISK_SIZE)
    drive = f"if=none,id=disk,format=raw,cache=unsafe,file.filename={disk}"
    if once:
        drive = (
            f"if=none,id=disk,format=raw,file.driver=blkdebug,file.image.driver=file,file.image.filename={disk},"
            "file.set-state.0.event=write_aio,file.set-state.0.state=1,file.set-state.0.new_state=2,"
            f"file.inject-error.0.event=write_aio,file.inject-error.0.state=2,file.inject-error.0.once={once}"
        )
    return [
        "-object memory-backend-ram,id=pmr,size=128M",
        f"-drive {drive}",
        "-device nvme,serial=rust-svm,drive=disk,pmrdev=pmr",
    ]


def run_tests(run: Run, only: list[str], results: Path) -> None:
    print(f"==> {TARGET}: {run.name}", file=sys.stderr)
    folder = results / run.name
    test = FAILING.get(run.memory_type)
    kernel_options, qemu = WAYS["direct" if test else run.memory_type]
    python = ["env", f"PYTHONPATH={SCRIPTS / 'guest/dax_tests'}", "python3", "-B"]
    command = shlex.join([*python, str(SCRIPTS / "guest/svm_tests.py"), *([test] if test else only)])
    timeout = TIMEOUT * (guest.DEBUG_TIMEOUT_FACTOR if run.kernel == "debug" else 1)
    guest.run_ktap(
        run,
        command,
        folder,
        timeout,
        kernel_options,
        [*qemu, *device(folder / "disk", ONCE.get(run.memory_type))],
    )


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    parser.add_argument("--ways", default=",".join([*WAYS, *FAILING]), help="comma-separated")
    parser.add_argument("filter", nargs="*", help="a part of the tests' names")
    args = parser.parse_args()
    ways = options.choices(parser, args.ways, [*WAYS, *FAILING])
    folder = target.default_folder(TARGET, args.kernel)

    with target.reporting(folder.name, folder) as report:
        report.runs = [Run(TARGET, args.kernel, "rust_svm", way) for way in ways]
        vm.in_parallel(lambda run: run_tests(run, args.filter, folder), report.runs)
    tables.conclude(tables.table(report.runs, ("driver", "memory_type")), report.runs, folder)
    return report


if __name__ == "__main__":
    target.exit_with(main)
