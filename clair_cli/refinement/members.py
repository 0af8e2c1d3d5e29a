"""Who is averaged, who receives, and with what weight: verdicts, choices and sample counts."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clair_cli.cohort import Adapter, Cohort
from clair_cli.decimals import decimal
from clair_cli.errors import NoVerdict, UsageError
from clair_cli.report import Verdict
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object, read_bounded

MAX_BYTES = 16 * 2**20
HEADER = ["client", "count"]
DATA_POOR = ("lacks", "noisy")
"""Causes that clients with little data have in common with weak poison: who has them only receives."""


@dataclass(frozen=True, slots=True)
class Recipients:
    """The clients of one group that get a refined adapter; weight zero counts in no mean; they sum to
    one."""

    clients: tuple[Adapter, ...]
    weights: tuple[float, ...]

    @property
    def giving(self) -> tuple[bool, ...]:
        """Which of the clients count in the means."""
        return tuple(w > 0 for w in self.weights)

    @property
    def by_giving(self) -> list[int]:
        """All positions, those last that count in the means."""
        return sorted(range(len(self.clients)), key=lambda k: self.weights[k] > 0)

    def select(self, kept: Sequence[int]) -> Recipients:
        """Those at the positions `kept` alone, of whom one at least counts in the means."""
        total = math.fsum(self.weights[k] for k in kept)
        return Recipients(
            tuple(self.clients[k] for k in kept), tuple(self.weights[k] / total for k in kept)
        )


def read_counts(path: Path) -> dict[str, float]:
    """Sample counts per client: a JSON object {client: count}, or lines `client,count`, with or without
    that line above them. Raises UsageError.
    """
    try:
        data = read_bounded(path, MAX_BYTES, "--weights")
        if data.lstrip()[:1] == b"{":
            pairs = list(parse_object(data, str(path), UsageError).items())
        else:
            rows = [row for row in csv.reader(data.decode("utf-8-sig").splitlines()) if row]
            pairs = [_pair(row) for row in rows[rows[:1] == [HEADER] :]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"--weights {str(path)!r}: cannot be read: {error}") from None
    if len(dict(pairs)) < len(pairs):
        raise UsageError(f"--weights {str(path)!r}: a client is named twice")
    return {client: _count(path, client, count) for client, count in pairs}


def _pair(row: list[str]) -> tuple[str, str]:
    if len(row) != 2:
        raise csv.Error(f"expected client,count, found {','.join(row)[:60]!r}")
    return row[0].strip(), row[1]


def _count(path: Path, client: str, value: object) -> float:
    try:
        count = decimal(value.strip(" \t")) if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        count = math.nan
    if isinstance(value, bool) or not (math.isfinite(count) and 0 < count <= 1e15):
        text = f"the count of {client[:60]!r} is {str(value)[:40]!r}, expected a positive number"
        raise UsageError(f"--weights {str(path)!r}: {text}")
    return count


def recipients(
    said: Sequence[Verdict],
    cohort: Cohort,
    settings: Settings,
    counts: Mapping[str, float],
    gone: Collection[str] = (),
) -> Recipients:
    """Benign clients, changed by --include and --exclude, and suspicious ones that only receive.

    Suspicious ones receive where they do no more than lack a part of what the others share, as clients
    with little data do; all of them with `refine_suspicious`; none of those that are `gone`.
    Raises UsageError for names that are no usable client and for missing counts, NoVerdict where nobody
    is left.
    """
    verdicts = {c.client: c.verdict for c in said}
    usable = [a.client for a in cohort.clients]
    _known("--include", settings.include, usable)
    _known("--exclude", settings.exclude, verdicts)
    given = {c for c in usable if verdicts[c] == "benign"} | set(settings.include)
    poor = {c.client for c in said if c.cause is not None and c.cause.kind in DATA_POOR}
    odd = {c for c in usable if verdicts[c] == "suspicious"}
    got = given | (odd if settings.refine_suspicious else odd & poor)
    given, got = (who.difference(settings.exclude, gone) for who in (given, got))
    if not given:
        why = "left after --exclude" if settings.exclude else "benign"
        raise NoVerdict(f"no client is {why}: there is nothing to refine; see `clair detect`")
    if settings.weights is not None:
        _known("--weights", counts, verdicts)
        _counts_of(given, counts)
    return _counted(cohort, given, got, counts)


def minorities(
    groups: Sequence[Collection[str]],
    said: Sequence[Verdict],
    cohort: Cohort,
    settings: Settings,
    counts: Mapping[str, float],
) -> tuple[Recipients, ...]:
    """The members of every minority, each refined within itself; who is included is the majority's.

    `groups` are the members of each by name. Raises UsageError for missing counts.
    """
    verdicts = {c.client: c.verdict for c in said}
    gone = {*settings.include, *settings.exclude}
    apart = [{c for c in g if verdicts.get(c) == "minority"} - gone for g in groups]
    apart = [members for members in apart if members]
    if settings.weights is not None:
        _counts_of(set().union(*apart), counts)
    return tuple(_counted(cohort, members, members, counts) for members in apart)


def _counts_of(clients: Collection[str], counts: Mapping[str, float]) -> None:
    if missing := sorted(set(clients) - set(counts)):
        names = ", ".join(map(repr, missing[:10])) + " ..." * (len(missing) > 10)
        raise UsageError(f"--weights: no count for {names}; add a line for each")


def _counted(
    cohort: Cohort, giving: Collection[str], getting: Collection[str], counts: Mapping[str, float]
) -> Recipients:
    """The clients of one group, the giving ones weighted by their counts."""
    total = math.fsum(counts.get(c, 1.0) for c in giving)
    clients = tuple(a for a in cohort.clients if a.client in getting)
    weights = tuple(counts.get(a.client, 1.0) / total * (a.client in giving) for a in clients)
    return Recipients(clients, weights)


def remarks(said: Sequence[Verdict], who: Recipients, settings: Settings) -> list[str]:
    """What the choices of the user changed, in sentences."""
    verdicts = {c.client: c.verdict for c in said}
    odd = [f"{c} ({verdicts[c]})" for c in settings.include if verdicts[c] != "benign"]
    changed = {
        "counted as benign because of --include": odd,
        "left out because of --exclude": list(settings.exclude),
        "most of the weight is one client's: --weights": [
            f"{a.client} ({100 * w:.0f} %)"
            for a, w in zip(who.clients, who.weights, strict=True)
            if 0.5 < w < 1
        ],
    }
    if sum(who.giving) == 1:
        changed["the means are those of one client"] = [
            a.client for a, gives in zip(who.clients, who.giving, strict=True) if gives
        ]
    return [f"{text}: {', '.join(names)}" for text, names in changed.items() if names]


def _known(option: str, names: Collection[str], known: Collection[str]) -> None:
    for name in sorted(set(names) - set(known)):
        text = f"{option}: {name[:80]!r} is not a client that can be used here"
        more = "" if option == "--weights" else ", one name an option"
        raise UsageError(f"{text}; expected one of {', '.join([*known][:5])}, ...{more}")
