"""Where in one client's folder, or around its file, the adapter lies."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from clair_cli.cohort import natural_key
from clair_cli.errors import (
    AdapterError,
    NoAdapter,
    PickleFound,
    Unreadable,
    UnsafePath,
    Unsupported,
)
from clair_cli.formats.files import follow, is_link, opened, pread, shown
from clair_cli.formats.remote import arrive
from clair_cli.report import Reason
from clair_cli.settings import Settings

WEIGHTS = "adapter_model.safetensors"
OTHER_WEIGHTS = ("pytorch_lora_weights.safetensors", "adapters.safetensors")
"""Of diffusers and of mlx-lm."""
CONFIG = "adapter_config.json"
CARD = "README.md"
SHARD = re.compile(r"adapter_model-([0-9]{5})-of-([0-9]{5})\.safetensors")
FULL_MODEL = re.compile(r"(?:pytorch_|diffusion_pytorch_)?model(?:-\d+-of-\d+)?\.safetensors")
CHECKPOINT = re.compile(r"(?:checkpoint-|epoch_)([0-9]{1,18})")
"""Of the Hugging Face trainer and of torchtune."""
REPLICATE = re.compile(r"rep-[A-Za-z0-9._-]{1,64}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
IGNORED = re.compile(
    r"\..*|(optimizer|scheduler|scaler|sampler|training_args|rng_state|random_states|global_step).*"
    r"|runs|wandb|__pycache__|README|LICENSE|NOTICE|Makefile|CACHEDIR\.TAG"
    r"|Thumbs\.db|desktop\.ini|__MACOSX|lost\+found|(SHA|MD5)\d*SUMS"
    r"|.*\.(json|jsonl|txt|md|csv|log|ya?ml|toml|py|sh|ipynb|png|svg|html|pdf)",
    re.IGNORECASE | re.DOTALL,
)
"""Names of files that trainers and people leave beside adapters."""

SUFFIXES = (".safetensors", ".npz")
EXPECTED_FILE = "a .safetensors or .npz file"
LAYOUT = f"expected {CONFIG} and {WEIGHTS}"

PART_OF_ADAPTER = re.compile(
    r".*\.(safetensors|npz|npy|gguf|h5|msgpack|bin|pt|pth|pkl|ckpt)(\..*)?",
    re.IGNORECASE | re.DOTALL,
)
"""Names of weights in any format, and of what an upload leaves of them half-way."""
NAMED_ADAPTER = re.compile(
    rf"adapter.*|{CHECKPOINT.pattern}|{REPLICATE.pattern}|snapshots", re.IGNORECASE | re.DOTALL
)
"""Names that trainers and hubs give to adapters, configs and folders of them: without weights in them
something is missing.
"""
MAX_DEPTH = 4
"""Folders below a client's in which a file that could be an adapter is looked for."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one adapter lies: its folder or flat file, then the true paths of its parts.

    `card` is where a README.md would be, which goes along unread.
    """

    path: Path
    weights: tuple[tuple[str, Path], ...]
    config: Path | None
    notes: tuple[Reason, ...] = ()
    card: Path | None = None


def is_candidate(path: Path) -> bool:
    """Everything counts that is not known to be something else: no client is skipped in silence."""
    if os.path.isdir(path):
        return not re.fullmatch(r"\..*|global_step.*|runs|wandb|__pycache__", path.name, re.DOTALL)
    return not IGNORED.fullmatch(path.name)


def locate(path: Path, root: Path | None, settings: Settings) -> Layout:
    """Where the adapter of one client lies: `path` is its folder, or its file.

    Plain matrices, where `settings.read_as` asks for them, lie in the one file of their folder, without
    a config. `root` is the folder that was scanned; None if `path` was named by the user. Raises
    NoAdapter where no file could be one, Unreadable where a part of it is missing, PickleFound,
    Unsupported or UnsafePath.
    """
    plain = settings.read_as != "lora"
    try:
        if not os.path.isdir(path):
            return _file_layout(path, root, settings, plain)
        if root is not None:
            check_folder(path, settings.follow_symlinks)
        if not _could_hold_adapter(path):
            text = f"expected {EXPECTED_FILE}" if plain else LAYOUT
            raise NoAdapter(f"{shown(path.name)}: no adapter in it; {text}")
        folder_layout = _plain_folder_layout if plain else _folder_layout
        return folder_layout(path, root or path, settings)
    except (OSError, ValueError) as cause:
        raise Unreadable(f"{shown(path.name)}: cannot be read: {cause}") from None


def _could_hold_adapter(folder: Path, depth: int = MAX_DEPTH) -> bool:
    """Whether a file in the folder, or below it, has a name that an adapter or a part of one may have.

    A client that put its adapter too deep, or whose upload broke off, is not taken for a folder of
    something else; nor is one that lies deeper than can be looked at.
    """
    names = os.listdir(folder)
    if any(map(_may_belong_to_adapter, names)):
        return True
    below = [folder / n for n in names if os.path.isdir(folder / n) and is_candidate(folder / n)]
    if any(map(is_link, below)) or (below and depth == 0):
        return True
    return any(_could_hold_adapter(path, depth - 1) for path in below)


def _may_belong_to_adapter(name: str) -> bool:
    bare = name.lstrip(".")  # what copies a file may hide it until it is whole
    part = PART_OF_ADAPTER.fullmatch(bare) and not IGNORED.fullmatch(bare)
    return bool(part or NAMED_ADAPTER.fullmatch(bare))


def _file_layout(path: Path, top: Path | None, settings: Settings, plain: bool) -> Layout:
    if path.suffix in PICKLES:
        raise pickle_only(path.name)
    root = top or path.parent
    target = follow(path, root, settings.follow_symlinks)
    if path.suffix not in SUFFIXES:
        with opened(target):  # a special file or a missing one is refused as such
            text = f"{shown(path.name)}: not {EXPECTED_FILE}"
        away = "" if top is None else ", or move it out of the folder"
        raise Unsupported(f"{text}; convert it{away}")
    twins = [path.stem + s for s in PICKLES if (path.parent / (path.stem + s)).exists()]
    config = None if plain else _config(None, root, settings)
    return Layout(path, ((path.name, target),), config, pickle_notes(twins))


def _folder_layout(path: Path, root: Path, settings: Settings) -> Layout:
    folder, notes = _adapter_folder(path, root, settings.follow_symlinks)
    names = sorted(os.listdir(folder))
    files = adapter_files(names) or arrays(names)
    weights = tuple((n, follow(folder / n, root, settings.follow_symlinks)) for n in files)
    config = _config(folder / CONFIG, root, settings)
    card = folder / CARD
    card = card if is_link(card) else follow(card, root, settings.follow_symlinks)
    return Layout(folder, weights, config, (*notes, *pickle_notes(find_pickles(names))), card)


def _plain_folder_layout(path: Path, root: Path, settings: Settings) -> Layout:
    """The only file of matrices in the folder, or in the first of its replicates."""
    names = sorted(os.listdir(path))
    found = [n for n in names if n.endswith(SUFFIXES) and not IGNORED.fullmatch(n)]
    if not found and (only := find_pickles(names)):
        raise pickle_only(only[0])
    if not found and (more := [n for n in names if is_replicate(path / n)]):
        chosen = path / min(more, key=natural_key)
        check_folder(chosen, settings.follow_symlinks)
        return _plain_folder_layout(chosen, root, settings)
    if not found:
        raise Unreadable(f"{shown(path.name)}: no matrices here; expected {EXPECTED_FILE}")
    if len(found) > 1:
        text = f"{len(found)} files ({shown(found[0])}, {shown(found[1])}, ...), expected one"
        raise Unreadable(f"{shown(path.name)}: {text}; put all tensors into one, or one per client")
    target = follow(path / found[0], root, settings.follow_symlinks)
    return Layout(path, ((found[0], target),), None, pickle_notes(find_pickles(names)))


def _config(own: Path | None, root: Path, settings: Settings) -> Path | None:
    """The adapter's own config, else the one the user names, else the one all clients share."""
    shared, anywhere = root / CONFIG, settings.follow_symlinks
    if own is not None and os.path.lexists(own):
        return follow(own, root, anywhere)
    if settings.config is not None:
        return follow(settings.config, root, anywhere=True)
    return follow(shared, root, anywhere) if os.path.lexists(shared) else None


