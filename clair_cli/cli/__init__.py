"""The command line. Only this package and `entry` print, and only they know exit codes of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from clair_cli._version import __version__
from clair_cli.cli import (
    check,
    completion,
    config,
    detect,
    explain,
    fit,
    inspect,
    plot,
    refine,
    report,
    rules,
    select,
    sketch,
    trend,
    verify,
)
from clair_cli.cli.command import Command
from clair_cli.cli.given import flag
from clair_cli.cli.help import (
    CHECK_CODES,
    CONFIG_CODES,
    EXIT_CODES,
    EXPLAIN_CODES,
    FIT_CODES,
    INSPECT_CODES,
    PLOT_CODES,
    PRINT_CODES,
    SELECT_CODES,
    SKETCH_CODES,
    VERIFY_CODES,
    usage_message,
)
from clair_cli.cli.streams import fail, print_out, tell_remarks
from clair_cli.errors import ClairError, OutputError, SettingError, UsageError

HELP = {"-h", "--help"}

app = typer.Typer(
    name="clair",
    help="Find the contaminated clients in a folder of LoRA adapters, and refine the others.",
    epilog=EXIT_CODES,
    add_completion=False,
    context_settings={"help_option_names": sorted(HELP)},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(cls=Command, epilog=EXIT_CODES)(detect.detect)
app.command(cls=Command, epilog=EXIT_CODES)(refine.refine)
app.command(cls=Command, epilog=INSPECT_CODES)(inspect.inspect)
app.command(cls=Command, epilog=SELECT_CODES)(select.select)
app.command(cls=Command, epilog=SKETCH_CODES)(sketch.sketch)
app.command(cls=Command, epilog=FIT_CODES)(fit.fit)
app.command(cls=Command, epilog=CHECK_CODES)(check.check)
app.command(cls=Command, epilog=EXIT_CODES)(report.report)
app.command(cls=Command, epilog=EXIT_CODES)(trend.trend)
app.command(cls=Command, epilog=PLOT_CODES)(plot.plot)
app.command(cls=Command, epilog=VERIFY_CODES)(verify.verify)
app.command(cls=Command, epilog=EXPLAIN_CODES)(explain.explain)
app.command(cls=Command, epilog=PRINT_CODES)(rules.rules)
app.command(cls=Command, epilog=PRINT_CODES)(rules.schema)
app.command(cls=Command, epilog=PRINT_CODES)(completion.completion)
app.command(cls=Command, epilog=CONFIG_CODES)(config.config)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print_out(f"clair {__version__}\n")
        raise typer.Exit(0)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors of clair's own become one line on stderr."""
    if "" in arguments:  # Path("") is the current folder: not what an unset variable means
        return fail("an argument is empty; is a variable not set?", UsageError.exit_code)
    asked = completion.is_asked()
    tell_remarks()
    command = typer.main.get_command(app)
    try:
        result = command(args=arguments or ["--help"], prog_name="clair", standalone_mode=False)
        if result == 130:  # typer's answer to an interrupt
            raise KeyboardInterrupt
        return int(result or 0) if arguments else UsageError.exit_code
    except SystemExit as end:
        if asked:  # fish takes it for whether there is anything to complete with
            return int(end.code or 0)
        if not HELP & set(arguments):
            raise
        return 0  # typer exits 1 when the reader of the help has gone
    except SettingError as error:
        name, colon, said = str(error).partition(":")
        return fail(f"{flag(name)}{colon}{said}", error.exit_code)
    except ClairError as error:
        return fail(str(error), error.exit_code)
    except OSError as error:
        if arguments and not HELP & set(arguments):
            raise
        return fail(f"stdout: {error.strerror or error}", OutputError.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's own complaints, whichever click it is
            return fail(usage_message(error, arguments), UsageError.exit_code)
        raise
