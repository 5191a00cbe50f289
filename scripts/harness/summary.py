"""summary.json: a target's report, as docs/summary.schema.json says."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from harness import junit, kcidb, ktap
from harness.results import Environment, Kernel, Outcome, Report, Run, Status, Test

SCHEMA = 1  # increased when a reader of the old one would fail
FILE = "summary.json"


def to_json(report: Report) -> dict[str, Any]:
    head = {"schema": SCHEMA, "target": report.target, "status": report.status}
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    fields |= {"environment": dataclasses.asdict(report.environment)}
    fields |= {"runs": [dataclasses.asdict(run) | {"ok": run.ok()} for run in report.runs]}
    fields |= {"parts": [to_json(part) for part in report.parts]}
    return head | fields


def from_json(data: dict[str, Any]) -> Report:
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')}, not {SCHEMA}")
    fields = {name: value for name, value in data.items() if name not in ("schema", "status")}
    kernels = [Kernel(**kernel) for kernel in fields["environment"].pop("kernels")]
    fields["environment"] = Environment(**fields["environment"], kernels=kernels)
    fields["runs"] = [_run(run) for run in fields["runs"]]
    fields["parts"] = [from_json(part) for part in fields["parts"]]
    return Report(**fields)


def _run(data: dict[str, Any]) -> Run:
    tests = [Test(**(test | {"outcome": Outcome(test["outcome"])})) for test in data["tests"]]
    return Run(**{name: value for name, value in data.items() if name != "ok"} | {"tests": tests})


def write(report: Report, folder: Path) -> None:
    """All files with the results of a target; summary.json last, as it is the verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "junit.xml").write_text(junit.document(report), encoding="utf-8")
    (folder / "ktap").write_text(ktap.document(report), encoding="utf-8")
    (folder / "kcidb.json").write_text(json.dumps(kcidb.document(report), indent=1) + "\n", encoding="utf-8")
    (folder / FILE).write_text(json.dumps(to_json(report), indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Report | None:
    """The results in a folder; None if there are none, or others than ours."""
    try:
        return from_json(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def status(folder: Path) -> Status:
    """What a target came to; one that left no results is one without a verdict."""
    report = read(folder)
    return report.status if report else Status.ERROR
