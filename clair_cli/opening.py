"""A folder to the clients in it, known from their headers and configs. No tensor is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event

from clair_cli import engines, formats
from clair_cli.cohort import Adapter, Broken, Entries
from clair_cli.errors import (
    TOO_FEW,
    AdapterError,
    ClairError,
    Failed,
    NoAdapter,
    NotFromSent,
    NoVerdict,
    SettingError,
    UsageError,
    contained,
)
from clair_cli.formats import remote
from clair_cli.formats.deadline import deadline
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.remote import Place
from clair_cli.output.folders import GLOBAL, hashed_name
from clair_cli.progress import Progress, silent
from clair_cli.report import Reason
from clair_cli.settings import MIN_CLIENTS, Settings

OPENERS = 2
"""Adapters opened at a time."""
FETCHERS = 8
"""The same where each is fetched first, which is waiting for the most part."""


@contextmanager
def at_hand(path: Path, settings: Settings) -> Iterator[Place]:
    """Where the clients at `path`, a folder or a URL, can be read within the block.

    What is fetched is gone afterwards, on every machine that is still there. Raises UsageError.
    """
    with remote.at_hand(path, settings.max_file_bytes) as place:
        try:
            yield place
        finally:
            if place.objects is not None and settings.engine != "local":
                with suppress(ClairError):
                    engine = engines.choose(settings.engine)
                    engine.everywhere(partial(remote.discard, place.folder))


def open_entries(
    place: Path | Place, settings: Settings, on_progress: Progress = silent
) -> Entries:
    """Every entry of a folder: an adapter, a broken client, or a remark on what is neither.

    An empty folder is a remark, too. Raises UsageError: no such folder, or a setting that names no file.
    """
    check_files(settings)
    place = place if isinstance(place, Place) else _here(place)
    path = place.folder
    try:
        sources = formats.discover(path, settings.ignore, settings.since)
    except NoVerdict as empty:
        # a URL is not called by its scratch folder
        text = str(empty).replace(str(path), place.name)
        return Entries((), (), (*place.findings, Reason(TOO_FEW, text)))
    objects = place.of({s.path.name: s.path.stem for s in sources}, CONFIG)
    sources = [replace(s, objects=objects.get(s.path.name)) for s in sources]
    sent = open_sent(path, [s.client for s in sources if s.no_client is None], settings)
    adapters: list[Adapter] = []
    broken: list[Broken] = []
    findings = list(place.findings)
    for done, found in enumerate(_each(sources, settings), start=1):
        if isinstance(found, Adapter) and sent is not None:
            found = sent.taken_up(found)
        if isinstance(found, Adapter):
            adapters.append(found)
        elif isinstance(found, Broken):
            broken.append(found)
        else:
            findings.append(found)
        on_progress("opening adapters", done, len(sources))
    unforeseen = [b for b in broken if b.reason.code == Failed.code]
    if len(unforeseen) == len(sources) >= MIN_CLIENTS:
        _opened(sources[0], settings)  # what fails for everybody is clair's failure: let it show
    return Entries(tuple(adapters), tuple(broken), tuple(findings))


def _here(path: Path) -> Place:
    if url := remote.url_of(path):
        raise UsageError(f"{url}: only detect and refine read URLs; fetch it first")
    return Place(path, str(path))


def _each(
    sources: Sequence[formats.Source], settings: Settings
) -> Iterator[Adapter | Broken | Reason]:
    """What is at each source, in order."""
    if settings.engine != "local":
        yield from engines.choose(settings.engine).map(partial(_open, settings), sources)
        return
    stop = Event()
    fetched = any(s.objects is not None for s in sources)
    with ThreadPoolExecutor(FETCHERS if fetched else OPENERS) as pool:  # hashing lets others run
        jobs = [pool.submit(_open, settings, source, stop) for source in sources]
        try:
            for job in jobs:
                yield job.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def open_client(path: Path, settings: Settings) -> Adapter:
    """The client whose folder or file is `path`, with its replicates. Raises AdapterError."""
    with contained("cannot be opened"), deadline(settings.client_timeout):
        return _opened(formats.Source(formats.client_name(path), path, None), settings)


def _open(
    settings: Settings, source: formats.Source, stop: Event | None = None
) -> Adapter | Broken | Reason:
    """The adapter, or why there is none; whatever goes wrong is this client's alone."""
    if source.no_client is not None:
        return source.no_client
    try:
        with contained("cannot be opened"), deadline(settings.client_timeout, stop):
            if source.objects is not None:
                remote.lay_out(source.objects)
            return _opened(source, settings)
    except NoAdapter as error:
        return Reason(error.code, str(error))
    except AdapterError as error:
        return Broken(source.client, Reason(error.code, str(error)))


