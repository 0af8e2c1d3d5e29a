"""Few clients, copies, and strangers: no confident answer where there is no majority to stand on."""

from __future__ import annotations

import pytest
import torch

from clair_cli.stack import LowRankUpdate
from tests.test_judge import Client, Clients, benign, judged, noise, scaled

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
