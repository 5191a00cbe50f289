#!/usr/bin/env python3
"""Shows that the code in compile_fail/ does not compile, for the reasons that it says.

Takes the kernel crate of build/kernel, by `make kernel`.
"""

import shutil
import subprocess
import sys

from harness import compile_fail, target
from harness.errors import MachineError
from harness.paths import BUILD, SCRIPTS, TOP

FOLDER = BUILD / "compile-fail"
# As for an object of a module. All are to be tried.
MAKE = '. "$1"; shift; kernel_make series --keep-going M="$1" KRUSTFLAGS=--error-format=json "${@:2}"'


def main() -> int:
    if not (BUILD / "kernel/.config").exists():
        raise MachineError("there is no kernel in build/kernel, run 'make kernel'")
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    (FOLDER / "Kbuild").touch()
    names = compile_fail.write_variants(TOP / "compile_fail", FOLDER)
    objects = [f"{name}.o" for name in names]
    command = ["bash", "-c", MAKE, "bash", str(SCRIPTS / "lib.sh"), str(FOLDER), *objects]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    (FOLDER / "log").write_text(done.stdout, encoding="utf-8")
    complaints = compile_fail.judge(FOLDER, names, done.stdout)
    for complaint in complaints:
        print(f"compile_fail: {complaint}", file=sys.stderr)
    if complaints:
        print(f"see {FOLDER}/log", file=sys.stderr)
    return bool(complaints)


if __name__ == "__main__":
    target.exit_with(main)
