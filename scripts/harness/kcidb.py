"""Writes results in the form that KernelCI's database takes, KCIDB's I/O schema 5.3.

What was not run on a kernel, such as checks of the source and comparisons, is not part
of it. Nothing is submitted: that is up to who has an account there.
"""

import hashlib
import os
import re
from typing import Any

from harness.errors import MachineError
from harness.results import Kernel, Outcome, Report, Run, Test

VERSION = {"major": 5, "minor": 3}
ARCHITECTURE = "x86_64"
ORIGIN_VARIABLE = "KCIDB_ORIGIN"
ORIGIN = re.compile(r"[a-z0-9_]+")
STATUS = {
    Outcome.PASS: "PASS",
    Outcome.FAIL: "FAIL",
    Outcome.SPLAT: "FAIL",
    Outcome.CRASH: "FAIL",
    Outcome.HANG: "FAIL",
    Outcome.SKIP: "SKIP",
    Outcome.NOT_RUN: "MISS",
}

Json = dict[str, Any]


def origin() -> str:
    """The name of the CI system, which is for whoever runs it to choose."""
    name = os.environ.get(ORIGIN_VARIABLE, "managed_generic")
    if not ORIGIN.fullmatch(name):
        raise MachineError(f"{ORIGIN_VARIABLE}={name}: only lower-case letters, digits and _")
    return name


def some(**values: object) -> Json:
    """Those that are known."""
    return {name: value for name, value in values.items() if value is not None}


def path_part(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_.-]+", "_", text).strip(".").replace("..", ".") or "_"


def unique(*parts: object) -> str:
    """An id that is the same for the same parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def no_nul(lines: list[str]) -> str:
    return "\n".join(lines).replace("\0", "")


def checkout(by: str, report: Report, kernel: Kernel) -> Json:
    """Base, or base with the series."""
    environment = report.environment
    patched = kernel.flavour != "base"
    # Base has a commit only where the tree has upstream's history.
    commit = environment.series_commit if patched else environment.base_commit or environment.base_version
    return some(
        id=f"{by}:{commit}",
        origin=by,
        tree_name="mainline",
        git_commit_hash=environment.base_commit,
        git_commit_name=environment.base_version and f"v{environment.base_version}",
        # KCIDB: empty if there are no patches.
        patchset_hash=environment.patchset_hash if patched else "",
        comment="managed generic device memory" if patched else "base of the series",
        valid=True,
        misc=some(series_commit=environment.series_commit if patched else None),
    )


def build(by: str, checkout_id: str, kernel: Kernel) -> Json:
    return some(
        id=f"{by}:{unique(checkout_id, kernel.flavour, kernel.config_hash, kernel.compiler)}",
        checkout_id=checkout_id,
        origin=by,
        architecture=ARCHITECTURE,
        compiler=kernel.compiler,
        config_name=kernel.flavour,
        status="PASS",
        misc=some(release=kernel.release, config_sha256=kernel.config_hash),
    )


def test(by: str, build_id: str, report: Report, run: Run, case: Test) -> Json:
    variant = ".".join(filter(None, (run.source, run.driver, run.memory_type)))
    path = ".".join(filter(None, map(path_part, ("managed_generic", variant, case.name))))
    return some(
        id=f"{by}:{unique(build_id, report.target, report.start, run.name, case.name)}",
        build_id=build_id,
        origin=by,
        path=path,
        comment=case.name,
        status=STATUS[case.outcome],
        start_time=report.start,
        duration=case.seconds,
        log_excerpt=no_nul(case.detail)[-16384:] or None,
        environment=some(misc=some(accelerator=report.environment.accelerator, qemu=report.environment.qemu)),
        misc=some(driver=run.driver, memory_type=run.memory_type, seed=report.seed),
    )


def run_cases(run: Run) -> list[Test]:
    """Also what has no test of its own."""
    if not run.problem:
        return run.tests
    splats = [line for splat in run.splats for line in splat]
    return [*run.tests, Test("kernel", Outcome.FAIL, run.seconds, [run.problem, *splats])]


def document(report: Report) -> Json:
    by = origin()
    checkouts: dict[str, Json] = {}
    builds: dict[str, Json] = {}
    tests: dict[str, Json] = {}
    for leaf in report.leaves():
        build_of = {}
        for kernel in leaf.environment.kernels:
            source = checkout(by, leaf, kernel)
            built = build(by, source["id"], kernel)
            checkouts[source["id"]] = source
            builds[built["id"]] = built
            build_of[kernel.flavour] = built["id"]
        for run in leaf.runs:
            if run.kernel in build_of and not (run.recorded or run.derived):
                for case in run_cases(run):
                    one = test(by, build_of[run.kernel], leaf, run, case)
                    tests[one["id"]] = one
    lists = {"checkouts": checkouts, "builds": builds, "tests": tests}
    return {"version": VERSION} | {name: list(each.values()) for name, each in lists.items() if each}
