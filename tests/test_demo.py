"""The application of the quick start, alone and behind the real server."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser

import pytest

from asgiri import demo
from tests.support.client import Response, read_response
from tests.support.http1_client import Http1Connection
from tests.support.server import Server, ServerOptions


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = ServerOptions(app="asgiri.demo:app", workers=2, options={"access_log": True})
    running = Server.start(options)
    yield running
    running.stop()


@pytest.fixture
async def connection(server):
    client = await Http1Connection.connect(server.host, server.port)
    yield client
    await client.close()


async def get(connection, path) -> Response:
    return await read_response(await connection.start("GET", path))


# Behind the server


class Page(HTMLParser):
    """Collects what a page would load."""

    def __init__(self, text):
        super().__init__()
        self.loaded = []
        self.scripts = ""
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in {"src", "href", "srcset"}]
        self._in_script = tag == "script"

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts += data


@pytest.mark.slow
async def test_the_page_knows_who_served_it_and_loads_nothing_from_elsewhere(server, connection):
    response = await get(connection, "/")
    assert response.header("content-type") == "text/html; charset=utf-8"
    page = Page(response.body.decode())
    facts = json.loads(re.search(r"const facts = (\{.*?\});", page.scripts)[1])
    assert facts["http_version"] == "1.1"
    assert server.workers[facts["slot"]] == facts["pid"]
    assert all(address.startswith("data:") for address in page.loaded)
    assert "default-src 'none'" in response.header("content-security-policy")


@pytest.mark.slow
async def test_whoami_tells_version_worker_and_client(server, connection):
    response = await get(connection, "/whoami")
    facts = json.loads(response.body)
    assert server.workers[facts["slot"]] == facts["pid"]
    assert facts["client"] == list(connection.local_address)
    assert facts["generation"] == 1
    assert (facts["http_version"], facts["scheme"]) == ("1.1", "http")
    assert response.header("cache-control") == "no-store"


@pytest.mark.slow
async def test_echo_sends_the_body_back_while_it_comes(connection):
    exchange = await connection.start("POST", "/echo", [("content-type", "text/x")], body=None)
    await exchange.send_body(b"first")
    assert (await exchange.head()).header("content-type") == "text/x"
    assert await exchange.read() == b"first"
    await exchange.send_body(b"second")
    assert await exchange.read() == b"second"
    await exchange.end_body()
    assert await exchange.read() == b""


@pytest.mark.slow
async def test_stream_sends_as_many_chunks_as_asked(connection):
    response = await get(connection, "/stream?n=3&size=70000")
    assert response.body == b"." * 210_000
    assert (await get(connection, "/stream?n=zero")).body == b"." * 10_240


@pytest.mark.slow
async def test_events_tick_with_the_time(connection):
    response = await get(connection, "/events?n=3&ms=1")
    assert response.header("content-type") == "text/event-stream"
    ticks = re.findall(r"event: clock\ndata: (.*)\n\n", response.body.decode())
    times = [datetime.fromisoformat(json.loads(tick)["time"]).timestamp() for tick in ticks]
    assert len(times) == 3
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 60


@pytest.mark.slow
async def test_events_end_when_the_client_goes(server):
    client = await Http1Connection.connect(server.host, server.port)
    start = server.log.end
    exchange = await client.start("GET", "/events?ms=60000")
    assert b"event: clock" in await exchange.read()
    await client.abort()
    await server.wait_line(r'"GET /events\?ms=60000 ', start)  # logged when the call has ended


@pytest.mark.slow
async def test_slow_keeps_the_processor_busy_for_as_long_as_asked(connection):
    begin = time.monotonic()
    response = await get(connection, "/slow?ms=30")
    assert time.monotonic() - begin >= 0.03
    assert json.loads(response.body)["ms"] == 30


@pytest.mark.slow
async def test_other_paths_are_not_found(connection):
    response = await get(connection, "/missing")
    assert (response.status, response.body) == (404, b"Not found\n")
    assert (await get(connection, "/hello")).body == b"Hello, world!\n"


# Alone


async def converse(scope, *incoming):
    """Call the application with messages; returns what it sent."""
    waiting = list(incoming)
    sent = []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    await asyncio.wait_for(demo.app(scope, receive, send), 10)
    return sent


async def test_lifespan_is_answered():
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = await converse({"type": "lifespan"}, *messages)
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


async def test_a_websocket_gets_back_what_it_says():
    sent = await converse(
        {"type": "websocket", "path": "/ws"},
        {"type": "websocket.connect"},
        {"type": "websocket.receive", "text": "hello"},
        {"type": "websocket.receive", "text": ""},
        {"type": "websocket.receive", "bytes": b"\x00", "text": None},
        {"type": "websocket.disconnect", "code": 1000},
    )
    assert sent == [
        {"type": "websocket.accept"},
        {"type": "websocket.send", "text": "hello"},
        {"type": "websocket.send", "text": ""},
        {"type": "websocket.send", "bytes": b"\x00"},
    ]


async def test_a_websocket_elsewhere_is_refused():
    scope = {"type": "websocket", "path": "/other"}
    sent = await converse(scope, {"type": "websocket.connect"})
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_echo_stops_when_the_client_goes():
    scope = {"type": "http", "path": "/echo", "headers": []}
    sent = await converse(
        scope,
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.disconnect"},
    )
    assert sent[-1] == {"type": "http.response.body", "body": b"a", "more_body": True}


async def test_what_a_client_may_ask_for_has_a_limit():
    scope = {"type": "http", "path": "/slow", "query_string": b"ms=99999999999999999999"}
    assert demo._number(scope, "ms", default=1, maximum=demo.MAX_SLOW_MS) == demo.MAX_SLOW_MS
    for text in (b"", b"ms=", b"ms=-1", b"ms=1e9", "ms=٣".encode()):
        assert demo._number({"query_string": text}, "ms", default=7, maximum=100) == 7


async def test_facts_cannot_end_the_script_they_stand_in(monkeypatch):
    monkeypatch.setattr(demo, "_facts", lambda scope: {"client": ["</script><b>", 1]})
    sent = await converse({"type": "http", "path": "/"})
    assert b"</script><b>" not in sent[1]["body"]
