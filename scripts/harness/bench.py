"""What operations of the drivers cost: measures it in VMs, and compares it with a record.

A VM that counts says how many instructions an operation takes, the same each time on any
machine; another one how much time. Both drivers are measured in the same boot, each once
before and once after the other.
"""

import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import geometric_mean, linear_regression, median
from typing import Any, NamedTuple

from harness import environment, guest, selftests, vm
from harness.environment import kernel_folder
from harness.errors import MachineError
from harness.paths import SCRIPTS
from harness.results import Outcome, Run, Test

SOURCE, SOURCE_OF_THREADS = "bench", "bench-threads"
TYPES = selftests.TYPES
RECORD = SCRIPTS / "bench-record.json"
SCHEMA = 1
INSTRUCTIONS, NANOSECONDS = "instructions", "nanoseconds"
TIMEOUT = 3600  # seconds for a type

# In pages of 4 KB.
PAGES = 4096
GROWTH_PAGES = (1024, 4096, 16384, 65536)
GROWTH_FILES = (1, 4, 16, 64)
# Private memory has no end: a device is given one more chunk of 256 MB when all others are full.
GROWTH_PAGES_OF_PRIVATE = (*GROWTH_PAGES, 262144)
GROWTH_CHUNKS = (1, 4, 16)
MEMORY_MB = 6144  # of the VM, for as many chunks as that
PAGES_OF_FILE = 512  # of each of these, as the program has it
ROUNDS = {INSTRUCTIONS: 3, NANOSECONDS: 9}
# Threads that migrate small pages at once, on one file or on a file each; how often for each
# load of a driver, with as many loads of each.
THREADS = (1, 2, 4)
ROUNDS_OF_THREADS = 3
LOADS_OF_THREADS = 2
# With more it has got worse, and from there on it is listed.
TOLERANCE = 0.02
NOTEWORTHY = 0.005
PAGE_SIZES = {4096: "4 KB", 64 << 10: "64 KB", 2 << 20: "2 MB"}


class Row(NamedTuple):
    """An operation and what it is done on."""

    memory_type: str
    page_size: int
    operation: str
    pages: int  # 0: it is done on none
    files: int  # that are open, each with so many pages
    chunks: int = 1  # of device memory, all but one full of another file's pages
    threads: int = 1  # that do it, each with so many pages

    @property
    def name(self) -> str:
        files = "" if self.files == 1 else f" {self.files} files"
        chunks = "" if self.chunks == 1 else f" {self.chunks} chunks"
        return f"{self.operation} {self.page_size >> 10}K-pages {self.pages >> 8}M{files}{chunks}"


@dataclass
class Cost:
    middle: float  # the median
    spread: float  # between the extremes, of the median


Rows = dict[Row, dict[str, Cost]]  # by driver


@dataclass
class Measured:
    """What was measured, and with what."""

    unit: str
    tools: dict[str, str] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict)
    # What several threads do at once, which only time says: nanoseconds, whatever the unit.
    threads: Rows = field(default_factory=dict)


def unit() -> str:
    return NANOSECONDS if vm.accelerator() == "kvm" else INSTRUCTIONS


def tools() -> dict[str, str]:
    """What the kernel's code depends on beside its source."""
    folder = kernel_folder("series")
    config = "\n".join(environment.options(folder / ".config") or [])
    found = dict(re.findall(r"^CONFIG_(CLANG_VERSION|RUSTC_VERSION)=(.*)$", config, re.MULTILINE))
    features = folder / "features"  # as scripts/kernel has them
    return found | {"features": " ".join(features.read_text().split()) if features.exists() else ""}


def program(memory_type: str) -> list[str]:
    """The command that measures the driver that is loaded, without what it is to measure."""
    # It is hardly ever interrupted by what it does not wait for.
    path = selftests.build().with_name("hmm-bench")
    return ["nice", "-n", "-20", str(path), "--type", memory_type]


def measures(
    memory_type: str,
    counting: bool,
    pages: Sequence[int],
    rounds: int,
    files: Sequence[int] = (),
    chunks: Sequence[int] = (),
) -> str:
    """The command that measures the driver that is loaded."""
    arguments = ["--rounds", str(rounds)]
    for option, numbers in (("--pages", pages), ("--files", files), ("--chunks", chunks)):
        if numbers:
            arguments += [option, ",".join(map(str, numbers))]
    return shlex.join([*program(memory_type), *arguments]) + (" --idle $idle" if counting else "")


def growth_pages(memory_type: str) -> Sequence[int]:
    return GROWTH_PAGES_OF_PRIVATE if memory_type == "private" else GROWTH_PAGES


