"""Runs the group torture of hmm-selftests in a VM, with swap space and two NUMA nodes."""

import shlex
import sys
from pathlib import Path

from harness import guest, selftests
from harness.paths import BUILD, SCRIPTS
from harness.results import Run

GROUP = "torture"
# The kernels that are for it: debug by default.
KERNELS = ("debug", "kcsan", "series")
# Emulated, of the kernels that can.
OPTIONS = ["numa=fake=2"]
# What is about device memory: there, data races count.
RACES = ("mm/hmm.o", "mm/memremap.o", "mm/migrate_device.o")
# Seconds of a boot, for what the tests do when their time is over, and those that have none.
TIMEOUT = 900
# Tests that go on for as many minutes as one likes.
ENDLESS = 3


def run_tests(run: Run, results: Path, minutes: int, seed: int, arguments: list[str]) -> None:
    """Boots a VM and fills in run."""
    factor = 1 if run.kernel == "series" else guest.DEBUG_TIMEOUT_FACTOR
    command = [
        str(selftests.build()),
        *("--type", run.memory_type, "--seed", str(seed)),
        *("--minutes", str(minutes), "--timeout-factor", str(factor)),
        *(arguments or ["--group", GROUP]),
    ]
    print(f"==> torture: {run.name}", file=sys.stderr)
    swap = f"{shlex.quote(str(SCRIPTS / 'guest/add-swap'))} || exit"
    timeout = TIMEOUT * factor + ENDLESS * 60 * minutes
    tests = f"{shlex.join(command)} {guest.module_option(run)}"
    if run.kernel == "kcsan":
        objects = [str(BUILD / "kcsan" / name) for name in RACES]
        tests = f"{shlex.join([str(SCRIPTS / 'guest/filter-races'), run.driver, *objects])}\n{tests}"
    # All that was swapped out must be known to somebody.
    tests = f"{tests}\nstatus=$?\nswapoff --all || exit\n(exit $status)"
    commands = "\n".join([swap, guest.with_driver(run, tests)])
    guest.run_ktap(run, commands, results / run.name, timeout, OPTIONS, keep_log=True)
