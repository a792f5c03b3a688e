"""QUIC by the letter: every rule of `quic_rules` over a real socket, a master and two workers."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from asgiri.ipc.scoreboard import Refusal
from tests.conformance.quic_rules import HANDSHAKE_RULES, PARAMETER_RULES, RULES
from tests.conformance.quic_verdicts import Closed, Rule
from tests.support.admin import Admin
from tests.support.quic_probe import Probe
from tests.support.server import Server, ServerOptions

pytestmark = pytest.mark.slow

expected: Counter[str] = Counter()
"""What the server has to have counted."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = {"http3": True, "admin": "127.0.0.1:0", "quic_retry": "never"}
    server = Server.start(ServerOptions(workers=2, tls=True, options=options))
    expected.clear()
    pids = server.worker_pids
    yield server
    asyncio.run(Admin(server).wait_refusals(expected))
    assert server.worker_pids == pids
    server.stop()


def count(reason: Refusal | None) -> None:
    if reason is not None:
        expected[reason.name.lower()] += 1


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
async def test_rule(server: Server, rule: Rule):
    await rule.check(server.port)
    count(rule.counted)


@pytest.mark.parametrize("rule", HANDSHAKE_RULES, ids=lambda rule: rule.id)
async def test_rule_of_the_handshake(server: Server, rule: Rule):
    probe = Probe.prepare(server.port)
    try:
        result = rule.act(probe)
        if inspect.isawaitable(result):
            await result
        await rule.verdict.check(probe)
    finally:
        probe.vanish()
    count(rule.counted)


@pytest.mark.parametrize(
    ("code", "options"),
    [(code, options) for _, _, code, options in PARAMETER_RULES],
    ids=[f"{section}-{name}".replace(" ", "_") for section, name, _, _ in PARAMETER_RULES],
)
async def test_parameters(server: Server, code: int | None, options: dict[str, Any]):
    probe = Probe.prepare(server.port, **options)
    try:
        if code is None:
            await probe.handshake()
            await probe.assert_serves()
            return
        probe.first_flight_sent = True  # type: ignore[attr-defined]
        for datagram in probe.first_flight():
            probe.send_raw(datagram)
        await Closed(code).check(probe)
    finally:
        probe.close_quic()
        probe.vanish()
    count(Refusal.QUIC_HANDSHAKE_FAILED)
