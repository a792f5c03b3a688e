"""What connections of all versions share, with an engine that reports what the test says."""

import asyncio

import pytest

from asgiri.ipc.scoreboard import PAGE_SIZE, Refusal, Scoreboard
from asgiri.worker.asgi.application import Application
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    PeerViolation,
    RequestReceived,
    StreamPaused,
    StreamReset,
    StreamResumed,
)
from asgiri.worker.runtime import make_services
from asgiri.worker.transport.session import HttpSession
from tests.support.worker import make_config

ON_BOTH_EVENT_LOOPS = True

START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body"}


def body(data, *, more=True):
    return {"type": "http.response.body", "body": data, "more_body": more}


class ScriptedEngine:
    """An engine that remembers its calls and answers each with the events that a test put there."""

    http_version = "2"
    is_idle = True

    def __init__(self):
        self.calls = []
        self.answers = {}

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments, **options):
            self.calls.append((name, *arguments, *options.values()))
            return self.answers.pop(name, [])

        return call

    def names(self):
        return [name for name, *_ in self.calls]


class RecordingSession(HttpSession):
    """A session whose transport is a list."""

    def __init__(self, services, engine):
        scopes = services.scopes.connection(client=None, server=None, secure=False)
        super().__init__(services, engine, scopes)
        self.ended = []
        self.flushes = 0

    def _flush(self):
        self.flushes += 1

    def _end(self, reason):
        self.ended.append(reason)


