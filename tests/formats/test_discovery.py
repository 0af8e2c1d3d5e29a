"""Which clients a folder holds, and where each one's adapter is; nobody is skipped in silence."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from clair_cli.cohort import Adapter
from clair_cli.errors import (
    AdapterError,
    ConfigInvalid,
    NoAdapter,
    NoVerdict,
    PickleFound,
    Unreadable,
    UnsafePath,
    Unsupported,
    UsageError,
)
from clair_cli.formats import discover, open_adapter, read_update
from clair_cli.settings import Settings
from tests.helpers.adapters import CONFIG, MODULES, factors, write_folder


def opened(root: Path, **settings: Any) -> dict[str, Adapter | AdapterError]:
    """Every client with what opening it gives."""
    found: dict[str, Adapter | AdapterError] = {}
    for source in discover(root):
        try:
            found[source.client] = open_adapter(
                source.path, Settings(**settings), source.client, source.root
            )
        except AdapterError as error:
            found[source.client] = error
    assert not any("\n" in str(f) for f in found.values() if isinstance(f, AdapterError))
    return found


def test_folders_are_clients_in_natural_order(tmp_path: Path) -> None:
    for name in ("client-10", "client-2", "client-1"):
        write_folder(tmp_path / name)
    found = opened(tmp_path)
    assert list(found) == ["client-1", "client-2", "client-10"]
    assert all(isinstance(a, Adapter) and tuple(a.updates) == MODULES for a in found.values())


def test_flat_files_share_the_config_beside_them(tmp_path: Path) -> None:
    for i in range(3):
        write_folder(tmp_path, factors(seed=i), name=f"client_{i}.safetensors")
    found = opened(tmp_path)
    assert list(found) == ["client_0", "client_1", "client_2"]
    for i, adapter in enumerate(found.values()):
        assert isinstance(adapter, Adapter)
        update = read_update(adapter, MODULES[0])
        expected = factors(seed=i)[f"base_model.model.{MODULES[0]}.lora_B.weight"]
        assert torch.equal(update.up, expected)
        assert update.scale == 2.0


def test_files_without_config_need_one_by_option(tmp_path: Path) -> None:
    flat, folders = tmp_path / "flat", tmp_path / "folders"
    write_folder(flat, config=None, name="a.safetensors")
    write_folder(folders / "a", config=None)
    shared = tmp_path / "shared.json"
    shared.write_text(json.dumps(CONFIG | {"lora_alpha": 6}))
    for root in (flat, folders):
        error = opened(root)["a"]
        assert isinstance(error, ConfigInvalid)
        assert "--adapter-config" in str(error)
        assert "--alpha" in str(error)
        for settings, scale in (({"alpha": 5.0}, 2.5), ({"config": shared, "alpha": 5.0}, 3.0)):
            adapter = opened(root, **settings)["a"]
            assert isinstance(adapter, Adapter)
            assert adapter.updates[MODULES[0]].scale == scale


def test_an_own_config_beats_the_option_and_an_option_beats_the_shared_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "own", config=CONFIG | {"lora_alpha": 2})
    write_folder(tmp_path / "none", config=None)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | {"lora_alpha": 8}))
    shared = tmp_path / "shared.json"
    shared.write_text(json.dumps(CONFIG | {"lora_alpha": 6}))
    scales = [
        {c: a.updates[MODULES[0]].scale for c, a in opened(tmp_path, **s).items()}  # type: ignore[union-attr]
        for s in ({}, {"config": shared})
    ]
    assert scales == [{"none": 4.0, "own": 1.0}, {"none": 3.0, "own": 1.0}]


def test_what_is_known_to_be_no_client_is_left_out_and_all_else_counts(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    for name in (
        "README.md",
        "notes.txt",
        "report.json",
        ".hidden",
        "._a",
        "optimizer.pt",
        "LICENSE",
    ):
        (tmp_path / name).write_bytes(b"x")
    for name in (".cache", ".git", "runs", "global_step100"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "upload", name="adapter_model.safetensors.incomplete")
    write_folder(tmp_path / "diffusers", name="pytorch_lora_weights.safetensors")
    for name in ("b.gguf", "c.safetensors.incomplete", "d"):
        (tmp_path / name).write_bytes(b"x")
    found = opened(tmp_path)
    kinds = {name: type(value) for name, value in found.items()}
    assert kinds == {
        "a": Adapter,
        "b.gguf": Unsupported,
        "c.safetensors.incomplete": Unsupported,
        "d": Unsupported,
        "diffusers": Adapter,
        "empty": NoAdapter,
        "upload": Unreadable,
    }
    assert "no adapter in it" in str(found["empty"])
    assert "adapter_model.safetensors: missing" in str(found["upload"])


AS_PLAIN = ({}, {"read_as": "update"})


def touched(folder: Path, *names: str) -> Path:
    """The folder with these files, which hold a byte; a name that ends in / is a folder's."""
    folder.mkdir(parents=True)
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(b"x")
    return folder


