"""Writes JUnit's XML, as most CI systems read it."""

import re
from xml.etree import ElementTree

from harness.results import Outcome, Report, Run, Test

# XML has no way to say these.
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def clean(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)


def add_case(suite: ElementTree.Element, test: Test) -> None:
    case = ElementTree.SubElement(
        suite, "testcase", name=clean(test.name), classname=suite.get("name", ""), time=f"{test.seconds:.3f}"
    )
    detail = clean("\n".join(test.detail))
    message = clean(next(iter(test.detail), ""))
    if test.outcome == Outcome.SKIP:
        ElementTree.SubElement(case, "skipped", message=message)
    elif test.outcome.bad:
        failure = ElementTree.SubElement(case, "failure", type=str(test.outcome), message=message)
        failure.text = detail


def add_error(suite: ElementTree.Element, name: str, text: str) -> None:
    case = ElementTree.SubElement(suite, "testcase", name=name, classname=suite.get("name", ""), time="0.000")
    lines = clean(text).splitlines() or [""]
    ElementTree.SubElement(case, "error", type="error", message=lines[0]).text = "\n".join(lines)


def new_suite(root: ElementTree.Element, name: str, report: Report, seconds: float) -> ElementTree.Element:
    return ElementTree.SubElement(
        root, "testsuite", name=clean(name), timestamp=report.start.removesuffix("Z"), time=f"{seconds:.3f}"
    )


def add_run(root: ElementTree.Element, report: Report, run: Run) -> None:
    suite = new_suite(root, f"{report.target}.{run.name}", report, run.seconds)
    for test in run.tests:
        add_case(suite, test)
    if run.problem:
        splats = (line for splat in run.splats for line in splat)
        add_error(suite, "kernel and harness", "\n".join([run.problem, *splats]))


def count(element: ElementTree.Element) -> None:
    """Sets the numbers that readers want beforehand."""
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(attribute, str(len(list(element.iter(tag)))))
    element.set("tests", str(len(list(element.iter("testcase")))))


def document(report: Report) -> str:
    """A target's results; runs that decide nothing would only look like failures."""
    root = ElementTree.Element("testsuites", name=report.target, time=f"{report.seconds:.3f}")
    for leaf in report.leaves():
        for run in leaf.runs:
            if run.decides:
                add_run(root, leaf, run)
    for each in [report, *report.leaves()] if report.parts else [report]:
        if reason := each.missing_verdict():
            add_error(new_suite(root, each.target, each, 0), "no verdict", reason)
    for suite in root:
        count(suite)
    count(root)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False) + "\n"
