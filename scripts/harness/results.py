"""What comes of running tests."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field


class Outcome(enum.StrEnum):
    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"
    SPLAT = "splat"  # the kernel complained
    CRASH = "crash"
    HANG = "hang"
    NOT_RUN = "not-run"

    @property
    def bad(self) -> bool:
        return self not in (Outcome.PASS, Outcome.SKIP)


class Status(enum.StrEnum):
    """Of a target."""

    PASSED = "passed"
    FAILED = "failed"  # a test did, or the kernel complained, crashed or hung
    ERROR = "error"  # no verdict


@dataclass
class Test:
    name: str
    outcome: Outcome
    seconds: float = 0.0
    detail: list[str] = field(default_factory=list)
    # What was measured, by its unit.
    values: dict[str, float] = field(default_factory=dict)


@dataclass
class Run:
    """Tests that ran together: in one boot of a kernel, or without a VM."""

    source: str  # of the tests
    kernel: str = ""  # series, base or debug; none without a VM
    driver: str = ""
    memory_type: str = ""
    seconds: float = 0.0
    problem: str | None = None  # of the run as a whole
    splats: list[list[str]] = field(default_factory=list)  # the first lines of each
    tests: list[Test] = field(default_factory=list)
    # Whether the target fails if this does.
    decides: bool = True
    # From the record of base, not measured.
    recorded: bool = False
    # Says how other runs compare; nothing was run.
    derived: bool = False

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.kernel, self.source, self.driver, self.memory_type)))

    def failed(self) -> list[Test]:
        return [test for test in self.tests if test.outcome.bad]

    def ok(self) -> bool:
        return not self.problem and not self.failed()

    def outcomes(self) -> dict[str, Outcome]:
        return {test.name: test.outcome for test in self.tests}


@dataclass
class Kernel:
    """A kernel that tests ran on."""

    flavour: str  # as Run.kernel
    release: str
    config_hash: str | None  # SHA-256 of the options that are set
    compiler: str | None


@dataclass
class Environment:
    """What results depend on."""

    repository_commit: str | None = None
    repository_changed: bool | None = None
    base_commit: str | None = None
    base_version: str | None = None
    series_commit: str | None = None
    series_changed: bool | None = None
    patchset_hash: str | None = None
    kernels: list[Kernel] = field(default_factory=list)
    accelerator: str | None = None  # kvm or tcg; none where no VM asked yet
    qemu: str | None = None
    cores: int = 0


@dataclass
class Report:
    """All about a target. One that consists of others has parts, and no runs."""

    target: str
    start: str = ""  # UTC, ISO 8601
    seconds: float = 0.0
    seed: int | None = None
    error: str | None = None  # why there is no verdict
    warnings: list[str] = field(default_factory=list)
    environment: Environment = field(default_factory=Environment)
    runs: list[Run] = field(default_factory=list)
    parts: list["Report"] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """A failed test is one whatever else went wrong; a target that ran nothing has not passed."""
        parts = [part.status for part in self.parts]
        if Status.FAILED in parts or any(run.decides and not run.ok() for run in self.runs):
            return Status.FAILED
        if self.missing_verdict() or Status.ERROR in parts:
            return Status.ERROR
        return Status.PASSED

    def missing_verdict(self) -> str | None:
        """Why this by itself, without its parts, has no verdict."""
        ran = self.parts or any(run.tests or run.problem for run in self.runs if run.decides)
        return self.error or (None if ran else "nothing ran")

    def leaves(self) -> Iterator["Report"]:
        """The reports that have runs."""
        for part in self.parts:
            yield from part.leaves()
        if not self.parts:
            yield self
