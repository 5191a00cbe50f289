#!/usr/bin/env python3
"""Boots a kernel from build/modules in a VM and runs a command in it.

The VM's root file system is the host's, read-only; /tmp is its own. The command
sees two regions of special-purpose memory, SPM_ADDR_DEV0 and SPM_ADDR_DEV1 in
its environment. Without a command: a shell.
"""

import argparse
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / "build"

MEMORY = "4G"
CPUS = 2
# VMs: few tests use more than one CPU.
AT_ONCE = 2
# With this much memory, QEMU's q35 has RAM from 4 GB on.
SPM_START = 0x1_0000_0000
SPM_DEVICE_SIZE = 256 << 20
SPM_DEVICES = 4  # coherent and generic, two of each
SPM_ADDRS = (SPM_START, SPM_START + SPM_DEVICE_SIZE)

CMDLINE = [
    "nokaslr",  # its parser of memmap= does not know '%'
    f"memmap={SPM_DEVICES * SPM_DEVICE_SIZE >> 20}M%{SPM_START:#x}-1+0xefffffff",
    "ignore_loglevel",
    # udev would load it for the SPM, and device-dax take that from the test drivers.
    "modprobe.blacklist=dax_hmem",
]
# Emulated string instructions are slower than the kernel's unrolled loops.
CMDLINE_WITHOUT_KVM = ["clearcpuid=rep_good,erms,fsrm,fsrs"]
# With five levels of page tables, KASAN reports what an interrupt touches while
# identify_boot_cpu() has cleared X86_FEATURE_LA57: rare, and no matter of ours.
CMDLINE_OF_DEBUG = ["no5lvl"]

# What no run may print, whatever its command says.
SPLAT = re.compile(
    r"WARNING: |BUG: |BUG at |Oops: |Oops\b.*\[#|general protection fault|KASAN: |UBSAN: |"
    r"possible circular locking|possible recursive locking|possible irq lock inversion|"
    r"inconsistent lock state|suspicious RCU usage|INFO: trying to register non-static key|"
    r"INFO: task .* blocked.* for more than|Out of memory: Killed|"
    r"rcu: INFO: .*stall|kmemleak: \d+ new suspected|Kernel panic|Bad page|"
    r"unregister_netdevice: waiting|list_(add|del) corruption|refcount_t: "
)
PRINTK_LINE = re.compile(r"^\[ *\d+\.\d+\]")
SPLAT_LINES = 12


class VmError(Exception):
    """The VM could not be run; the message says why."""


@dataclass
class Result:
    status: int | None = None  # the command's; None: it did not end
    timed_out: bool = False
    seconds: float = 0.0
    lines: list = field(default_factory=list)  # (seconds, line) of the output
    splats: list = field(default_factory=list)  # the first lines of each
    console_tail: list = field(default_factory=list)

    def problem(self):
        """Why the run has failed as a whole, or None."""
        if self.timed_out:
            return f"the guest hung: no end after {self.seconds:.0f} s"
        if self.status is None:
            return "the guest died"
        if self.splats:
            return f"the kernel complained {len(self.splats)} times"
        return None


def kvm_works():
    """Whether QEMU gets as far as the first instruction; /dev/kvm alone says little."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    probe = "qemu-system-x86_64 -machine q35,accel=kvm -cpu host -S -nodefaults -display none -monitor stdio"
    try:
        return not subprocess.run(
            probe.split(), input=b"quit\n", capture_output=True, timeout=10, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def kernel_image(flavour):
    images = sorted((BUILD / "modules/lib/modules").glob(f"*-{flavour}/vmlinuz"))
    if not images:
        raise VmError(f"no {flavour} kernel in build/modules")
    return images[-1]


def vng_command(flavour, options=(), devices=()):
    if not shutil.which("qemu-system-x86_64"):
        raise VmError("no qemu-system-x86_64: run 'make deps'")
    vng = shutil.which("vng", path=f"{BUILD}/venv/bin:{os.environ['PATH']}")
    if not vng:
        raise VmError("no vng: run 'make deps'")
    kvm = kvm_works()
    command = [vng, "--verbose", "--disable-microvm", "--force-9p", "--cpus", str(CPUS), "-m", MEMORY]
    if not kvm:
        command += ["--disable-kvm"]
    command += ["--run", str(kernel_image(flavour))]
    cmdline = [*CMDLINE, *options]
    if not kvm:
        cmdline += CMDLINE_WITHOUT_KVM
    if flavour == "debug":
        cmdline += CMDLINE_OF_DEBUG
    for option in cmdline:
        command += ["--append", option]
    if devices:
        command.append("--qemu-opts=" + " ".join(f"-device {device}" for device in devices))
    return command


def environment():
    env = dict(os.environ)
    # vng finds its virtme-run beside itself only by PATH.
    env["PATH"] = f"{BUILD}/venv/bin:{env['PATH']}"
    return env


def find_splats(console):
    """The first lines of everything in the console log that SPLAT matches."""
    splats = []
    lines = console.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        if PRINTK_LINE.match(line) and SPLAT.search(line):
            splats.append(lines[number : number + SPLAT_LINES])
            number += SPLAT_LINES
        else:
            number += 1
    return splats


def stop(process):
    """Ends vng, and QEMU with it, which may outlive its parent."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sig)
            process.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


