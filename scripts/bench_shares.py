#!/usr/bin/env python3
"""Shows where the instructions of an operation go: an exact trace of pages that are
migrated and accessed, with both drivers, added up by what the functions are for.

Prints a table of instructions a page, and by --functions the functions that cost most.
"""

import argparse
import sys

from harness import bench, options, selftests, shares, tables, target
from harness.errors import MachineError
from harness.results import Report, Run

TARGET = "bench-shares"
FILE = "bench-shares.json"
# In the results folder, printed or not.
LISTING = "functions"


def main() -> Report:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", default="private", help="of memory")
    sizes = {name.lower().replace(" ", "").removesuffix("b"): size for size, name in bench.PAGE_SIZES.items()}
    parser.add_argument("--page-size", default="4k", choices=sizes)
    parser.add_argument("--functions", action="store_true", help="print them")
    parser.add_argument("--record", action="store_true", help=f"write {shares.RECORD.name}")
    args = parser.parse_args()
    (memory_type,) = options.choices(parser, args.type, bench.TYPES)
    page_size = sizes[args.page_size]
    folder = target.default_folder(TARGET)

    with target.reporting(TARGET, folder) as report:
        selftests.build()
        run = Run(shares.SOURCE, "series", memory_type=memory_type)
        report.runs = [run]
        measured = shares.measure(run, page_size, folder)
        found = shares.Shares(memory_type, page_size, bench.tools(), shares.rows(measured))
        listing = "".join(f"{line}\n" for line in shares.listing(measured))
        (folder / LISTING).write_text(listing, encoding="utf-8")
        (folder / FILE).write_text(shares.to_json(found), encoding="utf-8")
        if args.record:
            if not run.ok():
                raise MachineError("not recorded, as not all was measured")
            shares.RECORD.write_text(shares.to_json(found), encoding="utf-8")
    tables.save(shares.table(found), folder)
    if args.functions:
        print(listing, end="")
    tables.print_failures(report.runs)
    print(f"{folder / FILE}, {folder / LISTING}", file=sys.stderr)
    return report


if __name__ == "__main__":
    target.exit_with(main)
