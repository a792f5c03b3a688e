"""Which molds should exist, and who waits to be cast from them (--preload). Sans-IO.

A mold is a process that has imported the application of one generation and forks workers from it.
To the supervisor a worker is a worker: from its `Spawn` on it has a slot, a boot timeout and a
role. Here it is *unborn* until its process exists, which may take as long as the import.

    spawn       starts the generation's mold if there is none; the mold is asked when it is ready
    it fails    so do the workers that wait for it: a canary that cannot be imported is found out
    it ends     its unborn workers have ended with the same status, and are respawned, or not, as
                any others; the next spawn of that generation starts another mold
    kill        an unborn worker has no process: what hangs is its mold, which gets the signal
    retire      other generations spawn no more; a mold goes once nobody waits for it

Called by `foundry` only, which carries the steps out in their order. At most one mold exists for a
generation: one that is ending is waited for.
"""

import enum
from dataclasses import dataclass

from asgiri.master.actions import KillSignal, Spawn

__all__ = [
    "Fork",
    "KillMold",
    "MoldState",
    "Molds",
    "StartMold",
    "Step",
    "TellExited",
    "TellFailed",
    "TellUnstartable",
    "TellWithdrawn",
    "Unborn",
]


class MoldState(enum.Enum):
    """How far a mold is."""

    IMPORTING = "importing"
    READY = "ready"
    ENDING = "ending"
    """It has failed, or was sent a signal: its exit is all that is expected."""


@dataclass(slots=True)
class Unborn:
    """A worker that the supervisor has spawned and that is no process yet."""

    order: Spawn
    forking: bool = False
    """The mold was told; the answer is a matter of milliseconds."""
    dismissed: bool = False
    """Was told to quit meanwhile."""


# Steps


@dataclass(frozen=True, slots=True)
class StartMold:
    """Start a process. `unstartable` is the answer when that is not possible."""

    generation: int


@dataclass(frozen=True, slots=True)
class Fork:
    """Tell the mold to fork this worker."""

    generation: int
    worker_id: int


@dataclass(frozen=True, slots=True)
class KillMold:
    """Send the mold a signal."""

    generation: int
    signal: KillSignal


@dataclass(frozen=True, slots=True)
class TellUnstartable:
    """For `Supervisor.worker_spawn_failed`."""

    worker_id: int
    reason: str


@dataclass(frozen=True, slots=True)
class TellFailed:
    """For `Supervisor.worker_failed`."""

    worker_id: int
    stage: str
    summary: str


@dataclass(frozen=True, slots=True)
class TellExited:
    """For `Supervisor.worker_exited`."""

    worker_id: int
    status: int


@dataclass(frozen=True, slots=True)
class TellWithdrawn:
    """For `Supervisor.worker_withdrawn`."""

    worker_id: int


Step = StartMold | Fork | KillMold | TellUnstartable | TellFailed | TellExited | TellWithdrawn


class Molds:
    """Feed it what happened, carry out the steps that it returns, in that order."""

    def __init__(self) -> None:
        self._molds: dict[int, MoldState] = {}
        self._retired: set[int] = set()
        self._unborn: dict[int, Unborn] = {}

    # Questions

    def state(self, generation: int) -> MoldState | None:
        """Tell how far a mold is, None when there is none."""
        return self._molds.get(generation)

    @property
    def unborn(self) -> tuple[int, ...]:
        """Workers that are no process yet."""
        return tuple(self._unborn)

    @property
    def is_forking(self) -> bool:
        """True while there may be a process that we were not told of."""
        return any(worker.forking for worker in self._unborn.values())

    # What the supervisor wants

    def spawn(self, order: Spawn) -> list[Step]:
        """Have a worker cast, now or when its mold is ready."""
        self._unborn[order.worker_id] = Unborn(order)
        self._retired.discard(order.generation)
        match self._molds.get(order.generation):
            case None:
                self._molds[order.generation] = MoldState.IMPORTING
                return [StartMold(order.generation)]
            case MoldState.READY:
                return self._fork(order.generation)
            case _:
                return []

    def quit(self, worker_id: int) -> list[Step]:
        """Let an unborn worker go."""
        worker = self._unborn[worker_id]
        if worker.forking:
            worker.dismissed = True
            return []
        del self._unborn[worker_id]
        return [TellWithdrawn(worker_id), *self.end_retired()]

    def kill(self, worker_id: int, signal: KillSignal) -> list[Step]:
        """End what an unborn worker waits for."""
        return self._kill(self._unborn[worker_id].order.generation, signal)

    def retire(self, needed: set[int]) -> list[Step]:
        """Let the molds go of all generations but these."""
        self._retired |= self._molds.keys() - needed
        return self.end_retired()

    def end_retired(self) -> list[Step]:
        """Kill those that are not needed, and that nobody waits for any more."""
        steps: list[Step] = []
        for generation in sorted(self._retired):
            if self._waiting(generation):
                continue
            self._retired.discard(generation)
            if self._molds[generation] is not MoldState.ENDING:
                steps += self._kill(generation, KillSignal.KILL)
        return steps

    # What molds do

    def unstartable(self, generation: int, reason: str) -> list[Step]:
        """No process could be started; there is nothing to reap."""
        del self._molds[generation]
        self._retired.discard(generation)
        return [TellUnstartable(worker_id, reason) for worker_id in self._take_waiting(generation)]

    def ready(self, generation: int) -> list[Step]:
        """It has imported the application."""
        if self._molds[generation] is not MoldState.IMPORTING:
            return []
        self._molds[generation] = MoldState.READY
        return self._fork(generation)

    def failed(self, generation: int, stage: str, summary: str) -> list[Step]:
        """It could not import the application; it exits by itself."""
        self._molds[generation] = MoldState.ENDING
        return [TellFailed(worker_id, stage, summary) for worker_id in self._waiting(generation)]

    def forked(self, generation: int, worker_id: int) -> Unborn | None:
        """Its worker is a process now; `end_retired` follows. None: it was not asked for."""
        worker = self._unborn.get(worker_id)
        if worker is None or not worker.forking or worker.order.generation != generation:
            return None
        return self._unborn.pop(worker_id)

    def fork_failed(self, generation: int, worker_id: int, reason: str) -> list[Step]:
        """The worker could not be forked."""
        if self.forked(generation, worker_id) is None:
            return []
        return [TellUnstartable(worker_id, reason), *self.end_retired()]

    def exited(self, generation: int, status: int) -> list[Step]:
        """It was reaped. `status` as in subprocess: negative for a signal."""
        del self._molds[generation]
        self._retired.discard(generation)
        return [TellExited(worker_id, status) for worker_id in self._take_waiting(generation)]

    # Steps

    def _waiting(self, generation: int) -> list[int]:
        return [w for w, unborn in self._unborn.items() if unborn.order.generation == generation]

    def _take_waiting(self, generation: int) -> list[int]:
        waiting = self._waiting(generation)
        for worker_id in waiting:
            del self._unborn[worker_id]
        return waiting

    def _fork(self, generation: int) -> list[Step]:
        steps: list[Step] = []
        for worker_id in self._waiting(generation):
            if not self._unborn[worker_id].forking:
                self._unborn[worker_id].forking = True
                steps.append(Fork(generation, worker_id))
        return steps

    def _kill(self, generation: int, signal: KillSignal) -> list[Step]:
        self._molds[generation] = MoldState.ENDING
        return [KillMold(generation, signal)]
