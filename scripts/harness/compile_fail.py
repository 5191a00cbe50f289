"""Rust code that must not compile, and why.

A line that must be refused ends with `//~` and the code of the error, or its message if it has
none. Without these lines, the same file must compile: so it is for nothing else that it does not.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

MARK = re.compile(r"//~ (.+)$")

# A line and what is wrong with it.
Errors = set[tuple[int, str]]


def marks(text: str) -> Errors:
    """The errors that a file must have; none: it must compile."""
    found = ((number, MARK.search(line)) for number, line in enumerate(text.splitlines(), 1))
    return {(number, match[1]) for number, match in found if match}


def without_marked(text: str) -> str:
    """The file without the lines that must be refused. The others keep their numbers."""
    return "\n".join("" if MARK.search(line) else line for line in text.splitlines()) + "\n"


def write_variants(sources: Path, folder: Path) -> list[str]:
    """Puts all files into a folder, those with marks also without the marked lines; their names."""
    names = []
    for source in sorted(sources.glob("*.rs")):
        text = source.read_text(encoding="utf-8")
        variants = {source.stem: text}
        if marks(text):
            variants[f"{source.stem}_rest"] = without_marked(text)
        for name, variant in variants.items():
            (folder / f"{name}.rs").write_text(variant, encoding="utf-8")
            names.append(name)
    return names


def errors(log: str) -> Iterator[tuple[str, int, str]]:
    """File, line and code of what rustc --error-format=json has refused."""
    for line in log.splitlines():
        if not line.startswith("{"):
            continue
        message = json.loads(line)
        if message.get("level") != "error":
            continue
        for span in message["spans"]:
            if span["is_primary"]:
                code = message["code"]["code"] if message["code"] else message["message"]
                yield Path(span["file_name"]).name, span["line_start"], code


def judge(folder: Path, names: list[str], log: str) -> list[str]:
    """What is not as the files say."""
    found: dict[str, Errors] = {name: set() for name in names}
    complaints = []
    for file, line, code in errors(log):
        # Those in other files are in macros.
        found.get(file.removesuffix(".rs"), set()).add((line, code))
    for name in names:
        expected = marks((folder / f"{name}.rs").read_text(encoding="utf-8"))
        complaints += [f"{name}.rs:{line}: no {code}" for line, code in sorted(expected - found[name])]
        complaints += [f"{name}.rs:{line}: {code}" for line, code in sorted(found[name] - expected)]
        compiled = (folder / f"{name}.o").exists()
        if compiled != (not expected):
            complaints.append(f"{name}.rs: {'compiles' if compiled else 'does not compile'}")
    return complaints
