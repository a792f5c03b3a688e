"""One WebSocket, seen from the application and from a client, over HTTP/1.1 and HTTP/2."""

import asyncio
import contextlib
import logging

import pytest

from asgiri.errors import AppError, ClientDisconnected
from asgiri.ipc.scoreboard import Cell
from asgiri.worker.asgi.websocket import PING_BURST
from tests.support.client import ExchangeFailed
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.websocket_client import (
    Opcode,
    WebSocketRefused,
    encode_frame,
    open_websocket,
)
from tests.support.worker import serve_app

ON_BOTH_EVENT_LOOPS = True
WITHOUT_TRANSPORTS_TOO = True

VERSIONS = {"http1": Http1Connection, "http2": Http2Connection}
ACCEPT = {"type": "websocket.accept"}


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def text(content):
    return {"type": "websocket.send", "text": content}


class Call:
    """An application that tells a test what happens, and does what the test says."""

    def __init__(self, steps):
        self.steps = steps
        self.ended = asyncio.Event()
        self.scope = None
        self.raised = None
        self.messages = []

    async def __call__(self, scope, receive, send):
        self.scope = scope

        async def heard():
            self.messages.append(await receive())
            return self.messages[-1]

        try:
            await self.steps(heard, send)
        except BaseException as error:
            self.raised = error
            raise
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def serving(version, steps, *, sweep_period=0.02, access_log=None, **sections):
    """Serve `steps(receive, send)`; yields worker, call and a client's open connection."""
    call = Call(steps)
    sections.setdefault("workers", {})["graceful_timeout"] = 0.1
    async with serve_app(
        call, sweep_period=sweep_period, access_log=access_log, **sections
    ) as worker:
        connection = await VERSIONS[version].connect(*worker.address)
        try:
            yield worker, call, connection
        finally:
            await connection.close()


async def wait(event):
    await asyncio.wait_for(event.wait(), 10)


async def echo(receive, send):
    assert (await receive())["type"] == "websocket.connect"
    await send(ACCEPT)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def wait_disconnect(receive, send):
    await send(ACCEPT)
    while (await receive())["type"] != "websocket.disconnect":
        pass


# The handshake


async def test_scope_names_what_the_client_asked_for(version):
    async with serving(version, echo) as (_, call, connection):
        await open_websocket(
            connection, "/a%20b?c=d", [("cookie", "x=y")], subprotocols=("chat", "v2")
        )
        scope = call.scope
        assert scope["type"] == "websocket"
        assert scope["http_version"] == VERSIONS[version].version
        assert scope["scheme"] == "ws"
        assert (scope["path"], scope["query_string"]) == ("/a b", b"c=d")
        assert scope["subprotocols"] == ["chat", "v2"]
        assert "websocket.http.response" in scope["extensions"]
        assert "method" not in scope
        assert (b"cookie", b"x=y") in scope["headers"]
        assert scope["asgi"]["spec_version"] == "2.5"


async def test_nothing_is_answered_before_the_application_accepts(version):
    accept = asyncio.Event()

    async def steps(receive, send):
        await accept.wait()
        await echo(receive, send)

    async with serving(version, steps) as (worker, call, connection):
        opening = asyncio.create_task(open_websocket(connection))
        await worker.wait_until(lambda: call.scope)
        done, _ = await asyncio.wait([opening], timeout=0.05)
        assert not done
        accept.set()
        await opening


async def test_answer_has_the_subprotocol_and_the_fields_of_the_application(version):
    async def steps(receive, send):
        headers = [(b"X-Custom", b"1"), (b"server", b"mine"), (b"content-length", b"5")]
        await send({**ACCEPT, "subprotocol": "v2", "headers": headers})
        await receive()

    async with serving(version, steps) as (_, _, connection):
        client = await open_websocket(connection, subprotocols=("chat", "v2"))
        assert client.subprotocol == "v2"
        assert client.head.header("x-custom") == "1"
        assert client.head.header("server") == "mine"
        assert client.head.header("content-length") is None
        assert client.head.header("date") is not None


async def test_compression_is_agreed_when_both_want_it(version):
    async with serving(version, echo) as (_, _, connection):
        client = await open_websocket(connection, deflate=True)
        assert client.deflate
        await client.send_compressed(Opcode.TEXT, b"hello " * 1000)
        assert await client.read_message() == "hello " * 1000


async def test_compression_can_be_switched_off(version):
    section = {"per_message_deflate": False}
    async with serving(version, echo, websocket=section) as (_, _, connection):
        client = await open_websocket(connection, deflate=True)
        assert not client.deflate


async def test_another_version_of_websocket_is_refused():
    """RFC 6455 §4.4; HTTP/1.1 has a status of its own for it."""
    async with serving("http2", echo) as (worker, call, connection):
        exchange = await connection.start("CONNECT", "/", body=None, protocol="websocket")
        head = await exchange.head()
        assert (head.status, head.header("sec-websocket-version")) == (400, "13")
        assert call.scope is None
        assert worker.refusals == {"websocket_bad_handshake": 1}
        assert await open_websocket(connection)


