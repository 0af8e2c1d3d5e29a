"""What a client's files hold, before it is known which tensors make which update."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clair_cli.cohort import Adapter, InputFile, TensorSpec, UpdateSpec
from clair_cli.errors import ConfigInvalid, Malformed
from clair_cli.formats.containers import open_file
from clair_cli.formats.files import hash_file, pread
from clair_cli.formats.layout import CONFIG, Layout
from clair_cli.formats.strict_json import parse_object
from clair_cli.report import Reason
from clair_cli.settings import Settings

MAX_CONFIG_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of one client: tensors in file order, and adapter_config.json, if any."""

    layout: Layout
    files: Mapping[str, InputFile]
    tensors: Mapping[str, TensorSpec]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None

    @property
    def where(self) -> str:
        """The name of the file of tensors, for messages."""
        return self.layout.weights[0][0]


@dataclass(frozen=True, slots=True)
class Described:
    """What a format makes of it. `config` has what the command line added; `traits` as in Adapter."""

    updates: Mapping[str, UpdateSpec]
    config: Mapping[str, Any]
    base: str | None = None
    notes: tuple[Reason, ...] = ()
    traits: Mapping[str, str] = field(default_factory=dict)


Describe = Callable[[Contents, Settings], Described]


def read_contents(layout: Layout, settings: Settings) -> Contents:
    """Every header, and the config. Raises the kinds of AdapterError."""
    files: dict[str, InputFile] = {}
    tensors: dict[str, TensorSpec] = {}
    metadata: dict[str, str] = {}
    for name, path in layout.weights:
        files[name], found, metadata = open_file(path, name, settings)
        for key in tensors.keys() & found.keys():
            text = f"{name}: tensor {key!r} is also in {tensors[key].file}"
            raise Malformed(f"{text}; keep the shards of one saving")
        tensors |= found
    config = None
    if layout.config is not None:
        files[CONFIG], config = hash_file(layout.config, CONFIG, _read_config)
    return Contents(layout, files, tensors, metadata, config)


def _read_config(fd: int, size: int) -> dict[str, Any]:
    if size > MAX_CONFIG_BYTES:
        text = f"{size} bytes, the limit is {MAX_CONFIG_BYTES}; upload the trainer's own config"
        raise ConfigInvalid(f"{CONFIG}: {text}")
    return parse_object(pread(fd, 0, size), CONFIG, ConfigInvalid)


def as_adapter(contents: Contents, client: str, form: str, found: Described) -> Adapter:
    """The adapter of the format `form`."""
    return Adapter(
        client=client,
        path=contents.layout.path,
        format=form,
        digest=_digest(contents.files, found.updates),
        updates=found.updates,
        tensors=contents.tensors,
        files=contents.files,
        config=found.config,
        metadata=contents.metadata,
        base=found.base,
        notes=(*contents.layout.notes, *found.notes),
        traits=found.traits,
    )


def _digest(files: Mapping[str, InputFile], updates: Mapping[str, UpdateSpec]) -> str:
    """Equal for equal tensors and scales, wherever they lie and whatever else the config says."""
    weights = sorted(f.sha256 for name, f in files.items() if name != CONFIG)
    scales = sorted((module, spec.scale.hex()) for module, spec in updates.items())
    return hashlib.sha256(json.dumps([weights, scales]).encode()).hexdigest()