class Rig:
    """A session, its engine, and the calls of its application."""

    def __init__(self, app):
        loop = asyncio.get_running_loop()
        self.services = make_services(
            Application(app, loop),
            config=make_config(),
            scoreboard=Scoreboard(memoryview(bytearray(PAGE_SIZE))),
            loop=loop,
        )
        self.engine = ScriptedEngine()
        self.session = RecordingSession(self.services, self.engine)

    async def settle(self):
        """Let everything run that is due."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def close(self):
        self.session.cancel_exchanges()
        self.session.connection_gone()
        await self.settle()
        self.services.deadlines.close()
        assert not self.services.sessions


@pytest.fixture
async def rig():
    made = []

    def make(app):
        made.append(Rig(app))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def request(stream_id=1, *, ended=True, path=b"/"):
    return RequestReceived(stream_id, "GET", path, [(b"host", b"x")], "2", ended=ended)


class Log:
    """An application that notes what happens in each of its calls."""

    def __init__(self, steps=None):
        self.lines = []
        self._steps = steps

    async def __call__(self, scope, receive, send):
        path = scope["path"]
        self.lines.append(f"{path} began")
        try:
            await self._steps(scope, receive, send)
        finally:
            self.lines.append(f"{path} ended")


async def answer(scope, receive, send):
    await send(START)
    await send(END)


async def wait_for_ever(scope, receive, send):
    await asyncio.Event().wait()


async def test_request_reported_by_a_send_begins_behind_the_call_that_sent(rig):
    async def steps(scope, receive, send):
        await send(START)
        if scope["path"] == "/a":
            made.engine.answers["send_response"] = [request(2, path=b"/b")]
        await send(END)
        log.lines.append(f"{scope['path']} sent")

    log = Log(steps)
    made = rig(log)
    made.session.handle_events([request(1, path=b"/a")])
    await made.settle()
    assert log.lines == ["/a began", "/a sent", "/a ended", "/b began", "/b sent", "/b ended"]


async def test_request_reported_by_a_late_send_begins_on_the_next_turn_in_order(rig):
    go = asyncio.Event()

    async def steps(scope, receive, send):
        if scope["path"] == "/a":
            await go.wait()
            made.engine.answers["send_response"] = [request(2, path=b"/b")]
        await answer(scope, receive, send)
        if scope["path"] == "/a":
            # What the engine reports meanwhile stands in line behind it.
            made.session.handle_events([request(3, path=b"/c")])

    log = Log(steps)
    made = rig(log)
    made.session.handle_events([request(1, path=b"/a")])
    await made.settle()
    go.set()
    await made.settle()
    began = [line for line in log.lines if line.endswith("began")]
    assert began == ["/a began", "/b began", "/c began"]
    assert made.session.flushes > 0


async def test_stream_goes_on_when_neither_its_own_buffer_nor_the_transports_is_full(rig):
    sent = []

    async def app(scope, receive, send):
        await send(START)
        for number in range(100):
            await send(body(b"x"))
            sent.append(number)

    made = rig(app)
    made.engine.answers["send_response"] = [StreamPaused(1)]
    made.session.handle_events([request(1)])
    await made.settle()
    assert len(sent) == 1
    made.session.pause_writing()
    made.session.handle_events([StreamResumed(1)])
    await made.settle()
    assert len(sent) == 1
    made.engine.answers["send_body"] = [StreamPaused(1)]
    made.session.resume_writing()
    await made.settle()
    assert len(sent) == 2
    # The transport has room, but this stream has not.
    made.session.pause_writing()
    made.session.resume_writing()
    await made.settle()
    assert len(sent) == 2
    made.session.handle_events([StreamResumed(1)])
    await made.settle()
    assert len(sent) == 100


async def test_paused_stream_holds_no_other_back(rig):
    async def app(scope, receive, send):
        await send(START)
        await send(body(b"x"))
        await send(END)

    made = rig(app)
    made.engine.answers["send_response"] = [StreamPaused(1)]
    made.session.handle_events([request(1), request(3)])
    await made.settle()
    assert list(made.session._exchanges) == [1]


async def test_exchange_that_begins_while_the_transport_is_full_waits(rig):
    made = rig(answer)
    made.session.pause_writing()
    made.session.handle_events([request(1)])
    await made.settle()
    assert "send_body" not in made.engine.names()
    assert made.session._exchanges
    made.session.resume_writing()
    await made.settle()
    assert not made.session._exchanges


async def test_stream_is_released_when_the_call_has_returned(rig):
    made = rig(answer)
    made.session.handle_events([request(5)])
    await made.settle()
    assert made.engine.calls[-1] == ("release", 5)
    assert made.session.is_idle


async def test_reset_stream_disconnects_its_exchange_and_counts_until_the_call_returns(rig):
    heard, go = [], asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        heard.append((await receive())["type"])
        await go.wait()

    made = rig(app)
    made.session.handle_events([request(1), request(3), StreamReset(3)])
    await made.settle()
    assert heard == ["http.disconnect"]
    assert not made.session.is_idle
    assert "release" not in made.engine.names()
    go.set()
    await made.settle()
    assert ("release", 3) in made.engine.calls


async def test_body_goes_to_its_exchange_and_credit_back_to_the_engine(rig):
    heard = []

    async def app(scope, receive, send):
        while True:
            message = await receive()
            heard.append((scope["path"], message["body"]))
            if not message["more_body"]:
                break
        await answer(scope, receive, send)

    made = rig(app)
    made.session.handle_events(
        [
            request(1, ended=False, path=b"/a"),
            request(3, ended=False, path=b"/b"),
        ]
    )
    await made.settle()
    made.session.handle_events(
        [BodyReceived(3, b"for b", 7), BodyReceived(1, b"for a", 6, ended=True)]
    )
    await made.settle()
    made.session.handle_events([BodyEnded(3)])
    await made.settle()
    assert heard == [("/b", b"for b"), ("/a", b"for a"), ("/b", b"")]
    returned = [call for call in made.engine.calls if call[0] == "acknowledge"]
    assert returned == [("acknowledge", 3, 7), ("acknowledge", 1, 6)]


async def test_body_that_nobody_will_read_is_acknowledged_at_once(rig):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await answer(scope, receive, send)
        await go.wait()

    made = rig(app)
    made.session.handle_events([request(1, ended=False)])
    await made.settle()
    made.session.handle_events([BodyReceived(1, b"late", 4)])
    assert ("acknowledge", 1, 4) in made.engine.calls
    go.set()
    await made.settle()
    made.session.handle_events([BodyReceived(1, b"later", 5), BodyEnded(1)])
    assert ("acknowledge", 1, 5) in made.engine.calls


async def test_body_that_waits_when_the_response_completes_is_acknowledged(rig):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()
        await answer(scope, receive, send)

    made = rig(app)
    made.session.handle_events([request(1, ended=False), BodyReceived(1, b"unread", 6)])
    await made.settle()
    assert "acknowledge" not in made.engine.names()
    go.set()
    await made.settle()
    assert ("acknowledge", 1, 6) in made.engine.calls


async def test_violation_is_counted_and_ends_its_stream_only(rig):
    heard = []

    async def app(scope, receive, send):
        await receive()
        heard.append((scope["path"], (await receive())["type"]))

    made = rig(app)
    made.session.handle_events(
        [
            request(1, path=b"/a"),
            request(3, path=b"/b"),
            PeerViolation(Refusal.HTTP2_BAD_HEADERS, "detail", 3),
            PeerViolation(Refusal.HTTP2_PING_FLOOD, "detail"),
        ]
    )
    await made.settle()
    assert heard == [("/b", "http.disconnect")]
    assert made.services.scoreboard.refusals() == {"http2_bad_headers": 1, "http2_ping_flood": 1}


@pytest.mark.parametrize("abort", [False, True])
async def test_end_of_the_connection_disconnects_every_exchange(rig, abort):
    heard = []

    async def app(scope, receive, send):
        await receive()
        heard.append((await receive())["type"])

    made = rig(app)
    made.session.handle_events([request(1), request(3), ConnectionEnded("reason", abort)])
    await made.settle()
    assert heard == ["http.disconnect"] * 2
    assert made.session.ended == ["reason"]


async def test_a_client_is_asked_once_to_come_again(rig):
    made = rig(answer)
    assert made.session.shed()
    assert not made.session.shed()
    assert made.engine.names() == ["begin_drain"]


async def test_a_client_that_has_gone_is_not_asked_to_come_again(rig):
    made = rig(answer)
    made.session.connection_gone()
    assert not made.session.shed()


async def test_lost_connection_is_kept_until_its_calls_have_returned(rig):
    go = asyncio.Event()

    async def app(scope, receive, send):
        await go.wait()

    made = rig(app)
    made.session.handle_events([request(1)])
    made.session.connection_gone()
    made.session.connection_gone()
    await made.settle()
    assert made.session in made.services.sessions
    go.set()
    await made.settle()
    assert made.session not in made.services.sessions
    assert "release" not in made.engine.names()


async def test_lost_connection_without_calls_is_forgotten_at_once(rig):
    made = rig(answer)
    made.session.connection_gone()
    assert not made.services.sessions


async def test_events_that_stood_in_line_are_dropped_with_the_connection(rig):
    go = asyncio.Event()

    async def steps(scope, receive, send):
        await go.wait()
        made.engine.answers["send_response"] = [request(2, path=b"/b")]
        await answer(scope, receive, send)
        made.session.connection_gone()

    log = Log(steps)
    made = rig(log)
    made.session.handle_events([request(1, path=b"/a")])
    await made.settle()
    go.set()
    await made.settle()
    assert log.lines == ["/a began", "/a ended"]


async def test_drain_tells_engine_and_exchanges(rig):
    made = rig(wait_for_ever)
    made.session.handle_events([request(1)])
    made.session.begin_drain()
    made.session.finish_drain()
    assert made.engine.names() == ["begin_drain", "finish_drain"]


async def test_drain_closes_a_connection_without_exchanges(rig):
    made = rig(answer)
    made.engine.answers["close"] = [ConnectionEnded("closed")]
    made.session.begin_drain()
    made.session.finish_drain()
    assert made.engine.names() == ["begin_drain", "finish_drain", "close"]
    assert made.session.ended == ["closed"]
