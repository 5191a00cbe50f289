"""Boots a kernel from build/modules in a VM and runs a command in it.

The VM's root file system is the host's, read-only; /tmp is its own. The command
sees two regions of special-purpose memory, SPM_ADDR_DEV0 and SPM_ADDR_DEV1 in
its environment.
"""

import contextlib
import functools
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

from harness import kernel_log
from harness.environment import cores
from harness.errors import MachineError
from harness.paths import BUILD, environment

MEMORY_MB = 4096
# What QEMU needs beside the guest's memory.
QEMU_MB = 512
CPUS = 2
# VMs: few tests use more than one CPU.
AT_ONCE = 2
# With this much memory, QEMU's q35 has RAM from 4 GB on.
SPM_START = 0x1_0000_0000
SPM_DEVICE_SIZE = 256 << 20
SPM_DEVICES = 4  # coherent and generic, two of each
SPM_ADDRS = (SPM_START, SPM_START + SPM_DEVICE_SIZE)

# The clock of a VM that counts: a nanosecond is an instruction, of one CPU after the other.
# When none has anything to do, it goes on as clocks do.
COUNTING = "-icount shift=0"
COUNTING_CPUS = 1
CMDLINE_OF_COUNTING = [
    # To the nanosecond, and what its frequency is must not depend on what was measured.
    "tsc=reliable",
    "tsc_early_khz=1000000",
    # The same addresses each time.
    "norandmaps",
]

# What QEMU writes of the code that it translates, beside the console's log: an instruction
# is in it once it is reached. KVM translates nothing.
CODE_LOG = "code.log"

# How long a kernel may take with KVM, in seconds, of which it needs two or three.
KVM_TIMEOUT = 30

# A device for VFIO to give away, and the IOMMU that this takes.
VFIO_DEVICES = ("-device intel-iommu", "-device edu")

CMDLINE = [
    "nokaslr",  # its parser of memmap= does not know '%'
    f"memmap={SPM_DEVICES * SPM_DEVICE_SIZE >> 20}M%{SPM_START:#x}-1+0xefffffff",
    "ignore_loglevel",
    # A guest that hangs is sent an NMI, for it to say what each CPU does, and who waits.
    "unknown_nmi_panic",
    "panic_sys_info=all_bt,blocked_tasks",
    # udev would load it for the SPM, and device-dax take that from the test drivers.
    "modprobe.blacklist=dax_hmem",
]
CMDLINE_WITHOUT_KVM = [
    # Emulated string instructions are slower than the kernel's unrolled loops.
    "clearcpuid=rep_good,erms,fsrm,fsrs",
    # Its ticks may come too late on a busy machine, which is no reason to panic.
    "no_timer_check",
    # The watchdog of clocksources waits for the other CPU with interrupts disabled: at boot, when
    # only interrupts move the time, for ever if that CPU waits for this one.
    "tsc=nowatchdog",
]
# With five levels of page tables, KASAN reports what an interrupt touches while
# identify_boot_cpu() has cleared X86_FEATURE_LA57: rare, and no matter of ours.
CMDLINE_OF_DEBUG = ["no5lvl"]

# How long a guest has to say where it hangs, in seconds; of its console, that many lines are shown.
LAST_WORDS_TIMEOUT = 30
LAST_WORDS_LINES = 120
CONSOLE_TAIL_LINES = 25

# What the guest prints first: it has booted, and what follows is the command's.
BOOTED = "the command begins"
# What its init says when what it prints goes to the console, and cannot be told from
# what the kernel says: no udev has made names for the ports.
NO_PORTS = "cannot find script I/O ports"

OnLine = Callable[[float, str], None]
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass
class Result:
    status: int | None = None  # the command's; None: it did not end
    booted: bool = False
    timed_out: bool = False
    seconds: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)  # seconds, output
    splats: list[list[str]] = field(default_factory=list)  # the first lines of each
    console_tail: list[str] = field(default_factory=list)

    def problem(self) -> str | None:
        """Why the run has failed as a whole, or None."""
        when = "" if self.booted else ", before the command began"
        if self.timed_out:
            return f"the guest hung: no end after {self.seconds:.0f} s{when}"
        if self.status is None:
            return f"the guest died{when}"
        if self.splats:
            return f"the kernel complained {len(self.splats)} times"
        return None


def accelerator() -> str:
    """KVM if a kernel boots with it; /dev/kvm alone says little, nor do the first instructions."""
    found = known_accelerator()
    if not found:
        # Asked once until the machine is booted again: a kernel that hangs takes its time.
        found = "kvm" if boots_with_kvm() else "tcg"
        (BUILD / "accelerator").write_text(f"{boot_id()} {found}\n", encoding="ascii")
    return found


