import json
import tempfile
import unittest
from pathlib import Path

from harness import compile_fail

TWICE = "fn f(a: A) {\n    drop(a);\n    drop(a); //~ E0382\n}\n"


def refused(file: str, line: int, code: str | None, text: str = "no", level: str = "error") -> str:
    """As rustc says it."""
    spans = [
        {"file_name": f"/folder/{file}", "line_start": 1, "is_primary": False},
        {"file_name": f"/folder/{file}", "line_start": line, "is_primary": True},
    ]
    message = {"code": code and {"code": code}, "message": text, "level": level, "spans": spans}
    return json.dumps(message) + "\n"


class CompileFail(unittest.TestCase):
    def setUp(self) -> None:
        self.sources = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        (self.sources / "right.rs").write_text("fn f() {}\n")
        (self.sources / "twice.rs").write_text(TWICE)
        self.names = compile_fail.write_variants(self.sources, self.folder)

    def judge(self, log: str, *compiled: str) -> list[str]:
        for name in compiled:
            (self.folder / f"{name}.o").touch()
        return compile_fail.judge(self.folder, self.names, log)

    def test_variants(self) -> None:
        self.assertEqual(self.names, ["right", "twice", "twice_rest"])
        self.assertEqual((self.folder / "twice.rs").read_text(), TWICE)
        self.assertEqual((self.folder / "twice_rest.rs").read_text(), "fn f(a: A) {\n    drop(a);\n\n}\n")

    def test_all_is_as_it_says(self) -> None:
        log = "  RUSTC [M] twice.o\n" + refused("twice.rs", 3, "E0382")
        # What is said about it, and warnings.
        log += refused("twice.rs", 1, None, level="failure-note")
        log += refused("right.rs", 1, "w", level="warning")
        log += json.dumps({"code": None, "message": "aborting", "level": "error", "spans": []})
        self.assertEqual(self.judge(log, "right", "twice_rest"), [])

    def test_it_compiles(self) -> None:
        self.assertEqual(
            self.judge("", "right", "twice", "twice_rest"), ["twice.rs:3: no E0382", "twice.rs: compiles"]
        )

    def test_another_error(self) -> None:
        log = refused("twice.rs", 3, "E0599")
        self.assertEqual(
            self.judge(log, "right", "twice_rest"), ["twice.rs:3: no E0382", "twice.rs:3: E0599"]
        )

    def test_another_line(self) -> None:
        log = refused("twice.rs", 2, "E0382")
        self.assertEqual(
            self.judge(log, "right", "twice_rest"), ["twice.rs:3: no E0382", "twice.rs:2: E0382"]
        )

    def test_the_rest_does_not_compile(self) -> None:
        log = refused("twice.rs", 3, "E0382") + refused("twice_rest.rs", 1, "E0412")
        self.assertEqual(
            self.judge(log, "right"), ["twice_rest.rs:1: E0412", "twice_rest.rs: does not compile"]
        )

    def test_nothing_was_compiled(self) -> None:
        self.assertEqual(
            self.judge("make: *** No rule\n"),
            ["right.rs: does not compile", "twice.rs:3: no E0382", "twice_rest.rs: does not compile"],
        )

    def test_errors_without_code(self) -> None:
        (self.folder / "twice.rs").write_text("a //~ lifetime may not live long enough\n")
        log = refused("twice.rs", 1, None, "lifetime may not live long enough")
        self.assertEqual(self.judge(log, "right", "twice_rest"), [])


if __name__ == "__main__":
    unittest.main()
