"""A boot that runs tests: with a driver, and by what KTAP they print."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import ktap, vm
from harness.paths import SCRIPTS
from harness.results import Outcome, Run, Test

DRIVERS = ("test_hmm", "test_hmm_rs")  # in C and in Rust
C_DRIVER, RUST_DRIVER = DRIVERS
# A debug kernel is that much slower.
DEBUG_TIMEOUT_FACTOR = 4

# Tests may be in groups.
VERDICT = re.compile(r"^ *(?:ok|not ok) \d+ (\S+)(?: # SKIP .*)?$")


def module_parameters(run: Run) -> list[str]:
    """What the driver is loaded with: base's way, which is all types, or one type."""
    parameters = []
    if run.source != "base":
        parameters.append(f"device_type={run.memory_type}")
    # test_hmm_rs finds the memory by itself.
    if run.driver == C_DRIVER and (run.source == "base" or run.memory_type != "private"):
        parameters += ["spm_addr_dev0=$SPM_ADDR_DEV0", "spm_addr_dev1=$SPM_ADDR_DEV1"]
    return parameters


def module_option(run: Run) -> str:
    """Tells hmm-selftests what the driver is loaded with; in the guest's shell, which knows the addresses."""
    return f'--module "{" ".join([run.driver, *module_parameters(run)])}"'


def with_driver(run: Run, command: str) -> str:
    """The commands that load run's driver, run the tests' command and unload the driver."""
    guest = SCRIPTS / "guest"
    parameters = " ".join(module_parameters(run))
    load = f"{shlex.quote(str(guest / 'load-driver'))} {run.driver} {parameters}"
    unload = f"{shlex.quote(str(guest / 'unload-driver'))} {run.driver}"
    commands = [f"{load} || exit", command, "status=$?"]
    if run.kernel != "base":  # whose driver may have died, and would not go
        commands.append(f"{unload} || exit")
    return "\n".join([*commands, "exit $status"])


def boot(
    run: Run,
    commands: str,
    folder: Path,
    timeout: float,
    on_line: vm.OnLine | None,
    options: Iterable[str] = (),
    qemu: Sequence[str] = (),
    counting: bool = False,
    stdin: int = subprocess.DEVNULL,
    code: str = "",
    memory_mb: int = vm.MEMORY_MB,
) -> tuple[vm.Result, list[str]]:
    """Boots a VM for the commands, with more options of the kernel's and of QEMU's,
    with a clock that counts instructions, with something to read, with a log of code
    at these addresses, or with more memory.

    Fills in what run says of the whole; returns the VM's result, and the lines printed.
    """
    console = folder / "console.log"
    script = f"exec 2>&1\n{commands}"
    result = vm.run(
        run.kernel, script, console, timeout, on_line, options, qemu, counting, stdin, code, memory_mb
    )
    print(f"\r    {run.name}: done in {result.seconds:.0f} s" + " " * 20, file=sys.stderr)
    output = [line for _, line in result.lines]
    (folder / "output").write_text("\n".join(output) + "\n", encoding="utf-8")
    run.seconds = round(result.seconds, 1)
    run.splats = result.splats
    run.problem = result.problem()
    if run.kernel != "base":  # what is wrong with that one is for the comparison to say
        vm.report(result, console)
    return result, output


def run_ktap(
    run: Run,
    commands: str,
    folder: Path,
    timeout: float,
    options: Iterable[str] = (),
    qemu: Sequence[str] = (),
    keep_log: bool = False,
    code: str = "",
) -> None:
    """Boots a VM for commands that print KTAP, and fills in run.

    What a test prints is kept if it does not pass, or always.
    """
    last = 0.0
    durations: dict[str, float] = {}

    def line(seconds: float, text: str) -> None:
        nonlocal last
        if verdict := VERDICT.match(text):
            durations[verdict[1]] = seconds - last
            last = seconds
        elif not last and text == ktap.VERSION:  # booted
            last = seconds

    result, output = boot(run, commands, folder, timeout, line, options, qemu, code=code)
    document = ktap.parse(output)
    for path, test in ktap.cases(document):
        name = path[-1]
        if not name:  # of the plan, and was not run; ktap.problem() says so
            continue
        outcome = ktap.outcome(test)
        detail = list(test.log) if keep_log or outcome != Outcome.PASS else []
        if outcome == Outcome.SKIP:
            detail = [test.skip_reason]
        run.tests.append(Test(name, outcome, round(durations.get(name, 0), 2), detail))
    if not run.problem:
        run.problem = ktap.problem(document)
    if not run.problem and result.status and not run.failed():
        run.problem = "\n".join([f"status {result.status} after the tests:", *output[-5:]])
