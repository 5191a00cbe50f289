import contextlib
import io
import json
import sys
import tempfile
import unittest
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from harness import bench, environment, guest, selftests, target, vm
from harness.bench import Cost, Measured, Row
from harness.errors import MachineError
from harness.results import Outcome, Report, Run, Status
from harness.tests import samples
from harness.tests.test_parts import load_verb

READ = Row("private", 4096, "device_read", bench.PAGES, 1)
MEMCPY = READ._replace(operation="memcpy")
ALONE = Row("private", 4096, "migrate", 1024, 1)
TWO_FILES = ALONE._replace(threads=2, files=2)


def line(row: Row, driver: str, elapsed: Sequence[int]) -> str:
    return json.dumps({"driver": driver, "elapsed": elapsed} | row._asdict())


def measured(rows: Mapping[Row, tuple[float, float]], unit: str = bench.INSTRUCTIONS) -> Measured:
    """By what each driver took."""
    return Measured(
        unit,
        {"CLANG_VERSION": "190107"},
        {
            row: {driver: Cost(cost, 0.01) for driver, cost in zip(guest.DRIVERS, costs, strict=True)}
            for row, costs in rows.items()
        },
    )


class Rows(unittest.TestCase):
    def test_rounds_of_all_loads_of_a_driver(self) -> None:
        rows = bench.parse(
            [
                "modprobe says something",
                line(READ, "test_hmm", [100, 104]),
                line(READ, "test_hmm_rs", [90]),
                line(READ, "test_hmm", [101]),
            ]
        )
        self.assertEqual(rows, {READ: {"test_hmm": Cost(101, 0.0396), "test_hmm_rs": Cost(90, 0)}})

    def test_file(self) -> None:
        one = measured({READ: (2.5, 2), MEMCPY: (1, 1)})
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "bench.json"
            path.write_text(bench.to_json(one), encoding="utf-8")
            self.assertEqual(bench.load(path), one)
            one.threads = measured({ALONE: (10, 8), TWO_FILES: (10, 16)}).rows
            path.write_text(bench.to_json(one), encoding="utf-8")
            self.assertEqual(bench.load(path), one)
            # As it was recorded before there were threads and chunks.
            old = json.loads(bench.to_json(measured({READ: (2.5, 2)})))
            del old["threads"], old["rows"][0]["threads"], old["rows"][0]["chunks"]
            path.write_text(json.dumps(old), encoding="utf-8")
            self.assertEqual(bench.load(path), measured({READ: (2.5, 2)}))
            for wrong in ('{"schema": 0}', "{}", "x"):
                path.write_text(wrong, encoding="utf-8")
                with self.assertRaisesRegex(MachineError, "bench.json"):
                    bench.load(path)

    def test_table(self) -> None:
        text = bench.table(
            measured({MEMCPY: (bench.PAGES, bench.PAGES), READ: (8 * bench.PAGES, 4 * bench.PAGES)})
        )
        read = next(row for row in text.splitlines() if row.startswith("device_read"))
        self.assertEqual(read.split()[-6:], ["8", "4", "2.00", "8.0", "4.0", "1.0%"])
        self.assertIn("geometric mean 2.00, least 2.00", text)

    def test_growth(self) -> None:
        self.assertAlmostEqual(bench.slope({1: 5, 2: 10, 4: 20}) or 0, 1)
        self.assertAlmostEqual(bench.slope({1: 7, 64: 7}) or 0, 0)
        self.assertIsNone(bench.slope({4: 20}))
        rows = {
            READ._replace(memory_type=memory_type, pages=pages): (pages, pages**2)
            for memory_type in ("private", "generic")
            for pages in bench.growth_pages(memory_type)
        }
        of_file = READ._replace(pages=bench.PAGES_OF_FILE)
        rows |= {of_file._replace(chunks=chunks): (100, 100 * chunks) for chunks in bench.GROWTH_CHUNKS}
        rows |= {of_file._replace(files=files): (100, 100 * files) for files in bench.GROWTH_FILES}
        # One point is no line.
        rows[of_file._replace(operation="open_close", pages=0)] = (1, 1)
        found = [text.split(None, 3)[1:] for text in bench.growth(measured(rows)).splitlines() if text]
        self.assertEqual(
            [" ".join(" ".join(each).split()) for each in found if each[0] != "over"],
            [
                "private, 4 KB 1.00 2.00 4 to 1024",
                "generic, 4 KB 1.00 2.00 4 to 256",
                "private, 4 KB 0.00 1.00 1 to 64",
                "private, 4 KB 0.00 1.00 1 to 16",
            ],
        )

    def test_threads(self) -> None:
        one = measured({})
        self.assertEqual(bench.table_of_threads(one), "")
        one.threads = measured({ALONE: (10, 8), TWO_FILES: (10, 16)}).rows
        self.assertEqual(bench.speedups(one.threads)[TWO_FILES], {"test_hmm": 2, "test_hmm_rs": 1})
        last = bench.table_of_threads(one).splitlines()[-1]
        self.assertRegex(last, r"^2 threads, a file each, private +2\.00 +1\.00 +1\.0%$")
        # One thread was not measured.
        del one.threads[ALONE]
        self.assertEqual(bench.speedups(one.threads)[TWO_FILES], {})


