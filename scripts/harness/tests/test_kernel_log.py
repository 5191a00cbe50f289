import unittest

from harness import kernel_log
from harness.kernel_log import Kind


class Patterns(unittest.TestCase):
    def test_each_matches_its_examples(self) -> None:
        for pattern in kernel_log.PATTERNS:
            self.assertTrue(pattern.examples, pattern.regex.pattern)
            for example in pattern.examples:
                with self.subTest(pattern=pattern.regex.pattern, example=example):
                    self.assertRegex(example, pattern.regex)
                    self.assertEqual(kernel_log.kind_of_line(f"[   12.345678] {example}"), pattern.kind)
                    self.assertEqual(
                        kernel_log.kind_of_line(f"[   12.345678][  T215] {example}"), pattern.kind
                    )

    def test_only_what_the_kernel_says(self) -> None:
        for line in (
            "WARNING: a program says so",
            "# BUG: in a test's output",
            "[    1.0] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
            "[    1.0] systemd[1]: WARNING: low on space",
            '[    1.0] virtme-ng-init: WARNING: failed to run: "ip" link set dev lo up',
            "[    1.0] DMA-API: preallocated 65536 debug entries",
            "[    1.0] kfence: initialized - using 2097152 bytes for 255 objects",
            "[    1.0] Memory failure: 0x100a01: recovery action for free buddy page: Recovered",
        ):
            self.assertIsNone(kernel_log.kind_of_line(line), line)

    def test_bad_lists(self) -> None:
        for text in ("Oops\n", "crash:\n\tan example of nothing\n"):
            with self.assertRaises((ValueError, IndexError)):
                kernel_log.read_patterns(text)


class Splats(unittest.TestCase):
    def test_once_each(self) -> None:
        trace = [f"[    2.0] BUG: line {number}" for number in range(kernel_log.SPLAT_LINES)]
        console = "\n".join(
            ["[    1.0] Linux version 7.3", *trace, "[    3.0] Oops: 0002 [#1]", "[    3.0] RIP"]
        )
        splats = kernel_log.find_splats(console)
        self.assertEqual([len(splat) for splat in splats], [kernel_log.SPLAT_LINES, 2])
        self.assertEqual(kernel_log.crash_line(splats), "[    3.0] Oops: 0002 [#1]")
        self.assertIsNone(kernel_log.crash_line(splats[:1]))

    def test_kinds(self) -> None:
        self.assertEqual(kernel_log.kind_of("WARNING: mm/x.c:3 at f"), Kind.COMPLAINT)
        self.assertEqual(kernel_log.kind_of("BUG: KASAN: slab-out-of-bounds in f"), Kind.CRASH)


if __name__ == "__main__":
    unittest.main()
