"""Finds what the kernel complains about in its log."""

import enum
import re
from dataclasses import dataclass

from harness.paths import TOP

# The one list, which hmm-selftests read as well.
LIST = TOP / "selftests/src/complaints.txt"
# A time stamp, and with CONFIG_PRINTK_CALLER the task or CPU.
PRINTK_LINE = re.compile(r"^\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ?(?P<message>.*)$")
# The guest's first process writes to the kernel's log, too: a minimal Debian lacks programs
# that it would run.
USER_SPACE = "virtme-ng-init: "
SPLAT_LINES = 12


class Kind(enum.StrEnum):
    CRASH = "crash"  # the kernel is in no state for more tests
    COMPLAINT = "complaint"


@dataclass(frozen=True)
class Pattern:
    kind: Kind
    regex: re.Pattern[str]
    examples: tuple[str, ...]


def read_patterns(text: str) -> list[Pattern]:
    patterns: list[Pattern] = []
    kind = None
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        if line.removesuffix(":") in list(Kind):
            kind = Kind(line.removesuffix(":"))
        elif line.startswith("\t"):
            last = patterns.pop()
            patterns.append(Pattern(last.kind, last.regex, (*last.examples, line[1:])))
        elif kind:
            patterns.append(Pattern(kind, re.compile(line), ()))
        else:
            raise ValueError(f"no kind before {line!r}")
    return patterns


PATTERNS = read_patterns(LIST.read_text(encoding="utf-8"))


def kind_of(message: str) -> Kind | None:
    """What a message of the kernel is, without its time stamp; None if it is none of these."""
    return next((pattern.kind for pattern in PATTERNS if pattern.regex.search(message)), None)


def kind_of_line(line: str) -> Kind | None:
    """The same for a line of the console, to which not only the kernel writes."""
    printk = PRINTK_LINE.match(line)
    if not printk or printk["message"].startswith(USER_SPACE):
        return None
    return kind_of(printk["message"])


def find_splats(console: str) -> list[list[str]]:
    """The first lines of everything in the console log that is one."""
    splats = []
    lines = console.splitlines()
    number = 0
    while number < len(lines):
        if kind_of_line(lines[number]):
            splats.append(lines[number : number + SPLAT_LINES])
            number += SPLAT_LINES
        else:
            number += 1
    return splats


def crash_line(splats: list[list[str]]) -> str | None:
    """The first line that says that the kernel crashed."""
    lines = (line for splat in splats for line in splat)
    return next((line for line in lines if kind_of_line(line) == Kind.CRASH), None)
