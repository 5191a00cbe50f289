"""What is known of the unpatched kernel, so that it need not be built and booted again.

scripts/base-record.json has the results of base for each test that something is compared
with. Some of its bugs are races: it states all outcomes that were seen.
"""

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from harness import environment
from harness.environment import kernel_folder
from harness.errors import MachineError
from harness.paths import SCRIPTS
from harness.results import Outcome, Run, Test

PATH = SCRIPTS / "base-record.json"
# What scripts/kernel configures base with.
FRAGMENTS = ("base", "vm", "dax")


class Mode(enum.StrEnum):
    """Where results of base come from."""

    USE = "use"  # the record
    MEASURE = "measure"  # a boot, which must agree with the record
    RECORD = "record"  # a boot, which makes the record


@dataclass
class Measured:
    """On what kernel results were measured."""

    version: str
    config_hash: str

    def differences(self, other: "Measured") -> list[str]:
        return [
            f"{name}: {getattr(self, key)}, not {getattr(other, key)}"
            for name, key in (("kernel", "version"), ("options of the configuration", "config_hash"))
            if getattr(self, key) != getattr(other, key)
        ]


@dataclass
class Known:
    """What is known of a test on base."""

    outcomes: set[Outcome]
    detail: list[str] | None = None  # where that is compared

    @property
    def passes(self) -> bool:
        return self.outcomes == {Outcome.PASS}

    @property
    def worst(self) -> Outcome:
        """One outcome for the table: what it did when it did not pass."""
        return min(self.outcomes, key=list(SEVERITY).index)


SEVERITY = (
    Outcome.CRASH,
    Outcome.HANG,
    Outcome.SPLAT,
    Outcome.FAIL,
    Outcome.NOT_RUN,
    Outcome.SKIP,
    Outcome.PASS,
)


@dataclass
class Section:
    """The record of a suite: tests by what they ran with, a memory type or a driver."""

    measured: Measured
    groups: dict[str, dict[str, Known]] = field(default_factory=dict)


def version() -> str:
    found = environment.base_version()
    if not found:
        raise MachineError("build/linux has no tag base: run 'make tree'")
    return found


def at_hand(built: bool = False) -> Measured:
    """The base that results are to be compared with, or the one that was built.

    Its options are those that it is configured with: what the toolchain adds to them is
    not the same on two machines.
    """
    files = (environment.options(SCRIPTS / f"config/{name}.config") or [] for name in FRAGMENTS)
    lines = sorted({line for each in files for line in each})
    if built and lines != environment.options(kernel_folder("base") / "fragments"):
        raise MachineError(f"build/base is not configured with {', '.join(FRAGMENTS)} of scripts/config")
    return Measured(version(), environment.options_hash(lines))


def _known(data: dict[str, Any]) -> Known:
    return Known({Outcome(each) for each in data["outcomes"]}, data.get("detail"))


