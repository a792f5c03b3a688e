"""HTTP/1.1 connections: order, time limits, back-pressure, their end, drain."""

import asyncio
import os
import resource

import pytest

from asgiri.ipc.scoreboard import Cell
from tests.support.worker import serve_app

ON_BOTH_EVENT_LOOPS = True
WITHOUT_TRANSPORTS_TOO = True

START = {"type": "http.response.start", "status": 200, "headers": []}


def body(data, *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


async def answer(send, data=b"hello"):
    headers = [(b"content-length", b"%d" % len(data))]
    await send({**START, "headers": headers})
    await send(body(data))


async def hello(scope, receive, send):
    await answer(send)


async def path(scope, receive, send):
    await answer(send, scope["path"].encode())


async def reads_all(scope, receive, send):
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await answer(send, b"%d" % size)


async def reads_nothing(scope, receive, send):
    await asyncio.Event().wait()


# Keep-alive and pipelining


async def test_connection_serves_one_request_after_another():
    async with serve_app(path) as worker, await worker.connect() as client:
        for target in ("/a", "/b", "/c"):
            client.get(target)
            assert (await client.read_response())[2] == target.encode()
        assert worker.count(Cell.TCP_ADOPTED) == 1
        assert worker.count(Cell.REQUESTS_HTTP1) == 3


async def test_pipelined_requests_are_answered_in_order_and_one_at_a_time():
    active = most = 0

    async def app(scope, receive, send):
        nonlocal active, most
        active += 1
        most = max(most, active)
        if scope["path"].endswith("0"):
            await asyncio.sleep(0.001)
        await answer(send, scope["path"].encode())
        active -= 1

    targets = [f"/{number}" for number in range(100)]
    async with serve_app(app) as worker, await worker.connect() as client:
        for target in targets:
            client.get(target)
        assert [(await client.read_response())[2].decode() for _ in targets] == targets
    assert most == 1


async def test_thousands_of_pipelined_requests_do_not_exhaust_the_stack():
    count = 3000
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * count)
        for _ in range(count):
            assert (await client.read_response())[0] == 200


async def test_reading_pauses_behind_a_request_that_is_not_answered():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await answer(send)

    count = 200_000
    raw = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serve_app(app) as worker, await worker.connect() as client:
        client.writer.write(raw * count)
        await worker.wait_until(lambda: any(s._reading_paused for s in worker.services.sessions))
        (session,) = worker.services.sessions
        assert len(session._http1._pending) < 600_000
        go.set()
        for _ in range(1000):
            await client.read_response()


async def test_next_request_begins_when_the_response_is_complete_not_the_call():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await answer(send)
        await go.wait()  # as a background task of Starlette

    async with serve_app(app) as worker, await worker.connect() as client:
        for _ in range(3):
            client.get()
            await client.read_response()
        assert worker.count(Cell.REQUESTS_ACTIVE) == 3
        go.set()


async def test_pipelined_request_behind_a_call_that_goes_on_does_not_run_in_its_context():
    import contextvars

    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    async def app(scope, receive, send):
        seen.append(variable.get())
        variable.set("first")
        await asyncio.sleep(0)
        await answer(send)

    async with serve_app(app) as worker, await worker.connect() as client:
        client.get()
        client.get()
        await client.read_response()
        await client.read_response()
    assert seen == ["unset", "unset"]


@pytest.mark.parametrize(
    ("request_line", "fields"),
    [("GET / HTTP/1.1", ["Connection: close"]), ("GET / HTTP/1.0", []), ("GET / HTTP/1.1", None)],
)
async def test_connection_closes_where_the_peer_or_the_application_asks_for_it(
    request_line, fields
):
    async def app(scope, receive, send):
        headers = [(b"content-length", b"0")]
        if fields is None:
            headers.append((b"connection", b"close"))
        await send({**START, "headers": headers})
        await send(body(b""))

    async with serve_app(app) as worker, await worker.connect() as client:
        client.send(request_line, "Host: x", *(fields or []))
        _, received, _ = await client.read_response()
        assert received["connection"] == "close"
        assert await client.read_to_end() == b""


