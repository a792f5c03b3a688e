"""Tables with medians and ranges, so that nobody reads noise as a result."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Row:
    name: str
    values: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def print_table(title: str, unit: str, rows: Sequence[Row], *, compare: str | None = None) -> None:
    """Print medians, ranges, and each median's ratio to that of the row named `compare`."""
    print(f"\n{title}\n")
    base = next((row.median for row in rows if row.name == compare and row.values), None)
    ratio_title = "" if base is None else f"  x {compare}"
    print(f"{'':<28} {'median':>9} {'min':>9} {'max':>9}  {unit}{ratio_title}")
    for row in rows:
        if not row.values:
            print(f"{row.name:<28} {row.note}")
            continue
        ratio = "" if base is None else f"{row.median / base:>10.2f}"
        numbers = f"{row.median:>9.2f} {min(row.values):>9.2f} {max(row.values):>9.2f}"
        print(f"{row.name:<28} {numbers}  {' ' * len(unit)}{ratio}  {row.note}".rstrip())


def percentiles(seconds: Sequence[float]) -> str:
    """Format p50, p90, p99 and the maximum in milliseconds, and how many there are."""
    if not seconds:
        return f"{'-':>7} {'-':>7} {'-':>7} {'-':>7} {0:>7}"
    ordered = sorted(seconds)
    picked = [ordered[min(len(ordered) - 1, int(len(ordered) * part))] for part in (0.5, 0.9, 0.99)]
    values = " ".join(f"{value * 1000:>7.1f}" for value in [*picked, ordered[-1]])
    return f"{values} {len(ordered):>7}"
