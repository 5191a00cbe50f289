"""Reads KTAP by the parser of the kernel's kunit.py, and writes it."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from harness.paths import LINUX
from harness.results import Outcome, Report, Run, Status, Test

if TYPE_CHECKING:
    from typing import Any

    # The kernel's kunit_parser.Test: the tree is not there when this is checked.
    ParsedTest: TypeAlias = Any

VERSION = "KTAP version 1"
INDENT = "    "
# Where kunit.py takes the document to be over, wherever in a line it is.
PARSER_STOPS = re.compile("List of all partitions:|Kernel panic - not syncing: VFS:|reboot: System halted")
# By the names of kunit_parser.TestStatus.
OUTCOMES = {"SUCCESS": Outcome.PASS, "FAILURE": Outcome.FAIL, "SKIPPED": Outcome.SKIP}


def parse(lines: Iterable[str], tree: Path = LINUX) -> "ParsedTest":
    """The first KTAP document in the lines."""
    folder = str(tree / "tools/testing/kunit")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from kunit_parser import parse_run_tests  # noqa: PLC0415
    from kunit_printer import Printer  # noqa: PLC0415

    return parse_run_tests(lines, Printer(print=False))


def problem(test: "ParsedTest") -> str | None:
    """What is wrong with it as a document; None if tests have passed, failed or been skipped."""
    if test.status.name in OUTCOMES:
        return None
    return f"the output is no complete KTAP: {test.status.name}"


def cases(test: "ParsedTest", path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], "ParsedTest"]]:
    """All tests that have no subtests, with the names of those that they are in."""
    for subtest in test.subtests:
        if subtest.subtests:
            yield from cases(subtest, (*path, subtest.name))
        else:
            yield (*path, subtest.name), subtest


def outcome(test: "ParsedTest") -> Outcome:
    return OUTCOMES.get(test.status.name, Outcome.CRASH)


def name(text: str) -> str:
    """A test's name: one line, in which # would start a directive."""
    return " ".join(text.replace("#", "_").split()) or "unnamed"


def diagnostics(lines: Iterable[str]) -> list[str]:
    """Lines that explain; behind a bar, so that none looks like a part of KTAP."""
    return [
        PARSER_STOPS.sub(lambda phrase: phrase[0].replace(":", ";"), f"# | {line}".rstrip())
        for text in lines
        for line in text.splitlines() or [""]
    ]


def result(number: int, ok: bool, what: str, skip: str | None = None) -> str:
    directive = "" if skip is None else f" # SKIP {' '.join(skip.split())}".rstrip()
    return f"{'ok' if ok else 'not ok'} {number} {name(what)}{directive}"


def test_lines(number: int, test: Test) -> Iterator[str]:
    if test.outcome == Outcome.SKIP:
        yield result(number, True, test.name, " ".join(test.detail))
        return
    if test.outcome.bad:
        yield from diagnostics([str(test.outcome), *test.detail])
    yield result(number, not test.outcome.bad, test.name)


def group(number: int, what: str, ok: bool, subtests: list[list[str]]) -> list[str]:
    """A test of others, each of which is given as its lines."""
    inner = [VERSION, f"# Subtest: {name(what)}", f"1..{len(subtests)}"]
    inner += [line for subtest in subtests for line in subtest]
    return [INDENT + line for line in inner] + [result(number, ok, what)]


def run_lines(number: int, run: Run) -> list[str]:
    tests = list(run.tests)
    if run.problem:
        tests.append(Test("kernel and harness", Outcome.FAIL, 0, [run.problem, *(s[0] for s in run.splats)]))
    if not tests:
        return [result(number, True, run.name, "no tests")]
    return group(number, run.name, run.ok(), [list(test_lines(i, t)) for i, t in enumerate(tests, 1)])


def report_lines(number: int, report: Report) -> list[str]:
    children: list[list[str]] = []
    for part in report.parts:
        children.append(report_lines(len(children) + 1, part))
    for run in report.runs:
        if run.decides:
            children.append(run_lines(len(children) + 1, run))
    # What went wrong outside of all tests is one that failed: KTAP has no other way to say so.
    if missing := report.missing_verdict():
        reason = diagnostics([missing])
        children.append([*reason, result(len(children) + 1, False, "no verdict")])
    return group(number, report.target, report.status == Status.PASSED, children)


def document(report: Report) -> str:
    """A target's results."""
    return "\n".join([VERSION, "1..1", *report_lines(1, report)]) + "\n"
