"""Whether the server lives, and whether it can serve: verdicts on a status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

MASTER_PATIENCE: Final = 5.0
"""Seconds without a word of the master, which speaks four times a second. Longer than a host that
is short of processors keeps a process waiting, shorter than the patience of who asks."""
READY_SHARE: Final = 0.5
"""Part of the workers that has to be ready. One that is being replaced is no reason to take the
server out of a balancer; half of them cannot serve what is meant for all."""


class Verdict(NamedTuple):
    """An answer and its reason, in one line."""

    good: bool
    reason: str


def alive(status: Mapping[str, Any]) -> Verdict:
    """Tell whether the master works. When it does not, only a restart helps."""
    if not status:
        return Verdict(False, "the master has not spoken yet")
    silence = status["master"]["silence"]
    if silence > MASTER_PATIENCE:
        return Verdict(False, f"the master has not spoken for {silence:.0f} s")
    return Verdict(True, "ok")


def ready(status: Mapping[str, Any], wanted: int | None = None) -> Verdict:
    """Tell whether new clients should come. `wanted`: how many ready workers that takes.

    Blocked workers count: they come back, and the master knows where to send clients meanwhile.
    """
    living = alive(status)
    if not living.good:
        return living
    if status["stopping"]:
        return Verdict(False, "the server stops")
    counts = status["counts"]
    if wanted is None:
        wanted = max(1, -int(-counts["wanted"] * READY_SHARE // 1))
    said = f"{counts['ready']} of {counts['wanted']} workers are ready"
    if counts["ready"] < wanted:
        return Verdict(False, f"{said}, {wanted} are needed")
    return Verdict(True, said)
