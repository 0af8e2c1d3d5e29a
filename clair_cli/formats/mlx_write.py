"""An mlx-lm adapter written back: the template's names, dtypes and config, other updates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from clair_cli.cohort import Adapter
from clair_cli.formats.factors_write import FactorsWriter
from clair_cli.formats.files import read_range
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.peft_write import read_readme
from clair_cli.output.publish import write_bytes


class MlxWriter(FactorsWriter):
    """An mlx-lm folder.

    Without `ranks` the config keeps its bytes. mlx-lm has one rank and one scale for all modules:
    with `ranks` every module gets the largest, and scale 1.
    """

    def __init__(
        self,
        adapter: Adapter,
        folder: Path,
        modules: Sequence[str],
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(adapter, folder, modules, ranks)
        file = adapter.files[CONFIG]
        self.config = bytes(read_range(file, 0, file.size))
        if self.ranks:
            stated = {k: v for k, v in adapter.config["lora_parameters"].items() if k != "alpha"}
            stated |= {"rank": max(self.ranks.values()), "scale": 1.0}
            config = {**adapter.config, "lora_parameters": stated}
            self.config = json.dumps(config, indent=4).encode() + b"\n"

    def spread(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """One rank for every module, the largest of those given and of those that stay."""
        if not ranks:
            return {}
        updates = self.adapter.updates
        return dict.fromkeys(updates, max(ranks.get(m, s.rank) for m, s in updates.items()))

    def file_name(self) -> str:
        """The one mlx-lm loads."""
        return "adapters.safetensors"

    def metadata(self) -> Mapping[str, str]:
        """As mlx writes it."""
        return {"format": "mlx"}

    def beside(self) -> None:
        """Config and model card."""
        write_bytes(self.folder / CONFIG, self.config)
        if (readme := read_readme(self.adapter)) is not None:
            write_bytes(self.folder / "README.md", readme)
