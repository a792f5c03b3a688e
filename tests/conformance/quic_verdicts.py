"""What a rule of QUIC or HTTP/3 demands of a server, and how a client sees that it was kept."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aioquic.quic.packet import QuicErrorCode

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http3 import _REFUSALS
from asgiri.worker.protocol.http3_frames import ErrorCode
from tests.support.quic_probe import Probe

Act = Callable[[Probe], Awaitable[object] | object]


@dataclass(frozen=True, slots=True)
class Closed:
    """The server ends the connection with this code of QUIC's (RFC 9000 §20.1)."""

    code: int

    async def check(self, probe: Probe) -> None:
        await probe.wait_closed()
        assert probe.closed_with(0x1C) == self.code, probe.describe_end()


@dataclass(frozen=True, slots=True)
class ClosedByHttp:
    """The server ends the connection with this code of HTTP/3's (RFC 9114 §8.1)."""

    code: ErrorCode

    async def check(self, probe: Probe) -> None:
        await probe.wait_closed()
        assert probe.closed_with(0x1D) == self.code, probe.describe_end()


@dataclass(frozen=True, slots=True)
class Reset:
    """The first request is given up with this code, and the connection goes on."""

    code: ErrorCode

    async def check(self, probe: Probe) -> None:
        stream = await probe.response(0)
        assert stream.reset_code == self.code
        await probe.assert_serves()


@dataclass(frozen=True, slots=True)
class Answered:
    """The first request is answered, and the connection goes on."""

    status: int = 200

    async def check(self, probe: Probe) -> None:
        stream = await probe.response(0)
        assert (stream.reset_code, stream.status) == (None, self.status)
        await probe.assert_serves()


@dataclass(frozen=True, slots=True)
class Ignored:
    """As if nothing had been sent."""

    async def check(self, probe: Probe) -> None:
        await probe.silence()
        await probe.assert_serves()


Verdict = Closed | ClosedByHttp | Reset | Answered | Ignored


@dataclass(frozen=True, slots=True)
class Rule:
    """One sentence of a standard, broken or leaned on."""

    section: str
    name: str
    act: Act
    verdict: Verdict
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `Probe.connect`."""
    counted: Refusal | None = None
    """The counter that names what was refused."""

    @property
    def id(self) -> str:
        return f"{self.section}-{self.name}".replace(" ", "_")

    async def check(self, port: int) -> None:
        probe = await Probe.connect(port, **self.options)
        try:
            result = self.act(probe)
            if inspect.isawaitable(result):
                await result
            await self.verdict.check(probe)
        finally:
            probe.close_quic()
            probe.vanish()


def counter_of(verdict: Verdict) -> Refusal | None:
    """Where the server counts what it refuses like this, unless a rule says otherwise."""
    match verdict:
        case Closed(code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED):
            return Refusal.QUIC_CRYPTO_BUFFER
        case Closed():
            return Refusal.QUIC_PROTOCOL_ERROR
        case ClosedByHttp(code=code):
            return _REFUSALS.get(code, Refusal.HTTP3_PROTOCOL_ERROR)
        case Reset(code=ErrorCode.H3_MESSAGE_ERROR):
            return Refusal.HTTP3_BAD_HEADERS
        case Reset(code=ErrorCode.H3_REQUEST_INCOMPLETE):
            return Refusal.HTTP3_TRUNCATED
        case _:
            return None
