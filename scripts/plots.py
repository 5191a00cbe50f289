"""Draws docs/bench-ratios, -growth, -register, -threads and -shares, SVG and PNG, of what `make bench` and
`make bench-shares` recorded.

The same file gives the same plots, so that they only change when the record does. To be
run by the Python of build/venv, as `make plots` does.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
from harness import bench, guest, shares, target, vm
from harness.errors import Exit
from harness.paths import TOP
from matplotlib import pyplot
from matplotlib.figure import Figure

DOCS = TOP / "docs"
COLOURS = ("#4c72b0", "#dd8452")
# One type says what the others do as well; of these, what a driver does most.
OF_GROWTH = ("to_device", "to_system", "device_read", "close")
GROWS_BY = (("pages", 256), ("files", 1), ("chunks", 1))  # and in which units


def draw_ratios(measured: bench.Measured) -> None:
    """Bars that end at how much the driver in C needs, of what the one in Rust does."""
    groups = bench.groups(measured.rows)
    types = list(dict.fromkeys(memory_type for memory_type, _ in groups))
    sizes = sorted({page_size for _, page_size in groups})
    figure, panels = pyplot.subplots(
        len(sizes), len(types), figsize=(3.5 * len(types), 3.5 * len(sizes)), sharex=True, squeeze=False
    )
    for memory_type, page_size in groups:
        panel = panels[sizes.index(page_size), types.index(memory_type)]
        ratios = {
            row.operation: costs[guest.C_DRIVER].middle / costs[guest.RUST_DRIVER].middle
            for row, costs in measured.rows.items()
            if (row.memory_type, row.page_size) == (memory_type, page_size)
            and bench.is_usual(row)
            and row.operation != "memcpy"
        }
        names = list(reversed(ratios))
        values = [ratios[name] for name in names]
        panel.barh(names, [value - 1 for value in values], left=1, color=[COLOURS[v < 1] for v in values])
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set_xlim(0.25, 4)
        panel.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
        panel.set_title(f"{memory_type}, {bench.PAGE_SIZES[page_size]}", fontsize=10)
    figure.suptitle(f"{measured.unit}: test_hmm / test_hmm_rs (over 1: the one in Rust needs fewer)")
    save(figure, "bench-ratios")


def draw_growth(measured: bench.Measured) -> None:
    """Lines over pages, open files and chunks, of private memory with small pages."""
    figure, panels = pyplot.subplots(3, len(OF_GROWTH), figsize=(12, 9), squeeze=False)
    for column, operation in enumerate(OF_GROWTH):
        of_operation = {
            row: costs
            for row, costs in measured.rows.items()
            if (row.memory_type, row.page_size, row.operation) == ("private", 4096, operation)
        }
        for driver, colour in zip(guest.DRIVERS, COLOURS, strict=True):
            for panel, (by, unit) in zip(panels[:, column], GROWS_BY, strict=True):
                points = {
                    getattr(row, by) // unit: of_operation[row][driver].middle
                    for row in bench.rows_of_growth(of_operation, by)
                }
                panel.loglog(points.keys(), points.values(), "o-", color=colour, label=driver)
        panels[0, column].set_title(operation)
        panels[0, column].set_xlabel("MB")
        panels[1, column].set_xlabel("open files, each with 2 MB")
        panels[2, column].set_xlabel("chunks of 256 MB, all but one full")
        # Also where nothing grows, as much space for a factor.
        for panel in panels[1:, column]:
            panel.set_ylim(1e5, 1e8)
    panels[0, 0].legend()
    figure.supylabel(measured.unit)
    save(figure, "bench-growth")


def draw_register(measured: bench.Measured) -> None:
    """Bars of what it takes to pin memory that is on the device, and whether it stays there."""
    rows = {
        (row.memory_type, row.page_size): costs[guest.RUST_DRIVER].middle / row.pages
        for row, costs in measured.rows.items()
        if row.operation == "register" and bench.is_usual(row)
    }
    if not rows:  # recorded with a kernel without io_uring
        return
    names = [f"{memory_type}, {bench.PAGE_SIZES[page_size]}" for memory_type, page_size in rows]
    # The program checks by a snapshot that it is so.
    stays = [memory_type == "generic" for memory_type, _ in rows]
    figure, panel = pyplot.subplots(figsize=(8, 0.4 * len(rows) + 1))
    bars = panel.barh(names, list(rows.values()), color=[COLOURS[not each] for each in stays])
    moved = bench.PAGES >> 8
    panel.bar_label(bars, [f" {0 if each else moved} MB leave the device" for each in stays])
    panel.invert_yaxis()
    panel.set_xlim(0, 1.5 * max(rows.values()))
    panel.set_xlabel(f"{measured.unit} a page")
    panel.set_title(f"io_uring registers a buffer of {moved} MB that is on the device", fontsize=10)
    save(figure, "bench-register")


def draw_threads(measured: bench.Measured) -> None:
    """Lines over threads, on one file and on a file each."""
    types = [each for each in bench.TYPES if any(row.memory_type == each for row in measured.threads)]
    if not types:  # recorded before this was measured
        return
    speedups = bench.speedups(measured.threads)
    figure, panels = pyplot.subplots(
        1, len(types), figsize=(3.5 * len(types), 3.5), sharey=True, squeeze=False
    )
    for panel, memory_type in zip(panels[0], types, strict=True):
        for driver, colour in zip(guest.DRIVERS, COLOURS, strict=True):
            for style, name in (("o-", "a file each"), ("o--", "one file")):
                points = {
                    row.threads: by_driver[driver]
                    for row, by_driver in speedups.items()
                    if row.memory_type == memory_type
                    and row.files == (row.threads if name == "a file each" else 1)
                }
                panel.plot(points.keys(), points.values(), style, color=colour, label=f"{driver}, {name}")
        panel.set_xticks(sorted({row.threads for row in measured.threads}))
        panel.set_xlabel("threads")
        panel.set_title(memory_type, fontsize=10)
    panels[0, 0].set_ylabel("times as fast as one thread")
    panels[0, 0].set_ylim(0)
    panels[0, 0].legend(fontsize=8)
    figure.suptitle(f"Small pages to the device and back, in a VM with {vm.CPUS} CPUs")
    save(figure, "bench-threads")


def draw_shares(found: shares.Shares) -> None:
    """Stacked bars of instructions a page, two for each operation: those of the drivers."""
    operations = list(found.rows)
    figure, panel = pyplot.subplots(figsize=(11, 5.5))
    width = 0.4
    colours = matplotlib.color_sequences["tab10"]
    for number, driver in enumerate(guest.DRIVERS):
        places = [place + (number - 0.5) * (width + 0.03) for place in range(len(operations))]
        bottoms = [0.0] * len(operations)
        for name, colour in zip(shares.NAMES, colours, strict=False):
            heights = [found.rows[operation][driver][name] for operation in operations]
            label = name if number == 0 else None
            bars = panel.bar(places, heights, width, bottom=bottoms, color=colour, label=label)
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
        panel.bar_label(bars, [("C", "Rust")[number]] * len(operations), padding=2)
    panel.set_xticks(range(len(operations)), operations)
    panel.set_ylabel("instructions a page")
    pages = f"{found.memory_type} memory, pages of {bench.PAGE_SIZES[found.page_size]}"
    panel.set_title(f"{pages}, test_hmm and test_hmm_rs", fontsize=10)
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save(figure, "bench-shares")


def save(figure: Figure, name: str) -> None:
    figure.tight_layout()
    # Not when it was drawn, and by which version.
    for suffix, varying in (("svg", "Date"), ("png", "Software")):
        path = DOCS / f"{name}.{suffix}"
        figure.savefig(path, metadata={varying: None})
        print(path, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=bench.RECORD, help="another bench.json")
    args = parser.parse_args()
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "bench", "svg.fonttype": "none"}
    measured = bench.load(args.file)
    draw_ratios(measured)
    draw_growth(measured)
    draw_register(measured)
    draw_threads(measured)
    if shares.RECORD.exists():
        draw_shares(shares.load(shares.RECORD))
    return Exit.PASSED


if __name__ == "__main__":
    target.exit_with(main)
