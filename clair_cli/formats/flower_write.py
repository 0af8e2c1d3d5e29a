"""An .npz written back: the same arrays under the same names, in the same order, other updates."""

from __future__ import annotations

from clair_cli.formats.factors_write import FactorsWriter, Shapes
from clair_cli.formats.layout import CONFIG
from clair_cli.formats.npz import NpzWriter
from clair_cli.formats.peft_write import PeftWriter
from clair_cli.formats.plain_write import file_name
from clair_cli.output.publish import write_bytes


class FlowerWriter(PeftWriter):
    """An .npz; with a config where one came with it, or where ranks and scales are others."""

    def open(self, shapes: Shapes) -> NpzWriter:
        """The new file of these arrays."""
        return NpzWriter(self.folder / self.file_name(), shapes)

    def file_name(self) -> str:
        """That of the client's file in its folder; a flat file's is the folder's name."""
        return file_name(self.adapter, FactorsWriter.file_name(self), self.folder)

    def key(self, name: str) -> str:
        """As it is."""
        return name

    def beside(self) -> None:
        """The config, where the scale is not what the reference says."""
        if self.ranks or CONFIG in self.adapter.files:
            write_bytes(self.folder / CONFIG, self.config)
