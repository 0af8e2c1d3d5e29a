"""`clair refine` as a user runs it: what its options do shows in the files and in the report."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clair_cli import open_adapter, read_update
from clair_cli.output.publish import verify
from tests.helpers import plain
from tests.helpers.adapters import PREFIX, tiny_llama, write_folder
from tests.helpers.cohorts import SHAPE, Array, drawn, module, save_cohort, save_dense, truths
from tests.helpers.commands import CONFIG, WEIGHTS, quick, split_weights, verdicts
from tests.helpers.reference import shrunk

BENIGN = [f"client-{k}" for k in range(1, 7)]
COPIES, STRANGER = ["client-7", "client-8"], "client-9"
SIX = [o for c in COPIES for o in ("--exclude", c)]
"""Options with which those above alone are refined."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six honest clients, two that are one, and one that has nothing to do with them."""
    folder = tmp_path_factory.mktemp("cohort") / "round"
    save_cohort(folder, 9, strangers=1, copies=2)
    return folder


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six honest clients with two replicates each; half of what they differ by is error."""
    folder = tmp_path_factory.mktemp("repeated") / "round"
    for k, (client, truth) in enumerate(zip(BENIGN, truths(6), strict=True)):
        places = [folder / client, folder / client / "rep-1", folder / client / "rep-2"]
        for i, place in enumerate(places):
            save_dense(place, truth + 0.6 * drawn(100 + 10 * k + i, 2, *SHAPE))
    return folder


def refine(
    folder: Path, out: Path, *options: object
) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """`clair refine`: the report that lies in `out`, and the finished process."""
    done = quick(out.parent, "refine", folder, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert verify(out) == []
    return json.loads((out / "report.json").read_text()), done


def refused(folder: Path, out: Path, *options: object) -> str:
    """What is said to options that cannot be used; nothing may be written."""
    done = quick(out.parent, "refine", folder, "--out", out, *options)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert not out.exists()
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    return done.stderr


def dense(folder: Path) -> Array:
    """The updates of all modules, which have one shape."""
    return np.stack([dense_of(folder, m) for m in sorted(open_adapter(folder).updates)])


def dense_of(folder: Path, name: str) -> Array:
    return np.asarray(read_update(open_adapter(folder), name, "float64").dense().numpy())


def entries(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {c["id"]: c for c in report["refinement"]["clients"]}


def data(file: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Per tensor dtype, shape and bytes."""
    header, content = split_weights(file)
    return {
        k: (t["dtype"], t["shape"], content[slice(*t["data_offsets"])])
        for k, t in header.items()
        if k != "__metadata__"
    }


def weights_of(report: dict[str, Any]) -> dict[str, float]:
    """What every client that counts in the mean counts for, once."""
    return {c["id"]: c["weight"] for c in report["refinement"]["clients"] if c["weight"]}


def mean_of(report: dict[str, Any], folder: Path) -> Array:
    """The mean that the report's weights make of the adapters in `folder`."""
    weights = weights_of(report)
    assert sum(weights.values()) == pytest.approx(1)
    return np.asarray(sum(w * dense(folder / c) for c, w in weights.items()))


def near(found: Array, wanted: Array, share: float = 1e-6) -> bool:
    return bool(np.linalg.norm(found - wanted) <= share * np.linalg.norm(wanted))


# --- a path of strengths


