"""Reads KTAP by the parser of the kernel's kunit.py."""

import sys

import vm


def parse(lines, tree=vm.BUILD / "linux"):
    """The kernel's kunit_parser.Test of the first KTAP document in the lines."""
    folder = str(tree / "tools/testing/kunit")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # pylint: disable=import-outside-toplevel,import-error
    from kunit_parser import parse_run_tests
    from kunit_printer import Printer

    return parse_run_tests(lines, Printer(print=False))


def problem(test):
    """What is wrong with it as a document; None if tests have passed, failed or been skipped."""
    if test.status.name in ("SUCCESS", "SKIPPED", "FAILURE"):
        return None
    return f"the output is no complete KTAP: {test.status.name}"


def cases(test, path=()):
    """All tests that have no subtests, with the names of those that they are in."""
    for subtest in test.subtests:
        if subtest.subtests:
            yield from cases(subtest, (*path, subtest.name))
        else:
            yield (*path, subtest.name), subtest
