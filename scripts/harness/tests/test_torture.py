import contextlib
import io
import unittest
from pathlib import Path
from unittest import mock

from harness import guest, selftests, torture
from harness.results import Run


class Commands(unittest.TestCase):
    def commands(self, kernel: str, driver: str, arguments: list[str]) -> str:
        run = Run("torture", kernel, driver, "generic")
        with (
            mock.patch.object(selftests, "build", lambda: Path("program")),
            mock.patch.object(guest, "run_ktap") as run_ktap,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            torture.run_tests(run, Path("results"), 3, 7, arguments)
        return str(run_ktap.call_args.args[1])

    def test_whole_group_by_default(self) -> None:
        commands = self.commands("debug", "test_hmm_rs", [])
        self.assertIn("--seed 7 --minutes 3 --timeout-factor 4 --group torture --module", commands)
        self.assertIn(
            "--timeout-factor 1 torture.reload --module",
            self.commands("series", "test_hmm", ["torture.reload"]),
        )

    def test_the_guest_knows_the_addresses(self) -> None:
        commands = self.commands("debug", "test_hmm", [])
        self.assertIn('"test_hmm device_type=generic spm_addr_dev0=$SPM_ADDR_DEV0 ', commands)

    def test_status_is_that_of_the_tests(self) -> None:
        lines = self.commands("debug", "test_hmm_rs", []).splitlines()
        after = lines[next(n for n, line in enumerate(lines) if "--module" in line) + 1 :]
        self.assertEqual(after[:4], ["status=$?", "swapoff --all || exit", "(exit $status)", "status=$?"])

    def test_races_are_filtered(self) -> None:
        self.assertIn("filter-races test_hmm ", self.commands("kcsan", "test_hmm", []))
        self.assertNotIn("filter-races", self.commands("debug", "test_hmm", []))


if __name__ == "__main__":
    unittest.main()
