#!/usr/bin/env python3
"""Runs hmm-tests in the VM as the kernel tree's own scripts do: run_vmtests.sh, which
CI calls, and test_hmm.sh.

On test_hmm as a module, and built into another kernel, where its parameters are given
at boot. Fails when a test fails, when the scripts say something else than the tests,
when there is no test of a memory type that there should be, and when the kernel
complains.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import guest, ktap, tables, target, vm
from harness.environment import kernel_folder
from harness.errors import MachineError
from harness.paths import LINUX
from harness.results import Outcome, Report, Run, Test

MODULE, BUILT_IN = "series", "kselftest"  # kernels
TREE = LINUX / "tools/testing/selftests"
SCRIPTS = ("run_vmtests.sh", "test_hmm.sh")
TIMEOUT = 900  # seconds for a boot, as upstream's for the whole folder

SPM_PARAMETERS = [f"spm_addr_dev{i}={address:#x}" for i, address in enumerate(vm.SPM_ADDRS)]
VERDICT = re.compile(r"^(ok|not ok) (\d+) (.*)$")


@dataclass(frozen=True)
class Boot:
    """A boot of a kernel for one call of a script."""

    kernel: str
    script: str
    arguments: str
    types: tuple[str, ...]  # of memory, that the driver then has
    parameters: tuple[str, ...] = ()  # of the driver that is built in

    @property
    def run(self) -> Run:
        return Run(self.script, self.kernel, guest.C_DRIVER, "-".join(self.types))

    def options(self) -> list[str]:
        """Of the kernel's command line."""
        return [f"{guest.C_DRIVER}.{parameter}" for parameter in self.parameters]

    def command(self) -> str:
        return f"bash ./{self.script} {self.arguments}"


SPM = "$SPM_ADDR_DEV0 $SPM_ADDR_DEV1"
BOOTS = [
    Boot(MODULE, "run_vmtests.sh", "-t hmm", ("private",)),
    Boot(MODULE, "test_hmm.sh", f"smoke {SPM}", ("private", "coherent")),
    Boot(MODULE, "test_hmm.sh", f"smoke generic {SPM}", ("generic",)),
    Boot(BUILT_IN, "run_vmtests.sh", "-t hmm", ("private", "coherent"), (*SPM_PARAMETERS,)),
    Boot(BUILT_IN, "run_vmtests.sh", "-t hmm", ("generic",), ("device_type=generic", *SPM_PARAMETERS)),
]


def build() -> Path:
    """Builds hmm-tests as the tree does, which puts it below the kernel's build folder;
    returns the folder that it and the scripts are in."""
    objects = kernel_folder(MODULE)
    if not (objects / "usr/include").is_dir():
        raise MachineError(f"no headers in {objects}, run 'make kernel'")
    folder = objects / "kselftest/mm"
    program = folder / "hmm-tests"
    # make does not know all that the program is made of.
    program.unlink(missing_ok=True)
    command = [
        "make",
        "-C",
        str(TREE),
        "TARGETS=mm",
        "FORCE_TARGETS=1",
        f"O={objects}",
        # Of all the tests this one, which needs no library.
        f"TEST_GEN_FILES={program}",
        "TEST_GEN_MODS_DIR=",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not program.exists():
        raise MachineError(f"cannot build hmm-tests:\n{done.stderr}")
    for script in SCRIPTS:
        shutil.copy(TREE / "mm" / script, folder)
    return folder


def tests_of(lines: list[tuple[float, str]]) -> tuple[list[Test], str | None]:
    """What hmm-tests printed, and what is wrong with that as a document."""
    document = ktap.parse([line for _, line in lines])
    last = lines[0][0] if lines else 0.0
    seconds = {}
    for at, line in lines:
        if verdict := guest.VERDICT.match(line):
            seconds[verdict[1]] = round(at - last, 2)
            last = at
    tests = []
    for path, case in ktap.cases(document):
        name = path[-1]
        if name:  # else of the plan, and was not run
            outcome = ktap.outcome(case)
            detail = [case.skip_reason] if outcome == Outcome.SKIP else list(case.log)
            tests.append(
                Test(name, outcome, seconds.get(name, 0.0), detail if outcome != Outcome.PASS else [])
            )
    return tests, ktap.problem(document)


def script_problem(lines: list[str]) -> str | None:
    """What run_vmtests.sh says of the script that it called, unless that is just "ok"."""
    verdicts = [match for line in lines if (match := VERDICT.match(line))]
    if len(verdicts) != 1 or f"1..{len(verdicts)}" not in lines:
        return "run_vmtests.sh printed no plan with one result"
    ok, _, what = verdicts[0].groups()
    if ok == "ok" and "# SKIP" not in what:
        return None
    return f"run_vmtests.sh says: {ok} {what}"


def memory_type(test: Test) -> str:
    """From fixture.variant.test."""
    return test.name.split(".")[1].rpartition("_")[2]


def problems(boot: Boot, tests: list[Test]) -> Iterator[str]:
    """Where tests did not run on the memory that they should have."""
    for test in tests:
        if memory_type(test) not in boot.types and test.outcome != Outcome.SKIP:
            yield f"{test.name} ran, but there should be no such memory"
    for expected in boot.types:
        if not any(memory_type(test) == expected and test.outcome != Outcome.SKIP for test in tests):
            yield f"no test of {expected} memory ran"


def run_boot(boot: Boot, folder: Path, results: Path) -> Run:
    run = boot.run
    print(f"==> kselftest: {run.name}", file=sys.stderr)
    command = f"cd {shlex.quote(str(folder))} && {boot.command()}"
    result, output = guest.boot(run, command, results / run.name, TIMEOUT, None, boot.options())
    lines = result.lines
    says = None
    if boot.script == "run_vmtests.sh":
        says = script_problem(output)
        # It takes a script's output for comments.
        lines = [(seconds, line[2:]) for seconds, line in lines if line.startswith("# ")]
    tests, incomplete = tests_of(lines)
    run.tests = [test for test in tests if memory_type(test) in boot.types]
    wrong = [incomplete, *problems(boot, tests)]
    if not run.failed():
        wrong += [says, f"{boot.script} ends with status {result.status}" if result.status else None]
    if not run.problem and any(wrong):
        run.problem = "\n    ".join([*filter(None, wrong), *output[-10:]])
    return run


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    results = target.default_folder("kselftest")
    with target.reporting("kselftest", results) as report:
        folder = build()
        report.runs = vm.in_parallel(lambda boot: run_boot(boot, folder, results), BOOTS)
    headings = ("kernel", "source", "memory_type")
    tables.conclude(tables.table(report.runs, headings, tables.hmm_test_name), report.runs, results)
    return report


if __name__ == "__main__":
    target.exit_with(main)
