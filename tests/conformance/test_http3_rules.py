"""HTTP/3 by the letter: every rule of `http3_rules` over real sockets, a master and two workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.conformance.http3_rules import RULES
from tests.conformance.quic_verdicts import Rule
from tests.support.admin import Admin
from tests.support.server import Server, ServerOptions

pytestmark = pytest.mark.slow

expected: Counter[str] = Counter()
"""What the server has to have counted."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = {"http3": True, "admin": "127.0.0.1:0"}
    server = Server.start(ServerOptions(workers=2, tls=True, options=options))
    expected.clear()
    pids = server.worker_pids
    yield server
    asyncio.run(Admin(server).wait_refusals(expected))
    assert server.worker_pids == pids
    server.stop()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
async def test_rule(server: Server, rule: Rule):
    await rule.check(server.port)
    if rule.counted is not None:
        expected[rule.counted.name.lower()] += 1
