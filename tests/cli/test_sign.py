"""`clair refine --sign`, `clair verify --key`: who has the public key sees every change, and which."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tests.helpers.cohorts import save_cohort
from tests.helpers.commands import WEIGHTS, fingerprint, quick

STATEMENT = "statement.dsse.json"
FIRST = f"client-1/{WEIGHTS}"


def save_keys(folder: Path, name: str, openssh: bool = False) -> None:
    """A key pair: NAME and NAME.pub."""
    key = Ed25519PrivateKey.generate()
    kind = s.PrivateFormat.OpenSSH if openssh else s.PrivateFormat.PKCS8
    private = key.private_bytes(s.Encoding.PEM, kind, s.NoEncryption())
    form = s.PublicFormat.OpenSSH if openssh else s.PublicFormat.SubjectPublicKeyInfo
    encoding = s.Encoding.OpenSSH if openssh else s.Encoding.PEM
    (folder / name).write_bytes(private)
    (folder / f"{name}.pub").write_bytes(key.public_key().public_bytes(encoding, form))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One round, two outputs of it signed by one key, and the pair of another."""
    folder = tmp_path_factory.mktemp("signed")
    save_cohort(folder / "in", 3)
    save_keys(folder, "key")
    save_keys(folder, "stranger", openssh=True)
    for out, strength, key in (
        ("out", 0.5, "key"),
        ("other", 1, "key"),
        ("theirs", 0.5, "stranger"),
    ):
        options = ("--strength", strength, "--sign", folder / key, "--global", "-q")
        done = quick(folder, "refine", folder / "in", "--out", folder / out, *options)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "x"))


def verify(place: Path, *options: object, key: str = "key.pub") -> CompletedProcess[str]:
    before = fingerprint(place / "out")
    done = quick(place, "verify", place / "out", "--key", place / key, *options)
    assert fingerprint(place / "out") == before
    return done


def files(out: Path) -> list[str]:
    return sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_was_signed_passes_with_the_key_and_without(place: Path) -> None:
    count = len(files(place / "out"))
    done = verify(place)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"PASS: {count - 1} files as they were signed\n"
    without = quick(place, "verify", place / "out")
    assert without.returncode == 0
    first, second = without.stdout.splitlines()
    assert (first, "--key" in second) == (f"PASS: {count - 2} files as they were written", True)
    said = json.loads(verify(place, "-f", "json").stdout)
    assert (said["signed"], said["checked"], said["compared"]) == (True, True, count - 1)
    assert quick(place, "verify", place / "theirs", "--key", place / "stranger.pub").returncode == 0


def test_the_statement_says_what_was_made_from_what_and_how(place: Path) -> None:
    """Read as DSSE and in-toto say, without clair."""
    out = place / "out"
    envelope = json.loads((out / STATEMENT).read_text())
    payload = base64.b64decode(envelope["payload"])
    public = s.load_pem_public_key((place / "key.pub").read_bytes())
    assert isinstance(public, Ed25519PublicKey)
    kind = "application/vnd.in-toto+json"
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    (signature,) = envelope["signatures"]
    public.verify(base64.b64decode(signature["sig"]), signed)
    assert signature["keyid"] == hashlib.sha256(public.public_bytes_raw()).hexdigest()
    assert envelope["payloadType"] == kind
    said = json.loads(payload)
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    found = {x["name"]: x["digest"]["sha256"] for x in said["subject"]}
    assert found == {name: sha256(out / name) for name in files(out) if name != STATEMENT}
    assert {"report.json", "manifest.json", FIRST, f"global/{WEIGHTS}"} <= found.keys()
    how = said["predicate"]["buildDefinition"]
    inputs = {x["name"]: x["digest"]["sha256"] for x in how["resolvedDependencies"]}
    assert inputs == {name: sha256(place / "in" / name) for name in files(place / "in")}
    report = json.loads((out / "report.json").read_text())
    assert how["externalParameters"]["settings"] == report["settings"]
    assert report["settings"]["strength"] == 0.5
    ran = said["predicate"]["runDetails"]
    assert ran["builder"]["version"] == {"clair": report["tool"]["version"]}
    assert ran["metadata"]["startedOn"] == report["run"]["started_at"]
    assert str(place.parent) not in payload.decode()


# --- what differs


