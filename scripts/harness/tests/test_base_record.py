import tempfile
import unittest
from pathlib import Path
from unittest import mock

from harness import base_record
from harness.base_record import Measured
from harness.errors import MachineError
from harness.paths import SCRIPTS
from harness.results import Outcome, Run, Test

PASS, FAIL, CRASH, HANG, NOT_RUN = Outcome.PASS, Outcome.FAIL, Outcome.CRASH, Outcome.HANG, Outcome.NOT_RUN


def run(**outcomes: Outcome) -> Run:
    detail = {Outcome.PASS: ["1 reference"]}
    tests = [Test(name, outcome, 1.0, detail.get(outcome, [])) for name, outcome in outcomes.items()]
    return Run("base", "base", "test_hmm", "private", tests=tests)


class Record(unittest.TestCase):
    def setUp(self) -> None:
        self.path = Path(self.enterContext(tempfile.TemporaryDirectory())) / "record.json"
        self.enterContext(mock.patch.object(base_record, "PATH", self.path))
        self.set_hand("7.3.4", "a")

    def set_hand(self, version: str, config_hash: str) -> None:
        hand = Measured(version, config_hash)
        self.enterContext(mock.patch.object(base_record, "at_hand", mock.Mock(return_value=hand)))

    def update(self, *runs: Run, details: bool = False) -> list[str]:
        return base_record.update("s", runs, "memory_type", details)

    def compare(self, *runs: Run, details: bool = False, whole: bool = True) -> Run:
        return base_record.compare("s", runs, "memory_type", details, whole)

    def use(self) -> Run:
        section, _ = base_record.use("s")
        return base_record.recorded_run(section, Run("base", "base", "test_hmm", "private"), "private")

    def test_what_was_measured_is_used(self) -> None:
        self.assertEqual(self.update(run(a=PASS, b=FAIL)), [])
        used = self.use()
        self.assertEqual(used.outcomes(), {"a": PASS, "b": FAIL})
        self.assertTrue(used.recorded)
        self.assertFalse(used.decides)

    def test_races(self) -> None:
        self.update(run(a=PASS, b=CRASH))
        self.update(run(a=FAIL, b=HANG))
        self.assertEqual(self.use().outcomes(), {"a": FAIL, "b": CRASH})
        for a in (PASS, FAIL, CRASH):
            self.assertEqual(self.compare(run(a=a, b=FAIL)).failed(), [])
        self.assertEqual([test.name for test in self.compare(run(a=PASS, b=PASS)).failed()], ["private b"])

    def test_another_kernel_starts_anew(self) -> None:
        self.update(run(a=FAIL, b=PASS))
        self.set_hand("7.3.5", "a")
        self.update(run(a=PASS))
        self.assertEqual(self.use().outcomes(), {"a": PASS})

    def test_not_run(self) -> None:
        self.assertEqual(self.update(run(a=PASS, b=NOT_RUN)), ["b"])
        self.update(run(b=PASS))
        self.assertEqual(self.update(run(a=NOT_RUN, b=NOT_RUN)), [])
        self.assertEqual(self.use().outcomes(), {"a": PASS, "b": PASS})

    def test_disagreements(self) -> None:
        self.update(run(a=PASS, b=FAIL), details=True)
        for measured in (
            run(a=FAIL, b=FAIL),
            run(a=PASS, b=PASS),
            run(a=PASS),
            run(a=PASS, b=FAIL, c=PASS),
            run(a=NOT_RUN, b=FAIL),
        ):
            self.assertEqual(len(self.compare(measured).failed()), 1, measured)
        self.assertTrue(self.compare(run(a=PASS, b=FAIL)).ok())
        self.assertTrue(self.compare(run(a=PASS), whole=False).ok())

    def test_details(self) -> None:
        self.update(run(a=PASS), details=True)
        other = run(a=PASS)
        other.tests[0].detail = ["2 references"]
        self.assertTrue(self.compare(other).ok())
        failed = self.compare(other, details=True).failed()
        self.assertIn("measured: 2 references", failed[0].detail)

    def test_another_base(self) -> None:
        self.update(run(a=PASS))
        self.set_hand("7.3.5", "b")
        _, warnings = base_record.use("s")
        self.assertEqual(len(warnings), 2)
        self.assertIsNotNone(self.compare(run(a=PASS)).problem)
        self.set_hand("7.4", "a")
        with self.assertRaises(MachineError):
            base_record.use("s")

    def test_nothing_recorded(self) -> None:
        with self.assertRaises(MachineError):
            base_record.use("s")
        self.assertIsNotNone(self.compare(run(a=PASS)).problem)
        self.path.write_text("{")
        with self.assertRaises(MachineError):
            base_record.use("s")

    def test_a_test_a_line(self) -> None:
        self.update(run(b=PASS, a=CRASH), details=True)
        lines = self.path.read_text().splitlines()
        self.assertIn('    "a": {"outcomes": ["crash"], "detail": []}', lines)
        before = self.path.read_text()
        base_record.save(base_record.load())
        self.assertEqual(self.path.read_text(), before)


class AtHand(unittest.TestCase):
    def test_a_kernel_of_other_options_is_not_recorded(self) -> None:
        folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(mock.patch.object(base_record, "kernel_folder", return_value=folder))
        self.enterContext(mock.patch.object(base_record, "version", return_value="7.3.4"))
        configs = [SCRIPTS / f"config/{name}.config" for name in base_record.FRAGMENTS]
        text = "".join(path.read_text() for path in configs)
        (folder / "fragments").write_text(text)
        self.assertEqual(base_record.at_hand(built=True), base_record.at_hand())
        (folder / "fragments").write_text(text + "CONFIG_MORE=y\n")
        with self.assertRaisesRegex(MachineError, "not configured with base, vm, dax"):
            base_record.at_hand(built=True)


if __name__ == "__main__":
    unittest.main()