running = set()  # processes of vng, of which threads may have one each


def end_on_signal(number, _frame):
    for process in list(running):
        stop(process)
    sys.exit(128 + number)


def run(flavour, command, console_log, timeout, on_line=None, options=(), devices=()):
    """Runs a shell command in a VM; calls on_line(seconds, line) as it prints.

    options are for the kernel's command line, devices QEMU's.
    """
    console_log = Path(console_log)
    console_log.parent.mkdir(parents=True, exist_ok=True)
    # By a script: the kernel's command line has no room for a long command.
    script = console_log.parent / "command.sh"
    exports = " ".join(f"SPM_ADDR_DEV{i}={addr:#x}" for i, addr in enumerate(SPM_ADDRS))
    script.write_text(f"export {exports}\n{command}\n")
    argv = vng_command(flavour, options, devices) + ["--exec", f"bash {shlex.quote(str(script.resolve()))}"]
    result = Result()
    start = time.monotonic()
    with open(console_log, "wb") as console:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=console,
            env=environment(),
            start_new_session=True,
        )
        running.add(process)
        try:
            pending = b""
            while True:
                left = start + timeout - time.monotonic()
                if left <= 0:
                    result.timed_out = True
                    break
                if not select.select([process.stdout], [], [], min(left, 1))[0]:
                    if process.poll() is not None:
                        break
                    continue
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    break
                *whole, pending = (pending + chunk).split(b"\n")
                for raw in whole:
                    line = raw.decode(errors="replace").rstrip("\r")
                    seconds = time.monotonic() - start
                    result.lines.append((seconds, line))
                    if on_line:
                        on_line(seconds, line)
        finally:
            if result.timed_out or sys.exc_info()[0]:
                stop(process)
            status = process.wait()
            running.remove(process)
            process.stdout.close()
    result.seconds = time.monotonic() - start
    text = console_log.read_text(errors="replace")
    result.console_tail = text.splitlines()[-25:]
    result.splats = find_splats(text)
    # vng answers 255 when the guest ended without the command's status.
    if not result.timed_out and status != 255:
        result.status = status
    return result


def in_parallel(function, items):
    """Calls a function that boots VMs for each item, for a few of them at once."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, items))


def report(result, console_log, out=sys.stderr):
    """Says what was wrong with a run; True if nothing was."""
    problem = result.problem()
    if problem is None:
        return True
    print(f"error: {problem} (console: {console_log})", file=out)
    shown = result.splats[:3]
    for splat in shown:
        print("", *splat, sep="\n    ", file=out)
    if len(result.splats) > len(shown):
        print(f"    ... and {len(result.splats) - len(shown)} more", file=out)
    if result.timed_out or result.status is None:
        print("last lines of the console:", *result.console_tail, sep="\n    ", file=out)
    return False


def exit_with(main_function):
    """Ends the script with what its main function returns, or with the reason why not.

    Signals end it together with its VMs.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end_on_signal)
    try:
        sys.exit(main_function())
    except VmError as error:
        sys.exit(f"error: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="series", choices=("series", "base", "debug"))
    parser.add_argument("--timeout", type=float, default=3600, help="seconds")
    parser.add_argument("command", nargs="?", default="")
    args = parser.parse_args()
    if not args.command:
        os.execvpe("env", ["env", *vng_command(args.kernel)], environment())
    console_log = BUILD / "results/vm/console.log"
    result = run(
        args.kernel, args.command, console_log, args.timeout, lambda _, line: print(line, flush=True)
    )
    if not report(result, console_log):
        return 1
    return result.status


if __name__ == "__main__":
    exit_with(main)
