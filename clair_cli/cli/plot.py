"""clair plot: one part of a saved report as a figure for a paper."""

from __future__ import annotations

from clair_cli.cli import options as o
from clair_cli.cli.delivery import place_for
from clair_cli.cli.given import saved_report
from clair_cli.errors import UsageError
from clair_cli.output.publish import replace_bytes
from clair_cli.renderers import plots


def plot(
    path: o.SavedOne,
    kind: o.Kind,
    output: o.Figure,
    width: o.Width = plots.COLUMN,
    config_file: o.ConfigFile = None,
    no_config: o.NoConfig = False,
) -> int:
    """Draw one part of a saved report as a figure for a paper.

    PDF, SVG or PNG, by the end of the file's name. Equal reports give equal bytes. Needs
    clair-cli[plot].
    """
    suffix = output.suffix.lower().removeprefix(".")
    try:
        plots.check_suffix(suffix)
    except UsageError as error:
        raise UsageError(f"--output: {error}") from None
    plots.check_library()
    target = place_for(str(output), "--output", path)
    report = saved_report(path)
    try:
        document = plots.render(report, kind, suffix, width)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    replace_bytes(target, document)
    return 0
