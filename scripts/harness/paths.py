"""Where things are. lib.sh knows where the tools are."""

import functools
import os
import subprocess
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent
SCRIPTS = TOP / "scripts"
BUILD = TOP / "build"
RESULTS = BUILD / "results"
LINUX = BUILD / "linux"


@functools.cache
def environment() -> dict[str, str]:
    """The environment with the PATH that the shell scripts have."""
    command = ["bash", "-c", '. "$0"; printf %s "$PATH"', str(SCRIPTS / "lib.sh")]
    path = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return os.environ | {"PATH": path}
