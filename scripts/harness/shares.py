"""Where the instructions of an operation go: traces it in a VM, and adds up by function.

Each function belongs to the object that it is compiled to, and each object to a group.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import bench, guest, symbols, trace
from harness.environment import kernel_folder
from harness.errors import MachineError
from harness.paths import SCRIPTS
from harness.results import Outcome, Run, Test
from harness.symbols import Function, Symbols

SOURCE = "bench-shares"
RECORD = SCRIPTS / "bench-shares-record.json"
SCHEMA = 2
TIMEOUT = 1800  # seconds
PAGES = 512
PAGE_SIZE = 4096  # unless another one is asked for
OPERATIONS = ("to_device", "device_read", "to_system", "cpu_fault", "close")
# As hmm-bench says it before and after each operation.
PAUSE = re.compile(r"(begin|end) (\w+) (\d+) \d+ \d+")
MARK = "__x64_sys_getppid"

# By what an object's path or a module's name begins with.
GROUPS = {
    "copying, clearing": ("arch/x86/lib/copy_", "arch/x86/lib/mem", "arch/x86/lib/clear_page", "mm/maccess"),
    "page tables, rmap, TLB": (
        "mm/rmap", "mm/memory.o", "mm/page_vma_mapped", "mm/pagewalk", "mm/pgtable-generic", "mm/huge_memory",
        "mm/mmu_gather", "mm/interval_tree", "mm/mmap", "mm/vma", "mm/mprotect", "mm/gup", "mm/ksm",
        "mm/mlock", "mm/userfaultfd", "arch/x86/mm/", "lib/interval_tree", "lib/rbtree", "lib/maple_tree",
    ),
    "allocating, freeing": (
        "mm/page_alloc", "mm/slub", "mm/slab", "mm/mempolicy", "mm/mmzone", "mm/memremap", "mm/compaction",
        "mm/page_isolation", "mm/vmalloc", "mm/percpu", "mm/mm_init", "mm/sparse", "lib/percpu",
    ),
    "LRU, memcg": (
        "mm/folio.o", "mm/swap", "mm/vmscan", "mm/vmstat", "mm/workingset", "mm/list_lru", "mm/memcontrol",
        "mm/page_counter", "mm/oom", "mm/util.o", "kernel/cgroup/",
    ),
    "migrate.c, migrate_device.c": ("mm/migrate",),
    "HMM, notifiers": ("mm/hmm", "mm/mmu_notifier"),
    # With what it has its pages in.
    "driver": ("test_hmm", "rust/", "lib/xarray", "lib/radix-tree", "lib/bitmap", "lib/find_bit"),
    "locks, RCU": ("kernel/locking/", "kernel/rcu/", "mm/filemap", "mm/folio-compat"),
}  # fmt: skip
OTHER = "entry, other"
NAMES = (*GROUPS, OTHER)


def group(place: str) -> str:
    """What an object or a module belongs to."""
    return next((name for name, begins in GROUPS.items() if place.startswith(begins)), OTHER)


@dataclass
class Cost:
    """Of a function, a page."""

    instructions: float = 0
    calls: float = 0


Functions = dict[Function, Cost]


@dataclass
class Shares:
    """Instructions a page, by operation, driver and group."""

    memory_type: str
    page_size: int = PAGE_SIZE
    tools: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)


def fold(counts: Mapping[int, int], known: Symbols) -> Functions:
    found: Functions = {}
    for address, count in counts.items():
        start, function = known.find(address)
        cost = found.setdefault(function, Cost())
        cost.instructions += count / PAGES
        if address == start:
            cost.calls += count / PAGES
    return found


def by_group(functions: Functions) -> dict[str, float]:
    found = dict.fromkeys(NAMES, 0.0)
    for function, cost in functions.items():
        found[group(function.place)] += cost.instructions
    return {name: round(count, 1) for name, count in found.items()}


def commands(memory_type: str) -> str:
    """What runs in the VM: each driver, after the names of its functions."""
    program = bench.measures(memory_type, False, [PAGES], 1) + " --pause"
    parts = []
    for driver in guest.DRIVERS:
        listing = f"echo {driver}; grep -F [ /proc/kallsyms"
        run = Run(SOURCE, "series", driver, memory_type)
        parts.append(guest.with_driver(run, f"{listing}; {program}"))
    return bench.beside_idle(parts, False)


class Guide:
    """Leads hmm-bench from one operation to the next, with a trace of those that are wanted."""

    def __init__(self, tracer: trace.Tracer, answers: int, page_size: int) -> None:
        self.tracer = tracer
        self.page_size = page_size
        self.answers = answers  # a file that the guest reads
        self.modules: dict[str, list[str]] = {}
        self.traced: list[tuple[str, str]] = []  # driver, operation
        self.driver = ""

    def line(self, _seconds: float, text: str) -> None:
        if text in guest.DRIVERS:
            self.driver = text
        elif symbols.SYMBOL.fullmatch(text):
            self.modules.setdefault(self.driver, []).append(text)
        elif pause := PAUSE.fullmatch(text):
            place, operation, page_size = pause.groups()
            if operation in OPERATIONS and int(page_size) == self.page_size:
                self.tracer.switch(place == "begin")
                if place == "end":
                    self.traced.append((self.driver, operation))
            os.write(self.answers, b"\n")


def measure(run: Run, page_size: int, folder: Path) -> dict[tuple[str, str], Functions]:
    """Boots a VM, and returns what each function costs with each driver in each operation."""
    kernel = symbols.of_kernel(kernel_folder(run.kernel))
    stdin, answers = os.pipe()
    try:
        with trace.Tracer(Symbols(kernel).address(MARK)) as tracer:
            guide = Guide(tracer, answers, page_size)
            result, output = guest.boot(
                run,
                commands(run.memory_type),
                folder / run.name,
                TIMEOUT,
                guide.line,
                qemu=tracer.qemu,
                counting=True,
                stdin=stdin,
            )
    finally:
        os.close(stdin)
        os.close(answers)
    if not run.problem and result.status:
        run.problem = "\n".join([f"status {result.status}:", *output[-5:]])
    if run.problem:
        return {}
    if not guide.traced or len(guide.traced) != len(tracer.counts):
        raise MachineError(f"traces of {len(tracer.counts)} operations instead of {len(guide.traced)}")
    known = {driver: Symbols(kernel | symbols.of_modules(lines)) for driver, lines in guide.modules.items()}
    found = {}
    for (driver, operation), counts in zip(guide.traced, tracer.counts, strict=True):
        functions = fold(counts, known[driver])
        found[driver, operation] = functions
        values = {bench.INSTRUCTIONS: round(sum(cost.instructions for cost in functions.values()), 1)}
        run.tests.append(Test(f"{driver} {operation}, a page", Outcome.PASS, values=values))
    return found


def rows(measured: Mapping[tuple[str, str], Functions]) -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (driver, operation), functions in measured.items():
        found.setdefault(operation, {})[driver] = by_group(functions)
    return {operation: found[operation] for operation in OPERATIONS if operation in found}


def to_json(shares: Shares) -> str:
    """An operation of a driver a line."""
    lines = [
        json.dumps({"operation": operation, "driver": driver, "groups": groups})
        for operation, drivers in shares.rows.items()
        for driver, groups in drivers.items()
    ]
    head = {
        "schema": SCHEMA,
        "memory_type": shares.memory_type,
        "page_size": shares.page_size,
        "tools": shares.tools,
    }
    text = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    return "{\n" + text + ' "rows": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


def load(path: Path) -> Shares:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise MachineError(f"{path}: schema {data['schema']}, not {SCHEMA}")
        found = Shares(data["memory_type"], data["page_size"], data["tools"])
        for row in data["rows"]:
            found.rows.setdefault(row["operation"], {})[row["driver"]] = row["groups"]
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MachineError(f"{path}: {error!r}") from error


def heading(title: str, columns: Sequence[str]) -> str:
    return f"{title:<40}" + "".join(f"{column:>12}" for column in columns)


def table(shares: Shares) -> str:
    """By operation, a line a group."""
    lines = []
    for operation, drivers in shares.rows.items():
        title = f"{operation}, {shares.memory_type}, {bench.PAGE_SIZES[shares.page_size]}"
        lines += ["", heading(title, [*guest.DRIVERS, "more"])]
        both = [drivers.get(driver, {}) for driver in guest.DRIVERS]
        costs = [(name, [groups.get(name, 0) for groups in both]) for name in NAMES]
        costs.append(("instructions a page", [sum(groups.values()) for groups in both]))
        lines += [
            f"{name:<40}{round(c):>12}{round(rust):>12}{round(rust) - round(c):>+12}"
            for name, (c, rust) in costs
        ]
    return "".join(f"{line}\n" for line in lines[1:])


def listing(measured: Mapping[tuple[str, str], Functions], least: float = 1) -> Iterator[str]:
    """The functions of each operation that cost most, down to so many instructions a page."""
    for operation in OPERATIONS:
        both = [measured.get((driver, operation), {}) for driver in guest.DRIVERS]
        functions = {function for each in both for function in each}
        costs = {function: [each.get(function, Cost()) for each in both] for function in functions}
        totals = [sum(cost.instructions for cost in each.values()) for each in both]
        if not functions:
            continue
        title = f"{operation}: instructions, calls a page"
        yield "\n" + heading(title, [*guest.DRIVERS, "more", *guest.DRIVERS])
        yield f"{'in all':<40}{totals[0]:>12.1f}{totals[1]:>12.1f}{totals[1] - totals[0]:>+12.1f}"
        order = sorted(costs.items(), key=lambda item: (-max(c.instructions for c in item[1]), item[0]))
        for function, (first, second) in order:
            if max(first.instructions, second.instructions) >= least:
                change = second.instructions - first.instructions
                yield (
                    f"{function.place:<40}{first.instructions:>12.1f}{second.instructions:>12.1f}"
                    f"{change:>+12.1f}{first.calls:>12.2f}{second.calls:>12.2f}  {function.name}"
                )
