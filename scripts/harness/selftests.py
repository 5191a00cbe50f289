"""Builds hmm-selftests and runs them in a VM."""

import functools
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import guest, hmm_tests, vm
from harness.errors import MachineError
from harness.paths import BUILD, SCRIPTS
from harness.results import Run

TYPES = hmm_tests.TYPES["series"]
SOURCE = "selftests"  # of the tests of a run
TIMEOUT = 900  # seconds for all tests of a type
# In the guest, for those who pin.
PREPARE = ("bind-vfio", "make-disk", "make-rdma-link")


@functools.cache
def build() -> Path:
    """Builds the program and returns its path. To be called before threads do."""
    if subprocess.run([SCRIPTS / "cargo", "build"], check=False).returncode:
        raise MachineError("cannot build hmm-selftests")
    return BUILD / "selftests/release/hmm-selftests"


def run_tests(
    run: Run,
    results: Path,
    arguments: Sequence[str],
    timeout: float,
    seed: int,
    options: Iterable[str] = (),
    code: str = "",
) -> None:
    """Boots a VM and fills in run; options are for the kernel's command line, code is as in vm.run()."""
    all_arguments = ["--type", run.memory_type, "--seed", str(seed), *arguments]
    if run.kernel == "debug":
        timeout *= guest.DEBUG_TIMEOUT_FACTOR
        all_arguments += ["--timeout-factor", str(guest.DEBUG_TIMEOUT_FACTOR)]
    print(f"==> hmm-selftests: {run.name}", file=sys.stderr)
    command = f"{shlex.join([str(build()), *all_arguments])} {guest.module_option(run)}"
    prepare = [f"{shlex.quote(str(SCRIPTS / 'guest' / script))} || exit" for script in PREPARE]
    commands = "\n".join([*prepare, guest.with_driver(run, command)])
    guest.run_ktap(run, commands, results / run.name, timeout, options, vm.VFIO_DEVICES, code=code)
