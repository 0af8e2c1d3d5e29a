"""The best candidate per client, by a command of the user's: what `clair refine --path` is made for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from clair_cli._version import __version__
from clair_cli.cohort import natural_key
from clair_cli.errors import NoVerdict, UnsafePath, UsageError
from clair_cli.evaluation import Outcome, Runner, parse_command
from clair_cli.formats.discovery import check_client_name
from clair_cli.output import publish
from clair_cli.output.folders import SELECTION, folder_names
from clair_cli.output.manifest import Listed
from clair_cli.refined import RefinedClient
from clair_cli.report import MAX_BYTES, from_dict
from clair_cli.results import Choice, Selection, Tried
from clair_cli.scores import Scored, Scores, digest
from clair_cli.strict_json import parse_object, read_bounded

LONGEST_NAME = 255
"""Bytes of a client's id: what a file system takes as one name."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One adapter to try: its folder below OUT, and names and sha256 of the files in it."""

    client: str
    path: str
    strength: float
    files: tuple[tuple[str, str], ...]


def select(
    refined: Path,
    command: str,
    higher_is_better: bool = False,
    timeout: float = 600.0,
    on_progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    jobs: int = 1,
    scores: Path | None = None,
) -> Selection:
    """Run `command` on every candidate below `refined`, `jobs` at a time; choose the best per client.

    `{adapter}` in it becomes the absolute path of a candidate's folder, `{client}` the client's id; both
    are in its environment as CLAIR_ADAPTER and CLAIR_CLIENT. The score is the last word the command
    prints; a command that fails, takes more than `timeout` seconds or prints no finite number makes its
    candidate unusable. Of equal scores the one nearer to the local adapter wins. `scores` is a file that
    keeps every score, and from which those are taken whose command and candidate are the same.
    Raises UsageError where the command has no adapter or would run a name as code, or `refined` is no
    whole output of clair.
    """
    words = parse_command(command)
    candidates = read_candidates(refined)
    tried = _tried(words, refined, candidates, Runner(timeout), on_progress, jobs, Scores(scores))
    choices = []
    for client in sorted({c.client for c in candidates}, key=natural_key):
        own = tuple(t for c, t in zip(candidates, tried, strict=True) if c.client == client)
        choices.append(_choice(client, own, higher_is_better))
    if differing := publish.verify(refined):
        raise UsageError(f"{str(refined)!r}: the command changed it: {differing[0]}; refine again")
    return Selection(command, higher_is_better, tuple(choices))


def _choice(client: str, tried: tuple[Tried, ...], higher_is_better: bool) -> Choice:
    usable = [t for t in tried if t.score is not None]
    sign = -1 if higher_is_better else 1
    return Choice(client, tried, min(usable, key=lambda t: sign * (t.score or 0.0), default=None))


def _tried(
    words: Sequence[str],
    refined: Path,
    candidates: Sequence[Candidate],
    runner: Runner,
    on_progress: Callable[[str, int, int], None],
    jobs: int,
    scores: Scores,
) -> list[Tried]:
    """What came of each candidate, in their order; an interrupt ends every run that is under way."""
    root = Path(os.path.abspath(refined))
    digests = [digest(words, c.client, c.files) for c in candidates]
    known = [scores.of(d) for d in digests]
    found = [Tried(c.path, c.strength, s) for c, s in zip(candidates, known, strict=True)]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            running: dict[Future[Outcome], int] = {
                pool.submit(runner.score, words, root / c.path, c.client): k
                for k, c in enumerate(candidates)
                if known[k] is None
            }
            done = len(candidates) - len(running)
            for number, future in enumerate(as_completed(running), start=done + 1):
                k, outcome = running[future], future.result()
                one = candidates[k]
                found[k] = Tried(one.path, one.strength, outcome.score, outcome.error)
                if outcome.score is not None:
                    scores.keep(Scored(one.client, one.path, digests[k], outcome.score))
                on_progress("evaluating candidates", number, len(candidates))
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return found


def write_selection(
    selection: Selection, document: bytes, refined: Path, out: Path, overwrite: bool
) -> None:
    """The chosen adapters in OUT, a folder per client, and `document` as selection.json; whole or not.

    A client whose id is no plain name, or one that clair needs itself, has the folder that
    `folder_names` gives it. Raises NoVerdict where no client has a choice, and OutputError where writing
    fails.
    """
    if all(c.best is None for c in selection.choices):
        raise NoVerdict("no candidate could be evaluated; nothing was written")
    folders = folder_names([c.client for c in selection.choices])
    with publish.staged(out, overwrite, refined, __version__) as stage:
        for choice in selection.choices:
            if choice.best is not None:
                source, target = refined / choice.best.path, stage / folders[choice.client]
                shutil.copytree(source, target, copy_function=shutil.copyfile)
        publish.write_bytes(stage / SELECTION, document)


def read_candidates(refined: Path) -> list[Candidate]:
    """The candidates of every client in the order of strengths, from a report that is as it was written.

    Raises UsageError, naming the field, where the report is not one of `clair refine --path`.
    """
    if differing := publish.verify(refined):
        raise UsageError(f"{str(refined)!r}: not a whole output of clair refine: {differing[0]}")
    place, listed = refined / "report.json", publish.read_manifest(refined)
    if listed is None or not place.is_file():
        raise UsageError(f"{str(refined)!r}: no report.json; give the OUT of clair refine --path")
    data = read_bounded(place, MAX_BYTES)
    report = from_dict(parse_object(data, "report.json", UsageError))
    written = report.refinement.clients if report.refinement else ()
    if written and not report.settings.get("path"):
        text = "one adapter per client, so there is nothing to choose"
        raise UsageError(f"{str(refined)!r}: {text}; make candidates with clair refine --path")
    found = [_candidate(one, k, listed.files) for k, one in enumerate(written)]
    if not found:
        raise UsageError(f"{str(refined)!r}: no refined adapters in it")
    if len({c.path for c in found}) < len(found):
        raise UsageError("report.json: refinement.clients: two of them have one path")
    return sorted(found, key=lambda c: (natural_key(c.client), c.client, c.strength))


def _candidate(written: RefinedClient, number: int, files: Sequence[Listed]) -> Candidate:
    """Parsed: the id is that of a client, and the path one that the manifest has files below."""
    where = f"report.json: refinement.clients[{number}]"
    try:
        check_client_name(written.client)
        fine = len(os.fsencode(written.client)) <= LONGEST_NAME
    except (UnsafePath, UnicodeEncodeError):
        fine = False
    if not fine:
        raise UsageError(f"{where}.id: {written.client[:40]!r} is no client's name")
    below = f"{written.path}/"
    own = tuple((f.name[len(below) :], f.sha256) for f in files if f.name.startswith(below))
    odd = {"", ".", ".."} & set(written.path.split("/"))
    if odd or not own or written.path.count("/") != 1:
        raise UsageError(f"{where}.path: {written.path[:80]!r} is no folder of this output")
    return Candidate(written.client, written.path, written.strength or 0.0, own)
