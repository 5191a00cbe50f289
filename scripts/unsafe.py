#!/usr/bin/env python3
"""Lists where the Rust files under some directories say unsafe, and how often."""

import re
import sys
from pathlib import Path

# What may contain the word without being code is matched first, and skipped.
TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|\bb?c?r(?P<hashes>\#*)".*?"(?P=hashes)|"(?:\\.|[^"\\])*"|"""
    r"""'(?:\\[^']+|\\'|[^'\\])'|\b(?P<unsafe>unsafe)\b""",
    re.DOTALL,
)


def main() -> None:
    total = 0
    for directory in sys.argv[1:]:
        for path in sorted(Path(directory).rglob("*.rs")):
            text = path.read_text(encoding="utf-8")
            lines = text.splitlines()
            for match in TOKEN.finditer(text):
                if match["unsafe"]:
                    number = text.count("\n", 0, match.start()) + 1
                    print(f"    {path}:{number}: {lines[number - 1].strip()}")
                    total += 1
    print(f"    {total} in all")


if __name__ == "__main__":
    main()
