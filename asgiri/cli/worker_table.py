"""A status for people: the lines and columns of `asgiri ctl status` and `asgiri top`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["COLUMNS", "Column", "describe_lines", "headline", "spell_duration", "spell_size"]

Worker = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One fact about each worker."""

    title: str
    text: Callable[[Worker], str]
    left: bool = False


def _versions(worker: Worker) -> str:
    return "/".join(str(count) for count in worker["connections"].values())


def _ring(worker: Worker) -> str:
    size = worker["ring"]["size"]
    return f"{100 * worker['ring']['fill'] / size:.0f}%" if size else "-"


def _drops(worker: Worker) -> str:
    return str(worker["ring"]["drops_full"] + worker["ring"]["drops_half_full"])


COLUMNS: Final[Sequence[Column]] = (
    Column("worker", lambda worker: str(worker["slot"])),
    Column("pid", lambda worker: str(worker["pid"])),
    Column("gen", lambda worker: str(worker["generation"])),
    Column("state", lambda worker: str(worker["state"]), left=True),
    Column("age", lambda worker: spell_duration(worker["age"])),
    Column("requests", lambda worker: str(sum(worker["requests"].values()))),
    Column("active", lambda worker: str(worker["requests_active"])),
    Column("lag", lambda worker: spell_duration(worker["lag"])),
    Column("h1/h2/h3", _versions),
    Column("ws", lambda worker: str(worker["websockets"])),
    Column("ring", _ring),
    Column("drops", _drops),
    Column("memory", lambda worker: spell_size(worker["rss"])),
)


def describe_lines(status: Mapping[str, Any]) -> Iterator[str]:
    """Write it as text, aligned."""
    yield from headline(status)
    rows = [[column.text(worker) for column in COLUMNS] for worker in status["workers"]]
    titles = [column.title for column in COLUMNS]
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    yield ""
    for row in (titles, *rows):
        cells = (
            cell.ljust(width) if column.left else cell.rjust(width)
            for column, cell, width in zip(COLUMNS, row, widths, strict=True)
        )
        yield "  ".join(cells).rstrip()


def headline(status: Mapping[str, Any]) -> Iterator[str]:
    """Say what runs, and how it is."""
    name = status.get("name") or status.get("app", "")
    up = spell_duration(status["uptime"])
    yield f"asgiri {status.get('asgiri', '')}: {name}, process {status['master']['pid']}, up {up}"
    if status.get("addresses"):
        yield f"listening on {status['addresses']}"
    counts = status["counts"]
    said = [f"generation {status['generation']}", f"{counts['ready']} of {counts['wanted']} ready"]
    said += [
        f"{counts[word]} {word}" for word in ("blocked", "booting", "draining") if counts[word]
    ]
    if status["reload"]["state"] not in ("idle", "drain"):
        said.append("reload under way")
    if status["stopping"]:
        said.append("the server stops")
    yield ", ".join(said)
    if status.get("reload_failure"):
        yield f"last reload: {status['reload_failure']}"


def spell_duration(seconds: float) -> str:
    """Write a time with two digits or so, in the unit that fits."""
    if seconds < 0.001:
        return "0 ms" if seconds < 0.00005 else f"{seconds * 1000:.1f} ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return (
                f"{seconds / size:.0f} {unit}"
                if seconds >= 10 * size
                else (f"{seconds / size:.1f} {unit}")
            )
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def spell_size(size: float) -> str:
    """Write a number of bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
