import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from harness import guest, vm
from harness.paths import LINUX
from harness.results import Outcome, Run


@unittest.skipUnless(LINUX.is_dir(), "no build/linux, whose parser reads KTAP")
class RunKtap(unittest.TestCase):
    def run_ktap(self, text: str, status: int = 0, problem: str | None = None) -> Run:
        result = vm.Result(status=status, booted=True, lines=list(enumerate(text.splitlines(), 1)))

        def boot(*arguments: object) -> vm.Result:
            on_line = arguments[4]
            assert callable(on_line)
            for seconds, line in result.lines:
                on_line(seconds, line)
            return result

        run = Run("selftests", "series", "test_hmm", "generic")
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(vm, "run", boot),
            mock.patch.object(vm.Result, "problem", return_value=problem),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            guest.run_ktap(run, "command", Path(folder), 1)
            self.assertEqual((Path(folder) / "output").read_text(), text.strip() + "\n")
        return run

    DOCUMENT = """KTAP version 1
1..1
    KTAP version 1
    # Subtest: generic
    1..3
    ok 1 a.good
    # x is 1
    not ok 2 a.bad
    ok 3 a.skipped # SKIP no x
not ok 1 generic
"""

    def test_tests(self) -> None:
        run = self.run_ktap(self.DOCUMENT, status=1)
        self.assertEqual([test.outcome for test in run.tests], [Outcome.PASS, Outcome.FAIL, Outcome.SKIP])
        self.assertEqual([test.seconds for test in run.tests], [5, 2, 1])
        self.assertEqual([test.detail for test in run.tests], [[], ["    # x is 1"], ["no x"]])
        self.assertIsNone(run.problem)

    def test_problems(self) -> None:
        cut = "\n".join(self.DOCUMENT.splitlines()[:7])
        passed = self.DOCUMENT.replace("not ok", "ok")
        self.assertIn("no complete KTAP", self.run_ktap(cut, status=1).problem or "")
        self.assertIn("no complete KTAP", self.run_ktap("cannot load test_hmm", status=1).problem or "")
        self.assertIn("status 7 after the tests", self.run_ktap(passed, status=7).problem or "")
        self.assertEqual(self.run_ktap(passed, problem="the guest died").problem, "the guest died")


class Commands(unittest.TestCase):
    def test_the_guest_knows_the_addresses(self) -> None:
        option = guest.module_option(Run("selftests", "series", "test_hmm", "generic"))
        addresses = "spm_addr_dev0=$SPM_ADDR_DEV0 spm_addr_dev1=$SPM_ADDR_DEV1"
        self.assertEqual(option, f'--module "test_hmm device_type=generic {addresses}"')


if __name__ == "__main__":
    unittest.main()