async def test_bytes_behind_the_handshake_wait_for_the_tunnel():
    accept = asyncio.Event()

    async def steps(receive, send):
        await accept.wait()
        await echo(receive, send)

    async with serving("http1", steps) as (worker, call, connection):
        early = encode_frame(Opcode.TEXT, b"early")
        head = (
            b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await connection.write(head + early)
        await worker.wait_until(lambda: call.scope)
        accept.set()
        answer = await connection.reader.read_head()
        assert answer.status == 101
        assert await connection.reader.read_some(100) == b"\x81\x05early"


async def test_frames_sent_before_the_answer_wait_for_it():
    accept = asyncio.Event()

    async def steps(receive, send):
        await accept.wait()
        await echo(receive, send)

    async with serving("http2", steps) as (worker, call, connection):
        fields = [("sec-websocket-version", "13")]
        exchange = await connection.start("CONNECT", "/", fields, body=None, protocol="websocket")
        await exchange.send_body(encode_frame(Opcode.TEXT, b"early"))
        await worker.wait_until(lambda: call.scope)
        accept.set()
        assert (await exchange.head()).status == 200
        assert await exchange.read() == b"\x81\x05early"


# Messages


async def test_messages_of_both_kinds_go_both_ways(version):
    async with serving(version, echo) as (_, call, connection):
        client = await open_websocket(connection)
        await client.send_text("grüße")
        assert await client.read_message() == "grüße"
        await client.send_bytes(b"\x00\xff")
        assert await client.read_message() == b"\x00\xff"
        connect, first, second = call.messages
        assert connect == {"type": "websocket.connect"}
        assert first == {"type": "websocket.receive", "text": "grüße"}
        assert second == {"type": "websocket.receive", "bytes": b"\x00\xff"}


@pytest.mark.parametrize("content", [bytearray(b"abc"), memoryview(b"abc"), b"abc"])
async def test_bytes_may_be_of_any_kind(content):
    async def steps(_, send):
        await send(ACCEPT)
        await send({"type": "websocket.send", "bytes": content, "text": None})

    async with serving("http1", steps) as (_, _, connection):
        client = await open_websocket(connection)
        assert await client.read_message() == b"abc"


async def test_long_messages_in_many_frames(version):
    async with serving(version, echo) as (_, _, connection):
        client = await open_websocket(connection)
        parts = [bytes([number]) * 50_000 for number in range(20)]
        for number, part in enumerate(parts):
            opcode = Opcode.BINARY if number == 0 else Opcode.CONTINUATION
            await client.send_frame(opcode, part, fin=number == 19)
        assert await client.read_message() == b"".join(parts)


async def test_ping_is_answered_between_fragments(version):
    async with serving(version, echo) as (_, _, connection):
        client = await open_websocket(connection)
        await client.send_frame(Opcode.TEXT, b"a", fin=False)
        await client.send_frame(Opcode.PING, b"are you there")
        frame = await client.read_frame()
        assert (frame.opcode, frame.payload) == (Opcode.PONG, b"are you there")
        await client.send_frame(Opcode.CONTINUATION, b"b")
        assert await client.read_message() == "ab"


async def test_a_flood_of_pings_is_ended(version):
    async with serving(version, echo) as (worker, _, connection):
        client = await open_websocket(connection)
        sending = asyncio.create_task(
            client.send_raw(encode_frame(Opcode.PING, b"x") * (PING_BURST + 100))
        )
        while (frame := await client.read_frame()).opcode is Opcode.PONG:
            pass
        assert frame.opcode is Opcode.CLOSE
        assert int.from_bytes(frame.payload[:2]) == 1008
        await asyncio.wait([sending])
        assert worker.refusals == {"websocket_ping_flood": 1}


# Closing


async def test_close_of_the_client_is_answered_and_told(version):
    async with serving(version, echo) as (worker, call, connection):
        client = await open_websocket(connection)
        await client.send_close(4001, "adiós")
        assert await client.read_close() == (4001, "")
        await client.wait_ended()
        await wait(call.ended)
        assert call.messages[-1] == {
            "type": "websocket.disconnect",
            "code": 4001,
            "reason": "adiós",
        }
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)
        assert worker.count(Cell.WEBSOCKETS_TOTAL) == 1
        assert worker.refusals == {}


async def test_close_without_a_code_is_told_as_1005(version):
    async with serving(version, echo) as (_, call, connection):
        client = await open_websocket(connection)
        await client.send_close(None)
        assert await client.read_close() == (None, "")
        await wait(call.ended)
        assert call.messages[-1]["code"] == 1005


