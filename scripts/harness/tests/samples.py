"""Reports that have some of everything."""

from harness.results import Environment, Kernel, Outcome, Report, Run, Test

SPLAT = ["[    1.5] WARNING: mm/x.c:3 at f+0x1/0x2, CPU#1: t/2", "[    1.5] Modules linked in:"]


def environment() -> Environment:
    kernels = [
        Kernel("series", "7.3.4-series", "a" * 64, "clang 19"),
        Kernel("base", "7.3.4-base", None, None),
    ]
    return Environment(
        repository_commit="b" * 40,
        base_commit="c" * 40,
        base_version="7.3.4",
        series_commit="d" * 40,
        patchset_hash="e" * 64,
        kernels=kernels,
        accelerator="tcg",
        qemu="10.0.2",
        cores=2,
    )


def awkward_tests() -> list[Test]:
    """Whose names and details could be taken for syntax."""
    return [
        Test("a.good", Outcome.PASS, 0.25),
        Test("a.bad", Outcome.FAIL, 1.5, ["ok 1 not a result", "1..7", "x < 1 & y\0\x1b[31m", ""]),
        Test("a.skipped # TODO", Outcome.SKIP, 0, ["needs\nmore"]),
        Test("a.crashed", Outcome.CRASH, 2, ["Kernel panic - not syncing: VFS: no root", "KTAP version 1"]),
        Test("a.hung", Outcome.HANG),
        Test("a.splat", Outcome.SPLAT),
        Test("a.not_run", Outcome.NOT_RUN),
    ]


def report(runs: list[Run] | None = None, target: str = "sample") -> Report:
    if runs is None:
        runs = [
            Run("selftests", "series", "test_hmm", "generic", 3.0, tests=awkward_tests()),
            Run("selftests", "series", "test_hmm", "private", 3.0, "it hung", [SPLAT], []),
            Run("base", "base", "test_hmm", "private", tests=[Test("b", Outcome.FAIL)], decides=False),
            Run(
                "base",
                "base",
                "test_hmm",
                "coherent",
                tests=[Test("b", Outcome.FAIL)],
                recorded=True,
                decides=False,
            ),
            Run("comparison", "series", tests=[Test("b", Outcome.PASS)], derived=True),
        ]
    return Report(target, "2026-01-02T03:04:05Z", 7.5, 42, environment=environment(), runs=runs)


def passing(target: str = "good") -> Report:
    return report([Run("selftests", "series", "test_hmm", tests=[Test("a.good", Outcome.PASS)])], target)
