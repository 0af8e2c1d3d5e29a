"""What clair keeps for itself and reads back from anybody: sketches, references, ledgers, decisions.

Each target starts from an honest file, made once, and spoils its JSON, its header or its numbers.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clair_cli import history, pipeline
from clair_cli.cli.configuration import Commands, configured
from clair_cli.cohort import Sketching
from clair_cli.opening import open_client
from clair_cli.report import from_dict, to_dict
from clair_cli.settings import Settings
from clair_cli.sketching import sketched
from fuzz import clients, documents
from fuzz.clients import ByteDraw, seldom

SETTINGS = Settings(threads=1, max_file_bytes=2**24, read_as="update")
FLOATS = (np.inf, -np.inf, np.nan, 0.0, 65504.0, 6e-8)
CONFIG = {
    "fail-on": "contaminated",
    "ignore": ["logs"],
    "detect": {"threads": 1, "min-shared-modules": 0.5, "exact": True},
    "accept": [
        {
            "client": "client-1",
            "codes": ["CLR203"],
            "reason": "asked",
            "until": "2999-01-01",
            "sha256": documents.SHA,
        }
    ],
}


def cohort(folder: Path, count: int = 4) -> Path:
    """So many adapters of one task, two modules, each with an error of its own."""
    draw = np.random.default_rng(1)
    task = [draw.standard_normal((48, 40)) for _ in range(2)]
    folder.mkdir()
    for k in range(count):
        arrays = {
            f"layers.{m}.q": t + 0.3 * draw.standard_normal(t.shape) for m, t in enumerate(task)
        }
        np.savez(folder / f"client-{k}.npz", **{n: a.astype(np.float32) for n, a in arrays.items()})
    return folder


@cache
def honest(name: str) -> bytes:
    """The bytes of a sketch, or of a reference of three clients."""
    with tempfile.TemporaryDirectory() as place:
        folder = cohort(Path(place) / "round")
        if name == "sketch":
            adapter = open_client(folder / "client-0.npz", SETTINGS)
            return sketched(adapter, Sketching(32, 0), SETTINGS)[1]
        (folder / "client-0.npz").rename(Path(place) / "client-0.npz")
        pipeline.fit(folder, Path(place) / "r.clair", SETTINGS, Sketching(32, 0))
        return (Path(place) / "r.clair").read_bytes()


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Header and tensors of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    places = {n: e["data_offsets"] for n, e in head.items() if n != "__metadata__"}
    return head, {n: body[begin:end] for n, (begin, end) in places.items()}


def spoiled(draw: ByteDraw, data: bytes) -> bytes:
    """A file whose documents, numbers or header are changed, and whose offsets mostly fit."""
    head, tensors = parts(data)
    for name, held in tensors.items():
        if head[name]["dtype"] == "U8":
            if not seldom(draw):
                tensors[name] = documents.changed(draw, json.loads(held))
        elif seldom(draw):
            values = np.frombuffer(held, "<f2").copy()
            values[draw.pick(range(256)) % len(values)] = draw.pick(FLOATS)
            tensors[name] = values.tobytes()
    at = 0
    for name, held in tensors.items():
        if head[name]["dtype"] == "U8":
            head[name]["shape"] = [len(held)]
        head[name]["data_offsets"] = [at, at + len(held)]
        at += len(held)
    text = documents.changed(draw, head) if seldom(draw) else json.dumps(head).encode()
    return clients.damaged(
        draw, len(text).to_bytes(8, "little") + text + b"".join(tensors.values())
    )


def sketch(data: bytes, folder: Path) -> None:
    """A spoiled sketch among honest adapters: they get their verdicts, whatever it is."""
    place = cohort(folder / "round")
    (place / "client-9.safetensors").write_bytes(spoiled(ByteDraw(data), honest("sketch")))
    report = pipeline.detect(place, SETTINGS)
    verdicts = {c.client: c.verdict for c in report.clients}
    assert all(verdicts[f"client-{k}"] == "benign" for k in range(4)), verdicts


def reference(data: bytes, folder: Path) -> None:
    """A spoiled reference: refused in one line, or what is checked against it gets an answer."""
    place = cohort(folder / "round")
    (folder / "r.clair").write_bytes(spoiled(ByteDraw(data), honest("reference")))
    _, found = pipeline.check(place / "client-0.npz", folder / "r.clair", SETTINGS)
    assert found.exit_code in (0, 1, 3)


@cache
def rounds() -> bytes:
    """A ledger of two rounds."""
    from tests.helpers.reports import COMPLETE

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rounds.jsonl"
        for _ in range(2):
            history.recorded(from_dict(to_dict(COMPLETE)), path)
        return path.read_bytes()


def ledger(data: bytes, folder: Path) -> None:
    """A spoiled ledger: refused, or the round is added and the next run reads it."""
    from tests.helpers.reports import COMPLETE

    draw, path = ByteDraw(data), folder / "rounds.jsonl"
    lines = rounds().splitlines(keepends=True)
    which = draw.pick(range(len(lines)))
    if not seldom(draw):
        lines[which] = documents.changed(draw, json.loads(lines[which])) + b"\n"
    path.write_bytes(clients.damaged(draw, b"".join(lines)))
    report = history.recorded(COMPLETE, path)
    assert report.history is not None
    assert history.recorded(COMPLETE, path).history is not None


@cache
def commands() -> Commands:
    """The parameters of all commands."""
    from inspect import unwrap

    from clair_cli.cli import app
    from clair_cli.cli.parameters import parameters

    found = {
        c.name or c.callback.__name__: c.callback for c in app.registered_commands if c.callback
    }
    return {name: list(parameters(unwrap(callback))) for name, callback in found.items()}


def decisions(data: bytes, folder: Path) -> None:
    """A spoiled clair.toml: refused, or decisions of the right types."""
    draw, path = ByteDraw(data), folder / "clair.toml"
    try:
        path.write_bytes(_toml(json.loads(documents.changed(draw, CONFIG))))
    except (ValueError, RecursionError, AttributeError):  # nothing that TOML can hold
        path.write_bytes(data)
    found = configured(path, False, (), commands())
    for one in found.accept:
        assert isinstance(one.client, str)
        assert all(isinstance(code, str) for code in one.codes)


def options() -> bytes:
    """An honest file of options and decisions."""
    return _toml(CONFIG)


def _toml(document: dict[str, Any]) -> bytes:
    """The document as TOML: JSON's scalars and lists are TOML's, null is left out."""
    lines = [f"{json.dumps(k)} = {_inline(v)}" for k, v in document.items() if v is not None]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        held = ", ".join(
            f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items() if v is not None
        )
        return f"{{{held}}}"
    if isinstance(value, list):
        return f"[{', '.join(_inline(v) for v in value if v is not None)}]"
    return json.dumps(value)


SPOILED = {"sketch": sketch, "reference": reference, "ledger": ledger, "decisions": decisions}