class Comparison(unittest.TestCase):
    def outcomes(self, old: Measured, new: Measured) -> list[Outcome]:
        run, _ = bench.compare(old, new, ["private"])
        return [test.outcome for test in run.tests]

    def test_only_more_is_a_failure(self) -> None:
        old = measured({READ: (1000, 1000)})
        self.assertEqual(self.outcomes(old, measured({READ: (1020, 1021)})), [Outcome.PASS, Outcome.FAIL])
        self.assertEqual(self.outcomes(old, measured({READ: (10, 1000)})), [Outcome.PASS, Outcome.PASS])

    def test_rows_that_only_one_has(self) -> None:
        found = self.outcomes(measured({MEMCPY: (1, 1)}), measured({READ: (1, 1)}))
        self.assertEqual(sorted(found), sorted([Outcome.NOT_RUN] * 2 + [Outcome.SKIP] * 2))

    def test_other_types_and_growth_are_no_matter(self) -> None:
        old = measured({READ._replace(memory_type="generic"): (1, 1), READ._replace(pages=1024): (1, 1)})
        self.assertEqual(self.outcomes(old, measured({})), [])

    def test_another_unit(self) -> None:
        run, _ = bench.compare(measured({}), measured({}, bench.NANOSECONDS), ["private"])
        self.assertFalse(run.ok())

    def test_what_changed(self) -> None:
        _, text = bench.compare(measured({READ: (1000, 1000)}), measured({READ: (900, 1004)}), ["private"])
        self.assertIn("-10.0%", text)
        self.assertNotIn("test_hmm_rs", text)


class Verb(unittest.TestCase):
    """make bench with a VM that only pretends."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.verb = load_verb("bench")
        self.record = self.folder / "record.json"
        self.cost = 1000
        self.status = 0
        self.threads_time_out = False
        self.counting: list[bool] = []
        self.enterContext(mock.patch.object(target, "default_folder", return_value=self.folder / "bench"))
        self.enterContext(mock.patch.object(environment, "collect", lambda *_: samples.environment()))
        self.enterContext(mock.patch.object(selftests, "build", return_value=Path("hmm-selftests")))
        self.enterContext(mock.patch.object(vm, "at_once", return_value=1))
        self.enterContext(mock.patch.object(vm, "accelerator", return_value="tcg"))
        self.enterContext(mock.patch.object(guest, "boot", self.boot))
        self.enterContext(mock.patch.object(bench, "RECORD", self.record))
        self.tools = self.enterContext(mock.patch.object(bench, "tools", return_value={"RUSTC_VERSION": "1"}))

    def boot(
        self, run: Run, commands: str, *_: object, counting: bool = False, memory_mb: int = 0
    ) -> tuple[vm.Result, list[str]]:
        # Only private memory has several chunks.
        grows = "--threads" not in commands
        self.assertEqual("--chunks" in commands, grows and run.memory_type == "private")
        self.assertEqual(memory_mb > vm.MEMORY_MB, grows)
        self.counting.append(counting)
        self.assertEqual("--idle" in commands, counting)
        if "--threads" in commands:
            rows = [ALONE, TWO_FILES]
            if self.threads_time_out:
                run.problem = "the guest hung"
            return vm.Result(0), [line(row, driver, [8]) for row in rows for driver in guest.DRIVERS]
        row = READ._replace(memory_type=run.memory_type)
        return vm.Result(self.status), [line(row, driver, [self.cost]) for driver in guest.DRIVERS]

    def run_verb(self, *arguments: str) -> Report:
        with (
            mock.patch.object(sys, "argv", ["bench", *arguments]),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            report: Report = self.verb.main()
        return report

    def test_the_record(self) -> None:
        self.assertEqual(self.run_verb().status, Status.PASSED)
        self.assertFalse(self.record.exists())
        self.assertEqual(self.run_verb("--record").status, Status.PASSED)
        self.cost = 1010
        self.assertEqual(self.run_verb().status, Status.PASSED)
        self.cost = 1030
        self.assertEqual(self.run_verb("--types", "private").status, Status.FAILED)
        # With another compiler that says nothing of the code.
        self.tools.return_value = {"RUSTC_VERSION": "2"}
        report = self.run_verb()
        self.assertEqual((report.status, len(report.warnings)), (Status.PASSED, 1))

    def test_another_file(self) -> None:
        self.run_verb()
        kept = self.folder / "old.json"
        (self.folder / "bench/bench.json").rename(kept)
        self.cost = 2000
        self.assertEqual(self.run_verb("--compare", str(kept)).status, Status.FAILED)
        with self.assertRaisesRegex(MachineError, "none.json"):
            self.run_verb("--compare", "none.json")

    def test_what_is_measured(self) -> None:
        report = self.run_verb("--types", "coherent")
        self.assertEqual([test.values["instructions"] for test in report.runs[0].tests], [1000, 1000])
        values = {test.name: test.values["nanoseconds"] for test in report.runs[1].tests}
        self.assertEqual(values["test_hmm private migrate 4K-pages 4M 2 files 2 threads"], 8)
        self.assertEqual(self.counting, [True, False])
        with mock.patch.object(vm, "accelerator", return_value="kvm"):
            self.run_verb("--types", "coherent")
        self.assertEqual(self.counting, [True, False, False, False])

    def test_threads_that_hang(self) -> None:
        self.threads_time_out = True
        self.assertEqual(self.run_verb().status, Status.FAILED)
        with self.assertRaisesRegex(MachineError, "not recorded"):
            self.run_verb("--record")

    def test_the_program_fails(self) -> None:
        self.status = 1
        self.assertEqual(self.run_verb().status, Status.FAILED)
        with self.assertRaisesRegex(MachineError, "not recorded"):
            self.run_verb("--record")


if __name__ == "__main__":
    unittest.main()
