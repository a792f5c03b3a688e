"""http.response.pathsend and http.response.zerocopysend, over HTTP/1.1 and 2, cleartext and TLS."""

import asyncio
import contextlib
import hashlib
import io
import os

import pytest

from asgiri.errors import AppError, ClientDisconnected
from asgiri.ipc.scoreboard import Cell
from asgiri.worker.asgi.files import PART_SIZE, FileAccess
from tests.support.apps import pattern
from tests.support.certificates import certificates
from tests.support.client import ExchangeFailed, request
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.worker import serve_app

ON_BOTH_EVENT_LOOPS = True

KINDS = {
    "http1": (Http1Connection, None),  # by sendfile
    "http1-tls": (Http1Connection, "http/1.1"),
    "http2": (Http2Connection, None),
}
SMALL, LARGE = 1000, 3_000_000
START = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def file(tmp_path):
    """A function that makes a file of a size."""

    def make(size=LARGE):
        path = tmp_path / f"file-{size}"
        path.write_bytes(pattern(size))
        return str(path)

    return make


class Call:
    """An application that does what the test says, and remembers how it went."""

    def __init__(self, steps):
        self.steps = steps
        self.ended = asyncio.Event()
        self.extensions = None
        self.raised = None

    async def __call__(self, scope, receive, send):
        self.extensions = scope["extensions"]
        try:
            await self.steps(receive, send)
        except BaseException as error:
            self.raised = error
            raise
        finally:
            self.ended.set()


@contextlib.asynccontextmanager
async def serving(kind, steps, *, receive_buffer=None, **sections):
    """Yields worker, call and a client's connection."""
    connect, alpn = KINDS[kind]
    call = Call(steps)
    async with serve_app(call, secure=alpn is not None, **sections) as worker:
        tls = certificates().client_context(alpn) if alpn else None
        connection = await connect.connect(*worker.address, tls=tls, receive_buffer=receive_buffer)
        try:
            yield worker, call, connection
        finally:
            await connection.close()


async def wait(event):
    await asyncio.wait_for(event.wait(), 10)


def pathsend(path):
    return {"type": "http.response.pathsend", "path": path}


def zerocopysend(file, **fields):
    return {"type": "http.response.zerocopysend", "file": file, **fields}


async def read_all(exchange):
    digest, size = hashlib.sha256(), 0
    while part := await exchange.read():
        digest.update(part)
        size += len(part)
    return size, digest.hexdigest()


def expected(size):
    return size, hashlib.sha256(pattern(size)).hexdigest()


# Whole files


@pytest.mark.parametrize("size", [0, 1, SMALL, PART_SIZE, PART_SIZE + 1, LARGE])
async def test_path_is_sent_whole_and_its_length_is_told(kind, file, size):
    path = file(size)

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    async with serving(kind, steps) as (worker, call, connection):
        for _ in range(2):  # the connection goes on
            response = await request(connection, "GET", "/")
            assert response.body == pattern(size)
            assert response.header("content-length") == str(size)
        assert call.extensions["http.response.pathsend"] == {}
        assert call.extensions["http.response.zerocopysend"] == {}
        await worker.wait_until(lambda: worker.count(Cell.RESPONSES_2XX) == 2)
        assert worker.count(Cell.BODY_BYTES_OUT) == 2 * size


async def test_head_request_reads_no_file(kind, file):
    path = file()

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    async with serving(kind, steps) as (_, _, connection):
        response = await request(connection, "HEAD", "/")
        assert response.header("content-length") == str(LARGE)
        assert (await request(connection, "HEAD", "/")).body == b""


async def test_status_without_a_body_sends_none(kind, file):
    path = file()

    async def steps(_, send):
        await send({**START, "status": 304})
        await send(pathsend(path))

    async with serving(kind, steps) as (_, _, connection):
        for _ in range(2):
            response = await request(connection, "GET", "/")
            assert (response.status, response.body) == (304, b"")


async def test_head_and_a_small_file_leave_in_one_write(file):
    path = file(SMALL)

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    async with serving("http1", steps) as (_, _, connection):
        exchange = await connection.start("GET", "/")
        await exchange.head()
        assert len(connection.reader.buffer) == SMALL


async def test_path_may_come_when_the_head_has_gone(kind, file):
    path = file()

    async def steps(_, send):
        await send(START)
        await read.wait()
        await send(pathsend(path))

    read = asyncio.Event()
    async with serving(kind, steps) as (_, _, connection):
        exchange = await connection.start("GET", "/")
        await exchange.head()
        read.set()
        assert await read_all(exchange) == expected(LARGE)


