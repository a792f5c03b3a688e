"""Tell the application that the worker starts and stops (ASGI lifespan protocol)."""

from __future__ import annotations

import asyncio
import enum
import logging
import traceback
from typing import Final, Literal

from asgiri.errors import AppError
from asgiri.worker.asgi.application import Application
from asgiri.worker.asgi.types import Message, Scope

logger = logging.getLogger("asgiri.worker")

ENDING_TIMEOUT: Final = 1.0
"""How long the call may go on after it was told or cancelled, before we leave it behind."""


class LifespanError(Exception):
    """The application refused to start, or failed while it did."""

    def __init__(self, summary: str, traceback: str = "") -> None:
        super().__init__(summary)
        self.summary = summary
        self.traceback = traceback


class _Phase(enum.Enum):
    STARTING = enum.auto()
    STARTED = enum.auto()
    STOPPING = enum.auto()
    STOPPED = enum.auto()
    FAILED = enum.auto()


class Lifespan:
    """One call of the application that spans the worker's life: `startup`, then `shutdown`."""

    def __init__(
        self, application: Application, scope: Scope, mode: Literal["auto", "on", "off"]
    ) -> None:
        self._application = application
        self._scope = scope
        self._mode = mode
        self._phase = _Phase.STARTING
        self._failure = ""
        self._raised: BaseException | None = None
        self._told_startup = False
        self._stop_asked = asyncio.Event()
        self._changed = asyncio.Event()
        """The phase moved on, or the call ended; whoever waits clears it."""
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Return when the application is ready, or does not know the protocol; raises
        LifespanError.
        """
        if self._mode == "off":
            return
        self._task = asyncio.get_running_loop().create_task(
            self._call(), context=self._application.context.copy()
        )
        await self._changed.wait()
        self._changed.clear()
        if self._phase is _Phase.STARTED:
            return
        if self._phase is _Phase.FAILED:
            await self._wait_end(self._task)
            raise LifespanError(f"lifespan startup failed: {self._failure or 'no reason given'}")
        self._ended_unanswered()

    def _ended_unanswered(self) -> None:
        """ASGI: "If an exception is raised when calling the application callable with a
        lifespan.startup message or a scope of type lifespan, the server must continue but not send
        any lifespan events."
        """
        self._task = None
        error = self._raised
        if self._mode == "auto":
            logger.debug("the application does not take part in lifespan", exc_info=error)
        elif error is None:
            raise LifespanError("lifespan: the application returned before it was started")
        else:
            raise LifespanError(
                f"lifespan startup failed: {type(error).__name__}: {error}",
                "".join(traceback.format_exception(error)),
            )

    async def shutdown(self, patience: float) -> None:
        """Let the application clean up, for at most `patience` seconds. Never raises."""
        task = self._task
        if task is None:
            return
        self._task = None
        if not task.done():
            self._phase = _Phase.STOPPING
            self._stop_asked.set()
            try:
                await asyncio.wait_for(self._changed.wait(), patience)
            except TimeoutError:
                logger.error("lifespan shutdown did not end within %g s: cancelled", patience)
                task.cancel()
        if self._phase is _Phase.FAILED:
            logger.error("lifespan shutdown failed: %s", self._failure or "no reason given")
        await self._wait_end(task)
        if self._raised is not None:
            logger.error("exception in the application's lifespan", exc_info=self._raised)

    async def _wait_end(self, task: asyncio.Task[None]) -> None:
        """Let the call return; cancel it if it does not."""
        done, _ = await asyncio.wait({task}, timeout=ENDING_TIMEOUT)
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=ENDING_TIMEOUT)

    async def _call(self) -> None:
        try:
            await self._application.call(self._scope, self._receive, self._send)
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException as error:  # SystemExit, too: in a task it would stop the event loop
            self._raised = error
        finally:
            self._changed.set()

    async def _receive(self) -> Message:
        if not self._told_startup:
            self._told_startup = True
            return {"type": "lifespan.startup"}
        await self._stop_asked.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message.get("type")
        match kind, self._phase:
            case "lifespan.startup.complete", _Phase.STARTING:
                self._phase = _Phase.STARTED
            case "lifespan.shutdown.complete", _Phase.STOPPING:
                self._phase = _Phase.STOPPED
            case ("lifespan.startup.failed", _Phase.STARTING) | (
                "lifespan.shutdown.failed",
                _Phase.STOPPING,
            ):
                self._phase = _Phase.FAILED
                self._failure = str(message.get("message", ""))
            case _:
                raise AppError(f"{kind!r} while lifespan is {self._phase.name.lower()}")
        self._changed.set()
