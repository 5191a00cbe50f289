#!/usr/bin/env python3
"""Runs hmm-tests in the VM, one boot for each memory type.

Writes KTAP, the console log and summary.json to the results folder and prints a
table. Fails when a test fails, when the kernel complains, or when the guest
does not get to the end.
"""

import argparse
import contextlib
import fnmatch
import functools
import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ktap
import vm

DRIVERS = ("test_hmm", "test_hmm_rs")  # in C and in Rust
# By the source of the tests: base's know no other types.
TYPES = {"series": ("private", "coherent", "generic"), "base": ("private", "coherent")}
TIMEOUT = 900  # seconds for all tests of a type, most of which need less than 60
# Takes half a minute, and too long for its own time limit on a debug kernel.
BENCHMARK = "benchmark_*"

RUN = re.compile(r"^#\s+RUN\s+(\S+) \.\.\.")
VERDICT = re.compile(r"^(ok|not ok) \d+ (\S+)(?: # SKIP (.*))?$")
# Of KTAP without what hmm-tests add, where tests may be in groups.
KTAP_VERDICT = re.compile(r"^ *(?:ok|not ok) \d+ (\S+)(?: # SKIP (.*))?$")
KTAP_RESULTS = {"SUCCESS": "pass", "FAILURE": "fail", "SKIPPED": "skip"}


@dataclass
class Run:
    """hmm-tests of one source on one kernel, driver and memory type."""

    kernel: str  # series, base or debug
    source: str  # whose hmm-tests: the series' or base's
    driver: str
    type: str
    seconds: float = 0.0
    problem: str | None = None  # of the run as a whole
    splats: list = field(default_factory=list)
    tests: list = field(default_factory=list)  # {name, result, seconds, detail}

    @property
    def name(self):
        return f"{self.kernel}-{self.source}-{self.driver}-{self.type}"

    def failed(self):
        return [t for t in self.tests if t["result"] not in ("pass", "skip")]

    def ok(self):
        return not self.problem and not self.failed()


def source_tree(source):
    return vm.BUILD / ("linux-base" if source == "base" else "linux")


