"""What one client alone has on top of all that is shared: noise is forgiven, an addition is not.

Truth: every client's task, deviation and rows are drawn here (tests/helpers/federations.py).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clair_cli.detection.distances import Distances
from clair_cli.detection.verdicts import Judgement, judge
from tests.helpers.federations import (
    MODULES,
    USUAL,
    Client,
    codes,
    honest,
    rows,
    tabled,
    task,
    trained,
    verdict,
)

Q = rows(0)


def narrow(seed: int, size: float) -> np.ndarray:
    """An addition in one direction of every module, of this norm."""
    draw = np.random.default_rng(seed)
    up, down = draw.standard_normal((MODULES, 48, 1)), draw.standard_normal((MODULES, 1, 40))
    found = up @ (down @ Q.transpose(0, 2, 1) @ Q)
    return np.asarray(size * found / np.linalg.norm(found, axis=(1, 2), keepdims=True))


def error(client: Client) -> float:
    """Energy of a client beside its task, in that of a usual client."""
    usual = trained(task(0), 1).update - task(0) @ Q.transpose(0, 2, 1) @ Q
    mine = client.update - task(0) @ Q.transpose(0, 2, 1) @ Q
    return float((mine**2).sum() / (usual**2).sum())


def judged(clients: dict[str, Client]) -> Judgement:
    """With what the solver leaves of each, in usual energies: here all beside the planted task."""
    left = [((c.update - task(0) @ Q.transpose(0, 2, 1) @ Q) ** 2).sum() for c in clients.values()]
    usual = float(np.median([(c.update**2).sum() for c in clients.values()]))
    return judge(replace(tabled(clients), unexplained=np.array(left) / usual))


def said(found: Judgement, client: str) -> str | None:
    """The word for a client."""
    return verdict(found, client).verdict


@pytest.mark.parametrize("times", [3.0, 10.0, 25.0])
def test_the_error_of_little_data_is_in_all_directions_and_convicts_nobody(times: float) -> None:
    poor = trained(task(0), 900, noise=USUAL * times**0.5)
    assert error(poor) == pytest.approx(times, rel=0.2)
    found = judged(honest(11) | {"x": poor})
    assert said(found, "x") in ("benign", "suspicious")
    assert {said(found, c) for c in honest(11)} == {"benign"}


@pytest.mark.parametrize("times", [8.0, 25.0])
def test_the_same_error_in_few_directions_is_an_addition(times: float) -> None:
    usual = trained(task(0), 900)
    size = float(np.sqrt((times - 1) * error(usual))) * 0.7 * (8 / 40) ** 0.5
    adds = replace(usual, update=usual.update + narrow(5, size))
    assert error(adds) == pytest.approx(times, rel=0.25)
    found = judged(honest(11) | {"x": adds})
    assert said(found, "x") == "contaminated"
    assert "CLR214" in codes(found, "x")
    assert {said(found, c) for c in honest(11)} == {"benign"}


def test_a_smaller_rank_is_no_addition() -> None:
    """Half of the rank leaves half of the directions to the same error."""
    poor = trained(task(0), 900, noise=USUAL * 5**0.5)
    cut = rows(0)[:, :4]
    few = Client(poor.update @ cut.transpose(0, 2, 1) @ cut, rank=4, rows=cut)
    assert said(judged(honest(11) | {"x": few}), "x") != "contaminated"


def test_an_error_beyond_any_lack_of_data_is_a_distortion() -> None:
    """Of near-equal clients, where a hundred times their error is not yet a large update."""
    near = {f"h-{k:02d}": trained(task(0), k, noise=0.1) for k in range(11)}
    unit = float(np.mean([error(c) for c in near.values()]))
    for times, convicted in ((50.0, False), (200.0, True)):
        far = trained(task(0), 900, noise=0.1 * times**0.5)
        assert error(far) / unit == pytest.approx(times, rel=0.2)
        found = judged(near | {"x": far})
        assert (said(found, "x") == "contaminated") == convicted
        assert "CLR214" in codes(found, "x")
        assert {said(found, c) for c in near} == {"benign"}


def test_a_small_error_that_is_enormous_for_these_clients_is_suspicious_and_no_more() -> None:
    near = {f"h-{k:02d}": trained(task(0), k, noise=0.12) for k in range(11)}
    found = judged(near | {"x": trained(task(0), 900, noise=0.12 * 40**0.5)})
    assert said(found, "x") == "suspicious"
    assert "CLR214" in codes(found, "x")


def test_an_addition_of_a_few_is_judged_where_content_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cosines that are mere chance tell no content; the likeness of rests may stand out all the same."""
    clients = honest(9)
    for k in range(3):
        one = trained(task(0), 700 + k)
        clients[f"x-{k}"] = replace(one, update=one.update + narrow(5, 0.6))
    monkeypatch.setattr(Distances, "kept", lambda self, group: None)
    found = judged(clients)
    assert {said(found, f"x-{k}") for k in range(3)} <= {"contaminated", "minority"}