def _adapter_folder(path: Path, root: Path, anywhere: bool) -> tuple[Path, tuple[Reason, ...]]:
    """`path`, or the one folder below it that holds the adapter."""
    names = os.listdir(path)
    if _has_weights(path):
        return path, ()
    if pickles := find_pickles(names):
        raise pickle_only(pickles[0])
    if "snapshots" in names:
        return _adapter_folder(_snapshot(path, anywhere), root, anywhere)
    folders = sorted(n for n in names if is_candidate(path / n) and os.path.isdir(path / n))
    steps = {n: int(m[1]) for n in folders if (m := CHECKPOINT.fullmatch(n))}
    named = [n for n in folders if n not in steps and _has_weights(path / n)]
    if len(named) > 1 and not all(map(REPLICATE.fullmatch, named)):
        text = f"{len(named)} adapters ({shown(named[0])}, {shown(named[1])}, ...) in one client"
        remedy = "give each client a folder of its own, or give this folder to `clair detect`"
        raise Unreadable(f"{shown(path.name)}: {text}; {remedy}")
    if not named and not steps:
        if len(arrays(names)) == 1:
            return path, ()
        raise _nothing_here(path, names)
    named.sort(key=natural_key)
    chosen = path / (named[0] if named else max(steps, key=lambda n: steps[n]))
    check_folder(chosen, anywhere)
    if named:
        return chosen, ()
    if not _has_weights(chosen):
        chosen, _ = _adapter_folder(chosen, root, anywhere)
    text = (
        f"read from {chosen.relative_to(path).as_posix()}, the newest of {len(steps)} checkpoints"
    )
    return chosen, (Reason("CLR114", text),)