@pytest.mark.parametrize("settings", AS_PLAIN)
@pytest.mark.parametrize(
    "names",
    [
        (),
        ("train.log", "events.out.tfevents.1700000000.host"),
        ("README.md", "metrics.json", "plots/loss.png"),
        ("optimizer.pt", "scheduler.pt", "rng_state.pth"),
        ("a/b/c/notes.txt",),
        (".git/x.safetensors", "wandb/x.safetensors"),
    ],
)
def test_a_folder_without_any_file_that_could_be_an_adapter_is_told_apart(
    names: tuple[str, ...], settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(NoAdapter, match="logs: no adapter in it; expected") as caught:
        open_adapter(touched(tmp_path / "logs", *names), Settings(**settings))
    assert caught.value.code == NoAdapter.code == "CLR117"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", AS_PLAIN)
@pytest.mark.parametrize(
    "names",
    [
        ("adapter_config.json",),
        ("adapter_model.safetensors.part",),
        (".adapter_model.safetensors.X7aQ2c",),
        ("a/b/adapter_model.safetensors",),
        ("a/b/model.gguf",),
        ("checkpoint-10/",),
        ("rep-1/", "rep-2/"),
        ("snapshots/",),
        ("1/2/3/4/5/6/",),
    ],
)
def test_a_client_whose_adapter_is_not_whole_or_out_of_place_stays_broken(
    names: tuple[str, ...], settings: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError) as caught:
        open_adapter(touched(tmp_path / "client", *names), Settings(**settings))
    assert type(caught.value) is Unreadable
    assert caught.value.code == "CLR101"


def test_a_link_to_a_folder_may_hold_an_adapter(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere")
    client = touched(tmp_path / "in" / "client")
    (client / "run").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (found,) = opened(tmp_path / "in").values()
    assert isinstance(found, UnsafePath)
    (found,) = opened(tmp_path / "in", follow_symlinks=True).values()
    assert isinstance(found, Adapter)


def test_entries_that_match_an_ignored_pattern_are_no_clients(tmp_path: Path) -> None:
    for name in ("a", "b", "a.old"):
        write_folder(tmp_path / name)
    touched(tmp_path / "logs")
    (tmp_path / "notes").write_bytes(b"x")

    def clients(*ignore: str) -> list[str]:
        return [source.client for source in discover(tmp_path, ignore)]

    assert clients() == ["a", "a.old", "b", "logs", "notes"]
    assert clients("logs", "*.old", "note?") == ["a", "b"]
    assert clients("LOGS", "lo", "[!abn]*") == ["a", "a.old", "b", "notes"]
    with pytest.raises(NoVerdict, match="no client in it"):
        clients("*")


def test_a_folder_and_a_file_of_one_name_are_two_clients(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    write_folder(tmp_path, name="a.safetensors")
    assert list(opened(tmp_path)) == ["a", "a.safetensors"]


def test_no_client_is_no_verdict_and_a_wrong_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(NoVerdict, match="no client"):
        discover(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(UsageError, match="folder that holds the clients"):
            discover(path)
    with pytest.raises(UsageError, match=r"itself one adapter.*folder above"):
        discover(write_folder(tmp_path / "one"))


class Canary:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_opened_wherever_it_lies(tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    bomb = pickle.dumps(Canary(canary))
    root = tmp_path / "root"
    for name in ("only", "beside"):
        (root / name).mkdir(parents=True)
        (root / name / "adapter_model.bin").write_bytes(bomb)
    write_folder(root / "beside")
    for name in ("renamed.safetensors", "flat.pt", "flat.bin", "twin.pt"):
        (root / name).write_bytes(bomb)
    write_folder(root, name="twin.safetensors")
    found = opened(root)
    refused = {n for n, a in found.items() if isinstance(a, PickleFound) and "re-save" in str(a)}
    assert refused == {"only", "renamed", "flat.bin", "flat.pt"}
    for name in ("beside", "twin"):
        adapter = found[name]
        assert isinstance(adapter, Adapter)
        assert [n.code for n in adapter.notes] == ["CLR109"]
    assert len(found) == 6
    assert not canary.exists()


def test_trainer_leftovers_beside_the_adapter_raise_no_note(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    for name in ("optimizer.pt", "training_args.bin", "rng_state_0.pth", "scheduler.pt"):
        (folder / name).write_bytes(b"x")
    assert open_adapter(folder).notes == ()


def test_the_newest_checkpoint_is_read_and_noted(tmp_path: Path) -> None:
    for step in (5, 100, 20):
        write_folder(tmp_path / f"checkpoint-{step}", factors(seed=step))
    adapter = open_adapter(tmp_path, client="c")
    assert adapter.path.name == "checkpoint-100"
    assert [(n.code, "checkpoint-100" in n.message) for n in adapter.notes] == [("CLR114", True)]
    write_folder(tmp_path)
    assert open_adapter(tmp_path).path == tmp_path
    assert open_adapter(tmp_path).notes == ()


def test_an_unfinished_newest_checkpoint_is_broken_not_passed_over(tmp_path: Path) -> None:
    write_folder(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-10").mkdir()
    with pytest.raises(Unreadable, match="checkpoint-10: no adapter"):
        open_adapter(tmp_path)


def test_one_named_adapter_below_is_read_and_two_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "tuned")
    (tmp_path / "logs").mkdir()
    assert open_adapter(tmp_path).path.name == "tuned"
    write_folder(tmp_path / "other")
    with pytest.raises(Unreadable, match=r"2 adapters .other, tuned"):
        open_adapter(tmp_path)


def shards(folder: Path, total: int = 2) -> Path:
    tensors = list(factors().items())
    write_folder(folder, {}, name="adapter_model-00001-of-00002.safetensors")
    for i in range(total):
        write_folder(
            folder,
            dict(tensors[i::total]),
            name=f"adapter_model-{i + 1:05d}-of-{total:05d}.safetensors",
        )
    return folder


def test_shards_are_read_as_one_adapter(tmp_path: Path) -> None:
    whole = open_adapter(write_folder(tmp_path / "whole"))
    parts = open_adapter(shards(tmp_path / "parts"))
    assert len(parts.files) == 3
    for module in MODULES:
        assert torch.equal(read_update(parts, module).up, read_update(whole, module).up)
        assert torch.equal(read_update(parts, module).down, read_update(whole, module).down)


def test_a_missing_repeated_or_foreign_shard_is_named(tmp_path: Path) -> None:
    folder = shards(tmp_path / "missing")
    (folder / "adapter_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Unreadable, match=r"adapter_model-00002-of-00002\.safetensors: missing"):
        open_adapter(folder)
    folder = shards(tmp_path / "foreign")
    write_folder(folder, name="adapter_model-00001-of-00003.safetensors")
    with pytest.raises(Unreadable, match="two different savings"):
        open_adapter(folder)
    folder = shards(tmp_path / "repeated")
    write_folder(folder, name="adapter_model-00002-of-00002.safetensors")
    with pytest.raises(AdapterError, match="is also in adapter_model-00001"):
        open_adapter(folder)


def hub_cache(folder: Path, revision: str = "0a1b") -> Path:
    """models--org--name as huggingface_hub lays it out: links from snapshots to blobs."""
    real = write_folder(folder / "blobs")
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for i, name in enumerate(("adapter_model.safetensors", "adapter_config.json")):
        (real / name).rename(real / f"{i:064x}")
        (snapshot / name).symlink_to(f"../../blobs/{i:064x}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    return folder


def test_a_hub_cache_is_read_from_its_top_its_snapshot_and_as_a_client(tmp_path: Path) -> None:
    folder = hub_cache(tmp_path / "root" / "models--org--name")
    write_folder(tmp_path / "root" / "b")
    digests = {
        open_adapter(folder).digest,
        open_adapter(folder / "snapshots" / "0a1b").digest,
        open_adapter(tmp_path / "root" / "b").digest,
    }
    found = opened(tmp_path / "root")
    assert all(isinstance(a, Adapter) for a in found.values())
    assert len(found) == 2
    assert len(digests) == 1
    with pytest.raises(UsageError, match="itself one adapter"):
        discover(folder)
    (folder / "refs" / "main").write_text("../../b")
    with pytest.raises(Unreadable, match="which of"):
        open_adapter(folder)


def test_links_that_leave_the_folder_are_refused_unless_asked_for(tmp_path: Path) -> None:
    outside = write_folder(tmp_path / "outside")
    root = tmp_path / "root"
    write_folder(root / "whole")
    (root / "folder").symlink_to(outside)
    (root / "file").mkdir()
    (root / "inside").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (root / "file" / name).symlink_to(outside / name)
        (root / "inside" / name).symlink_to(f"../whole/{name}")
    (root / "flat.safetensors").symlink_to(outside / "adapter_model.safetensors")
    (root / "dangling").symlink_to("nowhere")
    found = opened(root)
    unsafe = {
        n for n, a in found.items() if isinstance(a, UnsafePath) and "--follow-symlinks" in str(a)
    }
    assert unsafe == {"file", "flat", "folder"}
    assert isinstance(found["dangling"], Unreadable)
    assert isinstance(found["inside"], Adapter)
    assert isinstance(found["whole"], Adapter)
    followed = opened(root, follow_symlinks=True, alpha=4.0)
    assert {n for n, a in followed.items() if not isinstance(a, Adapter)} == {"dangling"}


def test_special_files_are_broken_clients_and_do_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.safetensors")
    os.mkfifo(tmp_path / "pipe")
    folder = write_folder(tmp_path / "a")
    (folder / "adapter_config.json").unlink()
    os.mkfifo(folder / "adapter_config.json")
    found = opened(tmp_path)
    assert {n: type(a) for n, a in found.items()} == {
        "a": UnsafePath,
        "fifo": UnsafePath,
        "pipe": UnsafePath,
    }


def test_names_that_cannot_be_written_back_are_refused(tmp_path: Path) -> None:
    for odd in (b"a\xff", b"b\nc", "d\u202ee".encode(), b"f\x1b[31m"):
        os.mkdir(os.fsencode(tmp_path) + b"/" + odd)
    write_folder(tmp_path / "fine ü-1")
    found = opened(tmp_path)
    assert len(found) == 5
    assert sum(isinstance(a, UnsafePath) for a in found.values()) == 4
    assert isinstance(found["fine ü-1"], Adapter)
    for name in ("..", "a/b", "a\\b", ""):
        with pytest.raises(UnsafePath, match="client name"):
            open_adapter(tmp_path / "fine ü-1", client=name)
