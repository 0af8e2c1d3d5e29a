"""A MiSS folder written back: its blocks hold the update of any client of their shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from clair_cli.formats.peft.keys import PREFIX
from clair_cli.formats.peft.lora import PeftWriter
from clair_cli.formats.peft.tuners import TUNERS, module_and_role
from clair_cli.formats.rules import thin

if TYPE_CHECKING:
    from clair_cli.update import LowRankUpdate


class MissWriter(PeftWriter):
    """The template's config and shapes: a block has no other rank, so `ranks` change nothing."""

    def spread(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """No module gets another rank."""
        return {}

    def key(self, name: str) -> str:
        """Without wrappers and adapter name, too."""
        found = module_and_role(name, TUNERS["MISS"])
        return f"{PREFIX}{found[0]}.miss_{found[1]}" if found else super().key(name)

    def put(self, module: str, update: LowRankUpdate) -> None:
        """Write one module's update, once, of whatever rank."""
        from clair_cli.update import LowRankUpdate

        if update.rank > self.adapter.updates[module].rank:
            update = LowRankUpdate(*thin(update.dense()))
        super().put(module, update)
