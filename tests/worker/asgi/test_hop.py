"""A call of an application in another thread: what it and the server see of each other."""

import asyncio
import contextvars
import gc
import sys
import threading
import traceback
import weakref

import pytest

from asgiri.errors import AppError, ClientDisconnected
from asgiri.worker.asgi import hop
from asgiri.worker.asgi.app_thread import AppThread
from asgiri.worker.asgi.application import Application

ON_BOTH_EVENT_LOOPS = True
PATIENCE = 10.0

START = {"type": "http.response.start", "status": 200, "headers": []}
ACCEPT = {"type": "websocket.accept"}
DISCONNECT = {"type": "http.disconnect"}


def body(data=b"", *, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


def part(data, *, more=True):
    return {"type": "http.request", "body": data, "more_body": more}


def text(content):
    return {"type": "websocket.send", "text": content}


class Exchange:
    """The server's side of one call, in the main thread; the test plays the peer."""

    def __init__(self):
        self.sent = []
        self.threads = set()
        self.errors = []
        """What the next calls of `send` raise."""
        self.gone = False
        self.writable = asyncio.Event()
        self.writable.set()
        self.blocked = 0
        self.incoming = asyncio.Queue()
        self.waiting = 0
        """Calls of `receive` that wait for something."""
        self.changed = asyncio.Event()

    async def receive(self):
        if self.incoming.empty():
            self.waiting += 1
            self.changed.set()
            try:
                return await self.incoming.get()
            finally:
                self.waiting -= 1
                self.changed.set()
        return self.incoming.get_nowait()

    async def send(self, message):
        self.threads.add(threading.current_thread())
        if not self.writable.is_set():
            self.blocked += 1
            self.changed.set()
            await self.writable.wait()
        if self.gone:
            raise ClientDisconnected("the client has gone")
        if self.errors:
            raise self.errors.pop(0)
        self.sent.append(message)
        self.changed.set()

    async def wait_until(self, condition):
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class Caller:
    """Calls applications over there, as exchanges do."""

    def __init__(self, thread, calls):
        self.thread = thread
        self._calls = calls

    def start(self, application, exchange, *, kind="http", headers=()):
        """The task of the exchange that waits for the call."""
        self._calls.append(application)
        scope = {"type": kind, "headers": headers}
        call = hop.call(self.thread, scope, exchange.receive, exchange.send)
        return asyncio.create_task(call)

    async def call(self, application, exchange, **options):
        async with asyncio.timeout(PATIENCE):
            await self.start(application, exchange, **options)

    async def outcome(self, application, exchange):
        """What it raises, which may be what would end the event loop."""

        async def catch():
            try:
                await hop.call(self.thread, scope, exchange.receive, exchange.send)
            except BaseException as error:
                return error

        self._calls.append(application)
        scope = {"type": "http", "headers": ()}
        async with asyncio.timeout(PATIENCE):
            return await asyncio.create_task(catch())


@pytest.fixture
async def caller():
    calls = []

    async def application(scope, receive, send):
        await calls.pop(0)(receive, send)

    interval = sys.getswitchinterval()
    new_loop = type(asyncio.get_running_loop())
    thread = AppThread(application, new_loop(), asyncio.get_running_loop())
    thread.start()
    yield Caller(thread, calls)
    await thread.stop(PATIENCE)
    sys.setswitchinterval(interval)


@pytest.fixture
async def exchange():
    return Exchange()


class Gate:
    """Something that one thread says and the other one's loop waits for."""

    def __init__(self, thread):
        self._main = asyncio.Event()
        self._app = asyncio.Event()
        self._thread = thread

    def say_from_app(self):
        self._thread.to_main.post(self._main.set)

    def say_from_main(self):
        self._thread.to_app.post(self._app.set)

    async def wait_in_app(self):
        await self._app.wait()

    async def wait_in_main(self):
        await asyncio.wait_for(self._main.wait(), PATIENCE)


@pytest.fixture
async def gate(caller):
    return Gate(caller.thread)


def returns_at_once(coroutine):
    """Whether it ends without a wait."""
    try:
        coroutine.send(None)
    except StopIteration:
        return True
    return False


async def one_turn():
    await asyncio.sleep(0)


# The call


async def test_it_runs_in_the_applications_thread_and_sends_in_the_main_one(caller, exchange):
    seen = []

    async def app(receive, send):
        seen.append((threading.current_thread().name, asyncio.get_running_loop()))
        await send(START)
        await send(body(b"one", more=True))
        await send(body(b"two"))

    await caller.call(app, exchange)
    assert seen == [("asgiri-app", caller.thread.loop)]
    assert exchange.sent == [START, body(b"one", more=True), body(b"two")]
    assert exchange.threads == {threading.current_thread()}


@pytest.mark.parametrize("error", [ValueError("wrong"), SystemExit(3), asyncio.CancelledError()])
async def test_what_it_raises_is_raised_by_the_call(caller, exchange, error):
    async def app(receive, send):
        raise error

    raised = await caller.outcome(app, exchange)
    assert raised is error
    assert traceback.extract_tb(raised.__traceback__)[-1].name == "app"


async def test_what_it_raises_is_held_by_nobody_afterwards(caller, exchange):
    witnesses = []

    class Witness:
        pass

    async def app(receive, send):
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        raise ValueError

    gc.disable()
    try:
        assert isinstance(await caller.outcome(app, exchange), ValueError)
        async with asyncio.timeout(PATIENCE):
            while witnesses[0]() is not None:  # the other thread may be about to let go
                await asyncio.sleep(0.001)
    finally:
        gc.enable()


async def test_variables_are_those_of_the_beginning_for_each_call():
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("at the beginning")
    seen = []

    async def application(scope, receive, send):
        seen.append(variable.get())
        variable.set("its own")

    thread = AppThread(application, asyncio.new_event_loop(), asyncio.get_running_loop())
    variable.set("later")
    thread.start()
    for _ in range(2):
        await hop.call(thread, {"type": "http", "headers": ()}, Exchange().receive, None)
    await thread.stop(PATIENCE)
    assert seen == ["at the beginning"] * 2


# Sending without waiting


async def test_what_is_certain_to_be_right_returns_at_once(caller, exchange):
    at_once = []

    async def app(receive, send):
        headers = [(b"content-length", b"6")]
        at_once.append(returns_at_once(send({**START, "headers": headers})))
        at_once.append(returns_at_once(send(body(b"one", more=True))))
        at_once.append(returns_at_once(send(body(b"two"))))

    await caller.call(app, exchange)
    assert at_once == [True, True, True]
    assert [message.get("body") for message in exchange.sent] == [None, b"one", b"two"]


async def test_a_head_alone_goes_on_the_next_turn(caller, exchange, gate):
    async def app(receive, send):
        await send(START)
        await gate.wait_in_app()

    task = caller.start(app, exchange)
    await exchange.wait_until(lambda: exchange.sent)
    assert exchange.sent == [START]
    gate.say_from_main()
    await task


async def test_a_head_goes_although_the_call_ends_with_it(caller, exchange):
    async def app(receive, send):
        await send(START)

    await caller.call(app, exchange)
    assert exchange.sent == [START]


async def test_messages_are_as_they_were_when_they_were_sent(caller, exchange):
    async def app(receive, send):
        headers = [(b"a", b"b")]
        start = {**START, "headers": headers}
        await send(start)
        headers.clear()
        start["status"] = 404
        message = body(b"one", more=True)
        await send(message)
        message["body"] = b"two"
        await send(message)
        message["body"] = b"three"
        await send(body())

    await caller.call(app, exchange)
    assert exchange.sent[0] == {**START, "headers": [(b"a", b"b")]}
    assert [message["body"] for message in exchange.sent[1:]] == [b"one", b"two", b""]


@pytest.mark.parametrize(
    "message",
    [
        {**START, "status": "200"},
        {**START, "headers": [("a", "b")]},
        {**START, "headers": [(b"content-length", b"x")]},
        {**START, "headers": None},
    ],
)
async def test_a_wrong_head_raises_in_its_own_call(caller, exchange, message):
    raised = []

    async def app(receive, send):
        try:
            await send(message)
        except AppError as error:
            raised.append(str(error))
        await send(START)
        await send(body())

    exchange.errors = [AppError("'headers'")] if message["headers"] is None else []
    await caller.call(app, exchange)
    assert len(raised) == 1
    assert exchange.sent == [START, body()]


@pytest.mark.parametrize(
    "messages",
    [
        [body()],
        [START, START],
        [START, {"type": "http.response.body", "body": "text"}],
        [START, {"type": "http.response.trailers"}],
        [START, body(), body()],
        [{"status": 200}],
        [{**START, "headers": [(b"content-length", b"3")]}, body(b"long", more=True)],
        [{**START, "headers": [(b"content-length", b"3")]}, body(b"s")],
        [{**START, "headers": [(b"content-length", b"3")]}, body(b"12", more=True), body(b"34")],
    ],
)
async def test_what_may_be_wrong_waits_for_a_verdict(caller, exchange, messages):
    """The exchange in the main thread is the judge."""
    *good, bad = messages
    raised = []

    async def app(receive, send):
        for message in good:
            assert returns_at_once(send(message))
        try:
            await send(bad)
        except AppError as error:
            raised.append(str(error))

    exchange.errors = []
    judge = exchange.send

    async def send(message):
        if message == bad and len(exchange.sent) == len(good):
            raise AppError("not like that")
        await judge(message)

    exchange.send = send
    await caller.call(app, exchange)
    assert raised == ["not like that"]
    assert exchange.sent == good


async def test_an_early_hint_changes_nothing_of_what_follows(caller, exchange):
    hint = {"type": "http.response.early_hint", "links": []}
    at_once = []

    async def app(receive, send):
        await send(hint)
        at_once.append(returns_at_once(send(START)))
        at_once.append(returns_at_once(send(body())))

    await caller.call(app, exchange)
    assert at_once == [True, True]
    assert exchange.sent == [hint, START, body()]


async def test_no_more_than_a_window_is_under_way(caller, exchange):
    """A peer that does not read holds the application back."""
    chunk, sent = b"x" * 10_000, []

    async def app(receive, send):
        await send(START)
        for number in range(100):
            await send(body(chunk, more=number < 99))
            sent.append(number)

    exchange.writable.clear()
    task = caller.start(app, exchange)
    await exchange.wait_until(lambda: exchange.blocked)
    before = -1
    while before != len(sent):  # it runs into the window, in its thread
        before = len(sent)
        for _ in range(100):
            await one_turn()
    assert len(sent) * len(chunk) <= hop.WINDOW + len(chunk)
    exchange.writable.set()
    await task
    assert [message.get("body") for message in exchange.sent] == [None, *[chunk] * 100]


async def test_concurrent_sends_are_carried_out_one_after_the_other(caller, exchange):
    async def app(receive, send):
        await send(START)
        await asyncio.gather(*(send(body(b"%d" % n * 50_000, more=True)) for n in range(8)))
        await send(body())

    await caller.call(app, exchange)
    sizes = [len(message.get("body", b"")) for message in exchange.sent]
    assert sizes == [0, *[50_000] * 8, 0]


# Clients that go


async def test_a_lost_client_is_noticed_by_the_send_behind(caller, exchange):
    raised = []

    async def app(receive, send):
        await send(START)
        try:
            while True:
                await send(body(b"more", more=True))
                await asyncio.sleep(0)
        except ClientDisconnected as error:
            raised.append(error)

    exchange.gone = True
    with pytest.raises(ClientDisconnected):
        await caller.call(app, exchange)
    assert raised


async def test_a_lost_client_that_the_application_heard_of_is_noticed_at_once(caller, exchange):
    raised = []

    async def app(receive, send):
        await send(START)
        assert await receive() == DISCONNECT
        try:
            await send(body())
        except ClientDisconnected as error:
            raised.append(error)

    task = caller.start(app, exchange, headers=[(b"expect", b"100-continue")])
    await exchange.wait_until(lambda: exchange.sent and exchange.waiting)
    exchange.gone = True
    exchange.incoming.put_nowait(DISCONNECT)
    await task
    assert len(raised) == 1


async def test_what_nobody_waited_for_fails_the_call_in_the_end(caller, exchange):
    async def app(receive, send):
        await send(START)
        await send(body())

    exchange.errors = [AppError("does not fit")]
    with pytest.raises(AppError, match="does not fit"):
        await caller.call(app, exchange)


# Receiving


async def test_the_first_message_comes_along(caller, exchange):
    at_once = []

    async def app(receive, send):
        at_once.append(returns_at_once(receive()))

    exchange.incoming.put_nowait(part(b"", more=False))
    await caller.call(app, exchange)
    assert at_once == [True]


async def test_so_does_one_that_comes_in_the_same_turn(caller, exchange):
    heard = []

    async def app(receive, send):
        coroutine = receive()
        with pytest.raises(StopIteration) as returned:
            coroutine.send(None)
        heard.append(returned.value.value)

    task = caller.start(app, exchange)
    await one_turn()
    exchange.incoming.put_nowait(part(b"body", more=False))
    await task
    assert heard == [part(b"body", more=False)]


async def test_nothing_is_received_for_who_has_not_asked(caller, exchange, gate):
    """Else a client would be told to go on, or that it is too slow."""

    async def app(receive, send):
        gate.say_from_app()
        await gate.wait_in_app()
        await receive()

    headers = [(b"expect", b"100-continue")]
    task = caller.start(app, exchange, headers=headers)
    await gate.wait_in_main()
    assert exchange.waiting == 0
    gate.say_from_main()
    await exchange.wait_until(lambda: exchange.waiting == 1)
    exchange.incoming.put_nowait(part(b""))
    await task


async def test_messages_are_received_in_order(caller, exchange):
    heard = []

    async def app(receive, send):
        while (message := await receive()) != DISCONNECT:
            heard.append(message["body"])

    task = caller.start(app, exchange)
    for number in range(20):
        exchange.incoming.put_nowait(part(b"%d" % number))
        if number % 3:
            await one_turn()
    exchange.incoming.put_nowait(DISCONNECT)
    await task
    assert heard == [b"%d" % number for number in range(20)]


async def test_a_receive_that_is_cancelled_waits_no_more_and_loses_nothing(caller, exchange, gate):
    heard = []

    async def app(receive, send):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.01)
        await gate.wait_in_app()
        heard.append(await receive())

    task = caller.start(app, exchange)
    await exchange.wait_until(lambda: exchange.waiting == 1)
    await exchange.wait_until(lambda: exchange.waiting == 0)
    exchange.incoming.put_nowait(part(b"late"))
    gate.say_from_main()
    await task
    assert heard == [part(b"late")]


