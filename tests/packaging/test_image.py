"""What the image promises: clair runs as a stranger, with a read-only root and without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import SCRIPT, samples

INSIDE = """\
set -eu
mount --bind -o ro / "$ROOT"
mount -o remount,bind,ro "$ROOT"
mount --rbind /dev "$ROOT/dev"
mount --bind "$OUT" "$ROOT$OUT"
exec chroot "$ROOT" setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs \\
  env -i PATH=/usr/bin:/bin OMP_NUM_THREADS=1 sh -c "$COMMAND"
"""


def isolated(command: str, root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """A command of nobody's, without HOME, that can write below `out` only and reach no host."""
    env = {"PATH": os.environ["PATH"], "ROOT": str(root), "OUT": str(out), "COMMAND": command}
    return subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", INSIDE],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="needs to be root on Linux, with unshare and setpriv",
)
def test_clair_runs_as_a_stranger_with_a_read_only_root_and_no_network(tmp_path: Path) -> None:
    place, root = Path("/var/tmp") / tmp_path.name, tmp_path / "root"
    shutil.rmtree(place, ignore_errors=True)
    samples(place / "adapters")
    root.mkdir()
    out = place / "out"
    out.mkdir()
    out.chmod(0o777)
    try:
        probe = isolated(f"touch {out}/mine && test ! -w / && test ! -w /tmp && id -u", root, out)
        if "mount" in probe.stderr or "unshare" in probe.stderr:
            pytest.skip(f"this machine does not let mount: {probe.stderr.strip()}")
        assert (probe.returncode, probe.stdout) == (0, "65532\n"), probe.stderr
        assert isolated("touch /tmp/clair-no", root, out).returncode != 0
        if isolated(f"test -x {os.path.realpath(sys.executable)}", root, out).returncode:
            pytest.skip(
                f"a stranger may not run {sys.executable}: it lies in a folder of its owner"
            )
        adapters = place / "adapters"
        found = isolated(f"{SCRIPT} detect {adapters} -q -o json={out}/r.json", root, out)
        assert found.returncode == 1, found.stderr
        made = isolated(f"{SCRIPT} refine {adapters} --out {out}/refined -q", root, out)
        assert made.returncode == 0, made.stderr
        assert isolated(f"{SCRIPT} verify {out}/refined", root, out).returncode == 0
    finally:
        shutil.rmtree(place)
