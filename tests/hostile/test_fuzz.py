"""What fuzzing has found stays mended, and each of its targets runs and can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import differential
from fuzz.clients import ByteDraw
from fuzz.targets import TARGETS, scratch, seeds
from tests import ROOT

PLACE = ROOT / "fuzz" / "found"
FOUND = sorted(p for p in PLACE.iterdir() if p.is_file() and p.suffix != ".md")


@pytest.mark.parametrize("file", FOUND, ids=lambda p: p.name)
def test_what_was_found_stays_mended(file: Path) -> None:
    TARGETS[file.name.partition("-")[0]](file.read_bytes())


def test_the_corpus_is_small() -> None:
    assert len(FOUND) >= 4
    assert max(p.stat().st_size for p in FOUND) < 8192


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_holds_on_its_seeds(name: str) -> None:
    found = seeds(name)
    assert found
    for data in found[:6] if name == "same" else found:
        TARGETS[name](data)


def drawn() -> Iterator[bytes]:
    yield from differential.seeds(40)


def test_another_product_in_one_client_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The differential target would notice: a gauge that turns the sign is none."""
    honest = differential.gauged

    def wrong(draw: ByteDraw, factors: differential.Factors) -> differential.Factors:
        found = honest(draw, factors)
        turned = draw.pick((False, True))
        return {m: (-up if turned else up, down) for m, (up, down) in found.items()}

    monkeypatch.setattr(differential, "gauged", wrong)
    found = 0
    for data in drawn():
        with scratch() as folder:
            try:
                differential.compare(ByteDraw(data), folder)
            except AssertionError:
                found += 1
        if found:
            break
    assert found