def beside_idle(commands: Iterable[str], counting: bool) -> str:
    """Runs commands one after the other, until one fails."""
    lines = [f"(\n{command}\n) || exit" for command in commands]
    if counting:
        # It runs when nothing else does, so that the clock only goes on by instructions.
        idle = ["chrt --idle 0 sh -c 'while :; do :; done' &", "idle=$!"]
        lines = [*idle, *lines, "kill $idle"]
    return "\n".join(lines)


def commands(memory_type: str, counting: bool) -> str:
    """What runs in the VM."""
    rounds = ROUNDS[INSTRUCTIONS if counting else NANOSECONDS]
    usual = measures(memory_type, counting, [PAGES], rounds)
    grown = [pages for pages in growth_pages(memory_type) if pages != PAGES]
    # That of one chunk is measured with the files.
    chunks = GROWTH_CHUNKS[1:] if memory_type == "private" else ()
    # Once where it takes long: more of the same matters less there. Last what leaves the device
    # with more memory than before.
    growth = [
        measures(memory_type, counting, grown[:2], rounds),
        measures(memory_type, counting, (), rounds, GROWTH_FILES),
        measures(memory_type, counting, grown[2:], 1, (), chunks),
    ]
    parts = []
    for number, driver in enumerate([*guest.DRIVERS, *reversed(guest.DRIVERS)]):
        run = Run(SOURCE, "series", driver, memory_type)
        measured = [usual, *growth] if number < len(guest.DRIVERS) else [usual]
        # As little as can be is left of what was measured before.
        clean = "echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory"
        parts.append(f"{clean}\n{guest.with_driver(run, ' && '.join(measured))}")
    return beside_idle(parts, counting)


def commands_of_threads(types: Iterable[str]) -> str:
    """What runs in the VM in which several threads do something at once."""
    options = ["--threads", ",".join(map(str, THREADS)), "--rounds", str(ROUNDS_OF_THREADS)]
    runs = [
        Run(SOURCE, "series", driver, memory_type)
        for memory_type in types
        for _ in range(LOADS_OF_THREADS)
        for driver in guest.DRIVERS
    ]
    parts = [guest.with_driver(run, shlex.join([*program(run.memory_type), *options])) for run in runs]
    return beside_idle(parts, False)


def parse(lines: Iterable[str]) -> Rows:
    """What the programs printed."""
    found: dict[Row, dict[str, list[int]]] = {}
    for line in lines:
        if line.startswith("{"):
            data = json.loads(line)
            elapsed = found.setdefault(Row(*(data[name] for name in Row._fields)), {})
            elapsed.setdefault(data["driver"], []).extend(data["elapsed"])
    return {row: {driver: cost(each) for driver, each in costs.items()} for row, costs in found.items()}


def cost(elapsed: Sequence[int]) -> Cost:
    middle = median(elapsed)
    return Cost(middle, round((max(elapsed) - min(elapsed)) / (middle or 1), 4))


def measure(run: Run, measured: Measured, folder: Path) -> None:
    """Boots a VM and fills in run, and the rows that were measured."""
    print(f"==> bench: {run.name}, {measured.unit}", file=sys.stderr)
    counting = measured.unit == INSTRUCTIONS
    command = commands(run.memory_type, counting)
    result, output = guest.boot(
        run, command, folder / run.name, TIMEOUT, None, counting=counting, memory_mb=MEMORY_MB
    )
    rows = parse(output)
    measured.rows |= rows
    for row, costs in rows.items():
        for driver, each in costs.items():
            values = {measured.unit: each.middle, "spread": each.spread}
            run.tests.append(Test(f"{driver} {row.name}", Outcome.PASS, values=values))
    if not run.problem and result.status:
        run.problem = "\n".join([f"status {result.status}:", *output[-5:]])


def measure_threads(run: Run, measured: Measured, types: Iterable[str], folder: Path) -> None:
    """Boots a VM with several CPUs, which the machine must have to spare."""
    print(f"==> bench: {run.name}, {NANOSECONDS}", file=sys.stderr)
    result, output = guest.boot(run, commands_of_threads(types), folder / run.name, TIMEOUT, None)
    measured.threads = parse(output)
    for row, costs in measured.threads.items():
        for driver, each in costs.items():
            name = f"{driver} {row.memory_type} {row.name} {row.threads} threads"
            values = {NANOSECONDS: each.middle, "spread": each.spread}
            run.tests.append(Test(name, Outcome.PASS, values=values))
    if not run.problem and result.status:
        run.problem = "\n".join([f"status {result.status}:", *output[-5:]])


