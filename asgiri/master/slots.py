"""The life of one worker incarnation, as a table. Sans-IO.

Called by the master only: `supervisor` advances the state with what it decides (an input that
begins with TOLD or SPAWNED) and with what the worker or the kernel report.

A pair that is absent from TRANSITIONS is a bug of ours, and raises. A worker's own reports are
therefore legal in every state but EMPTY: its code shares a process with the application's, and
what it says at the wrong moment must not end the master.
"""

import enum
from typing import Final

from asgiri.errors import LocalProtocolError

__all__ = ["ALIVE", "TRANSITIONS", "SlotInput", "SlotState", "advance"]


class SlotState(enum.Enum):
    """Where an incarnation is between spawn and reap."""

    EMPTY = "empty"
    """No process: not yet, or no longer."""
    BOOTING = "booting"
    """Imports the application and runs its startup."""
    READY = "ready"
    """Takes connections, unless the supervisor holds it back until a switch."""
    DRAINING = "draining"
    """Takes nothing new, finishes what it has."""
    LEAVING = "leaving"
    """Has nothing left to do (drained, failed, or told to quit): its exit is expected soon."""
    ABORTING = "aborting"
    """Was told by SIGABRT to print its stacks and die."""
    KILLED = "killed"
    """Was sent SIGKILL; the kernel owes us its exit."""


class SlotInput(enum.Enum):
    """What happens to an incarnation."""

    SPAWNED = "spawned"
    REPORTED_READY = "reported ready"
    REPORTED_FAILED = "reported failed"
    REPORTED_DRAINED = "reported drained"
    TOLD_TO_DRAIN = "told to drain"
    TOLD_TO_QUIT = "told to quit"
    TOLD_TO_ABORT = "told to abort"
    TOLD_TO_DIE = "told to die"
    EXITED = "exited"


ALIVE: Final = frozenset(SlotState) - {SlotState.EMPTY}
"""States in which a process exists."""

TRANSITIONS: Final[dict[tuple[SlotState, SlotInput], SlotState]] = {}


def advance(state: SlotState, event: SlotInput) -> SlotState:
    """Return the state that follows; raise LocalProtocolError where the table has none."""
    raise NotImplementedError