async def test_close_of_the_application_reaches_the_client(version):
    async def steps(receive, send):
        await send(ACCEPT)
        await receive()
        await send({"type": "websocket.close", "code": 4002, "reason": "enough"})
        await receive()

    async with serving(version, steps) as (worker, call, connection):
        client = await open_websocket(connection)
        assert await client.read_close() == (4002, "enough")
        await client.send_text("too late")
        await client.send_close(4002)
        await client.wait_ended()
        assert call.messages[-1]["code"] == 4002
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


async def test_close_frame_behind_messages_nobody_wants_ends_the_handshake(version):
    """The queue is full when the application closes."""
    sent = asyncio.Event()

    async def steps(receive, send):
        await send(ACCEPT)
        await sent.wait()
        await send({"type": "websocket.close"})
        assert (await receive())["type"] == "websocket.disconnect"

    section = {"max_queue": 2}
    async with serving(version, steps, websocket=section) as (worker, _, connection):
        client = await open_websocket(connection)
        for number in range(10):
            await client.send_text(f"{number}")
        await client.send_close(1001)
        await client.send_frame(Opcode.PING)
        sent.set()
        assert await client.read_close() == (1000, "")
        await client.wait_ended()
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)
        assert worker.refusals == {}


async def test_application_that_returns_closes_with_1000(version):
    async def steps(_, send):
        await send(ACCEPT)

    async with serving(version, steps) as (_, _, connection):
        client = await open_websocket(connection)
        assert await client.read_close() == (1000, "")


async def test_application_that_raises_closes_with_1011(version, caplog):
    async def steps(_, send):
        await send(ACCEPT)
        raise RuntimeError("broken on purpose")

    async with serving(version, steps) as (worker, _, connection):
        client = await open_websocket(connection)
        assert await client.read_close() == (1011, "")
        assert worker.count(Cell.APP_ERRORS) == 1
    assert "broken on purpose" in caplog.text


async def test_client_that_does_not_answer_a_close_is_given_up(version):
    async def steps(_, send):
        await send(ACCEPT)

    section = {"close_timeout": 0.1}
    async with serving(version, steps, websocket=section) as (worker, _, connection):
        client = await open_websocket(connection)
        await client.read_close()
        await client.wait_ended()
        assert worker.refusals == {"websocket_close_timeout": 1}


# Clients that go


async def test_client_that_vanishes_is_told_as_1006(version):
    async with serving(version, echo) as (worker, call, connection):
        await open_websocket(connection)
        await connection.abort()
        await wait(call.ended)
        assert call.messages[-1] == {"type": "websocket.disconnect", "code": 1006, "reason": ""}
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


async def test_client_that_ends_its_side_without_a_close_is_told_as_1006():
    async with serving("http2", echo) as (_, call, connection):
        client = await open_websocket(connection)
        await client.carrier.end_body()
        await client.wait_ended()
        await wait(call.ended)
        assert call.messages[-1]["code"] == 1006


async def test_client_that_resets_its_stream_is_told_as_1006():
    async with serving("http2", echo) as (_, call, connection):
        client = await open_websocket(connection)
        await client.carrier.cancel()
        await wait(call.ended)
        assert call.messages[-1]["code"] == 1006
        assert await open_websocket(connection)


@pytest.mark.parametrize("orderly", [True, False])
async def test_messages_that_came_before_the_end_are_still_delivered(version, orderly):
    go = asyncio.Event()

    async def steps(receive, send):
        await send(ACCEPT)
        await go.wait()
        with pytest.raises(ClientDisconnected):
            await send(text("nobody there"))
        while (await receive())["type"] != "websocket.disconnect":
            pass

    section = {"max_queue": 4}
    async with serving(version, steps, websocket=section) as (worker, call, connection):
        client = await open_websocket(connection)
        for number in range(20):
            await client.send_text(f"{number}")
        if orderly:
            await client.send_close(4003, "bye")
        # The end of the connection comes before the application has taken anything.
        await connection.close()
        await worker.wait_until(lambda: worker.count(Cell.TCP_OPEN) == 0)
        go.set()
        await wait(call.ended)
        assert call.raised is None
        received = [m["text"] for m in call.messages if m["type"] == "websocket.receive"]
        assert received == [f"{number}" for number in range(20)]
        assert call.messages[-1]["code"] == (4003 if orderly else 1006)


async def test_send_raises_oserror_when_the_client_has_gone(version, caplog):
    gone = asyncio.Event()

    async def steps(_, send):
        await send(ACCEPT)
        await gone.wait()
        await send(text("nobody there"))

    async with serving(version, steps) as (worker, call, connection):
        client = await open_websocket(connection)
        await client.send_close()
        await client.read_close()
        gone.set()
        await wait(call.ended)
        assert isinstance(call.raised, OSError)
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)
        assert worker.count(Cell.APP_ERRORS) == 0
    assert not caplog.records


