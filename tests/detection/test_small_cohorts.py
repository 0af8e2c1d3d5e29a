"""Few clients, copies, and strangers: no confident answer where there is no majority to stand on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from clair_cli.detection.calibration import DETECTION
from clair_cli.update import LowRankUpdate
from tests.detection.test_verdicts import Client, Clients, benign, judged, noise, scaled

__all__ = ["benign"]  # the fixture


def jittered(client: Client, seed: int, size: float) -> Client:
    """The client's update with noise of `size` times its norm on top."""
    extra = noise(client, seed, size)
    return {
        m: LowRankUpdate(
            torch.cat([u.up, extra[m].up], dim=1),
            torch.cat([u.down * u.scale, extra[m].down * extra[m].scale]),
        )
        for m, u in client.items()
    }


def chosen(benign: Clients, count: int) -> Clients:
    return dict(list(benign.items())[:count])


@pytest.mark.parametrize("size", [0.01, 0.05, 0.1, 0.3])
def test_two_colluders_against_two_convict_nobody(benign: Clients, size: float) -> None:
    evil = noise(benign["client-01"], 5)
    gang = {f"x{i}": jittered(evil, i, size) for i in range(2)}
    assert not judged(chosen(benign, 2) | gang).identified


@pytest.mark.parametrize("size", [0.01, 0.1])
def test_two_colluders_and_a_stranger_do_not_outvote_two_honest(
    benign: Clients, size: float
) -> None:
    evil = noise(benign["client-01"], 5)
    gang = {f"x{i}": jittered(evil, i, size) for i in range(2)}
    found = judged(chosen(benign, 2) | gang | {"s": noise(benign["client-02"], 8)})
    if found.identified:
        honest = {v.client: v.verdict for v in found.verdicts if v.client.startswith("client")}
        assert "contaminated" not in honest.values()


def test_three_clients_of_whom_one_is_a_stranger_convict_nobody(benign: Clients) -> None:
    found = judged(chosen(benign, 2) | {"s": noise(benign["client-02"], 8)})
    assert not found.identified


def test_four_clients_convict_one(benign: Clients) -> None:
    found = judged(chosen(benign, 3) | {"s": scaled(benign["client-05"], -1)})
    assert {v.client for v in found.verdicts if v.verdict == "contaminated"} == {"s"}


@pytest.mark.parametrize("size", [1e-3, 0.05])
def test_copies_of_an_attacker_do_not_vouch_for_each_other(benign: Clients, size: float) -> None:
    evil = noise(benign["client-01"], 5)
    gang = {f"x{i}": jittered(evil, i, size) for i in range(4)}
    found = judged(benign | gang)
    assert {v.client for v in found.verdicts if v.verdict == "contaminated"} == set(gang)


# --- of four, one stands against three, and without any of those nobody could tell


@pytest.mark.parametrize(
    "attack", [lambda c: scaled(c, -1), lambda c: noise(c, 8), lambda c: scaled(c, 5)]
)
def test_the_odd_one_of_four_needs_half_as_much_again(
    benign: Clients, attack: Callable[[Client], Client]
) -> None:
    honest = chosen(benign, 3)
    found = judged(honest | {"s": attack(benign["client-05"])})
    verdict = found.verdicts[-1]
    assert verdict.verdict == "contaminated"
    assert verdict.limit == DETECTION.unstable * DETECTION.limit
    assert verdict.stability == 0
    assert verdict.depends_on == tuple(honest)
    assert {v.verdict for v in found.verdicts[:-1]} == {"benign"}
    for name in honest:  # and so it is
        left = {c: u for c, u in honest.items() if c != name}
        assert not judged(left | {"s": attack(benign["client-05"])}).identified


@pytest.mark.parametrize("factor", [2.2, 2.5])
def test_what_convicts_one_of_seven_makes_one_of_four_suspicious(
    benign: Clients, factor: float
) -> None:
    boosted = {"s": scaled(benign["client-05"], factor)}
    four = judged(chosen(benign, 3) | boosted).verdicts[-1]
    assert four.stability is not None
    assert four.stability < 0.5
    assert four.score is not None
    assert 3.0 <= four.score < 4.5 == four.limit
    assert four.verdict == "suspicious"
    others = {c: u for c, u in benign.items() if c != "client-05"}
    six = judged(others | boosted).verdicts[-1]
    assert (six.verdict, six.stability, six.limit) == ("contaminated", 1.0, 3.0)


def test_four_honest_clients_do_not_hang_on_each_other(benign: Clients) -> None:
    found = judged(chosen(benign, 4))
    assert {(v.verdict, v.stability, v.limit, v.depends_on) for v in found.verdicts} == {
        ("benign", 1.0, 3.0, ())
    }


@pytest.mark.parametrize("name", ["a-first", "z-last"])
@pytest.mark.parametrize("factor", [1e-3, 10.0, 1e3])
def test_a_copy_of_another_size_is_convicted_for_its_own_size_alone(
    benign: Clients, name: str, factor: float
) -> None:
    """Whatever the names: the one that is copied is at most suspicious."""
    copy = scaled(benign["client-04"], factor)
    clients = dict(sorted((benign | {name: copy}).items()))
    found = {v.client: v for v in judged(clients).verdicts}
    assert {c for c, v in found.items() if v.verdict == "contaminated"} == {name}
    assert found["client-04"].verdict == "suspicious"
    assert [r.code for r in found["client-04"].reasons] == ["CLR205"]
    assert "CLR202" in {r.code for r in found[name].reasons}


@pytest.mark.parametrize("size", [0.001, 0.01])
def test_a_majority_of_jittered_copies_counts_once(benign: Clients, size: float) -> None:
    evil = noise(benign["client-01"], 5)
    gang = {f"x{i}": jittered(evil, i, size) for i in range(5)}
    found = judged(chosen(benign, 4) | gang)
    said = {v.client: v.verdict for v in found.verdicts}
    assert found.identified
    assert {c for c, v in said.items() if v == "contaminated"} == set(gang)
    assert all("CLR205" in {r.code for r in v.reasons} for v in found.verdicts[4:])
    assert found.consensus.sum() == 4
