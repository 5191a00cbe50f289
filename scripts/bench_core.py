#!/usr/bin/env python3
"""Measures what the series adds to core mm: the driver test_hmm of v7.3, with private
memory, on the unpatched and on the patched kernel, by instructions.

Prints a table, and says which operations cost over 1 % more.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from harness import bench, environment, guest, tables, target
from harness.errors import MachineError
from harness.paths import BUILD, LINUX, SCRIPTS
from harness.results import Outcome, Report, Run, Test

TARGET = "bench-core"
FOLDER = BUILD / "unpatched-driver"
SOURCES = ("lib/test_hmm.c", "lib/test_hmm_uapi.h")
MODULE = FOLDER / "test_hmm.ko"
MEMORY_TYPE = "private"
ROUNDS = 2 * bench.ROUNDS[bench.INSTRUCTIONS]
NOTEWORTHY = 0.01
TIMEOUT = 1800  # seconds


def build_module() -> None:
    """Compiles v7.3's driver for the patched kernel."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for source in SOURCES:
        text = environment.git(LINUX, "show", f"base:{source}")
        if text is None:
            raise MachineError(f"no {source} in {LINUX}")
        (FOLDER / Path(source).name).write_text(f"{text}\n", encoding="utf-8")
    (FOLDER / "Kbuild").write_text("obj-m := test_hmm.o\n", encoding="utf-8")
    make = '. "$1"; kernel_make series M="$2" modules'
    command = ["bash", "-c", make, "bash", str(SCRIPTS / "lib.sh"), str(FOLDER)]
    log = FOLDER / "log"
    with open(log, "wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise MachineError(f"v7.3's test_hmm does not compile for the patched kernel, see {log}")


def commands(run: Run) -> str:
    """What runs in the VM."""
    measured = guest.with_driver(run, bench.measures(MEMORY_TYPE, True, [bench.PAGES], ROUNDS))
    if run.kernel != "base":
        # In the place of the patched one.
        place = "/lib/modules/$(uname -r)/kernel/lib/test_hmm.ko"
        measured = f"mount --bind {MODULE} {place} || exit\n{measured}"
    return bench.beside_idle([measured], True)


def measure(run: Run, folder: Path) -> dict[bench.Row, float]:
    """Boots a VM, and returns how many instructions each operation takes."""
    print(f"==> {TARGET}: {run.name}", file=sys.stderr)
    result, output = guest.boot(run, commands(run), folder / run.name, TIMEOUT, None, counting=True)
    rows = {row: cost.middle for row, costs in bench.parse(output).items() for cost in costs.values()}
    if not run.problem and (result.status or not rows):
        run.problem = "\n".join([f"status {result.status}:", *output[-5:]])
    return rows


def table(base: dict[bench.Row, float], series: dict[bench.Row, float], run: Run) -> str:
    """Both, a page each; adds a test for each operation to run."""
    text = f"{'instructions a page, by pages of':<40}{'v7.3':>10}{'patched':>10}\n"
    for row, before in base.items():
        name = f"{row.operation} {bench.PAGE_SIZES[row.page_size]}"
        if row not in series:
            run.tests.append(Test(name, Outcome.NOT_RUN, detail=["only on the unpatched kernel"]))
            continue
        now = series[row]
        change = now / before - 1
        pages = row.pages or 1
        text += f"{name:<40}{before / pages:>10.0f}{now / pages:>10.0f}{change:>+10.1%}"
        text += "  more\n" if change > NOTEWORTHY else "\n"
        values = {"base": before, "series": now}
        run.tests.append(Test(name, Outcome.PASS, values=values))
    return text


def main() -> Report:
    argparse.ArgumentParser(description=__doc__).parse_args()
    folder = target.default_folder(TARGET)
    with target.reporting(TARGET, folder) as report:
        build_module()
        base, series = (Run("base", kernel, guest.C_DRIVER, MEMORY_TYPE) for kernel in ("base", "series"))
        report.runs = [base, series]
        comparison = Run("comparison", "series", derived=True)
        text = table(measure(base, folder), measure(series, folder), comparison)
        report.runs.append(comparison)
    tables.save(text, folder)
    tables.print_failures(report.runs)
    return report


if __name__ == "__main__":
    target.exit_with(main)
