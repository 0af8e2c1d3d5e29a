"""The report as one HTML file: no request to anywhere, readable without scripts.

jinja2 is imported when the first page is made. Every value goes through its escaping; the only text
that does not is clair's own style and script, and JSON in which <, > and & are escapes.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from clair_cli.report import Report
from clair_cli.trend import Trend

if TYPE_CHECKING:
    from jinja2 import Template

HERE = Path(__file__).parent


def render(report: Report, earlier: tuple[Report, ...] = ()) -> str:
    """The page of the report, with the trend since the `earlier` ones, oldest first."""
    from markupsafe import Markup

    from clair_cli.renderers.page.view import page

    style, script = _own("style.css"), _own("page.js")
    found = page((*earlier, report))
    return _template().render(
        page=found,
        style=Markup(style),
        script=Markup(script),
        report_json=Markup(found.report),
        told_json=Markup(found.told),
        policy=_policy(style, script),
    )


def render_trend(trend: Trend, last: Report) -> str:
    """The trend as a page of its own: every client in every round, who turned, who came and went."""
    from markupsafe import Markup

    from clair_cli.renderers.page.rounds import sheet

    style = _own("style.css")
    return _template("trend.html.j2").render(
        page=sheet(trend, last), style=Markup(style), policy=_policy(style, "")
    )


def _policy(style: str, script: str) -> str:
    """What a browser may do with the page: show it, and run this very script."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


@cache
def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@cache
def _template(name: str = "page.html.j2") -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name)