# Time limits


async def test_silent_connection_gets_408_after_the_header_timeout():
    async with serve_app(hello, http1={"header_timeout": 0.1}) as worker:
        async with await worker.connect() as client:
            status, fields, _ = await client.read_response()
            assert (status, fields["connection"]) == (408, "close")
            assert await client.read_to_end() == b""
            assert worker.refusals["http1_head_timeout"] == 1


async def test_head_that_comes_byte_by_byte_gets_408_after_the_header_timeout():
    async with serve_app(hello, http1={"header_timeout": 0.2}) as worker:
        async with await worker.connect() as client:
            reading = asyncio.create_task(client.read_response())
            for byte in b"GET / HTTP/1.1\r\nHost: example\r\nX: " + b"y" * 10_000:
                client.writer.write(bytes([byte]))
                await asyncio.sleep(0.005)
                if reading.done():
                    break
            assert (await reading)[0] == 408


async def test_head_timeout_of_a_later_request_counts_from_its_first_byte():
    timeouts = {"header_timeout": 0.1, "keep_alive": 5}
    async with serve_app(hello, http1=timeouts) as worker, await worker.connect() as client:
        client.get()
        await client.read_response()
        await asyncio.sleep(0.15)
        client.writer.write(b"GET ")
        assert (await client.read_response())[0] == 408


async def test_idle_connection_is_closed_without_a_word():
    async with serve_app(hello, http1={"keep_alive": 0.05}) as worker:
        async with await worker.connect() as client:
            client.get()
            await client.read_response()
            assert await client.read_to_end() == b""
        assert worker.refusals == {}


async def test_keep_alive_counts_from_the_last_response():
    async with serve_app(hello, http1={"keep_alive": 0.3}) as worker:
        async with await worker.connect() as client:
            for _ in range(4):
                client.get()
                await client.read_response()
                await asyncio.sleep(0.1)
            client.get()
            assert (await client.read_response())[0] == 200


async def test_body_that_does_not_come_gets_408():
    async with serve_app(reads_all, http1={"body_timeout": 0.1}) as worker:
        async with await worker.connect() as client:
            client.send("POST / HTTP/1.1", "Host: x", "Content-Length: 5", body=b"hel")
            status, fields, _ = await client.read_response()
            assert (status, fields["connection"]) == (408, "close")
            assert worker.refusals["body_timeout"] == 1
            assert await client.read_to_end() == b""


async def test_body_timeout_counts_only_while_the_application_waits_for_the_body():
    async def app(scope, receive, send):
        await asyncio.sleep(0.3)
        await reads_all(scope, receive, send)

    async with serve_app(app, http1={"body_timeout": 0.15}) as worker:
        async with await worker.connect() as client:
            client.send("POST / HTTP/1.1", "Host: x", "Content-Length: 5", body=b"hel")
            await asyncio.sleep(0.35)
            client.writer.write(b"lo")
            assert (await client.read_response())[2] == b"5"


async def test_body_timeout_counts_from_the_last_byte():
    async with serve_app(reads_all, http1={"body_timeout": 0.2}) as worker:
        async with await worker.connect() as client:
            client.send("POST / HTTP/1.1", "Host: x", "Content-Length: 5")
            for byte in b"hello":
                await asyncio.sleep(0.08)
                client.writer.write(bytes([byte]))
            assert (await client.read_response())[2] == b"5"


async def test_application_may_take_its_time():
    async def app(scope, receive, send):
        await asyncio.sleep(0.3)
        await answer(send)

    limits = {"header_timeout": 0.1, "keep_alive": 0.1, "body_timeout": 0.1}
    async with serve_app(app, http1=limits) as worker, await worker.connect() as client:
        client.get()
        assert (await client.read_response())[0] == 200


