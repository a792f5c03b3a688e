"""WSGI applications: PEP 3333 on one side, a client's socket on the other."""

import asyncio
import contextlib
import gzip
import io
import threading
from wsgiref.validate import validator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.ipc.scoreboard import Cell
from asgiri.worker.asgi.lifespan import Lifespan
from asgiri.worker.asgi.wsgi import READ_AHEAD, WsgiApplication, _Input, build_environ
from tests.support.worker import PATIENCE, serve_app

TEXT = ("content-type", "text/plain")


def set_length(size):
    return ("content-length", str(size))


@contextlib.asynccontextmanager
async def serving(application, *, threads=4, **options):
    """Serve it; yields worker and a client that has not asked for anything yet."""
    adapter = WsgiApplication(application, threads=threads)
    async with serve_app(adapter, **options) as worker, await worker.connect() as client:
        yield worker, client
    await asyncio.to_thread(adapter._threads.shutdown)


async def ask(application, *request, body=b"", **options):
    """Status, fields and body of the answer to one request."""
    async with serving(application, **options) as (_, client):
        client.send(*(request or ("GET / HTTP/1.1", "Host: example")), body=body)
        return await client.read_response()


async def wait(event):
    """Wait for a threading.Event that a thread of the application sets."""
    assert await asyncio.to_thread(event.wait, PATIENCE)


# The response


async def test_list_is_sent_at_once_with_its_length():
    def app(environ, start_response):
        start_response("201 Created", [TEXT, ("X-Name", "é")])
        return [b"a", b"", b"bc"]

    status, fields, body = await ask(app)
    assert (status, body) == (201, b"abc")
    assert fields["content-length"] == "3"
    assert fields["x-name"] == "é"


async def test_validated_application_is_called_as_it_should_be():
    """wsgiref's validator asserts what PEP 3333 asks of a server."""

    def app(environ, start_response):
        assert environ["wsgi.input"].read(5) == b"hello"
        start_response("200 OK", [TEXT])
        return [b"fine"]

    request = ("POST /a?b=c HTTP/1.1", "Host: example", "Content-Length: 5")
    assert (await ask(validator(app), *request, body=b"hello"))[::2] == (200, b"fine")


async def test_parts_arrive_as_they_are_made():
    go = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        yield b""
        yield b"one"
        assert go.wait(PATIENCE)
        yield b"two"

    async with serving(app) as (_, client):
        client.get()
        await client.read_head()
        assert await client.read_chunk() == b"one"
        go.set()
        assert await client.read_chunk() == b"two"
        assert await client.read_chunk() == b""


async def test_head_waits_for_the_first_part_that_is_not_empty():
    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        yield b""
        start_response("404 Not Found", [TEXT], (None, None, None))
        yield b"nothing here"

    assert (await ask(app))[::2] == (404, b"nothing here")


async def test_length_that_was_told_ends_the_response_before_the_iterator():
    go = threading.Event()

    def app(environ, start_response):
        start_response("200 OK", [set_length(5)])
        yield b"hel"
        yield b"lo"
        assert go.wait(PATIENCE)

    async with serving(app) as (_, client):
        client.get()
        assert (await client.read_response())[2] == b"hello"
        go.set()


async def test_what_is_written_comes_first():
    def app(environ, start_response):
        write = start_response("200 OK", [TEXT])
        write(b"one ")
        write(b"")
        write(b"two ")
        return [b"three"]

    assert (await ask(app))[2] == b"one two three"


async def test_empty_body():
    def app(environ, start_response):
        start_response("204 No Content", [])
        return []

    async with serving(app) as (_, client):
        client.get()
        assert (await client.read_head())[0] == 204


async def test_generator_of_nothing_has_a_head():
    def app(environ, start_response):
        start_response("200 OK", [set_length(0)])
        yield b""

    assert (await ask(app))[::2] == (200, b"")


@pytest.mark.parametrize("body", [[b"hello"], []])
async def test_answer_to_head_has_no_body(body):
    def app(environ, start_response):
        start_response("200 OK", [set_length(5)])
        return body if environ["REQUEST_METHOD"] == "HEAD" else [b"hello"]

    async with serving(app) as (_, client):
        client.send("HEAD / HTTP/1.1", "Host: example")
        status, fields = await client.read_head()
        assert (status, fields["content-length"]) == (200, "5")
        client.get()
        assert (await client.read_response())[2] == b"hello"