def _opened(source: formats.Source, settings: Settings) -> Adapter:
    """The adapter with its replicates. Raises AdapterError."""
    adapter = formats.open_adapter(source.path, settings, source.client, source.root)
    adapter = replace(adapter, notes=(*source.notes, *adapter.notes))
    found, notes = [], []
    for path in formats.find_replicates(source.path, settings):
        try:
            with contained("cannot be opened"):
                found.append(_replicate(path, source, settings))
        except AdapterError as error:
            notes.append(Reason(error.code, f"{path.name}, no replicate: {error}"))
    return formats.with_replicates(adapter, found, notes) if found or notes else adapter


@dataclass(frozen=True, slots=True)
class Sent:
    """What the server sent: to some clients, by their ids, one of their own; to all others one."""

    own: Mapping[str, Adapter]
    others: Adapter | None

    def taken_up(self, adapter: Adapter) -> Adapter | Broken:
        """A client that knows what it was trained from, and its replicates with it."""
        since = self.own.get(adapter.client, self.others)
        if since is None:
            text = "nothing was sent to it: --since has no adapter of this name, and no global one"
            files = tuple(adapter.files.values())
            return Broken(adapter.client, Reason(NotFromSent.code, text), files)
        replicates = tuple(replace(r, since=since) for r in adapter.replicates)
        return replace(adapter, since=since, replicates=replicates)


def open_sent(folder: Path, clients: Sequence[str], settings: Settings) -> Sent | None:
    """What `settings.since` names: one adapter, or a folder with one of the name of some clients and one
    called global for all others, as `clair refine` writes it. None where it names nothing.

    Links that the path itself consists of are followed. Raises SettingError where it is the folder of
    clients, or one of its adapters cannot be read or holds a number that is not finite.
    """
    if settings.since is None:
        return None
    place = settings.since.resolve()
    if place == folder.resolve():
        text = "is the folder of the clients; give the adapter that they were trained from"
        raise SettingError(f"since: {str(settings.since)!r}: {text}")
    paths = _named(place)
    own = {c: path for c in clients if (path := paths.get(c) or paths.get(hashed_name(c)))}
    rest = paths.get(GLOBAL, None if own else place)
    found = {c: _open_sent(path, c, place, settings) for c, path in own.items()}
    return Sent(found, None if rest is None else _open_sent(rest, GLOBAL, place, settings))


def _named(place: Path) -> dict[str, Path]:
    """The adapters in a folder of several, by name; of anything else none."""
    try:
        return {s.client: s.path for s in formats.discover(place)} if place.is_dir() else {}
    except (UsageError, NoVerdict):  # it is itself one adapter, or empty
        return {}


def _open_sent(path: Path, name: str, place: Path, settings: Settings) -> Adapter:
    """One adapter that was sent, every number of which is finite. Raises SettingError."""
    try:
        with contained("cannot be opened"), deadline(settings.client_timeout):
            sent = formats.open_adapter(path, settings, name, None if path == place else place)
            for module in sent.updates:
                formats.norm(sent, module)
            for tensor in sent.full:
                formats.full_norm(sent, tensor)
    except AdapterError as error:
        raise SettingError(f"since: {str(settings.since)!r}: {error}") from None
    return sent


def _replicate(path: Path, source: formats.Source, settings: Settings) -> Adapter:
    """Another adapter of the client, every number of which is finite. Raises AdapterError."""
    other = formats.open_adapter(path, settings, source.client, source.root)
    for module in other.updates:
        formats.check_finite(other, module)
    for name in other.full:
        formats.check_full(other, name)
    return other


def check_files(settings: Settings) -> None:
    """Raises UsageError where a setting names no file, or no folder."""
    for name, path in (("config", settings.config), ("base", settings.base)):
        if path is not None and not path.is_file():
            raise SettingError(f"{name}: {str(path)!r} is not a file")
    if settings.since is not None and not os.path.exists(settings.since):
        raise SettingError(f"since: {str(settings.since)!r}: no such adapter; give what was sent")
    if settings.reference is not None and not settings.reference.is_dir():
        raise SettingError(f"reference: {str(settings.reference)!r} is not a folder")
