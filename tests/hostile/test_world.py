"""What else a folder of strangers or a poor machine can do: numbers, rights, code, secrets, signals."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import (
    CONFIG,
    ENVIRONMENT,
    SCRIPT,
    WEIGHTS,
    change_config,
    clair,
    fingerprint,
    hooked,
    quick,
    verdicts,
)

HONEST = ["client-1", "client-2", "client-3", "client-4"]
SPOILED = "client-5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four honest clients and one to be spoiled, as honest."""
    save_cohort(tmp_path / "round", 5)
    return tmp_path / "round"


def judged(folder: Path, *options: object, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report of `clair detect`, and the spoiled client's part; the folder stays as it is."""
    done = clair("detect", folder, "-f", "json", *options, **how)
    report = json.loads(done.stdout)
    assert done.returncode == report["exit_code"], done.stderr
    assert len(report["clients"]) == 5
    return report, next(c for c in report["clients"] if c["id"] == SPOILED)


# --- numbers


def scaled(client: Path, factor: float, sides: str, dtype: str) -> None:
    tensors = load_file(client / WEIGHTS)
    for name in tensors:
        large = any(f"lora_{side}" in name for side in sides)
        tensors[name] = (tensors[name].astype("f8") * (factor if large else 1)).astype(dtype)
    save_file(tensors, client / WEIGHTS, {"format": "pt"})


NUMBERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "overflow only in the product": (lambda c: scaled(c, 1e30, "AB", "f4"), "overflows"),
    "overflow only in float64": (lambda c: scaled(c, 1e200, "AB", "f8"), "overflows"),
    "overflow only by alpha": (lambda c: change_config(c, lora_alpha=1e308), "overflows"),
    "NaN in one place of A": (lambda c: poked(c, "lora_A", np.nan), "1 NaN"),
    "Inf in one place of B": (lambda c: poked(c, "lora_B", -np.inf), "1 Inf"),
}