async def test_client_that_takes_nothing_of_its_response_is_given_up():
    async def app(scope, receive, send):
        await send(START)
        while True:
            await send(body(b"x" * 65536, more=True))

    async with serve_app(app, http1={"body_timeout": 0.1}) as worker:
        async with await worker.connect(limit=1024) as client:
            client.get()
            await client.read_head()
            await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
            assert worker.refusals["write_timeout"] == 1


async def test_client_that_reads_slowly_gets_the_whole_response():
    size = 3 << 20

    async def app(scope, receive, send):
        await answer(send, b"x" * size)

    limits = {"keep_alive": 0.05, "body_timeout": 0.2}
    async with serve_app(app, http1=limits) as worker, await worker.connect(limit=4096) as client:
        client.get()
        _, fields = await client.read_head()
        left = size
        while left:
            await asyncio.sleep(0.01)
            left -= len(await client.reader.read(min(left, 65536)))
        assert worker.refusals == {}


# Memory stays bounded


def peak_memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
async def test_upload_to_an_application_that_does_not_read_is_held_back():
    taken = asyncio.Event()

    async def app(scope, receive, send):
        await taken.wait()
        await reads_all(scope, receive, send)

    size = 64 << 20
    async with serve_app(app) as worker, await worker.connect() as client:
        before = peak_memory()
        client.send("POST / HTTP/1.1", "Host: x", f"Content-Length: {size}")

        async def upload():
            for _ in range(size // 65536):
                client.writer.write(bytes(65536))
                await client.writer.drain()

        uploading = asyncio.create_task(upload())
        await worker.wait_until(lambda: any(s._reading_paused for s in worker.services.sessions))
        (session,) = worker.services.sessions
        assert session._backlog.size < 1 << 20
        taken.set()
        await uploading
        assert (await client.read_response())[2] == b"%d" % size
        assert session._backlog.size == 0
        assert peak_memory() - before < 16 << 20


@pytest.mark.slow
async def test_download_to_a_client_that_does_not_read_is_held_back():
    sent = 0
    size = 64 << 20

    async def app(scope, receive, send):
        nonlocal sent
        await send({**START, "headers": [(b"content-length", b"%d" % size)]})
        while sent < size:
            await send(body(bytes(65536), more=sent + 65536 < size))
            sent += 65536

    async with serve_app(app) as worker, await worker.connect(limit=65536) as client:
        client.get()
        await client.read_head()
        await worker.wait_until(lambda: any(s._writing_paused for s in worker.services.sessions))
        await asyncio.sleep(0.05)
        # What the system's buffers hold, and no more.
        assert sent < 16 << 20
        left = size
        while left:
            left -= len(await client.reader.read(1 << 20))
    assert sent == size


async def test_large_parts_without_a_length_are_held_back_too():
    # Chunks of this size leave by writelines, which has marks of its own.
    sent = 0

    async def app(scope, receive, send):
        nonlocal sent
        await send(START)
        for _ in range(1000):
            await send(body(bytes(100_000), more=True))
            sent += 1

    async with serve_app(app) as worker, await worker.connect(limit=1024) as client:
        client.get()
        await client.read_head()
        await worker.wait_until(lambda: any(s._writing_paused for s in worker.services.sessions))
        assert sent < 200


async def test_pipelined_requests_for_large_responses_wait_for_the_client():
    calls = 0

    async def app(scope, receive, send):
        nonlocal calls
        calls += 1
        await answer(send, bytes(1 << 20))

    async with serve_app(app) as worker, await worker.connect(limit=1024) as client:
        for _ in range(100):
            client.get()
        await client.read_head()
        await worker.wait_until(lambda: any(s._writing_paused for s in worker.services.sessions))
        await asyncio.sleep(0.02)
        assert calls < 20


# Errors of the peer, and how the connection ends


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/3.7\r\nHost: x\r\n\r\n", 505),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 505),
    ],
)
async def test_what_is_no_request_gets_its_status_and_the_end(raw, status):
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.writer.write(raw)
        assert (await client.read_response())[0] == status
        assert await client.read_to_end() == b""
        assert sum(worker.refusals.values()) == 1