async def test_receives_that_are_cancelled_as_messages_come_lose_none(caller, exchange):
    """Whatever crosses on its way."""
    count, heard = 300, []

    async def app(receive, send):
        while len(heard) < count:
            receiving = asyncio.ensure_future(receive())
            for _ in range(1 + len(heard) % 7):
                await asyncio.sleep(0)
            receiving.cancel()
            try:
                heard.append((await receiving)["body"])
            except asyncio.CancelledError:
                pass

    task = caller.start(app, exchange)
    for number in range(count):
        exchange.incoming.put_nowait(part(b"%d" % number))
        for _ in range(number % 5):
            await one_turn()
    await asyncio.wait_for(task, PATIENCE)
    assert heard == [b"%d" % number for number in range(count)]


async def test_a_receive_of_one_task_does_not_suffer_from_another_ones_end(caller, exchange, gate):
    heard = []

    async def app(receive, send):
        first, second = asyncio.ensure_future(receive()), asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        first.cancel()
        gate.say_from_app()
        heard.append(await second)

    task = caller.start(app, exchange)
    await gate.wait_in_main()
    exchange.incoming.put_nowait(part(b"one"))
    await asyncio.wait_for(task, PATIENCE)
    assert heard == [part(b"one")]


async def test_a_receive_that_outlives_the_call_is_ended(caller, exchange):
    left = []

    async def app(receive, send):
        left.append(asyncio.ensure_future(receive()))
        await asyncio.sleep(0)

    await caller.call(app, exchange)
    await exchange.wait_until(lambda: exchange.waiting == 0)


