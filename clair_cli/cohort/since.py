"""Which clients can have been trained from what they were sent, as their headers say it."""

from __future__ import annotations

from clair_cli.cohort.records import Adapter, Broken, UpdateSpec, natural_key, set_aside
from clair_cli.cohort.whole import few
from clair_cli.errors import NotFromSent
from clair_cli.report import Reason

REMEDY = "train it from what was sent, or leave this client out"


def not_from_sent(clients: list[Adapter], min_shared: float) -> list[Broken]:
    """Clients of another base, shape or start than what they were sent, or with less than `min_shared`
    of its modules: there is no telling what they changed."""
    said = [(a, _why(a, a.since, min_shared)) for a in clients if a.since is not None]
    return [set_aside(a, Reason(NotFromSent.code, f"{why}; {REMEDY}")) for a, why in said if why]


def _why(adapter: Adapter, sent: Adapter, min_shared: float) -> str | None:
    """How the client differs from what it was sent, if that cannot have come by training."""
    if adapter.base and sent.base and _last(adapter.base) != _last(sent.base):
        return f"its base model is {adapter.base!r}, and that of what it was sent {sent.base!r}"
    both = [m for m in sent.updates if m in adapter.updates]
    if len(both) < min_shared * len(sent.updates):
        missing = min(sent.updates.keys() - adapter.updates.keys(), key=natural_key)
        share = f"{len(both)} of the {len(sent.updates)} modules that it was sent"
        return f"adapts {share} (missing {missing!r})"
    for module in both:
        own, was = adapter.updates[module], sent.updates[module]
        if (own.d_out, own.d_in) != (was.d_out, was.d_in):
            shapes = f"{own.d_out} x {own.d_in}, and was sent as {was.d_out} x {was.d_in}"
            return f"{module!r} is {shapes}"
        if _began(adapter, own) != _began(sent, was):
            return f"{module!r} began from another part of the base model than what was sent"
    return None


def _began(adapter: Adapter, spec: UpdateSpec) -> tuple[object, ...]:
    """What the update holds of the base model besides what was trained."""
    if spec.absolute:
        return ()
    return spec.start, adapter.traits.get("init"), spec.rank, spec.scale


def _last(base: str) -> str:
    return base.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()


def not_sent(
    clients: list[Adapter], modules: tuple[str, ...], full: dict[str, tuple[int, ...]]
) -> list[Reason]:
    """A remark on what is compared whole, because somebody was not sent it."""
    sent = [a.since for a in clients if a.since is not None]
    new = [m for m in modules if any(m not in s.updates for s in sent)]
    new += [n for n, shape in full.items() if any(s.shape_of(n) != shape for s in sent)]
    if not new:
        return []
    text = f"{few(new)}: not in what the clients were sent, and compared whole"
    return [Reason("CLR304", text)]