@functools.cache
def build_tests(source):
    """Builds hmm-tests of the series or of base, returns the program.

    To be called before threads do.
    """
    output = vm.BUILD / "hmm-tests" / source
    output.mkdir(parents=True, exist_ok=True)
    program = output / "hmm-tests"
    headers = vm.BUILD / ("base" if source == "base" else "kernel") / "usr/include"
    if not headers.is_dir():  # only KCONFIG=debug was built
        headers = vm.BUILD / "debug/usr/include"
    # make does not know all that the program is made of.
    program.unlink(missing_ok=True)
    command = [
        "make",
        "-C",
        source_tree(source) / "tools/testing/selftests/mm",
        f"OUTPUT={output}",
        f"KHDR_INCLUDES=-isystem {headers}",
        program,
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise vm.VmError(f"cannot build hmm-tests of {source}:\n{built.stderr}")
    return program


def list_tests(program):
    """All tests as (fixture, variant, test); -l prints the lists side by side."""
    listing = subprocess.run([program, "-l"], capture_output=True, text=True, check=False)
    fixtures = {}
    current = None
    for line in listing.stderr.splitlines():
        if line.startswith(("#", "---")):
            continue
        fixture, variant, test = line[:20].strip(), line[20:46].strip(), line[46:].strip()
        current = fixture or current
        variants, tests = fixtures.setdefault(current, ([], []))
        if variant:
            variants.append(variant)
        if test:
            tests.append(test)
    return [
        (fixture, variant, test)
        for fixture, (variants, tests) in fixtures.items()
        for variant in variants
        for test in tests
    ]


def select_tests(program, memory_type, pattern):
    """Names of the tests of a memory type that match a pattern, as -r takes them."""
    return [
        f"{fixture}.{variant}.{test}"
        for fixture, variant, test in list_tests(program)
        if variant.endswith(f"_device_{memory_type}") and fnmatch.fnmatchcase(test, pattern)
    ]


def module_parameters(run):
    """What the driver is loaded with: base's way, which is all types, or one type."""
    parameters = []
    if run.source != "base":
        parameters.append(f"device_type={run.type}")
    # test_hmm_rs finds the memory by itself.
    if run.driver == "test_hmm" and (run.source == "base" or run.type != "private"):
        parameters += ["spm_addr_dev0=$SPM_ADDR_DEV0", "spm_addr_dev1=$SPM_ADDR_DEV1"]
    return parameters


class Progress:
    """Notes when each test began and ended, shows the verdict as it comes."""

    def __init__(self, run, total):
        self.run, self.total = run, total
        self.began = 0.0
        self.current = None
        self.detail = []

    def line(self, seconds, line):
        if began := RUN.match(line):
            self.began, self.current, self.detail = seconds, began[1], []
        elif verdict := VERDICT.match(line):
            outcome = "fail" if verdict[1] == "not ok" else "pass" if verdict[3] is None else "skip"
            self.add(verdict[2], outcome, seconds, verdict[3])
        elif self.current and line.startswith("# ") and not line.startswith("#   "):
            self.detail.append(line[2:])

    def add(self, name, outcome, seconds, reason=None):
        detail = [reason] if reason else self.detail if outcome != "pass" else []
        self.run.tests.append(
            {
                "name": name,
                "result": outcome,
                "seconds": round(seconds - self.began, 2),
                "detail": detail,
            }
        )
        self.current, self.detail = None, []
        if sys.stderr.isatty():
            done = f"\r    {self.run.name}: {len(self.run.tests)}/{self.total} "
            print(done, end="", file=sys.stderr, flush=True)


def with_driver(run, command):
    """The commands that load run's driver, run the tests' command and unload the driver."""
    guest = vm.TOP / "scripts/guest"
    parameters = " ".join(module_parameters(run))
    load = f"{shlex.quote(str(guest / 'load-driver'))} {run.driver} {parameters}"
    unload = f"{shlex.quote(str(guest / 'unload-driver'))} {run.driver}"
    commands = [f"{load} || exit", command, "status=$?"]
    if run.kernel != "base":  # whose driver may have died, and would not go
        commands.append(f"{unload} || exit")
    return "\n".join([*commands, "exit $status"])


def boot(run, commands, folder, timeout, on_line, options=(), devices=()):
    """Boots a VM for the commands, with more options of the kernel's and devices of QEMU's.

    Fills in what run says of the whole; returns the VM's result, and the lines printed.
    """
    console = folder / "console.log"
    result = vm.run(run.kernel, f"exec 2>&1\n{commands}", console, timeout, on_line, options, devices)
    print(f"\r    {run.name}: done in {result.seconds:.0f} s" + " " * 20, file=sys.stderr)
    output = [line for _, line in result.lines]
    (folder / "ktap").write_text("\n".join(output) + "\n")
    run.seconds = round(result.seconds, 1)
    run.splats = result.splats
    run.problem = result.problem()
    if run.kernel != "base":  # what is wrong with that one is compare's to say
        vm.report(result, console)
    return result, output


def run_tests(
    run, results, pattern="*", timeout=TIMEOUT, only=None, options=(), benchmark=True
):
    """Boots a VM and fills in run, with the tests that match or with those in only.

    options are for the kernel's command line.
    """
    program = build_tests(run.source)
    selected = only or select_tests(program, run.type, pattern)
    if not benchmark or (run.kernel == "debug" and pattern == "*"):
        left_out = select_tests(program, run.type, BENCHMARK)
        print("left out:", *left_out, file=sys.stderr)
        selected = [name for name in selected if name not in left_out]
    if not selected:
        raise vm.VmError(f"no hmm-tests of type {run.type} match FILTER={pattern}")
    tests = " ".join(f"-r {name}" for name in selected)
    progress = Progress(run, len(selected))
    print(f"==> hmm-tests: {run.name}, {len(selected)} tests", file=sys.stderr)
    folder = results / (f"{run.name}-again" if only else run.name)
    command = with_driver(run, f"{shlex.quote(str(program))} {tests}")
    result, output = boot(run, command, folder, timeout, progress.line, options)
    if progress.current:
        progress.add(progress.current, "hang" if result.timed_out else "crash", result.seconds)
    seen = {test["name"] for test in run.tests}
    missing = [name for name in selected if name not in seen]
    for name in missing:
        run.tests.append({"name": name, "result": "not run", "seconds": 0, "detail": []})
    if not run.problem and len(missing) == len(selected):
        run.problem = "\n".join(["no test ran:", *output[-5:], *result.console_tail[-5:]])
    if not run.problem and all(test["result"] == "skip" for test in run.tests):
        run.problem = "all tests were skipped"
    if not run.problem and result.status and not run.failed():
        run.problem = "\n".join([f"status {result.status} after the tests:", *output[-5:]])
    if not run.problem:
        run.problem = ktap.problem(ktap.parse(output, source_tree(run.source)))
    return run


def run_ktap(run, commands, folder, timeout, options=(), devices=(), keep_log=False):
    """Boots a VM for commands that print KTAP, and fills in run.

    What a test prints is kept if it does not pass, or always.
    """
    last = 0.0
    durations, reasons = {}, {}

    def line(seconds, text):
        nonlocal last
        if verdict := KTAP_VERDICT.match(text):
            durations[verdict[1]] = seconds - last
            reasons[verdict[1]] = verdict[2]
            last = seconds
        elif not last and text == "KTAP version 1":  # booted
            last = seconds

    result, output = boot(run, commands, folder, timeout, line, options, devices)
    document = ktap.parse(output)
    for path, test in ktap.cases(document):
        name = path[-1]
        if not name:  # of the plan, and was not run; ktap.problem() says so
            continue
        outcome = KTAP_RESULTS.get(test.status.name, "crash")
        detail = test.log if keep_log or outcome != "pass" else []
        if outcome == "skip":
            detail = [reasons.get(name)]
        seconds = round(durations.get(name, 0), 2)
        run.tests.append({"name": name, "result": outcome, "seconds": seconds, "detail": detail})
    if not run.problem:
        run.problem = ktap.problem(document)
    if not run.problem and result.status and not run.failed():
        run.problem = "\n".join([f"status {result.status} after the tests:", *output[-5:]])


def write_summary(results, runs, ok):
    """Before the first run with none: an old verdict must not outlive a failure."""
    results.mkdir(parents=True, exist_ok=True)
    summary = {"target": results.name, "ok": ok, "runs": [asdict(run) for run in runs]}
    (results / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def test_name(name):
    """fixture.variant.test without the variant, which says only the type."""
    fixture, _, test = name.split(".")
    return f"{fixture}.{test}"


def print_table(runs, headings, row_name=test_name):
    """One line a test, one column a run, which is named by those of its fields."""
    rows = {}
    for number, run in enumerate(runs):
        for test in run.tests:
            rows.setdefault(row_name(test["name"]), {})[number] = test
    width = max(map(len, rows), default=4)

    def line(name, texts):
        print(name.ljust(width), *(text.rjust(11) for text in texts), sep="  ")

    for heading in headings:
        line(heading, [getattr(run, heading) for run in runs])
    for name, cells in rows.items():
        tests = [cells.get(number) for number in range(len(runs))]
        line(name, [f"{t['result']} {t['seconds']:5.1f}" if t else "-" for t in tests])
    passed = [sum(t["result"] == "pass" for t in run.tests) for run in runs]
    line("passed", [f"{count}/{len(run.tests)}" for count, run in zip(passed, runs)])
    line("kernel splats", [str(len(run.splats)) for run in runs])


def save_table(results, *table):
    """Prints the table, also to the results folder."""
    with open(results / "table", "w", encoding="utf-8") as file:
        with contextlib.redirect_stdout(file):
            print_table(*table)
    print((results / "table").read_text(), end="")


def print_failures(runs):
    for run in runs:
        for test in run.tests:
            if test["result"] == "skip":
                print(f"skip: {test['name']} on {run.driver}: {' '.join(test['detail'])}")
        not_run = sum(test["result"] == "not run" for test in run.tests)
        if not_run:
            print(f"not run: {not_run} tests of type {run.type}")
        for test in run.failed():
            if test["result"] == "not run":
                continue
            print(f"{test['result']}: {test['name']} on {run.driver}, {run.kernel} kernel")
            for line in test["detail"][:5]:
                print(f"    {line}")
        if run.problem:
            print(f"error: {run.name}: {run.problem}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="series", choices=("series", "debug"))
    parser.add_argument("--driver", default="test_hmm_rs", choices=DRIVERS)
    parser.add_argument("--source", default="series", choices=TYPES, help="whose hmm-tests")
    parser.add_argument("--types", help="comma-separated, all without")
    parser.add_argument("--filter", default="*", help="glob over test names")
    parser.add_argument("--timeout", default=TIMEOUT, type=float, help="seconds for each type")
    parser.add_argument("--results", default=vm.BUILD / "results/hmm-tests", type=Path)
    args = parser.parse_args()
    known = TYPES[args.source]
    types = args.types.split(",") if args.types else known
    for memory_type in types:
        if memory_type not in known:
            parser.error(f"no '{memory_type}' in tests of {args.source}, use {','.join(known)}")

    runs = [Run(args.kernel, args.source, args.driver, memory_type) for memory_type in types]
    write_summary(args.results, [], False)
    build_tests(args.source)
    vm.in_parallel(lambda run: run_tests(run, args.results, args.filter, args.timeout), runs)
    ok = all(run.ok() for run in runs)
    write_summary(args.results, runs, ok)
    print_table(runs, ("driver", "type"))
    print_failures(runs)
    print_totals(runs)
    return 0 if ok else 1


def print_totals(runs):
    passed = sum(t["result"] == "pass" for r in runs for t in r.tests)
    skipped = sum(t["result"] == "skip" for r in runs for t in r.tests)
    failed = sum(len(r.failed()) for r in runs)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")


if __name__ == "__main__":
    vm.exit_with(main)