# Cancelling


async def test_cancelling_the_exchange_cancels_the_call(caller, exchange, gate):
    seen = []

    async def app(receive, send):
        gate.say_from_app()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = caller.start(app, exchange)
    await gate.wait_in_main()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]


async def test_a_call_that_is_cancelled_may_still_answer(caller, exchange, gate):
    async def app(receive, send):
        gate.say_from_app()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await send(START)
            await send(body(b"sorry"))

    task = caller.start(app, exchange)
    await gate.wait_in_main()
    task.cancel()
    await task
    assert exchange.sent == [START, body(b"sorry")]


async def test_a_call_that_has_not_begun_never_does(caller, exchange):
    began, standing, released = [], threading.Event(), threading.Event()

    async def app(receive, send):
        began.append(True)

    def stand():
        standing.set()
        released.wait(PATIENCE)

    caller.thread.to_app.post(stand)
    await asyncio.to_thread(standing.wait, PATIENCE)
    task = caller.start(app, exchange)
    await one_turn()
    await one_turn()
    task.cancel()
    await one_turn()
    released.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert began == []


async def test_what_waits_for_the_peer_is_given_up_and_nothing_follows_it(caller, exchange, gate):
    raised = []

    async def app(receive, send):
        await send(START)
        await send(body(b"given up", more=True))
        gate.say_from_app()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            try:
                await send(body(b"after it"))
                await send(body(b"and again"))
            except ClientDisconnected as error:
                raised.append(error)

    async def only_the_head(message):
        if message != START:
            exchange.writable.clear()
        await send(message)

    send, exchange.send = exchange.send, only_the_head
    task = caller.start(app, exchange)
    await gate.wait_in_main()
    await exchange.wait_until(lambda: exchange.blocked)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert exchange.sent == [START]
    assert len(raised) == 1


