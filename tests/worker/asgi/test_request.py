"""One HTTP exchange, seen from the application and from a client's socket."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import socket
import struct

import pytest

from asgiri.errors import AppError, ClientDisconnected
from asgiri.ipc.scoreboard import Cell
from tests.support.worker import serve_app

ON_BOTH_EVENT_LOOPS = True
WITHOUT_TRANSPORTS_TOO = True

START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body"}


def body(data, *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


class Call:
    """An application that tells a test what happens, and does what the test says."""

    def __init__(self, steps):
        self.steps = steps
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.scope = None
        self.raised = None
        self.messages = []

    async def __call__(self, scope, receive, send):
        self.scope = scope
        self.began.set()

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
async def exchange(steps, *request, body=b"", **options):
    """Serve `steps(receive, send)` and send one request; yields worker, call and client."""
    call = Call(steps)
    async with serve_app(call, **options) as worker, await worker.connect() as client:
        client.send(*(request or ("GET / HTTP/1.1", "Host: example")), body=body)
        yield worker, call, client


async def wait(event):
    await asyncio.wait_for(event.wait(), 10)


# The response


async def test_head_and_first_body_leave_in_one_write():
    async def app(receive, send):
        await send({**START, "headers": [(b"Content-Length", b"5")]})
        await send(body(b"hello"))

    async with exchange(app) as (_, _, client):
        first = await client.reader.read(65536)
    assert first.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first.endswith(b"\r\n\r\nhello")


async def test_head_waits_for_the_body_across_a_pause_of_one_turn():
    async def app(receive, send):
        await send(START)
        await send(body(b"hello"))

    async def later(receive, send):
        await asyncio.sleep(0)
        await app(receive, send)

    async with exchange(later) as (_, _, client):
        assert (await client.reader.read(65536)).endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize("before", [None, "wait"])
async def test_head_is_sent_when_the_application_makes_us_wait_for_the_body(before):
    go = asyncio.Event()

    async def app(receive, send):
        if before:
            await asyncio.sleep(0)
        await send(START)
        await go.wait()
        await send(body(b"hello"))

    async with exchange(app) as (_, _, client):
        status, fields = await client.read_head()
        assert status == 200
        go.set()
        assert await client.read_body(fields) == b"hello"


async def test_parts_of_the_body_arrive_as_they_are_sent():
    parts = asyncio.Queue()

    async def app(receive, send):
        await send(START)
        while part := await parts.get():
            await send(body(part, more=True))
        await send(END)

    async with exchange(app) as (_, _, client):
        await client.read_head()
        for part in (b"one", b"two", b"x" * 100_000):
            parts.put_nowait(part)
            assert await client.read_chunk() == part
        parts.put_nowait(b"")
        assert await client.read_chunk() == b""


async def test_empty_parts_of_the_body_end_nothing():
    async def app(receive, send):
        await send(START)
        await send(body(b"", more=True))
        await send(body(b"a", more=True))
        await send(body(b"", more=True))
        await send(body(b"b"))

    async with exchange(app) as (_, _, client):
        assert (await client.read_response())[2] == b"ab"


@pytest.mark.parametrize("value", [bytearray(b"hello"), memoryview(b"hello")])
async def test_body_may_be_any_kind_of_bytes(value):
    async def app(receive, send):
        await send(START)
        await send(body(value))

    async with exchange(app) as (_, _, client):
        assert (await client.read_response())[2] == b"hello"


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404)]
)
async def test_response_without_content_takes_any_body_and_sends_none(method, status):
    async def app(receive, send):
        await send({**START, "status": status, "headers": [(b"content-length", b"5")]})
        await send(body(b"hel", more=True))
        await send(END)

    async with exchange(app, f"{method} / HTTP/1.1", "Host: x", "Connection: close") as (_, _, c):
        assert (await c.read_head())[0] == status
        assert await c.read_to_end() == b""


async def test_response_has_server_and_date():
    async def app(receive, send):
        await send(START)
        await send(END)

    async with exchange(app) as (_, _, client):
        _, fields, _ = await client.read_response()
    assert fields["server"] == "asgiri"
    assert fields["date"].endswith("gmt")


# The request's body


UPLOAD = ("POST / HTTP/1.1", "Host: example", "Content-Length: 5")


async def echo(receive, send):
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message["more_body"]:
            break
    await send(START)
    await send(body(b"".join(parts)))


async def test_request_without_a_body_is_one_empty_message():
    async with exchange(echo) as (_, call, client):
        await client.read_response()
    assert call.messages == [{"type": "http.request", "body": b"", "more_body": False}]


async def test_body_that_came_with_the_head_is_one_message():
    async with exchange(echo, *UPLOAD, body=b"hello") as (_, call, client):
        assert (await client.read_response())[2] == b"hello"
    assert call.messages == [{"type": "http.request", "body": b"hello", "more_body": False}]


async def test_body_is_given_to_the_application_as_it_comes():
    async with exchange(echo, *UPLOAD) as (worker, call, client):
        await wait(call.began)
        for number, part in enumerate((b"he", b"l", b"lo"), 1):
            client.writer.write(part)
            await worker.wait_until(lambda number=number: len(call.messages) == number)
        assert (await client.read_response())[2] == b"hello"
        assert worker.count(Cell.BODY_BYTES_IN) == 5
    assert [(m["body"], m["more_body"]) for m in call.messages] == [
        (b"he", True),
        (b"l", True),
        (b"lo", False),
    ]


async def test_parts_that_waited_for_the_application_are_joined():
    go = asyncio.Event()

    async def app(receive, send):
        await go.wait()
        await echo(receive, send)

    async with exchange(app, *UPLOAD) as (worker, call, client):
        await wait(call.began)
        (session,) = worker.services.sessions
        for part in (b"he", b"l", b"lo"):
            size = session._backlog.size
            client.writer.write(part)
            await worker.wait_until(lambda size=size: session._backlog.size > size)
        go.set()
        assert (await client.read_response())[2] == b"hello"
    assert len(call.messages) == 1


async def test_100_continue_is_sent_when_the_application_asks_for_the_body():
    go = asyncio.Event()

    async def app(receive, send):
        await go.wait()
        await echo(receive, send)

    async with exchange(app, *UPLOAD, "Expect: 100-continue") as (_, call, client):
        await wait(call.began)
        go.set()
        assert (await client.read_head())[0] == 100
        client.writer.write(b"hello")
        assert (await client.read_response())[2] == b"hello"


async def test_100_continue_is_not_sent_when_the_application_answers_without_the_body():
    async def app(receive, send):
        await send({**START, "status": 403})
        await send(END)

    async with exchange(app, *UPLOAD, "Expect: 100-continue") as (_, _, client):
        assert (await client.read_head())[0] == 403


async def test_100_continue_is_not_sent_behind_the_response_head():
    async def app(receive, send):
        await send(START)
        await send(body(b"x", more=True))
        await receive()
        await send(END)

    async with exchange(app, *UPLOAD, "Expect: 100-continue") as (_, _, client):
        _, fields = await client.read_head()
        assert await client.read_chunk() == b"x"
        client.writer.write(b"hello")
        assert await client.read_body(fields) == b""


# Disconnect


async def test_receive_gives_disconnect_when_the_client_goes():
    async def app(receive, send):
        await receive()
        await receive()
        await receive()

    async with exchange(app) as (_, call, client):
        await wait(call.began)
        client.writer.close()
        await wait(call.ended)
    assert [m["type"] for m in call.messages] == ["http.request"] + 2 * ["http.disconnect"]


async def test_receive_gives_disconnect_in_the_middle_of_a_body():
    async def app(receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async with exchange(app, *UPLOAD, body=b"hel") as (worker, call, client):
        await worker.wait_until(lambda: call.messages)
        client.reset()
        await wait(call.ended)
    assert call.messages[-1] == {"type": "http.disconnect"}
    assert call.messages[0] == {"type": "http.request", "body": b"hel", "more_body": True}


async def test_receive_gives_disconnect_when_the_response_is_complete():
    async def app(receive, send):
        waiting = asyncio.create_task(listen(receive))
        await asyncio.sleep(0)
        await send(START)
        await send(END)
        await waiting

    async def listen(receive):
        await receive()
        await receive()

    async with exchange(app) as (_, call, client):
        await client.read_response()
        await wait(call.ended)
    assert [m["type"] for m in call.messages] == ["http.request", "http.disconnect"]


async def test_body_that_was_complete_is_read_although_the_client_has_gone():
    go = asyncio.Event()

    async def app(receive, send):
        await go.wait()
        await receive()
        await receive()

    async with exchange(app, *UPLOAD, body=b"hello") as (worker, call, client):
        await wait(call.began)
        client.reset()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
        go.set()
        await wait(call.ended)
    assert call.messages[0]["body"] == b"hello"
    assert call.messages[1] == {"type": "http.disconnect"}


async def test_send_raises_oserror_when_the_client_has_gone():
    go = asyncio.Event()

    async def app(receive, send):
        await go.wait()
        await send(START)
        await send(END)

    async with exchange(app) as (worker, call, client):
        await wait(call.began)
        client.reset()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
        go.set()
        await wait(call.ended)
        assert worker.count(Cell.APP_ERRORS) == 0
    assert isinstance(call.raised, ClientDisconnected)
    assert isinstance(call.raised, OSError)


async def test_send_raises_oserror_once_the_application_was_told():
    async def app(receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        await send(START)

    async with exchange(app) as (worker, call, client):
        await wait(call.began)
        client.writer.write_eof()
        await wait(call.ended)
        assert await client.read_to_end() == b""
        assert worker.count(Cell.APP_ERRORS) == 0
    assert isinstance(call.raised, ClientDisconnected)


async def test_disconnect_wrapped_by_a_task_group_is_no_error_of_the_application(caplog):
    async def app(receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        async with asyncio.TaskGroup() as group:
            group.create_task(send(START))

    with caplog.at_level(logging.ERROR):
        async with exchange(app) as (worker, call, client):
            await wait(call.began)
            client.writer.write_eof()
            await wait(call.ended)
            assert worker.count(Cell.APP_ERRORS) == 0
    assert isinstance(call.raised, BaseExceptionGroup)
    assert not caplog.records


async def test_client_that_closed_its_side_only_gets_the_answer():
    go = asyncio.Event()

    async def app(receive, send):
        await go.wait()
        await send(START)
        await send(body(b"still here"))

    async with exchange(app) as (_, call, client):
        await wait(call.began)
        client.writer.write_eof()
        go.set()
        assert (await client.read_response())[2] == b"still here"
        assert await client.read_to_end() == b""


async def test_application_that_gives_up_on_a_half_closed_client_closes_the_connection():
    async def app(receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async with exchange(app) as (worker, call, client):
        await wait(call.began)
        client.writer.write_eof()
        assert await client.read_to_end() == b""
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))


async def test_sender_that_waits_for_the_client_is_woken_by_its_end():
    async def app(receive, send):
        await send(START)
        while True:
            await send(body(b"x" * 65536, more=True))

    async with exchange(app) as (worker, call, client):
        await client.read_head()
        (session,) = worker.services.sessions
        await worker.wait_until(lambda: session._writing_paused)
        client.reset()
        await wait(call.ended)
    assert isinstance(call.raised, ClientDisconnected)


async def test_sender_that_never_waits_is_told_that_the_client_has_gone():
    go = asyncio.Event()

    async def app(receive, send):
        await go.wait()
        await send(START)
        while True:
            await send(body(b"x" * 100_000, more=True))

    call = Call(app)
    async with serve_app(call) as worker:
        with socket.create_connection(worker.address) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n")
            await wait(call.began)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        go.set()
        await wait(call.ended)
    assert isinstance(call.raised, ClientDisconnected)


async def test_one_cancelled_receive_does_not_disturb_another():
    async def app(receive, send):
        await receive()
        first = asyncio.create_task(receive())
        second = asyncio.create_task(receive())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait({first})
        assert first.cancelled()
        await second

    async with exchange(app) as (_, call, client):
        await wait(call.began)
        client.reset()
        await wait(call.ended)
    assert call.raised is None
    assert call.messages[-1] == {"type": "http.disconnect"}


async def test_receive_that_was_cancelled_loses_nothing():
    async def app(receive, send):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(receive(), 0.001)
        await echo(receive, send)

    async with exchange(app, *UPLOAD) as (_, call, client):
        await wait(call.began)
        await asyncio.sleep(0.005)
        client.writer.write(b"hello")
        assert (await client.read_response())[2] == b"hello"


# Errors of the application


class DeliberateError(Exception):
    pass


async def raises_at_once(receive, send):
    raise DeliberateError


async def raises_with_the_head_pending(receive, send):
    await send({**START, "status": 201})
    raise DeliberateError


async def raises_later(receive, send):
    await asyncio.sleep(0)
    raise DeliberateError


async def returns_nothing(receive, send):
    pass


async def returns_with_the_head_pending(receive, send):
    await send(START)


async def exits(receive, send):
    raise SystemExit(1)


async def cancels_itself(receive, send):
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    "app",
    [
        raises_at_once,
        raises_with_the_head_pending,
        raises_later,
        returns_nothing,
        returns_with_the_head_pending,
        exits,
        cancels_itself,
    ],
)
async def test_application_that_fails_before_its_response_gives_500(app, caplog):
    with caplog.at_level(logging.ERROR):
        async with exchange(app) as (worker, _, client):
            status, fields, text = await client.read_response()
            assert (status, text) == (500, b"Internal Server Error")
            assert fields["content-type"] == "text/plain; charset=utf-8"
            assert worker.count(Cell.APP_ERRORS) == 1
            assert worker.count(Cell.RESPONSES_5XX) == 1
            # The connection is as good as before.
            client.get()
            assert (await client.read_response())[0] == 500
    assert len(caplog.records) == 2


async def raises_within_the_body(receive, send):
    await send(START)
    await send(body(b"some", more=True))
    raise DeliberateError


async def returns_within_the_body(receive, send):
    await send({**START, "headers": [(b"content-length", b"10")]})
    await send(body(b"some", more=True))


async def swallows_its_own_error(receive, send):
    await send({**START, "headers": [(b"content-length", b"10")]})
    await send(body(b"some", more=True))
    with contextlib.suppress(AppError):
        await send(END)


@pytest.mark.parametrize(
    "app", [raises_within_the_body, returns_within_the_body, swallows_its_own_error]
)
async def test_application_that_fails_within_its_response_leaves_it_visibly_incomplete(app, caplog):
    with caplog.at_level(logging.ERROR):
        async with exchange(app) as (worker, _, client):
            status, fields = await client.read_head()
            assert status == 200
            with pytest.raises(asyncio.IncompleteReadError):
                await client.read_body(fields)
            assert worker.count(Cell.APP_ERRORS) == 1
    assert len(caplog.records) == 1


async def test_application_that_fails_behind_its_response_is_only_logged(caplog):
    async def app(receive, send):
        await send(START)
        await send(END)
        raise DeliberateError

    with caplog.at_level(logging.ERROR):
        async with exchange(app) as (_, call, client):
            assert (await client.read_response())[0] == 200
            client.get()
            assert (await client.read_response())[0] == 200
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([END], "'http.response.body' before 'http.response.start'"),
        ([START, START], "'http.response.start' after 'http.response.start'"),
        ([START, body(b"x", more=True), START], "'http.response.start' after .* within the body"),
        ([START, END, END], "'http.response.body' after the response was complete"),
        ([START, END, START], "'http.response.start' after the response was complete"),
        ([{"type": "http.response.nonsense"}], "send\\(\\) knows no message 'http.response.nons"),
        ([{}], "send\\(\\) knows no message None"),
        ([{"type": "websocket.accept"}], "send\\(\\) knows no message 'websocket.accept'"),
        ([{**START, "status": "200"}], "'status' must be an int"),
        ([{"type": "http.response.start"}], "'status' must be an int"),
        ([{**START, "headers": [(b"a b", b"c")]}], "a b"),
        ([{**START, "headers": [(b"a", b"c\r\nd: e")]}], "control characters"),
        ([START, body("text")], "'body' must be bytes, not str"),
        ([{**START, "headers": [(b"content-length", b"3")]}, body(b"four")], "longer"),
        ([{**START, "headers": [(b"content-length", b"5")]}, body(b"four")], "shorter"),
        ([START, {"type": "http.response.trailers"}], "'http.response.trailers' after"),
        ([{"type": "http.response.debug"}], "knows no message"),
    ],
)
async def test_wrong_message_raises_in_the_application_and_names_what_is_wrong(messages, told):
    async def app(receive, send):
        for message in messages:
            await send(message)

    async with exchange(app) as (_, call, client):
        await client.read_head()
        await wait(call.ended)
    assert isinstance(call.raised, AppError)
    assert pytest.raises(AppError, match=told).matches(call.raised)


async def test_message_that_was_refused_changes_nothing():
    async def app(receive, send):
        with pytest.raises(AppError):
            await send({**START, "headers": [(b"a b", b"c")]})
        await send({**START, "headers": [(b"content-length", b"2")]})
        with pytest.raises(AppError):
            await send(body(b"four"))
        with pytest.raises(AppError):
            await send(body("no"))
        await send(body(b"ok"))

    async with exchange(app) as (_, call, client):
        assert (await client.read_response())[2] == b"ok"
    assert call.raised is None


# Trailers and early hints

TE = ("GET / HTTP/1.1", "Host: example", "TE: trailers")


async def test_trailers_follow_the_body():
    async def app(receive, send):
        await send({**START, "trailers": True})
        await send(body(b"hello"))
        for more in (True, False):
            fields = [(b"X-Sum-%d" % more, b"abc")]
            await send({"type": "http.response.trailers", "headers": fields, "more_trailers": more})

    async with exchange(app, *TE) as (_, call, client):
        await client.read_head()
        assert await client.read_chunk() == b"hello"
        rest = await client.reader.readuntil(b"\r\n\r\n")
    assert rest == b"0\r\nx-sum-1: abc\r\nx-sum-0: abc\r\n\r\n"
    assert call.raised is None


async def test_announced_trailers_are_due():
    async def app(receive, send):
        await send({**START, "trailers": True})
        await send(body(b"hello"))

    async with exchange(app, *TE) as (worker, _, client):
        _, fields = await client.read_head()
        assert await client.read_chunk() == b"hello"
        with pytest.raises(asyncio.IncompleteReadError):
            await client.read_chunk()
        assert worker.count(Cell.APP_ERRORS) == 1


async def test_announcement_of_trailers_says_nothing_to_a_peer_that_would_drop_them():
    async def app(receive, send):
        await send({**START, "trailers": True})
        await send(body(b"hello"))

    async with exchange(app) as (_, call, client):
        assert (await client.read_response())[2] == b"hello"
    assert call.raised is None


async def test_early_hints_come_before_the_response():
    async def app(receive, send):
        links = [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]
        await send({"type": "http.response.early_hint", "links": links})
        await send(START)
        await send(END)

    async with exchange(app) as (_, call, client):
        early = await client.reader.readuntil(b"\r\n\r\n")
        assert early == (
            b"HTTP/1.1 103 Early Hints\r\n"
            b"link: </a.css>; rel=preload\r\nlink: </b.js>; rel=preload\r\n\r\n"
        )
        assert (await client.read_head())[0] == 200


@pytest.mark.parametrize(
    ("request_line", "messages", "told"),
    [
        ("GET / HTTP/1.1", [START, "hint"], "'http.response.early_hint' after"),
        ("GET / HTTP/1.0", ["hint"], "not among the scope's extensions"),
        ("GET / HTTP/1.1", ["bad"], "control characters"),
    ],
)
async def test_early_hint_that_cannot_be_sent_raises(request_line, messages, told):
    known = {
        "hint": {"type": "http.response.early_hint", "links": [b"</a>"]},
        "bad": {"type": "http.response.early_hint", "links": [b"</a>\r\nx: y"]},
    }

    async def app(receive, send):
        for message in messages:
            await send(message if isinstance(message, dict) else known[message])

    async with exchange(app, request_line, "Host: example") as (_, call, client):
        await client.read_head()
        await wait(call.ended)
    assert pytest.raises(AppError, match=told).matches(call.raised)


# Surroundings


async def test_each_exchange_has_context_variables_of_its_own():
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    async def app(scope, receive, send):
        seen.append(variable.get())
        variable.set(scope["path"])
        await asyncio.sleep(0)
        seen.append(variable.get())
        await send(START)
        await send(END)

    async with serve_app(app) as worker, await worker.connect() as client:
        for target in ("/a", "/b"):
            client.get(target)
        for _ in range(2):
            await client.read_response()
    assert sorted(seen) == ["/a", "/b", "unset", "unset"]


async def test_exchange_runs_in_a_task_of_its_own():
    tasks = []

    async def app(receive, send):
        tasks.append(asyncio.current_task())
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        tasks.append(asyncio.current_task())
        await send(START)
        await send(END)

    async with exchange(app) as (_, _, client):
        await client.read_response()
        tasks.append(asyncio.current_task())
    first, second, ours = tasks
    assert first is second
    assert first is not ours


async def test_exchange_leaves_no_garbage_for_the_collector():
    async def app(scope, receive, send):
        await receive()
        await asyncio.sleep(0)
        await send(START)
        await send(body(b"hello"))

    async with serve_app(app) as worker, await worker.connect() as client:
        client.get()
        await client.read_response()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                client.get()
                await client.read_response()
            assert gc.collect() < 20
        finally:
            gc.enable()


async def test_access_log_hears_of_each_response_when_it_is_complete():
    lines = []
    go = asyncio.Event()

    async def app(receive, send):
        await send({**START, "status": 201, "headers": [(b"x-a", b"b")]})
        await send(body(b"hel", more=True))
        await send(body(b"lo"))
        await go.wait()

    def access_log(*arguments):
        lines.append(arguments)

    async with exchange(app, access_log=access_log) as (_, _, client):
        await client.read_response()
        ((scope, status, headers, size, seconds, connection, request),) = lines
        go.set()
    assert scope["path"] == "/"
    assert (status, size) == (201, 5)
    assert (b"x-a", b"b") in headers
    assert 0 < seconds < 10
    assert (connection, request) == (1, 1)
    assert len(lines) == 1


async def test_access_log_hears_of_a_response_that_was_broken_off():
    lines = []
    app = raises_within_the_body
    async with exchange(app, access_log=lambda *a: lines.append(a)) as (_, call, client):
        await wait(call.ended)
        await client.read_to_end()
    ((_, status, _, size, *_),) = lines
    assert (status, size) == (200, 4)


async def test_counters_follow_the_exchanges():
    async def app(scope, receive, send):
        await send({**START, "status": int(scope["path"][1:])})
        await send(body(b"12345"))

    async with serve_app(app) as worker, await worker.connect() as client:
        for status in (200, 201, 301, 404, 503):
            client.get(f"/{status}")
            await client.read_response()
        counts = {
            cell: worker.count(cell)
            for cell in (
                Cell.REQUESTS_HTTP1,
                Cell.RESPONSES_2XX,
                Cell.RESPONSES_3XX,
                Cell.RESPONSES_4XX,
                Cell.RESPONSES_5XX,
                Cell.BODY_BYTES_OUT,
                Cell.APP_ERRORS,
            )
        }
        assert list(counts.values()) == [5, 2, 1, 1, 1, 25, 0]
        assert sum(worker.services.scoreboard.durations()) == 5


async def test_requests_in_flight_are_on_the_scoreboard_at_once():
    go = asyncio.Event()

    async def app(receive, send):
        await go.wait()
        await send(START)
        await send(END)

    async with exchange(app) as (worker, call, client):
        await wait(call.began)
        assert worker.services.scoreboard.get(Cell.REQUESTS_ACTIVE) == 1
        go.set()
        await client.read_response()
        assert worker.services.scoreboard.get(Cell.REQUESTS_ACTIVE) == 0


# Cancelling


async def test_cancelled_exchange_gives_503_if_nothing_was_sent():
    async def app(receive, send):
        await asyncio.Event().wait()

    async with exchange(app) as (worker, call, client):
        await wait(call.began)
        (session,) = worker.services.sessions
        session.cancel_exchanges()
        assert (await client.read_response())[0] == 503
        assert worker.count(Cell.APP_ERRORS) == 0
    assert isinstance(call.raised, asyncio.CancelledError)


async def test_cancelled_exchange_breaks_a_response_off():
    async def app(receive, send):
        await send(START)
        await send(body(b"x", more=True))
        await asyncio.Event().wait()

    async with exchange(app) as (worker, call, client):
        _, fields = await client.read_head()
        (session,) = worker.services.sessions
        session.cancel_exchanges()
        with pytest.raises(asyncio.IncompleteReadError):
            await client.read_body(fields)


async def test_application_may_finish_its_response_although_it_was_cancelled():
    async def app(receive, send):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await send(START)
        await send(body(b"goodbye"))

    async with exchange(app) as (worker, call, client):
        await wait(call.began)
        (session,) = worker.services.sessions
        session.cancel_exchanges()
        assert (await client.read_response())[2] == b"goodbye"