async def test_path_may_not_follow_a_part_of_the_body(kind, file):
    path = file()

    async def steps(_, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        with pytest.raises(AppError, match="within the body"):
            await send(pathsend(path))
        await send({"type": "http.response.body"})

    async with serving(kind, steps) as (_, _, connection):
        assert (await request(connection, "GET", "/")).body == b"x"


# Parts of files


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, None), (10, None), (10, 20), (0, 0), (LARGE, None), (100_000, 2_000_000)],
)
async def test_part_of_a_file_is_sent(kind, file, offset, count):
    path = file()

    async def steps(_, send):
        with open(path, "rb") as opened:
            await send(START)
            await send(zerocopysend(opened, offset=offset, count=count))
            assert opened.tell() == 0

    async with serving(kind, steps) as (_, _, connection):
        response = await request(connection, "GET", "/")
        part = pattern(LARGE)[offset:][:count]
        assert response.body == part
        assert response.header("content-length") == str(len(part))


@pytest.mark.parametrize("raw", [False, True])
async def test_without_an_offset_a_file_is_sent_from_its_position(kind, file, raw):
    path = file()

    async def steps(_, send):
        with open(path, "rb") as opened:
            opened.seek(5)
            source = opened
            if raw:
                source = os.dup(opened.fileno())
                os.lseek(source, 5, os.SEEK_SET)
            await send(START)
            await send(zerocopysend(source, count=100_000, more_body=True))
            await send(zerocopysend(source, count=7, more_body=True))
            await send({"type": "http.response.body", "body": b"|", "more_body": True})
            await send(zerocopysend(source))
            if raw:
                os.close(source)

    async with serving(kind, steps) as (_, _, connection):
        response = await request(connection, "GET", "/")
        whole = pattern(LARGE)
        assert response.body == whole[5:100_012] + b"|" + whole[100_012:]
        assert (await request(connection, "HEAD", "/")).status == 200


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_trailers_follow_a_file(kind, file, size):
    path = file(size)

    async def steps(_, send):
        await send({**START, "trailers": True})
        await send(pathsend(path))
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    async with serving(kind, steps) as (_, _, connection):
        response = await request(connection, "GET", "/", [("te", "trailers")])
        assert response.body == pattern(size)
        assert response.trailers == [(b"x-sum", b"1")]


# What the application does wrong


def wrong_messages(path, tmp_path):
    directory = str(tmp_path)
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    opened = open(path, "rb")  # noqa: SIM115
    with open(path, "rb") as closed:
        pass
    reading, writing = os.pipe()
    os.close(writing)
    return [
        (pathsend(f"{path}-missing"), "cannot be opened"),
        (pathsend("relative"), "must be an absolute path"),
        (pathsend(None), "must be an absolute path"),
        (pathsend("/a\0b"), "cannot be opened"),
        (pathsend(directory), "is no regular file"),
        (pathsend(fifo), "is no regular file"),
        (zerocopysend(io.BytesIO(b"x")), "must be an open file"),
        (zerocopysend(None), "must be an open file"),
        (zerocopysend(closed), "must be an open file"),
        (zerocopysend(-1), "must be an open file"),
        (zerocopysend(reading), "must be a regular file"),
        (zerocopysend(opened, offset=-1), "'offset' must be an int"),
        (zerocopysend(opened, count="1"), "'count' must be an int"),
        (zerocopysend(opened, count=LARGE + 1), "but the file has 3000000 bytes left"),
        (zerocopysend(opened, offset=LARGE + 1, count=1), "but the file has 0 bytes left"),
    ], (opened, reading)


async def test_wrong_message_raises_and_sends_nothing(kind, file, tmp_path):
    messages, (opened, reading) = wrong_messages(file(), tmp_path)

    async def steps(_, send):
        for early in (pathsend("/etc"), zerocopysend(opened)):
            with pytest.raises(AppError, match=r"before 'http\.response\.start'"):
                await send(early)
        await send(START)
        for message, told in messages:
            with pytest.raises(AppError, match=told):
                await send(message)
        await send({"type": "http.response.body", "body": b"mended"})
        with pytest.raises(AppError, match="after the response was complete"):
            await send(zerocopysend(opened))

    async with serving(kind, steps) as (_, call, connection):
        assert (await request(connection, "GET", "/")).body == b"mended"
        await wait(call.ended)
        assert call.raised is None
    opened.close()
    os.close(reading)


@pytest.mark.parametrize("length", [SMALL - 1, SMALL + 1, 0])
async def test_file_that_does_not_fit_its_content_length_is_not_begun(kind, file, length):
    path = file(SMALL)

    async def steps(_, send):
        await send({**START, "headers": [(b"content-length", b"%d" % length)]})
        await send(pathsend(path))

    async with serving(kind, steps) as (_, call, connection):
        assert (await request(connection, "GET", "/")).status == 500
        assert isinstance(call.raised, AppError)


async def test_file_that_does_not_fit_what_is_left_breaks_the_response(kind, file):
    path = file()

    async def steps(_, send):
        await send({**START, "headers": [(b"content-length", b"100")]})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        with open(path, "rb") as opened:
            await send(zerocopysend(opened))

    async with serving(kind, steps) as (_, call, connection):
        with pytest.raises(ExchangeFailed):
            await request(connection, "GET", "/")
        assert isinstance(call.raised, AppError)