async def test_sender_that_waits_for_the_client_is_woken_by_its_end(version):
    async def steps(_, send):
        await send(ACCEPT)
        while True:
            await send({"type": "websocket.send", "bytes": bytes(1 << 20)})

    async with serving(version, steps) as (_, call, connection):
        client = await open_websocket(connection)
        await client.read_frame()
        await connection.abort()
        await wait(call.ended)
        assert isinstance(call.raised, ClientDisconnected)


async def test_client_that_goes_before_it_was_accepted(version):
    async def steps(receive, send):
        assert (await receive())["type"] == "websocket.connect"
        assert (await receive())["code"] == 1006
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT)

    async with serving(version, steps) as (worker, call, connection):
        opening = asyncio.create_task(open_websocket(connection))
        await worker.wait_until(lambda: call.scope)
        opening.cancel()
        await connection.abort()
        await wait(call.ended)
        assert call.raised is None
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


async def test_client_that_half_closes_before_it_was_accepted_gets_no_tunnel():
    async def steps(receive, _):
        await receive()
        assert (await receive())["code"] == 1006

    async with serving("http1", steps) as (worker, call, connection):
        opening = asyncio.create_task(open_websocket(connection))
        await worker.wait_until(lambda: call.scope)
        await connection.stream.end_writes()
        with pytest.raises(ExchangeFailed):
            await opening
        await wait(call.ended)
        assert call.raised is None


async def test_tunnel_that_the_client_ended_with_its_request():
    async def steps(receive, send):
        assert (await receive())["type"] == "websocket.connect"
        assert (await receive())["code"] == 1006
        with pytest.raises(ClientDisconnected):
            await send(ACCEPT)

    async with serving("http2", steps) as (worker, call, connection):
        fields = [("sec-websocket-version", "13")]
        exchange = await connection.start("CONNECT", "/", fields, protocol="websocket")
        with pytest.raises(ExchangeFailed):
            await exchange.head()
        await wait(call.ended)
        assert call.raised is None
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


# Denial


async def test_close_before_accept_denies_with_403(version):
    async def steps(receive, send):
        await receive()
        await send({"type": "websocket.close"})
        assert (await receive())["type"] == "websocket.disconnect"

    async with serving(version, steps) as (worker, call, connection):
        with pytest.raises(WebSocketRefused) as refused:
            await open_websocket(connection)
        assert refused.value.head.status == 403
        await wait(call.ended)
        assert call.raised is None
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


async def read_denial(connection):
    fields = [("sec-websocket-version", "13")]
    if connection.multiplexed:
        exchange = await connection.start("CONNECT", "/", fields, body=None, protocol="websocket")
    else:
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        fields += [
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-key", key),
        ]
        exchange = await connection.start("GET", "/", fields)
    head = await exchange.head()
    body = b""
    while part := await exchange.read():
        body += part
    return head, body


async def test_application_may_deny_with_a_response_of_its_own(version):
    async def steps(_, send):
        headers = [(b"x-reason", b"closed on mondays")]
        await send({"type": "websocket.http.response.start", "status": 429, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"come ", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"back"})

    async with serving(version, steps) as (worker, _, connection):
        head, body = await read_denial(connection)
        assert (head.status, head.header("x-reason")) == (429, "closed on mondays")
        assert body == b"come back"
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


@pytest.mark.slow
async def test_long_denial_waits_for_a_slow_client(version):
    total = 4 << 20

    async def steps(_, send):
        headers = [(b"content-length", b"%d" % total)]
        await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
        for _ in range(total >> 16):
            part = {"body": bytes(1 << 16), "more_body": True}
            await send({"type": "websocket.http.response.body", **part})
        await send({"type": "websocket.http.response.body"})

    async with serving(version, steps) as (_, call, connection):
        _, body = await read_denial(connection)
        assert len(body) == total
        await wait(call.ended)


async def test_application_that_neither_accepts_nor_denies_gives_500(version, caplog):
    async def steps(receive, _):
        await receive()

    async with serving(version, steps) as (worker, _, connection):
        with pytest.raises(WebSocketRefused) as refused:
            await open_websocket(connection)
        assert refused.value.head.status == 500
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)
    assert "without accepting or denying" in caplog.text


async def test_application_that_raises_before_accepting_gives_500(version, caplog):
    async def steps(_, send):
        await send({"type": "websocket.http.response.start", "status": 403})
        raise RuntimeError("broken on purpose")

    async with serving(version, steps) as (_, _, connection):
        with pytest.raises(WebSocketRefused) as refused:
            await open_websocket(connection)
        assert refused.value.head.status == 500
    assert "broken on purpose" in caplog.text


