"""Waiting for the other side of an exchange."""

from __future__ import annotations

import asyncio


class Waiters:
    """Coroutines that wait until they are told to look again."""

    __slots__ = ("_futures", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._futures: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return bool(self._futures)

    async def wait(self) -> None:
        """Wait for the next `wake`."""
        # One future for each who waits: cancelling one must not cancel the others.
        future = self._loop.create_future()
        self._futures.append(future)
        try:
            await future
        finally:
            # Not by the future's state: it may be cancelled, and then woken before we come here.
            if future in self._futures:
                self._futures.remove(future)

    def wake(self) -> None:
        """Let all of them look again."""
        for future in self._futures:
            if not future.done():
                future.set_result(None)
        self._futures.clear()
