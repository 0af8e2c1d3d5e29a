"""Runs with a cache: the report of a run without, whatever is in the folder; nothing is read twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clair_cli import pipeline
from clair_cli.cache import HEAD, MAGIC
from clair_cli.detection import kept
from clair_cli.detection.calibration import DETECTION
from clair_cli.detection.sketches import sketch_size
from clair_cli.formats import files
from clair_cli.report import to_dict
from clair_cli.settings import Settings
from tests import ROOT
from tests.helpers.adapters import CONFIG, PREFIX, factors, write_folder
from tests.helpers.commands import ENVIRONMENT, SCRIPT, clair, fingerprint, hooked
from tests.helpers.counting import clients_read, counted
from tests.helpers.sketches import sketch_all

SHAPES = {f"model.layers.{i}.self_attn.q_proj": (300, 200) for i in range(3)}
SKETCHED = replace(DETECTION, max_columns=8)
"""Of clients of rank 2, five and more are compared by sketches; at 300 x 200, of all of the space."""


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as at rest at once, but where a test says otherwise."""
    monkeypatch.setattr(files, "REST", 0)


def save_client(folder: Path, seed: int, rank: int = 2, **extra: Any) -> Path:
    """Common factors, and some of its own; client 6 shares nothing."""
    common, own = factors(SHAPES, rank), factors(SHAPES, rank, seed=seed)
    share = 0.0 if seed == 6 else 1.0
    tensors = {name: share * common[name] + 0.5 * own[name] for name in common}
    named = {PREFIX + name: tensor for name, tensor in extra.items()}
    return write_folder(folder, tensors | named, CONFIG | {"r": rank})


def save_clients(folder: Path, count: int = 7) -> Path:
    for k in range(1, count + 1):
        save_client(folder / f"client-{k}", k)
    return folder


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    return save_clients(tmp_path / "clients")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache", detection=SKETCHED)


def said(folder: Path, settings: Settings) -> dict[str, Any]:
    """The report but for what may differ between equal runs."""
    report = to_dict(pipeline.detect(folder, settings))
    del report["run"]
    return report


def without(settings: Settings) -> Settings:
    return replace(settings, cache=None)


def entries(settings: Settings) -> list[Path]:
    assert settings.cache is not None
    return sorted(settings.cache.glob("??/*"))


# --- equal reports, and what is read


def test_a_second_run_reads_no_tensor_and_one_client_more_costs_one(
    clients: Path, settings: Settings
) -> None:
    fresh = said(clients, without(settings))
    before = fingerprint(clients)
    with counted() as first:
        assert said(clients, settings) == fresh
    assert clients_read(first, clients) == {f"client-{k}" for k in range(1, 8)}
    with counted() as second:
        assert said(clients, settings) == fresh
    assert clients_read(second, clients) == set()
    assert fingerprint(clients) == before
    save_client(clients / "client-8", 8)
    with counted() as third:
        more = said(clients, settings)
    assert clients_read(third, clients) == {"client-8"}
    assert more == said(clients, without(settings))
    shutil.rmtree(clients / "client-3")
    with counted() as fourth:
        fewer = said(clients, settings)
    assert clients_read(fourth, clients) == set()
    assert fewer == said(clients, without(settings))


