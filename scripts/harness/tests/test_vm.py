import contextlib
import io
import os
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from harness import hmm_tests, vm
from harness.errors import MachineError
from harness.results import Outcome, Run
from harness.tests.processes import assert_ends

BOOT = f'echo "[    0.000000] Linux version 7.3.4" >&2; echo "{vm.BOOTED}"'


class FakeVng(unittest.TestCase):
    """What vm.run() makes of what vng prints, by a program in its place."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        env = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        for name, value in (
            ("environment", env),
            ("kernel_image", Path("vmlinuz")),
            ("available_mb", 1 << 20),
        ):
            self.enterContext(mock.patch.object(vm, name, return_value=value))
        self.enterContext(mock.patch.object(vm, "accelerator", return_value="tcg"))
        self.program("qemu-system-x86_64", "exit 1")
        self.program("qmp-shell", "exit 1")
        self.addCleanup(vm.ending.clear)
        self.addCleanup(vm.at_once.cache_clear)
        vm.at_once.cache_clear()

    def program(self, name: str, script: str) -> None:
        (self.folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (self.folder / name).chmod(0o755)

    def run_vng(self, script: str, timeout: float = 20) -> vm.Result:
        self.program("vng", script)
        return vm.run("series", "true", self.folder / "boot/console.log", timeout)

    def test_status_and_output(self) -> None:
        result = self.run_vng(f"{BOOT}; echo hello; exit 3")
        self.assertEqual((result.status, result.problem()), (3, None))
        self.assertEqual([line for _, line in result.lines], ["hello"])

    def test_a_log_of_code_is_of_an_emulated_machine(self) -> None:
        arguments = self.folder / "arguments"
        with mock.patch.object(vm, "accelerator", return_value="kvm"):
            self.program("vng", f'echo "$*" >{arguments}; {BOOT}')
            console = self.folder / "boot/console.log"
            vm.run("series", "true", console, 20, code="0x10..0x20")
            said = arguments.read_text()
            self.assertIn(f"-d in_asm -dfilter 0x10..0x20 -D {console.parent / vm.CODE_LOG}", said)
            self.assertIn("--disable-kvm", said)
            self.assertIn(f"CODE_LOG={console.parent}", (console.parent / "command.sh").read_text())
            vm.run("series", "true", console, 20)
            self.assertNotIn("--disable-kvm", arguments.read_text())
            self.assertNotIn("-dfilter", arguments.read_text())

    def test_the_kernel_complains(self) -> None:
        result = self.run_vng(f"{BOOT}; echo '[    1.0] WARNING: mm/x.c:3 at f' >&2")
        self.assertEqual(result.problem(), "the kernel complained 1 times")

    def test_the_kernel_dies(self) -> None:
        result = self.run_vng(f"{BOOT}; exit 255")
        self.assertEqual(result.problem(), "the guest died")

    def test_the_kernel_dies_at_boot(self) -> None:
        result = self.run_vng('echo "[    0.0] Kernel panic - not syncing: x" >&2; exit 255')
        self.assertEqual(result.problem(), "the guest died, before the command began")

    def test_a_hang_is_ended_with_all_processes(self) -> None:
        begin = time.monotonic()
        result = self.run_vng(f"{BOOT}; sleep 1000 & echo $!; wait", timeout=2)
        self.assertIn("the guest hung", result.problem() or "")
        self.assertLess(time.monotonic() - begin, 60)
        assert_ends(self, int(result.lines[0][1]))

    def test_a_guest_that_hangs_says_where(self) -> None:
        nmi = self.folder / "nmi"
        self.program("qmp-shell", f"cat >{nmi}")
        result = self.run_vng(
            f"{BOOT}; while [ ! -s {nmi} ]; do sleep 0.1; done; echo there >&2; exit 255", 2
        )
        self.assertEqual(nmi.read_text(), "inject-nmi\n")
        self.assertEqual(result.console_tail[-1], "there")
        self.assertIn("the guest hung", result.problem() or "")

    def test_what_is_the_machines_fault(self) -> None:
        for script, message in (
            ("echo 'qemu-system-x86_64: cannot allocate memory' >&2; exit 1", "cannot allocate memory"),
            (f"echo '[ 1.0] virtme-ng-init: {vm.NO_PORTS}' >&2; exit 0", "udev"),
        ):
            with self.assertRaisesRegex(MachineError, message):
                self.run_vng(script)
        (self.folder / "qemu-system-x86_64").unlink()
        with (
            mock.patch.object(vm, "environment", return_value={"PATH": str(self.folder)}),
            self.assertRaisesRegex(MachineError, "no qemu-system-x86_64"),
        ):
            self.run_vng("true")

    def test_an_error_ends_the_other_vms(self) -> None:
        self.program("vng", f"{BOOT}; sleep 1000 & wait")

        def boot(number: int) -> None:
            if number:
                time.sleep(1)
                raise MachineError("no disk")
            vm.run("series", "true", self.folder / "boot/console.log", 1000)

        begin = time.monotonic()
        with self.assertRaisesRegex(MachineError, "no disk|interrupted"):
            vm.in_parallel(boot, [1, 0])
        self.assertLess(time.monotonic() - begin, 60)
        self.assertEqual(vm.running, set())


class Memory(unittest.TestCase):
    def at_once(self, available: int, cores: int = 8, memory_mb: int = vm.MEMORY_MB) -> int:
        vm.at_once.cache_clear()
        self.addCleanup(vm.at_once.cache_clear)
        with (
            mock.patch.object(vm, "available_mb", return_value=available),
            mock.patch.object(vm, "cores", return_value=cores),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            number = vm.at_once(memory_mb)
        self.assertEqual(bool(said.getvalue()), number < min(cores, vm.AT_ONCE))
        return number

    def test_how_many_fit(self) -> None:
        self.assertEqual(self.at_once(64000), vm.AT_ONCE)
        self.assertEqual(self.at_once(64000, cores=1), 1)
        self.assertEqual(self.at_once(7000), 1)
        self.assertEqual(self.at_once(12000), 2)
        self.assertEqual(self.at_once(12000, memory_mb=2 * vm.MEMORY_MB), 1)
        with self.assertRaisesRegex(MachineError, "3000 MB are available"):
            self.at_once(3000)

    def test_this_machine_has_some(self) -> None:
        self.assertGreater(vm.available_mb(), 0)


class Accelerator(unittest.TestCase):
    """What becomes of KVM, by a program in QEMU's place."""

    def setUp(self) -> None:
        self.folder = folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        image = folder / "modules/lib/modules/7.3-series/vmlinuz"
        image.parent.mkdir(parents=True)
        image.touch()
        self.qemu = folder / "qemu-system-x86_64"
        self.booted = folder / "booted"
        env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
        for name, value in (("BUILD", folder), ("KVM_TIMEOUT", 2)):
            self.enterContext(mock.patch.object(vm, name, value))
        self.enterContext(mock.patch.object(vm, "environment", return_value=env))
        self.enterContext(mock.patch.object(os, "access", return_value=True))

    def found(self, script: str) -> str:
        self.qemu.write_text(f"#!/bin/bash\necho >>{self.booted}\n{script}\n")
        self.qemu.chmod(0o755)
        with contextlib.redirect_stderr(io.StringIO()):
            return vm.accelerator()

    def test_a_kernel_boots(self) -> None:
        panic = "echo 'Kernel panic - not syncing: VFS: Unable to mount root fs'"
        self.assertEqual(self.found(panic), "kvm")

    def test_no_kvm(self) -> None:
        self.assertEqual(self.found("exit 1"), "tcg")

    def test_a_kernel_hangs(self) -> None:
        self.assertEqual(self.found("echo 'Booting from ROM..'; exec sleep 60"), "tcg")

    def test_it_is_asked_once_after_a_boot(self) -> None:
        for _ in range(2):
            self.assertEqual(self.found("exit 1"), "tcg")
        self.assertEqual(len(self.booted.read_text().splitlines()), 1)
        (self.folder / "accelerator").write_text("another-boot kvm\n")
        self.assertEqual(self.found("exit 1"), "tcg")


class Progress(unittest.TestCase):
    def test_what_hmm_tests_print(self) -> None:
        run = Run("series", "series")
        progress = hmm_tests.Progress(run, 3)
        lines = """TAP version 13
1..3
# Starting 3 tests from 1 test cases.
#  RUN           hmm.private.good ...
#            OK  hmm.private.good
ok 1 hmm.private.good
#  RUN           hmm.private.skipped ...
ok 2 hmm.private.skipped # SKIP no hugetlb
#  RUN           hmm.private.bad ...
# hmm-tests.c:1:bad:Expected 1 (1) == 2 (2)
not ok 3 hmm.private.bad
#  RUN           hmm.private.crashed ..."""
        for seconds, line in enumerate(lines.splitlines()):
            progress.line(seconds, line)
        self.assertEqual(list(run.outcomes().values()), [Outcome.PASS, Outcome.SKIP, Outcome.FAIL])
        self.assertEqual(
            [test.detail for test in run.tests[1:]],
            [["no hugetlb"], ["hmm-tests.c:1:bad:Expected 1 (1) == 2 (2)"]],
        )
        self.assertEqual(progress.current, "hmm.private.crashed")


if __name__ == "__main__":
    unittest.main()
