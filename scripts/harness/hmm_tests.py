"""Builds the kernel's hmm-tests, selects among them and runs them in a VM."""

import fnmatch
import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import guest, ktap, vm
from harness.environment import kernel_folder
from harness.errors import MachineError
from harness.paths import BUILD, LINUX, SCRIPTS
from harness.results import Outcome, Run, Test

# By the source of the tests: base's know no other types.
TYPES = {"series": ("private", "coherent", "generic"), "base": ("private", "coherent")}
TIMEOUT = 900  # seconds for all tests of a type, most of which need less than 60
# Takes half a minute, and too long for its own time limit on a debug kernel.
BENCHMARK = "benchmark_*"

RUN = re.compile(r"^#\s+RUN\s+(\S+) \.\.\.")
VERDICT = re.compile(r"^(ok|not ok) \d+ (\S+)(?: # SKIP (.*))?$")


def source_tree(source: str) -> Path:
    return BUILD / "linux-base" if source == "base" else LINUX


def headers(source: str) -> Path:
    """The kernel's headers for programs. Base's need no kernel to be built."""
    for flavour in ("base",) if source == "base" else ("series", "debug"):
        folder = kernel_folder(flavour) / "usr/include"
        if folder.is_dir() and source_tree(source).is_dir():
            return folder
    flavour = "base" if source == "base" else "series"
    if subprocess.run([SCRIPTS / "headers", flavour], check=False).returncode:
        raise MachineError(f"no headers of {flavour}")
    return kernel_folder(flavour) / "usr/include"


@functools.cache
def build(source: str) -> Path:
    """Builds hmm-tests of the series or of base, returns the program.

    To be called before threads do.
    """
    include = headers(source)
    output = BUILD / "hmm-tests" / source
    output.mkdir(parents=True, exist_ok=True)
    program = output / "hmm-tests"
    # make does not know all that the program is made of.
    program.unlink(missing_ok=True)
    command = [
        "make",
        "-C",
        str(source_tree(source) / "tools/testing/selftests/mm"),
        f"OUTPUT={output}",
        f"KHDR_INCLUDES=-isystem {include}",
        str(program),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise MachineError(f"cannot build hmm-tests of {source}:\n{built.stderr}")
    return program


VARIANT = re.compile(r"^FIXTURE_VARIANT_ADD\((\w+), (\w+)\)", re.MULTILINE)
TEST = re.compile(r"^TEST_F(?:_\w+)?\((\w+), (\w+)[,)]", re.MULTILINE)


def list_tests(source: str) -> list[tuple[str, str, str]]:
    """All tests as (fixture, variant, test), out of the source of hmm-tests.

    The program itself, asked for a list, first changes the number of huge pages of the
    machine that it runs on.
    """
    path = source_tree(source) / "tools/testing/selftests/mm/hmm-tests.c"
    text = path.read_text(encoding="utf-8")
    tests = TEST.findall(text)
    found = [
        (fixture, variant, test)
        for fixture, variant in VARIANT.findall(text)
        for of, test in tests
        if of == fixture
    ]
    if not found:
        raise MachineError(f"no tests in {path}")
    return found


def select(source: str, memory_type: str, pattern: str) -> list[str]:
    """Names of the tests of a memory type that match a pattern, as -r takes them."""
    return [
        f"{fixture}.{variant}.{test}"
        for fixture, variant, test in list_tests(source)
        if variant.endswith(f"_device_{memory_type}") and fnmatch.fnmatchcase(test, pattern)
    ]


class Progress:
    """Notes when each test began and ended, shows the verdict as it comes."""

    def __init__(self, run: Run, total: int) -> None:
        self.run, self.total = run, total
        self.began = 0.0
        self.current: str | None = None
        self.detail: list[str] = []

    def line(self, seconds: float, line: str) -> None:
        if began := RUN.match(line):
            self.began, self.current, self.detail = seconds, began[1], []
        elif verdict := VERDICT.match(line):
            skipped = verdict[3] is not None
            outcome = Outcome.FAIL if verdict[1] == "not ok" else Outcome.SKIP if skipped else Outcome.PASS
            self.add(verdict[2], outcome, seconds, verdict[3])
        elif self.current and line.startswith("# ") and not line.startswith("#   "):
            self.detail.append(line[2:])

    def add(self, name: str, outcome: Outcome, seconds: float, reason: str | None = None) -> None:
        detail = [reason] if reason else self.detail if outcome != Outcome.PASS else []
        self.run.tests.append(Test(name, outcome, round(seconds - self.began, 2), detail))
        self.current, self.detail = None, []
        if sys.stderr.isatty():
            done = f"\r    {self.run.name}: {len(self.run.tests)}/{self.total} "
            print(done, end="", file=sys.stderr, flush=True)


def selection(run: Run, pattern: str, benchmark: bool) -> list[str]:
    selected = select(run.source, run.memory_type, pattern)
    if not benchmark or (run.kernel == "debug" and pattern == "*"):
        left_out = select(run.source, run.memory_type, BENCHMARK)
        print("left out:", *left_out, file=sys.stderr)
        selected = [name for name in selected if name not in left_out]
    if not selected:
        raise MachineError(f"no hmm-tests of type {run.memory_type} match FILTER={pattern}")
    return selected


def run_tests(
    run: Run,
    results: Path,
    pattern: str = "*",
    timeout: float = TIMEOUT,
    only: Sequence[str] | None = None,
    options: Iterable[str] = (),
    benchmark: bool = True,
    code: str = "",
) -> None:
    """Boots a VM and fills in run, with the tests that match or with those in only.

    options are for the kernel's command line; code is as in vm.run().
    """
    program = build(run.source)
    selected = list(only) if only else selection(run, pattern, benchmark)
    tests = " ".join(f"-r {name}" for name in selected)
    progress = Progress(run, len(selected))
    print(f"==> hmm-tests: {run.name}, {len(selected)} tests", file=sys.stderr)
    folder = results / (f"{run.name}-again" if only else run.name)
    command = guest.with_driver(run, f"{shlex.quote(str(program))} {tests}")
    result, output = guest.boot(run, command, folder, timeout, progress.line, options, code=code)
    if progress.current:
        outcome = Outcome.HANG if result.timed_out else Outcome.CRASH
        progress.add(progress.current, outcome, result.seconds)
    seen = {test.name for test in run.tests}
    missing = [name for name in selected if name not in seen]
    run.tests += [Test(name, Outcome.NOT_RUN) for name in missing]
    run.problem = run.problem or problem(run, result, output, len(missing) == len(selected))


def problem(run: Run, result: vm.Result, output: list[str], none_ran: bool) -> str | None:
    """What is wrong beyond single tests and beyond what the VM says."""
    if none_ran:
        return "\n".join(["no test ran:", *output[-5:], *result.console_tail[-5:]])
    if all(test.outcome == Outcome.SKIP for test in run.tests):
        return "all tests were skipped"
    if result.status and not run.failed():
        return "\n".join([f"status {result.status} after the tests:", *output[-5:]])
    return ktap.problem(ktap.parse(output, source_tree(run.source)))