def known_accelerator() -> str | None:
    """What accelerator() says, or nothing if that takes a kernel that was not asked yet."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with contextlib.suppress(OSError, ValueError):
        boot, found = (BUILD / "accelerator").read_text(encoding="ascii").split()
        if boot == boot_id():
            return found
    return None


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def boots_with_kvm() -> bool:
    """Whether a kernel, which has no root file system, gets so far that it panics for that."""
    image = next(iter(sorted((BUILD / "modules/lib/modules").glob("*/vmlinuz"))), None)
    if not image:
        raise MachineError("no kernel in build/modules")
    command = "qemu-system-x86_64 -machine q35,accel=kvm -cpu host -m 1024 -nodefaults -no-reboot"
    command += " -display none -serial stdio"
    cmdline = "console=ttyS0 panic=-1"
    try:
        done = subprocess.run(
            [*command.split(), "-kernel", str(image), "-append", cmdline],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=KVM_TIMEOUT,
            check=False,
            env=environment(),
        )
    except OSError:
        return False
    except subprocess.TimeoutExpired:
        print(f"==> no kernel boots with KVM within {KVM_TIMEOUT} s: emulated", file=sys.stderr)
        return False
    return b"Kernel panic" in done.stdout


def kernel_image(flavour: str) -> Path:
    images = sorted((BUILD / "modules/lib/modules").glob(f"*-{flavour}/vmlinuz"))
    if not images:
        raise MachineError(f"no {flavour} kernel in build/modules")
    return images[-1]


def find_tool(name: str) -> str:
    path = shutil.which(name, path=environment()["PATH"])
    if not path:
        raise MachineError(f"no {name}: run 'make deps'")
    return path


def fields(path: Path) -> dict[str, int]:
    """The numbers in a file of lines like 'name: 12 kB'."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdecimal()}


def available_mb() -> int:
    """Memory that VMs may use: the machine's, and what a container's limit leaves."""
    available = fields(Path("/proc/meminfo"))["MemAvailable"] >> 10
    cgroup = Path("/sys/fs/cgroup")
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # there is none
        return available
    # The page cache counts, but goes when memory is needed.
    cache = fields(cgroup / "memory.stat").get("file", 0)
    return min(available, (limit - used + cache) >> 20)


@functools.cache
def at_once(memory_mb: int = MEMORY_MB) -> int:
    """How many VMs with so much memory run at a time, by memory and cores before the first one."""
    wanted = min(AT_ONCE, cores())
    available, each = available_mb(), memory_mb + QEMU_MB
    fit = available // each
    if fit < 1:
        raise MachineError(f"a VM takes {each} MB of memory, and {available} MB are available")
    if fit < wanted:
        print(f"==> one VM at a time: {available} MB of memory are available", file=sys.stderr)
    return min(wanted, fit)


