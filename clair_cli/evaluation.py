"""A command of the user's, run on one candidate after another: no shell, and no name is read as code.

The client and its adapter reach the command as whole arguments and as CLAIR_CLIENT and CLAIR_ADAPTER in
its environment. What it prints is bounded, read as one number, and trusted no further.
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
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from clair_cli.decimals import decimal
from clair_cli.errors import UsageError

ADAPTER, CLIENT = "{adapter}", "{client}"
PLACEHOLDER = re.compile(r"\{adapter\}|\{client\}")
PLAIN = re.compile(r"[\w./:=,@%+~-]*", re.ASCII)
"""What may stand around a placeholder in one argument: an option's name, a part of a path."""
SHELL = re.compile(r"[|&;<>]+|\d?>+[^ ]*|[A-Za-z_][A-Za-z_0-9]*=[^{}]*")
"""Words that only a shell understands, or that set a variable in front of a command."""
INTERPRETER = re.compile(
    r"(ba|da|z|k|mk|pdk|a|fi|c|tc|ya|xon|elvi)?sh|nu|pwsh|busybox|env|[ip]*python[\d.]*w?|pypy[\d.]*"
    r"|perl[\d.]*|ruby[\d.]*|node|nodejs|deno|bun|php[\d.]*|lua(jit)?[\d.]*|Rscript|R|julia|tclsh[\d.]*"
    r"|expect|osascript|guile|emacs|vim?|[gmn]?awk|sed"
)
"""Programs that run an argument as code."""
PYTHON = re.compile(r"[ip]*python[\d.]*w?|pypy[\d.]*")
VALUED = {True: {"-W", "-X"}, False: {"-o", "-O", "+o", "+O", "--rcfile", "--init-file"}}
"""Options of Python, and of others, whose value is a word of its own and no code."""
CODE = re.compile(r"-[A-Za-z]*[ceESr]|--(eval|command|execute|print|exec|split-string)")
"""Options whose value is code."""
REPARSES = {"eval", "ssh", "rsh", "mosh", "su", "sg", "runuser", "watch", "parallel", "xargs", "at"}
"""Programs that join their arguments and give them to a shell."""
TAIL = 16 * 1024
"""Bytes of a command's output that are kept: the number stands at its end."""
RIGHT = 'write "$CLAIR_CLIENT" or "$CLAIR_ADAPTER" there, with the quotes'
"""How a name reaches a script as data."""


def parse_command(command: str) -> tuple[str, ...]:
    """The words of `command`, which no shell will read again.

    Raises UsageError where it cannot be run, names no adapter, or would run a client's name as code.
    """
    try:
        words = tuple(shlex.split(command))
    except ValueError as cause:
        raise UsageError(f"--eval: {cause}") from None
    if odd := [w for w in words if SHELL.fullmatch(w)]:
        text = f"no shell runs the command, and {odd[0]!r} would be a plain argument"
        raise UsageError(f"--eval: {text}; put it into a script, or into sh -c '...'; {RIGHT}")
    _check_words(words)
    if ADAPTER not in " ".join(words[1:]) and "CLAIR_ADAPTER" not in command:
        text = f"a command with {ADAPTER} in it, or with $CLAIR_ADAPTER in its script"
        raise UsageError(f"--eval: expected {text}, got {command!r}")
    if shutil.which(words[0]) is None:
        raise UsageError(f"--eval: {words[0]!r} is not a program that can be run")
    return words


def _check_words(words: Sequence[str]) -> None:
    """Placeholders are whole arguments or values of options, and no program reads them as code."""
    code = _code(words)
    for number, word in enumerate(words):
        if not (found := PLACEHOLDER.search(word)):
            continue
        if number == 0 or number in code:
            text = f"{found[0]} would be run as a program, or be read as code or as its option"
        elif not PLAIN.fullmatch(PLACEHOLDER.sub("", word)):
            text = (
                f"{found[0]} stands inside the argument {word!r}, which a shell would run as code"
            )
        else:
            continue
        right = f"sh -c 'score \"$1\"' sh {found[0]}"
        raise UsageError(f"--eval: {text}; {RIGHT}, or pass it as an argument of its own: {right}")