def test_of_projected_sketches_one_client_more_costs_one_unless_the_size_changes(
    clients: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clair_cli.detection.sketches.ROOM", 8 * 208**2)
    assert [sketch_size(k, (300, 200)) for k in (7, 8, 40)] == [256, 256, 96]
    said(clients, settings)
    save_client(clients / "client-8", 8)
    with counted() as same:
        found = said(clients, settings)
    assert clients_read(same, clients) == {"client-8"}
    assert found == said(clients, without(settings))
    monkeypatch.setattr("clair_cli.detection.sketches.ROOM", 8 * 100**2)
    with counted() as smaller:
        found = said(clients, settings)
    assert len(clients_read(smaller, clients)) == 8
    assert found == said(clients, without(settings))


def forms(tmp_path: Path, form: str) -> tuple[Path, dict[str, Any]]:
    """A folder of clients of some kind, and the settings that it is read with."""
    folder = tmp_path / "clients"
    more: dict[str, Any] = {"detection": SKETCHED}
    for k in range(1, 8):
        own = torch.Generator().manual_seed(k)
        if form == "matrices trained whole":
            head = torch.randn(20, 30, generator=torch.Generator()) + torch.randn(
                20, 30, generator=own
            )
            save_client(folder / f"client-{k}", k, **{"score.weight": head})
        elif form == "unequal ranks":
            save_client(folder / f"client-{k}", k, 150 if k == 2 else 2)
        elif form == "replicates":
            for r in (1, 2):
                save_client(folder / f"client-{k}" / f"rep-{r}", 100 * r + k)
        else:
            save_client(folder / f"client-{k}", k)
    if form == "whole updates":
        more = {}
    elif form == "exact":
        more["exact"] = True
    elif form == "since":
        more["since"] = write_folder(tmp_path / "sent", factors(SHAPES), CONFIG)
    elif form == "since, whole":
        more = {"since": write_folder(tmp_path / "sent", factors(SHAPES), CONFIG)}
    elif form == "sketches and adapters":
        aside = tmp_path / "aside"
        aside.mkdir()
        for k in (1, 2, 3):
            (folder / f"client-{k}").rename(aside / f"client-{k}")
        sketch_all(aside, folder)
    elif form == "float64":
        more["dtype"] = "float64"
    return folder, more


FORMS = [
    "sketches",
    "whole updates",
    "exact",
    "matrices trained whole",
    "unequal ranks",
    "replicates",
    "since",
    "since, whole",
    "sketches and adapters",
    "float64",
]


READ_AGAIN = {
    "replicates": {f"client-{k}" for k in range(1, 8)},  # NaN is looked for as they are opened
    "sketches and adapters": {f"client-{k}" for k in (1, 2, 3)},  # a sketch is as small as an entry
}


@pytest.mark.parametrize("form", FORMS)
def test_reports_are_equal_and_a_second_run_reads_no_adapter(tmp_path: Path, form: str) -> None:
    folder, more = forms(tmp_path, form)
    settings = Settings(cache=tmp_path / "cache", **more)
    fresh = said(folder, without(settings))
    assert fresh["status"] == "complete"
    assert said(folder, settings) == fresh
    with counted() as again:
        assert said(folder, settings) == fresh
    assert clients_read(again, folder) == READ_AGAIN.get(form, set())


@pytest.mark.parametrize("spoiled", ["NaN", "header", "config"])
def test_broken_clients_are_broken_again_for_the_same_reason(
    clients: Path, settings: Settings, spoiled: str
) -> None:
    weights = clients / "client-2" / "adapter_model.safetensors"
    if spoiled == "NaN":
        tensors = factors(SHAPES)
        next(iter(tensors.values()))[0, 0] = torch.nan
        write_folder(clients / "client-2", tensors)
    elif spoiled == "header":
        weights.write_bytes(b"\xff" * 100)
    else:
        (clients / "client-2" / "adapter_config.json").write_text("{")
    fresh = said(clients, without(settings))
    assert {c["id"] for c in fresh["clients"] if c["verdict"] == "broken"} == {"client-2"}
    for _ in range(2):
        assert said(clients, settings) == fresh


def test_refined_adapters_are_equal_byte_for_byte(
    clients: Path, settings: Settings, tmp_path: Path
) -> None:
    outs = [tmp_path / name for name in ("without", "cold", "warm")]
    for out, own in zip(outs, (without(settings), settings, settings), strict=True):
        pipeline.refine(clients, out, own)
    found = [
        {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*.safetensors"))}
        for out in outs
    ]
    assert len(found[0]) >= 4
    assert found[0] == found[1] == found[2]


def test_fit_and_check_read_one_client(clients: Path, settings: Settings, tmp_path: Path) -> None:
    references = [tmp_path / f"{n}.clair" for n in range(3)]
    reports = [pipeline.fit(clients, references[0], without(settings))[0]]
    reports.append(pipeline.fit(clients, references[1], settings)[0])
    save_client(clients / "client-8", 8)
    with counted() as found:
        pipeline.fit(clients, references[2], settings)
    assert clients_read(found, clients) == {"client-8"}
    assert to_dict(reports[0])["clients"] == to_dict(reports[1])["clients"]
    upload = save_client(tmp_path / "upload", 9)
    pipeline.detect(clients, settings)
    with counted() as found:
        report, _ = pipeline.check(upload, clients, settings)
    assert clients_read(found, clients) == set()
    assert clients_read(found, tmp_path) >= {"upload"}
    fresh, _ = pipeline.check(upload, clients, without(settings))
    assert report is not None
    assert fresh is not None
    assert to_dict(report)["clients"] == to_dict(fresh)["clients"]


# --- what has changed


def test_a_changed_file_is_read_again_and_no_other(clients: Path, settings: Settings) -> None:
    said(clients, settings)
    save_client(clients / "client-3", 33)
    with counted() as found:
        report = said(clients, settings)
    assert clients_read(found, clients) == {"client-3"}
    assert report == said(clients, without(settings))


def test_neither_size_nor_time_of_writing_hides_a_change(clients: Path, settings: Settings) -> None:
    """A client can set the latter, and not when the inode was changed."""
    said(clients, settings)
    weights = clients / "client-3" / "adapter_model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-4000:] = bytes(4000)
    with open(weights, "r+b") as file:
        file.write(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = weights.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
    with counted() as found:
        report = said(clients, settings)
    assert clients_read(found, clients) == {"client-3"}
    assert report == said(clients, without(settings))


def test_files_that_have_just_changed_are_hashed_again_by_the_next_run(
    clients: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "REST", 3600 * 10**9)
    said(clients, settings)
    with counted() as found:
        said(clients, settings)
    assert len(clients_read(found, clients)) == 7
    monkeypatch.setattr(files, "REST", 0)
    said(clients, settings)
    with counted() as found:
        said(clients, settings)
    assert clients_read(found, clients) == set()


@pytest.mark.parametrize("other", ["alpha", "seed", "dtype", "threads", "code", "since"])
def test_what_a_value_depends_on_is_in_its_name(
    clients: Path,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    said(clients, settings)
    changed: dict[str, Any] = {"seed": 1, "dtype": "float64", "threads": 2}
    if other == "alpha":
        for config in clients.glob("*/adapter_config.json"):
            text = json.loads(config.read_text()) | {"lora_alpha": 6}
            config.write_text(json.dumps(text))
    elif other == "code":
        monkeypatch.setattr(kept, "code", lambda: "another")
        kept.place.cache_clear()
    elif other == "since":
        sent = write_folder(tmp_path / "sent", factors(SHAPES), CONFIG)
        settings = replace(settings, since=sent)
    else:
        settings = replace(settings, **{other: changed[other]})
    count = len(entries(settings))
    report = said(clients, settings)
    assert len(entries(settings)) >= count + 7 * len(SHAPES)
    assert report == said(clients, without(settings))
    kept.place.cache_clear()


def test_a_client_like_another_in_all_but_content_gets_nothing_of_it(
    clients: Path, settings: Settings
) -> None:
    """Same names of client, file, modules and tensors, same sizes and times: only the hash differs."""
    said(clients, settings)
    hostile = clients / "client-6" / "adapter_model.safetensors"
    victim = clients / "client-1" / "adapter_model.safetensors"
    times = victim.stat()
    one, other = hostile.read_bytes(), victim.read_bytes()
    assert len(one) == len(other)
    hostile.write_bytes(other)
    victim.write_bytes(one)
    for path in (hostile, victim):
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    report = said(clients, settings)
    assert report == said(clients, without(settings))
    found = {c["id"]: c["verdict"] for c in report["clients"]}
    assert (found["client-1"], found["client-6"]) == ("contaminated", "benign")


# --- whatever is in the folder


def forged(path: Path, payload: bytes) -> None:
    """An entry whose sum fits."""
    name = f"{path.parent.name}/{path.name}".encode()
    path.write_bytes(MAGIC + hashlib.sha256(name + payload).digest() + payload)


def swapped(found: list[Path]) -> None:
    data = [p.read_bytes() for p in found]
    for path, other in zip(found, [*data[1:], data[0]], strict=True):
        path.write_bytes(other)


def flipped(found: list[Path]) -> None:
    for number, path in enumerate(found):
        data = bytearray(path.read_bytes())
        data[number % len(data)] ^= 1
        path.write_bytes(data)


def torn(found: list[Path]) -> None:
    for number, path in enumerate(found):
        os.truncate(path, path.stat().st_size * number // len(found))


def foreign(found: list[Path]) -> None:
    payloads = [
        b"",
        b"\xff" * 8,
        b"\x02" + bytes(7) + b"[]",
        (40).to_bytes(8, "little") + b'[{"left": ["float32", [-1, 9]]}, null]'.ljust(40),
        (40).to_bytes(8, "little") + b'[{"left": ["float32", [1e400]]}, {}]'.ljust(40),
        b"Z" * 64,
        b"[" * 100_000,
    ]
    for number, path in enumerate(found):
        forged(path, payloads[number % len(payloads)])


def shifted(found: list[Path]) -> None:
    """Sums and parts that fit, of other lengths than are wanted, or not finite."""
    for number, path in enumerate(found):
        payload = bytearray(path.read_bytes()[HEAD:])
        if number % 2:
            payload += bytes(8)
        else:
            payload[-8:] = b"\xff" * 8
        forged(path, bytes(payload))


@pytest.mark.parametrize("spoil", [swapped, flipped, torn, foreign, shifted])
@pytest.mark.parametrize("form", ["sketches", "whole updates", "matrices trained whole", "fit"])
def test_no_entry_that_is_wrong_changes_a_report(tmp_path: Path, spoil: Any, form: str) -> None:
    folder, more = forms(tmp_path, form)
    settings = Settings(cache=tmp_path / "cache", **more)

    def run(own: Settings, name: str) -> Any:
        if form != "fit":
            return said(folder, own)
        pipeline.fit(folder, tmp_path / f"{name}.clair", own)
        return pipeline.check(folder / "client-1", tmp_path / f"{name}.clair", own)[1].verdict

    fresh = run(without(settings), "fresh")
    run(settings, "cold")
    found = entries(settings)
    assert len(found) >= 7 + len(SHAPES)
    spoil(found)
    assert run(settings, "spoiled") == fresh
    with counted() as again:
        assert run(settings, "again") == fresh
    assert clients_read(again, folder) <= ({"client-1"} if form == "fit" else set())


# --- processes

STOPPED = """
    import os, signal, clair_cli.cache as cache, clair_cli.formats.files as files
    files.REST = 0
    real, done = cache.Cache.put, []
    def put(self, key, *data):
        real(self, key, *data)
        done.append(key)
        if len(done) == {after}:
            {deed}
    cache.Cache.put = put
"""
COUNTED = """
    import atexit, json
    from tests.helpers.counting import counted
    counting = counted()
    ranges = counting.__enter__()
    def tell():
        found = {{str(p): r for p, r in ranges.items() if p.suffix == ".safetensors"}}
        with open({log!r}, "w") as file:
            json.dump(found, file)
    atexit.register(tell)
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


def cohort(folder: Path) -> Path:
    """As many clients as are compared by sketches, without a setting that only Python has."""
    for k in range(1, 10):
        save_client(folder / f"client-{k}", k, 64)
    return folder


def command(clients: Path, cache: Path | None, *more: object) -> list[str]:
    kept = [] if cache is None else ["--cache", cache]
    return [*map(str, (SCRIPT, "detect", clients, "-f", "json", *kept, *more))]


def output(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    del report["run"]
    return report


def start(args: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(args, env=ENVIRONMENT | env, **pipes)


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    clients, cache = cohort(tmp_path / "clients"), tmp_path / "cache"
    fresh = output(clair(*command(clients, None)[1:]))
    env = hooked(tmp_path / "hook", STOPPED.format(after=9 + 9 + 4, deed=KILL))
    killed = clair(*command(clients, cache)[1:], env=env)
    assert killed.returncode == -signal.SIGKILL
    kept = len([p for p in cache.glob("??/*") if not p.name.startswith(".")])
    assert kept == 9 + 9 + 4  # hashes, all of the first module, some of the second
    log = tmp_path / "ranges.json"
    code = textwrap.dedent(STOPPED.format(after=10**9, deed="pass"))
    env = hooked(tmp_path / "hook", code + textwrap.dedent(COUNTED.format(log=str(log))))
    env["PYTHONPATH"] += f":{ROOT}"
    assert output(clair(*command(clients, cache)[1:], env=env)) == fresh
    ranges = {Path(p): [(a, b) for a, b in r] for p, r in json.loads(log.read_text()).items()}
    sizes = [p.stat().st_size for p in clients.glob("*/*.safetensors")]
    done = sum(b - a for r in ranges.values() for a, b in r)
    assert clients_read(ranges, clients) == {f"client-{k}" for k in range(1, 10)}
    assert done < 0.6 * sum(sizes)  # 14 of 27 updates, and headers; all of it twice without


def test_two_runs_at_once_share_a_folder(tmp_path: Path) -> None:
    clients, cache = cohort(tmp_path / "clients"), tmp_path / "cache"
    fresh = output(clair(*command(clients, None)[1:]))
    env = hooked(tmp_path / "hook", STOPPED.format(after=10**9, deed="pass"))
    args = command(clients, cache, "--cache-size", "3M")
    running = [start(args, env) for _ in range(3)]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert output(subprocess.CompletedProcess(args, process.returncode, out, err)) == fresh
        assert err == "FAIL: 1 contaminated\n"
    taken = sum(-(-p.stat().st_size // 4096) * 4096 for p in cache.glob("??/*"))
    assert 0 < taken <= 3 * 2**20 * (1 + 3 / 16)


@pytest.mark.parametrize(
    "deed",
    [
        "import shutil; shutil.rmtree(self.folder)",
        "import shutil; [shutil.rmtree(p) for p in self.folder.glob('??')]",
        "import shutil; shutil.rmtree(self.folder); self.folder.write_text('')",
        "self._write = lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left on device'))",
        "self._write = lambda *a: (_ for _ in ()).throw(OSError(30, 'Read-only file system'))",
    ],
)
def test_whatever_becomes_of_the_folder_is_a_remark_at_most(tmp_path: Path, deed: str) -> None:
    clients, cache = cohort(tmp_path / "clients"), tmp_path / "cache"
    fresh = clair(*command(clients, None)[1:])
    env = hooked(tmp_path / "hook", STOPPED.format(after=15, deed=deed))
    done = clair(*command(clients, cache)[1:], env=env)
    assert output(done) == output(fresh)
    assert done.returncode == fresh.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line != "FAIL: 1 contaminated"]
    assert len(lines) == (0 if "glob" in deed else 1)
    assert all("--cache" in line and "the run goes on without" in line for line in lines)


@pytest.mark.parametrize("place", ["clients/cache", "clients/client-1", "out/cache", "out", "."])
def test_a_cache_among_what_is_read_or_written_is_refused_before_anything_is_read(
    tmp_path: Path, place: str
) -> None:
    clients = save_clients(tmp_path / "clients", 3)
    before = fingerprint(clients)
    done = clair("refine", clients, "--out", tmp_path / "out", "--cache", tmp_path / place)
    assert done.returncode == 2
    assert "--cache" in done.stderr
    assert fingerprint(clients) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clients"]


def test_the_option_may_stand_in_a_variable_and_in_a_file(tmp_path: Path) -> None:
    clients = save_clients(tmp_path / "clients", 3)
    clair("detect", clients, env={"CLAIR_CACHE": str(tmp_path / "one")})
    (tmp_path / "clair.toml").write_text('cache = "two"\ncache-size = "1G"\n')
    clair("detect", clients, cwd=tmp_path)
    assert all(any((tmp_path / n).glob("??/*")) for n in ("one", "two"))


def test_a_cache_that_cannot_hold_an_entry_costs_nothing(clients: Path, settings: Settings) -> None:
    small = replace(settings, cache_size=0)
    began = time.monotonic()
    assert said(clients, small) == said(clients, without(settings))
    assert entries(small) == []
    assert time.monotonic() - began < 60