def test_a_path_writes_a_folder_per_strength_and_lists_it(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report, done = refine(cohort, out, "--path", "0,0.25, auto", "--global", *SIX)
    listed = {c["path"]: c for c in report["refinement"]["clients"]}
    folders = ("strength-0", "strength-0.25", "strength-auto")
    assert set(listed) == {f"{f}/{c}" for f in folders for c in BENIGN}
    manifest = json.loads((out / "manifest.json").read_text())
    assert {f"{p}/{WEIGHTS}" for p in listed} <= set(map(str, names(manifest)))
    assert [listed[f"{f}/client-1"]["strength"] for f in folders[:2]] == [0, 0.25]
    assert report["settings"]["path"] == [0, 0.25, "auto"]
    own = dense(cohort / "client-1")
    moved = [np.linalg.norm(dense(out / f / "client-1") - own) for f in folders]
    assert moved[0] == 0 < min(moved[1:])
    assert moved[1] != moved[2]
    assert (out / "strength-0" / "client-1" / WEIGHTS).read_bytes() == (
        cohort / "client-1" / WEIGHTS
    ).read_bytes()
    assert {p.name for p in out.iterdir()} == {*folders, "global", "report.json", "manifest.json"}
    assert "refined 6 clients: a folder for each of the strengths 0, 0.25, " in done.stdout
    assert "6 of 18 written as they were, byte for byte" in done.stdout


def names(value: Any) -> set[str]:
    """Every string and key in a JSON document."""
    if isinstance(value, dict):
        return set(value) | set().union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else {str(value)}


def test_on_a_path_with_a_side_every_folder_is_what_the_strength_alone_gives(
    cohort: Path, tmp_path: Path
) -> None:
    refine(cohort, tmp_path / "path", "--path", "0.3,auto", "--side", "left")
    for strength in ("0.3", "auto"):
        refine(cohort, tmp_path / strength, "--strength", strength, "--side", "left")
        for client in BENIGN:
            one = tmp_path / "path" / f"strength-{strength}" / client / WEIGHTS
            assert one.read_bytes() == (tmp_path / strength / client / WEIGHTS).read_bytes()


def test_on_a_path_without_a_side_every_direction_moves(cohort: Path, tmp_path: Path) -> None:
    """A share s of all deviations is taken, and the mean gains s / 2, up to a quarter: less where
    clients differ in less than half of their energy, as here.
    """
    report, _ = refine(cohort, tmp_path / "out", "--path", "0.3,1", "--rank", "exact")
    differing = 1 - report["refinement"]["common_share"]
    assert 0.2 < differing < 0.4
    local = [dense(cohort / c) for c in BENIGN]
    mean = mean_of(report, cohort)
    for folder, share in [("strength-0.3", 0.3), ("strength-1", 1.0)]:
        gain = min(share * differing, 0.25)
        for client, own in zip(BENIGN, local, strict=True):
            wanted = (1 + gain) * mean + (1 - share) * (own - mean)
            assert near(dense(tmp_path / "out" / folder / client), wanted)


BAD_PATHS = ["0,,1", "2", "-0.1", "nan", "inf", "0,0", "0,0.0", "auto,auto", "0.5;1", "half", ","]


@pytest.mark.parametrize("value", BAD_PATHS)
def test_a_path_that_makes_no_sense_exits_2(value: str, cohort: Path, tmp_path: Path) -> None:
    said = refused(cohort, tmp_path / "out", f"--path={value}")
    assert "path" in said or "strength" in said


def test_a_path_and_a_strength_exit_2(cohort: Path, tmp_path: Path) -> None:
    assert "--path" in refused(cohort, tmp_path / "out", "--path", "0,1", "--strength", 0.5)


def test_strengths_of_one_folder_name_exit_2(cohort: Path, tmp_path: Path) -> None:
    refused(cohort, tmp_path / "out", "--path", "0.5,0.50000001")


# --- sides and strengths


@pytest.mark.parametrize("side", ["own", "left", "right"])
def test_each_side_gives_the_dense_formula(side: str, cohort: Path, tmp_path: Path) -> None:
    options = ("--side", side, "--strength", 0.4, "--subspace-rank", 2, "--rank", "exact")
    report, _ = refine(cohort, tmp_path / "out", *options, *SIX)
    assert report["refinement"]["side"] == side
    assert report["refinement"]["subspace_ranks"] == [2, 2]
    local = [dense(cohort / c) for c in BENIGN]
    weights = [*weights_of(report).values()]
    for m in range(2):
        wanted = shrunk([d[m] for d in local], weights, side, 2, 0.0, 0.4)
        for client, want in zip(BENIGN, wanted, strict=True):
            assert near(dense(tmp_path / "out" / client)[m], want)


def test_the_side_of_client_modes_mixes_whole_adapters(cohort: Path, tmp_path: Path) -> None:
    """With all five modes inside nothing is taken from them, with none everything."""
    own = dense(cohort / "client-1")
    for s in (5, 0):
        out = tmp_path / str(s)
        options = ("--side", "client", "--strength", 1, "--subspace-rank", s, "--rank", "exact")
        report, _ = refine(cohort, out, *options, *SIX)
        assert report["refinement"]["side"] == "client"
        wanted = own if s else mean_of(report, cohort)
        assert near(dense(out / "client-1"), wanted)


def test_client_modes_take_little_at_little_strength_whatever_the_weights(
    cohort: Path, tmp_path: Path
) -> None:
    (tmp_path / "counts").write_text(
        "".join(f"{c},{9 if k else 1}\n" for k, c in enumerate(BENIGN))
    )
    options = ("--side", "client", "--strength", 0.01, "--weights", tmp_path / "counts")
    report, _ = refine(cohort, tmp_path / "out", *options, "--rank", "exact", *SIX)
    assert all(0 < c["change"] < 0.01 for c in report["refinement"]["clients"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_strength_zero_gives_every_byte_of_an_adapter_back(
    dtype: torch.dtype, cohort: Path, tmp_path: Path
) -> None:
    """Also of ranks that differ, of a scale that is not one, and of what is no factor."""
    for k, client in enumerate(BENIGN):
        place = save_dense(tmp_path / "in" / client, dense(cohort / client), rank=18 + k % 3)
        tensors = {n: t.to(dtype) for n, t in load_file(place / WEIGHTS).items()}
        save_file(
            tensors | {f"{PREFIX}score.weight": torch.arange(6.0)},
            place / WEIGHTS,
            {"format": "pt"},
        )
        config = json.loads((place / CONFIG).read_text())
        (place / CONFIG).write_text(json.dumps(config | {"lora_alpha": 7}))
    report, _ = refine(tmp_path / "in", tmp_path / "out", "--strength", 0)
    assert [c["unchanged"] for c in report["refinement"]["clients"]] == [True] * 6
    assert {c["change"] for c in report["refinement"]["clients"]} == {0}
    for client in BENIGN:
        own, found = (data(tmp_path / d / client / WEIGHTS) for d in ("in", "out"))
        assert own == found
        assert len(own) == 5
        assert (tmp_path / "out" / client / CONFIG).read_bytes() == (
            tmp_path / "in" / client / CONFIG
        ).read_bytes()


@pytest.mark.parametrize("suffix", plain.SUFFIXES)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_strength_zero_gives_every_byte_of_plain_matrices_back(
    suffix: str, dtype: str, tmp_path: Path
) -> None:
    for client, truth in zip(BENIGN, truths(6), strict=True):
        state = plain.tensors(dtype=dtype) | {f"m{m}": u.astype(dtype) for m, u in enumerate(truth)}
        plain.save(tmp_path / "in" / f"{client}{suffix}", state)
    report, _ = refine(tmp_path / "in", tmp_path / "out", "--as", "update", "--strength", 0)
    assert [c["unchanged"] for c in report["refinement"]["clients"]] == [True] * 6
    for client in BENIGN:
        (file,) = (p for p in (tmp_path / "out" / client).iterdir() if p.name != "clair.json")
        own, found = plain.load(tmp_path / "in" / f"{client}{suffix}"), plain.load(file)
        assert own.keys() == found.keys()
        for name, tensor in own.items():
            assert (tensor.dtype, tensor.tobytes()) == (found[name].dtype, found[name].tobytes())


# --- ranks


def test_exact_ranks_give_peft_the_dense_formula_and_the_true_mean(tmp_path: Path) -> None:
    """Clients of ranks 2 to 4; PEFT is the judge of what the files mean."""
    from peft import PeftModel

    modules = {f"model.layers.0.self_attn.{p}": d for p, d in (("q_proj", 16), ("v_proj", 8))}
    draw = torch.Generator().manual_seed(4)
    start = {m: (torch.randn(d, 4, generator=draw), torch.randn(4, 16, generator=draw))
             for m, d in modules.items()}  # fmt: skip
    for k, client in enumerate(BENIGN):
        rank, tensors = 2 + k % 3, {}
        for m, (up, down) in start.items():
            up = up[:, :rank] + 0.4 * torch.randn(up[:, :rank].shape, generator=draw)
            down = down[:rank] + 0.1 * torch.randn(down[:rank].shape, generator=draw)
            tensors[f"{PREFIX}{m}.lora_A.weight"] = down.contiguous()
            tensors[f"{PREFIX}{m}.lora_B.weight"] = up.contiguous()
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
        write_folder(
            tmp_path / "in" / client, tensors, config | {"target_modules": ["q_proj", "v_proj"]}
        )
    options = ("--strength", 0.5, "--side", "left", "--subspace-rank", 1)
    options += tuple(o for c in BENIGN for o in ("--include", c))
    exact, kept = tmp_path / "exact", tmp_path / "keep"
    whole = ("--rank", "exact", "--global", "--global-rank", "exact")
    report, _ = refine(tmp_path / "in", exact, *options, *whole)
    weights = [*weights_of(report).values()]
    assert max(c["truncation_error"] for c in report["refinement"]["clients"]) <= 1e-6
    own = {m: [dense_of(tmp_path / "in" / c, m) for c in BENIGN] for m in modules}
    for number, client in [(0, "client-1"), (2, "client-3"), (None, "global")]:
        model: Any = PeftModel.from_pretrained(tiny_llama(), str(exact / client))
        for m, local in own.items():
            wanted = shrunk(local, weights, "left", 1, 0.0, 0.5)
            mean = np.einsum("k,koi->oi", weights, local)
            layer = model.base_model.model.get_submodule(m)
            found = layer.get_delta_weight("default").detach().double().numpy()
            assert near(found, mean if number is None else wanted[number])
    refine(tmp_path / "in", kept, *options)
    for k, client in enumerate(BENIGN):
        assert json.loads((kept / client / CONFIG).read_text())["r"] == 2 + k % 3
        assert {s.rank for s in open_adapter(kept / client).updates.values()} == {2 + k % 3}


def test_the_exact_global_adapter_is_no_mean_of_factors(cohort: Path, tmp_path: Path) -> None:
    report, _ = refine(cohort, tmp_path / "out", "--global", "--global-rank", "exact")
    wanted = mean_of(report, cohort)
    assert near(dense(tmp_path / "out" / "global"), wanted)
    sides = [load_file(cohort / c / WEIGHTS) for c in BENIGN]
    key = f"{PREFIX}{module(0)}.lora_"
    up, down = (sum(s[f"{key}{x}.weight"] for s in sides) / 6 for x in "BA")
    assert not near((up @ down).double().numpy(), wanted[0], 0.3)


def test_a_rank_that_cuts_off_much_is_warned_of(cohort: Path, tmp_path: Path) -> None:
    for rank, warned in [("1", True), ("exact", False)]:
        report, done = refine(cohort, tmp_path / rank, "--rank", rank, "--strength", 0.3)
        assert any("--rank exact" in w for w in report["refinement"]["warnings"]) == warned
        assert ("--rank exact, or a larger one" in done.stdout) == warned


def test_strength_zero_at_a_smaller_rank_is_the_best_of_that_rank(
    cohort: Path, tmp_path: Path
) -> None:
    refine(cohort, tmp_path / "out", "--strength", 0, "--rank", 3)
    for found, own in zip(
        dense(tmp_path / "out/client-1"), dense(cohort / "client-1"), strict=True
    ):
        u, s, vt = np.linalg.svd(own)
        assert near(found, (u[:, :3] * s[:3]) @ vt[:3])


def test_unchanged_is_said_only_of_the_same_bytes(cohort: Path, tmp_path: Path) -> None:
    report, _ = refine(cohort, tmp_path / "out", "--strength", 0, "--rank", 30)
    for client, entry in entries(report).items():
        same = data(cohort / client / WEIGHTS) == data(tmp_path / "out" / client / WEIGHTS)
        assert entry["unchanged"] == same


# --- who


def test_by_default_the_benign_are_refined_and_of_copies_one_counts(
    cohort: Path, tmp_path: Path
) -> None:
    report, done = refine(cohort, tmp_path / "out")
    found = verdicts(report)
    assert {c for c, v in found.items() if v == "benign"} == set(BENIGN)
    assert {c for c, v in found.items() if v == "suspicious"} == set(COPIES)
    assert found[STRANGER] == "contaminated"
    assert entries(report).keys() == {*BENIGN, *COPIES}
    assert {c for c, e in entries(report).items() if e["weight"]} == {*BENIGN, COPIES[0]}
    assert max(weights_of(report).values()) <= 1 / (0.6 * 7) + 1e-9
    assert f"the one that is not genuine: {', '.join(COPIES)}" in done.stdout
    assert "not refined" not in done.stdout


def test_a_copy_changes_nobodys_refined_adapter_and_gets_that_of_the_original(
    cohort: Path, tmp_path: Path
) -> None:
    refine(cohort, tmp_path / "with", "--global")
    shutil.copytree(cohort, tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / COPIES[1])
    report, _ = refine(tmp_path / "alone", tmp_path / "without", "--global")
    assert verdicts(report)[COPIES[0]] == "benign"
    for client in [*BENIGN, COPIES[0], "global"]:
        assert near(dense(tmp_path / "with" / client), dense(tmp_path / "without" / client), 1e-5)
    assert near(dense(tmp_path / "with" / COPIES[1]), dense(tmp_path / "with" / COPIES[0]), 1e-6)


def test_excluding_the_copy_that_counts_leaves_its_share_to_the_other(
    cohort: Path, tmp_path: Path
) -> None:
    report, _ = refine(cohort, tmp_path / "out", "--exclude", COPIES[0])
    assert entries(report).keys() == {*BENIGN, COPIES[1]}
    assert weights_of(report)[COPIES[1]] > 0


def test_suspicious_clients_receive_without_changing_anybody(tmp_path: Path) -> None:
    odd, folder = "client-7", tmp_path / "in"
    for k, truth in enumerate(truths(7)):
        save_dense(folder / f"client-{k + 1}", truth * (1.6 if k == 6 else 1))
    report, done = refine(folder, tmp_path / "1", "--global")
    assert verdicts(report)[odd] == "suspicious"
    assert f"not refined, because suspicious: {odd}" in done.stdout
    report, done = refine(folder, tmp_path / "2", "--global", "--refine-suspicious")
    assert [c for c, e in entries(report).items() if not e["weight"]] == [odd]
    for client in [*BENIGN, "global"]:
        assert near(dense(tmp_path / "2" / client), dense(tmp_path / "1" / client), 1e-5)
    assert entries(report)[odd]["change"] > 0.05
    assert "not refined" not in done.stdout


def test_include_and_exclude_change_who_counts_and_no_verdict(cohort: Path, tmp_path: Path) -> None:
    options = ("--include", STRANGER, "--include", "client-7", "--exclude", "client-1")
    report, _ = refine(cohort, tmp_path / "out", *options, "--global", "--global-rank", "exact")
    weights = weights_of(report)
    assert entries(report).keys() == {*BENIGN[1:], *COPIES, STRANGER}
    assert weights["client-7"] > 1 / 14
    assert weights.get(STRANGER, 0.0) < 1 / 70  # it counts, but for what it has in common
    assert not (tmp_path / "out" / "client-1").exists()
    assert verdicts(report)[STRANGER] == "contaminated"
    assert report["settings"]["include"] == [STRANGER, "client-7"]
    assert near(dense(tmp_path / "out" / "global"), mean_of(report, cohort))


@pytest.mark.parametrize(
    "options",
    [("--include", "client-10"), ("--exclude", "nobody"), ("--include", "a", "--exclude", "a")],
    ids=" ".join,
)
def test_names_of_nobody_exit_2(options: tuple[str, ...], cohort: Path, tmp_path: Path) -> None:
    refused(cohort, tmp_path / "out", *options)


def test_with_everybody_excluded_there_is_no_verdict(cohort: Path, tmp_path: Path) -> None:
    options = [o for c in BENIGN for o in ("--exclude", c)]
    done = quick(tmp_path, "refine", cohort, "--out", tmp_path / "out", *options, *SIX)
    assert (done.returncode, (tmp_path / "out").exists()) == (3, False)


# --- sample counts


@pytest.mark.parametrize("text", ["json", "lines"])
def test_sample_counts_multiply_the_weights_of_the_mean(
    text: str, cohort: Path, tmp_path: Path
) -> None:
    counts = {c: k + 1 for k, c in enumerate(BENIGN)}
    lines = "".join(f"{c},{n}\n" for c, n in counts.items())
    (tmp_path / "counts").write_text(json.dumps(counts) if text == "json" else lines)
    options = ("--weights", tmp_path / "counts", "--global", "--global-rank", "exact")
    alone, _ = refine(cohort, tmp_path / "alone", *SIX)
    report, _ = refine(cohort, tmp_path / "out", *options, *SIX)
    counted = {c: n * weights_of(alone)[c] for c, n in counts.items()}
    total = sum(counted.values())
    assert weights_of(report) == pytest.approx({c: x / total for c, x in counted.items()})
    assert near(dense(tmp_path / "out" / "global"), mean_of(report, cohort))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "client-1,1\n", '{"client-1": 0}', '{"client-1": NaN}', "client-1,x", '{"a": 1}'],
)
def test_counts_that_cannot_be_used_exit_2(text: str, cohort: Path, tmp_path: Path) -> None:
    (tmp_path / "counts").write_text(text)
    refused(cohort, tmp_path / "out", "--weights", tmp_path / "counts")


def test_a_missing_file_of_counts_exits_2(cohort: Path, tmp_path: Path) -> None:
    assert "--weights" in refused(cohort, tmp_path / "out", "--weights", tmp_path / "absent")


# --- what is known


def test_adapters_alone_are_said_to_tell_less(cohort: Path, tmp_path: Path) -> None:
    report, done = refine(cohort, tmp_path / "out")
    said = report["refinement"]
    assert said["knowledge"] == "adapters alone"
    assert (said["expected"]["noise"], said["expected"]["gain"]) == (None, None)
    assert any("adapters alone cannot tell" in w for w in said["warnings"])
    assert "no replicates to say how much was noise" in done.stdout
    assert "note: adapters alone cannot tell" in done.stdout


def test_replicates_that_agree_keep_every_byte(repeated: Path, tmp_path: Path) -> None:
    report, done = refine(repeated, tmp_path / "out")
    said = report["refinement"]
    assert (said["knowledge"], said["strength"], said["averaged_away"]) == ("replicates", 0, 0)
    assert said["replicates_agree"] == pytest.approx(1.36 / 1.72, rel=0.15)
    assert "the clients have data enough, and nothing is averaged away" in done.stdout
    assert all(c["unchanged"] for c in said["clients"])


def test_replicates_of_plain_matrices_decide_and_none_ignores_them(tmp_path: Path) -> None:
    """In truth the deviations are 0.36 of difference and 0.36 of error, HALVES of it seen."""
    for k, (client, truth) in enumerate(zip(BENIGN, truths(6), strict=True)):
        folder = tmp_path / "in" / client
        for i, place in enumerate((folder, folder / "rep-1", folder / "rep-2")):
            noisy = truth + 0.6 * drawn(100 + 10 * k + i, 2, *SHAPE)
            plain.save(place / WEIGHTS, {f"m{m}": u for m, u in enumerate(noisy)})
    known, done = refine(tmp_path / "in", tmp_path / "1", "--as", "update")
    alone, _ = refine(tmp_path / "in", tmp_path / "2", "--as", "update", "--replicates", "none")
    said = known["refinement"]
    assert (said["knowledge"], alone["refinement"]["knowledge"]) == ("replicates", "adapters alone")
    assert said["expected"]["noise"] == pytest.approx(0.85 * 0.5, rel=0.15)
    assert said["expected"]["gain"] > 0
    assert said["warnings"] == []
    assert said["strength"] == said["inside"] > 0
    assert alone["refinement"]["expected"]["noise"] is None
    assert re.search(r"by the replicates \d+ % of them was noise", done.stdout)
    assert "note:" not in done.stdout.partition("refined 6 clients")[2]
    files = [[f["name"] for f in r["inputs"]["clients"][0]["files"]] for r in (known, alone)]
    assert f"rep-1/{WEIGHTS}" in files[0]
    assert not any(name.startswith("rep-") for name in files[1])


def test_more_strength_than_replicates_justify_is_warned_of(repeated: Path, tmp_path: Path) -> None:
    report, _ = refine(repeated, tmp_path / "out", "--strength", 1, "--subspace-rank", 0)
    assert report["refinement"]["expected"]["gain"] < 0
    assert any("more honest difference than noise" in w for w in report["refinement"]["warnings"])


def test_checkpoints_as_replicates_are_warned_of(tmp_path: Path) -> None:
    for k, (client, truth) in enumerate(zip(BENIGN, truths(6), strict=True)):
        for step in (10, 90, 100):
            place = tmp_path / "in" / client / f"checkpoint-{step}"
            save_dense(place, truth + 0.4 * drawn(1000 * k + step, 2, *SHAPE))
    report, _ = refine(tmp_path / "in", tmp_path / "1", "--replicates", "checkpoints")
    assert report["refinement"]["knowledge"] == "replicates"
    assert any("checkpoints of one run" in w for w in report["refinement"]["warnings"])
    report, _ = refine(tmp_path / "in", tmp_path / "2")
    assert report["refinement"]["knowledge"] == "adapters alone"


# --- the gate, and what is no client


def test_including_a_client_clears_its_gate_and_nobody_elses(cohort: Path, tmp_path: Path) -> None:
    gate = ("--fail-on", "contaminated")
    done = quick(tmp_path, "refine", cohort, "--out", tmp_path / "1", *gate)
    assert (done.returncode, done.stdout.count("FAIL: 1 contaminated\n")) == (1, 1)
    report, done = refine(cohort, tmp_path / "2", *gate, "--include", STRANGER)
    assert verdicts(report)[STRANGER] == "contaminated"
    assert f"counted as benign because of --include: {STRANGER} (contaminated)" in done.stdout
    assert "at or above --fail-on contaminated but 1 that --include counts" in done.stdout
    stricter = quick(tmp_path, "report", tmp_path / "2" / "report.json", "--fail-on", "suspicious")
    assert (stricter.returncode, "FAIL: 2 suspicious\n" in stricter.stdout) == (1, True)


def test_what_is_ignored_is_no_client(cohort: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(cohort, folder)
    (folder / "old.bak").mkdir()
    (folder / "old.bak" / WEIGHTS).write_bytes(b"")
    (folder / "run-1").mkdir()
    (folder / "run-1" / WEIGHTS).write_bytes(b"")
    seen, _ = refine(folder, tmp_path / "1")
    assert {"old.bak", "run-1"} <= verdicts(seen).keys()
    report, _ = refine(folder, tmp_path / "2", "--ignore", "*.bak", "--ignore", "run-?")
    assert verdicts(report).keys() == verdicts(seen).keys() - {"old.bak", "run-1"}
    assert report["settings"]["ignore"] == ["*.bak", "run-?"]
