"""What a constant of clair says of itself: value, unit, range, meaning, and where its value is from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from clair_cli.errors import SettingError

Range = tuple[float, float]


def constant(value: float, unit: str, within: Range, meaning: str, source: str) -> Any:
    """A field of a calibration: its default, its unit, its closed range, and the reason of the value."""
    about = {"unit": unit, "range": within, "meaning": meaning, "source": source}
    return field(default=value, metadata=about)


@dataclass(frozen=True, slots=True)
class Constants:
    """Numbers that can change a verdict or a weight. Raises SettingError for one out of its range."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, (low, high) = getattr(self, f.name), f.metadata["range"]
            whole = isinstance(f.default, int)
            kind = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                expected = f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}"
                raise SettingError(f"{f.name}: expected {expected}, got {value!r}")

    def check_order(self, low: str, high: str) -> None:
        """Raises SettingError unless the constant `low` is below the constant `high`."""
        if not getattr(self, low) < getattr(self, high):
            values = f"{getattr(self, low)} and {getattr(self, high)}"
            raise SettingError(f"{low}: expected less than {high}, got {values}")

    def as_dict(self) -> dict[str, float]:
        """The value of every constant by its name, in the order of the fields."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
