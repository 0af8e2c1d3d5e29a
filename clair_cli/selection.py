"""The best candidate per client, by a command of the user's: what `clair refine --path` is made for.

The command runs once per candidate, without a shell, with its output bounded and its time limited. What
it prints is read as one number and trusted no further.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

from clair_cli._version import __version__
from clair_cli.cohort import natural_key
from clair_cli.errors import NoVerdict, UsageError
from clair_cli.formats.strict_json import parse_object
from clair_cli.output import publish
from clair_cli.report import from_dict
from clair_cli.results import Choice, Selection, Tried

SHELL = re.compile(r"[|&;<>]+|\d?>+[^ ]*|[A-Za-z_][A-Za-z_0-9]*=[^{}]*")
"""Words that only a shell understands, or that set a variable in front of a command."""
ADAPTER, CLIENT = "{adapter}", "{client}"
TAIL = 16 * 1024
"""Bytes of a command's output that are kept: the number stands at its end."""


def select(
    refined: Path,
    command: str,
    higher_is_better: bool = False,
    timeout: float = 600.0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Selection:
    """Run `command` on every candidate below `refined` and choose the best per client.

    `{adapter}` in it becomes the folder of a candidate, `{client}` the client's id. The score is the
    last word the command prints; a command that fails, takes more than `timeout` seconds or prints no
    finite number makes its candidate unusable. Of equal scores the one nearer to the local adapter wins.
    Raises UsageError where the command has no {adapter}, or `refined` is no whole output of clair.
    """
    words = _words(command)
    candidates = _candidates(refined)
    total, done = sum(map(len, candidates.values())), 0
    choices = []
    for client in sorted(candidates, key=natural_key):
        tried = []
        for path, strength in sorted(candidates[client], key=lambda c: c[1]):
            score, error = _score(words, refined / path, client, timeout)
            tried.append(Tried(path, strength, score, error))
            done += 1
            on_progress("evaluating candidates", done, total)
        usable = [t for t in tried if t.score is not None]
        sign = -1 if higher_is_better else 1
        best = min(usable, key=lambda t: sign * (t.score or 0.0), default=None)
        choices.append(Choice(client, tuple(tried), best))
    if differing := publish.verify(refined):
        raise UsageError(f"{str(refined)!r}: the command changed it: {differing[0]}; refine again")
    return Selection(command, higher_is_better, tuple(choices))


def write_selection(
    selection: Selection, document: bytes, refined: Path, out: Path, overwrite: bool
) -> None:
    """The chosen adapters as OUT/<client>, and `document` as selection.json; whole or not at all.

    Raises NoVerdict where no client has a choice, and OutputError where writing fails.
    """
    if all(c.best is None for c in selection.choices):
        raise NoVerdict("no candidate could be evaluated; nothing was written")
    with publish.staged(out, overwrite, refined, __version__) as stage:
        for choice in selection.choices:
            if choice.best is not None:
                source = refined / choice.best.path
                shutil.copytree(source, stage / source.name, copy_function=shutil.copyfile)
        publish.write_bytes(stage / "selection.json", document)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as cause:
        raise UsageError(f"--eval: {cause}") from None
    if not any(ADAPTER in word for word in words[1:]):
        raise UsageError(f"--eval: expected a command with {ADAPTER} in it, got {command!r}")
    if odd := [w for w in words if SHELL.fullmatch(w)]:
        text = f"no shell runs the command, and {odd[0]!r} would be a plain argument"
        raise UsageError(f"--eval: {text}; put it into a script, or into sh -c '...'")
    if shutil.which(words[0]) is None:
        raise UsageError(f"--eval: {words[0]!r} is not a program that can be run")
    return words


def _candidates(refined: Path) -> Mapping[str, list[tuple[str, float]]]:
    """Client -> folders below `refined` and their strengths, from a report that is as it was written."""
    if differing := publish.verify(refined):
        raise UsageError(f"{str(refined)!r}: not a whole output of clair refine: {differing[0]}")
    place = refined / "report.json"
    if not place.is_file():
        raise UsageError(f"{str(refined)!r}: no report.json; give the OUT of clair refine --path")
    report = from_dict(parse_object(place.read_bytes(), "report.json", UsageError))
    found: dict[str, list[tuple[str, float]]] = {}
    for written in report.refinement.clients if report.refinement else ():
        path = written.path
        inside = not os.path.isabs(path) and ".." not in Path(path).parts
        if not inside or not (refined / path).is_dir():
            raise UsageError(f"report.json: {path[:80]!r} is no folder of this output")
        found.setdefault(written.client, []).append((path, written.strength or 0.0))
    if not found:
        raise UsageError(f"{str(refined)!r}: no refined adapters in it")
    if not report.settings.get("path"):
        text = "one adapter per client, so there is nothing to choose"
        raise UsageError(f"{str(refined)!r}: {text}; make candidates with clair refine --path")
    return found


def _score(
    words: list[str], adapter: Path, client: str, timeout: float
) -> tuple[float | None, str | None]:
    """The number that one run ends with, or what went wrong."""
    filled = [w.replace(ADAPTER, str(adapter)).replace(CLIENT, client) for w in words]
    code, out, err = _run(filled, timeout)
    said = err.strip().splitlines()[-1:] or [""]
    if code is None:
        return None, f"took more than {timeout:g} s"
    if code:
        return None, f"exit code {code}: {said[0][:200]}"
    last = (out.split() or [""])[-1]
    try:
        score = float(last)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        return None, f"expected a finite number at the end of its output, found {last[:40]!r}"
    return score, None


def _run(words: list[str], timeout: float) -> tuple[int | None, str, str]:
    """Exit code (None: out of time) and the tails of stdout and stderr; no child outlives it."""
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as cause:
        return 127, "", str(cause)
    tails = [bytearray(), bytearray()]
    readers = [
        threading.Thread(target=_drain, args=(stream, tail), daemon=True)
        for stream, tail in zip((child.stdout, child.stderr), tails, strict=True)
    ]
    for reader in readers:
        reader.start()
    code: int | None = None
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for reader in readers:
        reader.join(5.0)
    out, err = (bytes(t).decode("utf-8", "replace") for t in tails)
    return code, out, err


def _drain(stream: IO[bytes], tail: bytearray) -> None:
    """Read to the end, keep the last TAIL bytes."""
    with stream:
        while chunk := stream.read1(TAIL) if hasattr(stream, "read1") else stream.read(TAIL):
            tail += chunk
            del tail[:-TAIL]
