#!/usr/bin/env python3
"""Checks that bugs.md has a line for each bug of make bugs: its test and its patch."""

import ast
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
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
    return int(bool(missing) or len(rows) != len(wanted))


if __name__ == "__main__":
    sys.exit(main())
