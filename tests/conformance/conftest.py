"""One server for all independent clients: every version on one port, several workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import Server, ServerOptions

WORKERS = 4


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Load generators do not come again when a worker that has too many asks them to.
    options = {"http3": True, "balance": "connection"}
    server = Server.start(ServerOptions(workers=WORKERS, tls=True, options=options))
    yield server
    server.stop()
