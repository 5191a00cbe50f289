#!/usr/bin/env python3
"""Shows upstream's bugs that the series fixes: a test for each that the unpatched
kernel fails, or that makes it complain, and that the patched one passes.

The unpatched kernel gets a VM for each test that crashes or hangs it. Prints a table
and fails when a test does not do what it should. Also a part of compare.py.
"""

import argparse
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass

import dax
import hmm_tests
import selftests
import vm
from hmm_tests import Run

RESULTS = vm.BUILD / "results/bugs"
TIMEOUT = 60  # seconds for a VM of one test on the unpatched kernel
ATTEMPTS = 5  # on the unpatched kernel: some bugs are races
# A crash ends the VM at once, and hangs nothing.
OPTIONS = ["oops=panic", "panic=-1"]
DRIVER = "test_hmm"  # the only one that the unpatched kernel has


@dataclass(frozen=True)
class Bug:
    """A test, and the subject of the patch without which it fails."""

    suite: str  # a function's name below
    type: str  # of the memory, or what dax.py calls a driver
    test: str
    patch: str
    # The unpatched kernel fails the test and does not complain, so it can run others.
    harmless: bool = False


def hmm(memory_type, test, patch, **options):
    fixture, name = test.split(".")
    test = f"{fixture}.{fixture}_device_{memory_type}.{name}"
    return Bug("hmm-tests", memory_type, test, patch, **options)


def own(memory_type, test, patch, **options):
    return Bug("hmm-selftests", memory_type, f"defects.{test}", patch, **options)


def device_dax(test, patch):
    return Bug("dax", "dax_hmem", test, patch)


BUGS = [
    hmm("coherent", "hmm2.migrate_foreign",
        "mm/migrate_device: collect only the ZONE_DEVICE pages asked for"),
    hmm("coherent", "hmm.migrate_extra_reference",
        "mm/migrate_device: stop allowing ZONE_DEVICE folios an extra reference"),
    hmm("coherent", "hmm.migrate_exhausted",
        "mm/migrate_device: take a partly filled huge hole as small holes"),
    hmm("private", "hmm.migrate_fork_huge",
        "mm/migrate_device: split all huge mappings of a folio that is split"),
    hmm("private", "hmm.migrate_huge_fault_small",
        "mm/migrate_device: split the huge page that the CPU faults on"),
    hmm("private", "hmm.secret_memory",
        "mm/hmm: do not give secret memory to devices"),
    hmm("coherent", "hmm.hwpoison",
        "mm/memory-failure: handle errors in coherent memory"),
    hmm("private", "hmm.migrate_mlocked",
        "mm/mlock: leave ZONE_DEVICE folios out when they are mapped, too"),
    hmm("private", "hmm.migrate_fork_huge_soft_dirty",
        "mm/huge_memory: do not take a soft-dirty entry for a writable one"),
    hmm("private", "hmm.migrate_huge_read_within",
        "mm/hmm: return the right page of a huge device-private one"),
    own("coherent", "d10_allocation_of_huge_page_fails",
        "lib/test_hmm: check the allocations in the fallback to small pages"),
    own("coherent", "d08_release_of_referenced_page",
        "lib/test_hmm: remove device memory only when nobody uses it"),
    own("coherent", "d07_release_while_migrating",
        "lib/test_hmm: remove device memory only when nobody uses it"),
    own("private", "d06_close_while_released",
        "lib/test_hmm: remove device memory only when nobody uses it"),
    own("private", "d09_close_without_free_huge_page",
        "lib/test_hmm: remove device memory only when nobody uses it"),
    own("coherent", "d20_memory_of_others",
        "lib/test_hmm: claim the special-purpose memory", harmless=True),
    own("coherent", "d16_huge_page_to_cpu_accessible",
        "lib/test_hmm: hand out only small pages of coherent memory", harmless=True),
    own("private", "d01_stale_backing_page",
        "lib/test_hmm: map the backing memory of device-private pages"),
    own("private", "d11_write_after_fork",
        "lib/test_hmm: let the device write to shared device-private pages"),
    own("private", "d03_split_backing_folio",
        "lib/test_hmm: split all of the memory behind a device-private folio"),
    own("private", "d14_neighbour_invalidated",
        "lib/test_hmm: invalidate no page after the range", harmless=True),
    own("private", "d02_other_mirrors_not_told",
        "lib/test_hmm: invalidate mirrors when their device migrates memory", harmless=True),
    own("private", "d15_write_not_dirty",
        "lib/test_hmm: mark what the device writes to as dirty", harmless=True),
    own("private", "d18_bad_arguments_accepted",
        "lib/test_hmm: check sizes for overflow, and flags", harmless=True),
    own("private", "d04_allocation_fails_midway",
        "lib/test_hmm: undo what a failed allocation leaves half done"),
    own("private", "d05_closed_file_used",
        "lib/test_hmm: keep a closed file's data as long as its pages"),
    own("coherent", "d12_discard_while_migrating",
        "lib/test_hmm: map migrated memory like any other"),
    own("coherent", "d13_write_while_migrating",
        "lib/test_hmm: map migrated memory like any other"),
    own("private", "d21_wrong_counts",
        "lib/test_hmm: count pages that are migrated to system memory", harmless=True),
    own("private", "d19_unlimited_size",
        "lib/test_hmm: limit the size of a mapping of the device"),
    own("private", "d17_split_folios_used_up",
        "lib/test_hmm: hand out freed pages of any size", harmless=True),
    own("private", "d22_close_evicts_others",
        "lib/test_hmm: evict only what was allocated for the file being closed",
        harmless=True),
    device_dax("bugs.mmap_unbound", "device-dax: refuse to open a device without a driver"),
    device_dax("bugs.rebind_open", "device-dax: give each binding its own cdev"),
    device_dax("bugs.unbind_pinned",
               "device-dax: wait for pages in use before freeing the memmap"),
    device_dax("bugs.unbind_region_pinned",
               "device-dax: wait for pages in use before freeing the memmap"),
    device_dax(dax.VFIO_TEST, "vfio/type1: unpin the pages of device-dax"),
]