def to_json(measured: Measured) -> str:
    """A row a line, so that it can be read and compared."""

    def line(row: Row, costs: Mapping[str, Cost]) -> str:
        values = {driver: [each.middle, each.spread] for driver, each in costs.items()}
        return json.dumps(row._asdict() | values)

    def block(rows: Rows) -> str:
        return ",\n".join(f"  {line(row, costs)}" for row, costs in sorted(rows.items()))

    head = {"schema": SCHEMA, "unit": measured.unit, "tools": measured.tools}
    lines = [f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()]
    tables = f' "rows": [\n{block(measured.rows)}\n ],\n "threads": [\n{block(measured.threads)}\n ]\n'
    return "{\n" + "".join(lines) + tables + "}\n"


def from_json(lines: Iterable[dict[str, Any]]) -> Rows:
    return {
        Row(**{name: line.pop(name) for name in Row._fields if name in line}): {
            driver: Cost(*values) for driver, values in line.items()
        }
        for line in lines
    }


def load(path: Path) -> Measured:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise MachineError(f"{path}: schema {data['schema']}, not {SCHEMA}")
        # What was recorded before there were any has none.
        threads = from_json(data.get("threads", []))
        return Measured(data["unit"], data["tools"], from_json(data["rows"]), threads)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MachineError(f"{path}: {error!r}") from error


def is_usual(row: Row) -> bool:
    """Not only there to see what grows: measured often, and compared."""
    return row.files == row.chunks == 1 and row.pages in (0, PAGES)


def compare(old: Measured, new: Measured, types: Iterable[str]) -> tuple[Run, str]:
    """A test for each row, which fails when that costs more, and a table of what changed."""
    run = Run("comparison", "series", derived=True)
    if old.unit != new.unit:
        run.problem = f"{old.unit} cannot be compared with {new.unit}"
        return run, ""
    lines = [f"{f'changes of more than {NOTEWORTHY:.1%}':<58}{'before':>12}{'now':>12}"]
    for row in sorted(row for row in {*old.rows, *new.rows} if row.memory_type in types and is_usual(row)):
        before, now = old.rows.get(row, {}), new.rows.get(row, {})
        for driver in sorted({*before, *now}):
            test = Test(f"{driver} {row.memory_type} {row.name}", Outcome.PASS)
            run.tests.append(test)
            if driver not in before:
                test.outcome, test.detail = Outcome.SKIP, ["it was not measured before"]
            elif driver not in now:
                test.outcome, test.detail = Outcome.NOT_RUN, ["it was measured before"]
            else:
                first, second = before[driver].middle, now[driver].middle
                change = second / first - 1
                said = f"{test.name:<58}{first:>12.0f}{second:>12.0f}  {change:+.1%}"
                if second > first * (1 + TOLERANCE):
                    test.outcome, test.detail = Outcome.FAIL, [said]
                if abs(change) > NOTEWORTHY:
                    lines.append(said)
    return run, "".join(f"{line}\n" for line in lines)


def why_not_comparable(old: Measured, new: Measured) -> list[str]:
    """Why more of it need not be a fault of the code."""
    reasons = [
        f"{name} was '{old.tools.get(name)}', and is '{new.tools.get(name)}'"
        for name in sorted({*old.tools, *new.tools})
        if old.tools.get(name) != new.tools.get(name)
    ]
    return reasons + (["time is not the same on two machines"] if new.unit == NANOSECONDS else [])


def headings() -> list[str]:
    return [*guest.DRIVERS, "C/Rust", "x memcpy", "x memcpy", "spread"]


def table(measured: Measured) -> str:
    """The usual rows, a page each."""
    text = ""
    ratios = []
    for memory_type, page_size in groups(measured.rows):
        rows = {
            row: costs
            for row, costs in measured.rows.items()
            if (row.memory_type, row.page_size) == (memory_type, page_size) and is_usual(row)
        }
        limit = next((costs for row, costs in rows.items() if row.operation == "memcpy"), {})
        title = f"{memory_type}, {PAGE_SIZES[page_size]}: {measured.unit}"
        text += f"\n{title:<32}" + "".join(f"{heading:>12}" for heading in headings()) + "\n"
        for row, costs in rows.items():
            if not set(costs) >= set(guest.DRIVERS):
                continue
            each = [costs[driver] for driver in guest.DRIVERS]
            ratio = each[0].middle / each[1].middle
            if row.operation != "memcpy":
                ratios.append(ratio)
            cells = [f"{one.middle / (row.pages or 1):.0f}" for one in each] + [f"{ratio:.2f}"]
            for driver, one in zip(guest.DRIVERS, each, strict=True):
                known = row.pages and driver in limit
                cells.append(f"{one.middle / limit[driver].middle:.1f}" if known else "")
            cells.append(f"{max(one.spread for one in each):.1%}")
            per = "a page" if row.pages else "in all"
            text += f"{f'{row.operation}, {per}':<32}" + "".join(f"{cell:>12}" for cell in cells) + "\n"
    if ratios:
        text += f"\nC/Rust: geometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}\n"
    return text.lstrip("\n")


