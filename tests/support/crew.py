"""Tiny real workers for tests of the master's acting side, and a loop that is turned by hand."""

from __future__ import annotations

import select
import signal
import time
from collections.abc import Callable

from asgiri.config import RingConfig
from asgiri.ipc.messages import Message, Ready
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle, WorkerIdentity, WorkerOrder, spawn

PATIENCE = 20.0


class Crew:
    """Tiny workers, and their descriptors given back at the end."""

    def __init__(self) -> None:
        self.workers: dict[int, WorkerHandle] = {}
        self._all: list[WorkerHandle] = []

    def start(
        self,
        behaviour: str = "serve",
        *,
        slot: int | None = None,
        worker_id: int | None = None,
        ready: bool = True,
        **order,
    ) -> WorkerHandle:
        """Start a worker; with `ready`, return once it said so."""
        number = len(self._all)
        values = {"ring": RingConfig(), "secrets": None, "listeners": (), "udp_fds": (), **order}
        config = {"behaviour": behaviour, "ring_size": values["ring"].size}
        worker = spawn(
            WorkerIdentity(
                worker_id=100 + number if worker_id is None else worker_id,
                slot=number if slot is None else slot,
                generation=1,
            ),
            WorkerOrder(config=config, module="tests.support.tiny_worker", **values),
            selftest=False,
        )
        self._all.append(worker)
        self.workers[worker.worker_id] = worker
        if ready and behaviour == "serve":
            wait_message(worker, Ready)
        return worker

    def kill(self, worker: WorkerHandle) -> None:
        worker.signal(signal.SIGKILL)
        worker.process.wait(PATIENCE)

    def close(self) -> None:
        for worker in self._all:
            if worker.reap() is None:
                worker.signal(signal.SIGCONT)
                self.kill(worker)
            worker.close()


def wait_message(worker: WorkerHandle, kind: type) -> Message:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert select.select([worker.control.fileno()], [], [], PATIENCE)[0], "nothing came"
        for message in worker.receive():
            if isinstance(message, kind):
                return message
    raise AssertionError(f"no {kind.__name__}")


def turn_until(loop: EventLoop, condition: Callable[[], object]) -> None:
    """Turn the loop until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the loop waited in vain"
        loop.turn(0.05)