def poked(client: Path, side: str, value: float) -> None:
    tensors = load_file(client / WEIGHTS)
    tensors[min(n for n in tensors if side in n)][0, 1] = value
    save_file(tensors, client / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_not_finite_or_multiply_to_none_break_one_client(
    name: str, folder: Path
) -> None:
    spoil, words = NUMBERS[name]
    spoil(folder / SPOILED)
    report, client = judged(folder)
    assert verdicts(report) == dict.fromkeys(HONEST, "benign") | {SPOILED: "broken"}
    assert client["reasons"][0]["code"] == "CLR103"
    assert words in client["reasons"][0]["message"]


@pytest.mark.parametrize("factor", [1e-30, 0.0], ids=["tiny", "zero"])
def test_numbers_too_small_to_matter_crash_nothing(factor: float, folder: Path) -> None:
    scaled(folder / SPOILED, factor, "AB", "f4")
    report, client = judged(folder)
    assert {c: v for c, v in verdicts(report).items() if c in HONEST} == dict.fromkeys(
        HONEST, "benign"
    )
    assert client["verdict"] in ("contaminated", "broken", "suspicious")


# --- rights


def without_override() -> None:
    """Even root may then read only what the permissions allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # DAC_OVERRIDE, DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("name", ["weights", "config", "folder"])
def test_what_may_not_be_read_is_broken_and_says_so(name: str, folder: Path) -> None:
    place = {"weights": WEIGHTS, "config": CONFIG, "folder": "."}[name]
    (folder / SPOILED / place).chmod(0)
    try:
        report, client = judged(folder, preexec_fn=without_override)
    finally:
        (folder / SPOILED / place).chmod(0o755)
    assert verdicts(report) == dict.fromkeys(HONEST, "benign") | {SPOILED: "broken"}
    assert client["reasons"][0]["code"] == "CLR101"
    assert "Permission denied" in client["reasons"][0]["message"]


def test_an_unreadable_round_is_a_usage_error(folder: Path) -> None:
    folder.chmod(0)
    try:
        done = clair("detect", folder, preexec_fn=without_override)
    finally:
        folder.chmod(0o755)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


EIO = """
    import errno, os
    real = os.preadv
    def preadv(fd, *arguments):
        if "/{client}/" in os.readlink(f"/proc/self/fd/{{fd}}"):
            raise OSError(errno.{name}, os.strerror(errno.{name}))
        return real(fd, *arguments)
    os.preadv = preadv
"""


@pytest.mark.parametrize("name", ["EIO", "ESTALE"])
def test_a_disk_that_fails_breaks_one_client(name: str, folder: Path, tmp_path: Path) -> None:
    env = hooked(tmp_path / "hook", EIO.format(client=SPOILED, name=name))
    report, client = judged(folder, env=env)
    assert verdicts(report) == dict.fromkeys(HONEST, "benign") | {SPOILED: "broken"}
    assert client["reasons"][0]["code"] == "CLR101"


# --- files that move


def test_files_that_are_cut_off_and_grow_again_all_the_time_kill_nobody(
    folder: Path, tmp_path: Path
) -> None:
    """No SIGBUS, no hang, and whoever was judged has the digest of the bytes that were used."""
    file = folder / SPOILED / WEIGHTS
    whole, stop = file.read_bytes(), threading.Event()

    def flap() -> None:
        while not stop.is_set():
            os.truncate(file, 64)
            time.sleep(0.001)
            file.write_bytes(whole)
            time.sleep(0.003)

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        for _ in range(6):
            done = quick(tmp_path, "detect", folder, "-f", "json")
            assert done.returncode in (0, 1), done.stderr
            found = {c["id"]: c for c in json.loads(done.stdout)["clients"]}
            assert {found[c]["verdict"] for c in HONEST} == {"benign"}
            codes = [r["code"] for r in found[SPOILED]["reasons"]]
            assert found[SPOILED]["verdict"] == "benign" or codes[0] in (
                "CLR101",
                "CLR102",
                "CLR112",
            )
    finally:
        stop.set()
        thread.join()


# --- code and the network

ISOLATED = """
    import atexit, socket, subprocess, sys
    def refuse(*arguments, **named):
        raise SystemExit("went out")
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    subprocess.Popen.__init__ = refuse
    def tell():
        with open({log!r}, "w") as file:
            file.write(" ".join(sys.modules))
    atexit.register(tell)
"""


def test_a_config_that_asks_for_code_gets_none_and_nothing_goes_out(
    folder: Path, tmp_path: Path
) -> None:
    asks = {
        "auto_mapping": {"base_model_class": "Evil", "parent_library": "evil_module"},
        "auto_map": {"AutoModel": "evil_module.Evil"},
        "trust_remote_code": True,
        "base_model_name_or_path": "https://example.org/evil",
        "tokenizer_name_or_path": "file:///etc/passwd",
    }
    change_config(folder / SPOILED, **asks)
    canary = tmp_path / "canary"
    for place in (folder / SPOILED / "evil_module.py", folder / "evil_module.py"):
        place.write_text(f"open({str(canary)!r}, 'w')")
    env = hooked(tmp_path / "hook", ISOLATED.format(log=str(tmp_path / "modules")))
    before = fingerprint(folder)
    report, client = judged(folder, env=env, cwd=folder)
    assert (fingerprint(folder), canary.exists()) == (before, False)
    assert client["verdict"] == "benign"
    assert {r["code"] for r in client["reasons"]} == {"CLR113"}
    loaded = {m.split(".")[0] for m in (tmp_path / "modules").read_text().split()}
    assert "clair_cli" in loaded
    assert not loaded & {
        "peft",
        "transformers",
        "evil_module",
        "pickle5",
        "huggingface_hub",
        "requests",
    }
    assert report["status"] == "complete"


# --- secrets

SECRET = "hf_5up3rS3cr3tT0k3n"


def test_nothing_of_the_environment_is_in_any_output(folder: Path, tmp_path: Path) -> None:
    env = {"HF_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    out = tmp_path / "out"
    said = [clair("refine", folder, "--out", out, "-f", "json", env=env)]
    said += [
        clair("inspect", folder / SPOILED, env=env),
        clair("detect", tmp_path / "none", env=env),
    ]
    crash = hooked(tmp_path / "hook", "import os\ndel os.preadv")
    said.append(clair("detect", folder, "-vv", env=env | crash))
    assert [s.returncode for s in said] == [0, 0, 2, 70]
    written = "".join(p.read_text(errors="replace") for p in out.rglob("*") if p.is_file())
    assert SECRET not in written + "".join(s.stdout + s.stderr for s in said)


# --- signals


def test_a_second_signal_ends_at_once(folder: Path, tmp_path: Path) -> None:
    """While the first is still being tidied up after, which here takes a minute."""
    hook = """
        import os, shutil, time
        real = os.fsync
        def fsync(descriptor):
            time.sleep(60)
        os.fsync = fsync
        shutil.rmtree = lambda *a, **k: time.sleep(60)
    """
    out = tmp_path / "out"
    child = subprocess.Popen(
        [str(SCRIPT), "refine", str(folder), "--out", str(out)],
        env=ENVIRONMENT | hooked(tmp_path / "hook", hook),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 40
    while not any(s.rglob(WEIGHTS) for s in tmp_path.glob(".out.*")) and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=10) in (-signal.SIGINT, 130)
    assert not out.exists()


# --- kinds of files that are none


POLYGLOTS = {
    "pickle in front": b"\x80\x04\x95" + b"\0" * 64,
    "zip in front": b"PK\3\4" + b"\0" * 64,
    "zip behind": None,
    "html": b"<script>alert(1)</script>" * 4,
    "ELF": b"\x7fELF" + b"\0" * 64,
}


@pytest.mark.parametrize("name", POLYGLOTS)
def test_a_file_of_two_kinds_is_none(name: str, folder: Path) -> None:
    """A reader that took it for a zip would unpickle what lies behind the tensors."""
    file, data = folder / SPOILED / WEIGHTS, POLYGLOTS[name]
    behind = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 0, 0, 0, 0, 0)
    file.write_bytes(file.read_bytes() + behind if data is None else data)
    report, client = judged(folder)
    assert client["verdict"] == "broken"
    assert client["reasons"][0]["code"] in ("CLR102", "CLR109")
    assert report["counts"]["benign"] == 4


def test_the_input_as_an_alias_of_itself_is_still_the_input(folder: Path, tmp_path: Path) -> None:
    """A bind mount has another path and no link in it; device and inode tell."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Umr", "true"]).returncode:
        pytest.skip("no user namespaces here")
    (tmp_path / "alias").mkdir()
    script = (
        f"mount --bind {folder} {tmp_path}/alias && {SCRIPT} refine {folder} --out {tmp_path}/alias"
    )
    for place in ("", "/out"):
        command = ["unshare", "-Umr", "bash", "-c", script + place]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert done.returncode == 2
        assert "input folder" in done.stderr
