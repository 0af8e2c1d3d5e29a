"""The command line as a user runs it: the installed script, in processes of its own."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pty
import shutil
import subprocess
import sys
import textwrap
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests import ROOT

SCRIPT = Path(sys.prefix) / "bin" / "clair"
SAMPLES = ROOT / "sample_adapters"
CLIENTS = tuple(f"client-{i:02}" for i in range(1, 9))
CONTAMINATED = {"client-03", "client-06"}
"""As sample_adapters/README.md says."""
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

ENVIRONMENT = {k: v for k, v in os.environ.items() if k in {"PATH", "HOME", "TMPDIR", "SYSTEMROOT"}}
ENVIRONMENT |= {"LC_ALL": "C.UTF-8", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def clair(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed console script; `env` is added to a small environment without colours."""
    env = ENVIRONMENT | options.pop("env", {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 60} | options
    command = [str(SCRIPT), *map(str, args)]
    return subprocess.run(
        command, env=env, encoding="utf-8", errors="surrogateescape", check=False, **options
    )


def hooked(folder: Path, code: str, name: str = "sitecustomize.py") -> dict[str, str]:
    """The environment in which `code` runs first, or in which it is the module `name`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(textwrap.dedent(code))
    return {"PYTHONPATH": str(folder)}


@contextmanager
def alongside(code: str, *names: object) -> Iterator[None]:
    """A Python process that runs `code` while the block does, from its first line of output on."""
    command = [sys.executable, "-c", code, *map(str, names)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as racer:
        assert racer.stdout is not None
        racer.stdout.readline()
        try:
            yield
        finally:
            racer.kill()


PRELOADED = ["__main__", "tests.helpers.commands", "rich.console", "typer._adapters"]
PRELOADED += [
    f"clair_cli.{name}"
    for name in ("cli", "pipeline", "detection.solver", "detection.verdicts", "refinement.module")
]


def forked(*args: object, stdout: Path, stderr: Path, hook: str = "", timeout: float = 20) -> int:
    """`clair ...` forked from a process that has torch loaded: many runs in little time.

    The exit code, minus the signal for one that was killed; `hook` runs first. TimeoutError.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    arguments = [*map(str, args)]
    streams = (str(stdout), str(stderr))
    process = context.Process(target=_forked, args=(arguments, streams, textwrap.dedent(hook)))
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"clair {arguments} is still running after {timeout} s")
    return process.exitcode


def _forked(args: list[str], streams: tuple[str, str], hook: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, flags, 0o666), number)
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    sys.argv = ["clair", *args]
    exec(hook, {})
    from clair_cli.entry import main

    main()


def quick(folder: Path, *args: object, hook: str = "") -> subprocess.CompletedProcess[str]:
    """As `clair`, but `forked`; its streams go through files in `folder`."""
    out, err = folder / "stdout", folder / "stderr"
    code = forked(*args, stdout=out, stderr=err, hook=hook)
    return subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())


@contextmanager
def terminal() -> Iterator[tuple[Path, list[bytes]]]:
    """The path of a terminal, and what has been written to it once the block has ended."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    said: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(ours, said))
    reader.start()
    try:
        yield Path(os.ttyname(theirs)), said
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)


def _drain(descriptor: int, into: list[bytes]) -> None:
    with suppress(OSError):  # EIO once nobody has the terminal open any more
        while data := os.read(descriptor, 65536):
            into.append(data)


def samples(target: Path, clients: tuple[str, ...] = CLIENTS) -> Path:
    """A copy of some clients of sample_adapters/."""
    target.mkdir(parents=True)
    for client in clients:
        shutil.copytree(SAMPLES / client, target / client)
    return target


def split_weights(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the bytes behind it."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def join_weights(file: Path, header: dict[str, Any] | str, data: bytes) -> None:
    """A file of this header, true or not."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def change_config(client: Path, **fields: Any) -> None:
    """The client's config with other `fields`; Ellipsis removes one."""
    config = json.loads((client / CONFIG).read_text()) | fields
    (client / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def fingerprint(folder: Path) -> str:
    """Changes when anything below `folder` does: names, kinds, contents, permissions, links."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=os.fsencode):
        info = path.lstat()
        facts = [os.fsencode(path.relative_to(folder)).hex(), info.st_mode, info.st_mtime_ns]
        digest.update(json.dumps(facts).encode())
        if path.is_symlink():
            digest.update(os.fsencode(os.readlink(path)))
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def verdicts(report: dict[str, Any]) -> dict[str, str | None]:
    """Client id -> verdict."""
    return {c["id"]: c["verdict"] for c in report["clients"]}
