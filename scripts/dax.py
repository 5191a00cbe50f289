#!/usr/bin/env python3
"""Compares device-dax and fs-dax on the unpatched and on the patched kernel.

Boots each kernel once for each driver, runs dax_tests and prints one table. Fails
when a test fails, when anything is different on the two kernels, down to what the
tests note, and when the patched kernel complains.
"""

import argparse
import shlex
import subprocess
import sys

import hmm_tests
import vm
from hmm_tests import Run

RESULTS = vm.BUILD / "results/dax"
KERNELS = ("base", "series")
# What has the memory, and the type of memory that this is to memremap_pages().
DRIVERS = {"dax_hmem": "generic", "dax_pmem": "generic", "ext4": "fs_dax", "xfs": "fs_dax"}
TIMEOUT = 600  # seconds for a boot

# Persistent memory emulated by RAM behind the SPM. Without the gap it would be one.
PMEM_SIZE, PMEM_GAP = 384 << 20, 64 << 20
PMEM_START = vm.SPM_START + vm.SPM_DEVICES * vm.SPM_DEVICE_SIZE
PMEM = [f"memmap={PMEM_SIZE:#x}!{start:#x}" for start in (PMEM_START, PMEM_START + PMEM_SIZE + PMEM_GAP)]
# For the one test of VFIO, which is that of a bug.
VFIO_TEST, VFIO_DEVICES = "bugs.vfio", ("intel-iommu", "edu")


def tools_path():
    """PATH with the tools that are not from Debian."""
    command = ["bash", "-c", '. "$0"; printf %s "$PATH"', vm.TOP / "scripts/lib.sh"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run_tests(run, only, results=RESULTS):
    print(f"==> dax: {run.name}", file=sys.stderr)
    program = vm.TOP / "scripts/guest/dax_tests"
    python = ["env", f"PATH={tools_path()}", "python3", "-B"]
    command = shlex.join([*python, str(program), run.driver, *only])
    # Ends with the first crash, after which a process may hang.
    options = [*PMEM, "oops=panic", "panic=-1"]
    devices = VFIO_DEVICES if VFIO_TEST in only else ()
    folder = results / run.name
    hmm_tests.run_ktap(run, command, folder, TIMEOUT, options, devices, keep_log=True)


def merge(kernel, runs):
    """The runs of a kernel as one, a column of the table."""
    merged = Run(kernel, "dax", "all", "all")
    for run in runs:
        if run.kernel == kernel:
            merged.tests += run.tests
            merged.splats += run.splats
    return merged


def differences(base, patched):
    """What a test says on one kernel and not on the other, as lines."""
    before, after = ({test["name"]: test for test in run.tests} for run in (base, patched))
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        results = [test["result"] if test else "not run" for test in (old, new)]
        if results[0] != results[1]:
            yield f"{name}: {results[0]} on base, {results[1]} on the patched kernel"
        elif old["detail"] != new["detail"]:
            yield f"{name}: {results[0]} on both, but it says something else"
            yield from (f"    base:    {line}" for line in old["detail"] if line not in new["detail"])
            yield from (f"    patched: {line}" for line in new["detail"] if line not in old["detail"])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drivers", default=",".join(DRIVERS), help="comma-separated")
    parser.add_argument("filter", nargs="*", help="a part of the tests' names")
    args = parser.parse_args()
    drivers = args.drivers.split(",")
    for driver in drivers:
        if driver not in DRIVERS:
            parser.error(f"unknown '{driver}', use {','.join(DRIVERS)}")

    runs = [Run(kernel, "dax", driver, DRIVERS[driver]) for driver in drivers for kernel in KERNELS]
    hmm_tests.write_summary(RESULTS, [], False)
    for run in runs:
        run_tests(run, args.filter)

    columns = base, patched = [merge(kernel, runs) for kernel in KERNELS]
    hmm_tests.save_table(RESULTS, columns, ("kernel",), str)
    hmm_tests.print_failures(runs)
    different = list(differences(base, patched))
    if different:
        print("DIFFERENT:", *different, sep="\n    ")
    ok = all(run.ok() for run in runs) and not different and bool(base.tests)
    hmm_tests.write_summary(RESULTS, runs, ok)
    hmm_tests.print_totals(runs)
    return 0 if ok else 1


if __name__ == "__main__":
    vm.exit_with(main)
