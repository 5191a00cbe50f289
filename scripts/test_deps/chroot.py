"""Chroots with a copy of this checkout: one tarball for each suite, and an overlayfs for each case."""

import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from harness.errors import MachineError
from harness.paths import TOP

from test_deps import host

WORK = TOP / "build/test-deps"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "managed-generic"

PROJECT = "/root/project"
PROJECT_CACHE = "/root/.cache/managed-generic"
# What the README asks for before the first make.
PACKAGES = ("ca-certificates", "git", "make")

# Runs $@ in the chroot of overlayfs: a /dev of its own, so that no package's scripts can touch the machine's.
ENTER = r"""
set -eu
root=$1 options=$2
shift 2
mount -t overlay -o "$options" overlay "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
for node in null zero full random urandom; do
	touch "$root/dev/$node"
	mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
# Not exec: the first process stays root's, so that the end of unshare ends it whoever the rest belongs to.
chroot "$root" "$@" || exit $?
"""


class CaseError(Exception):
    """A case has failed."""


def sources(suite: str) -> str:
    """The sources.list of a Debian machine."""
    mirror, security = host.mirrors()
    lines = [f"deb {mirror} {suite} main"]
    if suite != "sid":
        lines += [f"deb {mirror} {suite}-updates main", f"deb {security} {suite}-security main"]
    return "\n".join(lines) + "\n"


def tarball(suite: str, log: Path) -> Path:
    """A minimal Debian, which is made once and kept in the cache folder."""
    path = CACHE / "chroots" / f"{suite}.tar"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new.tar")
    settings = WORK / "apt.conf"
    settings.write_text(host.apt_settings(), encoding="utf-8")
    packages = ",".join(PACKAGES)
    with log.open("a", encoding="utf-8") as output:
        if shutil.which("mmdebstrap"):
            command = ["mmdebstrap", "--variant=minbase", f"--include={packages}", f"--aptopt={settings}"]
            run_logged([*command, suite, str(new), "-"], output, sources(suite))
        elif shutil.which("debootstrap"):
            folder = WORK / f"{suite}.new"
            shutil.rmtree(folder, ignore_errors=True)
            mirror, _ = host.mirrors()
            command = [
                "debootstrap",
                "--variant=minbase",
                f"--include={packages}",
                suite,
                str(folder),
                mirror,
            ]
            run_logged(command, output)
            (folder / "etc/apt/sources.list").write_text(sources(suite), encoding="utf-8")
            run_logged(["tar", "--create", "--file", str(new), "--directory", str(folder), "."], output)
            shutil.rmtree(folder)
        else:
            raise MachineError("neither mmdebstrap nor debootstrap: apt-get install mmdebstrap")
    new.rename(path)
    return path


def run_logged(command: list[str], output: TextIO, stdin: str = "") -> None:
    """Part of making a chroot."""
    result = subprocess.run(
        command, input=stdin, stdout=output, stderr=subprocess.STDOUT, text=True, check=False
    )
    if result.returncode:
        raise MachineError(f"{command[0]} failed, see {output.name}")


