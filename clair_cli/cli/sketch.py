"""clair sketch: a small summary of an adapter, by which it can be judged."""

from __future__ import annotations

from hashlib import sha256

from clair_cli.cli import options as o
from clair_cli.cli import sketching as s
from clair_cli.cli.delivery import place_for
from clair_cli.cli.given import settings_from
from clair_cli.cli.streams import fail, print_out
from clair_cli.errors import AdapterError, UsageError
from clair_cli.renderers import RENDERERS
from clair_cli.results import SketchWritten


def sketch(
    adapter: s.OneAdapter,
    output: s.SketchFile,
    size: s.Size = 64,
    seed: s.Seed = 0,
    read_as: o.ReadAs = None,
    base: o.Base = None,
    config: o.Config = None,
    alpha: o.Alpha = None,
    reference: o.Reference = None,
    follow_symlinks: o.Links = False,
    max_header_bytes: o.MaxHeader = o.MAX_HEADER,
    max_memory: o.MaxMemory = o.MAX_MEMORY,
    client_timeout: o.ClientTimeout = o.CLIENT_TIMEOUT,
    format: o.Format = "text",
    quiet: o.Quiet = False,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Write a small summary of an adapter, by which it can be judged.

    clair detect takes folders of sketches, or of sketches and adapters. A sketch cannot be refined, and
    it hides nothing: see docs/how-to/sketches.md.
    """
    given = {k: v for k, v in locals().items() if k not in ("seed", "size")}
    settings = settings_from(given)
    target = place_for(str(output), "--output", adapter)
    if target.suffix != ".safetensors":
        raise UsageError(
            f"--output: {str(output)!r} is no name of a sketch; end it with .safetensors"
        )
    from clair_cli.cohort import Sketching
    from clair_cli.opening import check_files, open_client
    from clair_cli.output.publish import replace_bytes
    from clair_cli.sketching import sketched

    check_files(settings)
    if not adapter.exists():
        raise UsageError(f"{adapter}: no such file or folder")
    try:
        opened = open_client(adapter, settings)
        head, document = sketched(opened, Sketching(size, seed), settings)
    except AdapterError as error:
        return fail(f"broken: {error.code} {error}", error.exit_code)
    replace_bytes(target, document)
    said = SketchWritten(
        path=str(output),
        bytes=len(document),
        sha256=sha256(document).hexdigest(),
        client=opened.client,
        modules=len(head.modules),
        size=size,
        seed=seed,
        left_out=head.left_out,
    )
    if format != "text" or not quiet:
        print_out(RENDERERS[format](said))
    return 0
