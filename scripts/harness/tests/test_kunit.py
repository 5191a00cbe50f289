import tempfile
import unittest
from pathlib import Path
from unittest import mock

import kunit_suites

from harness import environment, kunit


class Machine(unittest.TestCase):
    def test_memory_is_where_linux_looks_for_it(self) -> None:
        self.assertEqual(
            kunit_suites.Machine(0, 1024, 64).arguments("x86_64"),
            [
                "--kernel_args=nokaslr",
                "--kernel_args=memmap=64M%0x40000000-1+0xefffffff",
                "--qemu_args=-smp 2 -m 1088M",
            ],
        )
        self.assertEqual(
            kunit_suites.Machine(1 << 30, 4096, 2048).arguments("arm64"),
            [
                "--kernel_args=mem=4096M",
                "--kernel_args=zone_device_kunit.spm_start=0x140000000",
                "--kernel_args=zone_device_kunit.spm_size=0x80000000",
                "--qemu_args=-smp 2 -m 6144M",
            ],
        )

    def test_two_devices_fit_wherever_they_are_aligned(self) -> None:
        pmd_mb = {"4k": 2, "16k": 32, "64k": 512}
        for (arch, page_size), machine in kunit_suites.MACHINES.items():
            with self.subTest(arch=arch, page_size=page_size):
                each = 2 * pmd_mb[page_size]
                end = (machine.ram_start >> 20) + machine.ram_mb
                self.assertEqual(end % each, 0)
                self.assertGreaterEqual(machine.spm_mb, 2 * each)


class Documents(unittest.TestCase):
    def test_each_begins_with_its_version(self) -> None:
        lines = [
            "[    0.000000] Booting Linux",
            "[    1.500000] KTAP version 1",
            "[    1.500001] 1..1",
            "[    2.000000][   T1] KTAP version 1",
            "[    2.000001] 1..2",
        ]
        console = "\n".join(lines)
        found = kunit.documents(console)
        self.assertEqual([len(document) for document in found], [2, 2])


class Kernel(unittest.TestCase):
    def test_one_without_modules_is_known_by_its_release(self) -> None:
        build = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(mock.patch.object(environment, "BUILD", build))
        self.assertIsNone(environment.kernel("kunit-arm64-64k"))
        folder = build / "kunit-arm64-64k/include/config"
        folder.mkdir(parents=True)
        (folder / "kernel.release").write_text("7.3.0\n", encoding="utf-8")
        found = environment.kernel("kunit-arm64-64k")
        assert found
        self.assertEqual((found.flavour, found.release), ("kunit-arm64-64k", "7.3.0"))
