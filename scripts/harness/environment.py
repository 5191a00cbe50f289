"""What results depend on: kernels, commits, compilers, the machine."""

import functools
import hashlib
import os
import random
import re
import subprocess
from pathlib import Path

from harness.errors import MachineError
from harness.paths import BUILD, LINUX, TOP, environment
from harness.results import Environment, Kernel

SEED_LIMIT = 1 << 32


def git(tree: Path, *arguments: str) -> str | None:
    """What git prints, without the user's settings; None where it fails."""
    if not (tree / ".git").exists():
        return None
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # The tree may be another user's: reading it is no risk.
    command = ["git", "--no-optional-locks", "-c", f"safe.directory={tree}", "-C", str(tree), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def changed(tree: Path) -> bool | None:
    """Whether files differ from the commit."""
    listing = git(tree, "status", "--porcelain", "--untracked-files=no")
    return None if listing is None else bool(listing)


def base_commit() -> str | None:
    """The base's commit, if it is one of the tree that build/linux was made from. What was
    imported from files has one that nobody else knows."""
    commit = git(LINUX, "rev-parse", "base^{commit}")
    try:
        origin = (LINUX / ".git/kernel-origin").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    known = commit and origin and git(Path(origin), "cat-file", "-e", str(commit)) is not None
    return commit if known else None


@functools.cache
def base_version() -> str | None:
    """The release of Linux that is the base."""
    makefile = git(LINUX, "show", "base:Makefile")
    if makefile is None:
        return None
    parts = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", makefile, re.MULTILINE))
    return ".".join(parts.values()) or None


def patchset_hash() -> str:
    """As KCIDB defines it: of the patches' hashes, in order."""
    patches = sorted((TOP / "patches").glob("*/*.patch"))
    hashes = "".join(hashlib.sha256(patch.read_bytes()).hexdigest() + "\n" for patch in patches)
    return hashlib.sha256(hashes.encode()).hexdigest()


def kernel_folder(flavour: str) -> Path:
    """As lib.sh's kernel_dir."""
    return BUILD / ("kernel" if flavour == "series" else flavour)


def options(path: Path) -> list[str] | None:
    """The options set in a configuration, in no order of its own."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return sorted({line for line in lines if line.startswith("CONFIG_")})


def options_hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def kernel(flavour: str) -> Kernel | None:
    """A kernel that was built."""
    try:
        release = (kernel_folder(flavour) / "include/config/kernel.release").read_text(encoding="utf-8")
    except OSError:
        return None
    config = options(kernel_folder(flavour) / ".config")
    compiler = re.search(r'^CONFIG_CC_VERSION_TEXT="(.*)"$', "\n".join(config or []), re.MULTILINE)
    return Kernel(
        flavour,
        release.strip(),
        options_hash(config) if config else None,
        compiler[1] if compiler else None,
    )


def qemu_version() -> str | None:
    try:
        done = subprocess.run(
            ["qemu-system-x86_64", "--version"],
            capture_output=True,
            text=True,
            check=False,
            env=environment(),
        )
    except OSError:
        return None
    found = re.search(r"version (\S+)", done.stdout)
    return found[1] if found else None


def cores() -> int:
    return len(os.sched_getaffinity(0))


def collect(flavours: set[str], accelerator: str | None) -> Environment:
    """With the kernels of these flavours, and QEMU if there are any."""
    return Environment(
        repository_commit=git(TOP, "rev-parse", "HEAD"),
        repository_changed=changed(TOP),
        base_commit=base_commit(),
        base_version=base_version(),
        series_commit=git(LINUX, "rev-parse", "series^{commit}"),
        series_changed=changed(LINUX),
        patchset_hash=patchset_hash(),
        kernels=[found for found in map(kernel, sorted(flavours)) if found],
        accelerator=accelerator if flavours else None,
        qemu=qemu_version() if flavours else None,
        cores=cores(),
    )


def choose_seed(text: str | None) -> int:
    """The seed asked for, or a random one."""
    if not text:
        return random.randrange(SEED_LIMIT)
    if not text.isdecimal() or int(text) >= 1 << 64:
        raise MachineError(f"seed '{text}': not a number of 64 bits")
    return int(text)