def run_vm(kernel, name, bugs, timeout):
    """Boots a VM for the tests of bugs of one suite and memory type."""
    suite, memory_type = bugs[0].suite, bugs[0].type
    tests = list(dict.fromkeys(bug.test for bug in bugs))
    folder = RESULTS / name
    if suite == "hmm-tests":
        run = Run(kernel, "series", DRIVER, memory_type)
        hmm_tests.run_tests(run, folder, only=tests, timeout=timeout, options=OPTIONS)
    elif suite == "hmm-selftests":
        run = Run(kernel, "selftests", DRIVER, memory_type)
        selftests.run_tests(run, folder, tests, timeout, OPTIONS)
    else:
        run = Run(kernel, "dax", memory_type, dax.DRIVERS[memory_type])
        dax.run_tests(run, tests, folder)
    return {bug: result(run, bug.test) for bug in bugs}


def result(run, test):
    """What can be said of a test of a VM."""
    results = {each["name"]: each["result"] for each in run.tests}
    outcome = results.get(test, "not run")
    if outcome == "not run" and run.problem:
        outcome = "hang" if "hung" in run.problem else "crash"
    if outcome in ("pass", "fail") and run.splats:
        outcome = "splat"
    return outcome


def run_kernel(kernel, bugs, timeout, shares_vm):
    """The results of all tests on a kernel."""
    vms = defaultdict(list)
    for bug in bugs:
        own_vm = () if shares_vm(bug) else (bug.test,)
        vms["-".join((bug.suite, bug.type, *own_vm))].append(bug)
    done = vm.in_parallel(lambda name: run_vm(kernel, name, vms[name], timeout), vms)
    return {bug: outcome for of_vm in done for bug, outcome in of_vm.items()}


def series():
    """Subjects of all patches."""
    command = ["git", "-C", vm.BUILD / "linux", "log", "--format=%s", "base..series"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def run(bugs=None):
    """Runs all and prints the table. Returns whether each test did what it should."""
    bugs = bugs or BUGS
    unknown = {bug.patch for bug in bugs} - series()
    if unknown:
        raise vm.VmError(f"there are no such patches: {', '.join(sorted(unknown))}")
    hmm_tests.build_tests("series")
    selftests.build()
    base = dict.fromkeys(bugs, "pass")
    for _ in range(ATTEMPTS):
        hidden = [bug for bug in bugs if base[bug] == "pass"]
        base |= run_kernel("base", hidden, TIMEOUT, shares_vm=lambda bug: bug.harmless)
    patched = run_kernel("series", bugs, selftests.TIMEOUT, shares_vm=lambda _: True)

    rows = [(bug.test, bug.type, base[bug], patched[bug], bug.patch) for bug in bugs]
    headings = ("bug", "type", "base", "patched", "fixed by")
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    ok = True
    for row in [headings, *rows]:
        print(*(cell.ljust(width) for cell, width in zip(row, widths)), sep="  ")
    for bug in bugs:
        if base[bug] not in ("fail", "splat", "crash", "hang"):
            print(f"error: {bug.test}: does not show the bug, {base[bug]} on the unpatched kernel")
            ok = False
        elif bug.harmless and base[bug] != "fail":
            print(f"error: {bug.test}: {base[bug]} on the unpatched kernel, so not harmless")
            ok = False
        if patched[bug] != "pass":
            print(f"error: {bug.test}: {patched[bug]} on the patched kernel")
            ok = False
    return ok


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("filter", nargs="*", help="a part of the tests' names")
    args = parser.parse_args()
    bugs = [bug for bug in BUGS if not args.filter or any(part in bug.test for part in args.filter)]
    if not bugs:
        raise vm.VmError("no test matches")
    return 0 if run(bugs) else 1


if __name__ == "__main__":
    vm.exit_with(main)