def changed(name: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        data = bytearray((place / "out" / name).read_bytes())
        data[-3] ^= 1
        (place / "out" / name).write_bytes(data)

    return spoil


def with_a_manifest_that_fits(place: Path) -> None:
    """A better verdict in the report, and a manifest such as clair would have written."""
    out = place / "out"
    report = (out / "report.json").read_text()
    (out / "report.json").write_text(report.replace('"benign"', '"broken"'))
    data = json.loads((out / "manifest.json").read_text())
    for file in data["files"]:
        facts = {"size": (out / file["name"]).stat().st_size, "sha256": sha256(out / file["name"])}
        file |= facts
    (out / "manifest.json").write_text(json.dumps(data))
    assert quick(place, "verify", out).returncode == 0


def envelope(**fields: Any) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        data = json.loads((place / "out" / STATEMENT).read_text())
        (place / "out" / STATEMENT).write_text(json.dumps(data | fields))

    return spoil


def taken_from(name: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        shutil.copy(place / name / STATEMENT, place / "out" / STATEMENT)

    return spoil


def other_payload(place: Path) -> None:
    other = json.loads((place / "theirs" / STATEMENT).read_text())
    envelope(payload=other["payload"])(place)


def a_file_more(place: Path) -> None:
    (place / "out" / "more").write_bytes(b"x")


def a_file_less(place: Path) -> None:
    (place / "out" / FIRST).unlink()


def without_statement(place: Path) -> None:
    (place / "out" / STATEMENT).unlink()


def written(data: bytes) -> Callable[[Path], None]:
    return lambda place: (place / "out" / STATEMENT).write_bytes(data) and None  # type: ignore[func-returns-value]


SINCE = "changed since it was signed"
UNSIGNED = {STATEMENT: "not signed by this key"}
TORN = {STATEMENT: "torn, or not a signed statement"}
SPOILED: dict[str, tuple[Callable[[Path], None], dict[str, str]]] = {
    "tampered report": (changed("report.json"), {"report.json": SINCE}),
    "tampered report, manifest to fit": (
        with_a_manifest_that_fits,
        {"report.json": SINCE, "manifest.json": SINCE},
    ),
    "tampered weights": (changed(FIRST), {FIRST: SINCE}),
    "a file more": (a_file_more, {"more": "not in the signed statement"}),
    "a file less": (a_file_less, {FIRST: "missing"}),
    "no signature": (without_statement, {STATEMENT: "missing: nothing is signed"}),
    "another's signature": (taken_from("theirs"), UNSIGNED),
    "another's statement under this signature": (other_payload, UNSIGNED),
    "another type": (envelope(payloadType="text/plain"), UNSIGNED),
    "no signatures": (envelope(signatures=[]), UNSIGNED),
    "signatures that are none": (envelope(signatures=[{"sig": "AA=="}]), UNSIGNED),
    "no list": (envelope(signatures=3), TORN),
    "no base64": (envelope(payload="{}"), TORN),
    "nested without end": (written(b"[" * 100_000), TORN),
    "empty": (written(b""), TORN),
    "not text": (written(b"\xff\xfe"), TORN),
}


@pytest.mark.parametrize("name", SPOILED)
def test_every_difference_from_what_was_signed_is_counted_and_named(name: str, place: Path) -> None:
    spoil, wanted = SPOILED[name]
    spoil(place)
    done = verify(place, "-f", "json")
    assert (done.returncode, done.stderr) == (1, "")
    said = json.loads(done.stdout)
    assert {d["name"]: d["difference"] for d in said["differences"]} == wanted
    plain = verify(place).stdout.splitlines()
    count, why = said["compared"], wanted.get(STATEMENT)
    fail = f"FAIL: {len(wanted)} of {count} files differ"
    unsigned = f"FAIL: {STATEMENT} is {why}; {count - 1} files as written"
    assert plain[-1] == (fail if why is None else unsigned)
    here = {*files(place / "out"), *wanted} - {STATEMENT}
    # where nothing is signed all is compared with the manifest, which then is not counted itself
    assert said["compared"] == len(here)


def test_nobody_waits_for_the_end_of_a_file_that_has_grown_to_terabytes(place: Path) -> None:
    os.truncate(place / "out" / FIRST, 2**43)
    done = quick(place, "verify", place / "out", "--key", place / "key.pub")
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, f"{FIRST}: {SINCE}")


def test_the_signature_of_another_output_fits_no_file_that_differs(place: Path) -> None:
    taken_from("other")(place)
    done = verify(place, "-f", "json")
    assert done.returncode == 1
    names = {d["name"] for d in json.loads(done.stdout)["differences"]}
    differing = {
        n for n in files(place / "out") if sha256(place / "out" / n) != sha256(place / "other" / n)
    }
    assert names == differing - {STATEMENT}
    assert {"report.json", "manifest.json", FIRST} <= names


def test_a_tampered_manifest_is_seen_by_the_key_alone(place: Path) -> None:
    file = place / "out" / "manifest.json"
    file.write_text(file.read_text() + "\n")
    assert quick(place, "verify", place / "out").returncode == 0
    done = verify(place)
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, f"manifest.json: {SINCE}")