def vng_command(
    flavour: str,
    options: Iterable[str] = (),
    qemu: Iterable[str] = (),
    counting: bool = False,
    emulated: bool = False,
    memory_mb: int = MEMORY_MB,
) -> list[str]:
    find_tool("qemu-system-x86_64")
    kvm = not counting and not emulated and accelerator() == "kvm"
    command = [find_tool("vng"), "--verbose", "--disable-microvm", "--force-9p"]
    command += ["--cpus", str(COUNTING_CPUS if counting else CPUS), "-m", f"{memory_mb}M"]
    if not kvm:
        command += ["--disable-kvm"]
    command += ["--run", str(kernel_image(flavour))]
    cmdline = [*CMDLINE, *options]
    if not kvm:
        cmdline += CMDLINE_WITHOUT_KVM
    if flavour == "debug":
        cmdline += CMDLINE_OF_DEBUG
    if counting:
        cmdline += CMDLINE_OF_COUNTING
    for option in cmdline:
        command += ["--append", option]
    qemu = list(qemu)
    if counting:
        qemu.append(COUNTING)
    if qemu:
        command.append("--qemu-opts=" + " ".join(qemu))
    return command


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends vng, and QEMU with it, which may outlive its parent."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
            process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def ask(monitor: Path, commands: Iterable[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Gives commands to QEMU by a socket of its monitor, with options of qmp-shell."""
    return subprocess.run(
        ["timeout", str(LAST_WORDS_TIMEOUT), find_tool("qmp-shell"), *options, str(monitor)],
        input="".join(f"{command}\n" for command in commands),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )


def ask_where_it_hangs(process: subprocess.Popen[bytes], monitor: Path) -> None:
    """Has the guest panic, with a backtrace of each CPU, even if none takes interrupts."""
    if ask(monitor, ["inject-nmi"]).returncode:
        print("    QEMU does not answer", file=sys.stderr)
        return
    try:
        process.wait(LAST_WORDS_TIMEOUT)
    except subprocess.TimeoutExpired:
        print("    the guest does not react to an NMI", file=sys.stderr)


running: set[subprocess.Popen[bytes]] = set()  # vng's, of which threads may have one each


ending = threading.Event()  # set when all VMs are to end, of which then nothing is a result


def stop_all() -> None:
    ending.set()
    for process in list(running):
        stop(process)


def end_on_signal(number: int, _frame: FrameType | None) -> None:
    stop_all()
    sys.exit(128 + number)


def read_lines(
    process: subprocess.Popen[bytes], result: Result, timeout: float, on_line: OnLine | None
) -> None:
    """Until the guest is gone, or the time is over."""
    start = time.monotonic()
    pending = b""
    assert process.stdout
    while True:
        left = start + timeout - time.monotonic()
        if left <= 0:
            result.timed_out = True
            return
        if not select.select([process.stdout], [], [], min(left, 1))[0]:
            if process.poll() is not None:
                return
            continue
        chunk = os.read(process.stdout.fileno(), 65536)
        if not chunk:
            return
        *whole, pending = (pending + chunk).split(b"\n")
        for raw in whole:
            line = raw.decode(errors="replace").rstrip("\r")
            seconds = time.monotonic() - start
            if not result.booted and line.endswith(BOOTED):
                result.booted = True
                continue
            result.lines.append((seconds, line))
            if on_line:
                on_line(seconds, line)


def run(
    flavour: str,
    command: str,
    console_log: Path,
    timeout: float,
    on_line: OnLine | None = None,
    options: Iterable[str] = (),
    qemu: Sequence[str] = (),
    counting: bool = False,
    stdin: int = subprocess.DEVNULL,
    code: str = "",
    memory_mb: int = MEMORY_MB,
) -> Result:
    """Runs a shell command in a VM; calls on_line(seconds, line) as it prints.

    options are for the kernel's command line, qemu's for that of QEMU. A VM that counts
    has a clock of instructions. stdin is what the command reads. code are ranges of addresses,
    as QEMU's -dfilter takes them, whose instructions are to be in CODE_LOG.
    """
    at_once(memory_mb)
    console_log.parent.mkdir(parents=True, exist_ok=True)
    # By a script: the kernel's command line has no room for a long command.
    script = console_log.parent / "command.sh"
    exports = " ".join(f"SPM_ADDR_DEV{i}={addr:#x}" for i, addr in enumerate(SPM_ADDRS))
    if code:
        code_log = console_log.parent / CODE_LOG
        code_log.unlink(missing_ok=True)
        exports += f" CODE_LOG={shlex.quote(str(code_log.resolve()))}"
        qemu = [*qemu, f"-d in_asm -dfilter {code} -D {code_log}"]
    script.write_text(f"echo {shlex.quote(BOOTED)}\nexport {exports}\n{command}\n")
    execute = f"bash {shlex.quote(str(script.resolve()))}"
    result = Result()
    start = time.monotonic()
    # A socket's path must be short.
    with open(console_log, "wb") as console, tempfile.TemporaryDirectory() as folder:
        monitor = Path(folder) / "qmp"
        qemu = [*qemu, f"-qmp unix:{monitor},server=on,wait=off"]
        vng = vng_command(flavour, options, qemu, counting, bool(code), memory_mb)
        argv = [*vng, "--exec", execute]
        process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=console,
            env=environment(),
            start_new_session=True,
        )
        running.add(process)
        try:
            read_lines(process, result, timeout, on_line)
            if result.timed_out:
                ask_where_it_hangs(process, monitor)
        finally:
            if result.timed_out or sys.exc_info()[0]:
                stop(process)
            status = process.wait()
            running.remove(process)
            if process.stdout:
                process.stdout.close()
    if ending.is_set():
        raise MachineError("interrupted")
    result.seconds = time.monotonic() - start
    text = console_log.read_text(errors="replace")
    result.console_tail = text.splitlines()[-LAST_WORDS_LINES if result.timed_out else -CONSOLE_TAIL_LINES :]
    result.splats = kernel_log.find_splats(text)
    # vng answers 255 when the guest ended without the command's status.
    if not result.timed_out and status != 255:
        result.status = status
    if not result.booted and not result.timed_out:
        spoke = any(map(kernel_log.PRINTK_LINE.match, text.splitlines()))
        if NO_PORTS in text:
            raise MachineError("no udev in the guest, whose root file system is this one's: run 'make deps'")
        if not spoke:
            raise MachineError("\n    ".join([f"QEMU does not start ({console_log}):", *result.console_tail]))
        result.status = None
    return result


def in_parallel(
    function: Callable[[Item], Value], items: Iterable[Item], memory_mb: int = MEMORY_MB
) -> list[Value]:
    """Calls a function that boots VMs for each item, none with more memory, for a few at once."""
    with ThreadPoolExecutor(at_once(memory_mb)) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_all()
            raise


def report(result: Result, console_log: Path) -> bool:
    """Says what was wrong with a run; True if nothing was."""
    problem = result.problem()
    if problem is None:
        return True
    print(f"error: {problem} (console: {console_log})", file=sys.stderr)
    shown = result.splats[:3]
    for splat in shown:
        print("", *splat, sep="\n    ", file=sys.stderr)
    if len(result.splats) > len(shown):
        print(f"    ... and {len(result.splats) - len(shown)} more", file=sys.stderr)
    if result.timed_out or result.status is None:
        print("last lines of the console:", *result.console_tail, sep="\n    ", file=sys.stderr)
    return False