async def test_iterable_is_closed_after_the_last_part():
    closed = threading.Event()
    read = threading.Event()

    class Body:
        def __iter__(self):
            yield b"hello"

        def close(self):
            assert read.wait(PATIENCE)
            closed.set()

    def app(environ, start_response):
        start_response("200 OK", [set_length(5)])
        return Body()

    async with serving(app) as (_, client):
        client.get()
        assert (await client.read_response())[2] == b"hello"
        read.set()
        await wait(closed)


# Files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    return path


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("headers", [[], [set_length(256_000)]])
async def test_file_is_sent(file, headers, secure):
    opened = []

    def app(environ, start_response):
        start_response("200 OK", headers)
        opened.append(file.open("rb"))
        return environ["wsgi.file_wrapper"](opened[0], 100_000)

    _, fields, body = await ask(app, secure=secure)
    assert body == file.read_bytes()
    assert fields["content-length"] == "256000"
    assert opened[0].closed


async def test_part_of_a_file_is_sent(file):
    def app(environ, start_response):
        start_response("206 Partial Content", [set_length(100)])
        opened = file.open("rb")
        opened.seek(50)
        return environ["wsgi.file_wrapper"](opened)

    assert (await ask(app))[2] == file.read_bytes()[50:150]


@pytest.mark.parametrize("kind", ["gzip", "memory", "without close"])
async def test_what_only_looks_like_a_file_is_read(file, kind):
    class Reader:
        def __init__(self):
            self.read = io.BytesIO(file.read_bytes()).read

    def app(environ, start_response):
        start_response("200 OK", [])
        match kind:
            case "gzip":
                packed = file.with_suffix(".gz")
                packed.write_bytes(gzip.compress(file.read_bytes()))
                opened = gzip.GzipFile(packed)
            case "memory":
                opened = io.BytesIO(file.read_bytes())
            case _:
                opened = Reader()
        return environ["wsgi.file_wrapper"](opened)

    assert (await ask(app))[2] == file.read_bytes()


# The request


async def environ_of(*request, **options):
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [])
        return []

    await ask(app, *request, **options)
    return seen


async def test_environ_says_what_the_request_says():
    environ = await environ_of(
        "PUT /a%20b/%C3%A9%ff?x=%20y HTTP/1.1",
        "Host: example:80",
        "Content-Type: text/plain",
        "Content-Length: 0",
        "Accept: a",
        "Accept: b",
        "Cookie: c=1",
        "Cookie: d=2",
        "X-Request-Source: 192.0.2.1",
        "X_Request_Source: forged",
    )
    assert environ["REQUEST_METHOD"] == "PUT"
    assert environ["PATH_INFO"] == "/a b/\xc3\xa9\xff"
    assert environ["QUERY_STRING"] == "x=%20y"
    assert environ["REQUEST_URI"] == "/a%20b/%C3%A9%ff?x=%20y"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["SERVER_NAME"] == environ["REMOTE_ADDR"] == "127.0.0.1"
    assert int(environ["SERVER_PORT"]) > 0
    assert int(environ["REMOTE_PORT"]) > 0
    assert environ["HTTP_HOST"] == "example:80"
    assert environ["CONTENT_TYPE"] == "text/plain"
    assert environ["CONTENT_LENGTH"] == "0"
    assert environ["HTTP_ACCEPT"] == "a,b"
    assert environ["HTTP_COOKIE"] == "c=1; d=2"
    assert environ["HTTP_X_REQUEST_SOURCE"] == "192.0.2.1"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["asgi.scope"]["type"] == "http"


async def test_mount_point_is_split_off():
    environ = await environ_of(app={"root_path": "/café"})
    assert environ["SCRIPT_NAME"] == "/cafÃ©"
    assert environ["PATH_INFO"] == "/"


async def test_https_is_told():
    environ = await environ_of(secure=True)
    assert environ["wsgi.url_scheme"] == "https"


async def test_peer_on_a_unix_socket_has_no_address(tmp_path):
    environ = await environ_of(unix_path=str(tmp_path / "socket"))
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "80")
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("", "")


def http_scope(version="1.1", headers=()):
    return {
        "method": "GET",
        "http_version": version,
        "scheme": "https",
        "root_path": "",
        "raw_path": b"/",
        "query_string": b"",
        "headers": headers,
        "client": ("::1", 5),
        "server": ("::1", 443),
    }