async def test_nothing_is_sent_while_a_file_is(kind, file):
    path = file(16 << 20)

    async def steps(_, send):
        await send(START)
        sending = asyncio.create_task(send(pathsend(path)))
        await asyncio.sleep(0)
        with pytest.raises(AppError, match="while a file is being"):
            await send(START)
        await reading.wait()
        with pytest.raises(AppError, match="while a file is being sent"):
            await send(START)
        await sending

    reading = asyncio.Event()
    async with serving(kind, steps, receive_buffer=65536) as (_, call, connection):
        exchange = await connection.start("GET", "/")
        await exchange.head()
        reading.set()
        assert await read_all(exchange) == expected(16 << 20)
        await wait(call.ended)
        assert call.raised is None


async def test_file_that_becomes_shorter_breaks_the_response(kind, file):
    path = file(16 << 20)

    async def steps(_, send):
        await send(START)
        sending = asyncio.create_task(send(pathsend(path)))
        await begun.wait()
        os.truncate(path, 1000)
        await sending

    begun = asyncio.Event()
    async with serving(kind, steps, receive_buffer=65536) as (_, call, connection):
        exchange = await connection.start("GET", "/")
        assert await exchange.read()
        begun.set()
        with pytest.raises(ExchangeFailed):
            await read_all(exchange)
        await wait(call.ended)
        assert isinstance(call.raised, AppError)
        assert "before its end" in str(call.raised)


# Clients that go or do not read


async def test_client_that_goes_ends_the_sending(kind, file):
    path = file(16 << 20)

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    async with serving(kind, steps, receive_buffer=65536) as (worker, call, connection):
        exchange = await connection.start("GET", "/")
        await exchange.read()
        await connection.abort()
        await wait(call.ended)
        assert isinstance(call.raised, ClientDisconnected)
        await worker.wait_until(lambda: worker.count(Cell.TCP_OPEN) == 0)
        assert worker.count(Cell.APP_ERRORS) == 0


async def test_stream_that_is_reset_ends_the_sending(file):
    path = file(16 << 20)

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    async with serving("http2", steps) as (_, call, connection):
        exchange = await connection.start("GET", "/")
        await exchange.read()
        await exchange.cancel()
        await wait(call.ended)
        assert isinstance(call.raised, ClientDisconnected)


@pytest.mark.slow
async def test_client_that_takes_nothing_of_a_file_is_given_up(kind, file):
    path = file(16 << 20)

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    limits = {"body_timeout": 0.3}
    async with serving(kind, steps, receive_buffer=4096, http1=limits) as (worker, call, client):
        if kind == "http2":
            client._task.cancel()
        await client.start("GET", "/")
        await wait(call.ended)
        assert isinstance(call.raised, ClientDisconnected)
        await worker.wait_until(lambda: worker.refusals)
        assert set(worker.refusals) <= {"write_timeout", "http2_stalled"}
        await client.abort()


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.linux
@pytest.mark.parametrize("how", ["cancelled", "drained"])
async def test_nothing_is_left_of_a_file_whose_sending_is_cancelled(kind, file, how):
    path = file(16 << 20)

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    async with serving(kind, steps, receive_buffer=65536) as (worker, call, connection):
        before = open_files()
        exchange = await connection.start("GET", "/")
        await exchange.head()
        for session in list(worker.services.sessions):
            if how == "cancelled":
                session.cancel_exchanges()
            else:
                session.close()
        with contextlib.suppress(ExchangeFailed):
            size, _ = await read_all(exchange)
            assert size < 16 << 20  # an end that TLS or the framing does not tell from another
        await wait(call.ended)
        await connection.abort()
        await worker.wait_until(lambda: worker.count(Cell.TCP_OPEN) == 0)
        await worker.wait_until(lambda: open_files() < before)


async def test_drain_finishes_a_file(kind, file):
    path = file(8 << 20)

    async def steps(_, send):
        await send(START)
        await send(pathsend(path))

    async with serving(kind, steps, receive_buffer=65536) as (worker, _, connection):
        exchange = await connection.start("GET", "/")
        await exchange.head()
        worker.drain()
        assert await read_all(exchange) == expected(8 << 20)
        await connection.wait_closed()


# Reading


async def test_file_outside_of_the_cache_is_read_by_a_thread(file, monkeypatch):
    """Where the system can't tell, or would have to wait for the disk."""

    def not_in_the_cache(*_):
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_in_the_cache)
    access = FileAccess(asyncio.get_running_loop())
    descriptor, size = await access.open(file())
    assert size == LARGE
    assert await access.read(descriptor, 100, 50) == pattern(LARGE)[50:150]
    assert await access.read(descriptor, 100, LARGE) == b""
    os.close(descriptor)
    with pytest.raises(AppError, match="cannot be read"):
        await access.read(descriptor, 100, 0)
