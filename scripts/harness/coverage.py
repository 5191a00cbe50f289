"""Which lines of the series' code were reached, by what QEMU has translated: it translates an
instruction when that is reached for the first time.

Compilers move, merge and drop code: a line without instructions of its own is none here, one
that a condition is computed for without a branch is reached whatever comes of it, and code of a
generic function that nobody uses does not exist.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import environment, guest, kunit, line_table, vm
from harness.errors import MachineError
from harness.line_table import LineTable
from harness.paths import LINUX
from harness.results import Outcome, Run, Test

KERNEL = "coverage"  # the flavour
MODULES = sorted({*guest.DRIVERS, *(module.split()[0] for module in kunit.MODULES)})
# Of the files that the series changes, those with code that is looked at, if it has line tables.
SOURCES = ("*.c", "*.rs", ":!mm/tests")
# Where modules may be loaded, above the kernel.
MODULE_AREA = (0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_FEFF_FFFF)
# Nearer than this, code is in one range: QEMU looks at all ranges.
GAP = 1 << 16

NOTE = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? code\.log: (\S+) (\d+)((?: \S+=0x[0-9a-f]+)*)$")
# Bytes that did not fit into the first line have one of their own, without an instruction.
TRANSLATED = re.compile(rb"^0x([0-9a-f]+): ")

Lines = set[tuple[str, int]]  # files of the source, and lines in them


@dataclass
class Code:
    """What can be reached."""

    kernel: LineTable
    modules: dict[str, LineTable]

    def lines(self) -> Lines:
        return self.kernel.lines().union(*(table.lines() for table in self.modules.values()))

    def ranges(self) -> str:
        """As vm.run() takes them."""
        return ",".join(f"{start:#x}..{end:#x}" for start, end in [*self.kernel.ranges(GAP), MODULE_AREA])


def read_code() -> Code:
    changed = environment.git(LINUX, "diff", "--name-only", "base", "--", *SOURCES)
    if not changed:
        raise MachineError(f"no base and series in {LINUX}")
    wanted = set(changed.splitlines())
    folder = vm.kernel_image(KERNEL).parent
    modules = {}
    for name in MODULES:
        path = next(folder.rglob(f"{name}.ko"), None)
        if path is None:
            raise MachineError(f"no module {name} of the {KERNEL} kernel")
        modules[name] = line_table.read(path, LINUX, wanted)
    return Code(line_table.read(environment.kernel_folder(KERNEL) / "vmlinux", LINUX, wanted), modules)


@dataclass
class Load:
    """A module while it was loaded."""

    module: str
    sections: dict[str, int]  # where they were
    begin: int  # of QEMU's log, in bytes
    end: int | None = None  # none: until the VM ended

    def place(self, address: int, table: LineTable) -> int | None:
        """The address in the module's own file."""
        for name, start in self.sections.items():
            in_file, size = table.sections.get(name, (0, 0))
            if start <= address < start + size:
                return address - start + in_file
        return None


def loads(console: str) -> list[Load]:
    """What guest/note-module has said: before, while and after a module was loaded."""
    found: list[Load] = []
    before: dict[str, int] = {}
    loaded: dict[str, Load] = {}
    for note in filter(None, map(NOTE.match, console.splitlines())):
        module, position = note[1], int(note[2])
        if note[3]:
            sections = dict(part.split("=") for part in note[3].split())
            load = Load(module, {name: int(start, 16) for name, start in sections.items()}, before[module])
            loaded[module] = load
            found.append(load)
        else:
            before[module] = position
            if module in loaded:
                loaded.pop(module).end = position
    return found


def translated(log: Path) -> Iterator[tuple[int, int]]:
    """Where in QEMU's log an instruction is, and its address."""
    position = 0
    try:
        with open(log, "rb") as lines:
            for line in lines:
                if match := TRANSLATED.match(line):
                    yield position, int(match[1], 16)
                position += len(line)
    except OSError as error:
        raise MachineError(f"QEMU did not log what it translates: {error.strerror}: {log}") from error


def reached(folder: Path, code: Code) -> Lines:
    """The lines that were reached in the VM whose logs are in a folder."""
    noted = loads((folder / "console.log").read_text(errors="replace"))
    kernel: set[int] = set()
    modules: dict[str, set[int]] = {name: set() for name in code.modules}
    for position, address in translated(folder / vm.CODE_LOG):
        if address < MODULE_AREA[0]:
            kernel.add(address)
            continue
        for load in noted:
            if load.begin <= position and (load.end is None or position < load.end):
                place = load.place(address, code.modules[load.module])
                if place is not None:
                    modules[load.module].add(place)
    found = code.kernel.reached(kernel)
    return found.union(*(code.modules[name].reached(places) for name, places in modules.items()))


def by_file(lines: Lines) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for file, line in sorted(lines):
        found.setdefault(file, []).append(line)
    return found


def share(part: int, whole: int) -> str:
    return f"{part} {100 * part / whole:5.1f} %" if part else "-"


def table(lines: Lines, columns: Mapping[str, Lines]) -> str:
    """One line a file: how many lines it has, and how many were reached, by all and by each column."""
    everything: Lines = set().union(*columns.values())
    files = by_file(lines)
    counted = {name: by_file(found) for name, found in {"reached": everything, **columns}.items()}
    rows = [["file", "lines", *counted]]
    for file, numbers in files.items():
        cells = [share(len(found.get(file, [])), len(numbers)) for found in counted.values()]
        rows.append([file, str(len(numbers)), *cells])
    totals = [share(sum(map(len, found.values())), len(lines)) for found in counted.values()]
    rows.append(["all", str(len(lines)), *totals])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + "\n" for row in rows
    )


def unreached(lines: Lines, found: Lines, tree: Path) -> str:
    """The lines that were not reached, with their text; a gap is where lines are between them."""
    parts = []
    for file, numbers in by_file(lines - found).items():
        source = (tree / file).read_text(encoding="utf-8").splitlines()
        parts.append(f"{file}: {len(numbers)}\n")
        last = numbers[0] - 1
        for number in numbers:
            if number > last + 1:
                parts.append("\n")
            parts.append(f"{number:5}  {source[number - 1].expandtabs()}\n")
            last = number
        parts.append("\n")
    return "".join(parts)


def run(lines: Lines, found: Lines) -> Run:
    """What summary.json has of it: no line has to be reached."""
    total, count = by_file(lines), by_file(found)
    tests = [
        Test(
            file,
            Outcome.PASS,
            values={"lines": len(numbers), "reached": len(count.get(file, []))},
        )
        for file, numbers in total.items()
    ]
    return Run(KERNEL, KERNEL, tests=tests, derived=True)
