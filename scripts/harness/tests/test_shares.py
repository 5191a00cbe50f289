import contextlib
import io
import os
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from harness import bench, environment, guest, selftests, shares, symbols, target, trace, vm
from harness.errors import MachineError
from harness.results import Run, Status
from harness.symbols import USER, Function, Symbols
from harness.tests import samples
from harness.tests.test_parts import load_verb

MARK = 0xFFFF_FFFF_8100_0000
RMAP = Function("mm/rmap.o", "folio_remove_rmap_ptes")
ENTRY = Function("arch/x86/entry/entry_64.o", "entry_SYSCALL_64")
DRIVER = Function("test_hmm_rs", "<test_hmm_rs::Device>::evict")
KNOWN = Symbols({MARK: Function("kernel/sys.o", shares.MARK), MARK + 64: RMAP, MARK + 128: ENTRY})


def executed(*addresses: int) -> bytes:
    """As QEMU says it."""
    lines = [
        f"Trace 0: 0x7f877813a{address % 4096:03x} [00000000/{address:016x}/0040c0b3/ff022201] \n"
        for address in addresses
    ]
    return "".join(lines).encode()


class Trace(unittest.TestCase):
    def test_only_between_marks(self) -> None:
        text = executed(1, MARK, 2, 3, 2, MARK, 4, MARK, MARK, MARK, 5)
        for size in (7, len(text)):
            chunks = [text[start : start + size] for start in range(0, len(text), size)]
            self.assertEqual(list(trace.fold(chunks, MARK)), [{2: 2, 3: 1}, {}])

    def test_other_lines(self) -> None:
        text = executed(MARK) + b"Stopped execution of TB chain before 0x7f [0000000000000002]\n"
        self.assertEqual(list(trace.fold([text, executed(2, MARK)], MARK)), [{2: 1}])

    def test_a_pipe(self) -> None:
        with trace.Tracer(MARK) as tracer:
            pipe = tracer.qemu[0].removeprefix("-D ")
            with open(pipe, "wb") as file:
                file.write(executed(MARK, 2, MARK))
        self.assertEqual(tracer.counts, [{2: 1}])
        self.assertFalse(Path(pipe).exists())

    def test_the_monitor(self) -> None:
        with trace.Tracer(MARK) as tracer, mock.patch.object(vm, "ask") as ask:
            ask.return_value.returncode = 0
            tracer.switch(True)
            self.assertIn("log exec,nochain", ask.call_args.args[1])
            self.assertIn("one-insn-per-tb on", ask.call_args.args[1])
            tracer.switch(False)
            self.assertIn("log none", ask.call_args.args[1])
            ask.return_value.returncode = 1
            with self.assertRaisesRegex(MachineError, "monitor"):
                tracer.switch(True)


class Names(unittest.TestCase):
    def test_find(self) -> None:
        self.assertEqual(KNOWN.find(MARK + 127), (MARK + 64, RMAP))
        self.assertEqual(KNOWN.find(MARK + 4096), (MARK + 128, ENTRY))
        self.assertEqual(KNOWN.find(0x401000), (0, USER))
        self.assertEqual(KNOWN.find(MARK - 1), (0, symbols.UNKNOWN))
        self.assertEqual(KNOWN.address(shares.MARK), MARK)
        with self.assertRaisesRegex(MachineError, "no function nothing"):
            KNOWN.address("nothing")

    def test_a_name_of_several_objects(self) -> None:
        objects = symbols.homes(
            "vmlinux.a:mm/rmap.o:0000000000000010 T first\n"
            "vmlinux.a:mm/rmap.o:0000000000000020 t same\n"
            "vmlinux.a:mm/rmap.o:0000000000000030 d same\n"
            "vmlinux.a:mm/ksm.o:0000000000000000 t same\n"
            "vmlinux.a:mm/ksm.o:0000000000000010 T second\n"
            "vmlinux.a:mm/ksm.o:                 U first\n"
        )
        self.assertEqual(objects["same"], {"mm/rmap.o", "mm/ksm.o"})
        self.assertEqual(objects["first"], {"mm/rmap.o"})
        names = ["first", "__pfx_same", "same", "second", "_etext"]
        self.assertEqual(symbols.places(names, objects), ["mm/rmap.o"] * 3 + ["mm/ksm.o", ""])
        self.assertEqual(symbols.places(["same", "second"], objects), ["mm/ksm.o"] * 2)

    def test_modules(self) -> None:
        found = symbols.of_modules(
            [
                "ffffffffc0000040 t _RNvNtCs1234_4core3mem4swap\t[test_hmm_rs]",
                "ffffffffc0000080 d data\t[test_hmm_rs]",
                "ffffffff81000000 T schedule",
            ]
        )
        self.assertEqual(found, {0xFFFF_FFFF_C000_0040: Function("test_hmm_rs", "core::mem::swap")})

    def test_groups(self) -> None:
        self.assertEqual(shares.group("mm/memory.o"), "page tables, rmap, TLB")
        self.assertEqual(shares.group("mm/memory_hotplug.o"), shares.OTHER)
        self.assertEqual(shares.group("test_hmm_rs"), "driver")