def is_replicate(path: Path) -> bool:
    """A folder of a client that holds one more adapter of it."""
    return REPLICATE.fullmatch(path.name) is not None and os.path.isdir(path)


def _has_weights(folder: Path) -> bool:
    return bool(adapter_files(os.listdir(folder)))


def adapter_files(names: list[str]) -> list[str]:
    """The files that hold a folder's adapter, if any; Unreadable where a shard is missing."""
    for known in (WEIGHTS, *OTHER_WEIGHTS):
        if known in names:
            return [known]
    if any(map(SHARD.fullmatch, names)):
        return _shards(names)
    other = [n for n in names if n.endswith(".safetensors") and not IGNORED.fullmatch(n)]
    return other if len(other) == 1 and not FULL_MODEL.fullmatch(other[0]) else []


def arrays(names: list[str]) -> list[str]:
    """The .npz files among the names: an adapter where nothing else is one."""
    return [n for n in names if n.endswith(".npz") and not IGNORED.fullmatch(n)]


def _snapshot(path: Path, anywhere: bool) -> Path:
    """The revision a Hugging Face cache folder calls main, or the only one it has."""
    revisions = sorted(os.listdir(path / "snapshots"))
    main = path / "refs" / "main"
    if os.path.lexists(main):
        arrive(main)
        with opened(main) as fd:
            revisions = [pread(fd, 0, 128).decode("ascii", "replace").strip()]
    if len(revisions) != 1 or not REVISION.fullmatch(revisions[0]):
        text = f"{shown(path.name)}: cannot tell which of {len(revisions)} snapshots to read"
        raise Unreadable(f"{text}; name one in refs/main, or give a snapshot's folder")
    chosen = path / "snapshots" / revisions[0]
    check_folder(path / "snapshots", anywhere)
    check_folder(chosen, anywhere)
    return chosen


def check_folder(path: Path, anywhere: bool) -> None:
    """Raises UnsafePath where `path` is a link, unless links may lead `anywhere`."""
    if is_link(path) and not anywhere:
        text = "a link to a folder; replace it by the folder, or pass --follow-symlinks"
        raise UnsafePath(f"{shown(path.name)}: {text}")


def _shards(names: list[str]) -> list[str]:
    """The shards of one adapter in order; Unreadable, naming it, where one is missing."""
    shards = [m for m in map(SHARD.fullmatch, names) if m]
    totals = {m[2] for m in shards}
    if len(totals) > 1:
        raise Unreadable(f"{shards[0][0]}: shards of two different savings; keep those of one")
    total = totals.pop()
    wanted = [f"adapter_model-{i:05d}-of-{total}.safetensors" for i in range(1, int(total) + 1)]
    there = set(names)
    for name in wanted:
        if name not in there:
            raise Unreadable(f"{name}: missing, one of {int(total)} shards; upload it again")
    return wanted


def find_pickles(names: list[str]) -> list[str]:
    """Those of the names that are pickles, sorted, without what trainers leave beside weights."""
    return [n for n in sorted(names) if n.endswith(PICKLES) and not IGNORED.fullmatch(n)]


def pickle_only(name: str) -> AdapterError:
    """The error where a client has nothing but a pickle."""
    text = f"{shown(name)}: a pickle file, which can run code and is not opened"
    return PickleFound(f"{text}; re-save it as safetensors")


def pickle_notes(names: list[str]) -> tuple[Reason, ...]:
    """A note on each pickle beside a file that was read."""
    text = (
        "a pickle file beside the safetensors file, not opened; other tools may load it: delete it"
    )
    return tuple(Reason("CLR109", f"{shown(name)}: {text}") for name in names)


def _nothing_here(path: Path, names: list[str]) -> AdapterError:
    if "model.safetensors" in names:
        text = f"a full model, no PEFT adapter; {LAYOUT}; read it with --base"
        return Unsupported(f"model.safetensors: {text}")
    if found := [n for n in names if n.endswith(".safetensors") and not IGNORED.fullmatch(n)]:
        text = f"{len(found)} safetensors files, expected one adapter; {LAYOUT}, or a single file"
        return Unreadable(f"{shown(path.name)}: {text}")
    if found := arrays(names):
        text = f"{len(found)} .npz files, expected one adapter; give each client one"
        return Unreadable(f"{shown(path.name)}: {text}")
    if CONFIG in names:
        return Unreadable(f"{WEIGHTS}: missing beside {CONFIG}; upload it again")
    return Unreadable(f"{shown(path.name)}: no adapter here; {LAYOUT}")
