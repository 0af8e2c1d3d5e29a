"""A LoRA file of diffusers written back: the template's names, dtypes and metadata, other updates."""

from __future__ import annotations

import json
from collections.abc import Mapping

from clair_cli.formats.diffusers import parsed
from clair_cli.formats.diffusers_metadata import METADATA, with_ranks
from clair_cli.formats.lora_pairs_write import PairsWriter


class DiffusersWriter(PairsWriter):
    """One .safetensors file of the client's own name; with `ranks` its metadata says them."""

    parse = staticmethod(parsed)

    def metadata(self) -> Mapping[str, str]:
        """The client's own, but for other ranks."""
        found = dict(self.adapter.metadata)
        if METADATA in found and self.ranks:
            data = with_ranks(self.adapter.config, self.adapter.updates, self.ranks)
            found[METADATA] = json.dumps(data, indent=2, sort_keys=True)
        return found
