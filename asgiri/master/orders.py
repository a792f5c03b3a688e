"""What an operator orders through the control socket, carried out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, get_args, get_type_hints

from asgiri.config import LogConfig
from asgiri.ipc.control import (
    MAX_WORKERS,
    Answer,
    Done,
    Refused,
    Reload,
    Request,
    Scale,
    SetLevel,
    Stacks,
    Stop,
)
from asgiri.master.fleet import Fleet
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle
from asgiri.master.reporting import Reporting
from asgiri.master.supervisor import Supervisor

Respond = Callable[[Answer], None]

LEVELS: Final[Sequence[str]] = get_args(get_type_hints(LogConfig)["level"])
LOOK_INTERVAL: Final = 0.02
"""Seconds between two looks whether more stacks have come."""
QUIET_LOOKS: Final = 5
"""Looks without anything new after which they are complete: tasks come a turn after threads."""
STACKS_PATIENCE: Final = 2.0
"""Seconds for a worker to begin: one that is swapped out takes its time."""
MAX_STACKS: Final = 128 << 10
"""Bytes of text in one answer: of the two or three workers that may be in a slot."""


class Orders:
    """Carries requests out, and answers when they are done."""

    def __init__(
        self,
        loop: EventLoop,
        supervisor: Supervisor,
        fleet: Fleet,
        reporting: Reporting,
        *,
        reload: Callable[[], str],
        stop: Callable[[bool], None],
        set_level: Callable[[str], None],
    ) -> None:
        """`reload` begins one and returns "", or why it does not; `stop` stops, at once if so
        told; `set_level` tells every process.
        """
        self._loop = loop
        self._supervisor = supervisor
        self._fleet = fleet
        self._reporting = reporting
        self._reload = reload
        self._stop = stop
        self._set_level = set_level
        self._waiting: list[tuple[int, Respond]] = []
        """For the end of a reload: its generation, and who asked."""
        self._collection: _Collection | None = None

    def carry_out(self, request: Request, answer: Respond) -> None:
        """Do it, and answer, now or later."""
        match request:
            case Reload():
                self._begin_reload(answer)
            case Stop(at_once=at_once):
                answer(Done("the server stops"))
                self._stop(at_once)
            case Scale(count=count):
                answer(self._scale(count))
            case Stacks(slot=slot):
                self._collect_stacks(slot, answer)
            case SetLevel(level=level) if level in LEVELS:
                self._set_level(level)
                answer(Done(f"log level {level} until the next reload"))
            case SetLevel():
                answer(Refused(f"must be one of {', '.join(LEVELS)}"))
            case _:
                raise AssertionError(f"nobody carries out {request}")

    def watch(self) -> int:
        """Keep the board up to date; return its descriptor."""
        self._reporting.watch()
        return self._reporting.fileno()

    def unwatch(self) -> None:
        """One watcher less."""
        self._reporting.unwatch()

    # Reload

    def _begin_reload(self, answer: Respond) -> None:
        if self._supervisor.is_ending:
            answer(Refused("the server stops"))
            return
        refusal = self._reload()
        if refusal:
            answer(Refused(refusal))
        else:
            self._waiting.append((self._supervisor.next_generation, answer))

    def reload_ended(self, generation: int, failure: str) -> None:
        """A reload has ended; `failure` is "" when its generation serves."""
        due = [answer for wanted, answer in self._waiting if wanted <= generation]
        self._waiting = [
            (wanted, answer) for wanted, answer in self._waiting if wanted > generation
        ]
        for answer in due:
            if failure:
                answer(Refused(f"reload failed, the old workers stay: {failure}"))
            else:
                answer(Done(f"generation {generation} serves"))

    def server_stops(self) -> None:
        """No reload will end any more."""
        waiting, self._waiting = self._waiting, []
        for _, answer in waiting:
            answer(Refused("the server stops"))

    # Workers

    def _scale(self, count: int) -> Answer:
        if not 0 < count <= MAX_WORKERS:
            return Refused(f"must be between 1 and {MAX_WORKERS}")
        if self._supervisor.is_ending:
            return Refused("the server stops")
        change = count - self._supervisor.target
        self._fleet.decide(self._supervisor.scale(change, time.monotonic()))
        workers = "worker" if count == 1 else "workers"
        return Done(f"{count} {workers} until the next reload")

    def _collect_stacks(self, slot: int, answer: Respond) -> None:
        workers = [worker for worker in self._fleet.workers.values() if worker.slot == slot]
        if not workers:
            answer(Refused(f"no worker {slot}; there are {self._slots()}"))
        elif self._collection is not None and not self._collection.is_done:
            answer(Refused("somebody else asks at this moment; ask again"))
        else:
            self._collection = _Collection(self._loop, self._fleet, workers, answer)

    def _slots(self) -> str:
        slots = sorted({worker.slot for worker in self._fleet.workers.values()})
        return ", ".join(map(str, slots)) or "none"


class _Collection:
    """The stacks of some workers, on their way."""

    def __init__(
        self, loop: EventLoop, fleet: Fleet, workers: Sequence[WorkerHandle], answer: Respond
    ) -> None:
        self.is_done = False
        self._loop = loop
        self._fleet = fleet
        self._workers = workers
        self._answer = answer
        self._deadline = time.monotonic() + STACKS_PATIENCE
        self._counts: list[int] = []
        self._quiet = 0
        for worker in workers:
            worker.ask_for_stacks()
        loop.call_later(LOOK_INTERVAL, self._look)

    def _living(self) -> list[WorkerHandle]:
        """Those that were not taken apart meanwhile."""
        return [worker for worker in self._workers if worker.worker_id in self._fleet.workers]

    def _look(self) -> None:
        counts = [worker.segment.count_stacks() for worker in self._living()]
        self._quiet = self._quiet + 1 if counts == self._counts and all(counts) else 0
        self._counts = counts
        if self._quiet < QUIET_LOOKS and time.monotonic() < self._deadline:
            self._loop.call_later(LOOK_INTERVAL, self._look)
            return
        self.is_done = True
        parts = [f"{worker}:\n{_text(worker)}" for worker in self._living()]
        self._answer(Done("\n".join(parts)[:MAX_STACKS]) if parts else Refused("it has ended"))


def _text(worker: WorkerHandle) -> str:
    text = worker.segment.read_stacks().decode(errors="backslashreplace")
    return text or f"has not answered within {STACKS_PATIENCE:g} s\n"
