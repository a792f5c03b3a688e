"""The loaded application: its callable, the state its lifespan filled, and how a call of it is
started.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from asgiri.worker.asgi import types


class Application:
    """One per worker process."""

    __slots__ = ("_loop", "call", "context", "state")

    def __init__(self, call: types.Application, loop: asyncio.AbstractEventLoop) -> None:
        """Build it where context variables are as every exchange shall find them."""
        self.call = call
        self.state: dict[str, Any] = {}
        """What lifespan startup left; each scope gets a shallow copy."""
        self.context = contextvars.copy_context()
        """Each exchange runs in a copy of it, so that no exchange sees another's variables."""
        self._loop = loop

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Cancel what `start` returned. On the loop's next turn: a task cancelled before its first
        step never enters its `try`, and on Python 3.11 that step may still be due.
        """
        self._loop.call_soon(task.cancel)

    # The seam between Python versions. An eager task runs until its first real wait before `start`
    # returns: a short application costs no turn of the event loop (2.9 us less per request on 3.13,
    # see bench/).
    if sys.version_info >= (3, 12):

        def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
            """Run it as a task; None when it has ended already. The caller keeps the task."""
            task = asyncio.Task(
                coroutine, loop=self._loop, eager_start=True, context=self.context.copy()
            )
            return None if task.done() else task

        def when_begun(self, callback: Callable[[], None]) -> None:
            """Call it once what was started has come to its first real wait."""
            callback()

    else:

        def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None] | None:
            """Run it as a task; None when it has ended already. The caller keeps the task."""
            return self._loop.create_task(coroutine, context=self.context.copy())

        def when_begun(self, callback: Callable[[], None]) -> None:
            """Call it once what was started has come to its first real wait."""
            self._loop.call_soon(callback)
