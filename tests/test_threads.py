"""What the environment says of threads of linear algebra is kept; else numpy has one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers.commands import ENVIRONMENT

SEEN = """
import os, sys
from clair_cli import entry
sys.argv = ["clair", "--version"]
try:
    entry.main()
except SystemExit:
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
