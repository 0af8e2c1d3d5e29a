"""What a server does in each round, whatever framework brings the messages: write down what was sent and
what came back, judge what each client changed, and say whom to take and what to send next.

A client's arrays travel as whole .npy files, under PEFT's names. None of them is decoded here or
unpickled; they become adapters in a folder, and are read as any folder of strangers is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from clair_cli import formats
from clair_cli._version import __version__
from clair_cli.errors import AdapterError, OutputError, UsageError
from clair_cli.formats import npz
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.zip_file import ZipWriter
from clair_cli.output import publish
from clair_cli.output.folders import GLOBAL, REPORT, folder_names
from clair_cli.pipeline import detect, refine
from clair_cli.renderers import RENDERERS
from clair_cli.report import VERDICTS, Report, failing
from clair_cli.settings import MIN_CLIENTS, Settings

Arrays: TypeAlias = Mapping[str, bytes]
"""Tensor, by PEFT's name -> the .npy file that holds it."""
Mode = Literal["exclude", "mean", "refined"]
WEIGHTS = "adapter_model.npz"
SENT, CLIENTS, REFINED, RECORD = "sent", "clients", "refined", "round.json"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a round: `left_out` says why, `fallback` why clair decided nothing.

    `mean` is what to send to everybody and `own` what to some clients instead, where the mode makes
    them. `report` is None where too few clients replied to be judged.
    """

    left_out: Mapping[str, str]
    report: Report | None = None
    fallback: str | None = None
    mean: Arrays | None = None
    own: Mapping[str, Arrays] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, int | float]:
        """Clients per verdict, how many were left out, whether clair decided, and what a mean lost."""
        counts = self.report.counts if self.report else dict.fromkeys(VERDICTS, 0)
        numbers: dict[str, int | float] = {v: counts[v] for v in VERDICTS}
        numbers |= {"left-out": len(self.left_out), "fallback": int(self.fallback is not None)}
        mean = self.report.refinement.mean if self.report and self.report.refinement else None
        if mean is not None and mean.truncation_error is not None:
            numbers["truncation-error"] = mean.truncation_error
        return numbers


class Rounds:
    """A new folder `place` of rounds: round-N/ has sent/, clients/, report.json and round.json.

    `config` is the adapter_config.json of all clients, or what is in it. `settings` may vary all but
    what the rounds themselves decide. Without `keep` the adapters of a round go when it is over.
    """

    def __init__(
        self,
        place: Path | str,
        config: Path | str | Mapping[str, Any],
        mode: Mode = "exclude",
        settings: Settings | None = None,
        keep: bool = True,
    ) -> None:
        self.place, self.mode, self.keep = Path(place).absolute(), mode, keep
        self.settings = settings or Settings()
        if mode not in get_args(Mode):
            raise UsageError(f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}")
        if self.settings.since is not None or self.settings.read_as != "lora":
            raise UsageError(
                "settings: since and read_as are what the rounds decide; leave them out"
            )
        self.config = _config(config)
        try:
            self.place.mkdir(parents=True, exist_ok=True)
            if any(self.place.iterdir()):
                raise UsageError(f"{str(place)!r}: is not empty; give each run a folder of its own")
        except OSError as cause:
            raise UsageError(f"{str(place)!r}: cannot be used: {cause.strerror}") from None
        publish.write_bytes(self.place / CONFIG, self.config)
        self.folders: dict[str, str] = {}
        self.start: dict[str, Arrays] = {}
        self.rank = 0

    def send(self, number: int, start: Mapping[str, Arrays]) -> None:
        """Write down what each client gets in round `number`. Raises UsageError if it is no adapter.

        Clients that get the same object get the same; what most get is called global.
        """
        self.folders, self.start = folder_names(list(start)), dict(start)
        by_object = {id(arrays): arrays for arrays in start.values()}
        places: dict[str, Arrays] = {"": start[next(iter(start))]}
        if len(by_object) > 1:
            kinds = [id(a) for a in start.values()]
            usual = max(by_object, key=kinds.count)
            places = {self.folders[c]: a for c, a in start.items() if id(a) != usual}
            places[GLOBAL] = by_object[usual]
        with suppress(FileExistsError):
            self._round(number).mkdir()
        self._write(self._round(number) / SENT, places, self.place / CONFIG)
        self.rank = self._one_rank(
            self._round(number) / SENT / (GLOBAL if "" not in places else "")
        )

    def judge(self, number: int, replies: Mapping[str, Arrays | str]) -> Outcome:
        """Judge round `number` by what came back: arrays, or why there are none that could be read.

        Raises UsageError, OutputError.
        """
        left_out: dict[str, str] = {}
        fits: dict[str, Arrays] = {}
        for client, arrays in replies.items():
            why = arrays if isinstance(arrays, str) else self._misfit(client, arrays)
            if why is not None:
                left_out[client] = why
            elif not isinstance(arrays, str):
                fits[client] = arrays
        outcome = self._judged(number, fits, left_out)
        self._note(number, list(replies), outcome)
        if not self.keep:
            for name in (SENT, CLIENTS, REFINED):
                shutil.rmtree(self._round(number) / name, ignore_errors=True)
        return outcome

    # --- the steps

    def _judged(self, number: int, fits: Mapping[str, Arrays], left_out: dict[str, str]) -> Outcome:
        if len(fits) < MIN_CLIENTS:
            why = f"{len(fits)} of at least {MIN_CLIENTS} clients replied with what can be compared"
            return Outcome(left_out | _not_finite(fits), fallback=why)
        here = self._round(number)
        places = {self.folders[c]: arrays for c, arrays in fits.items()}
        self._write(here / CLIENTS, places, here / SENT)
        report = self._report(here)
        publish.write_bytes(here / REPORT, RENDERERS["json"](report).encode())
        ids = {folder: client for client, folder in self.folders.items()}
        out = left_out | {ids[name]: why for name, why in self._failing(report).items()}
        if report.status == "no_verdict":
            rest = {c: a for c, a in fits.items() if c not in out}
            return Outcome(out | _not_finite(rest), report, "no verdict")
        if self.mode == "exclude":
            return Outcome(out, report)
        mean = _arrays(here / REFINED / GLOBAL)
        unlike = _differs(mean, next(iter(self.start.values())))
        if unlike is not None:
            return Outcome(out, report, f"the mean cannot be sent: {unlike}")
        own = self._own(here, report, ids) if self.mode == "refined" else {}
        return Outcome(out, report, mean=mean, own=own)

    def _report(self, here: Path) -> Report:
        settings = replace(self.settings, since=here / SENT)
        if self.mode == "exclude":
            return detect(here / CLIENTS, settings)
        settings = replace(settings, write_global=True, global_rank=self.rank, rank="keep")
        return refine(here / CLIENTS, here / REFINED, settings)

    def _own(self, here: Path, report: Report, ids: Mapping[str, str]) -> dict[str, Arrays]:
        """The refined adapters of the benign: a contaminated minority would go on from its own."""
        assert report.refinement is not None
        benign = {c.client for c in report.clients if c.verdict == "benign"}
        written = {c.client: c.path for c in report.refinement.clients if c.client in benign}
        found = {ids[name]: _arrays(here / REFINED / path) for name, path in written.items()}
        return {c: arrays for c, arrays in found.items() if not _differs(arrays, self.start[c])}

    def _failing(self, report: Report) -> dict[str, str]:
        """Clients that fail the gate of the settings, and all that cannot be read."""
        broken = [c for c in report.clients if c.verdict == "broken"]
        out = dict.fromkeys(self.settings.exclude, "excluded by the settings")
        for client in (*broken, *failing(report, self.settings.fail_on)):
            codes = (reason.code for reason in client.reasons)
            out[client.client] = " ".join([str(client.verdict), *codes])
        return {c.client: out[c.client] for c in report.clients if c.client in out}

    def _misfit(self, client: str, arrays: Arrays) -> str | None:
        """Why a reply cannot be what the client was sent, trained."""
        if client not in self.start:
            return "nothing was sent to it"
        return _differs(arrays, self.start[client])

    # --- files

    def _round(self, number: int) -> Path:
        return self.place / f"round-{number}"

    def _write(self, folder: Path, adapters: Mapping[str, Arrays], inputs: Path) -> None:
        """Whole or not at all: one adapter, called "", or a folder of them."""
        with publish.staged(folder, False, inputs, __version__) as stage:
            for name, arrays in adapters.items():
                (stage / name).mkdir(exist_ok=True)
                write_arrays(stage / name / WEIGHTS, arrays)
                publish.write_bytes(stage / name / CONFIG, self.config)

    def _one_rank(self, sent: Path) -> int:
        """The rank of what is sent; a mean at one rank for all must fit. Raises UsageError."""
        try:
            adapter = formats.open_adapter(sent, self.settings)
        except AdapterError as cause:
            raise UsageError(f"what is sent is no adapter that clair reads: {cause}") from None
        ranks = {spec.rank for spec in adapter.updates.values()}
        if not ranks or (len(ranks) > 1 and self.mode != "exclude"):
            text = f"{len(ranks)} different ranks in what is sent; mode {self.mode!r} needs one"
            raise UsageError(text)
        return max(ranks)

    def _note(self, number: int, clients: list[str], outcome: Outcome) -> None:
        """round.json: which folder is whose, who was left out, and why."""
        known = folder_names(list(dict.fromkeys([*self.folders, *clients])))
        said = {
            "round": number,
            "mode": self.mode,
            "fallback": outcome.fallback,
            "clients": [
                {"id": c, "folder": known[c], "left_out": outcome.left_out.get(c)} for c in clients
            ],
        }
        text = json.dumps(said, indent=2) + "\n"
        publish.write_bytes(self._round(number) / RECORD, text.encode())


# --- arrays


def write_arrays(path: Path, arrays: Arrays) -> None:
    """A new .npz of these .npy files. Raises OutputError."""
    file = ZipWriter(path, {f"{name}.npy": len(data) for name, data in arrays.items()})
    try:
        for name, data in arrays.items():
            file.write(f"{name}.npy", data)
        file.close()
    finally:
        file.abandon()


def _arrays(folder: Path) -> Arrays:
    """What clair itself has just written there. Raises OutputError."""
    try:
        adapter = formats.open_adapter(folder)
        files = adapter.files
        return {n: npz.read_raw(files[t.file], n, t) for n, t in adapter.tensors.items()}
    except AdapterError as cause:
        raise OutputError(f"{str(folder)!r}: cannot be read back: {cause}") from None


def _differs(arrays: Arrays, sent: Arrays) -> str | None:
    """How names, shapes or kinds of numbers differ from what was sent; None where they do not."""
    if arrays.keys() != sent.keys():
        odd = sorted(arrays.keys() ^ sent.keys())
        which = "misses" if odd[0] in sent else "adds"
        return f"{which} {odd[0][:80]!r}, and {len(odd)} names differ from what it was sent"
    for name, data in arrays.items():
        try:
            found = npz.array_header(data, len(data), repr(name))
            shape = npz.array_header(sent[name], len(sent[name]), repr(name)).shape
        except AdapterError as cause:
            return str(cause)
        if found.dtype not in npz.FLOAT_NAMES.values():
            return f"{name!r} holds {found.dtype}, no real numbers"
        if found.shape != shape:
            return f"{name!r} has shape {list(found.shape)}, and was sent as {list(shape)}"
    return None


def _not_finite(clients: Mapping[str, Arrays]) -> dict[str, str]:
    """Clients that hold NaN or infinity, and where; all of them passed `_differs`."""
    found = {}
    for client, arrays in clients.items():
        for name, data in arrays.items():
            head = npz.array_header(data, len(data), repr(name))
            if not np.isfinite(np.frombuffer(data, head.descr[:3], offset=head.head)).all():
                found[client] = f"{name!r} holds a number that is not finite"
                break
    return found


def _config(config: Path | str | Mapping[str, Any]) -> bytes:
    """The bytes of adapter_config.json. Raises UsageError."""
    if isinstance(config, Mapping):
        try:
            return (json.dumps(dict(config), indent=2, default=sorted) + "\n").encode()
        except (TypeError, ValueError) as cause:
            raise UsageError(f"the adapter's config cannot be written as JSON: {cause}") from None
    path = Path(config)
    try:
        return (path / CONFIG if path.is_dir() else path).read_bytes()
    except OSError as cause:
        raise UsageError(f"{str(config)!r}: cannot be read: {cause.strerror}") from None
