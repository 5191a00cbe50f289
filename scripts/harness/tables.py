"""What people read at the end of a run."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from harness.results import Outcome, Run, Test


def hmm_test_name(name: str) -> str:
    """fixture.variant.test without the variant, which says only the type."""
    fixture, _, test = name.split(".")
    return f"{fixture}.{test}"


def cell_text(run: Run, test: Test | None) -> str:
    if test is None:
        return "-"
    return str(test.outcome) if run.recorded else f"{test.outcome} {test.seconds:5.1f}"


def table(runs: Sequence[Run], headings: Iterable[str], row_name: Callable[[str], str] = str) -> str:
    """One line a test, one column a run, which is named by those of its fields."""
    rows: dict[str, dict[int, Test]] = {}
    for number, run in enumerate(runs):
        for test in run.tests:
            rows.setdefault(row_name(test.name), {})[number] = test
    width = max([*map(len, rows), len("kernel splats")])
    lines = [(heading, [str(getattr(run, heading)) for run in runs]) for heading in headings]
    if any(run.recorded for run in runs):
        lines.append(("", ["recorded" if run.recorded else "" for run in runs]))
    for name, by_run in rows.items():
        lines.append((name, [cell_text(run, by_run.get(number)) for number, run in enumerate(runs)]))
    passed = [sum(t.outcome == Outcome.PASS for t in run.tests) for run in runs]
    lines.append(("passed", [f"{count}/{len(run.tests)}" for count, run in zip(passed, runs, strict=True)]))
    lines.append(("kernel splats", ["" if run.recorded else str(len(run.splats)) for run in runs]))
    texts = ("  ".join([name.ljust(width), *(cell.rjust(11) for cell in cells)]) for name, cells in lines)
    return "".join(text.rstrip() + "\n" for text in texts)


def save(text: str, folder: Path) -> None:
    """Prints the table, also to the results folder."""
    (folder / "table").write_text(text, encoding="utf-8")
    print(text, end="")


def print_failures(runs: Iterable[Run]) -> None:
    for run in runs:
        on = " ".join(filter(None, (run.driver, run.memory_type, run.kernel and f"{run.kernel} kernel")))
        for test in run.tests:
            if test.outcome == Outcome.SKIP:
                print(f"skip: {test.name} on {on}: {' '.join(test.detail)}")
        not_run = sum(test.outcome == Outcome.NOT_RUN for test in run.tests)
        if not_run:
            print(f"not run: {not_run} tests on {on}")
        for test in run.failed():
            if test.outcome != Outcome.NOT_RUN:
                print(f"{test.outcome}: {test.name} on {on}" if on else f"{test.outcome}: {test.name}")
                for line in test.detail[:5]:
                    print(f"    {line}")
        if run.problem:
            print(f"error: {run.name}: {run.problem}")


def print_totals(runs: Iterable[Run]) -> None:
    tests = [test for run in runs for test in run.tests]
    passed = sum(test.outcome == Outcome.PASS for test in tests)
    skipped = sum(test.outcome == Outcome.SKIP for test in tests)
    print(f"{passed} passed, {len(tests) - passed - skipped} failed, {skipped} skipped")


def conclude(text: str, runs: Sequence[Run], folder: Path) -> None:
    """What a target says at the end: the table, what failed or was skipped, and how many."""
    save(text, folder)
    print_failures(runs)
    print_totals(runs)
