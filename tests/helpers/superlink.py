"""A SuperLink with SuperNodes on loopback, which end with the block; and runs of an app on them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def environment(home: Path) -> dict[str, str]:
    """Nothing is reported to anybody, nothing is written to the user's home."""
    own = str(Path(sys.executable).parent)
    return {
        **os.environ,
        **QUIET,
        "FLWR_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "PATH": f"{own}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def running(command: list[str], env: Mapping[str, str], log: Path) -> Iterator[None]:
    """A process and all its children, ended by their group."""
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command, env=env, stdout=stream, stderr=stream, cwd=log.parent, start_new_session=True
        )
    try:
        yield
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, how)
                process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def listening(port: int, seconds: float = 120) -> None:
    """Waits until somebody answers. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


@contextmanager
def federation(nodes: int, folder: Path) -> Iterator[dict[str, str]]:
    """A SuperLink and its nodes; the environment in which `flwr run APP here` reaches it."""
    home, port = folder / "home", free_port()
    home.mkdir()
    config = f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\n'
    (home / "config.toml").write_text(config + "insecure = true\n")
    env, binaries = environment(home), Path(sys.executable).parent
    link = [str(binaries / "flower-superlink"), "--insecure", "--port", str(port)]
    with ExitStack() as stack:
        without = "--disable-runtime-dependency-installation"
        stack.enter_context(running([*link, without], env, folder / "superlink.log"))
        listening(port)
        for k in range(nodes):
            node = [str(binaries / "flower-supernode"), "--insecure"]
            node += ["--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
            node += ["--node-config", f"partition-id={k} num-partitions={nodes}"]
            stack.enter_context(running(node, env, folder / f"supernode-{k}.log"))
        yield env


def flwr_run(app: Path, config: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """Hand the app in. Raises RuntimeError with what Flower says."""
    values = " ".join(
        f'{k}="{v}"' if isinstance(v, str | Path) else f"{k}={v}" for k, v in config.items()
    )
    flwr = str(Path(sys.executable).parent / "flwr")
    command = [flwr, "run", str(app), "here", "--run-config", values]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)


def appeared(path: Path, seconds: float) -> None:
    """Waits until there is a file. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text().endswith("\n")):
        if time.monotonic() > end:
            raise TimeoutError(f"no {path.name} after {seconds} s")
        time.sleep(0.5)
