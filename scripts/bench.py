#!/usr/bin/env python3
"""Measures what the operations of both drivers cost, by instructions or by time.

One boot for each memory type, in which each driver is measured before and after the
other, and one for what several threads do at once, always by time. Prints tables, also of
how it grows, and what has changed since it was recorded.
Fails when an operation costs over 2 % more than that, with the same compilers and features
and by instructions, or when something that is measured fails.
"""

import argparse
import sys
from pathlib import Path

from harness import bench, options, selftests, tables, target, vm
from harness.errors import MachineError
from harness.results import Report, Run

TARGET = "bench"
FILE = "bench.json"


def compare(report: Report, new: bench.Measured, path: Path, types: list[str]) -> str:
    """Adds the comparison with a file to the report, and returns it for people."""
    old = bench.load(path)
    run, text = bench.compare(old, new, types)
    reasons = bench.why_not_comparable(old, new)
    report.warnings += [f"{path.name}: {reason}, so that more is no failure" for reason in reasons]
    run.decides = not reasons
    report.runs.append(run)
    return text


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default=",".join(bench.TYPES), help="comma-separated")
    parser.add_argument(
        "--unit",
        choices=(bench.INSTRUCTIONS, bench.NANOSECONDS),
        help="what to measure; without it, time if there is KVM",
    )
    parser.add_argument("--compare", type=Path, default=bench.RECORD, help=f"another {FILE}")
    parser.add_argument("--record", action="store_true", help=f"write {bench.RECORD.name}")
    args = parser.parse_args()
    types = options.choices(parser, args.types, bench.TYPES)
    if args.record and set(types) != set(bench.TYPES):
        parser.error("only all types are recorded")
    folder = target.default_folder(TARGET)

    with target.reporting(TARGET, folder) as report:
        measured = bench.Measured(args.unit or bench.unit(), bench.tools())
        selftests.build()
        report.runs = [Run(bench.SOURCE, "series", memory_type=memory_type) for memory_type in types]
        # Instructions are the same whatever else the machine does.
        if measured.unit == bench.INSTRUCTIONS:
            vm.in_parallel(lambda run: bench.measure(run, measured, folder), report.runs, bench.MEMORY_MB)
        else:
            for run in report.runs:
                bench.measure(run, measured, folder)
        # By time, so that nothing else is to run.
        of_threads = Run(bench.SOURCE_OF_THREADS, "series")
        report.runs.append(of_threads)
        bench.measure_threads(of_threads, measured, types, folder)
        text = bench.table(measured) + bench.growth(measured) + bench.table_of_threads(measured)
        (folder / FILE).write_text(bench.to_json(measured), encoding="utf-8")
        if args.record:
            if not all(run.ok() for run in report.runs):
                raise MachineError("not recorded, as not all was measured")
            bench.RECORD.write_text(bench.to_json(measured), encoding="utf-8")
        elif args.compare.exists() or args.compare != bench.RECORD:
            text += "\n" + compare(report, measured, args.compare, types)
        else:
            report.warnings.append(f"no {bench.RECORD.name} to compare with: --record makes it")
    tables.save(text, folder)
    tables.print_failures(report.runs)
    print(f"{folder / FILE}", file=sys.stderr)
    return report


if __name__ == "__main__":
    target.exit_with(main)
