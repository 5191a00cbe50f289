"""Options that several verbs have."""

import argparse

from harness import environment
from harness.base_record import Mode
from harness.errors import MachineError


def _seed(text: str) -> int:
    try:
        return environment.choose_seed(text)
    except MachineError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=_seed, default=environment.choose_seed(None), help="of what is random in tests"
    )


def add_kernel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", default="series", choices=("series", "debug"))


def add_base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        type=Mode,
        default=Mode.USE,
        choices=list(Mode),
        help="results of the unpatched kernel: use the record, measure and compare with it, or record",
    )


def choices(parser: argparse.ArgumentParser, text: str, known: tuple[str, ...] | list[str]) -> list[str]:
    """A comma-separated list of known names."""
    names = text.split(",")
    for name in names:
        if name not in known:
            parser.error(f"unknown '{name}', use {','.join(known)}")
    return names
