"""How a verb ends.

0  all tests passed
1  a test failed, or the kernel complained, crashed or hung
2  no verdict: something is missing, does not build or does not start
"""

import enum


class Exit(enum.IntEnum):
    PASSED = 0
    FAILED = 1
    ERROR = 2


class MachineError(Exception):
    """The tests could not be run; the message says why."""