def _code(words: Sequence[str]) -> set[int]:
    """Which words a program reads as code or as its own options, up to the first that it runs."""
    for number, word in enumerate(words):
        name = os.path.basename(word)
        if name in REPARSES:
            return set(range(number + 1, len(words)))
        if INTERPRETER.fullmatch(name):
            python = bool(PYTHON.fullmatch(name))
            last = _operand(words, number + 1, VALUED[python])
            found = set(range(number + 1, last + 1))
            behind = [i + 1 for i in range(number + 1, len(words)) if CODE.fullmatch(words[i])]
            return found if python else found | set(behind[:1])
    return set()


def _operand(words: Sequence[str], number: int, valued: Collection[str]) -> int:
    """Where the first word from `number` on is that is no option: the code, or the file it is in."""
    while number < len(words) and words[number][:1] in ("-", "+"):
        number += 2 if words[number] in valued else 1
    return number


def filled(words: Sequence[str], adapter: Path, client: str) -> list[str]:
    """The words of one run; what is filled in is not looked at again.

    Raises ValueError where the program would read the client's name as an option.
    """
    found = {ADAPTER: str(adapter), CLIENT: client}
    for number, word in enumerate(words):
        if client.startswith("-") and word.startswith(CLIENT) and "--" not in words[:number]:
            text = "its name could be read as an option"
            raise ValueError(f'{text}; write --name={{client}}, -- {{client}} or "$CLAIR_CLIENT"')
    return [PLACEHOLDER.sub(lambda match: found[match[0]], word) for word in words]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The number that a run ended with, or what went wrong."""

    score: float | None
    error: str | None = None


class Runner:
    """Runs commands, from any thread, each in a process group of its own that ends with it."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self._lock, self._groups, self._stopped = threading.Lock(), set[int](), False

    def stop(self) -> None:
        """End every command that is running, with its children; none starts any more."""
        with self._lock:
            self._stopped = True
            for group in self._groups:
                _kill(group)

    def score(self, words: Sequence[str], adapter: Path, client: str) -> Outcome:
        """Run once; `adapter` is an absolute path."""
        try:
            arguments = filled(words, adapter, client)
            child = self._start(arguments, adapter, client)
        except (OSError, ValueError) as cause:
            return Outcome(None, str(cause)[:200])
        code, out, err = self._end(child)
        if code is None:
            return Outcome(None, f"took more than {self.timeout:g} s")
        if code:
            said = err.strip().splitlines()[-1:] or [""]
            return Outcome(None, f"exit code {code}: {said[0][:200]}")
        last = (out.split() or [""])[-1]
        try:
            score = decimal(last)
        except ValueError:
            score = math.inf
        if abs(score) > 1e300:
            text = "expected a finite number at the end of its output"
            return Outcome(None, f"{text}, found {last[:40]!r}")
        return Outcome(score)

    def _start(self, words: list[str], adapter: Path, client: str) -> subprocess.Popen[bytes]:
        named = {"CLAIR_CLIENT": client, "CLAIR_ADAPTER": str(adapter)}
        with self._lock:
            if self._stopped:
                raise OSError("stopped")
            child = subprocess.Popen(
                words,
                env=os.environ | named,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            self._groups.add(child.pid)
        return child

    def _end(self, child: subprocess.Popen[bytes]) -> tuple[int | None, str, str]:
        """Exit code (None: out of time) and the tails of stdout and stderr; no child outlives it."""
        tails = [bytearray(), bytearray()]
        readers = [
            threading.Thread(target=_drain, args=(stream, tail), daemon=True)
            for stream, tail in zip((child.stdout, child.stderr), tails, strict=True)
        ]
        for reader in readers:
            reader.start()
        code: int | None = None
        try:
            code = child.wait(self.timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with self._lock:
                _kill(child.pid)
                self._groups.discard(child.pid)
            child.wait()
        for reader in readers:
            reader.join(5.0)
        out, err = (bytes(t).decode("utf-8", "replace") for t in tails)
        return code, out, err


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _drain(stream: IO[bytes], tail: bytearray) -> None:
    """Read to the end, keep the last TAIL bytes."""
    with stream:
        while chunk := stream.read1(TAIL) if hasattr(stream, "read1") else stream.read(TAIL):
            tail += chunk
            del tail[:-TAIL]
