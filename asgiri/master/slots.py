"""The life of one worker incarnation: a table of states, and its deadlines. Sans-IO.

Called by the master's `supervisor` only: it advances the state with what it decides (an input that
begins with TOLD or SPAWNED) and with what the worker or the kernel report.

A pair that is absent from TRANSITIONS is a bug of ours, and raises. A worker's own reports are
therefore legal in every state but EMPTY: its code shares a process with the application's, and
what it says at the wrong moment must not end the master.
"""

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from asgiri.errors import LocalProtocolError
from asgiri.master.actions import Action, Drain, Kill, KillSignal, Quit, Spawn

__all__ = [
    "ALIVE",
    "TRANSITIONS",
    "Incarnation",
    "SlotInput",
    "SlotState",
    "WorkerPolicy",
    "advance",
    "exit_text",
]

DRAIN_GRACE: Final = 5.0
"""Seconds beyond the drain's own deadline, at which a worker closes what is left by itself: for the
application's shutdown."""
EXIT_GRACE: Final = 5.0
"""Seconds from a worker's word that it failed to its exit."""
QUIT_GRACE: Final = 1.0
"""Seconds to say goodbye, for a worker that may be importing and read no message at all."""
ABORT_GRACE: Final = 2.0
"""Seconds from SIGABRT to SIGKILL: all stacks are to be printed."""
KILL_GRACE: Final = 10.0
"""Seconds after SIGKILL until it is said that the kernel does not let go of a process."""
RSS_SETTLES_AFTER: Final = 60.0
"""Seconds of service before a worker's memory is held against it. Otherwise an application that
begins above its limit would be replaced for ever."""
LIFETIME_JITTER: Final = 0.1
"""Share of the lifetime that is left to chance, so that workers are not all replaced at once."""


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


class WorkerPolicy(Protocol):
    """What `config.WorkerConfig` says about the lives of workers."""

    @property
    def count(self) -> int: ...
    @property
    def boot_timeout(self) -> float: ...
    @property
    def graceful_timeout(self) -> float: ...
    @property
    def timeout(self) -> float: ...
    @property
    def reload_surge(self) -> int: ...
    @property
    def max_requests(self) -> int: ...
    @property
    def max_requests_jitter(self) -> int: ...
    @property
    def max_worker_rss(self) -> int: ...
    @property
    def max_worker_lifetime(self) -> float: ...


def longest_reload(policy: WorkerPolicy) -> float:
    """Return how many seconds a reload can take: a canary, then the others, at once or in turns."""
    if not policy.reload_surge:
        return 2 * policy.boot_timeout
    turns = math.ceil(policy.count / policy.reload_surge)
    # Each begins when those are gone whose places the one before took.
    return turns * (policy.boot_timeout + policy.graceful_timeout + DRAIN_GRACE)


