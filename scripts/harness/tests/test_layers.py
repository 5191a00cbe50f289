import tempfile
import unittest
from pathlib import Path

from harness import layers

ROOT = """
use crate::files::File;

// ABI.
mod abi;
mod windows;

// Memory.
pub mod memory;
pub(crate) mod pool;

// Files.
mod files;

struct Module;
"""


class Layers(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.write("root", ROOT)
        for module in ["abi", "windows", "memory", "pool", "files"]:
            self.write(module, "")

    def write(self, module: str, text: str) -> None:
        path = self.folder / f"{module}.rs"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def violations(self) -> list[str]:
        root = self.folder / "root.rs"
        return [violation.removeprefix(f"{root}: ") for violation in layers.check(root)]

    def test_groups_of_modules_are_layers(self) -> None:
        self.assertEqual(layers.layers(ROOT), [["abi", "windows"], ["memory", "pool"], ["files"]])

    def test_what_is_below_can_be_used(self) -> None:
        self.write("memory", "use crate::{\n    abi::{\n        self, files, //\n    },\n    pool, //\n};\n")
        self.write("files", "fn f() { crate::memory::alloc() }")
        self.assertEqual(self.violations(), [])

    def test_what_is_above_cannot(self) -> None:
        self.write("abi", "use crate::memory::{Chunk, Pool};\n")
        self.write("pool", "use crate::{\n    abi::{self, Cmd},\n    files as f, //\n};\n")
        self.write("windows", "mod tests { fn f() { super::files::f() } }")
        self.assertEqual(
            self.violations(),
            [
                "abi uses memory, of a layer above",
                "windows uses files, of a layer above",
                "pool uses files, of a layer above",
            ],
        )

    def test_modules_within_modules(self) -> None:
        # Of these, super is not the root.
        self.write("memory/pages", "use super::files;\n")
        self.assertEqual(self.violations(), [])
        self.write("memory/pages", "use crate::files;\n")
        self.assertEqual(self.violations(), ["memory uses files, of a layer above"])

    def test_rings(self) -> None:
        self.write("memory", "use crate::pool::Pool;\n")
        self.write("pool", "use crate::memory;\n")
        [ring] = self.violations()
        self.assertRegex(ring, "^a ring: (memory uses pool uses memory|pool uses memory uses pool)$")

    def test_comments_use_nothing(self) -> None:
        self.write("abi", "//! [`files`](crate::files).\nuse crate::fail;\nfn f() {} // crate::files\n")
        self.assertEqual(self.violations(), [])

    def test_a_crate_without_modules(self) -> None:
        # More likely a file that was renamed, or written in another way.
        self.write("root", "mod a { mod b; }\n")
        self.assertEqual(self.violations(), ["no modules"])


if __name__ == "__main__":
    unittest.main()
