import subprocess
import tempfile
import unittest
from pathlib import Path

from harness import line_table
from harness.errors import MachineError
from harness.paths import SCRIPTS

SOURCE = """volatile int shared;
static inline __attribute__((always_inline)) int twice(int value)
{
	return shared + value;
}
int used(int value)
{
	if (value > 7)
		return twice(value);
	shared = 3;
	return value;
}
__attribute__((section(".init.text"))) int first(void)
{
	return shared;
}
"""
OTHER = "int other(void) { return 1; }\n"
# In SOURCE: what is inlined, and where; and in a section of its own.
LINES_OF_USED = {4, 8, 9, 10}
LINE_OF_FIRST = 15


class Read(unittest.TestCase):
    def setUp(self) -> None:
        self.tree = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.tree / "mm").mkdir()
        (self.tree / "mm/a.c").write_text(SOURCE)
        (self.tree / "mm/other.c").write_text(OTHER)

    def compile(self, *options: str) -> Path:
        output = self.tree / "output"
        clang = ["bash", "-c", '. "$0"; exec "clang$(find_llvm)" "$@"', str(SCRIPTS / "lib.sh")]
        flags = ["-O1", "-ffreestanding", "-fno-pic", "-fno-asynchronous-unwind-tables", "-nostdlib"]
        command = [*clang, *flags, *options, "-o", str(output)]
        subprocess.run(command, cwd=self.tree / "mm", check=True)
        return output

    def lines(self, rows: list[line_table.Row]) -> set[int]:
        self.assertEqual({row.file for row in rows}, {"mm/a.c"})
        return {row.line for row in rows}

    def test_sections_of_an_object_are_apart(self) -> None:
        for dwarf in ("-gdwarf-4", "-gdwarf-5"):
            with self.subTest(dwarf=dwarf):
                path = self.compile("-c", "-gline-tables-only", dwarf, "a.c")
                table = line_table.read(path, self.tree, {"mm/a.c"})
                start, size = table.sections[".init.text"]
                in_init = [row for row in table.rows if start <= row.start < start + size]
                self.assertIn(LINE_OF_FIRST, self.lines(in_init))
                others = self.lines([row for row in table.rows if row not in in_init])
                self.assertLessEqual(LINES_OF_USED, others)
                self.assertNotIn(LINE_OF_FIRST, others)

    def test_a_linked_file_has_its_addresses(self) -> None:
        layout = ["-static", "-fuse-ld=lld", "-Wl,-e,used", "-Wl,--section-start=.text=0x1000000"]
        path = self.compile("-gline-tables-only", *layout, "a.c", "other.c")
        table = line_table.read(path, self.tree, {"mm/a.c"})
        self.assertEqual(table.sections[".text"][0], 0x100_0000)
        self.assertTrue(table.reached([0x100_0000]))
        self.assertFalse(table.reached([0]))

    def test_a_file_without_lines_is_an_error(self) -> None:
        path = self.compile("-c", "a.c")
        with self.assertRaisesRegex(MachineError, "has no line tables"):
            line_table.read(path, self.tree, {"mm/a.c"})
        with self.assertRaisesRegex(MachineError, "cannot read .*: No such file"):
            line_table.read(self.tree / "missing", self.tree, {"mm/a.c"})


# The second line calls what is inlined in it.
ROWS = [
    line_table.Row(0x10, 0x18, "a.c", 1),
    line_table.Row(0x18, 0x30, "a.c", 2),
    line_table.Row(0x20, 0x28, "a.c", 7),
    line_table.Row(0x90, 0x98, "b.c", 1),
]


class Table(unittest.TestCase):
    def test_a_line_is_reached_with_what_is_inlined_in_it(self) -> None:
        table = line_table.LineTable(ROWS)
        self.assertEqual(table.reached([0x24]), {("a.c", 2), ("a.c", 7)})
        self.assertEqual(table.reached([0x28, 0x97]), {("a.c", 2), ("b.c", 1)})
        self.assertEqual(table.reached([0xF, 0x30, 0x98]), set())

    def test_ranges_that_are_near_are_one(self) -> None:
        table = line_table.LineTable(ROWS)
        self.assertEqual(table.ranges(0x20), [(0x10, 0x30), (0x90, 0x98)])
        self.assertEqual(table.ranges(0x100), [(0x10, 0x98)])


if __name__ == "__main__":
    unittest.main()
