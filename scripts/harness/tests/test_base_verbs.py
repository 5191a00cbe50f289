"""compare and dax with kernels that only pretend: what is booted, recorded and compared."""

import contextlib
import io
import sys
import tempfile
import unittest
from collections.abc import Iterable, Sequence
from pathlib import Path
from unittest import mock

from harness import base_record, bugs, dax, environment, hmm_tests, selftests, target, vm
from harness.base_record import Measured
from harness.errors import MachineError
from harness.results import Outcome, Report, Run, Status, Test
from harness.tests import samples
from harness.tests.test_parts import load_verb


class Kernels:
    """The two kernels, and what was booted."""

    def __init__(self) -> None:
        self.booted: list[str] = []
        self.base_fails = {"hmm.private.odd"}
        self.patched_fails: set[str] = set()
        self.base_note = "1 reference"

    def run(self, run: Run, names: Iterable[str]) -> None:
        self.booted.append(run.kernel)
        fails = self.base_fails if run.kernel == "base" else self.patched_fails
        for name in names:
            outcome = Outcome.FAIL if name in fails else Outcome.PASS
            note = self.base_note if run.kernel == "base" else "1 reference"
            run.tests.append(Test(name, outcome, 1.0, [note]))

    def hmm_tests(self, run: Run, *_: object, only: Sequence[str] | None = None, **__: object) -> None:
        # Of the tests of bugs, base fails all.
        self.run(run, only or [f"hmm.{run.memory_type}.odd", f"hmm.{run.memory_type}.even"])
        if run.kernel == "base" and only:
            for test in run.tests:
                test.outcome = Outcome.FAIL

    def selftests(self, run: Run, _folder: Path, names: Sequence[str], *_: object) -> None:
        self.hmm_tests(run, only=names)

    def dax(self, run: Run, names: Sequence[str], _folder: Path) -> None:
        self.run(run, names or ["mmap", "fork"])
        if run.kernel == "base" and names and names[0].startswith("bugs."):
            for test in run.tests:
                test.outcome = Outcome.FAIL


class Verbs(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.kernels = Kernels()
        self.record = self.folder / "record.json"

        def patch(module: object, **values: object) -> None:
            for name, value in values.items():
                self.enterContext(mock.patch.object(module, name, value))

        patch(base_record, PATH=self.record, at_hand=mock.Mock(return_value=Measured("7.3.4", "a")))
        patch(hmm_tests, build=mock.Mock(), run_tests=self.kernels.hmm_tests)
        patch(selftests, build=mock.Mock(), run_tests=self.kernels.selftests)
        patch(dax, run_tests=self.kernels.dax)
        patch(bugs, check_subjects=mock.Mock(), ATTEMPTS=1)
        patch(target, default_folder=lambda *_: self.folder)
        patch(environment, collect=lambda *_: samples.environment())
        patch(vm, at_once=lambda *_: 1, accelerator=lambda: "tcg")

    def verb(self, name: str, *arguments: str) -> Report:
        self.kernels.booted.clear()
        self.enterContext(mock.patch.object(sys, "argv", [name, *arguments]))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            report: Report = load_verb(name).main()
        return report

    def test_compare(self) -> None:
        with self.assertRaisesRegex(MachineError, "BASE=record"):
            self.verb("compare")
        self.assertEqual(self.verb("compare", "--base", "record").status, Status.PASSED)
        self.assertIn("base", self.kernels.booted)
        self.assertEqual(self.verb("compare").status, Status.PASSED)
        self.assertNotIn("base", self.kernels.booted)
        self.assertEqual(self.verb("compare", "--base", "measure").status, Status.PASSED)
        self.assertIn("base", self.kernels.booted)

    def test_the_debug_kernel_is_compared_with_the_same_record(self) -> None:
        self.verb("compare", "--base", "record")
        self.assertEqual(self.verb("compare", "--kernel", "debug").status, Status.PASSED)
        self.assertEqual(set(self.kernels.booted), {"debug"})

    def test_compare_finds_what_got_worse(self) -> None:
        self.verb("compare", "--base", "record")
        self.kernels.patched_fails = {"hmm.coherent.even"}
        report = self.verb("compare")
        self.assertEqual(report.status, Status.FAILED)
        comparison = next(run for run in report.runs if run.derived)
        self.assertEqual([test.name for test in comparison.failed()], ["hmm.coherent.even"])

    def test_compare_needs_all_of_base(self) -> None:
        self.verb("compare", "--base", "record")
        text = self.record.read_text().replace('"hmm.private.odd": ', '"hmm.private.other": ')
        self.record.write_text(text)
        report = self.verb("compare")
        failed = [test.name for run in report.runs if run.decides for test in run.failed()]
        self.assertEqual(failed, ["hmm.private.odd"])

    def test_compare_finds_a_wrong_record(self) -> None:
        self.verb("compare", "--base", "record")
        self.kernels.base_fails = set()
        self.kernels.patched_fails = set()
        self.assertEqual(self.verb("compare").status, Status.PASSED)
        report = self.verb("compare", "--base", "measure")
        wrong = [test.name for run in report.runs if run.decides for test in run.failed()]
        self.assertEqual(wrong, ["private hmm.private.odd"])

    def test_bugs(self) -> None:
        self.assertEqual(self.verb("bugs", "--base", "record").status, Status.PASSED)
        self.assertEqual(self.verb("bugs", "secret").status, Status.PASSED)
        self.assertEqual(set(self.kernels.booted), {"series"})
        self.assertEqual(self.verb("bugs", "--base", "measure", "secret").status, Status.PASSED)
        bug = next(bug for bug in bugs.BUGS if "secret" in bug.test)
        self.kernels.patched_fails = {bug.test}
        self.assertEqual(self.verb("bugs", "secret").status, Status.FAILED)

    def test_dax(self) -> None:
        self.assertEqual(self.verb("dax", "--base", "record").status, Status.PASSED)
        self.assertEqual(self.verb("dax", "--drivers", "xfs").status, Status.PASSED)
        self.assertEqual(self.kernels.booted, ["series"])
        self.assertEqual(self.verb("dax", "mmap").status, Status.PASSED)
        self.assertEqual(self.verb("dax", "--base", "measure", "mmap").status, Status.PASSED)
        self.kernels.base_note = "2 references"
        report = self.verb("dax", "--base", "measure", "--drivers", "xfs")
        wrong = [test.name for run in report.runs for test in run.failed()]
        self.assertEqual(wrong, ["xfs mmap", "xfs fork"] * 2)  # from the patched kernel, and the record


if __name__ == "__main__":
    unittest.main()
