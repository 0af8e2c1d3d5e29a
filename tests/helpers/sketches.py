"""Sketch files made of adapters, and changed ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from clair_cli.cohort import Sketching
from clair_cli.opening import open_client
from clair_cli.settings import Settings
from clair_cli.sketching import sketched

KIND = Sketching(16, 0)


def sketch(adapter: Path, target: Path, kind: Sketching = KIND, **settings: Any) -> Path:
    """The sketch of an adapter, as a file."""
    given = Settings(**settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(sketched(open_client(adapter, given), kind, given)[1])
    return target


def sketch_all(folder: Path, target: Path, kind: Sketching = KIND) -> Path:
    """A folder of sketches of all clients of a folder."""
    for client in sorted(folder.iterdir()):
        sketch(client, target / f"{client.name}.safetensors", kind)
    return target


def metadata_of(file: Path) -> dict[str, str]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    found: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return found


def change(
    file: Path,
    head: Callable[[dict[str, Any]], None] = lambda _: None,
    tensors: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Path:
    """The same file with another head or other tensors."""
    found, said = load(file.read_bytes()), metadata_of(file)
    top = json.loads(said["sketch"])
    head(top)
    tensors(found)
    text = json.dumps(top)
    file.write_bytes(save(found, {"format": said["format"], "sketch": text}))
    return file
