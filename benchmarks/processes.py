"""What a whole process costs, and an end to one that takes too much."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TICK = 0.02
"""Seconds between two looks at a process."""


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of the clock and of the processor, GB at most, the load before it, and how it ended."""

    wall: float
    cpu: float
    memory: float
    load: float
    ended: str = ""


def measured(command: Sequence[str], threads: int, seconds: float, gigabytes: float) -> Run:
    """The cost of a process, which is ended after so many seconds, or beyond so much memory.

    Seconds of the processor hold those of its own children; memory is that of the largest of them.
    """
    few = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as said:
        env = os.environ | few | {"HOME": home, "HF_HUB_OFFLINE": "1"}
        load, began = os.getloadavg()[0], time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=said, env=env, start_new_session=True
        )
        ended = ""
        while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
            if time.perf_counter() - began > seconds:
                ended = f"not done after {seconds:.0f} s"
            elif _resident(process.pid) > gigabytes:
                ended = f"took more than {gigabytes:.0f} GB"
            if ended:
                os.killpg(process.pid, signal.SIGKILL)
                found = os.wait4(process.pid, 0)
                break
            time.sleep(TICK)
        wall, (_, status, usage) = time.perf_counter() - began, found
        process.returncode = os.waitstatus_to_exitcode(status)
        if not ended and process.returncode:
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
            ended = f"failed: {' '.join(last)[:200]}"
    cpu = usage.ru_utime + usage.ru_stime
    return Run(wall, cpu, usage.ru_maxrss / 2**20, load, ended)


def _resident(pid: int) -> float:
    """GB that the process holds; 0 where it has just ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30
