"""Whether the peer of a WebSocket is still there, and the patience with its last word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from asgiri.config import WebSocketConfig

PING_PAYLOAD: Final = b"asgiri"


class KeepAlive:
    """One timer of a WebSocket: pings while it is open, then the wait for the peer's close frame.

    Every byte of the peer is a sign of life, not only a pong, which waits behind a long message.
    """

    __slots__ = ("_config", "_heard", "_loop", "_ping", "_timed_out", "_timer")

    def __init__(
        self,
        config: WebSocketConfig,
        loop: asyncio.AbstractEventLoop,
        *,
        ping: Callable[[bytes], bool],
        timed_out: Callable[[], None],
    ) -> None:
        """`ping` sends one, or returns False when it could not: silence then proves nothing."""
        self._config = config
        self._loop = loop
        self._ping = ping
        self._timed_out = timed_out
        self._heard = True
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """The WebSocket is open."""
        if self._config.ping_interval:
            self._set(self._config.ping_interval, self._ping_due)

    def heard(self) -> None:
        """The peer has sent something, or waits for us to take it."""
        self._heard = True

    def wait_close(self, closed_in_vain: Callable[[], None]) -> None:
        """Our close frame is sent."""
        self._set(self._config.close_timeout, closed_in_vain)

    def stop(self) -> None:
        """The WebSocket is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ping_due(self) -> None:
        config = self._config
        self._heard = not self._ping(PING_PAYLOAD)
        if config.ping_timeout:
            self._set(config.ping_timeout, self._answer_due)
        else:
            self._set(config.ping_interval, self._ping_due)

    def _answer_due(self) -> None:
        if self._heard:
            config = self._config
            self._set(max(config.ping_interval - config.ping_timeout, 0.0), self._ping_due)
        else:
            self._timed_out()

    def _set(self, delay: float, callback: Callable[[], None]) -> None:
        self.stop()
        self._timer = self._loop.call_later(delay, callback)
