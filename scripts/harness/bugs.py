"""Upstream's bugs that the series fixes: a test for each that the unpatched kernel
fails, or that makes it complain, and that the patched one passes.

The unpatched kernel gets a VM for each test that crashes or hangs it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import base_record, dax, environment, hmm_tests, selftests, target, vm
from harness.base_record import Mode
from harness.errors import MachineError
from harness.guest import C_DRIVER
from harness.paths import LINUX
from harness.results import Outcome, Run, Test

TIMEOUT = 60  # seconds for a VM of one test on the unpatched kernel
ATTEMPTS = 5  # on the unpatched kernel: some bugs are races
# A crash ends the VM at once, and hangs nothing.
OPTIONS = ["oops=panic", "panic=-1"]
DRIVER = C_DRIVER  # the only one that the unpatched kernel has
SUITE = "bugs"  # in the record of base


@dataclass(frozen=True)
class Bug:
    """A test, and the subject of the patch without which it fails."""

    suite: str
    type: str  # of the memory, or what dax calls a driver
    test: str
    patch: str
    # The unpatched kernel fails the test and does not complain, so it can run others.
    harmless: bool = False

    @property
    def name(self) -> str:
        return f"{self.type} {self.test}"


def hmm(memory_type: str, test: str, patch: str, harmless: bool = False) -> Bug:
    fixture, name = test.split(".")
    test = f"{fixture}.{fixture}_device_{memory_type}.{name}"
    return Bug("hmm-tests", memory_type, test, patch, harmless)


def own(memory_type: str, test: str, patch: str, harmless: bool = False) -> Bug:
    return Bug("hmm-selftests", memory_type, test, patch, harmless)


def defect(memory_type: str, test: str, patch: str, harmless: bool = False) -> Bug:
    return own(memory_type, f"defects.{test}", patch, harmless)


def device_dax(test: str, patch: str) -> Bug:
    return Bug("dax", "dax_hmem", test, patch)


def file_system(kind: str, test: str, patch: str) -> Bug:
    return Bug("dax", kind, test, patch, harmless=True)


BUGS = [
    hmm(
        "coherent", "hmm2.migrate_foreign", "mm/migrate_device: collect only the ZONE_DEVICE pages asked for"
    ),
    hmm(
        "coherent",
        "hmm.migrate_extra_reference",
        "mm/migrate_device: stop allowing ZONE_DEVICE folios an extra reference",
    ),
    hmm(
        "coherent",
        "hmm.migrate_exhausted",
        "mm/migrate_device: take a partly filled huge hole as small holes",
    ),
    hmm(
        "private",
        "hmm.migrate_fork_huge",
        "mm/migrate_device: split all huge mappings of a folio that is split",
    ),
    hmm(
        "private",
        "hmm.migrate_huge_fault_small",
        "mm/migrate_device: split the huge page that the CPU faults on",
    ),
    hmm("private", "hmm.secret_memory", "mm/hmm: do not give secret memory to devices"),
    hmm("coherent", "hmm.hwpoison", "mm/memory-failure: handle errors in coherent memory"),
    hmm("private", "hmm.migrate_mlocked", "mm/mlock: leave ZONE_DEVICE folios out when they are mapped, too"),
    hmm(
        "private",
        "hmm.migrate_fork_huge_soft_dirty",
        "mm/huge_memory: do not take a soft-dirty entry for a writable one",
    ),
    hmm(
        "private",
        "hmm.migrate_huge_read_within",
        "mm/hmm: return the right page of a huge device-private one",
    ),
    own("private", "ksm.merged_before", "mm/migrate_device: leave pages that KSM has merged"),
    own("coherent", "ksm.merged_before", "mm/migrate_device: leave pages that KSM has merged"),
    own(
        "private",
        "large.discarded_while_migrated",
        "mm/migrate_device: record each address once when a folio is split",
    ),
    hmm(
        "private",
        "hmm.migrate_beside_pinned",
        "mm/migrate_device: pass over no more than the folio that is not split",
    ),
    hmm(
        "private",
        "hmm.migrate_nohuge_hole",
        "mm/migrate_device: offer no huge holes where huge pages are unwanted",
    ),
    hmm(
        "private",
        "hmm.protected_zero",
        "mm/migrate_device: leave zero pages that userfaultfd protects",
    ),
    hmm("private", "hmm.write_shared", "mm/hmm: fault on device-private memory that may not be written"),
    own(
        "private",
        "snapshot.huge_pages",
        "mm/hmm: report huge pages of other devices as not present",
        harmless=True,
    ),
    hmm("private", "hmm.migrate_ksm_zero", "mm/migrate_device: count KSM's zero pages that are replaced"),
    own(
        "private",
        "userfault.move_huge",
        "mm/huge_memory: do not take device-private memory for a hole in UFFDIO_MOVE",
    ),
    own(
        "private",
        "userfault.written_huge",
        "fs/proc/task_mmu: write-protect what is not present in PAGEMAP_SCAN",
    ),
    defect(
        "coherent",
        "d10_allocation_of_huge_page_fails",
        "lib/test_hmm: check the allocations in the fallback to small pages",
    ),
    defect(
        "coherent",
        "d08_release_of_referenced_page",
        "lib/test_hmm: remove device memory only when nobody uses it",
    ),
    defect(
        "coherent",
        "d07_release_while_migrating",
        "lib/test_hmm: remove device memory only when nobody uses it",
    ),
    defect(
        "private", "d06_close_while_released", "lib/test_hmm: remove device memory only when nobody uses it"
    ),
    defect(
        "private",
        "d09_close_without_free_huge_page",
        "lib/test_hmm: remove device memory only when nobody uses it",
    ),
    defect(
        "coherent", "d20_memory_of_others", "lib/test_hmm: claim the special-purpose memory", harmless=True
    ),
    defect(
        "coherent",
        "d16_huge_page_to_cpu_accessible",
        "lib/test_hmm: hand out only small pages of coherent memory",
        harmless=True,
    ),
    defect(
        "private", "d01_stale_backing_page", "lib/test_hmm: map the backing memory of device-private pages"
    ),
    defect(
        "private", "d11_write_after_fork", "mm/hmm: fault on device-private memory that may not be written"
    ),
    defect(
        "private",
        "d03_split_backing_folio",
        "lib/test_hmm: split all of the memory behind a device-private folio",
    ),
    defect(
        "private",
        "d14_neighbour_invalidated",
        "lib/test_hmm: invalidate no page after the range",
        harmless=True,
    ),
    defect(
        "private",
        "d02_other_mirrors_not_told",
        "lib/test_hmm: invalidate mirrors when their device migrates memory",
        harmless=True,
    ),
    defect(
        "private",
        "d15_write_not_dirty",
        "lib/test_hmm: mark what the device writes to as dirty",
        harmless=True,
    ),
    defect(
        "private",
        "d18_bad_arguments_accepted",
        "lib/test_hmm: check sizes for overflow, and flags",
        harmless=True,
    ),
    defect(
        "private",
        "d04_allocation_fails_midway",
        "lib/test_hmm: undo what a failed allocation leaves half done",
    ),
    defect("private", "d05_closed_file_used", "lib/test_hmm: keep a closed file's data as long as its pages"),
    defect("coherent", "d12_discard_while_migrating", "lib/test_hmm: map migrated memory like any other"),
    defect("coherent", "d13_write_while_migrating", "lib/test_hmm: map migrated memory like any other"),
    defect(
        "private",
        "d21_wrong_counts",
        "lib/test_hmm: count pages that are migrated to system memory",
        harmless=True,
    ),
    defect("private", "d19_unlimited_size", "lib/test_hmm: limit the size of a mapping of the device"),
    defect(
        "private", "d17_split_folios_used_up", "lib/test_hmm: hand out freed pages of any size", harmless=True
    ),
    defect(
        "private",
        "d22_close_evicts_others",
        "lib/test_hmm: evict only what was allocated for the file being closed",
        harmless=True,
    ),
    device_dax("bugs.mmap_unbound", "device-dax: refuse to open a device without a driver"),
    device_dax("bugs.rebind_open", "device-dax: give each binding its own cdev"),
    device_dax("bugs.unbind_pinned", "mm/memremap: wait for generic pages in use before freeing the memmap"),
    device_dax(
        "bugs.unbind_region_pinned", "mm/memremap: wait for generic pages in use before freeing the memmap"
    ),
    device_dax(dax.VFIO_TEST, "vfio/type1: unpin the pages of device-dax"),
    file_system("ext4", "bugs.write_unwritten", "ext4: zero unwritten blocks before they count as written"),
]


def folder(kernel: str) -> Path:
    return target.default_folder("bugs", kernel)


def run_vm(kernel: str, name: str, bugs: Sequence[Bug], timeout: float, seed: int) -> Run:
    """Boots a VM for the tests of bugs of one suite and memory type."""
    suite, memory_type = bugs[0].suite, bugs[0].type
    tests = list(dict.fromkeys(bug.test for bug in bugs))
    results = folder(kernel) / name
    if suite == "hmm-tests":
        run = Run("series", kernel, DRIVER, memory_type)
        hmm_tests.run_tests(run, results, only=tests, timeout=timeout, options=OPTIONS)
    elif suite == "hmm-selftests":
        run = Run(selftests.SOURCE, kernel, DRIVER, memory_type)
        selftests.run_tests(run, results, tests, timeout, seed, OPTIONS)
    else:
        run = dax.new_run(kernel, memory_type)
        dax.run_tests(run, tests, results)
    # Neither kernel's run is what decides: what they make of a bug does.
    run.decides = False
    return run


def outcome(run: Run, test: str) -> Outcome:
    """What can be said of a test of a VM."""
    found = run.outcomes().get(test, Outcome.NOT_RUN)
    if found == Outcome.NOT_RUN and run.problem:
        found = Outcome.HANG if "hung" in run.problem else Outcome.CRASH
    if found in (Outcome.PASS, Outcome.FAIL) and run.splats:
        found = Outcome.SPLAT
    return found


def run_kernel(
    kernel: str, bugs: Iterable[Bug], timeout: float, seed: int, shares_vm: Callable[[Bug], bool]
) -> tuple[dict[Bug, Outcome], list[Run]]:
    """The results of all tests on a kernel, and the runs that they are from."""
    vms: dict[str, list[Bug]] = defaultdict(list)
    for bug in bugs:
        own_vm = () if shares_vm(bug) else (bug.test,)
        vms["-".join((bug.suite, bug.type, *own_vm))].append(bug)
    runs = vm.in_parallel(lambda name: run_vm(kernel, name, vms[name], timeout, seed), vms)
    found = {
        bug: outcome(run, bug.test) for run, of_vm in zip(runs, vms.values(), strict=True) for bug in of_vm
    }
    return found, runs


def measure_base(bugs: Sequence[Bug], seed: int) -> tuple[dict[Bug, Outcome], list[Run]]:
    """Tries again what did not show: some bugs are races."""
    base = dict.fromkeys(bugs, Outcome.PASS)
    runs = []
    for _ in range(ATTEMPTS):
        hidden = [bug for bug in bugs if base[bug] == Outcome.PASS]
        if not hidden:
            break
        found, more = run_kernel("base", hidden, TIMEOUT, seed, shares_vm=lambda bug: bug.harmless)
        base |= found
        runs += more
    return base, runs


def as_runs(base: dict[Bug, Outcome]) -> list[Run]:
    """Outcomes on base as the record has them: a run for each suite."""
    runs: dict[str, Run] = {}
    for bug, found in base.items():
        run = runs.setdefault(bug.suite, Run(bug.suite, "base", derived=True, decides=False))
        if bug.name not in run.outcomes():
            run.tests.append(Test(bug.name, found))
    return list(runs.values())


def recorded_base(bugs: Sequence[Bug]) -> tuple[dict[Bug, Outcome], list[str]]:
    section, warnings = base_record.use(SUITE)
    base = {}
    for bug in bugs:
        known = section.groups.get(bug.suite, {}).get(bug.name)
        if known is None:
            raise MachineError(
                f"{base_record.PATH.name} has nothing of {bug.name}: make bugs BASE=record, or BASE=measure"
            )
        base[bug] = known.worst
    return base, warnings


def check_subjects(bugs: Iterable[Bug]) -> None:
    log = environment.git(LINUX, "log", "--format=%s", "base..series")
    if log is None:
        raise MachineError("no branch series in build/linux: run 'make tree'")
    unknown = {bug.patch for bug in bugs} - set(log.splitlines())
    if unknown:
        raise MachineError(f"there are no such patches: {', '.join(sorted(unknown))}")


def build() -> None:
    hmm_tests.build("series")
    selftests.build()


def shows(base: Outcome) -> bool:
    return base.bad and base != Outcome.NOT_RUN


def judge(bug: Bug, base: Outcome, patched: Outcome) -> list[str]:
    """What is wrong with what the kernels make of a bug."""
    wrong = []
    if not shows(base):
        wrong.append(f"does not show the bug, {base} on the unpatched kernel")
    elif bug.harmless and base != Outcome.FAIL:
        wrong.append(f"{base} on the unpatched kernel, so not harmless")
    if patched != Outcome.PASS:
        wrong.append(f"{patched} on the patched kernel")
    return wrong


def table(
    bugs: Sequence[Bug], base: dict[Bug, Outcome], patched: dict[Bug, Outcome], base_heading: str
) -> str:
    rows = [(bug.test, bug.type, str(base[bug]), str(patched[bug]), bug.patch) for bug in bugs]
    headings = ("bug", "type", base_heading, "patched", "fixed by")
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
        for row in [headings, *rows]
    )


def run(kernel: str, bugs: Sequence[Bug], mode: Mode, seed: int) -> tuple[list[Run], str, list[str]]:
    """Runs all. Returns the runs, the last of which say whether each test did what it
    should, the table, and warnings."""
    check_subjects(bugs)
    warnings: list[str] = []
    runs: list[Run] = []
    if mode == Mode.USE:
        base, warnings = recorded_base(bugs)
    else:
        build()
        base, runs = measure_base(bugs, seed)
    build()
    patched, more = run_kernel(kernel, bugs, selftests.TIMEOUT, seed, shares_vm=lambda _: True)
    runs += more
    judged = Run("bugs", kernel, derived=True)
    for bug in bugs:
        wrong = judge(bug, base[bug], patched[bug])
        judged.tests.append(Test(bug.name, Outcome.FAIL if wrong else Outcome.PASS, 0, wrong))
    runs.append(judged)
    if mode == Mode.RECORD:
        # One that did not show is not known to be harmless.
        base_record.update(SUITE, as_runs({bug: base[bug] for bug in bugs if shows(base[bug])}), "source")
    elif mode == Mode.MEASURE:
        runs.append(base_record.compare(SUITE, as_runs(base), "source", whole=set(bugs) == set(BUGS)))
    return runs, table(bugs, base, patched, "base (recorded)" if mode == Mode.USE else "base"), warnings
