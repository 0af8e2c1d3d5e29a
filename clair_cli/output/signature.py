"""A statement of what was made from what, signed by Ed25519: in-toto's, in its envelope, DSSE.

The statement names every file of an output with its sha256, manifest and report included, the files
that it was made from, the settings, and the version. It is written last, so no file lists it. Only
`cryptography` computes; it is loaded where a key is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clair_cli.errors import SettingError, UsageError
from clair_cli.output import manifest
from clair_cli.output.folders import REPORT
from clair_cli.output.manifest import MANIFEST, STATEMENT, Differences
from clair_cli.output.publish import write_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:clair:refine:v1"
MAX_KEY_BYTES = 2**16


# --- keys


def sealer(place: Path, version: str) -> Callable[[Path], None]:
    """What signs a folder that is otherwise complete, with the private key at `place`.

    Raises SettingError, before anything is computed, where there is no Ed25519 key that can be used.
    """
    key = _key(place, "sign", private=True)
    return partial(_seal, key=key, version=version)


def public_key(place: Path) -> Ed25519PublicKey:
    """The public key in a file, PEM or OpenSSH's. Raises SettingError."""
    key: Ed25519PublicKey = _key(place, "key", private=False)
    return key


def _key(place: Path, option: str, private: bool) -> Any:
    kind = "private" if private else "public"
    shown = f"{option}: {str(place)!r}"
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        text = "signatures need the library cryptography; install clair-cli[sign]"
        raise SettingError(f"{option}: {text}") from None
    try:
        with open(place, "rb") as file:
            data = file.read(MAX_KEY_BYTES)
    except (OSError, ValueError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise SettingError(f"{shown} cannot be read: {why}") from None
    try:
        if private:
            load = s.load_ssh_private_key if b"OPENSSH" in data[:64] else s.load_pem_private_key
            key: Any = load(data, password=None)
        else:
            ssh = data.startswith(b"ssh-")
            key = s.load_ssh_public_key(data) if ssh else s.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        if b"PRIVATE KEY" in data and not private:
            text = "a private key; give the public one that belongs to it"
        else:
            open_one = " without a passphrase" if private else ""
            text = f"no {kind} key{open_one}, in PEM or OpenSSH's form"
        raise SettingError(f"{shown} holds {text}") from None
    wanted = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    if not isinstance(key, wanted):
        raise SettingError(f"{shown} holds a key that is not Ed25519; make one of that kind")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """The sha256 of the 32 bytes of the key."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


# --- signing


def _seal(folder: Path, key: Ed25519PrivateKey, version: str) -> None:
    """Write the signed statement on a folder whose report and manifest are there."""
    payload = json.dumps(statement(folder, version), indent=1, allow_nan=False).encode()
    signature = {
        "keyid": key_id(key.public_key()),
        "sig": base64.b64encode(key.sign(_signed(payload))).decode(),
    }
    envelope = {
        "payloadType": PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [signature],
    }
    write_bytes(folder / STATEMENT, json.dumps(envelope, indent=1).encode() + b"\n")


def statement(folder: Path, version: str) -> dict[str, Any]:
    """What in-toto calls a statement, with SLSA's provenance, of an output of clair."""
    report = json.loads((folder / REPORT).read_bytes())
    listed = manifest.load_manifest(folder)
    written = {f.name: (f.size, f.sha256) for f in listed.files} if listed else {}
    own = manifest.facts(folder / MANIFEST)
    written[MANIFEST] = (own["size"], own["sha256"])
    subjects = [
        {"name": name, "digest": {"sha256": sha256}, "annotations": {"size": size}}
        for name, (size, sha256) in sorted(written.items())
    ]
    read = [("", client) for client in report["inputs"]["clients"]]
    read += [("since/", one) for one in report["inputs"].get("since", {}).get("adapters", [])]
    inputs = [
        {"name": f"{above}{one['id']}/{file['name']}", "digest": {"sha256": file["sha256"]}}
        for above, one in read
        for file in one["files"]
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"settings": report["settings"]},
                "resolvedDependencies": inputs,
            },
            "runDetails": {
                "builder": {"id": "urn:clair", "version": {"clair": version}},
                "metadata": {"startedOn": report["run"]["started_at"]},
            },
        },
    }


def _signed(payload: bytes) -> bytes:
    """What DSSE signs: type and payload with their lengths, so that neither can pass for the other."""
    return b"DSSEv1 %d %b %d %b" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


# --- checking


def compared(out: Path, key: Ed25519PublicKey) -> tuple[int, Differences]:
    """How many files were compared, and those that are not what the holder of the key has signed.

    Where no statement of theirs is there, all files are compared with the manifest instead.
    """
    return manifest.steady(out, partial(_compared, key=key))


def _compared(out: Path, key: Ed25519PublicKey) -> tuple[int, Differences]:
    try:
        payload = _payload(out, key)
        wanted = {str(s["name"]): _signed_facts(s) for s in json.loads(payload)["subject"]}
    except UsageError as why:
        total, found = manifest.compared(out)
        return total + 1, sorted([(STATEMENT, str(why)), *found])
    except (ValueError, KeyError, TypeError, RecursionError):  # signed, but not by clair
        total, found = manifest.compared(out)
        return total + 1, sorted([(STATEMENT, "not a statement of clair"), *found])
    return manifest.compared_with(out, wanted, {STATEMENT}, ("in the signed statement", "signed"))


def _signed_facts(subject: Any) -> dict[str, Any]:
    """Size and sha256 of a file in the statement. Raises ValueError, KeyError or TypeError."""
    size, sha256 = subject["annotations"]["size"], subject["digest"]["sha256"]
    if type(size) is not int or type(sha256) is not str:
        raise ValueError("no size and sha256 of a file")
    return {"size": size, "sha256": sha256}


def _payload(out: Path, key: Ed25519PublicKey) -> bytes:
    """The very bytes that the holder of the key has signed. Raises UsageError where there are none."""
    from cryptography.exceptions import InvalidSignature

    try:
        envelope = json.loads(manifest.read_file(out / STATEMENT))
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(s["sig"], validate=True) for s in envelope["signatures"]]
        fits = envelope["payloadType"] == PAYLOAD
    except OSError:
        raise UsageError("missing: nothing is signed") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError("torn, or not a signed statement") from None
    for signature in signatures if fits else ():
        try:
            key.verify(signature, _signed(payload))
        except InvalidSignature:
            continue
        return payload
    raise UsageError("not signed by this key")
