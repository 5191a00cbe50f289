import tempfile
import unittest
from pathlib import Path

from harness import coverage, vm
from harness.errors import MachineError
from harness.line_table import LineTable, Row

CONSOLE = """[    1.000000] Linux version 7.3.4
[    2.000000] code.log: test_hmm 100
[    2.500000][  T1] code.log: test_hmm 300 .init.text=0xffffffffa0003000 .text=0xffffffffa0000000
[    3.000000] code.log: test_hmm 400
[    3.500000] code.log: zone_device_kunit 400
[    4.000000] code.log: zone_device_kunit 500 .text=0xffffffffa0000000
"""
TEXT, INIT = 1 << 32, 2 << 32


def module(file: str) -> LineTable:
    rows = [Row(TEXT, TEXT + 8, file, 1), Row(TEXT + 8, TEXT + 16, file, 2), Row(INIT, INIT + 8, file, 9)]
    return LineTable(rows, {".text": (TEXT, 16), ".init.text": (INIT, 8)})


class Reached(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.folder / "console.log").write_text(CONSOLE)
        kernel = LineTable([Row(0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_8100_0010, "mm/hmm.c", 5)])
        self.code = coverage.Code(kernel, {"test_hmm": module("c.c"), "zone_device_kunit": module("k.rs")})

    def reached(self, *logged: tuple[int, str]) -> coverage.Lines:
        """Of what begins at these positions of the log."""
        log = b""
        for position, line in logged:
            log += b"-" * (position - len(log) - 1) + b"\n" + line.encode() + b"\n"
        (self.folder / vm.CODE_LOG).write_bytes(log)
        return coverage.reached(self.folder, self.code)

    def test_when_a_module_was_loaded(self) -> None:
        loads = coverage.loads(CONSOLE)
        self.assertEqual(
            [(load.module, load.begin, load.end) for load in loads],
            [("test_hmm", 100, 400), ("zone_device_kunit", 400, None)],
        )

    def test_memory_is_used_again(self) -> None:
        first, second = (f"0xffffffffa000000{digit}:  90     nop" for digit in "08")
        self.assertEqual(self.reached((10, first), (90, second)), set())  # another module before
        self.assertEqual(self.reached((110, first), (450, second)), {("c.c", 1), ("k.rs", 2)})

    def test_sections(self) -> None:
        self.assertEqual(self.reached((110, "0xffffffffa0003007:  90   nop")), {("c.c", 9)})
        self.assertEqual(self.reached((110, "0xffffffffa0003008:  90   nop")), set())

    def test_kernel(self) -> None:
        self.assertEqual(self.reached((10, "0xffffffff8100000f:  c3   retq")), {("mm/hmm.c", 5)})
        self.assertEqual(self.reached((10, "IN: ")), set())

    def test_no_log(self) -> None:
        with self.assertRaisesRegex(MachineError, "did not log"):
            coverage.reached(self.folder, self.code)

    def test_ranges(self) -> None:
        self.assertEqual(
            self.code.ranges(),
            "0xffffffff81000000..0xffffffff81000010,0xffffffffa0000000..0xfffffffffeffffff",
        )


LINES = {("a.c", 2), ("a.c", 3), ("a.c", 5), ("b.rs", 1)}


class Written(unittest.TestCase):
    def test_table(self) -> None:
        columns = {"test_hmm": {("a.c", 2)}, "kunit": {("a.c", 2), ("b.rs", 1)}}
        rows = [line.split() for line in coverage.table(LINES, columns).splitlines()]
        self.assertEqual(
            rows,
            [
                ["file", "lines", "reached", "test_hmm", "kunit"],
                ["a.c", "3", *("1", "33.3", "%") * 3],
                ["b.rs", "1", "1", "100.0", "%", "-", "1", "100.0", "%"],
                ["all", "4", "2", "50.0", "%", "1", "25.0", "%", "2", "50.0", "%"],
            ],
        )

    def test_unreached(self) -> None:
        tree = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (tree / "a.c").write_text("one\ntwo\n\tthree\nfour\nfive\n")
        self.assertEqual(
            coverage.unreached(LINES, {("b.rs", 1)}, tree),
            "a.c: 3\n    2  two\n    3          three\n\n    5  five\n\n",
        )

    def test_summary(self) -> None:
        run = coverage.run(LINES, {("a.c", 2)})
        self.assertTrue(run.ok())
        self.assertEqual(
            {test.name: test.values for test in run.tests},
            {"a.c": {"lines": 3, "reached": 1}, "b.rs": {"lines": 1, "reached": 0}},
        )


if __name__ == "__main__":
    unittest.main()