async def test_denial_that_breaks_off_is_visibly_incomplete(version, caplog):
    async def steps(_, send):
        await send({"type": "websocket.http.response.start", "status": 403})
        await send({"type": "websocket.http.response.body", "body": b"so ", "more_body": True})

    async with serving(version, steps) as (worker, _, connection):
        with pytest.raises(ExchangeFailed):
            await read_denial(connection)
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)
    assert "without accepting or denying" in caplog.text


async def test_frames_sent_to_an_application_that_denies_are_dropped():
    go = asyncio.Event()

    async def steps(_, send):
        await go.wait()
        await send({"type": "websocket.http.response.start", "status": 403})
        await send({"type": "websocket.http.response.body", "body": b"no", "more_body": True})
        await asyncio.sleep(0.02)
        await send({"type": "websocket.http.response.body", "body": b"!"})

    async with serving("http2", steps) as (_, _, connection):
        fields = [("sec-websocket-version", "13")]
        exchange = await connection.start("CONNECT", "/", fields, body=None, protocol="websocket")
        await exchange.send_body(bytes(100_000))
        go.set()
        assert (await exchange.head()).status == 403
        await exchange.send_body(bytes(100_000))
        assert await exchange.read() == b"no"
        assert await exchange.read() == b"!"


# What the application does wrong

WRONG = {
    "send before accept": ([], text("x"), "while the WebSocket is connecting"),
    "accept twice": ([ACCEPT], ACCEPT, "while the WebSocket is open"),
    "response after accept": (
        [ACCEPT],
        {"type": "websocket.http.response.start", "status": 403},
        "while the WebSocket is open",
    ),
    "body without start": ([], {"type": "websocket.http.response.body"}, "connecting"),
    "no type": ([], {}, "None while"),
    "http message": ([], {"type": "http.response.start", "status": 200}, "connecting"),
    "nothing to send": ([ACCEPT], {"type": "websocket.send"}, "'bytes' or 'text'"),
    "text of bytes": ([ACCEPT], {"type": "websocket.send", "text": b"x"}, "'bytes' or 'text'"),
    "bytes of text": ([ACCEPT], {"type": "websocket.send", "bytes": "x"}, "must be bytes"),
    "text that is no unicode": ([ACCEPT], text("\ud800"), "'text' cannot be UTF-8"),
    "subprotocol not offered": ([], {**ACCEPT, "subprotocol": "chat"}, "that the client offered"),
    "header that is text": ([], {**ACCEPT, "headers": [("a", "b")]}, "must be a token in bytes"),
    "extension of its own": (
        [],
        {**ACCEPT, "headers": [(b"sec-websocket-extensions", b"x")]},
        "the server negotiates it",
    ),
    "close code that is no number": ([ACCEPT], {"type": "websocket.close", "code": "1"}, "'code'"),
    "close code that is reserved": ([ACCEPT], {"type": "websocket.close", "code": 1005}, "'code'"),
    "close reason of bytes": ([ACCEPT], {"type": "websocket.close", "reason": b"x"}, "'reason'"),
    "close reason that is no unicode": (
        [ACCEPT],
        {"type": "websocket.close", "reason": "\ud800"},
        "'reason' cannot be UTF-8",
    ),
    "send after close": (
        [ACCEPT, {"type": "websocket.close"}],
        text("x"),
        "while the WebSocket is closing",
    ),
    "denial that accepts": (
        [],
        {"type": "websocket.http.response.start", "status": 200},
        "300 or more",
    ),
    "denial longer than it says": (
        [
            {
                "type": "websocket.http.response.start",
                "status": 403,
                "headers": [(b"content-length", b"1")],
            }
        ],
        {"type": "websocket.http.response.body", "body": b"xx"},
        "content-length",
    ),
}


@pytest.mark.parametrize(("good", "bad", "told"), WRONG.values(), ids=WRONG)
async def test_wrong_message_raises_in_the_application(version, good, bad, told):
    raised = []

    async def steps(_, send):
        for message in good:
            await send(message)
        with pytest.raises(AppError) as error:
            await send(bad)
        raised.append(str(error.value))

    async with serving(version, steps) as (_, call, connection):
        opening = asyncio.create_task(open_websocket(connection))
        await wait(call.ended)
        assert told in raised[0]
        assert call.raised is None
        await asyncio.wait([opening])
        assert opening.exception() is None or good != [ACCEPT]


async def test_subprotocol_is_named_once():
    async def steps(_, send):
        headers = [(b"sec-websocket-protocol", b"chat")]
        with pytest.raises(AppError, match="besides 'subprotocol'"):
            await send({**ACCEPT, "subprotocol": "chat", "headers": headers})
        await send({**ACCEPT, "headers": headers})

    async with serving("http1", steps) as (_, _, connection):
        client = await open_websocket(connection, subprotocols=("chat",))
        assert client.subprotocol == "chat"