class Incarnation:
    """One worker from spawn to reap: its state, and when we stop waiting for the next one."""

    __slots__ = (
        "_lifetime",
        "_max_requests",
        "_state",
        "deadline",
        "generation",
        "policy",
        "ready_at",
        "recycle_reason",
        "slot",
        "worker_id",
    )

    def __init__(
        self, order: Spawn, policy: WorkerPolicy, now: float, random: Callable[[], float]
    ) -> None:
        self.worker_id = order.worker_id
        self.slot = order.slot
        self.generation = order.generation
        self.policy = policy
        """Of its generation; a reload does not change it."""
        self.ready_at = -math.inf
        self.deadline = now + policy.boot_timeout
        """When something has to be done about it; infinite while all is well."""
        self.recycle_reason = ""
        self._state = advance(SlotState.EMPTY, SlotInput.SPAWNED)
        self._max_requests = policy.max_requests + int(random() * (policy.max_requests_jitter + 1))
        self._lifetime = policy.max_worker_lifetime * (1.0 - random() * LIFETIME_JITTER)

    # A takeover: deadlines stay true, since the clock is the machine's

    def to_state(self) -> dict[str, Any]:
        """Return what `restore` reads."""
        return {
            "worker_id": self.worker_id,
            "slot": self.slot,
            "generation": self.generation,
            "state": self._state.value,
            # JSON knows no infinity.
            "deadline": None if self.deadline == math.inf else self.deadline,
            "ready_at": None if self.ready_at == -math.inf else self.ready_at,
            "recycle_reason": self.recycle_reason,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Be where the incarnation was that `to_state` told of."""
        self._state = SlotState(state["state"])
        deadline, ready_at = state["deadline"], state["ready_at"]
        self.deadline = math.inf if deadline is None else float(deadline)
        self.ready_at = -math.inf if ready_at is None else float(ready_at)
        self.recycle_reason = str(state["recycle_reason"])

    # Questions

    @property
    def state(self) -> SlotState:
        """Where it is."""
        return self._state

    @property
    def is_booting(self) -> bool:
        """True until it is ready, has failed, or was told to go."""
        return self._state is SlotState.BOOTING

    @property
    def is_ready(self) -> bool:
        """True while it may take connections."""
        return self._state is SlotState.READY

    @property
    def was_ready(self) -> bool:
        """True once it has been ready, whatever became of it."""
        return self.ready_at > -math.inf

    @property
    def is_running(self) -> bool:
        """True while its event loop has to turn."""
        return self._state in (SlotState.READY, SlotState.DRAINING)

    @property
    def was_killed(self) -> bool:
        """True once it was sent a signal: how it ends is our doing."""
        return self._state in (SlotState.ABORTING, SlotState.KILLED)

    @property
    def is_unkillable(self) -> bool:
        """True for who did not die of SIGKILL, once its deadline is over."""
        return self._state is SlotState.KILLED

    @property
    def overdue_text(self) -> str:
        """Say what it did not do by its deadline."""
        return _OVERDUE[self._state]

    def has_served(self, seconds: float, now: float) -> bool:
        """Tell whether it was ready so long."""
        return self.was_ready and now - self.ready_at >= seconds

    def find_recycle_reason(self, requests: int, rss: int, now: float) -> str:
        """Say why it should be replaced; "" when it should not."""
        policy = self.policy
        if policy.max_requests > 0 and self._max_requests <= requests:
            return f"{requests} requests"
        if 0 < policy.max_worker_rss < rss and self.has_served(RSS_SETTLES_AFTER, now):
            return f"{rss >> 20} MiB of memory"
        if policy.max_worker_lifetime > 0 and self._lifetime <= now - self.ready_at:
            return f"{now - self.ready_at:.0f} s of service"
        return ""

    # What it says

    def reported(self, event: SlotInput, now: float) -> None:
        """Take its word for what became of it."""
        before, self._state = self._state, advance(self._state, event)
        if self._state is before:
            return
        if self._state is SlotState.READY:
            self.ready_at = now
            self.deadline = math.inf
        elif event is SlotInput.REPORTED_FAILED:
            self.deadline = now + EXIT_GRACE
        else:
            # Drained: it may still be in the application's shutdown, for as long as a drain lasts.
            longest = self.policy.graceful_timeout + DRAIN_GRACE
            self.deadline = min(self.deadline, now + longest)

    def ended(self) -> None:
        """It was reaped, or never was."""
        self._state = advance(self._state, SlotInput.EXITED)
        self.deadline = math.inf

    # What it is told

    def release(self, now: float) -> list[Action]:
        """Let it finish what it has, then go. Nothing is said to who is on its way already."""
        if self._state is SlotState.BOOTING:
            return self.quit(now)
        if self._state is not SlotState.READY:
            return []
        self._state = advance(self._state, SlotInput.TOLD_TO_DRAIN)
        self.deadline = now + self.policy.graceful_timeout + DRAIN_GRACE
        return [Drain(self.worker_id, self.policy.graceful_timeout)]

    def quit(self, now: float) -> list[Action]:
        """Let it go without finishing anything."""
        if self.was_killed:
            return []
        self._state = advance(self._state, SlotInput.TOLD_TO_QUIT)
        self.deadline = min(self.deadline, now + QUIT_GRACE)
        return [Quit(self.worker_id)]

    def abort(self, now: float) -> list[Action]:
        """Have it print its stacks and die. For one that runs or boots."""
        self._state = advance(self._state, SlotInput.TOLD_TO_ABORT)
        self.deadline = now + ABORT_GRACE
        return [Kill(self.worker_id, KillSignal.ABORT)]

    def kill(self, now: float) -> list[Action]:
        """End it."""
        self.deadline = now + KILL_GRACE
        if self._state is SlotState.KILLED:
            return []
        self._state = advance(self._state, SlotInput.TOLD_TO_DIE)
        return [Kill(self.worker_id, KillSignal.KILL)]


_OVERDUE: Final = {
    SlotState.DRAINING: "has not drained in time; killed",
    SlotState.LEAVING: "has not exited in time; killed",
    SlotState.ABORTING: "does not die of SIGABRT; killed",
    SlotState.KILLED: "does not die of SIGKILL",
}
_SIGNAL_NAMES: Final = {4: "SIGILL", 6: "SIGABRT", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV"} | {
    15: "SIGTERM"
}


def exit_text(status: int) -> str:
    """Say how a process ended; `status` as in subprocess: negative for a signal."""
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {_SIGNAL_NAMES.get(-status, f'signal {-status}')}"