@pytest.mark.parametrize(
    ("version", "protocol"),
    [("1.0", "HTTP/1.0"), ("1.1", "HTTP/1.1"), ("2", "HTTP/2.0"), ("3", "HTTP/3.0")],
)
def test_version_is_told_as_cgi_does(version, protocol):
    assert build_environ(http_scope(version), bytes)["SERVER_PROTOCOL"] == protocol


def test_a_name_with_an_underscore_passes_for_no_other():
    fields = [
        (b"x_forwarded_for", b"forged"),
        (b"x-forwarded-for", b"told"),
        (b"content_type", b"x"),
    ]
    environ = build_environ(http_scope(headers=fields), bytes)
    assert environ["HTTP_X_FORWARDED_FOR"] == "told"
    assert not {"CONTENT_TYPE", "HTTP_CONTENT_TYPE"} & environ.keys()


async def test_body_is_read_while_it_comes():
    """Each line is answered before the next is sent, though all reads ask for more."""

    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        while line := environ["wsgi.input"].readline(1000):
            yield line.upper()

    async with serving(app) as (_, client):
        client.send("POST / HTTP/1.1", "Host: example", "Transfer-Encoding: chunked")
        for number in range(3):
            client.writer.write(b"3\r\na%d\n\r\n" % number)
            if number == 0:
                await client.read_head()
            assert await client.read_chunk() == b"A%d\n" % number
        client.writer.write(b"0\r\n\r\n")
        assert await client.read_chunk() == b""


async def test_body_that_nobody_reads_is_no_hindrance():
    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        return [b"fine"]

    request = ("POST / HTTP/1.1", "Host: example", "Content-Length: 100000")
    assert (await ask(app, *request, body=bytes(100_000)))[2] == b"fine"


READS = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 50)),
    st.tuples(st.just("read1"), st.integers(1, 50)),
    st.tuples(st.just("readline"), st.integers(0, 50)),
    st.tuples(st.sampled_from(["read", "readline", "readlines", "__next__"])),
)


@given(
    parts=st.lists(st.text("ab\n", min_size=1, max_size=60).map(str.encode), max_size=8),
    reads=st.lists(READS, max_size=8),
)
def test_body_is_a_file_however_it_arrives(parts, reads):
    expected = io.BytesIO(b"".join(parts))
    left = iter(parts)
    body = io.BufferedReader(_Input(lambda: next(left, b"")), 16)
    for method, *arguments in reads:
        if method == "read1":
            got = body.read1(*arguments)
            assert expected.read(len(got)) == got
            assert got or expected.read() == b""
        else:
            try:
                wanted = getattr(expected, method)(*arguments)
            except StopIteration:
                wanted = None
            try:
                assert getattr(body, method)(*arguments) == wanted
            except StopIteration:
                assert wanted is None
    assert body.read() == expected.read()


def test_small_reads_take_a_frame_at_once():
    calls = []

    def receive_part():
        calls.append(1)
        return b"x" * READ_AHEAD

    environ = build_environ(
        {
            "method": "POST",
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "raw_path": b"*",
            "query_string": b"",
            "headers": [],
            "client": None,
            "server": None,
        },
        receive_part,
    )
    for _ in range(READ_AHEAD // 100):
        environ["wsgi.input"].read(100)
    assert len(calls) == 1


# Failures


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda start: [b"x"], "before start_response"),
        (lambda start: start("OK", []) and [b"x"], "three digits"),
        (lambda start: (start("200 OK", []), start("200 OK", [])) and [b"x"], "without exc_info"),
        (lambda start: next(iter([])), "StopIteration"),
        (lambda start: None, "not iterable"),
    ],
)
async def test_fault_of_the_application_is_a_500_and_logged(caplog, fault, complaint):
    status, _, body = await ask(lambda environ, start_response: fault(start_response))
    assert (status, body) == (500, b"Internal Server Error")
    assert complaint in caplog.text


async def test_error_after_the_first_part_breaks_off(caplog):
    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        yield b"part"
        raise ValueError("on purpose")

    async with serving(app) as (_, client):
        client.get()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.read_response()
    assert "on purpose" in caplog.text


async def test_more_than_the_length_is_logged(caplog):
    def app(environ, start_response):
        start_response("200 OK", [set_length(3)])
        yield b"abc"
        yield b""
        yield b"d"

    async with serving(app) as (worker, client):
        client.get()
        assert (await client.read_response())[2] == b"abc"
        await worker.wait_until(lambda: worker.count(Cell.APP_ERRORS))
    assert "behind its content-length" in caplog.text