def load() -> dict[str, Section]:
    """The record by suite; empty if there is none yet."""
    try:
        data = json.loads(PATH.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise MachineError(f"{PATH}: {error}") from error
    return {
        suite: Section(
            Measured(section["version"], section["config_hash"]),
            {
                group: {name: _known(test) for name, test in tests.items()}
                for group, tests in section["groups"].items()
            },
        )
        for suite, section in data.items()
    }


def save(record: dict[str, Section]) -> None:
    """A test a line, in the order in which they ran, so that it can be read and compared."""

    def line(known: Known) -> str:
        outcomes = sorted(known.outcomes)
        return json.dumps({"outcomes": outcomes} | ({} if known.detail is None else {"detail": known.detail}))

    suites = []
    for suite, section in sorted(record.items()):
        groups = []
        for group, tests in sorted(section.groups.items()):
            lines = [f"    {json.dumps(name)}: {line(known)}" for name, known in tests.items()]
            groups.append(f"   {json.dumps(group)}: {{\n" + ",\n".join(lines) + "\n   }")
        head = [f'  "{key}": {json.dumps(value)}' for key, value in vars(section.measured).items()]
        body = '  "groups": {\n' + ",\n".join(groups) + "\n  }"
        suites.append(f" {json.dumps(suite)}: {{\n" + ",\n".join([*head, body]) + "\n }")
    new = PATH.with_suffix(".new")
    new.write_text("{\n" + ",\n".join(suites) + "\n}\n", encoding="utf-8")
    new.replace(PATH)


def update(suite: str, runs: Iterable[Run], group_of: str, details: bool = False) -> list[str]:
    """Puts measured runs into the record, each into the group that the field names.

    With the same kernel as before, outcomes are added to those that were seen, and tests
    that did not run now stay as they were. Returns the names of tests that did not run
    and are not known.
    """
    record = load()
    measured = at_hand(built=True)
    section = record.get(suite)
    if section is None or section.measured.differences(measured):
        section = Section(measured)
    unknown = []
    for run in runs:
        tests = section.groups.setdefault(getattr(run, group_of), {})
        for test in run.tests:
            old = tests.get(test.name)
            if test.outcome != Outcome.NOT_RUN:
                seen = old.outcomes if old else set()
                tests[test.name] = Known(seen | {test.outcome}, test.detail if details else None)
            elif not old:
                unknown.append(test.name)
    record[suite] = section
    save(record)
    return unknown


def use(suite: str) -> tuple[Section, list[str]]:
    """The record of a suite, and how its base differs from that at hand."""
    section = load().get(suite)
    if section is None:
        raise MachineError(f"{PATH.name} has nothing of {suite}: run with BASE=record, or BASE=measure")
    hand = at_hand()
    recorded = section.measured.version.split(".")[:2]
    if recorded != hand.version.split(".")[:2]:
        raise MachineError(
            f"{PATH.name} is of Linux {section.measured.version}, base is {hand.version}:"
            " run with BASE=measure, or BASE=record"
        )
    differences = section.measured.differences(hand)
    return section, [f"the record of base ({suite}) is of another one: {each}" for each in differences]


def recorded_run(section: Section, run: Run, group: str, only: Iterable[str] | None = None) -> Run:
    """A run on base out of the record."""
    tests = section.groups.get(group)
    if not tests:
        raise MachineError(f"{PATH.name} has nothing of {run.name}: run with BASE=record, or BASE=measure")
    names = list(tests) if only is None else list(only)
    run.recorded, run.decides = True, False
    for name in names:
        known = tests.get(name)
        outcome = known.worst if known else Outcome.NOT_RUN
        run.tests.append(Test(name, outcome, 0, list(known.detail or []) if known else []))
    return run


def compare(suite: str, runs: Iterable[Run], group_of: str, details: bool = False, whole: bool = True) -> Run:
    """A run that fails where the record says something else than was measured.

    Tests that fail, crash, hang or make the kernel complain do so in one way or another
    from run to run, so only that they do not pass is compared; with details, also what
    they say. Unless the whole suite ran, other tests of the record are no matter.
    """
    derived = Run(f"record of base ({suite})", "base", derived=True)
    section = load().get(suite)
    if section is None:
        derived.problem = f"{PATH.name} has nothing of {suite}"
        return derived
    differences = section.measured.differences(at_hand(built=True))
    if differences:
        derived.problem = f"{PATH.name} is of another base: {', '.join(differences)}"
    for run in runs:
        group = getattr(run, group_of)
        known = section.groups.get(group, {})
        found = {test.name: test for test in run.tests}
        for name in {**known, **found} if whole else found:
            wrong = disagreement(known.get(name), found.get(name), details)
            derived.tests.append(Test(f"{group} {name}", Outcome.FAIL if wrong else Outcome.PASS, 0, wrong))
    return derived


def category(outcome: Outcome) -> str:
    """What of an outcome is the same in each run."""
    return "does not pass" if outcome.bad else str(outcome)


def disagreement(known: Known | None, found: Test | None, details: bool) -> list[str]:
    """What is wrong with the record of a test, as lines."""
    if found is None or found.outcome == Outcome.NOT_RUN:
        return ["base did not get to it, so nothing was measured"]
    if known is None:
        return [f"not recorded, measured: {found.outcome}"]
    if category(found.outcome) not in map(category, known.outcomes):
        return [f"recorded: {', '.join(sorted(known.outcomes))}, measured: {found.outcome}"]
    before = known.detail or []
    if details and before != found.detail:
        return [
            "it says something else than recorded",
            *(f"recorded: {line}" for line in before if line not in found.detail),
            *(f"measured: {line}" for line in found.detail if line not in before),
        ]
    return []
