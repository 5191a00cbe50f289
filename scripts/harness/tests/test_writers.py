import json
import os
import tempfile
import unittest
from collections import Counter
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import jsonschema
import kcidb_io

from harness import junit, kcidb, ktap, summary
from harness.errors import MachineError
from harness.paths import LINUX, TOP
from harness.results import Outcome, Report, Run, Status, Test
from harness.tests import samples

SCHEMA = json.loads((TOP / "docs/summary.schema.json").read_text(encoding="utf-8"))


def reports() -> list[Report]:
    error = Report("broken", "2026-01-02T03:04:05Z", error="no kernel:\n    no disk")
    half = samples.passing("half")
    half.error = "interrupted"
    nothing = Report("empty", "2026-01-02T03:04:05Z")
    everything = Report(
        "test", "2026-01-02T03:04:05Z", parts=[samples.report(), samples.passing(), error, nothing, half]
    )
    return [*everything.parts, everything, Report("test", parts=[Report("part", error="status 2")])]


class Summary(unittest.TestCase):
    def test_schema_and_reading_back(self) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)
        for report in reports():
            with self.subTest(target=report.target):
                data = json.loads(json.dumps(summary.to_json(report)))
                jsonschema.validate(data, SCHEMA)
                self.assertEqual(summary.from_json(data), report)

    def test_the_schema_refuses(self) -> None:
        for key, value in (("status", "ok"), ("schema", 0), ("seed", "7"), ("start", "now"), ("more", 1)):
            data = summary.to_json(samples.report()) | {key: value}
            with self.subTest(key=key), self.assertRaises(jsonschema.ValidationError):
                jsonschema.validate(data, SCHEMA)

    def test_a_folder_without_results_has_no_verdict(self) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self.assertEqual(summary.status(folder), Status.ERROR)
            for text in ("", "[]", "{}", '{"schema": 1}'):
                (folder / summary.FILE).write_text(text, encoding="utf-8")
                self.assertEqual(summary.status(folder), Status.ERROR, text)
            summary.write(samples.passing(), folder)
            self.assertEqual(summary.status(folder), Status.PASSED)
            files = {path.name for path in folder.iterdir()}
            self.assertEqual(files, {"summary.json", "junit.xml", "ktap", "kcidb.json"})


class Statuses(unittest.TestCase):
    def test_of_runs(self) -> None:
        bad = [Test("b", Outcome.NOT_RUN)]
        for expected, runs in (
            (Status.PASSED, [Run("s", tests=[Test("a", Outcome.PASS), Test("b", Outcome.SKIP)])]),
            (Status.PASSED, [Run("s", tests=[Test("a", Outcome.PASS)]), Run("s", tests=bad, decides=False)]),
            (Status.FAILED, [Run("s", tests=bad)]),
            (Status.FAILED, [Run("s", tests=[Test("a", Outcome.PASS)], problem="splat")]),
            (Status.ERROR, [Run("s", tests=[Test("a", Outcome.PASS)], decides=False)]),
            (Status.ERROR, []),
        ):
            self.assertEqual(samples.report(runs).status, expected)

    def test_of_parts(self) -> None:
        passed, failed, error = samples.passing(), samples.report(), Report("t", error="no disk")
        for expected, parts in (
            (Status.PASSED, [passed, passed]),
            (Status.FAILED, [passed, failed]),
            (Status.ERROR, [passed, error]),
            (Status.FAILED, [error, failed]),
        ):
            self.assertEqual(Report("test", parts=parts).status, expected)


