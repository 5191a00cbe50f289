"""Whether the modules of a Rust crate form layers.

The root of the crate names its modules in groups, the lowest layer first. A module may use those
of lower layers, and of its own as long as there is no ring.
"""

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

COMMENT = re.compile(r"//[^\n]*")
MODULE = re.compile(r"(?:pub(?:\(\w+\))? )?mod (\w+);$")
PATH = re.compile(r"\b(crate|super)::(?=(\w+)|\{)")
# What a list of imports is made of: braces, commas, and the first name of a path.
PART = re.compile(r"[{},]|(?<!::)\b\w+")


def layers(root: str) -> list[list[str]]:
    """The modules that the root of a crate declares; what is not such a line ends a layer."""
    found: list[list[str]] = [[]]
    for line in root.splitlines():
        if match := MODULE.match(line):
            found[-1].append(match[1])
        elif found[-1]:
            found.append([])
    return [layer for layer in found if layer]


def first_names(text: str) -> Iterator[str]:
    """Those of the paths in a list of imports, which begins with its brace."""
    depth = 0
    for part in PART.finditer(text):
        match part[0]:
            case "{":
                depth += 1
            case "}":
                depth -= 1
                if depth == 0:
                    return
            case "," | "as":
                pass
            case name if depth == 1:
                yield name


def uses(text: str, beside_root: bool) -> set[str]:
    """The names that a file has from the root of its crate: of modules, macros and others."""
    code = COMMENT.sub("", text)
    found: set[str] = set()
    for match in PATH.finditer(code):
        # Elsewhere, that is another module.
        if match[1] == "super" and not beside_root:
            continue
        found.update([match[2]] if match[2] else first_names(code[match.end() :]))
    return found


def violations(order: list[list[str]], used: Mapping[str, set[str]]) -> list[str]:
    """What is wrong: uses of a layer above, and a ring within one."""
    layer_of = {module: number for number, layer in enumerate(order) for module in layer}
    found = []
    within: dict[str, list[str]] = {}
    for module, number in layer_of.items():
        others = sorted((used[module] & layer_of.keys()) - {module})
        found += [f"{module} uses {other}, of a layer above" for other in others if layer_of[other] > number]
        within[module] = [other for other in others if layer_of[other] == number]
    try:
        TopologicalSorter(within).prepare()
    except CycleError as error:
        found.append(f"a ring: {' uses '.join(reversed(error.args[1]))}")
    return found


def check(root: Path) -> list[str]:
    """What is wrong with the layers of a crate, by the file of its root."""
    order = layers(root.read_text(encoding="utf-8"))
    if not order:
        return [f"{root}: no modules"]
    used = {}
    for module in (module for layer in order for module in layer):
        files = [root.parent / f"{module}.rs", *sorted((root.parent / module).rglob("*.rs"))]
        used[module] = {
            name
            for file in files
            if file.exists()
            for name in uses(file.read_text(encoding="utf-8"), file.parent == root.parent)
        }
    return [f"{root}: {violation}" for violation in violations(order, used)]
