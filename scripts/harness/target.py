"""What all verbs begin and end with."""

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from harness import environment, summary, vm
from harness.errors import Exit, MachineError
from harness.paths import RESULTS
from harness.results import Report, Status

EXIT = {Status.PASSED: Exit.PASSED, Status.FAILED: Exit.FAILED, Status.ERROR: Exit.ERROR}


def default_folder(target: str, kernel: str = "series") -> Path:
    return RESULTS / (target if kernel == "series" else f"{target}-{kernel}")


@contextlib.contextmanager
def reporting(target: str, folder: Path, seed: int | None = None) -> Iterator[Report]:
    """Writes the report at the end, whatever happens, and before the first run one
    without a verdict: an old one must not outlive a failure."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    report = Report(target, start=now, seed=seed, error="it did not end")
    summary.write(report, folder)
    begin = time.monotonic()
    try:
        yield report
        report.error = None
    except MachineError as error:
        report.error = str(error)
        raise
    except SystemExit:
        report.error = "interrupted"
        raise
    except BaseException:
        report.error = traceback.format_exc()
        raise
    finally:
        report.seconds = round(time.monotonic() - begin, 1)
        flavours = {run.kernel for run in report.runs if run.kernel and not run.recorded}
        report.environment = environment.collect(flavours, vm.known_accelerator())
        summary.write(report, folder)
        for warning in report.warnings:
            print(f"warning: {warning}", file=sys.stderr)


def exit_with(main: Callable[[], Report | int]) -> NoReturn:
    """Ends the script with what its main function comes to, or with the reason why it
    does not. Signals end it together with its VMs."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, vm.end_on_signal)
    try:
        result = main()
    except MachineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(Exit.ERROR)
    except Exception:
        traceback.print_exc()
        sys.exit(Exit.ERROR)
    if isinstance(result, Report):
        if result.status == Status.ERROR:
            print(f"error: no verdict: {result.missing_verdict() or 'see its parts'}", file=sys.stderr)
        sys.exit(EXIT[result.status])
    sys.exit(result)