async def test_less_than_the_length_breaks_off(caplog):
    def app(environ, start_response):
        start_response("200 OK", [set_length(3)])
        return [b"ab"]

    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await ask(app)
    assert "shorter than its content-length" in caplog.text


async def test_error_page_may_replace_what_was_not_sent_yet():
    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        try:
            raise ValueError
        except ValueError as error:
            start_response("418 Teapot", [TEXT], (ValueError, error, error.__traceback__))
        return [b"short and stout"]

    assert (await ask(app))[::2] == (418, b"short and stout")


async def test_error_page_comes_too_late_behind_the_first_part(caplog):
    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        yield b"part"
        try:
            raise ValueError("the first error")
        except ValueError as error:
            start_response("500 Sorry", [TEXT], (ValueError, error, error.__traceback__))

    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await ask(app)
    assert "the first error" in caplog.text


async def test_body_that_breaks_off_raises(caplog):
    raised = []
    reading, ended = threading.Event(), threading.Event()

    def app(environ, start_response):
        try:
            assert environ["wsgi.input"].read(4) == b"part"
            reading.set()
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    async with serving(app) as (_, client):
        client.send("POST / HTTP/1.1", "Host: example", "Content-Length: 9", body=b"part")
        await wait(reading)
        client.reset()
        await wait(ended)
    assert len(raised) == 1
    assert "Traceback" not in caplog.text


async def test_clients_that_go_leave_no_thread_behind():
    """More of them than there are threads, each in the middle of a response without an end."""
    closed = threading.Semaphore(0)

    class Endless:
        def __iter__(self):
            return self

        def __next__(self):
            return bytes(65536)

        def close(self):
            closed.release()

    def app(environ, start_response):
        start_response("200 OK", [TEXT])
        return Endless() if environ["PATH_INFO"] == "/endless" else [b"fine"]

    async with serving(app, threads=2) as (worker, client):
        for _ in range(5):
            async with await worker.connect() as other:
                other.get("/endless")
                await other.read_head()
                await other.read_chunk()
                other.reset()
            assert await asyncio.to_thread(closed.acquire, timeout=PATIENCE)
        client.get()
        assert (await client.read_response())[2] == b"fine"


async def test_requests_wait_for_a_thread():
    running = []
    most = []
    go = threading.Event()

    def app(environ, start_response):
        running.append(1)
        most.append(len(running))
        assert go.wait(PATIENCE)
        running.pop()
        start_response("200 OK", [])
        return [b"x"]

    async with serving(app, threads=2) as (worker, _), contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await worker.connect()) for _ in range(6)]
        for client in clients:
            client.get()
        await worker.wait_until(lambda: len(running) == 2)
        go.set()
        for client in clients:
            assert (await client.read_response())[2] == b"x"
    assert max(most) == 2


async def test_call_that_was_given_up_can_do_nothing_more():
    raised = []
    go, ended = threading.Event(), threading.Event()

    def app(environ, start_response):
        assert go.wait(PATIENCE)
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
        try:
            start_response("200 OK", [])(b"late")
        except OSError as error:
            raised.append(error)
        ended.set()
        return []

    async with serving(app, http={"request_timeout": 0.05}) as (_, client):
        client.get()
        assert (await client.read_head())[0] == 504
        go.set()
        await wait(ended)
    assert len(raised) == 2


@pytest.mark.parametrize("waits", ["reading", "writing"])
async def test_call_that_is_given_up_while_it_waits_is_told(waits):
    raised = []
    ended = threading.Event()

    def app(environ, start_response):
        write = start_response("200 OK", [TEXT])
        try:
            while True:
                if waits == "writing":
                    write(bytes(65536))
                else:
                    environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    async with serving(app, http={"request_timeout": 0.05}) as (worker, client):
        client.send("POST / HTTP/1.1", "Host: example", "Content-Length: 5")
        await wait(ended)
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 0)
    assert len(raised) == 1


# What is no request


async def test_websockets_are_refused():
    async with serving(lambda environ, start_response: []) as (_, client):
        client.get(
            "/",
            "Upgrade: websocket",
            "Connection: upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        assert (await client.read_head())[0] == 403


async def test_lifespan_ends_the_threads():
    adapter = WsgiApplication(lambda environ, start_response: [], threads=1)
    async with serve_app(adapter) as worker:
        application = worker.services.requests.application
        lifespan = Lifespan(application, worker.services.scopes.lifespan_scope(), "on")
        await lifespan.startup()
        await lifespan.shutdown(PATIENCE)
    with pytest.raises(RuntimeError):
        adapter._threads.submit(print)
