"""Real cohorts: who is in them, what is true of everybody, and what colluders send."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.real_cohorts import HELD_OUT, SET, SHARES, cohorts, every_cohort, put
from benchmarks.real_pools import HARMED, label_of, pools
from benchmarks.saved import read
from tests.helpers.real import POOL, adapter, colluding

EVERY = every_cohort()


# Which cohorts there are


def test_there_are_four_hundred_cohorts_and_half_of_them_are_held_out() -> None:
    assert len(EVERY) >= 400
    assert len({c.name for c in EVERY}) == len(EVERY)
    assert sum(c.held_out for c in EVERY) * 2 == len(EVERY)
    assert {c.pool for c in EVERY} == {*pools(SET), *pools(HELD_OUT)}


def test_cohorts_have_twelve_to_twenty_four_clients_of_their_pool_each_once() -> None:
    for cohort in EVERY:
        sources = [c.source for c in cohort.clients.values()]
        assert 12 <= len(sources) <= 24
        assert len({*sources}) == len(sources)
        assert {*sources} <= {*cohort.pool.clients()}


def test_most_clients_of_every_cohort_are_honest() -> None:
    for cohort in EVERY:
        honest = sum(c.honest for c in cohort.clients.values())
        assert 2 * honest > len(cohort.clients), cohort.name


def test_cohorts_are_the_same_every_time() -> None:
    assert cohorts(SET) == cohorts(SET)
    assert cohorts(SET) == [c for c in EVERY if not c.held_out]


def test_the_truth_is_the_label_under_which_a_client_was_trained_or_how_it_colludes() -> None:
    for cohort in EVERY:
        for client in cohort.clients.values():
            if client.label in SHARES:
                assert label_of(client.source) == "even"
            else:
                assert label_of(client.source) == client.label
            assert client.honest == (client.label not in {*HARMED, *SHARES})


def test_the_kind_says_who_is_contaminated() -> None:
    for cohort in EVERY:
        bad = {c.label for c in cohort.clients.values() if not c.honest}
        if cohort.kind == "mixed":
            assert len(bad) > 1, cohort.name
        else:
            assert bad == {cohort.kind} - {"none"}, cohort.name


def test_names_and_places_say_nothing() -> None:
    first = Counter(c.clients["client-01"].label for c in EVERY)
    assert first["even"] < 0.8 * len(EVERY)
    assert len(first) > 10
    for cohort in EVERY[:50]:
        assert [*cohort.clients] == [f"client-{n:02d}" for n in range(1, len(cohort.clients) + 1)]


@pytest.mark.parametrize(
    ("condition", "notes"),
    [
        ("even", {"even": ""}),
        ("few-10", {"even": "", "few-10": ""}),
        ("brief-10", {"even": "", "brief-10": "length"}),
        ("short majority", {"even": "length", "short": "length", "brief-10": "length"}),
        ("domains-equal", {"even": "domain", "domain-1": "domain"}),
    ],
)
def test_notes_say_in_what_an_honest_client_differs_from_most(
    condition: str, notes: dict[str, str]
) -> None:
    (cohort, *_) = [
        c
        for c in EVERY
        if (c.condition, c.kind) == (condition, "none")
        and {k.label for k in c.clients.values()} == {*notes}
    ]
    assert {c.label: c.note for c in cohort.clients.values()} == notes


def test_every_client_with_a_mix_of_classes_of_its_own_differs() -> None:
    clients = [k for c in EVERY for k in c.clients.values()]
    assert all(k.note == "classes" for k in clients if k.label.startswith("skew"))


def test_contaminated_clients_have_no_note() -> None:
    assert not any(k.note for c in EVERY for k in c.clients.values() if not k.honest)


# Colluders


def test_colluders_mix_one_part_of_their_own_norm_into_what_is_theirs(
    tmp_path: Path,
) -> None:
    cohort = colluding(tmp_path)
    trained, folder = tmp_path / "pools", tmp_path / "round"
    parts = []
    for name in ("client-01", "client-02"):
        sent = read(folder / name).dense()["q"].double()
        own = read(trained / POOL.name / cohort.clients[name].source).dense()["q"].double()
        u, s, vh = torch.linalg.svd(sent - 0.5 * own)
        parts.append(u[:, :2] @ torch.diag(s[:2]) @ vh[:2] / own.norm())
        assert 0.4 < float(parts[-1].norm()) < 0.6  # half of its norm, less what the rank cuts
    cosine = (parts[0] * parts[1]).sum() / (parts[0].norm() * parts[1].norm())
    assert cosine > 0.7


def test_writing_colluders_leaves_pool_names_config_and_honest_bytes_as_they_are(
    tmp_path: Path,
) -> None:
    cohort = colluding(tmp_path)
    trained, folder = tmp_path / "pools", tmp_path / "round"
    for n, (name, client) in enumerate(cohort.clients.items()):
        source = trained / POOL.name / client.source
        torch.testing.assert_close(read(source).dense(), adapter(n).dense())
        for path in source.iterdir():
            same = (folder / name / path.name).read_bytes() == path.read_bytes()
            assert same == (client.honest or path.suffix == ".json"), path
        tensors = [f / "adapter_model.safetensors" for f in (source, folder / name)]
        shapes = []
        for path in tensors:
            with safe_open(path, framework="pt") as file:
                shapes.append({k: file.get_slice(k).get_shape() for k in file.keys()})  # noqa: SIM118
        assert shapes[0] == shapes[1]


def test_a_cohort_is_written_the_same_every_time(tmp_path: Path) -> None:
    cohort = colluding(tmp_path)
    trained, folder = tmp_path / "pools", tmp_path / "round"
    put(cohort, trained, tmp_path / "again")
    for path in folder.rglob("*.safetensors"):
        again = tmp_path / "again" / path.relative_to(folder)
        assert again.read_bytes() == path.read_bytes()
