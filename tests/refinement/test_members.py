"""Who is averaged, who receives, with what weight: and every claim that cannot be used is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from clair_cli.cohort import Adapter, Cohort
from clair_cli.errors import NoVerdict, UsageError
from clair_cli.refinement import members as module
from clair_cli.refinement.members import Recipients, read_counts, recipients
from clair_cli.report import Verdict
from clair_cli.settings import Settings

VERDICTS = {
    "a": "benign",
    "b": "benign",
    "c": "benign",
    "odd": "suspicious",
    "bad": "contaminated",
    "cut": "broken",
}
CLAIMS = Path("counts.json")
"""A file that says something: what it says is given beside it."""


def chosen(counts: Mapping[str, float] | None = None, **settings: Any) -> Recipients:
    """Recipients of the clients above; the broken one is not in the cohort."""
    clients = [Adapter(c, Path(c), "peft", c, {}, {}, {}, {}) for c in VERDICTS if c != "cut"]
    verdicts = [Verdict(c, v) for c, v in VERDICTS.items()]  # type: ignore[arg-type]
    weights = None if counts is None else CLAIMS
    asked = Settings(**settings, weights=weights)
    return recipients(verdicts, Cohort(tuple(clients), (), {}), asked, counts or {})


def shares(found: Recipients) -> dict[str, float]:
    return {a.client: w for a, w in zip(found.clients, found.weights, strict=True)}


# --- who


def test_by_default_the_benign_give_alike_and_nobody_else_gets_anything() -> None:
    assert shares(chosen()) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})


def test_suspicious_clients_may_receive_and_never_give() -> None:
    found = chosen(refine_suspicious=True)
    assert shares(found) == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3, "odd": 0})
    assert found.giving == (True, True, True, False)


@pytest.mark.parametrize("name", ["odd", "bad"])
def test_who_is_included_counts_as_benign(name: str) -> None:
    found = chosen(include=(name,), refine_suspicious=True)
    assert shares(found)[name] == pytest.approx(1 / 4)
    assert sum(found.weights) == pytest.approx(1)


def test_who_is_excluded_neither_gives_nor_gets() -> None:
    assert shares(chosen(exclude=("b",))) == pytest.approx({"a": 1 / 2, "c": 1 / 2})
    assert "odd" not in shares(chosen(exclude=("odd", "cut", "bad"), refine_suspicious=True))


def copied(counts: Mapping[str, float] | None = None, **settings: Any) -> Recipients:
    """Of the clients above: a, and three copies that count as one."""
    names = ("a", "x", "y", "z")
    clients = [Adapter(c, Path(c), "peft", c, {}, {}, {}, {}) for c in names]
    verdicts = [Verdict(c, "benign" if c == "a" else "suspicious") for c in names]
    cohort = Cohort(tuple(clients), (), {})
    asked = Settings(**settings, weights=None if counts is None else CLAIMS)
    return recipients(verdicts, cohort, asked, counts or {}, copied=dict.fromkeys(names[1:], "y"))


def test_of_copies_all_receive_and_the_first_gives() -> None:
    assert shares(copied()) == {"a": 0.5, "x": 0.5, "y": 0, "z": 0}
    assert shares(copied(exclude=("x",))) == {"a": 0.5, "y": 0.5, "z": 0}


def test_of_copies_the_one_that_is_included_gives() -> None:
    assert shares(copied(include=("z",))) == {"a": 0.5, "x": 0, "y": 0, "z": 0.5}


def test_of_copies_the_one_with_a_count_gives_and_the_others_need_none() -> None:
    assert shares(copied({"a": 1, "z": 3})) == {"a": 0.25, "x": 0, "y": 0, "z": 0.75}


def test_where_nobody_is_benign_there_is_no_verdict() -> None:
    odd = Adapter("odd", Path("odd"), "peft", "odd", {}, {}, {}, {})
    with pytest.raises(NoVerdict, match="no client is benign"):
        recipients([Verdict("odd", "suspicious")], Cohort((odd,), (), {}), Settings(), {})


def test_nobody_left_is_no_verdict() -> None:
    with pytest.raises(NoVerdict, match="nothing to refine"):
        chosen(exclude=("a", "b", "c"), refine_suspicious=True)


@pytest.mark.parametrize(
    "settings", [{"include": ("d",)}, {"include": ("cut",)}, {"exclude": ("d",)}], ids=str
)
def test_a_name_that_is_no_usable_client_is_refused(settings: Any) -> None:
    with pytest.raises(UsageError, match="not a client that can be used"):
        chosen(**settings)


def test_a_client_in_both_lists_is_refused() -> None:
    with pytest.raises(UsageError, match="in both"):
        chosen(include=("odd",), exclude=("odd",))


# --- with what weight


def test_counts_are_shares_of_those_that_give() -> None:
    found = chosen({"a": 2, "b": 1, "c": 1, "bad": 1e9, "odd": 5, "cut": 3}, refine_suspicious=True)
    assert shares(found) == pytest.approx({"a": 1 / 2, "b": 1 / 4, "c": 1 / 4, "odd": 0})


def test_counts_in_another_unit_are_the_same_weights() -> None:
    counts = {"a": 3.0, "b": 1.0, "c": 7.0}
    larger = {c: 1e14 * n for c, n in counts.items()}
    assert chosen(larger).weights == pytest.approx(chosen(counts).weights)


def test_no_file_and_equal_counts_are_the_same() -> None:
    assert chosen({"a": 4, "b": 4, "c": 4}).weights == pytest.approx(chosen().weights)


def test_a_missing_count_is_refused_for_those_that_give_only() -> None:
    with pytest.raises(UsageError, match=r"no count for 'b', 'c'; add"):
        chosen({"a": 1})
    with pytest.raises(UsageError, match="no count for 'odd'"):
        chosen({"a": 1, "b": 1, "c": 1}, include=("odd",))
    chosen({"a": 1, "b": 1, "c": 1}, refine_suspicious=True)


def test_a_count_for_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="'d' is not a client"):
        chosen({"a": 1, "b": 1, "c": 1, "d": 1})


# --- the file


@pytest.mark.parametrize(
    "text",
    ['{"a": 12, "b": 3.5}', "a,12\nb,3.5\n", "a,12\r\n\r\n b ,3.5", ' \n{"b": 3.5, "a": 12}'],
)
def test_json_and_lines_say_the_same(text: str, tmp_path: Path) -> None:
    file = tmp_path / "counts"
    file.write_text(text, newline="")
    assert read_counts(file) == {"a": 12, "b": 3.5}


BAD_VALUES = [0, -1, -0.0, 1e16, 10**30, True, False, None, [], [3], {}, "", "many"]
BAD_VALUES += ["1_000", "١٢", "1e400", "nan", "0x10", "1" * 65]
REFUSED: dict[str, bytes] = {
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": 1e999}',
    "401 digits": b'{"a": 1' + b"0" * 400 + b"}",
    "twice in JSON": b'{"a": 1, "a": 2}',
    "cut off": b'{"a": 1',
    "deep": b'{"a": ' + b"[" * 10**5,
    "twice in lines": b"a,1\na,2\n",
    "another header": b"client,samples\na,1\n",
    "one column": b"a\n",
    "three columns": b"a,1,2\n",
    "nan": b"a,nan\n",
    "inf": b"a,inf\n",
    "zero": b"a,0\n",
    "negative": b"a,-3\n",
    "true": b"a,true\n",
    "no text": b"\xff\xfe\x00",
    "a NUL": b"a\0,\n",
    "a list": b"[1, 2]",
}


@pytest.mark.parametrize("value", BAD_VALUES, ids=lambda v: str(v)[:8])
def test_a_count_that_is_no_positive_number_is_refused(value: Any, tmp_path: Path) -> None:
    (tmp_path / "counts").write_text(json.dumps({"a": 1, "b": value}))
    with pytest.raises(UsageError, match="the count of 'b'"):
        read_counts(tmp_path / "counts")


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_makes_no_sense_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "counts").write_bytes(REFUSED[name])
    with pytest.raises(UsageError) as error:
        read_counts(tmp_path / "counts")
    assert len(str(error.value)) < 400
    assert "counts" in str(error.value)


def test_a_missing_file_a_folder_and_one_too_large_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_counts(path)
    monkeypatch.setattr(module, "MAX_BYTES", 7)
    (tmp_path / "counts").write_text("a,1\nb,22")
    with pytest.raises(UsageError, match="more than 7 bytes"):
        read_counts(tmp_path / "counts")
    (tmp_path / "counts").write_text("a,1\nb,2")
    assert read_counts(tmp_path / "counts") == {"a": 1, "b": 2}


# --- what is said of it


def said(**settings: Any) -> list[str]:
    counts = settings.pop("counts", None)
    verdicts = [Verdict(c, v) for c, v in VERDICTS.items()]  # type: ignore[arg-type]
    return module.remarks(verdicts, chosen(counts, **settings), Settings(**settings))


def test_a_choice_against_a_verdict_is_said() -> None:
    assert said() == []
    assert said(include=("bad", "a")) == [
        "counted as benign because of --include: bad (contaminated)"
    ]
    assert said(exclude=("a",)) == ["left out because of --exclude: a"]
    assert said(exclude=("a", "b"))[-1] == "the means are those of one client: c"


def test_a_weight_that_outweighs_all_others_is_said() -> None:
    assert said(counts={"a": 1e12, "b": 1, "c": 1}) == [
        "most of the weight is one client's: --weights: a (100 %)"
    ]
    assert said(counts={"a": 2, "b": 1, "c": 1}) == []


def test_a_table_may_have_its_header_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "counts.csv"
    path.write_bytes(b"\xef\xbb\xbfclient,count\r\na,3\r\nb,4\r\n")
    assert read_counts(path) == {"a": 3, "b": 4}
