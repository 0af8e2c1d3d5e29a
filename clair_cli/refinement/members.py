"""Who is averaged, who receives, and with what weight: verdicts, choices and sample counts."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from clair_cli.cohort import Adapter, Cohort
from clair_cli.cohort.whole import few
from clair_cli.decimals import decimal
from clair_cli.errors import NoVerdict, UsageError
from clair_cli.refined import DATA_POOR
from clair_cli.report import Verdict
from clair_cli.settings import Settings
from clair_cli.strict_json import parse_object, read_bounded

MAX_BYTES = 16 * 2**20
HEADER = ["client", "count"]
NOBODY: Mapping[str, str] = MappingProxyType({})


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
    copied: Mapping[str, str] = NOBODY,
) -> Recipients:
    """Benign clients, changed by --include and --exclude, and suspicious ones that only receive.

    Suspicious ones receive where they do no more than lack a part of what the others share, as clients
    with little data do; all of them with `refine_suspicious`; none of those that are `gone`. Those who
    are suspicious as copies alone, `copied` (client -> whom it counts as), receive, and of those that
    count as one the first counts in the means: else a copy would take both from who was copied.
    Raises UsageError for names that are no usable client and for missing counts, NoVerdict where nobody
    is left.
    """
    verdicts = {c.client: c.verdict for c in said}
    usable = [a.client for a in cohort.clients]
    _known("--include", settings.include, usable)
    _known("--exclude", settings.exclude, verdicts)
    left_out = {*settings.exclude, *gone}
    given = {c for c in usable if verdicts[c] == "benign"} | set(settings.include)
    given |= _once(copied, settings.include, left_out, counts)
    poor = {c.client for c in said if c.cause is not None and c.cause.kind in DATA_POOR}
    odd = {c for c in usable if verdicts[c] == "suspicious"}
    got = given | copied.keys() | (odd if settings.refine_suspicious else odd & poor)
    given, got = given - left_out, got - left_out
    if not given:
        why = "left after --exclude" if settings.exclude else "benign"
        raise NoVerdict(f"no client is {why}: there is nothing to refine; see `clair detect`")
    if settings.weights is not None:
        _known("--weights", counts, verdicts)
        _counts_of(given, counts)
    return _counted(cohort, given, got, counts)


def _once(
    copied: Mapping[str, str],
    included: Collection[str],
    left_out: Collection[str],
    counts: Mapping[str, float],
) -> set[str]:
    """The first of every clients that count as one, but for those who are left out, and of these one
    with a count, if any has; nobody of them where one is included by name."""
    first: dict[str, str] = {}
    for client, original in sorted(copied.items(), key=lambda pair: pair[0] not in counts):
        if client not in left_out:
            first.setdefault(original, client)
    known = {copied[c] for c in included if c in copied}
    return {client for original, client in first.items() if original not in known}


def minorities(
    groups: Sequence[Collection[str]],
    said: Sequence[Verdict],
    cohort: Cohort,
    settings: Settings,
    counts: Mapping[str, float],
    counts_as: Mapping[str, str] = NOBODY,
    gone: Collection[str] = (),
) -> tuple[Recipients, ...]:
    """The members of every minority, each refined within itself; who is included is the majority's.

    `groups` are the members of each by name. Copies of them, by `counts_as` (client -> whom it counts
    as), receive, and each counts once; none of those that are `gone`. Raises UsageError for missing
    counts.
    """
    left_out = {*settings.include, *settings.exclude, *gone}
    found = []
    for group in groups:
        theirs = {
            c.client: counts_as.get(c.client, c.client)
            for c in said
            if c.verdict == "minority" and counts_as.get(c.client, c.client) in group
        }
        giving = _once(theirs, (), left_out, counts)
        if settings.weights is not None:
            _counts_of(giving, counts)
        if giving:
            found.append(_counted(cohort, giving, theirs.keys() - left_out, counts))
    return tuple(found)


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


def remarks(
    said: Sequence[Verdict],
    who: Recipients,
    settings: Settings,
    copied: Mapping[str, str] = NOBODY,
) -> list[str]:
    """What the choices of the user changed, and what is done to the `copied`, in sentences."""
    verdicts = {c.client: c.verdict for c in said}
    odd = [f"{c} ({verdicts[c]})" for c in settings.include if verdicts[c] != "benign"]
    got = {a.client for a in who.clients}
    changed = {
        "copies of each other, each refined, which count once in the means; --exclude leaves out the "
        "one that is not genuine": [c for c in copied if c in got and c not in settings.include],
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
        near = get_close_matches(name, [*known], n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {few([*known])}"
        raise UsageError(f"{text}; {hint}")