async def test_answer_is_not_lost_to_a_reset_while_the_client_goes_on_sending():
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.writer.write(b"nonsense\r\n\r\n")
        client.writer.write(bytes(200_000))
        await worker.wait_until(lambda: worker.refusals)
        client.writer.write(bytes(200_000))
        assert (await client.read_response())[0] == 400
        assert await client.read_to_end() == b""
        client.writer.write(bytes(1000))
        await client.writer.drain()


async def test_answer_before_the_end_of_an_upload_is_not_lost_to_a_reset():
    async def app(scope, receive, send):
        await send({**START, "status": 413, "headers": [(b"content-length", b"0")]})
        await send(body(b""))

    async with serve_app(app) as worker, await worker.connect() as client:
        client.send("POST / HTTP/1.1", "Host: x", "Content-Length: 100000000")
        for _ in range(20):
            client.writer.write(bytes(100_000))
            await asyncio.sleep(0)
        assert (await client.read_response())[0] == 413
        assert await client.read_to_end() == b""


async def test_client_that_never_closes_is_closed_on(monkeypatch):
    from asgiri.worker.transport import connection

    monkeypatch.setattr(connection, "LINGER_TIMEOUT", 0.05)
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.writer.write(b"nonsense\r\n\r\n")
        await client.read_response()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))


async def test_client_that_closes_first_ends_the_lingering():
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.writer.write(b"nonsense\r\n\r\n")
        await client.read_response()
        client.writer.close()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))


async def test_orderly_end_needs_no_lingering():
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.get("/", "Connection: close")
        await client.read_response()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))


async def test_connection_that_ends_within_a_head_is_no_error():
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.writer.write(b"GET / HT")
        client.writer.write_eof()
        await client.read_to_end()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))


@pytest.mark.parametrize("sent", [b"", b"P", b"PRI * HTTP"])
async def test_connection_that_ends_before_its_version_is_known_is_closed(sent):
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.writer.write(sent)
        client.writer.write_eof()
        await client.read_to_end()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))


async def test_requests_sent_before_the_client_closed_its_side_are_all_answered():
    async with serve_app(path) as worker, await worker.connect() as client:
        for target in ("/a", "/b", "/c"):
            client.get(target)
        client.writer.write_eof()
        assert [(await client.read_response())[2] for _ in range(3)] == [b"/a", b"/b", b"/c"]
        assert await client.read_to_end() == b""


async def test_rest_of_a_small_body_nobody_read_is_swallowed_and_the_connection_goes_on():
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.send("POST / HTTP/1.1", "Host: x", "Content-Length: 1000")
        assert (await client.read_response())[0] == 200
        client.writer.write(bytes(1000))
        client.get()
        assert (await client.read_response())[0] == 200


# Drain


async def test_drain_finishes_the_request_in_flight():
    go, began = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        began.set()
        await go.wait()
        await answer(send)

    async with serve_app(app) as worker, await worker.connect() as client:
        client.get()
        await began.wait()
        worker.drain()
        go.set()
        status, fields, _ = await client.read_response()
        assert (status, fields["connection"]) == (200, "close")
        assert await client.read_to_end() == b""


async def test_drain_ends_a_connection_whose_response_had_begun_as_keep_alive():
    go = asyncio.Event()

    async def app(scope, receive, send):
        await send({**START, "headers": [(b"content-length", b"2")]})
        await send(body(b"a", more=True))
        await go.wait()
        await send(body(b"b"))

    async with serve_app(app) as worker, await worker.connect() as client:
        client.get()
        _, fields = await client.read_head()
        assert "connection" not in fields
        worker.drain()
        go.set()
        assert await client.read_to_end() == b"ab"


