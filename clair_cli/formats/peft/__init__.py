"""PEFT's formats: LoRA, and the other tuners whose updates have a closed form."""

from __future__ import annotations

from functools import partial

from clair_cli.formats.interface import FactoredFormat
from clair_cli.formats.peft import lora, tuners
from clair_cli.formats.peft.miss import MissWriter
from clair_cli.formats.peft.plain_lora import LoraWriter


def _converted(kind: str) -> FactoredFormat:
    """A tuner whose tensors hold no low-rank update but those of their own form."""
    return FactoredFormat(
        name=kind.lower(),
        recognises=partial(tuners.recognises, kind),
        describe=tuners.describe,
        writer=LoraWriter,
        served=True,
        converts=True,
    )


TUNERS = (
    *(_converted(kind) for kind in tuners.TUNERS if kind != "MISS"),
    FactoredFormat(
        name="miss",
        recognises=partial(tuners.recognises, "MISS"),
        describe=tuners.describe,
        writer=MissWriter,
    ),
)
LORA = lora.FORMAT
