"""Settings and constants: checked when they are set, all in the report, each number with its source."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from clair_cli.constants import Constants
from clair_cli.detection.calibration import DETECTION
from clair_cli.errors import SettingError
from clair_cli.refinement.calibration import REFINEMENT
from clair_cli.settings import RANGES, WORDS, Settings
from tests import ROOT

CALIBRATIONS = (DETECTION, REFINEMENT)
EVERY = [(c, f.name) for c in CALIBRATIONS for f in fields(c)]


@pytest.mark.parametrize(("numbers", "name"), EVERY, ids=[name for _, name in EVERY])
def test_a_constant_has_a_unit_a_range_a_meaning_and_a_source(
    numbers: Constants, name: str
) -> None:
    (field,) = [f for f in fields(numbers) if f.name == name]
    assert {"unit", "range", "meaning", "source"} == field.metadata.keys()
    assert all(len(field.metadata[key]) > 3 for key in ("unit", "meaning", "source"))
    low, high = field.metadata["range"]
    assert low <= getattr(numbers, name) <= high
    assert math.isfinite(high)
    source = field.metadata["source"]
    assert not source.endswith(".md") or (ROOT / source).is_file()


@pytest.mark.parametrize(("numbers", "name"), EVERY, ids=[name for _, name in EVERY])
def test_a_constant_out_of_its_range_is_refused_by_name(numbers: Constants, name: str) -> None:
    (field,) = [f for f in fields(numbers) if f.name == name]
    low, high = field.metadata["range"]
    wrong: list[Any] = [low - 1, high * 2 + 1, math.nan, "3", True, None]
    for value in wrong:
        with pytest.raises(SettingError, match=f"^{name}: expected"):
            replace(numbers, **{name: value})


def test_all_that_can_change_a_verdict_or_a_weight_is_in_the_report() -> None:
    said = Settings().as_dict()
    for numbers in CALIBRATIONS:
        assert numbers.as_dict().items() <= said.items()
    assert not DETECTION.as_dict().keys() & REFINEMENT.as_dict().keys()
    assert not {f.name for f in fields(Settings)} & (
        DETECTION.as_dict().keys() | REFINEMENT.as_dict().keys()
    )
    moved = Settings(detection=replace(DETECTION, norm_cap=7.0))
    assert moved.as_dict()["norm_cap"] == 7.0


@pytest.mark.parametrize(("low", "high"), [("suspicious", "limit"), ("rarely_same", "mostly_same")])
def test_constants_that_are_ordered_stay_so(low: str, high: str) -> None:
    with pytest.raises(SettingError, match=f"{low}: expected less than {high}"):
        replace(DETECTION, **{low: getattr(DETECTION, high)})


@pytest.mark.parametrize("name", WORDS)
def test_a_word_that_nobody_knows_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(SettingError, match=f"^{name}: expected .*{WORDS[name][-1]}"):
        Settings(**{name: "sideways"})


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [-1, 1.5, True, "8", None])
def test_a_number_of_no_use_is_refused(name: str, value: Any) -> None:
    with pytest.raises(SettingError, match=f"^{name}: expected a whole number from"):
        Settings(**{name: value})


def test_settings_read_no_disk_and_name_no_option() -> None:
    """Whether a file is there is for whoever opens it to say."""
    Settings(config=Path("/no/such/config.json"), reference=Path("/no/such/folder"))
    Settings(base=Path("/no/such/base.safetensors"), read_as="weights")
    text = Path(str(Settings.__init__.__globals__["__file__"])).read_text()
    assert "--" not in text.replace("# ---", "")
    assert not {"is_file", "is_dir", "exists", "open("} & set(text.split())
