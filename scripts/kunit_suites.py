#!/usr/bin/env python3
"""Runs KUnit suites in the VM, in one boot: what is built in runs by itself, and
the suites of modules when those are loaded. For another architecture all are built
in, and the kernel's kunit.py boots QEMU.

Prints a table of suites. Fails when a test fails, when a test is skipped for want
of special-purpose memory, when suites do not run at all, or when the kernel
complains.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from harness import kernel_log, ktap, kunit, options, tables, target
from harness.errors import MachineError
from harness.paths import BUILD, LINUX, RESULTS, environment
from harness.results import Outcome, Report, Run

TARGET = "kunit"
ARCH_TIMEOUT = 1500  # seconds, with huge pages of 512 MB


@dataclass(frozen=True)
class Machine:
    """What QEMU is, beside what kunit.py says: the RAM for Linux, and the special-purpose memory after it."""

    ram_start: int
    ram_mb: int
    spm_mb: int

    def arguments(self, arch: str) -> list[str]:
        """Of kunit.py."""
        end = self.ram_start + (self.ram_mb << 20)
        if arch == "x86_64":
            kernel = ["nokaslr", f"memmap={self.spm_mb}M%{end:#x}-1+0xefffffff"]
        else:
            kernel = [f"mem={self.ram_mb}M", f"zone_device_kunit.spm_start={end:#x}"]
            kernel += [f"zone_device_kunit.spm_size={self.spm_mb << 20:#x}"]
        found = [f"--kernel_args={argument}" for argument in kernel]
        return [*found, f"--qemu_args=-smp 2 -m {self.ram_mb + self.spm_mb}M"]


# Two devices have two huge pages each, and a test copies one.
MACHINES = {
    ("x86_64", "4k"): Machine(0, 1024, 64),
    ("arm64", "4k"): Machine(1 << 30, 1024, 64),
    ("arm64", "16k"): Machine(1 << 30, 2048, 256),
    ("arm64", "64k"): Machine(1 << 30, 6144, 2048),
}


def boot_arch(run: Run, folder: Path, arch: str, page_size: str) -> None:
    """Boots a kernel of scripts/kunit-kernel by kunit.py, fills in run."""
    machine = MACHINES[arch, page_size]
    command = [str(LINUX / "tools/testing/kunit/kunit.py"), "exec", f"--arch={arch}"]
    command += [f"--build_dir={BUILD / run.kernel}", f"--timeout={ARCH_TIMEOUT}", "--raw_output=all"]
    command += machine.arguments(arch)
    print(f"==> KUnit suites on {arch} with pages of {page_size}", file=sys.stderr)
    console = folder / "console.log"
    begin = time.monotonic()
    with open(console, "wb") as output:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), check=False
        )
    run.seconds = round(time.monotonic() - begin, 1)
    text = console.read_text(errors="replace")
    run.splats = kernel_log.find_splats(text)
    parsed = [ktap.parse(lines) for lines in kunit.documents(text)]
    if not parsed:
        raise MachineError(f"{arch}: no suites have run, see {console}")
    kunit.add_tests(run, parsed, 1)
    if run.splats:
        run.problem = f"the kernel complained {len(run.splats)} times"


def table(run: Run) -> str:
    suites: dict[str, Counter[str]] = {}
    for test in run.tests:
        column = "failed" if test.outcome.bad else "skipped" if test.outcome == Outcome.SKIP else "passed"
        suites.setdefault(test.name.split(".")[0], Counter())[column] += 1
    width = max([*map(len, suites), len("suite")])
    lines = [f"{'suite':{width}}  passed  skipped  failed"]
    for suite, count in suites.items():
        lines.append(f"{suite:{width}}  {count['passed']:6}  {count['skipped']:7}  {count['failed']:6}")
    return "\n".join(lines) + "\n"


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_kernel(parser)
    parser.add_argument("--arch", help="with the kernel of scripts/kunit-kernel, instead of --kernel")
    parser.add_argument("--page-size", default="4k")
    args = parser.parse_args()
    folder = target.default_folder(TARGET, args.kernel)
    kernel = args.kernel
    if args.arch:
        if (args.arch, args.page_size) not in MACHINES:
            known = ", ".join(map(" with ".join, MACHINES))
            parser.error(f"unknown {args.arch} with pages of {args.page_size}, use {known}")
        kernel = f"kunit-{args.arch}-{args.page_size}"
        folder = RESULTS / kernel

    with target.reporting(folder.name, folder) as report:
        run = Run("kunit", kernel)
        report.runs = [run]
        if args.arch:
            boot_arch(run, folder, args.arch, args.page_size)
        else:
            kunit.boot(run, folder)
    tables.conclude(table(run), [run], folder)
    return report


if __name__ == "__main__":
    target.exit_with(main)
