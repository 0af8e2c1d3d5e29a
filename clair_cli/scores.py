"""Scores of candidates kept in a file, and believed only for what they were measured on."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clair_cli.errors import UsageError
from clair_cli.output.publish import replace_bytes
from clair_cli.records import decode, encode
from clair_cli.strict_json import parse_object, read_bounded

KIND = "clair scores"
MAX_BYTES = 64 * 2**20
SHA256 = re.compile(r"[0-9a-f]{64}")
SMALL = 64 * 2**20
"""Bytes up to which a file on the command line is hashed; a larger one is known by size and time."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One score, and the sha256 over all that it rests on."""

    client: str
    path: str
    digest: str
    score: float


@dataclass(frozen=True, slots=True)
class _Saved:
    kind: str
    scores: tuple[Scored, ...]


class Scores:
    """The scores in a file, which is written whole again with every new one; none without a file."""

    def __init__(self, path: Path | None) -> None:
        if path is not None and path.exists() and not path.is_file():
            raise UsageError(f"--resume {str(path)!r}: not a regular file; give another place")
        self.path = path
        self.known = {} if path is None or not path.exists() else _read(path)

    def of(self, digest: str) -> float | None:
        """The score that rests on `digest`, None where there is none yet."""
        found = self.known.get(digest)
        return found.score if found else None

    def keep(self, scored: Scored) -> None:
        """Remember one more. Raises OutputError."""
        self.known[scored.digest] = scored
        if self.path is not None:
            saved = [_exact(s) for s in self.known.values()]
            document = json.dumps({"kind": KIND, "scores": saved}, indent=1, allow_nan=False)
            replace_bytes(self.path, document.encode() + b"\n")


def _exact(scored: Scored) -> dict[str, object]:
    """As JSON, with every digit of the score: an interrupted run must choose as one in one go."""
    found: dict[str, object] = encode(scored)
    return found | {"score": scored.score}


def _read(path: Path) -> dict[str, Scored]:
    data = parse_object(read_bounded(path, MAX_BYTES, "--resume"), str(path), UsageError)
    try:
        saved = decode(_Saved, data)
        if saved.kind != KIND:
            raise ValueError(f"kind: expected {KIND!r}, found {saved.kind[:40]!r}")
        for number, scored in enumerate(saved.scores):
            if not SHA256.fullmatch(scored.digest):
                raise ValueError(f"scores[{number}].digest: expected a sha256")
    except ValueError as cause:
        raise UsageError(f"--resume {str(path)!r}: not a file of scores: {cause}") from None
    return {s.digest: s for s in saved.scores}


def digest(words: Sequence[str], client: str, files: Iterable[tuple[str, str]]) -> str:
    """A sha256 over what a score rests on: the command, the files it names, the client, its adapter.

    `files` are the names in the candidate's folder and their sha256.
    """
    named = [(w, _stamp(w)) for w in words]
    return hashlib.sha256(json.dumps([named, client, sorted(files)]).encode()).hexdigest()


def _stamp(word: str) -> str | None:
    """What tells whether the file of this name has changed; None where there is none."""
    try:
        if not os.path.isfile(word):
            return None
        info = os.stat(word)
        if info.st_size > SMALL:
            return f"{info.st_size} {info.st_mtime_ns}"
        return hashlib.sha256(Path(word).read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None
