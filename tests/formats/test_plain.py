"""Plain matrices: which tensors are updates, where the file lies, what the base must be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clair_cli.cohort import Adapter, Entries, align
from clair_cli.errors import (
    AdapterError,
    LimitExceeded,
    NoAdapter,
    OtherBase,
    PickleFound,
    ShapeMismatch,
    Unreadable,
    UnsafePath,
    Unsupported,
    UsageError,
)
from clair_cli.formats import discover, open_adapter, read_update
from clair_cli.settings import Settings
from tests.helpers.plain import SUFFIXES, save, tensors

UPDATE = Settings(read_as="update")


def with_base(path: Path, **more: Any) -> Settings:
    return Settings(read_as="weights", base=path, **more)


def dense(adapter: Adapter, module: str) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = read_update(adapter, module, "float64").dense().numpy()
    return found


def apart(found: list[Adapter], same: bool = False) -> list[tuple[str, str]]:
    """Who cannot be compared with the others, and by which code."""
    return [(b.client, b.reason.code) for b in align(Entries(tuple(found)), same=same).broken]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_matrices_of_floats_are_the_updates_and_other_floats_are_full_matrices(
    suffix: str, tmp_path: Path
) -> None:
    adapter = open_adapter(save(tmp_path / f"c{suffix}", tensors()), UPDATE)
    assert adapter.client == "c"
    assert set(adapter.updates) == {"in", "out"}
    spec = adapter.updates["in"]
    assert (spec.d_out, spec.d_in, spec.rank, spec.scale, spec.dtype) == (6, 5, 5, 1.0, "F32")
    np.testing.assert_allclose(dense(adapter, "in"), tensors()["in.weight"], rtol=1e-12, atol=1e-12)
    assert {name: s.shape for name, s in adapter.full.items()} == {
        "in.bias": (6,),
        "kernel": (2, 2, 3),
    }
    assert adapter.notes == ()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stored", ["f2", "f4"])
def test_weights_minus_base_is_exact(suffix: str, stored: str, tmp_path: Path) -> None:
    state, other = tensors(1, stored), tensors(2, "f4")
    other["in.weight"] = (state["in.weight"] * (1 + 2.0**-9)).astype("f4")  # all but cancels
    base = save(tmp_path / f"base{suffix}", other)
    adapter = open_adapter(save(tmp_path / "round" / f"c{suffix}", state), with_base(base))
    for module in ("in", "out"):
        key = f"{module}.weight"
        wanted = state[key].astype("f8") - other[key].astype("f8")
        assert np.abs(wanted).max() > 0
        np.testing.assert_allclose(dense(adapter, module), wanted, rtol=1e-13, atol=1e-15)


def test_a_client_that_equals_the_base_is_a_zero_update(tmp_path: Path) -> None:
    base = save(tmp_path / "base.npz", tensors())
    adapter = open_adapter(save(tmp_path / "c.safetensors", tensors()), with_base(base))
    assert {m: float(np.abs(dense(adapter, m)).max()) for m in adapter.updates} == {
        "in": 0,
        "out": 0,
    }


def test_bfloat16_weights_are_read_with_any_base(tmp_path: Path) -> None:
    state = {"w": torch.randn(4, 3).bfloat16()}
    save_file(state, tmp_path / "c.safetensors")
    base = save(tmp_path / "base.npz", {"w": np.ones((4, 3), "f8")})
    found = read_update(open_adapter(tmp_path / "c.safetensors", with_base(base)), "w", "float64")
    assert torch.equal(found.dense(), state["w"].double() - 1)


def test_names_that_would_meet_keep_their_endings(tmp_path: Path) -> None:
    both = {"a": np.eye(2), "a.weight": np.eye(2), "b.weight": np.eye(2)}
    adapter = open_adapter(save(tmp_path / "c.npz", both), UPDATE)
    assert set(adapter.updates) == set(both)


def test_equal_files_have_equal_digests_and_others_not(tmp_path: Path) -> None:
    bases = [save(tmp_path / f"base{k}.npz", tensors(k)) for k in (5, 6)]
    first, twin, other = (
        save(tmp_path / f"{name}.npz", tensors(seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    digests = [open_adapter(p, UPDATE).digest for p in (first, twin, other)]
    digests += [open_adapter(first, with_base(base)).digest for base in bases]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


# --- where the file lies


def test_files_and_folders_with_one_file_are_clients(tmp_path: Path) -> None:
    save(tmp_path / "c-10.npz", tensors())
    save(tmp_path / "c-2.safetensors", tensors())
    save(tmp_path / "c-1" / "model.safetensors", tensors())
    for name in ("config.json", "README.md", "optimizer.npz"):
        (tmp_path / "c-1" / name).write_bytes(b"x")
    (tmp_path / "c-1" / "rep-1").mkdir()
    found = discover(tmp_path)
    assert [s.client for s in found] == ["c-1", "c-2", "c-10"]
    for source in found:
        adapter = open_adapter(source.path, UPDATE, source.client, source.root)
        assert set(adapter.updates) == {"in", "out"}


def folder_of(*names: str) -> Any:
    def make(root: Path) -> Path:
        for name in names:
            save(root / "c" / name, tensors()) if name.endswith(SUFFIXES) else (
                (root / "c").mkdir(exist_ok=True),
                (root / "c" / name).write_bytes(b"\x80\x04x"),
            )
        return root / "c"

    return make


def empty(root: Path) -> Path:
    (root / "c").mkdir()
    return root / "c"


def linked(root: Path) -> Path:
    (root / "c").mkdir()
    (root / "c" / "w.npz").symlink_to(save(root.parent / "elsewhere.npz", tensors()))
    return root / "c"


def file_of(name: str, **arrays: Any) -> Any:
    return lambda root: save(root / name, arrays)


def raw(name: str) -> Any:
    def make(root: Path) -> Path:
        (root / name).write_bytes(b"x" * 100)
        return root / name

    return make


NO_CLIENT: dict[str, tuple[Any, type[AdapterError], str]] = {
    "empty folder": (empty, NoAdapter, "expected a .safetensors or .npz file"),
    "two files": (folder_of("a.npz", "b.safetensors"), Unreadable, "2 files .*expected one"),
    "pickle only": (folder_of("model.pt"), PickleFound, "not opened"),
    "flat pickle": (raw("c.pkl"), PickleFound, "not opened"),
    "text": (raw("c.dat"), Unsupported, "not a .safetensors or .npz file"),
    "link outside": (linked, UnsafePath, "--follow-symlinks"),
    "no matrix": (
        file_of("c.npz", a=np.ones(3), n=np.eye(2, dtype=int)),
        Unsupported,
        "none of its 2",
    ),
    "no row": (file_of("c.npz", a=np.ones((0, 3))), Unsupported, "none of its 1"),
    "no tensor": (file_of("c.npz"), Unsupported, "none of its 0"),
    "too wide": (file_of("c.npz", a=np.ones((1, 2**20 + 1), "f2")), LimitExceeded, "limit is"),
}


@pytest.mark.parametrize("name", NO_CLIENT)
def test_what_is_no_client_says_why(name: str, tmp_path: Path) -> None:
    make, kind, words = NO_CLIENT[name]
    (tmp_path / "round").mkdir()
    path = make(tmp_path / "round")
    with pytest.raises(AdapterError, match=words) as caught:
        open_adapter(path, UPDATE, "c", tmp_path / "round")
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_pickle_beside_is_a_note(tmp_path: Path) -> None:
    adapter = open_adapter(folder_of("a.npz", "a.pt")(tmp_path), UPDATE)
    assert [n.code for n in adapter.notes] == ["CLR109"]


def test_plain_matrices_are_no_lora_and_the_error_says_how_to_read_them(tmp_path: Path) -> None:
    for name in ("c.npz", "adapter_model.safetensors"):
        with pytest.raises(Unsupported, match="--as update or --base"):
            open_adapter(save(tmp_path / name, tensors()), Settings(alpha=1.0))


# --- the base


BAD_BASES: dict[str, tuple[Any, str]] = {
    "pickle": (raw("base.pt"), "not a .safetensors or .npz file"),
    "damaged": (raw("base.npz"), "no zip directory"),
    "text": (raw("base.safetensors"), "past the end of the file"),
    "no floats": (file_of("base.npz", **{"in.weight": np.ones((6, 5), int)}), "floating point"),
}


@pytest.mark.parametrize("name", BAD_BASES)
def test_a_base_that_cannot_be_used_is_a_usage_error(name: str, tmp_path: Path) -> None:
    make, words = BAD_BASES[name]
    base = make(tmp_path)
    client = save(tmp_path / "round" / "c.npz", tensors())
    with pytest.raises(UsageError, match=words) as caught:
        open_adapter(client, with_base(base))
    assert str(caught.value).startswith(f"--base {base.name}: ")
    assert str(caught.value).count("--base") == 1


def test_a_base_with_nan_or_changed_meanwhile_is_a_usage_error(tmp_path: Path) -> None:
    client = save(tmp_path / "round" / "c.npz", tensors())
    spoiled = tensors(4)
    spoiled["in.weight"][0, 0] = np.nan
    adapter = open_adapter(client, with_base(save(tmp_path / "base.npz", spoiled)))
    with pytest.raises(UsageError, match=r"'in\.weight' holds NaN"):
        read_update(adapter, "in")
    save(tmp_path / "base.npz", tensors(5))
    with pytest.raises(UsageError, match="changed while being read"):
        read_update(adapter, "out")


def test_the_base_is_no_client(tmp_path: Path) -> None:
    base = save(tmp_path / "base.npz", tensors())
    save(tmp_path / "c.npz", tensors(1))
    with pytest.raises(UsageError, match="move it out"):
        [open_adapter(s.path, with_base(base), s.client, s.root) for s in discover(tmp_path)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"read_as": "weights"}, "^base: whole weights"),
        ({"base": Path(__file__)}, "^base: is for reading weights, not for lora"),
        ({"base": Path(__file__), "read_as": "update"}, "weights, not for update"),
        ({"read_as": "full"}, "^read_as: expected lora or update or weights"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Settings(**settings)


def test_a_base_that_is_not_there_is_the_users_error(tmp_path: Path) -> None:
    save(tmp_path / "c.npz", tensors())
    with pytest.raises(UsageError, match=r"--base nowhere: cannot be read: No such file"):
        open_adapter(tmp_path / "c.npz", with_base(tmp_path / "nowhere"))


# --- clients that do not match


def cohort(tmp_path: Path, **odd: Any) -> tuple[list[Adapter], list[str]]:
    """Three clients of one base and one with other tensors; and the notes of the odd one."""
    settings = with_base(save(tmp_path / "base.npz", tensors(9)))
    states = [tensors(k) for k in range(3)] + [odd]
    paths = [save(tmp_path / "round" / f"c{k}.npz", s) for k, s in enumerate(states)]
    found = [open_adapter(p, settings) for p in paths]
    return found, [n.message for n in found[-1].notes if "kernel" not in n.message]


def test_a_matrix_missing_or_extra_is_a_difference_of_modules(tmp_path: Path) -> None:
    state = tensors(4)
    less = {k: v for k, v in state.items() if k != "out.weight"}
    found, _ = cohort(tmp_path / "less", **less)
    assert align(Entries(tuple(found))).modules == ("in",)
    assert [(b.client, b.reason.code) for b in align(Entries(tuple(found)), same=True).broken] == [
        ("c3", "CLR107")
    ]
    found, said = cohort(tmp_path / "more", **state, head=np.eye(4))
    assert align(Entries(tuple(found))).modules == ("in", "out")
    assert [(b.client, b.reason.code) for b in align(Entries(tuple(found)), same=True).broken] == [
        ("c3", "CLR107")
    ]
    assert said == ["not in the base, so that the whole tensor counts as the update: 'head'"]
    np.testing.assert_array_equal(dense(found[-1], "head"), np.eye(4))


def test_another_shape_than_the_base_is_another_model(tmp_path: Path) -> None:
    with pytest.raises(ShapeMismatch, match=r"'out\.weight' is 3 x 7, in the base"):
        cohort(tmp_path, **tensors(4) | {"out.weight": np.ones((3, 7), "f4")})


def test_another_shape_than_the_others_is_set_aside(tmp_path: Path) -> None:
    states = [tensors(k) for k in range(3)]
    states[1] |= {"out.weight": np.ones((3, 7), "f4")}
    found = [open_adapter(save(tmp_path / f"c{k}.npz", s), UPDATE) for k, s in enumerate(states)]
    assert apart(found) == [("c1", "CLR104")]


def test_reading_headers_and_norms_needs_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "c.npz", tensors())
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from clair_cli.inspection import inspect\nfrom clair_cli.settings import Settings\n"
        f"print(inspect(Path({str(path)!r}), Settings(read_as='update')).modules[0].norm)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert float(done.stdout) == pytest.approx(float(np.linalg.norm(tensors()["in.weight"])))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_base_that_has_less_than_half_of_the_matrices_is_another_base(
    suffix: str, tmp_path: Path
) -> None:
    state = {f"m{k}": np.full((3, 2), k + 1.0) for k in range(4)}
    client = save(tmp_path / f"client{suffix}", state)
    for known, fine in ((2, True), (1, False), (0, False)):
        base = {f"m{k}": np.ones((3, 2)) for k in range(known)} | {"other": np.ones((3, 2))}
        settings = Settings(
            read_as="weights", base=save(tmp_path / f"{known}" / f"base{suffix}", base)
        )
        if fine:
            assert len(open_adapter(client, settings).updates) == 4
            continue
        with pytest.raises(OtherBase, match=f"the base has {known} of its 4 matrices; give"):
            open_adapter(client, settings)
    assert OtherBase.code == "CLR106"


@pytest.mark.parametrize("key", ["m.lora_A.weight", "m.lora_B", "m.lora_down.weight"])
def test_a_factor_is_no_update(key: str, tmp_path: Path) -> None:
    client = save(tmp_path / "client.safetensors", {key: np.ones((3, 2)), "w": np.ones((3, 2))})
    with pytest.raises(Unsupported, match=r"is a factor of an update.+without --as"):
        open_adapter(client, Settings(read_as="update"))