def copy_checkout(target: Path) -> None:
    """What a clone would have, and what is not committed yet, as one commit."""
    names = subprocess.run(
        ["git", "-c", f"safe.directory={TOP}", "-C", TOP, "ls-files", "-z", "-co", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout
    top = os.fsencode(TOP)
    there = [name for name in names.split(b"\0") if name and os.path.lexists(os.path.join(top, name))]
    archive = subprocess.run(
        ["tar", "--create", "--directory", TOP, "--null", "--verbatim-files-from", "--files-from=-"],
        input=b"\0".join(there),
        check=True,
        capture_output=True,
    ).stdout
    target.mkdir(parents=True)
    subprocess.run(["tar", "--extract", "--directory", target], input=archive, check=True)
    git = ["git", "-C", str(target), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "checkout"]):
        subprocess.run([*git, *arguments], check=True)


def base(suite: str, log: Path) -> Path:
    """A minimal Debian with the checkout, extracted once a run and not written to."""
    root = WORK / suite
    if root.exists():
        return root
    new = root.with_suffix(".new")
    archive = tarball(suite, log)
    new.mkdir()
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", new], check=True)
    host.copy_to(new)
    copy_checkout(new / PROJECT.lstrip("/"))
    # dpkg need not wait for the disk.
    (new / "etc/dpkg/dpkg.cfg.d").mkdir(parents=True, exist_ok=True)
    (new / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n", encoding="utf-8")
    new.rename(root)
    return root


@dataclass
class Chroot:
    """The machine of one case. Each command has mount and process namespaces of its own; all ends with it."""

    folder: Path
    lower: list[Path]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("root", "upper", "work"):
            (self.folder / name).mkdir(parents=True)

    @property
    def layers(self) -> list[Path]:
        """Of an overlayfs that is as this one is now."""
        return [self.folder / "upper", *self.lower]

    def start(
        self, command: str, network: bool = True, user: str = "root", folder: str = PROJECT
    ) -> subprocess.Popen[bytes]:
        """Runs bash."""
        lower = ":".join(str(path) for path in self.lower)
        options = f"lowerdir={lower},upperdir={self.folder}/upper,workdir={self.folder}/work"
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            # The test need not wait for a compiler that optimizes bindgen.
            "CARGO_PROFILE_RELEASE_OPT_LEVEL": "0",
            "CARGO_PROFILE_RELEASE_LTO": "off",
            **host.environment(),
            **self.environment,
        }
        script = f"cd {shlex.quote(folder)} && {{ {command}\n}}"
        enter = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork"]
        enter += ["--kill-child", *([] if network else ["--net"]), "bash", "-c", ENTER, "enter"]
        inner = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        if user != "root":
            inner += ["runuser", "-u", user, "--"]
        with self.log.open("a", encoding="utf-8") as output:
            print(f"$ {command}", file=output, flush=True)
            return subprocess.Popen(
                [*enter, str(self.folder / "root"), options, *inner, "bash", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def run(self, command: str, timeout: float = 3600, **options: Any) -> tuple[int, str]:
        """Its status and output."""
        offset = self.log.stat().st_size if self.log.exists() else 0
        start = time.monotonic()
        process = self.start(command, **options)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill(process)
            raise CaseError(f"not done after {timeout:.0f} s: {command}") from None
        finally:
            self.kill(process)
        with self.log.open("a", encoding="utf-8") as output:
            print(f"[status {status}, {time.monotonic() - start:.1f} s]", file=output)
        text = self.log.read_bytes()[offset:].decode(errors="replace")
        # Without the command and its status.
        return status, "".join(text.splitlines(keepends=True)[1 + command.count("\n") : -1])

    def run_and_kill(self, command: str, message: str, seconds: float, timeout: float = 3600) -> None:
        """Ends all processes by SIGKILL some time after the message."""
        offset = self.log.stat().st_size if self.log.exists() else 0
        process = self.start(command)
        deadline = time.monotonic() + timeout
        try:
            while message.encode() not in self.log.read_bytes()[offset:]:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise CaseError(f"no message '{message}' of: {command}")
                time.sleep(0.1)
            time.sleep(seconds)
            if process.poll() is not None:
                raise CaseError(f"ended before it could be killed: {command}")
        finally:
            self.kill(process)

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """With unshare ends what it has started."""
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def good(self, command: str, **options: Any) -> str:
        """The output of a command that must pass."""
        status, output = self.run(command, **options)
        if status:
            raise CaseError(f"status {status} of: {command}")
        return output

    def bad(self, command: str, **options: Any) -> str:
        """The output of a command that must fail."""
        status, output = self.run(command, **options)
        if not status:
            raise CaseError(f"passed, but should not: {command}")
        return output

    def add_program(self, path: str, script: str) -> None:
        """Between two commands only: overlayfs does not like it in use."""
        file = self.folder / "upper" / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script, encoding="utf-8")
        file.chmod(0o755)

    def packages(self) -> dict[str, str]:
        """Those installed, with their versions."""
        # Not in the log, where it would be most of all.
        self.good(r"dpkg-query -W -f '${db:Status-Status} ${binary:Package} ${Version}\n' >/packages")
        fields = [line.split() for line in (self.folder / "upper/packages").read_text("utf-8").splitlines()]
        return {name: version for status, name, version in fields if status == "installed"}
