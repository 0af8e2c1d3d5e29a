"""What most clients trained whole with one shape is compared; who has it otherwise is told."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from clair_cli.cohort import Cohort, Entries, align
from clair_cli.formats import (
    open_adapter,
)
from tests.helpers.adapters import (
    normal,
    with_tensors,
)


def cohort(root: Path, *extras: dict[str, Tensor]) -> Cohort:
    """Clients c-1, c-2, ... with these tensors beside modules of their own."""
    found = [with_tensors(root / f"c-{k}", extra, k) for k, extra in enumerate(extras, start=1)]
    return align(Entries(tuple(map(open_adapter, found))))


def test_a_client_that_has_it_otherwise_is_named_and_the_others_are_compared(
    tmp_path: Path,
) -> None:
    head = {"score.weight": normal(2, 4), "norm.weight": normal(4)}
    found = cohort(tmp_path, head, head, head, head | {"score.weight": normal(3, 4)}, {})
    assert found.full == {"norm.weight": (4,), "score.weight": (2, 4)}
    assert found.having("score.weight") == (0, 1, 2)
    assert found.having("norm.weight") == (0, 1, 2, 3)
    notes = {a.client: [n.message for n in a.notes] for a in found.clients}
    own = "trained whole, but not compared here: "
    assert notes == {
        "c-1": [],
        "c-2": [],
        "c-3": [],
        "c-4": [f"{own}score.weight (3 x 4)"],
        "c-5": [f"{own}norm.weight (has none), score.weight (has none)"],
    }
    assert [a.client for a in found.clients] == [f"c-{k}" for k in range(1, 6)]
    said = {r.message for r in found.findings}
    assert {r.code for r in found.findings} == {"CLR304"}
    assert said == {
        "score.weight: compared without c-4 (3 x 4), c-5 (has none)",
        "norm.weight: compared without c-5 (has none)",
    }


def test_what_no_majority_has_in_one_shape_is_said_to_be_unjudged(tmp_path: Path) -> None:
    sizes = (2, 2, 3, 3)
    found = cohort(tmp_path, *({"score.weight": normal(n, 4)} for n in sizes))
    assert found.full == {}
    (finding,) = found.findings
    assert finding.message.startswith(
        "score.weight: not judged, because most do not have it in one and the same shape; "
        "found in c-1 (2 x 4), c-2"
    )
    assert all("not compared here" in a.notes[-1].message for a in found.clients)


def test_one_remark_names_all_matrices_of_the_same_clients(tmp_path: Path) -> None:
    head = {"score.weight": normal(2, 4), "score.bias": normal(2)}
    found = cohort(
        tmp_path, head, head, head, {"score.weight": normal(3, 4), "score.bias": normal(3)}
    )
    (finding,) = found.findings
    assert finding.message == "score.bias, score.weight: compared without c-4"
    (note,) = found.clients[3].notes
    assert note.message.endswith("score.bias (3), score.weight (3 x 4)")


def test_what_all_have_needs_no_words(tmp_path: Path) -> None:
    head = {"score.weight": normal(2, 4), "number": torch.tensor(1.5)}
    found = cohort(tmp_path, head, head, head)
    assert (found.full, found.findings) == ({"number": (), "score.weight": (2, 4)}, ())
    assert json.loads(json.dumps(found.having("number"))) == [0, 1, 2]
