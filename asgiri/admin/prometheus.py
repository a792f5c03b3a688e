"""The metrics in the text format of Prometheus (version 0.0.4), and their table for the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from asgiri.admin.metrics import FAMILIES, Status

__all__ = ["CONTENT_TYPE", "metrics_markdown", "render"]

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


def render(status: Status) -> bytes:
    """Write all metrics."""
    lines: list[str] = []
    for family in FAMILIES:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        if family.kind == "histogram":
            lines += _histogram(family.name, status["totals"]["durations"])
        else:
            lines += [_line(family.name, labels, value) for labels, value in family.samples(status)]
    return ("\n".join(lines) + "\n").encode()


def _histogram(name: str, durations: Mapping[str, Any]) -> Iterator[str]:
    counts = list(accumulate(durations["counts"]))
    bounds = [*(f"{bound:g}" for bound in durations["bounds"]), "+Inf"]
    for bound, count in zip(bounds, counts, strict=True):
        yield _line(f"{name}_bucket", {"le": bound}, count)
    yield _line(f"{name}_sum", {}, durations["sum"])
    yield _line(f"{name}_count", {}, counts[-1])


def _line(name: str, labels: Mapping[str, object], value: float) -> str:
    shown = ",".join(f'{label}="{_escape(str(text))}"' for label, text in labels.items())
    return f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return repr(value) if isinstance(value, float) else str(int(value))


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def metrics_markdown() -> str:
    """Write the README's table of metrics."""
    lines = ["| metric | type | labels | what |", "|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines) + "\n"
