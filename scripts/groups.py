#!/usr/bin/env python3
"""The groups of the series, each of which is mailed by itself.

groups.py export         writes patches/ from branches series and group/* of build/linux
groups.py check          whether cover letters and table are as export would write them
groups.py needed NAME    the groups that have to be applied before this one
groups.py mbox [NAME]    build/mbox/NAME.mbox: what would be sent
groups.py dot            the source of docs/groups.dot
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness import groups, mail, target
from harness.errors import MachineError
from harness.groups import Group
from harness.paths import BUILD, LINUX, TOP

PATCHES = TOP / "patches"
README = PATCHES / "README.md"
BASE = "v7.3"


def git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(LINUX), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout


def parts() -> dict[str, list[str]]:
    """The commits of each group in build/linux."""
    commits = git("rev-list", "--reverse", "base..series").split()
    refs = git("for-each-ref", "--format=%(refname:lstrip=3) %(objectname)", "refs/heads/group/")
    tips = dict(line.split() for line in refs.splitlines())
    try:
        return groups.split(commits, dict(sorted(tips.items())))
    except MachineError as error:
        text = str(error)
        for commit in commits:
            if commit in text:
                text = text.replace(commit, git("log", "-1", "--format='%h %s'", commit).strip())
        raise MachineError(text) from None


def render(known: Mapping[str, Group], commits: Mapping[str, list[str]]) -> dict[Path, str]:
    """The files that are partly made of others."""
    files = {}
    for name, group in known.items():
        span = (f"{commits[name][0]}^", commits[name][-1])
        shortlog = git("shortlog", "-w72,2,4", "..".join(span))
        diffstat = git("diff", "--stat=72", "--summary", *span)
        made = groups.generated(known, name, BASE, shortlog, diffstat)
        files[PATCHES / name / groups.COVER] = group.cover(len(commits[name]), made)
    rows = groups.table(known, {name: len(commits[name]) for name in known})
    files[README] = groups.with_table(README.read_text(encoding="utf-8"), rows)
    return files


def export() -> int:
    commits = parts()
    known = groups.read(PATCHES)
    groups.check_folders(commits, known)
    files = render(known, commits)
    for name, own in commits.items():
        for old in (PATCHES / name).glob("*.patch"):
            old.unlink()
        git(
            *("-c", "core.abbrev=12", "format-patch", "--quiet", "--no-signature", "--zero-commit"),
            *(f"--subject-prefix={known[name].prefix}", f"--output-directory={PATCHES / name}"),
            f"{own[0]}^..{own[-1]}",
        )
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    print(f"==> exported {sum(map(len, commits.values()))} patches in {len(commits)} groups", file=sys.stderr)
    return 0


def check() -> int:
    commits = parts()
    known = groups.read(PATCHES)
    groups.check_folders(commits, known)
    files = render(known, commits)
    stale = [path for path, text in files.items() if path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"error: {path.relative_to(TOP)} is not as make export writes it", file=sys.stderr)
    return int(bool(stale))


def people(name: str) -> tuple[list[str], list[str]]:
    """Who is responsible for the files that a group changes, and who wants to know, by the
    kernel's own script."""
    script = [str(LINUX / "scripts/get_maintainer.pl"), "--nogit", "--nogit-fallback"]
    patches = sorted(str(path) for path in (PATCHES / name).glob("*.patch"))
    done = subprocess.run([*script, *patches], cwd=LINUX, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"get_maintainer.pl: {done.stderr.strip()}")
    return mail.roles(done.stdout)


def write_mbox(group: Group) -> str:
    """Writes it and returns what it is."""
    to, cc = people(group.name)
    cover = (PATCHES / group.name / groups.COVER).read_text(encoding="utf-8")
    patches = [path.read_text(encoding="utf-8") for path in sorted((PATCHES / group.name).glob("*.patch"))]
    path = BUILD / "mbox" / f"{group.name}.mbox"
    path.write_text(mail.mbox(group, cover, patches, to, cc), encoding="utf-8")
    return f"{path.relative_to(TOP)}: {len(patches)} patches, To {len(to)}, Cc {len(cc)}"


def mbox(wanted: str | None) -> int:
    known = groups.read(PATCHES)
    if wanted:
        groups.needed(known, wanted)  # is there such a group?
    (BUILD / "mbox").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for line in pool.map(write_mbox, [known[wanted]] if wanted else known.values()):
            print(line)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("export", "check", "needed", "mbox", "dot"))
    parser.add_argument("name", nargs="?")
    args = parser.parse_args()
    if args.what == "export":
        return export()
    if args.what == "check":
        return check()
    if args.what == "mbox":
        return mbox(args.name)
    known = groups.read(PATCHES)
    if args.what == "needed":
        print("\n".join(groups.needed(known, args.name or "")))
    else:
        print(groups.dot(known), end="")
    return 0


if __name__ == "__main__":
    target.exit_with(main)
