"""The workers that exist and what each is there for: the supervisor's table. Sans-IO.

Called by `supervisor` only, which decides; this module keeps the books and writes down the actions.
Two rules are kept here, so that no decision can break them: who is told to go is never again among
the ready ones, and leaves them before it is told.
"""

import enum
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from asgiri.master.actions import Action, Level, Report, Spawn, Switch
from asgiri.master.slots import Incarnation, WorkerPolicy

__all__ = ["BackOff", "Role", "Roster", "Worker"]

FIRST_BACK_OFF: Final = 0.1
LONGEST_BACK_OFF: Final = 10.0
"""Seconds. A crash loop costs a worker's start each time; this is 10 % of one processor at most."""
HEALTHY_AFTER: Final = 60.0
"""Seconds of service after which a crash is no longer part of a crash loop."""


class Role(enum.Enum):
    """What a worker is there for."""

    SERVING = "serving"
    CANDIDATE = "candidate"
    REPLACEMENT = "replacement"
    LEAVING = "leaving"


class Worker(Incarnation):
    """An incarnation and its part in the plan."""

    __slots__ = ("role",)
    role: Role


class BackOff:
    """How long a slot stays empty after a crash."""

    __slots__ = ("_failures", "not_before")

    def __init__(self) -> None:
        self._failures = 0
        self.not_before = -math.inf

    def failed(self, worker: Worker, now: float) -> float:
        """Return how many seconds to wait for the next one."""
        if worker.has_served(HEALTHY_AFTER, now):
            self._failures = 0
        delay: float = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0**self._failures)
        # The exponent stops where the delay does: a float would overflow after hours of crashes.
        self._failures = min(self._failures + 1, 10)
        self.not_before = now + delay
        return delay


class Roster:
    """All workers from spawn to reap, and the actions that were decided and not yet taken."""

    def __init__(self, *, first_worker_id: int, random: Callable[[], float]) -> None:
        self.serving_generation = 0
        """0 until the server has started: nobody is ready before that."""
        self._next_worker_id = first_worker_id
        self._random = random
        self._workers: dict[int, Worker] = {}
        self._back_offs: dict[int, BackOff] = {}
        self._selftested = 0
        self._published: tuple[int, ...] = ()
        self._actions: list[Action] = []

    # Questions

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, worker_id: int) -> Worker | None:
        """Return a worker, None when it is gone."""
        return self._workers.get(worker_id)

    def all(self) -> list[Worker]:
        """Return every worker that was not reaped."""
        return list(self._workers.values())

    def with_role(self, role: Role) -> list[Worker]:
        """Return the workers that are there for this, by slot."""
        workers = [worker for worker in self._workers.values() if worker.role is role]
        return sorted(workers, key=lambda worker: worker.slot)

    def holders(self, slot: int) -> list[Worker]:
        """Return who serves in a slot, and who is about to take it over."""
        held_by = (Role.SERVING, Role.REPLACEMENT)
        return [w for w in self._workers.values() if w.slot == slot and w.role in held_by]

    def slots(self) -> set[int]:
        """Return the slots that anybody is in, on its way out or not."""
        return {worker.slot for worker in self._workers.values()}

    def back_off(self, slot: int) -> BackOff:
        """Return the back-off of a slot."""
        return self._back_offs.setdefault(slot, BackOff())

    def may_spawn(self, slot: int, now: float) -> bool:
        """Tell whether the back-off of a slot is over."""
        return slot not in self._back_offs or now >= self._back_offs[slot].not_before

    def deadlines(self) -> list[float]:
        """Return when each worker has to be looked after."""
        return [w.deadline for w in self._workers.values() if w.deadline < math.inf]

    def back_offs_after(self, now: float) -> list[float]:
        """Return when the back-offs end that have not."""
        ends = [back_off.not_before for back_off in self._back_offs.values()]
        return [end for end in ends if end > now]

    # Steps

    def act(self, action: Action) -> None:
        """Write down an action."""
        self._actions.append(action)

    def report(self, level: Level, text: str, worker: Worker) -> None:
        """Write down a fact about a worker."""
        place = f"worker[{worker.slot}] gen={worker.generation}"
        self._actions.append(Report(level, text, worker.worker_id, place))

    def take_actions(self) -> list[Action]:
        """Return what was written down since the last call."""
        actions, self._actions = self._actions, []
        return actions

    def publish(self) -> None:
        """Say who is ready, when that has changed."""
        if not self.serving_generation:
            return
        serving = self.with_role(Role.SERVING)
        ready = tuple(worker.worker_id for worker in serving if worker.is_ready)
        if ready != self._published:
            self._published = ready
            self._actions.append(Switch(self.serving_generation, ready))

    def spawn(
        self, slot: int, generation: int, role: Role, *, policy: WorkerPolicy, now: float
    ) -> None:
        """Add a worker."""
        # Above, not other than: while a new generation starts, a worker of the old may crash.
        selftest = generation > self._selftested
        self._selftested = max(generation, self._selftested)
        order = Spawn(self._next_worker_id, slot, generation, selftest)
        self._next_worker_id = (self._next_worker_id + 1) % (1 << 32)
        worker = Worker(order, policy, now, self._random)
        worker.role = role
        self._workers[worker.worker_id] = worker
        self._actions.append(order)

    def to_state(self, without: Collection[int] = ()) -> dict[str, Any]:
        """Return what `restore` reads."""
        workers = [worker for worker in self.all() if worker.worker_id not in without]
        return {
            "next_worker_id": self._next_worker_id,
            "workers": [{**worker.to_state(), "role": worker.role.value} for worker in workers],
        }

    def restore(self, state: Mapping[str, Any], policy: WorkerPolicy, now: float) -> None:
        """Know the workers that `to_state` told of; they live by this policy from now on."""
        self._next_worker_id = int(state["next_worker_id"])
        for known in state["workers"]:
            order = Spawn(known["worker_id"], known["slot"], known["generation"], selftest=False)
            worker = Worker(order, policy, now, self._random)
            worker.restore(known)
            worker.role = Role(known["role"])
            self._workers[worker.worker_id] = worker

    def remove(self, worker: Worker) -> None:
        """Forget a worker that was reaped, or never was."""
        worker.ended()
        del self._workers[worker.worker_id]

    def release(self, workers: Iterable[Worker], now: float) -> None:
        """Let workers finish what they have, then go."""
        leaving = list(workers)
        for worker in leaving:
            worker.role = Role.LEAVING
        self.publish()
        for worker in leaving:
            self._actions += worker.release(now)

    def end_all(self, now: float, *, ask: bool) -> None:
        """Let everybody go without finishing anything; unless `ask`, without its consent."""
        for worker in self._workers.values():
            worker.role = Role.LEAVING
        self.publish()
        for worker in self._workers.values():
            self._actions += worker.quit(now) if ask else worker.kill(now)

    def forget_back_offs(self) -> None:
        """Begin anew: other code is in the slots."""
        self._back_offs.clear()
