"""Numbers of users and of files are ASCII decimals; what else Python takes for a number is refused."""

from __future__ import annotations

import pytest

from clair_cli.decimals import LONGEST, decimal, whole

ODD = (
    "1_000",
    "١٢",
    "\uff11\uff12",
    "1²",
    "nan",
    "inf",
    "-Infinity",
    "0x10",
    "1e5e5",
    "",
    " 1",
    "1 ",
    "+",
    ".",
    "1" * 65,
)


@pytest.mark.parametrize("text", ODD)
def test_what_only_python_takes_is_no_number(text: str) -> None:
    for read in (whole, decimal):
        with pytest.raises(ValueError, match="no number"):
            read(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-7", -7), ("+12", 12), ("007", 7), ("9" * LONGEST, int("9" * LONGEST))],
)
def test_whole_numbers(text: str, value: int) -> None:
    assert whole(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1e-3", 1e-3), ("-2E+2", -200.0)]
)
def test_decimals(text: str, value: float) -> None:
    assert decimal(text) == value


@pytest.mark.parametrize("text", ["1e999", "1e9999", "-1e400"])
def test_a_number_beyond_float64_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="beyond float64"):
        decimal(text)


def test_half_a_number_is_no_whole_one() -> None:
    with pytest.raises(ValueError, match="no number"):
        whole("1.5")
