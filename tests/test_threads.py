"""What the environment says of threads of linear algebra is kept; else numpy has one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.helpers.commands import ENVIRONMENT

SEEN = """
import os, sys
from clair_cli import entry
sys.argv = ["clair", "--version"]
os._exit = lambda code: None
entry.main()
print(os.environ.get("OPENBLAS_NUM_THREADS"), "numpy" in sys.modules)
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "1"),
        ({"OPENBLAS_NUM_THREADS": "2"}, "2"),
        ({"OMP_NUM_THREADS": "2"}, "None"),
    ],
)
@pytest.mark.skipif(os.uname().machine not in ("x86_64", "amd64"), reason="torch may need them")
def test_numpy_has_one_thread_unless_told_otherwise(given: dict[str, str], found: str) -> None:
    bare = {k: v for k, v in ENVIRONMENT.items() if not k.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", SEEN]
    done = subprocess.run(command, env=bare | given, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == [found, "False"]


FAULTS = """
import resource
from clair_cli import entry
import numpy as np
entry._keep_memory()
arrays = [np.ones(2**21) for _ in range(4)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    del arrays
    arrays = [np.ones(2**21) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others have no mallopt")
def test_memory_that_was_freed_is_used_again() -> None:
    """Four arrays of 16 MiB, ten times, have 160 thousand pages of 4 KiB."""
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5000
