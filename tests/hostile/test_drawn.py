"""Clients drawn at random, honest to hostile: only the errors clair means to raise leave the readers.

The draws and the oracle are those of fuzz/, which runs them for as long as asked (`make fuzz`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clair_cli import formats
from clair_cli.errors import AdapterError, ClairError, NoAdapter
from clair_cli.formats.files import shown
from clair_cli.pipeline import detect
from clair_cli.renderers import RENDERERS
from clair_cli.settings import Settings
from fuzz import clients, run, targets
from fuzz.clients import CONFIG, WEIGHTS, ByteDraw
from tests.helpers.cohorts import module, save_cohort, save_dense
from tests.helpers.commands import change_config

CHOICES = st.binary(min_size=4, max_size=160)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(clients.VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def budget(count: int) -> Any:
    """The same examples in every run, however long one takes."""
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# --- one client


@budget(700)
@given(CHOICES)
def test_a_client_of_any_format_is_read_or_refused_and_what_is_read_can_be_written(
    data: bytes,
) -> None:
    targets.client(data)


@budget(250)
@given(CHOICES)
def test_a_zip_of_arrays_is_read_or_refused(data: bytes) -> None:
    draw = ByteDraw(data)
    targets.npz(clients.damaged(draw, clients.npz(draw, clients.tensors(draw)[1])))


NAMES = st.sampled_from([f"{m}.{r}" for m in clients.MODULES[:5] for r in clients.ROLES])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(clients.DTYPES) | JSON,
        "shape": st.lists(st.sampled_from(clients.NUMBERS), max_size=4) | JSON,
        "data_offsets": st.lists(st.sampled_from(clients.NUMBERS), min_size=2, max_size=2) | JSON,
    },
    optional={"x": JSON},
)


@budget(250)
@given(
    st.dictionaries(
        NAMES | st.just("__metadata__") | st.text(max_size=4), ENTRIES | JSON, max_size=4
    ),
    st.integers(-3, 3),
    st.sampled_from([0, 1, 8, 64, 128]),
)
def test_a_header_of_any_json_is_read_or_refused(head: Any, off: int, size: int) -> None:
    text = json.dumps(head).encode()
    targets.header(max(len(text) + off, 0).to_bytes(8, "little") + text + clients.NOISE[:size])


@budget(200)
@given(
    st.sampled_from(clients.KINDS),
    st.dictionaries(st.sampled_from(clients.FIELDS), JSON, max_size=5),
    st.sampled_from(list(clients.FAMILIES)),
)
def test_a_config_of_any_json_is_read_or_refused(kind: Any, fields: Any, family: str) -> None:
    number = list(clients.FAMILIES).index(family)
    made = clients.files(ByteDraw(bytes([0, number])))
    honest = json.loads(made[CONFIG]) | {"peft_type": kind}
    made[CONFIG] = json.dumps(honest | fields).encode()
    with targets.scratch() as folder:
        targets.look(clients.write(folder / "c", made))


SIDE = st.lists(st.integers(0, 7), min_size=0, max_size=3)


@budget(250)
@given(SIDE, SIDE)
@example([2, 4], [6, 2])
def test_of_two_dimensional_factors_those_that_fit_are_read(down: list[int], up: list[int]) -> None:
    """A (r, d_in) and B (d_out, r): all four at least 1, and both ranks one."""
    found = {}
    for name, shape in (("lora_A", down), ("lora_B", up)):
        data = clients.NOISE[: 4 * int(np.prod(shape))]
        found[f"base_model.model.q_proj.{name}.weight"] = ("F32", shape, data)
    made = {WEIGHTS: clients.safetensors(ByteDraw(b""), found)}
    rank = down[0] if down else 1
    made[CONFIG] = json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 4}).encode()
    with targets.scratch() as folder:
        adapter = targets.look(clients.write(folder / "c", made))
    fits = len(down) == len(up) == 2 and 0 not in (*down, *up) and down[0] == up[1]
    if len(down) <= 2 and len(up) <= 2:
        assert (adapter is not None) == fits
    if fits:
        assert adapter is not None
        spec = adapter.updates["q_proj"]
        assert (spec.d_out, spec.d_in, spec.rank) == (up[0], down[1], down[0])


@budget(250)
@given(CHOICES)
def test_a_saved_report_is_refused_or_shown_harmlessly(data: bytes) -> None:
    targets.report(data)


# --- whole folders

SEGMENTS = (
    *("client-1", "c", WEIGHTS, CONFIG, "checkpoint-3", "checkpoint-99999999999999999999", "rep-1"),
    *("snapshots", "refs", "blobs", "main", "default", ".hidden", "README.md", "x.safetensors"),
    *("x.npz", "x.bin", "x.pt", "manifest.json", "report.json", "global", "-rf", "con", "..."),
    *("\x1b[31m", "a\nb", "\u202ex", "é", "e\u0301", "n" * 200, "\udcff", "[/bold]", " ", "~"),
)
KINDS = ("honest", "empty", "text", "link up", "link to itself", "link away", "fifo", "folder")


def grow(top: Path, tree: list[tuple[list[str], str]]) -> None:
    """Files, folders, links and pipes below `top`; what does not fit is left out."""
    for segments, kind in tree:
        path = top.joinpath(*segments)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                path.mkdir()
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind.startswith("link"):
                path.symlink_to(
                    {"up": "..", "itself": path.name, "away": "/dev/zero"}[kind.split()[-1]]
                )
            else:
                honest = targets.HONEST.get(path.name, targets.HONEST[WEIGHTS])
                path.write_bytes({"honest": honest, "empty": b"", "text": b"hello"}[kind])
        except OSError:
            continue


TREES = st.lists(
    st.tuples(st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3), st.sampled_from(KINDS)),
    min_size=1,
    max_size=6,
)


@budget(200)
@given(TREES)
def test_every_client_of_any_tree_is_opened_or_refused_and_none_is_lost(tree: Any) -> None:
    with targets.scratch() as top:
        grow(top / "round", tree)
        (top / "round").mkdir(exist_ok=True)
        try:
            sources = formats.discover(top / "round")
        except ClairError as error:
            targets.refused(error)
            return
        assert len({s.client for s in sources}) == len(sources)
        for source in sources:
            assert source.path.parent == top / "round"
            targets.look(source.path)
            targets.look(source.path, targets.AS_UPDATE)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "round"
    save_cohort(folder, 3)
    return folder


@budget(40)
@given(tree=TREES, data=CHOICES)
def test_among_honest_clients_any_others_end_in_a_report_that_accounts_for_all(
    honest: Path, tree: Any, data: bytes
) -> None:
    with targets.scratch() as top:
        for client in sorted(honest.iterdir()):
            (top / client.name).symlink_to(client)
        clients.write(top / "drawn", clients.files(ByteDraw(data)))
        grow(
            top,
            [(s, k) for s, k in tree if s[0] not in (WEIGHTS, "blobs", "snapshots", "client-1")],
        )
        report = detect(top, Settings(follow_symlinks=True, max_file_bytes=2**24))
        names = {c.client for c in report.clients}
        no_clients = [f.message for f in report.population.findings if f.code == NoAdapter.code]
        entries = {s.client for s in formats.discover(top)}
        assert names <= entries
        told_apart = [
            any(m.startswith(f"{shown(e)}: ") for m in no_clients) for e in entries - names
        ]
        assert sum(told_apart) == len(told_apart) == len(no_clients)
        assert names >= {"client-2", "client-3", "drawn"}
        for render in RENDERERS.values():
            assert targets.clean(render(report))


# --- what the fuzzer found


@pytest.mark.parametrize(
    "found",
    [
        "170bffff00000000000000ff00001600fff7ff",  # an .npz with a dtype that safetensors has not
        "17fcfcfcfcfcfcfcfcfcfcfcfcfcfcfdfcfcfcfcfc0e5a27cf4f06cf",
        "000800000012000000",  # AdaLoRA with an update of no rows
    ],
)
def test_what_broke_a_reader_or_writer_once_does_not_again(found: str) -> None:
    targets.client(bytes.fromhex(found))


def test_norms_that_are_finite_one_by_one_are_shown_in_one_sum(tmp_path: Path) -> None:
    client = save_dense(tmp_path / "c", np.ones((2, 3, 3)))
    change_config(client, lora_alpha=1e200)  # whose square is beyond float64
    assert formats.norm(formats.open_adapter(client), module(0)) > 1e199
    assert targets.look(tmp_path / "c") is not None


# --- the draws themselves


def test_the_draws_reach_every_format_and_are_refused_for_every_reason() -> None:
    """Else nothing would be tested above: an honest one of each family, and 400 random ones."""
    draw = np.random.default_rng(0)
    data = targets.seeds("client") + [draw.bytes(n) for n in draw.integers(4, 160, 400)]
    found: Counter[str] = Counter()
    with targets.scratch() as folder:
        for number, choices in enumerate(data):
            path = clients.write(folder / str(number), clients.files(ByteDraw(choices)))
            try:
                found[formats.open_adapter(path, targets.LIMITS).format] += 1
            except AdapterError as error:
                found[error.code] += 1
    codes = {f"CLR{n}" for n in (101, 102, 104, 105, 108, 109)}
    assert found.keys() >= codes | {name for name, form in formats.FORMATS.items() if form.factored}
    assert found["peft"] > 20


def test_the_oracle_sees_what_it_looks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def explodes(*_: Any) -> None:
        raise KeyError("x")

    targets.client(b"")
    monkeypatch.setattr(formats, "norm", explodes)
    with pytest.raises(KeyError):
        targets.client(b"")
    assert not targets.clean("\x1b[31m")
    assert not targets.clean("a\u202eb")
    assert targets.clean("a b\n")


FUZZ = """
    import runpy, sys
    import clair_cli.formats.safetensors_file as reader
    def read(*arguments):
        raise KeyError("found")
    if {broken}:
        reader.read_contents = read
    sys.argv = ["run", "--inside", "--target", "header", "--seconds", "1", "--engine", {engine!r}]
    runpy.run_module("fuzz.run", run_name="__main__")
"""


@pytest.mark.parametrize(("engine", "broken"), [("plain", False), ("plain", True), ("auto", True)])
def test_the_fuzzer_runs_and_keeps_what_it_finds(engine: str, broken: bool, tmp_path: Path) -> None:
    """A process of its own, in which every header may end in an exception."""
    env = os.environ | {"PYTHONPATH": str(Path(run.__file__).parents[1])}
    code = textwrap.dedent(FUZZ.format(engine=engine, broken=broken))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True)
    assert (done.returncode != 0) == broken, done.stderr.decode()[-2000:]
    assert bool(list(tmp_path.glob("build/fuzz/header-crash*"))) == broken
