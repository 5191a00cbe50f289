import contextlib
import io
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from harness import environment, summary, target, vm
from harness.errors import MachineError
from harness.paths import SCRIPTS
from harness.results import Outcome, Report, Run, Status, Test
from harness.tests import samples


class Reporting(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(mock.patch.object(environment, "collect", lambda *_: samples.environment()))

    def test_an_old_verdict_does_not_outlive_a_failure(self) -> None:
        summary.write(samples.passing(), self.folder)
        with self.assertRaises(MachineError), target.reporting("t", self.folder) as report:
            self.assertEqual(summary.status(self.folder), Status.ERROR)
            report.runs = samples.passing().runs
            raise MachineError("no disk")
        left = summary.read(self.folder)
        assert left
        self.assertEqual((left.status, left.error, len(left.runs)), (Status.ERROR, "no disk", 1))

    def test_a_report_needs_no_kernel(self) -> None:
        """As that of make check, before any kernel is built, where there is /dev/kvm."""
        build = self.folder / "build"
        build.mkdir()
        self.enterContext(mock.patch.object(vm, "BUILD", build))
        self.enterContext(mock.patch.object(os, "access", return_value=True))
        with target.reporting("t", self.folder) as report:
            report.runs = samples.passing().runs
        left = summary.read(self.folder)
        assert left
        self.assertEqual((left.status, left.error), (Status.PASSED, None))

    def test_a_failed_test_is_one_even_when_the_machine_fails(self) -> None:
        with self.assertRaises(SystemExit), target.reporting("t", self.folder) as report:
            report.runs = [Run("s", tests=[Test("a", Outcome.FAIL)])]
            sys.exit(130)
        self.assertEqual(summary.status(self.folder), Status.FAILED)

    def test_success(self) -> None:
        with target.reporting("t", self.folder, seed=3) as report:
            report.runs = samples.passing().runs
        left = summary.read(self.folder)
        assert left
        self.assertEqual((left.status, left.error, left.seed), (Status.PASSED, None, 3))


class ExitStatus(unittest.TestCase):
    def ends_with(self, main: object) -> int:
        with (
            mock.patch("signal.signal"),
            contextlib.redirect_stderr(io.StringIO()),
            self.assertRaises(SystemExit) as end,
        ):
            target.exit_with(main)  # type: ignore[arg-type]
        return int(end.exception.code or 0)

    def test_of_reports(self) -> None:
        self.assertEqual(self.ends_with(samples.passing), 0)
        self.assertEqual(self.ends_with(samples.report), 1)
        self.assertEqual(self.ends_with(lambda: Report("t", error="no disk")), 2)

    def test_of_errors(self) -> None:
        for error in (MachineError("no disk"), ZeroDivisionError()):
            self.assertEqual(self.ends_with(mock.Mock(side_effect=error)), 2)

    def test_of_verbs(self) -> None:
        for command in (
            ["hmm_tests.py", "--types", "x"],
            ["verdict.py", "no-such-target"],
            ["vm.py", "--kernel", "x"],
        ):
            done = subprocess.run(
                [sys.executable, SCRIPTS / command[0], *command[1:]], capture_output=True, check=False
            )
            self.assertEqual(done.returncode, 2, command)


class Seeds(unittest.TestCase):
    def test_choice(self) -> None:
        self.assertEqual(environment.choose_seed("7"), 7)
        self.assertEqual(environment.choose_seed(str((1 << 64) - 1)), (1 << 64) - 1)
        self.assertNotEqual(environment.choose_seed(None), environment.choose_seed(None))
        for bad in ("x", "-1", str(1 << 64), "²"):
            with self.assertRaises(MachineError):
                environment.choose_seed(bad)


@unittest.skipUnless(os.access("/bin/bash", os.X_OK), "no bash")
class ShellResults(unittest.TestCase):
    """results.sh, with a build folder of its own."""

    def run_script(self, body: str) -> tuple[int, Report]:
        with tempfile.TemporaryDirectory() as name:
            top = Path(name) / "top"
            top.mkdir()
            for linked in ("scripts", "selftests", "patches"):
                (top / linked).mkdir()
                for path in (SCRIPTS.parent / linked).iterdir():
                    # The scripts find their folder by what they are called by.
                    if path.name == "harness":
                        (top / linked / "harness").mkdir()
                        for module in path.glob("*.py"):
                            (top / linked / "harness" / module.name).write_text(module.read_text())
                    elif path.name == "shell_results.py":
                        (top / linked / path.name).write_text(path.read_text())
                        (top / linked / path.name).chmod(0o755)
                    else:
                        (top / linked / path.name).symlink_to(path)
            script = (
                f'. "{top}/scripts/lib.sh"\ntop={top} build={top}/build\n. "{top}/scripts/results.sh"\n{body}'
            )
            done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
            report = summary.read(top / "build/results/part")
            self.assertIsNotNone(report, done.stderr)
            assert report
            return done.returncode, report

    def test_passed(self) -> None:
        status, report = self.run_script("begin_results part; checked 'a b' true; checked c echo hello")
        self.assertEqual((status, report.status), (0, Status.PASSED))
        self.assertEqual([test.name for test in report.runs[0].tests], ["a b", "c"])

    def test_failed_and_went_on(self) -> None:
        body = "bad() { echo why; false; echo not here; }\nbegin_results part; checked a bad; checked b true"
        status, report = self.run_script(body)
        self.assertEqual((status, report.status, report.error), (1, Status.FAILED, None))
        self.assertEqual([test.detail for test in report.runs[0].tests], [["why"], []])

    def test_no_verdict(self) -> None:
        for body in (
            "die 'no disk'",
            "checked a true; die 'no disk'",
            "checked a true; false",
            ":",
            "kill -TERM $$",
        ):
            with self.subTest(body=body):
                status, report = self.run_script(f"begin_results part; {body}")
                self.assertEqual(report.status, Status.ERROR)
                self.assertIn(status, (2, -15))


if __name__ == "__main__":
    unittest.main()
