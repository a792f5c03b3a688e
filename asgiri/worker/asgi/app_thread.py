"""The application in a thread of its own, with an event loop of its own (`--app-thread`, D20).

Protocols, their timers and the connections stay in the main thread and go on while a handler
computes. The two threads meet in two `Mailbox`es only: what is to be done in the other one is
posted there, and objects belong to one of them (see `hop`).

Both need the interpreter's lock. Who waits for it is given it after SWITCH_INTERVAL; code in C that
does not let go of it holds up both.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from asgiri.worker.asgi import types
from asgiri.worker.asgi.application import Application
from asgiri.worker.protocol.headers import ResponseDefaults

SWITCH_INTERVAL: Final = 0.001
"""Seconds after which a thread that computes lets the other one run. Python's default of 5 ms is
what a QUIC timer would be late by each time; below 1 ms the switching itself begins to cost."""
TURN: Final = 0.001
"""Seconds that what was posted may take of one turn of a loop: several handlers that compute are no
reason for its timers to wait for all of them."""


class Mailbox:
    """Calls for an event loop from the other thread: one wake-up, however many they are."""

    __slots__ = ("_calls", "_context", "_loop", "_woken")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Of its own: a context can be entered by one thread at a time.
        self._context = contextvars.copy_context()
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Have it called over there, behind what was posted before. From the other thread only."""
        self._calls.append((callback, arguments))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # closed: the process ends
                self._loop.call_soon_threadsafe(self._open, context=self._context)

    def _open(self) -> None:
        # First: what is posted from here on wakes us again, or is seen below.
        self._woken = False
        calls = self._calls
        until = time.monotonic() + TURN
        try:
            while calls:
                callback, arguments = calls.popleft()
                callback(*arguments)
                if time.monotonic() > until:
                    break
        finally:
            if calls:
                self._loop.call_soon(self._open, context=self._context)


class AppThread:
    """One per worker process that has it."""

    def __init__(
        self,
        call: types.Application,
        loop: asyncio.AbstractEventLoop,
        main_loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Build it in the main thread, where context variables are as the application's calls shall
        find them.
        """
        self.loop: Final = loop
        self.application: Final = Application(call, loop)
        """To be started over there."""
        self.to_app: Final = Mailbox(loop)
        self.to_main: Final = Mailbox(main_loop)
        self.main_loop: Final = main_loop
        self.checks: Final = ResponseDefaults([], date=False)
        """For looking at heads of responses over there."""
        self.ended = False
        """It serves no more, or was left behind."""
        self._patience = 0.0
        self._exited = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="asgiri-app", daemon=True)

    def start(self) -> None:
        """Run the loop. Called in the main thread."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._thread.start()

    async def stop(self, patience: float) -> None:
        """End what is left over there; leave it behind when it does not end in time."""
        self._patience = patience
        self.to_app.post(self.loop.stop)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), patience)
        self.ended = True

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        except BaseException as error:
            # A task of the application ended in SystemExit: so does the worker.
            self.to_main.post(_raise, error)
        else:
            self.loop.run_until_complete(cancel_all(self._patience))
            self.loop.close()
        finally:
            self.to_main.post(self._exited.set)


def _raise(error: BaseException) -> None:
    raise error


async def cancel_all(patience: float) -> None:
    """Cancel all other tasks of the loop, and let them end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=patience)
