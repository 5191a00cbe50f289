import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from types import ModuleType
from unittest import mock

from harness import summary
from harness.paths import SCRIPTS
from harness.results import Status
from harness.tests import samples
from harness.tests.processes import assert_ends


def load_verb(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"verb_{name}", SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Parts(unittest.TestCase):
    def setUp(self) -> None:
        self.verb = load_verb("test")
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(mock.patch.object(self.verb, "RESULTS", self.folder))
        self.enterContext(mock.patch("sys.stderr"))

    def status(self, part: str, make_status: int) -> Status:
        with mock.patch.object(self.verb, "make", return_value=make_status) as make:
            report = self.verb.run_part(part, 5)
        make.assert_called_once_with(["SEED=5", *part.split()])
        status: Status = report.status
        return status

    def test_results_of_parts(self) -> None:
        summary.write(samples.passing(), self.folder / "kunit")
        summary.write(samples.report(), self.folder / "kunit-debug")
        self.assertEqual(self.status("kunit", 0), Status.PASSED)
        self.assertEqual(self.status("kunit KCONFIG=debug", 2), Status.FAILED)
        # make itself failed, or left nothing.
        self.assertEqual(self.status("kunit", 2), Status.ERROR)
        self.assertEqual(self.status("check BISECT=1", 2), Status.ERROR)
        self.assertEqual(self.status("check BISECT=1", 0), Status.ERROR)

    def test_an_end_is_passed_on(self) -> None:
        (self.folder / "make").write_text(f"#!/bin/bash\nsleep 1000 & echo $! >{self.folder}/child; wait\n")
        (self.folder / "make").chmod(0o755)
        env = os.environ | {"PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHONPATH": str(SCRIPTS)}
        code = (
            "import sys; from harness import target; from harness.tests.test_parts import load_verb;"
            "target.exit_with(lambda: load_verb('test').make(['x']))"
        )
        with subprocess.Popen([sys.executable, "-c", code], env=env) as process:
            while not (self.folder / "child").exists() or not (self.folder / "child").read_text():
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(60), 128 + signal.SIGTERM)
        assert_ends(self, int((self.folder / "child").read_text()))


if __name__ == "__main__":
    unittest.main()
