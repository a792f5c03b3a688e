"""The table of HTTP/1.1, through a master and two workers, by both parsers: one verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.http1_cases import CASES, Case, Seen
from tests.support.client import Response
from tests.support.http1_client import Http1Connection
from tests.support.server import Server

# What begins like HTTP/2 is HTTP/2 on a port that speaks both: `http2_cases` has it.
ON_SOCKETS = [case for case in CASES if not case.request.startswith(b"PRI * HTTP/2.0")]
AGAIN = b"GET /again HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("case", ON_SOCKETS, ids=lambda case: case.id)
async def test_case(case: Case, http1_server: Server):
    connection = await Http1Connection.connect(http1_server.host, http1_server.port)
    try:
        await connection.write(case.request)
        for seen in case.seen:
            check_seen(seen, await connection.response(seen.method))
        if case.refused is not None:
            answer = await connection.response()
            assert answer.status == case.refused
            assert (answer.header("connection") or "").endswith("close")
        elif case.stays:
            await connection.write(AGAIN)
            check_seen(Seen("GET", b"/again"), await connection.response())
        await connection.wait_closed()
    finally:
        await connection.close()


def check_seen(expected: Seen, response: Response) -> None:
    assert response.status == (200 if expected.protocol is None else 403)
    told: dict[str, Any] = json.loads(response.header("x-seen") or "")
    path, _, query = expected.target.partition(b"?")
    assert told["method"] == expected.method
    assert (told["path"], told["query"]) == (path.decode("latin-1"), query.decode("latin-1"))
    assert told["body"].encode("latin-1") == expected.body
    assert told["version"] == expected.version
    assert told["type"] == (expected.protocol or "http")
    names = {name for name, _ in expected.fields}
    told_fields = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in told["headers"]]
    assert tuple(field for field in told_fields if field[0] in names) == expected.fields
