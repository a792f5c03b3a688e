"""Molds as processes, and the birth of the workers that they fork: `molds` decides, this acts.

What a mold says is not believed further than that it may fail: a process that it claims to have
forked must be our child.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from asgiri.errors import ChannelClosedError, FdsLostError, StartError
from asgiri.ipc import messages
from asgiri.ipc.channel import ControlChannel, close_untrusted
from asgiri.master import molds
from asgiri.master.actions import Action, KillSignal, Spawn
from asgiri.master.loop import EventLoop
from asgiri.master.molds import Molds, MoldState, Step, Unborn
from asgiri.master.processes import (
    MESSAGES_PER_TURN,
    AdoptedProcess,
    Outfit,
    WorkerHandle,
    WorkerIdentity,
    WorkerOrder,
    exit_text,
    open_pidfd,
    start_process,
)
from asgiri.master.supervisor import Supervisor

logger = logging.getLogger("asgiri.master")

END_PATIENCE: Final = 2.0
"""Seconds to wait for a mold that was sent SIGKILL."""
FULL: Final = "its mold does not read"


class Employer(Protocol):
    """Who the workers are for: the fleet."""

    def decide(self, decided: Sequence[Action]) -> None:
        """Carry out what the supervisor decided."""

    def born(self, worker: WorkerHandle) -> None:
        """Own a worker that has become a process; it has its hello."""

    def dismiss(self, worker_id: int) -> None:
        """Tell it to quit."""


class _Mold:
    """The master's object for one mold. Owns the process and its channel."""

    def __init__(self, generation: int, order: WorkerOrder) -> None:
        self.generation = generation
        self.order = order
        self.control, theirs = ControlChannel.pair()
        with contextlib.ExitStack() as undo:
            undo.callback(self.control.close)
            with contextlib.closing(theirs):
                self.process = start_process(
                    order.mold, theirs.fileno(), environment=order.environment, folder=order.folder
                )
            undo.callback(self.process.wait)
            undo.callback(self.process.kill)
            self.pid = self.process.pid
            self.pidfd = open_pidfd(self.pid)
            hello = messages.MoldHello(generation, dict(order.config), os.getpid())
            with contextlib.suppress(ChannelClosedError):  # dead already: found by its exit
                self.control.send(hello)
            undo.pop_all()

    def __str__(self) -> str:
        return f"mold pid={self.pid} gen={self.generation}"

    def send(self, message: messages.Message, fds: Sequence[int] = ()) -> bool:
        with contextlib.suppress(ChannelClosedError):  # its exit follows
            return self.control.send(message, fds)
        return True

    def receive(self) -> Iterator[messages.Message]:
        """Take what it said, some of it at a time. Raises ChannelClosedError at its end."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                received = self.control.receive()
            except FdsLostError:
                continue
            if received is None:
                return
            message, fds = received
            close_untrusted(fds)  # no message of a mold's carries any
            if message is not None:
                yield message

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.control.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Foundry:
    """Owns the molds, and the workers until they are born."""

    def __init__(
        self,
        loop: EventLoop,
        supervisor: Supervisor,
        employer: Employer,
        bystanders: dict[int, Callable[[], None]],
    ) -> None:
        """`bystanders`: children that are no workers, and who reaps them."""
        self._loop = loop
        self._supervisor = supervisor
        self._employer = employer
        self._bystanders = bystanders
        self._decisions = Molds()
        self._orders: dict[int, WorkerOrder] = {}
        self._molds: dict[int, _Mold] = {}
        self._outfits: dict[int, Outfit] = {}
        """Of workers that are being forked."""

    # Questions

    @property
    def processes(self) -> dict[int, int]:
        """Process IDs of the molds, by their generation."""
        return {generation: mold.pid for generation, mold in self._molds.items()}

    @property
    def unborn(self) -> tuple[int, ...]:
        """Workers that are no process yet."""
        return self._decisions.unborn

    @property
    def is_forking(self) -> bool:
        """True while we may have a child that we were not told of."""
        return self._decisions.is_forking

    # What the fleet wants

    def spawn(self, action: Spawn, order: WorkerOrder) -> None:
        """Have a worker forked; `Employer.born` gets it, or the supervisor hears what failed."""
        self._orders[action.generation] = order
        self._do(self._decisions.spawn(action))

    def quit(self, worker_id: int) -> bool:
        """Let an unborn worker go; False when it is none."""
        if worker_id not in self.unborn:
            return False
        self._do(self._decisions.quit(worker_id))
        return True

    def kill(self, worker_id: int, kill: KillSignal) -> bool:
        """End what an unborn worker waits for; False when it is none."""
        if worker_id not in self.unborn:
            return False
        self._do(self._decisions.kill(worker_id, kill))
        return True

    def retire(self, *needed: int) -> None:
        """Let the molds go of all generations but these."""
        self._orders = {known: kept for known, kept in self._orders.items() if known in needed}
        self._do(self._decisions.retire(set(needed)))

    def broadcast(self, message: messages.Message) -> None:
        """Tell every mold."""
        for mold in self._molds.values():
            mold.send(message)

    def end_all(self) -> None:
        """Kill the molds. The next worker that is spawned after they have ended starts another."""
        for mold in self._molds.values():
            mold.process.kill()

    def close(self) -> None:
        """Give everything back, after an error of our own or at the end."""
        self.end_all()
        for mold in self._molds.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                mold.process.wait(END_PATIENCE)
            self._bystanders.pop(mold.pid, None)
            mold.close()
        for outfit in self._outfits.values():
            outfit.close()
        self._molds.clear()
        self._outfits.clear()

    # Steps

    def _do(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._carry_out(step)

    def _carry_out(self, step: Step) -> None:
        now = time.monotonic()
        supervisor, decide = self._supervisor, self._employer.decide
        match step:
            case molds.StartMold(generation):
                self._start(generation)
            case molds.Fork(generation, worker_id):
                self._fork(generation, worker_id)
            case molds.KillMold(generation, kill):
                self._molds[generation].signal(signal.Signals[kill.value])
            case molds.TellUnstartable(worker_id, reason):
                self._forget(worker_id)
                decide(supervisor.worker_spawn_failed(worker_id, reason, now))
            case molds.TellFailed(worker_id, stage, summary):
                decide(supervisor.worker_failed(worker_id, stage, summary, now))
            case molds.TellExited(worker_id, status):
                self._forget(worker_id)
                decide(supervisor.worker_exited(worker_id, status, now))
            case molds.TellWithdrawn(worker_id):
                decide(supervisor.worker_withdrawn(worker_id, now))

    def _start(self, generation: int) -> None:
        try:
            mold = _Mold(generation, self._orders[generation])
        except (OSError, StartError) as error:
            self._do(self._decisions.unstartable(generation, str(error)))
            return
        self._molds[generation] = mold
        self._bystanders[mold.pid] = lambda: self._on_exit(mold)
        self._loop.watch_readable(mold.control.fileno(), lambda: self._on_messages(mold))
        if mold.pidfd >= 0:
            self._loop.watch_readable(mold.pidfd, lambda: self._on_exit(mold))
        logger.debug("%s: started", mold)

    def _fork(self, generation: int, worker_id: int) -> None:
        mold = self._molds[generation]
        try:
            outfit = Outfit(mold.order)
        except (OSError, StartError) as error:
            self._do(self._decisions.fork_failed(generation, worker_id, str(error)))
            return
        self._outfits[worker_id] = outfit
        sent = mold.send(messages.Cast(worker_id), [outfit.worker_control.fileno()])
        # From here on it is under way: the worker alone shall hold it open.
        outfit.worker_control.close()
        if not sent:
            self._do(self._decisions.fork_failed(generation, worker_id, FULL))

    def _forget(self, worker_id: int) -> None:
        outfit = self._outfits.pop(worker_id, None)
        if outfit is not None:
            outfit.close()

    # What molds say

    def _on_messages(self, mold: _Mold) -> None:
        try:
            for message in mold.receive():
                self._take(mold, message)
        except ChannelClosedError:
            self._loop.unwatch(mold.control.fileno())  # its exit follows

    def _take(self, mold: _Mold, message: messages.Message) -> None:
        match message:
            case messages.Importing():
                logger.debug("%s: imports the application", mold)
            case messages.Ready():
                logger.info("%s: ready", mold)
                self._do(self._decisions.ready(mold.generation))
            case messages.Failed(stage=stage, summary=summary, traceback=traceback):
                self._do(self._decisions.failed(mold.generation, stage, summary))
                if traceback:
                    logger.error("%s: where it failed:\n%s", mold, traceback.rstrip())
            case messages.Warning(text=text):
                logger.warning("%s: %s", mold, text)
            case messages.Forked(worker_id=worker_id, pid=pid):
                self._on_forked(mold, worker_id, pid)
            case messages.ForkFailed(worker_id=worker_id, reason=reason):
                self._do(self._decisions.fork_failed(mold.generation, worker_id, reason))
            case _:
                pass

    def _on_forked(self, mold: _Mold, worker_id: int, pid: int) -> None:
        if not _is_child(pid):
            reason = f"process {pid} is no child of the master"
            self._do(self._decisions.fork_failed(mold.generation, worker_id, reason))
            return
        worker = self._decisions.forked(mold.generation, worker_id)
        if worker is not None:
            self._employ(mold, worker, pid)
            self._do(self._decisions.end_retired())

    def _employ(self, mold: _Mold, worker: Unborn, pid: int) -> None:
        order = worker.order
        identity = WorkerIdentity(
            worker_id=order.worker_id, slot=order.slot, generation=order.generation
        )
        outfit = self._outfits.pop(order.worker_id)
        process = AdoptedProcess(pid)
        try:
            handle = outfit.employ(identity, process, mold.order, selftest=order.selftest)
        except OSError as error:
            outfit.close()  # which ends it: it has no hello yet
            failed = self._supervisor.worker_spawn_failed(
                order.worker_id, str(error), time.monotonic()
            )
            self._employer.decide(failed)
            return
        self._employer.born(handle)
        if worker.dismissed:
            self._employer.dismiss(order.worker_id)

    # The end of a mold

    def reap(self) -> None:
        """Collect exits that no pidfd tells of."""
        for mold in list(self._molds.values()):
            if mold.pidfd < 0:
                self._on_exit(mold)

    def _on_exit(self, mold: _Mold) -> None:
        status = mold.process.poll()
        if status is None or self._molds.get(mold.generation) is not mold:
            return
        self._on_messages(mold)  # what it said last
        if self._decisions.state(mold.generation) is MoldState.ENDING:
            logger.debug("%s: %s", mold, exit_text(status))
        else:
            # With status 0 it obeyed a SIGTERM, which the whole group may have got.
            level = logging.WARNING if status else logging.INFO
            text = "the next worker starts another one"
            logger.log(level, "%s: %s; %s", mold, exit_text(status), text)
        self._loop.unwatch(mold.control.fileno())
        if mold.pidfd >= 0:
            self._loop.unwatch(mold.pidfd)
        del self._molds[mold.generation]
        self._bystanders.pop(mold.pid, None)
        mold.close()
        self._do(self._decisions.exited(mold.generation, status))


def _is_child(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, OverflowError):
        return False
    return True