async def test_a_send_that_the_application_gives_up_holds_up_nobody(caller, exchange):
    async def flood(send):
        while True:
            await send(body(b"x" * 30_000, more=True))

    async def app(receive, send):
        await send(START)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(send), 0.01)

    exchange.writable.clear()
    await caller.call(app, exchange)


async def test_what_comes_after_the_end_of_the_call_raises(caller, exchange, gate):
    raised = []

    async def late(send):
        await gate.wait_in_app()
        for message in (START, body()):
            try:
                await send(message)
            except AppError as error:
                raised.append(str(error))
        gate.say_from_app()

    async def app(receive, send):
        raised.append(asyncio.ensure_future(late(send)))

    await caller.call(app, exchange)
    gate.say_from_main()
    await gate.wait_in_main()
    assert raised[1:] == ["send() after the application's call has ended"] * 2
    assert exchange.sent == []


# WebSockets


async def test_an_accepted_websocket_sends_without_waiting(caller, exchange):
    at_once = []

    async def app(receive, send):
        at_once.append(returns_at_once(receive()))
        await send(ACCEPT)
        at_once.append(returns_at_once(send(text("one"))))
        at_once.append(returns_at_once(send({"type": "websocket.send", "bytes": b"two"})))

    exchange.incoming.put_nowait({"type": "websocket.connect"})
    await caller.call(app, exchange, kind="websocket")
    assert at_once == [True, True, True]
    assert exchange.sent[:2] == [ACCEPT, text("one")]