async def test_drain_answers_a_request_that_comes_on_a_connection_in_use(monkeypatch):
    from asgiri.worker.transport import http1

    monkeypatch.setattr(http1, "DRAIN_GRACE", 5.0)
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.get()
        await client.read_response()
        worker.drain()
        await asyncio.sleep(0.1)
        client.get()
        status, fields, _ = await client.read_response()
        assert (status, fields["connection"]) == (200, "close")
        assert await client.read_to_end() == b""


async def test_drain_closes_idle_connections(monkeypatch):
    from asgiri.worker.transport import http1

    monkeypatch.setattr(http1, "DRAIN_GRACE", 0.05)
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.get()
        await client.read_response()
        await asyncio.sleep(0.06)
        worker.drain()
        assert await client.read_to_end() == b""


async def test_drain_serves_a_connection_that_was_on_its_way():
    async with serve_app(hello) as worker, await worker.connect() as early:
        await worker.wait_until(lambda: worker.count(Cell.TCP_ADOPTED))
        worker.drain()
        async with await worker.connect() as late:
            for client in (early, late):
                client.get()
                status, fields, _ = await client.read_response()
                assert (status, fields["connection"]) == (200, "close")
                assert await client.read_to_end() == b""


async def test_pipelined_request_behind_the_last_one_is_not_begun_by_a_draining_worker():
    go, calls = asyncio.Event(), []

    async def app(scope, receive, send):
        calls.append(scope["path"])
        await go.wait()
        await answer(send)

    async with serve_app(app) as worker, await worker.connect() as client:
        client.get("/a")
        client.get("/b")
        await worker.wait_until(lambda: calls)
        worker.drain()
        go.set()
        assert (await client.read_response())[1]["connection"] == "close"
        assert await client.read_to_end() == b""
    assert calls == ["/a"]


# Everything above, in other surroundings


async def test_connection_over_tls_serves_and_closes():
    async def app(scope, receive, send):
        tls = scope["extensions"]["tls"]
        assert tls["server_cert"].startswith("-----BEGIN CERTIFICATE-----")
        await answer(send, b"%s %x" % (scope["scheme"].encode(), tls["tls_version"]))

    async with serve_app(app, secure=True) as worker, await worker.connect() as client:
        client.get()
        assert (await client.read_response())[2] == b"https 304"
        client.get("/", "Connection: close")
        await client.read_response()
        assert await client.read_to_end() == b""


async def test_error_over_tls_is_answered_before_the_end():
    async with serve_app(hello, secure=True) as worker, await worker.connect() as client:
        client.writer.write(b"nonsense\r\n\r\n" + bytes(100_000))
        assert (await client.read_response())[0] == 400
        assert await client.read_to_end() == b""


async def test_large_response_over_tls_is_complete_although_the_connection_closes():
    size = 3 << 20

    async def app(scope, receive, send):
        await answer(send, bytes(size))

    async with serve_app(app, secure=True) as worker, await worker.connect(limit=4096) as client:
        client.get("/", "Connection: close")
        _, fields = await client.read_head()
        await asyncio.sleep(0.1)
        assert len(await client.read_body(fields)) == size
        assert await client.read_to_end() == b""


async def test_unix_socket_has_a_path_and_no_client(tmp_path):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await answer(send)

    socket_path = os.fspath(tmp_path / "app.sock")
    async with serve_app(app, unix_path=socket_path) as worker:
        async with await worker.connect() as client:
            client.get()
            await client.read_response()
    assert scopes[0]["client"] is None
    assert scopes[0]["server"] == (socket_path, None)


async def test_scope_names_both_ends_of_the_connection():
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await answer(send)

    async with serve_app(app) as worker, await worker.connect() as client:
        client.get()
        await client.read_response()
        assert scopes[0]["client"] == client.writer.get_extra_info("sockname")
        assert scopes[0]["server"] == worker.address


async def test_h11_parser_serves_as_well():
    async with serve_app(path, http1={"parser": "h11"}) as worker:
        async with await worker.connect() as client:
            client.get("/a")
            assert (await client.read_response())[2] == b"/a"