def test_what_differs_is_counted_apart_from_a_signature_that_does_not_hold(place: Path) -> None:
    a_file_less(place)
    done = verify(place, "-q", key="stranger.pub")
    assert (done.returncode, done.stdout) == (1, "")
    said = f"FAIL: {STATEMENT} is not signed by this key; 1 of [0-9]+ files differ\n"
    assert re.fullmatch(said, done.stderr)


def test_a_wrong_key_says_so(place: Path) -> None:
    done = verify(place, key="stranger.pub")
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        1,
        f"{STATEMENT}: not signed by this key",
    )


def test_a_signed_output_can_be_overwritten_and_chosen_from(place: Path) -> None:
    out = place / "out"
    options = ("--overwrite", "--path", "0,1", "--sign", place / "key", "-q")
    assert quick(place, "refine", place / "in", "--out", out, *options).returncode == 0
    assert verify(place).returncode == 0
    score = ("--eval", "echo {adapter} 1", "--out", place / "chosen")
    assert quick(place, "select", out, *score).returncode == 0
    plain = ("--overwrite", "-q")
    assert quick(place, "refine", place / "in", "--out", out, *plain).returncode == 0
    assert not (out / STATEMENT).exists()


# --- keys


def other_kind(file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    form = (s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    file.write_bytes(key.private_bytes(*form))


def with_passphrase(file: Path) -> None:
    form = (s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x"))
    file.write_bytes(Ed25519PrivateKey.generate().private_bytes(*form))


KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda file: None, "No such file"),
    "a folder": (lambda file: file.mkdir(), "Is a directory"),
    "no key": (lambda file: file.write_bytes(b"x"), "no private key"),
    "of another kind": (other_kind, "not Ed25519"),
    "with a passphrase": (with_passphrase, "without a passphrase"),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_key_that_cannot_sign_is_refused_before_anything_is_read(
    name: str, tmp_path: Path
) -> None:
    make, words = KEYS[name]
    (tmp_path / "in").mkdir()  # empty: reading it would be another error
    make(tmp_path / "key")
    out = ("--out", tmp_path / "out")
    done = quick(tmp_path, "refine", tmp_path / "in", *out, "--sign", tmp_path / "key")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--sign" in done.stderr
    assert words in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_private_key_is_no_public_one(place: Path) -> None:
    done = verify(place, key="key")
    assert (done.returncode, "holds a private key; give the public" in done.stderr) == (2, True)
    assert done.stdout == ""


def test_without_the_library_the_remedy_is_said(place: Path) -> None:
    hook = "import sys; sys.modules['cryptography'] = None"
    options = ("verify", place / "out", "--key", place / "key.pub")
    done = quick(place, *options, hook=hook)
    assert (done.returncode, "clair-cli[sign]" in done.stderr) == (2, True)
    assert quick(place, "verify", place / "out", hook=hook).returncode == 0


@pytest.mark.parametrize("tool", ["openssl", "ssh-keygen"])
def test_keys_of_common_tools_are_taken(tool: str, place: Path) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here")
    if tool == "openssl":
        make = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", "made"]
        subprocess.run(make, cwd=place, check=True, capture_output=True)
        out = ["openssl", "pkey", "-in", "made", "-pubout", "-out", "made.pub"]
        subprocess.run(out, cwd=place, check=True, capture_output=True)
    else:
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "made"]
        subprocess.run(make, cwd=place, check=True, capture_output=True)
    options = ("--overwrite", "--sign", place / "made", "-q")
    done = quick(place, "refine", place / "in", "--out", place / "out", *options)
    assert done.returncode == 0, done.stderr
    assert verify(place, key="made.pub").returncode == 0