@pytest.mark.parametrize("content", [{}, {"text": 1}, {"bytes": "text"}, {"text": "\ud800"}])
async def test_a_wrong_websocket_message_raises_in_its_own_call(caller, exchange, content):
    raised = []

    async def app(receive, send):
        await send(ACCEPT)
        try:
            await send({"type": "websocket.send", **content})
        except AppError as error:
            raised.append(error)

    await caller.call(app, exchange, kind="websocket")
    assert len(raised) == 1
    assert exchange.sent == [ACCEPT]


@pytest.mark.parametrize("before", [[], [ACCEPT, {"type": "websocket.close"}]])
async def test_a_websocket_that_is_not_open_waits_for_a_verdict(caller, exchange, before):
    raised = []

    async def app(receive, send):
        for message in before:
            await send(message)
        try:
            await send(text("no"))
        except AppError as error:
            raised.append(error)

    async def judged(message):
        if message == text("no"):
            raise AppError("not open")
        await send(message)

    send, exchange.send = exchange.send, judged
    await caller.call(app, exchange, kind="websocket")
    assert len(raised) == 1
    assert exchange.sent == before


async def test_a_websocket_whose_peer_does_not_read_holds_the_application_back(caller, exchange):
    sent = []

    async def app(receive, send):
        await send(ACCEPT)
        exchange.writable.clear()
        for number in range(1000):
            await send(text("x" * 100))
            sent.append(number)

    task = caller.start(app, exchange, kind="websocket")
    await exchange.wait_until(lambda: exchange.blocked)
    before = -1
    while before != len(sent):
        before = len(sent)
        for _ in range(100):
            await one_turn()
    assert len(sent) <= hop.WINDOW // (100 + hop.OVERHEAD) + 2
    exchange.writable.set()
    await task
    assert len(exchange.sent) == 1001


