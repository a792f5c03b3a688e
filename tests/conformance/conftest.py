"""One server for all independent clients: every version on one port, several workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Server, ServerOptions

WORKERS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server.start(ServerOptions(workers=WORKERS, tls=True, options={"http3": True}))
    yield server
    server.stop()