@unittest.skipUnless(LINUX.is_dir(), "no build/linux, whose parser reads KTAP")
class Ktap(unittest.TestCase):
    def read(self, report: Report) -> tuple[Counter[str], str]:
        """The outcomes, and the status of the whole."""
        text = ktap.document(report)
        # Nothing that is not KTAP.
        for line in text.splitlines():
            self.assertRegex(line, r"^ *(KTAP version 1|1\.\.\d+|(not )?ok \d+ \S.*|# .*|#)$")
        parsed = ktap.parse(text.splitlines())
        self.assertEqual(parsed.counts.errors, 0, text)
        self.assertEqual(parsed.counts.crashed, 0, text)
        self.assertEqual(len(parsed.subtests), 1)
        return Counter(test.status.name for _, test in ktap.cases(parsed)), parsed.status.name

    def test_the_kernels_parser_reads_it(self) -> None:
        for report in reports():
            with self.subTest(target=report.target):
                _, status = self.read(report)
                self.assertEqual(status == "SUCCESS", report.status == Status.PASSED)

    def test_outcomes(self) -> None:
        outcomes, status = self.read(samples.report())
        # One more that failed is the run that hung.
        self.assertEqual(outcomes, {"SUCCESS": 2, "SKIPPED": 1, "FAILURE": 6})
        self.assertEqual(status, "FAILURE")

    def test_names_and_reasons(self) -> None:
        parsed = ktap.parse(ktap.document(samples.report()).splitlines())
        found = dict(ktap.cases(parsed))
        run = ("sample", "series-selftests-test_hmm-generic")
        self.assertIn((*run, "a.good"), found)
        self.assertEqual(found[*run, "a.skipped _ TODO"].skip_reason, "needs more")

    def test_a_reader_of_a_broken_document(self) -> None:
        text = ktap.document(samples.passing()).splitlines()
        self.assertIsNotNone(ktap.problem(ktap.parse(text[:-4])))
        self.assertIsNone(ktap.problem(ktap.parse(text)))


class Junit(unittest.TestCase):
    def test_well_formed_with_right_numbers(self) -> None:
        for report in reports():
            with self.subTest(target=report.target):
                root = ElementTree.fromstring(junit.document(report))
                self.assertEqual(root.tag, "testsuites")
                self.assertEqual(int(root.get("tests", "")), len(root.findall("testsuite/testcase")))
                bad = int(root.get("failures", "")) + int(root.get("errors", ""))
                self.assertEqual(bad > 0, report.status != Status.PASSED)

    def test_outcomes(self) -> None:
        root = ElementTree.fromstring(junit.document(samples.report()))
        self.assertEqual(
            [root.get(n) for n in ("tests", "failures", "errors", "skipped")], ["9", "5", "1", "1"]
        )
        failure = root.find(".//testcase[@name='a.bad']/failure")
        assert failure is not None
        self.assertIn("x < 1 & y", failure.text or "")
        names = [suite.get("name", "") for suite in root]
        self.assertNotIn("sample.base-base-test_hmm-private", names)


class Kcidb(unittest.TestCase):
    def test_schema(self) -> None:
        self.assertEqual(kcidb.VERSION, {"major": 5, "minor": kcidb_io.schema.LATEST.minor})
        for report in reports():
            with self.subTest(target=report.target):
                self.assertTrue(kcidb_io.schema.LATEST.is_valid_exactly(kcidb.document(report)))

    def test_what_ran_on_which_kernel(self) -> None:
        data = kcidb.document(samples.report())
        self.assertEqual(len(data["checkouts"]), 2)
        release = {build["id"]: build["misc"]["release"] for build in data["builds"]}
        tests = Counter((release[test["build_id"]], test["status"]) for test in data["tests"])
        # Neither the record of base nor the comparison, but the run that hung.
        expected = {("7.3.4-base", "FAIL"): 1, ("7.3.4-series", "FAIL"): 5}
        expected |= {("7.3.4-series", status): 1 for status in ("PASS", "SKIP", "MISS")}
        self.assertEqual(tests, expected)

    def test_origin(self) -> None:
        with mock.patch.dict(os.environ, {kcidb.ORIGIN_VARIABLE: "my_ci"}):
            data = kcidb.document(samples.passing())
            self.assertTrue(data["tests"][0]["id"].startswith("my_ci:"))
        with mock.patch.dict(os.environ, {kcidb.ORIGIN_VARIABLE: "My CI"}), self.assertRaises(MachineError):
            kcidb.document(samples.passing())


if __name__ == "__main__":
    unittest.main()