async def test_a_websocket_that_was_disconnected_waits_for_a_verdict(caller, exchange):
    raised = []

    async def app(receive, send):
        await send(ACCEPT)
        assert (await receive())["type"] == "websocket.disconnect"
        try:
            await send(text("too late"))
        except ClientDisconnected as error:
            raised.append(error)

    task = caller.start(app, exchange, kind="websocket")
    await exchange.wait_until(lambda: exchange.sent and exchange.waiting)
    exchange.gone = True
    exchange.incoming.put_nowait({"type": "websocket.disconnect"})
    await task
    assert len(raised) == 1


# Other calls


async def test_lifespan_waits_for_each_message(caller, exchange):
    complete = {"type": "lifespan.startup.complete"}
    raised = []

    async def app(receive, send):
        assert await receive() == {"type": "lifespan.startup"}
        await send(complete)
        try:
            await send(complete)
        except AppError as error:
            raised.append(str(error))

    async def once(message):
        if exchange.sent:
            raise AppError("twice")
        await send(message)

    send, exchange.send = exchange.send, once
    exchange.incoming.put_nowait({"type": "lifespan.startup"})
    await caller.call(app, exchange, kind="lifespan")
    assert raised == ["twice"]


async def test_an_exchange_starts_its_call_like_any_other(caller, exchange):
    """Together with `Application`, which is what exchanges know."""

    async def app(receive, send):
        await send(START)
        await send(body())

    async def call(scope, receive, send):
        await hop.call(caller.thread, scope, receive, send)

    caller._calls.append(app)
    application = Application(call, asyncio.get_running_loop())
    scope = {"type": "http", "headers": ()}
    await application.start(application.call(scope, exchange.receive, exchange.send))
    assert exchange.sent == [START, body()]
