#!/usr/bin/env python3
"""Everything that CI runs, or with `long` everything. Goes on after a failure and says
at the end what failed; each part is a target of its own. compare covers what
hmm-tests does, for both drivers.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

from harness import options, summary, target
from harness.paths import RESULTS, TOP
from harness.results import Report, Status

PARTS = (
    "check",
    "check-drivers",
    "cargo-test",
    "kunit",
    "compare",
    # The same random operations each time, so that it fails for what has changed.
    "selftests SEED=11",
    "dax DRIVERS=dax_hmem,xfs",
    "sample",
    "clippy",
    "rustdoc",
)
LONG_PARTS = (
    "check BISECT=1 GROUPS_BUILD=1",
    "check-drivers BASE=measure",
    "cargo-test",
    "kunit",
    "compare BASE=measure",
    "selftests",
    "dax BASE=measure",
    "sample",
    "defects",
    # On any machine, what is recorded.
    "bench UNIT=instructions",
    "bench-core",
    "bench-shares",
    "kunit KCONFIG=debug",
    "compare KCONFIG=debug",
    "selftests KCONFIG=debug",
    "sample KCONFIG=debug",
    "torture MINUTES=10",
    "torture MINUTES=5 KCONFIG=kcsan",
    "clippy",
    "rustdoc",
    "kselftest",
    "test-deps",
)


def folder_of(part: str) -> str:
    """The name of the folder where a part leaves its results."""
    name, *settings = part.split()
    kernels = [setting.removeprefix("KCONFIG=") for setting in settings if setting.startswith("KCONFIG=")]
    # The debug kernel is what it takes.
    return "-".join([name, *(kernels or (["debug"] if name == "torture" else []))])


def make(arguments: list[str]) -> int:
    """Runs make, and ends all that it began when this ends before it."""
    with subprocess.Popen(["make", *arguments], cwd=TOP, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise


def run_part(part: str, seed: int) -> Report:
    """Runs a part and returns its results; without any, one that says so."""
    name = folder_of(part)
    print(f"==> make {part}", file=sys.stderr)
    begin = time.monotonic()
    status = make([f"SEED={seed}", *part.split()])
    print(f"==> make {part}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    report = summary.read(RESULTS / name) or Report(
        name, error=f"make {part}: status {status}, and no results"
    )
    if status and report.status == Status.PASSED:
        report.error = f"make {part}: status {status} after all tests passed"
    return report


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_seed(parser)
    parser.add_argument("what", nargs="?", default="", choices=("", "long"), metavar="long")
    args = parser.parse_args()
    if os.environ.get("KCONFIG"):
        parser.error("KCONFIG is not for all parts; `make test-long` has the debug kernel, too")
    name, parts = ("test-long", LONG_PARTS) if args.what else ("test", PARTS)
    folder = target.default_folder(name)
    with target.reporting(name, folder, args.seed) as report:
        for part in parts:
            report.parts.append(run_part(part, args.seed))
            # So that what is known is not lost.
            report.error = "it did not end"
            summary.write(report, folder)
    for status, words in ((Status.FAILED, "failed"), (Status.ERROR, "without a verdict")):
        names = [part.target for part in report.parts if part.status == status]
        if names:
            print(f"error: {words}: {', '.join(names)}", file=sys.stderr)
    if report.status == Status.PASSED:
        print(f"==> all parts passed: {', '.join(parts)}", file=sys.stderr)
    return report


if __name__ == "__main__":
    target.exit_with(main)
