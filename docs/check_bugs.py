#!/usr/bin/env python3
"""Checks that bugs.md has a line for each bug of make bugs, with its test and its patch, that
there are such patches, and that README.md has each group of them."""

import ast
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path.append(str(DOCS.parent / "scripts"))
from harness import groups  # noqa: E402  (after the path of it)

PATCHES = DOCS.parent / "patches"
BUGS = "scripts/harness/bugs.py"


def bugs(source: str) -> list[list[str]]:
    """The strings that each element of the list BUGS is made of."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(node).startswith("BUGS"):
            assert isinstance(node.value, ast.List)
            return [strings(bug) for bug in node.value.elts]
    raise ValueError(f"{BUGS} has no list BUGS")


def strings(node: ast.AST) -> list[str]:
    constants = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def main() -> int:
    wanted = bugs((DOCS.parent / BUGS).read_text())
    rows = [line for line in (DOCS / "bugs.md").read_text().splitlines() if line.startswith("| `")]
    missing = [bug for bug in wanted if not any(all(part in row for part in bug) for row in rows)]
    for bug in missing:
        print(f"error: docs/bugs.md has no line for {', '.join(bug)}", file=sys.stderr)
    if len(rows) != len(wanted):
        print(f"error: docs/bugs.md has {len(rows)} lines for {len(wanted)} bugs", file=sys.stderr)
    errors = len(missing) + (len(rows) != len(wanted))
    subjects = {groups.subject(path.read_text()) for path in PATCHES.glob("*/*.patch")}
    for patch in sorted({row.split("|")[-2].strip() for row in rows} - subjects):
        print(f"error: docs/bugs.md has '{patch}', which is no patch", file=sys.stderr)
        errors += 1
    linked = set(re.findall(r"\(patches/([\w-]+)\)", (DOCS.parent / "README.md").read_text()))
    for name in sorted(linked ^ {path.name for path in PATCHES.iterdir() if path.is_dir()}):
        print(f"error: patches/{name} is in README.md, or there, but not both", file=sys.stderr)
        errors += 1
    return int(errors > 0)


if __name__ == "__main__":
    sys.exit(main())