class Verb(unittest.TestCase):
    """make bench-shares with a VM that only pretends."""

    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.verb = load_verb("bench_shares")
        self.record = self.folder / "record.json"
        self.status = 0
        self.marks = 2
        self.answers = b""
        self.enterContext(mock.patch.object(target, "default_folder", return_value=self.folder / "results"))
        self.enterContext(mock.patch.object(environment, "collect", lambda *_: samples.environment()))
        self.enterContext(mock.patch.object(selftests, "build", return_value=Path("hmm-selftests")))
        self.enterContext(mock.patch.object(vm, "accelerator", return_value="tcg"))
        self.enterContext(mock.patch.object(guest, "boot", self.boot))
        self.enterContext(mock.patch.object(bench, "tools", return_value={}))
        self.enterContext(mock.patch.object(symbols, "of_kernel", return_value=KNOWN.functions))
        self.enterContext(mock.patch.object(trace.Tracer, "switch", lambda _, on: self.switched.append(on)))
        self.enterContext(mock.patch.object(shares, "RECORD", self.record))
        self.switched: list[bool] = []

    def boot(
        self,
        _run: Run,
        commands: str,
        _folder: Path,
        _timeout: float,
        on_line: vm.OnLine,
        *,
        qemu: list[str],
        counting: bool,
        stdin: int,
    ) -> tuple[vm.Result, list[str]]:
        self.assertIn("--pause", commands)
        self.assertTrue(counting)
        module = MARK + (1 << 24)
        with open(qemu[0].removeprefix("-D "), "wb") as pipe:
            for cost, driver in enumerate(guest.DRIVERS, 1):
                lines = [driver, f"{module:016x} t evict\t[{driver}]"]
                for text in ("snapshot 4096 512 1", "close 4096 512 1", "close 65536 512 1"):
                    lines += [f"begin {text}", f"end {text}"]
                for line in lines:
                    on_line(0, line)
                of_driver = [module, module + 4] * shares.PAGES * cost
                pipe.write(executed(MARK, *of_driver, *([MARK + 66] * shares.PAGES)))
                pipe.write(executed(MARK) * (self.marks - 1))
        self.answers = os.read(stdin, 100)
        return vm.Result(self.status), ["the last line"]

    def run_verb(self, *arguments: str) -> str:
        with (
            mock.patch.object(sys, "argv", ["bench_shares", *arguments]),
            contextlib.redirect_stdout(io.StringIO()) as printed,
            contextlib.redirect_stderr(io.StringIO()),
        ):
            self.report = self.verb.main()
        return printed.getvalue()

    def test_shares(self) -> None:
        printed = self.run_verb("--record", "--functions")
        self.assertEqual(self.report.status, Status.PASSED)
        self.assertEqual(self.switched, [True, False] * 2)
        self.assertEqual(self.answers, b"\n" * 12)
        found = {line[:40].rstrip(): line[40:].split() for line in printed.splitlines()}
        self.assertEqual(found["close, private, 4 KB"], [*guest.DRIVERS, "more"])
        self.assertEqual(found["driver"], ["2", "4", "+2"])
        self.assertEqual(found["page tables, rmap, TLB"], ["1", "1", "+0"])
        self.assertEqual(found["instructions a page"], ["3", "5", "+2"])
        self.assertEqual(shares.load(self.record).rows["close"]["test_hmm_rs"]["driver"], 4)
        evict = next(line for line in printed.splitlines() if line.endswith("evict") and "_rs" in line)
        self.assertEqual(evict.split(), ["test_hmm_rs", "0.0", "4.0", "+4.0", "0.00", "2.00", "evict"])
        functions = (self.folder / "results/functions").read_text(encoding="utf-8")
        self.assertTrue(printed.endswith(functions))

    def test_larger_folios(self) -> None:
        printed = self.run_verb("--page-size", "64k")
        self.assertEqual(self.switched, [True, False] * 2)
        self.assertTrue(printed.startswith("close, private, 64 KB"), printed)

    def test_a_record_that_is_none(self) -> None:
        for wrong in ('{"schema": 0}', "{}", "x"):
            self.record.write_text(wrong, encoding="utf-8")
            with self.assertRaisesRegex(MachineError, "record.json"):
                shares.load(self.record)

    def test_the_program_fails(self) -> None:
        self.status = 1
        self.run_verb()
        self.assertEqual(self.report.status, Status.FAILED)
        with self.assertRaisesRegex(MachineError, "not recorded"):
            self.run_verb("--record")

    def test_a_trace_without_marks(self) -> None:
        self.marks = 1
        with self.assertRaisesRegex(MachineError, "of 1 operations instead of 2"):
            self.run_verb()


if __name__ == "__main__":
    unittest.main()