async def test_application_may_mend_a_wrong_message(version):
    async def steps(receive, send):
        with pytest.raises(AppError):
            await send({**ACCEPT, "subprotocol": "chat"})
        await echo(receive, send)

    async with serving(version, steps) as (_, _, connection):
        client = await open_websocket(connection)
        await client.send_text("still works")
        assert await client.read_message() == "still works"


# What the client does wrong

VIOLATIONS = {
    "unmasked": (encode_frame(1, b"x", masked=False), 1002, "websocket_protocol_error"),
    "no utf-8": (encode_frame(1, b"\xff"), 1007, "websocket_bad_text"),
    "too big": (encode_frame(2, bytes(2000)), 1009, "websocket_too_big"),
}


@pytest.mark.parametrize(("raw", "code", "reason"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_violation_is_closed_with_its_code(version, raw, code, reason):
    section = {"max_message_size": 1000}
    async with serving(version, echo, websocket=section) as (worker, call, connection):
        client = await open_websocket(connection)
        await client.send_raw(raw)
        assert (await client.read_close())[0] == code
        await client.wait_ended()
        await wait(call.ended)
        assert call.messages[-1]["type"] == "websocket.disconnect"
        assert call.messages[-1]["code"] == code
        assert worker.refusals == {reason: 1}


async def test_close_frame_is_not_lost_to_a_reset_while_the_client_goes_on_sending(version):
    section = {"max_message_size": 1000}
    async with serving(version, echo, websocket=section) as (_, _, connection):
        client = await open_websocket(connection)

        async def flood():
            with contextlib.suppress(OSError, ExchangeFailed):
                await client.send_raw(encode_frame(2, bytes(4 << 20)))

        sending = asyncio.create_task(flood())
        assert (await client.read_close())[0] == 1009
        await sending


async def test_violation_behind_a_close_of_ours_ends_the_wait():
    async def steps(receive, send):
        await send(ACCEPT)
        await send({"type": "websocket.close"})
        await receive()

    async with serving("http1", steps) as (worker, _, connection):
        client = await open_websocket(connection)
        await client.read_close()
        await client.send_raw(encode_frame(3, b""))
        await client.wait_ended()
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


# Back-pressure


async def send_until_stuck(send, limit):
    """Bytes that went before nothing did for a while."""
    sent = 0

    async def run():
        nonlocal sent
        while sent < limit:
            await send(65536)
            sent += 65536

    sending = asyncio.create_task(run())
    before = -1
    while sent != before and not sending.done():
        before = sent
        await asyncio.wait([sending], timeout=0.2)
    return sent, sending


@pytest.mark.slow
async def test_client_is_held_back_by_an_application_that_does_not_read(version):
    go = asyncio.Event()
    received = 0

    async def steps(receive, send):
        nonlocal received
        await send(ACCEPT)
        await go.wait()
        while (message := await receive())["type"] != "websocket.disconnect":
            received += len(message.get("bytes", b""))

    async with serving(version, steps) as (_, call, connection):
        client = await open_websocket(connection)
        sent, sending = await send_until_stuck(
            lambda size: client.send_bytes(bytes(size)), 64 << 20
        )
        assert sent < 16 << 20
        go.set()
        await sending
        await client.send_close()
        assert await client.read_close() == (1000, "")
        await wait(call.ended)
        assert received == 64 << 20


@pytest.mark.slow
async def test_application_is_held_back_by_a_client_that_does_not_read(version):
    sent = 0
    stuck = asyncio.Event()

    async def steps(_, send):
        nonlocal sent
        await send(ACCEPT)

        async def one(size):
            await send({"type": "websocket.send", "bytes": bytes(size)})

        sent, sending = await send_until_stuck(one, 64 << 20)
        stuck.set()
        await sending

    async with serving(version, steps) as (_, _, connection):
        client = await open_websocket(connection)
        await wait(stuck)
        assert sent < 32 << 20
        received = 0
        while received < 64 << 20:
            received += len(await client.read_message())
        assert await client.read_close() == (1000, "")


@pytest.mark.parametrize(
    ("section", "flow"), [({"max_queue": 5}, {}), ({}, {"high_water": 2048, "low_water": 1024})]
)
async def test_messages_that_wait_are_bounded_in_number_and_size(version, section, flow):
    """What is behind them is not parsed: the ping is answered when they have been taken."""
    take = asyncio.Semaphore(0)

    async def steps(receive, send):
        await send(ACCEPT)
        while True:
            await take.acquire()
            if (await receive())["type"] == "websocket.disconnect":
                return

    async with serving(version, steps, websocket=section, flow=flow) as (_, _, connection):
        client = await open_websocket(connection)
        for _ in range(6):
            await client.send_bytes(bytes(400))
        await client.send_frame(Opcode.PING, b"behind")
        reading = asyncio.create_task(client.read_frame())
        done, _ = await asyncio.wait([reading], timeout=0.1)
        assert not done
        for _ in range(3):  # websocket.connect and two messages
            take.release()
        assert (await reading).payload == b"behind"
        await client.send_close()
        for _ in range(10):
            take.release()
        assert await client.read_close() == (1000, "")


async def test_only_the_last_ping_is_answered_to_a_client_that_does_not_read():
    sent = asyncio.Event()

    async def steps(receive, send):
        await send(ACCEPT)
        await send({"type": "websocket.send", "bytes": bytes(32 << 20)})
        await receive()
        await receive()
        sent.set()
        await receive()

    async with serving("http1", steps) as (_, _, connection):
        client = await open_websocket(connection)
        for number in range(5):
            await client.send_frame(Opcode.PING, b"%d" % number)
        await client.send_text("pings are parsed")
        await wait(sent)
        assert len(await client.read_message()) == 32 << 20
        frame = await client.read_frame()
        assert (frame.opcode, frame.payload) == (Opcode.PONG, b"4")


async def test_sender_that_waits_while_another_closes_is_told(version):
    async def steps(_, send):
        await send(ACCEPT)
        flood = [
            asyncio.create_task(send({"type": "websocket.send", "bytes": bytes(8 << 20)}))
            for _ in range(3)
        ]
        await asyncio.sleep(0)
        await send({"type": "websocket.close"})
        await asyncio.wait(flood)
        assert [type(task.exception()) for task in flood] == [type(None), AppError, AppError]

    async with serving(version, steps) as (_, call, connection):
        client = await open_websocket(connection)
        assert len(await client.read_message()) == 8 << 20
        assert await client.read_close() == (1000, "")
        await client.send_close()
        await wait(call.ended)
        assert call.raised is None


# Keep-alive


async def test_without_an_interval_nobody_is_asked():
    section = {"ping_interval": 0, "ping_timeout": 0.01}
    async with serving("http1", echo, websocket=section) as (_, _, connection):
        client = await open_websocket(connection)
        await asyncio.sleep(0.05)
        await client.send_text("first")
        assert await client.read_message() == "first"


async def test_silent_client_is_asked_and_closed(version):
    section = {"ping_interval": 0.05, "ping_timeout": 0.1}
    async with serving(version, wait_disconnect, websocket=section) as (worker, call, connection):
        client = await open_websocket(connection)
        assert (await client.read_frame()).opcode is Opcode.PING
        assert await client.read_close() == (1011, "no answer to a ping")
        await client.wait_ended()
        await wait(call.ended)
        assert call.messages[-1]["code"] == 1006
        assert worker.refusals == {"websocket_ping_timeout": 1}


@pytest.mark.parametrize("answer", [Opcode.PONG, Opcode.TEXT])
async def test_client_that_says_anything_lives_on(version, answer):
    section = {"ping_interval": 0.05, "ping_timeout": 0.05}
    async with serving(version, wait_disconnect, websocket=section) as (_, call, connection):
        client = await open_websocket(connection)
        for _ in range(5):
            frame = await client.read_frame()
            assert frame.opcode is Opcode.PING
            await client.send_frame(answer, frame.payload)
        assert not call.ended.is_set()


async def test_without_a_timeout_pings_go_on_for_ever():
    section = {"ping_interval": 0.02, "ping_timeout": 0}
    async with serving("http1", wait_disconnect, websocket=section) as (_, call, connection):
        client = await open_websocket(connection)
        for _ in range(5):
            assert (await client.read_frame()).opcode is Opcode.PING
        assert not call.ended.is_set()


async def test_client_whose_bytes_wait_for_the_application_is_not_silent(version):
    """Its pong may be behind them."""
    go = asyncio.Event()

    async def steps(receive, send):
        await send(ACCEPT)
        await go.wait()
        while (await receive())["type"] != "websocket.disconnect":
            pass

    section = {"max_queue": 1, "ping_interval": 0.02, "ping_timeout": 0.02}
    async with serving(version, steps, websocket=section) as (worker, call, connection):
        client = await open_websocket(connection)
        for _ in range(3):
            await client.send_text("x")
        for _ in range(4):
            assert (await client.read_frame()).opcode is Opcode.PING
        assert worker.refusals == {}
        go.set()
        await client.send_close(4000)
        await wait(call.ended)
        assert call.messages[-1]["code"] == 4000


@pytest.mark.slow
async def test_client_that_lets_us_wait_is_not_asked():
    """Nothing it could answer would reach it; it has the write timeout."""

    async def steps(receive, send):
        await send(ACCEPT)
        await send({"type": "websocket.send", "bytes": bytes(32 << 20)})
        await receive()
        await receive()

    section = {"ping_interval": 0.02, "ping_timeout": 0.02}
    async with serving("http1", steps, websocket=section) as (worker, call, connection):
        client = await open_websocket(connection)
        await asyncio.sleep(0.3)
        assert worker.refusals == {}
        assert not call.ended.is_set()
        assert len(await client.read_message()) == 32 << 20
        assert (await client.read_frame()).opcode is Opcode.PING


# The worker ends


async def test_drain_closes_with_1012(version):
    async with serving(version, wait_disconnect) as (worker, call, connection):
        client = await open_websocket(connection)
        worker.drain()
        assert await client.read_close() == (1012, "service restart")
        await client.send_close(1012)
        await client.wait_ended()
        await wait(call.ended)
        assert call.messages[-1]["code"] == 1012


async def test_drain_is_no_error_of_an_application_that_sends(version, caplog):
    caplog.set_level(logging.INFO)

    async def steps(_, send):
        await send(ACCEPT)
        while True:
            await send(text("tick"))
            await asyncio.sleep(0.005)

    async with serving(version, steps) as (worker, call, connection):
        client = await open_websocket(connection)
        worker.drain()
        while (frame := await client.read_frame()).opcode is Opcode.TEXT:
            pass
        assert int.from_bytes(frame.payload[:2]) == 1012
        await wait(call.ended)
        assert isinstance(call.raised, ClientDisconnected)
        assert worker.count(Cell.APP_ERRORS) == 0
    assert not caplog.records


async def test_drain_delivers_what_had_come_before():
    go = asyncio.Event()

    async def steps(receive, send):
        await send(ACCEPT)
        await go.wait()
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with serving("http1", steps) as (worker, call, connection):
        client = await open_websocket(connection)
        await client.send_text("one")
        await client.send_frame(Opcode.PING)
        await client.read_frame()
        worker.drain()
        await client.read_close()
        go.set()
        await wait(call.ended)
        assert [m.get("text") for m in call.messages] == [None, "one", None]


async def test_drain_keeps_what_it_is_told_to_keep(version):
    section = {"drain": "keep"}
    async with serving(version, echo, websocket=section) as (worker, _, connection):
        client = await open_websocket(connection)
        worker.drain()
        await client.send_text("still here")
        assert await client.read_message() == "still here"
        await asyncio.sleep(0.15)
        await client.send_text("and here")
        assert await client.read_message() == "and here"


async def test_websocket_accepted_within_a_drain_is_closed_too(version):
    accept = asyncio.Event()

    async def steps(receive, send):
        await accept.wait()
        await wait_disconnect(receive, send)

    async with serving(version, steps) as (worker, call, connection):
        opening = asyncio.create_task(open_websocket(connection))
        await worker.wait_until(lambda: call.scope)
        worker.drain()
        await asyncio.sleep(0.1)
        accept.set()
        client = await opening
        assert await client.read_close() == (1012, "service restart")


async def test_websocket_that_begins_within_a_drain_is_closed_too():
    async with serving("http2", wait_disconnect) as (worker, _, connection):
        worker.services.draining = True
        client = await open_websocket(connection)
        assert await client.read_close() == (1012, "service restart")


@pytest.mark.parametrize("accepted", [True, False])
async def test_cancelled_application_ends_its_websocket(version, accepted):
    async def steps(_, send):
        if accepted:
            await send(ACCEPT)
        await asyncio.sleep(60)

    async with serving(version, steps) as (worker, call, connection):
        opening = asyncio.create_task(open_websocket(connection))
        await worker.wait_until(lambda: call.scope)
        client = await opening if accepted else None
        for session in list(worker.services.sessions):
            session.cancel_exchanges()
        if client is not None:
            assert await client.read_close() == (1012, "")
        else:
            with pytest.raises(WebSocketRefused) as refused:
                await opening
            assert refused.value.head.status == 503
        assert isinstance(call.raised, asyncio.CancelledError)


async def test_cancel_does_not_wait_for_a_client_that_does_not_close(version):
    async def steps(_, send):
        await send(ACCEPT)

    async with serving(version, steps) as (worker, _, connection):
        client = await open_websocket(connection)
        await client.read_close()
        for session in list(worker.services.sessions):
            session.cancel_exchanges()
        await client.wait_ended()
        await worker.wait_until(lambda: worker.count(Cell.WEBSOCKETS_OPEN) == 0)


# Accounts


async def test_access_log_hears_of_handshakes_and_denials(version):
    lines = []

    async def steps(receive, send):
        message = await receive()
        assert message["type"] == "websocket.connect"
        if lines:
            await send({"type": "websocket.close"})
        else:
            await send(ACCEPT)

    def log(scope, status, headers, size, *_):
        lines.append((scope["type"], status, size))

    async with serving(version, steps, access_log=log) as (worker, _, connection):
        await open_websocket(connection)
        second = connection
        if version == "http1":
            second = await Http1Connection.connect(*worker.address)
        with pytest.raises(WebSocketRefused):
            await open_websocket(second)
        if second is not connection:
            await second.close()
        accepted = 101 if version == "http1" else 200
        assert lines == [("websocket", accepted, 0), ("websocket", 403, len("Forbidden"))]
