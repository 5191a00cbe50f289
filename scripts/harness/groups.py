"""The groups of the series: a folder of patches/ each, with a cover letter that has all
that is known of the group, and in build/linux a branch group/NAME at its last commit.
"""

import email
import email.header
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import MachineError

NAME = re.compile(r"\d\d-[a-z0-9-]+")
SUBJECT = re.compile(r"\[((?:RFC )?PATCH)(?: \d+/\d+)?\] (.*)")
HEADERS = {"subject", "depends-on", "state"}
COVER = "cover-letter.txt"
# What is below is made from the commits.
LINE = "---"


@dataclass(frozen=True)
class Group:
    """What its cover letter says."""

    name: str
    prefix: str  # of the subjects: PATCH or RFC PATCH
    title: str
    depends_on: tuple[str, ...]
    state: str  # for README.md, not for the mail
    text: str

    def cover(self, count: int, generated: str) -> str:
        """The file."""
        headers = [
            f"Subject: [{self.prefix} {0:0{len(str(count))}}/{count}] {self.title}",
            f"Depends-on: {' '.join(self.depends_on)}".rstrip(),
            f"State: {self.state}",
        ]
        return "\n".join([*headers, "", self.text, "", LINE, generated])


def parse(name: str, file: str) -> Group:
    """Reads a cover letter."""
    message = email.message_from_string(file)
    where = f"patches/{name}/{COVER}"
    unknown = {key.lower() for key in message} ^ HEADERS
    if unknown:
        raise MachineError(f"{where}: not as expected, or missing: {', '.join(sorted(unknown))}")
    subject = SUBJECT.fullmatch(" ".join(message["Subject"].split()))
    if not subject:
        raise MachineError(f"{where}: the subject is not '[PATCH 0/n] title'")
    text = str(message.get_payload()).partition(f"\n{LINE}\n")[0].strip()
    if not text:
        raise MachineError(f"{where}: no text")
    depends_on = tuple(message["Depends-on"].split())
    return Group(name, subject[1], subject[2], depends_on, " ".join(message["State"].split()), text)


def read(patches: Path) -> dict[str, Group]:
    """All groups, in order."""
    found: dict[str, Group] = {}
    for folder in sorted(path for path in patches.iterdir() if path.is_dir()):
        if not NAME.fullmatch(folder.name):
            raise MachineError(f"patches/{folder.name} is no name of a group, such as 01-mm")
        if not (folder / COVER).is_file():
            raise MachineError(f"write patches/{folder.name}/{COVER}, as in the other groups")
        group = parse(folder.name, (folder / COVER).read_text(encoding="utf-8"))
        for other in group.depends_on:
            if other not in found:
                raise MachineError(f"patches/{group.name} depends on {other}, which is no earlier group")
        found[group.name] = group
    return found


def needed(groups: Mapping[str, Group], name: str) -> list[str]:
    """The groups that have to be applied before this one, in order."""
    if name not in groups:
        raise MachineError(f"there is no group '{name}', use one of: {', '.join(groups)}")
    wanted: set[str] = set()
    left = list(groups[name].depends_on)
    while left:
        other = left.pop()
        if other not in wanted:
            wanted.add(other)
            left += groups[other].depends_on
    return [other for other in groups if other in wanted]


def split(commits: Sequence[str], tips: Mapping[str, str]) -> dict[str, list[str]]:
    """The commits of each group; tips are the last ones, in order of names. A commit in no
    group, or a group that is not where it should be, is an error."""
    parts: dict[str, list[str]] = {}
    start = 0
    position = {commit: number for number, commit in enumerate(commits, 1)}
    for name, tip in tips.items():
        end = position.get(tip)
        if end is None:
            raise MachineError(
                f"branch group/{name} is not on branch series: git rebase --update-refs would have "
                f"moved it along; git -C build/linux branch -f group/{name} COMMIT does"
            )
        if end <= start:
            raise MachineError(
                f"branch group/{name} has no commit of its own: it ends where an earlier group does, "
                "or before"
            )
        parts[name] = list(commits[start:end])
        start = end
    if start < len(commits):
        raise MachineError(
            f"no group has {', '.join(commits[start:])}, on branch series after the last of branches "
            "group/*: move it into a group (git rebase -i --update-refs base), or move a branch "
            "(git branch -f)"
        )
    return parts


def check_folders(parts: Iterable[str], groups: Iterable[str]) -> None:
    """Each branch has its folder, and each folder its branch."""
    branches, folders = set(parts), set(groups)
    for name in sorted(branches - folders):
        raise MachineError(f"branch group/{name} has no patches/{name}/{COVER}: write it, as in other groups")
    for name in sorted(folders - branches):
        raise MachineError(f"patches/{name} has no branch group/{name} in build/linux: make it, or git rm it")


def generated(groups: Mapping[str, Group], name: str, base: str, shortlog: str, diffstat: str) -> str:
    """What tools say of a group."""
    before = [f"  {groups[other].title}" for other in needed(groups, name)]
    where = f"Applies to {base}"
    where += "\n".join([", after these series:", *before]) if before else "."
    return f"{where}\n\n{shortlog.strip()}\n\n{diffstat.rstrip()}\n"


BEGIN, END = "<!-- by make export -->\n", "<!-- end -->\n"


def table(groups: Mapping[str, Group], counts: Mapping[str, int]) -> str:
    """For README.md."""
    rows = ["| group | patches | what | depends on | state |", "|---|---|---|---|---|"]
    for group in groups.values():
        link = f"[{group.name}]({group.name}/{COVER})"
        others = ", ".join(other[:2] for other in group.depends_on)
        rows.append(f"| {link} | {counts[group.name]} | {group.title} | {others} | {group.state} |")
    return "\n".join(rows) + "\n"


def with_table(readme: str, rows: str) -> str:
    """The page with its table replaced."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise MachineError(f"patches/README.md has no lines {BEGIN.strip()} and {END.strip()}")
    return before + BEGIN + rows + END + after


def dot(groups: Mapping[str, Group]) -> str:
    """The picture of what depends on what: an arrow from what comes first. Arrows that others
    imply are left out."""
    lines = [
        "// What depends on what, by scripts/groups.py from patches/*/cover-letter.txt.",
        "digraph groups {",
        "\tgraph [rankdir=LR, bgcolor=white, pad=0.15, nodesep=0.15, ranksep=0.6]",
        '\tnode [shape=box, style="rounded,filled", color="#555555", fillcolor="#d6e6f5",',
        '\t      margin="0.12,0.06", fontname="Helvetica", fontsize=13]',
        '\tedge [color="#555555"]',
        "",
    ]
    for group in groups.values():
        color = ', fillcolor="#cdebcd"' if group.prefix != "PATCH" else ""
        lines.append(f'\t"{group.name}" [label="{group.name}"{color}]')
    lines.append("")
    for group in groups.values():
        implied = {far for near in group.depends_on for far in needed(groups, near)}
        lines += [f'\t"{other}" -> "{group.name}"' for other in group.depends_on if other not in implied]
    return "\n".join([*lines, "}", ""])


def subject(file: str) -> str:
    """A patch's, without what is in brackets."""
    raw = email.message_from_string(file)["Subject"]
    text = str(email.header.make_header(email.header.decode_header(raw)))
    return re.sub(r"^\[.*?\] ", "", " ".join(text.split()))
