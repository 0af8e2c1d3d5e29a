"""Sketches keep what clients have in common, and add nothing of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clair_cli.detection import agreement
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.kernels import Kernels
from clair_cli.detection.sketches import ROOM, SIZES, STEP, sketch_size, sketched
from clair_cli.detection.stacks import ModuleStack, stack_module, tables
from clair_cli.detection.tables import Tables
from clair_cli.update import LowRankUpdate

SIZE = 64


def strangers(clients: int, rank: int = 4, d: int = 640) -> list[LowRankUpdate]:
    draw = torch.Generator().manual_seed(7)
    return [
        LowRankUpdate(
            torch.randn(d, rank, generator=draw), torch.randn(rank, d, generator=draw), 1 + k / 9
        )
        for k in range(clients)
    ]


def kernels_of(stack: ModuleStack) -> Kernels:
    names = tuple(map(str, range(stack.clients)))
    inner, overlap, d_out, d_in = tables([stack])
    members = np.ones(stack.clients, bool)
    return Kernels(Tables(names, ("m",), inner, overlap, d_out, d_in, members, names), DETECTION)


def test_the_projection_is_of_equal_buckets() -> None:
    """Else what is large in all of them would be common to all clients."""
    whole = LowRankUpdate(torch.eye(640), torch.eye(640))
    left = sketched(whole, SIZE, seed=0).left
    torch.testing.assert_close(left @ left.T, 10 * torch.eye(SIZE))
    assert left.abs().sum(dim=0).tolist() == [1.0] * 640


@pytest.mark.parametrize("d", [1, 5, 37, 64])
def test_where_nothing_is_projected_all_tables_are_exact(d: int) -> None:
    """Strips of rows are of any number, down to one."""
    clients = [LowRankUpdate(u.up.double(), u.down.double(), u.scale) for u in strangers(9, 4, d)]
    exact = stack_module("m", clients, max_columns=10**6)
    found = stack_module("m", clients, max_columns=0, size=SIZE)
    assert found.sketched
    for name in ("inner", "overlap", "rows", "energies"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name))


@pytest.mark.parametrize("seed", range(4))
def test_strangers_stay_strangers(seed: int) -> None:
    """By far more pairs than one can see: their mean agreement is chance, and so are their cosines."""
    stack = stack_module("m", strangers(60), max_columns=20, seed=seed, size=SIZE)
    assert stack.sketched
    assert stack.shape == (SIZE, SIZE)
    beside = ~np.eye(60, dtype=bool)
    found = kernels_of(stack)
    assert abs(found.kernel[beside].mean()) < 3 * agreement.chance_deviation(np.array([SIZE])) / 60
    chance, cosine = found.chances.values[beside].mean(), found.direction[beside]
    assert np.sqrt((cosine**2).mean()) == pytest.approx(chance, rel=0.15)


def test_a_copy_is_a_copy_and_an_opposite_is_one() -> None:
    clients = strangers(10)
    clients[3] = clients[2]
    clients[4] = LowRankUpdate(-clients[2].up, clients[2].down, 5.0)
    stack = stack_module("m", clients, max_columns=20, size=SIZE)
    cosine = agreement.cosines(stack.inner.numpy()[None])[0]
    assert cosine[2, 3] == pytest.approx(1, abs=1e-6)
    assert cosine[2, 4] == pytest.approx(-1, abs=1e-6)
    assert float(stack.rows[2, 3]) == pytest.approx(1, abs=1e-5)


def test_inner_products_are_off_by_as_much_as_is_said() -> None:
    common = strangers(1, rank=8)[0]
    clients = [
        LowRankUpdate(
            torch.cat([common.up, own.up], dim=1), torch.cat([common.down, own.down]), own.scale
        )
        for own in strangers(30)
    ]
    exact = stack_module("m", clients, max_columns=10**6)
    stack = stack_module("m", clients, max_columns=20, size=SIZE)
    size = exact.energies.sqrt()
    off = ((stack.inner - exact.inner) / size[:, None] / size)[~torch.eye(30, dtype=torch.bool)]
    assert 0.01 < stack.error < 0.3
    assert float(off.square().mean().sqrt()) < 2 * stack.error


@pytest.mark.parametrize("clients", [1, 20, 100, 300, 1000, 10_000, 10**6])
def test_the_work_of_all_pairs_grows_with_the_clients_alone(clients: int) -> None:
    size = sketch_size(clients, (4096, 4096))
    assert size in SIZES
    assert size == SIZES[0] or clients * size**2 <= 2 * ROOM
    assert size == SIZES[-1] or clients * (size + STEP) ** 2 > ROOM
    assert sketch_size(clients, (2, 3)) == (3 if clients * 6 <= ROOM else SIZES[0])


def test_one_client_more_changes_the_size_at_four_numbers_of_clients() -> None:
    sizes = [sketch_size(clients, (4096, 4096)) for clients in range(1, 10_000)]
    changes = [k + 2 for k in range(len(sizes) - 1) if sizes[k] != sizes[k + 1]]
    assert changes == [105, 227, 388, 810]
    assert sizes[103:105] == [256, 192]
