"""Runs the KUnit suites in a VM: those that are built in, which run by themselves, and those of modules."""

import re
import shlex
import sys
from pathlib import Path

from harness import guest, ktap
from harness.paths import SCRIPTS
from harness.results import Outcome, Run, Test

TIMEOUT = 600  # seconds

# In order of loading, with parameters.
MODULES = ("zone_device_kunit", "test_hmm_rs device_type=private")
# Of these nothing may be skipped: the VM has what they need.
OWN_SUITES = "zone_device"

DOCUMENT = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? KTAP version 1$")


def documents(console: str) -> list[list[str]]:
    """The KTAP documents in a console log, each as lines."""
    found: list[list[str]] = []
    for line in console.splitlines():
        if DOCUMENT.match(line):
            found.append([])
        if found:
            found[-1].append(line)
    return found


def boot(run: Run, folder: Path, code: str = "") -> None:
    """Boots a VM, fills in run; code is as in vm.run()."""
    note_module = shlex.quote(str(SCRIPTS / "guest/note-module"))
    commands = ["set -e"]
    for module in MODULES:
        name = module.split()[0]
        note = f"{note_module} {name}"
        commands += [note, f"modprobe {module}", note, f"modprobe -r {name}", note]
    print(f"==> KUnit suites on the {run.kernel} kernel", file=sys.stderr)
    result, output = guest.boot(run, "\n".join(commands), folder, TIMEOUT, None, code=code)
    if result.status and not run.problem:
        run.problem = "\n".join([f"loading the modules: status {result.status}", *output[-5:]])
    console = (folder / "console.log").read_text(errors="replace")
    parsed = [ktap.parse(lines) for lines in documents(console)]
    add_tests(run, parsed, 1 + len(MODULES))


def add_tests(run: Run, parsed: "list[ktap.ParsedTest]", expected: int) -> None:
    problems = list(filter(None, map(ktap.problem, parsed)))
    if len(parsed) != expected:
        problems.append(f"{len(parsed)} runs of suites, not {expected}: one at boot and one for each module")
    for document in parsed:
        for path, case in ktap.cases(document):
            run.tests.append(new_test(".".join(path), case))
    run.problem = run.problem or "\n".join(problems) or None


def new_test(name: str, case: "ktap.ParsedTest") -> Test:
    outcome = ktap.outcome(case)
    if outcome == Outcome.SKIP:
        if name.startswith(OWN_SUITES):
            return Test(name, Outcome.FAIL, 0, ["skipped, though the VM has what it needs", case.skip_reason])
        return Test(name, outcome, 0, [case.skip_reason])
    return Test(name, outcome, 0, [] if outcome == Outcome.PASS else list(case.log))
