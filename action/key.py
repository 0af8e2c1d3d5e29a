"""The cache key of the action: key.py ADAPTERS SETTINGS prints `key=clair-<version>-<sha256>`.

The hash is that of every file's name and bytes among the adapters, of clair's own source, and of the
settings. A link counts by where it points and is not followed; what cannot be read counts as that.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "clair_cli"


def content(path: Path) -> bytes:
    """The sha256 of a file's bytes, or what stands for it."""
    if path.is_symlink():
        return b"link " + os.fsencode(os.readlink(path))
    if not path.is_file():
        return b"no file"
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError:
        return b"unreadable"
    return digest.digest()


def tree(folder: Path, pattern: str = "*") -> bytes:
    """The sha256 of names and contents of all that is below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob(pattern), key=os.fsencode):
        for part in (os.fsencode(path.relative_to(folder)), content(path)):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def main() -> None:
    adapters, settings = Path(sys.argv[1]), sys.argv[2]
    (version,) = re.findall(r'__version__ = "([\w.+]+)"', (PACKAGE / "_version.py").read_text())
    parts = (tree(adapters), tree(PACKAGE, "*.py"), tree(PACKAGE, "*.json"), settings.encode())
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    print(f"key=clair-{version}-{key}")


if __name__ == "__main__":
    main()
