"""Which function is at an address of a running kernel, and which object it was compiled to."""

import bisect
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.errors import MachineError

# Archives of all that vmlinux is linked from, by the folder of a build.
ARCHIVES = ("vmlinux.a", "lib/lib.a", "arch/x86/lib/lib.a")
# Of nm and of /proc/kallsyms: address, type and name, and there the module's.
SYMBOL = re.compile(r"([0-9a-f]{16}) [tTwW] (\S+)(?:\t\[(\w+)\])?")
OF_ARCHIVE = re.compile(r"(?:.*:)?([^:]+\.o):[0-9a-f]{16} [tTwW] (\S+)")
USER_LIMIT = 1 << 63
# What is in front of a function for those that call it by a pointer.
PADDING = "__pfx_"
CRATE_HASH = re.compile(r"(?<=\w)\[[0-9a-f]+\]")


class Function(NamedTuple):
    """Where code is from."""

    place: str  # an object's path in the folder of the build, or the name of a module
    name: str


USER = Function("user space", "")
UNKNOWN = Function("unknown", "")


class Symbols:
    """The functions of a kernel with its modules."""

    def __init__(self, functions: Mapping[int, Function]) -> None:
        self.functions = dict(sorted(functions.items()))
        self.addresses = list(self.functions)

    def address(self, name: str) -> int:
        for address, function in self.functions.items():
            if function.name == name:
                return address
        raise MachineError(f"the kernel has no function {name}")

    def find(self, address: int) -> tuple[int, Function]:
        """Where the function at an address begins, and which one that is."""
        if address < USER_LIMIT:
            return 0, USER
        after = bisect.bisect_right(self.addresses, address)
        if not after:
            return 0, UNKNOWN
        start = self.addresses[after - 1]
        return start, self.functions[start]


def run(command: Sequence[str], text: str = "", folder: Path | None = None) -> str:
    try:
        return subprocess.run(
            command, input=text, capture_output=True, text=True, check=True, cwd=folder
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise MachineError(f"{' '.join(command)}: {getattr(error, 'stderr', '') or error}") from error


def parse(lines: Iterable[str]) -> list[tuple[int, str, str]]:
    """Address, name and module of each function, by address."""
    found = [match for line in lines if (match := SYMBOL.fullmatch(line))]
    return sorted((int(match[1], 16), match[2], match[3] or "") for match in found)


def homes(listing: str) -> dict[str, set[str]]:
    """The objects that have a function of a name, of what nm says of archives."""
    found: dict[str, set[str]] = {}
    for line in listing.splitlines():
        if match := OF_ARCHIVE.fullmatch(line):
            found.setdefault(match[2], set()).add(match[1])
    return found


def places(names: Sequence[str], objects: Mapping[str, set[str]]) -> list[str]:
    """The object of each function, in the order in which they were linked. What several objects
    have is in that of its neighbour."""
    found = [""] * len(names)
    for order in (range(len(names)), range(len(names) - 1, -1, -1)):
        last = ""
        for number in order:
            candidates = objects.get(names[number].removeprefix(PADDING), set())
            if not found[number] and (last in candidates or len(candidates) == 1):
                found[number] = last if last in candidates else next(iter(candidates))
            last = found[number] or last
    return [each or min(objects.get(name, {""})) for each, name in zip(found, names, strict=True)]


def demangled(names: Sequence[str]) -> list[str]:
    """Those of Rust as people write them, without the hashes of crates."""
    return CRATE_HASH.sub("", run(["c++filt"], "".join(f"{name}\n" for name in names))).splitlines()


def of_kernel(folder: Path) -> dict[int, Function]:
    """The functions of the vmlinux that was built there."""
    try:
        symbols = parse((folder / "System.map").read_text(encoding="utf-8").splitlines())
    except OSError as error:
        raise MachineError(f"no symbols of the kernel: {error}") from error
    # In that folder, as the names of the objects are those from where it is.
    listing = run(["nm", "--print-file-name", *ARCHIVES], folder=folder)
    names = [name for _, name, _ in symbols]
    found = zip(symbols, places(names, homes(listing)), demangled(names), strict=True)
    # What no object has is a mark of the linker's.
    return {address: Function(place, name) for (address, *_), place, name in found if place}


def of_modules(lines: Iterable[str]) -> dict[int, Function]:
    """The functions of modules, as the guest's /proc/kallsyms lists them."""
    symbols = [symbol for symbol in parse(lines) if symbol[2]]
    names = demangled([name for _, name, _ in symbols])
    return {
        address: Function(module, name) for (address, _, module), name in zip(symbols, names, strict=True)
    }