def groups(rows: Iterable[Row]) -> list[tuple[str, int]]:
    """Memory types with their page sizes, in the order of the types."""
    found = {(row.memory_type, row.page_size) for row in rows}
    return sorted(found, key=lambda each: (TYPES.index(each[0]), each[1]))


def slope(points: Mapping[int, float]) -> float | None:
    """Of a line through the points on log-log scales: 1 if it is proportional, 0 if it does not grow."""
    if len(points) < 2 or not all(points.values()):
        return None
    xs, ys = [math.log(x) for x in points], [math.log(y) for y in points.values()]
    return linear_regression(xs, ys).slope


def rows_of_growth(rows: Iterable[Row], by: str) -> list[Row]:
    """Those that show how it grows with the field of this name; others are as small as can be."""
    if by == "pages":
        alone = (row for row in rows if row.files == row.chunks == 1)
        return [row for row in alone if row.pages in growth_pages(row.memory_type)]
    of_file = (row for row in rows if row.pages in (0, PAGES_OF_FILE))
    return [row for row in of_file if (row.chunks if by == "files" else row.files) == 1]


def growth(measured: Measured) -> str:
    """How much more it costs with more pages, with more files open, or with more chunks."""
    text = slopes("slope over MB", measured, "pages", 256)
    return text + "".join(slopes(f"slope over {by}", measured, by) for by in ("files", "chunks"))


def speedups(rows: Rows) -> dict[Row, dict[str, float]]:
    """How many times as much as one thread several of them do in the same time, by driver."""
    found: dict[Row, dict[str, float]] = {}
    for row, costs in sorted(rows.items()):
        alone = rows.get(row._replace(threads=1, files=1), {})
        found[row] = {
            driver: alone[driver].middle * row.threads / each.middle
            for driver, each in costs.items()
            if driver in alone
        }
    return found


def table_of_threads(measured: Measured) -> str:
    """How much faster several threads are than one, on one file and on a file each."""
    if not measured.threads:
        return ""
    title = "times as fast as one thread"
    text = f"\n{title:<44}" + "".join(f"{driver:>12}" for driver in guest.DRIVERS) + f"{'spread':>12}\n"
    for row, by_driver in speedups(measured.threads).items():
        if row.threads > 1:
            on = "one file" if row.files == 1 else "a file each"
            cells = [f"{by_driver[driver]:.2f}" if driver in by_driver else "" for driver in guest.DRIVERS]
            spread = max(each.spread for each in measured.threads[row].values())
            text += f"{f'{row.threads} threads, {on}, {row.memory_type}':<44}"
            text += "".join(f"{cell:>12}" for cell in [*cells, f"{spread:.1%}"]) + "\n"
    return text


def slopes(title: str, measured: Measured, by: str, unit: int = 1) -> str:
    """Of lines through rows that differ in one field only, which is shown in this unit."""
    lines: dict[Row, dict[str, dict[int, float]]] = {}
    for row in rows_of_growth(measured.rows, by):
        alike = Row(**(row._asdict() | {by: 0}))
        line = lines.setdefault(alike, {driver: {} for driver in guest.DRIVERS})
        for driver, each in measured.rows[row].items():
            line[driver][getattr(row, by) // unit] = each.middle
    text = f"\n{title:<44}" + "".join(f"{driver:>12}" for driver in guest.DRIVERS) + f"{'over':>12}\n"
    for row in sorted(lines, key=lambda row: (TYPES.index(row.memory_type), row)):
        found = [slope(lines[row][driver]) for driver in guest.DRIVERS]
        points = {point for line in lines[row].values() for point in line}
        if len(points) < 2:
            continue
        cells = ["" if each is None else f"{each:.2f}" for each in found]
        cells.append(f"{min(points)} to {max(points)}")
        text += f"{f'{row.operation}, {row.memory_type}, {PAGE_SIZES[row.page_size]}':<44}"
        text += "".join(f"{cell:>12}" for cell in cells) + "\n"
    return text
