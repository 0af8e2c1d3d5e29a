"""JUnit's XML, as test reports of CI servers take it: a test case per client."""

from __future__ import annotations

from xml.etree import ElementTree as xml

from clair_cli.renderers.safe import one_line, safe_text
from clair_cli.renderers.text import verdict_line
from clair_cli.renderers.words import decision, numbers
from clair_cli.report import Report, Verdict, failing, over_rounds

TOGETHER = "all clients together"
"""The test case of a run without a verdict."""


def render(report: Report) -> str:
    """A suite that fails where the gate does.

    A client that the gate fails on is a failure, or an error where it is broken. A broken one that the
    gate lets through, one that is accepted, and one without a verdict, is skipped.
    """
    failed = {c.client for c in failing(report, str(report.settings.get("fail_on", "never")))}
    suite = xml.Element("testsuite")
    for client in over_rounds(report):
        suite.append(_case(report, client, client.client in failed))
    if report.status == "no_verdict":
        case = xml.SubElement(suite, "testcase", name=TOGETHER, classname=_name(report))
        said = verdict_line(report)
        xml.SubElement(case, "error", type="no verdict", message=said).text = said
    suite.attrib.update(_counts(report, suite))
    whole = xml.Element("testsuites", name="clair")
    whole.append(suite)
    xml.indent(whole, " ")
    text = xml.tostring(whole, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(report: Report, client: Verdict, fails: bool) -> xml.Element:
    name = one_line(client.client)
    case = xml.Element("testcase", name=name, classname=_name(report), time="0")
    reasons = [safe_text(f"{r.code} {r.message}") for r in client.reasons]
    head = _head(client)
    broken = client.verdict == "broken"
    if client.accepted is not None:
        head = f"{head}; {decision(client.accepted, str(client.verdict))}"
    if fails or broken or client.accepted is not None or client.verdict is None:
        kind = ("error" if broken else "failure") if fails else "skipped"
        found = xml.SubElement(case, kind, type=client.verdict or "no verdict", message=head)
        found.text = "; ".join(reasons)
    else:
        xml.SubElement(case, "system-out").text = "; ".join([head, *reasons])
    return case


def _head(client: Verdict) -> str:
    said = numbers(client)
    return (
        f"{client.verdict}: {said}" if client.verdict and said else client.verdict or "no verdict"
    )


def _counts(report: Report, suite: xml.Element) -> dict[str, str]:
    kinds = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    counts = {name: str(len(suite.findall(f"testcase/{kind}"))) for name, kind in kinds.items()}
    when = safe_text(str(report.run.get("started_at", "")))[:19]
    return {
        "name": _name(report),
        "tests": str(len(suite)),
        **counts,
        "time": f"{float(report.run.get('duration_s', 0)):.3f}",
        "timestamp": when,
    }


def _name(report: Report) -> str:
    return f"clair.{safe_text(str(report.inputs.get('root', ''))) or 'clients'}"
