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

_ALWAYS: Final = {
    # Whatever we wanted of it, a process can end at any moment.
    SlotInput.EXITED: SlotState.EMPTY,
}
_ENDING: Final = {**_ALWAYS, SlotInput.TOLD_TO_DIE: SlotState.KILLED}
_ALIVE_AND_WELL: Final = {
    **_ENDING,
    SlotInput.REPORTED_FAILED: SlotState.LEAVING,
    # Unasked: an incarnation that says so takes nothing more, so it is of no use to wait.
    SlotInput.REPORTED_DRAINED: SlotState.LEAVING,
    SlotInput.TOLD_TO_QUIT: SlotState.LEAVING,
    SlotInput.TOLD_TO_ABORT: SlotState.ABORTING,
}

_BY_STATE: Final[dict[SlotState, dict[SlotInput, SlotState]]] = {
    SlotState.EMPTY: {SlotInput.SPAWNED: SlotState.BOOTING},
    # It cannot drain yet: there is nothing to finish, and it reads no message while it imports.
    SlotState.BOOTING: {**_ALIVE_AND_WELL, SlotInput.REPORTED_READY: SlotState.READY},
    SlotState.READY: {
        **_ALIVE_AND_WELL,
        SlotInput.REPORTED_READY: SlotState.READY,
        SlotInput.TOLD_TO_DRAIN: SlotState.DRAINING,
    },
    SlotState.DRAINING: {**_ALIVE_AND_WELL, SlotInput.REPORTED_READY: SlotState.DRAINING},
    SlotState.LEAVING: {
        **_ENDING,
        # The ready report was already in the channel when we told it to quit.
        SlotInput.REPORTED_READY: SlotState.LEAVING,
        SlotInput.REPORTED_FAILED: SlotState.LEAVING,
        SlotInput.REPORTED_DRAINED: SlotState.LEAVING,
        SlotInput.TOLD_TO_QUIT: SlotState.LEAVING,
    },
    SlotState.ABORTING: {
        **_ENDING,
        SlotInput.REPORTED_READY: SlotState.ABORTING,
        SlotInput.REPORTED_FAILED: SlotState.ABORTING,
        SlotInput.REPORTED_DRAINED: SlotState.ABORTING,
    },
    SlotState.KILLED: {
        **_ALWAYS,
        SlotInput.REPORTED_READY: SlotState.KILLED,
        SlotInput.REPORTED_FAILED: SlotState.KILLED,
        SlotInput.REPORTED_DRAINED: SlotState.KILLED,
    },
}
TRANSITIONS: Final = {
    (state, event): following
    for state, events in _BY_STATE.items()
    for event, following in events.items()
}


def advance(state: SlotState, event: SlotInput) -> SlotState:
    """Return the state that follows; raise LocalProtocolError where the table has none."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise LocalProtocolError(f"worker {event.value} while {state.value}") from None
