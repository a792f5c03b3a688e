"""A worker process from its hello to its exit, with the test as its master."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time

import pytest

from asgiri.config import AppConfig, Config, HttpConfig
from asgiri.errors import ChannelClosedError
from asgiri.ipc.messages import (
    Drain,
    Drained,
    DumpStacks,
    Failed,
    Importing,
    ListenerInfo,
    Quit,
    Ready,
    ReloadCertificates,
    ReopenLogs,
    SetLogLevel,
    Shed,
)
from asgiri.ipc.messages import Warning as WarningMessage
from asgiri.ipc.scoreboard import AssignmentCell, Assignments, Cell, WorkerState
from asgiri.worker.process import MASTER_PATIENCE
from asgiri.worker.runtime import response_defaults
from tests.support.certificates import certificates
from tests.support.worker import make_config
from tests.support.worker_process import PATIENCE, spawn_worker

pytestmark = pytest.mark.slow

APP = "tests.worker.runtime_apps:"


async def ask(worker, target, *fields):
    async with await worker.connect() as client:
        client.get(target, *fields)
        return (await client.read_response())[2].decode()


# Boot


UDP = ListenerInfo(1, "udp", "127.0.0.1", 4433, "", tls=True)


@pytest.mark.parametrize(
    ("options", "listeners", "expected"),
    [
        ({}, (), None),
        ({}, (UDP,), b'h3=":4433"; ma=86400'),
        ({"alt_svc_max_age": 60.0}, (UDP,), b'h3=":4433"; ma=60'),
        ({"alt_svc": False}, (UDP,), None),
    ],
)
def test_http_3_is_announced_as_the_options_say(options, listeners, expected):
    config = Config(app=AppConfig(target="a:b"), http=HttpConfig(**options))
    assert dict(response_defaults(config, listeners).fields).get(b"alt-svc") == expected


async def test_worker_says_how_far_it_is_and_serves_what_it_is_given():
    async with spawn_worker() as worker:
        ready = await worker.wait(Ready)
        assert ready.pid == worker.pid
        assert [type(message) for message in worker.messages] == [Importing, Ready]
        assert worker.count(Cell.STATE) == WorkerState.READY
        assert worker.count(Cell.WORKER_ID) == 77
        assert worker.count(Cell.PID) == worker.pid
        assert worker.scoreboard.valid
        assert await ask(worker, "/hello") == "Hello, world!"
        assert worker.count(Cell.TCP_ADOPTED) == 1
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED) == 1)
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_HTTP1) == 1)


async def test_application_finds_its_surroundings():
    async with spawn_worker(APP + "surroundings") as worker:
        await worker.wait(Ready)
        facts = await ask(worker, "/")
        assert "ASGIRI_WORKER_SLOT=3 ASGIRI_WORKER_ID=77 ASGIRI_GENERATION=2" in facts
        assert f"title=asgiri: worker 3 gen 2 [{APP}surroundings]" in facts
        assert "loop_at_import=True running_at_import=False" in facts
        assert "frozen=True" in facts
        if sys.platform == "linux":
            with open(f"/proc/{worker.pid}/cmdline", "rb") as file:
                assert file.read().startswith(b"asgiri: worker 3 gen 2 [")


@pytest.mark.parametrize(("loop", "module"), [("asyncio", "asyncio"), ("auto", "uvloop")])
async def test_event_loop_is_the_one_that_was_asked_for(loop, module):
    async with spawn_worker(APP + "surroundings", app={"loop": loop}) as worker:
        await worker.wait(Ready)
        assert f"loop={module}" in await ask(worker, "/")


@pytest.mark.parametrize(
    ("target", "stage", "told"),
    [
        ("no_such_module:app", "import", "no module named 'no_such_module'"),
        (APP + "missing", "import", "has no attribute 'missing'"),
        ("tests.support.apps:not_callable", "import", "cannot be called"),
        ("tests.support.apps:failing_lifespan", "lifespan", "no database"),
    ],
)
async def test_application_that_cannot_be_used_is_told_in_one_line(target, stage, told):
    async with spawn_worker(target) as worker:
        failed = await worker.wait(Failed)
        assert (failed.stage, failed.traceback) == (stage, "")
        assert told in failed.summary
        assert await worker.wait_exit() == 3
        assert worker.count(Cell.STATE) == WorkerState.FAILED


@pytest.mark.parametrize(
    ("target", "options", "stage"),
    [
        ("tests.worker.broken_app:app", {}, "import"),
        ("tests.support.apps:raising_lifespan", {"lifespan": "on"}, "lifespan"),
    ],
)
async def test_error_inside_the_application_is_told_with_its_traceback(target, options, stage):
    async with spawn_worker(target, app=options) as worker:
        failed = await worker.wait(Failed)
        assert failed.stage == stage
        assert "Traceback (most recent call last)" in failed.traceback
        assert "asgiri/worker/boot.py" not in failed.traceback
        assert await worker.wait_exit() == 3


async def test_certificate_that_cannot_be_loaded_is_told(tmp_path):
    missing = (str(tmp_path / "missing"),)
    async with spawn_worker(secure=True, tls={"certfile": missing, "keyfile": missing}) as worker:
        failed = await worker.wait(Failed)
        assert failed.stage == "tls"
        assert await worker.wait_exit() == 1


async def test_configuration_that_makes_no_sense_is_told():
    async with spawn_worker(config={"app": {"no_such_option": 1}}) as worker:
        failed = await worker.wait(Failed)
        assert failed.stage == "config"
        assert "no_such_option" in failed.summary
        assert await worker.wait_exit() == 1


async def test_worker_whose_master_is_another_process_ends_at_once():
    async with spawn_worker(master_pid=1) as worker:
        assert await worker.wait_exit() == 0
        assert not worker.messages


# Serving


async def test_connections_come_in_batches():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        clients = worker.hand_over(64) + worker.hand_over(64)
        await worker.wait_until(lambda: worker.count(Cell.TCP_ADOPTED) == 128)
        for client in clients:
            client.close()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED) == 128)


@pytest.mark.linux
async def test_connections_that_the_system_cannot_hand_over_are_reported():
    command = ["sh", "-c", 'ulimit -n 48; exec "$0" "$@"']
    async with spawn_worker(command=command, app={"loop": "asyncio"}) as worker:
        await worker.wait(Ready)
        clients = worker.hand_over(64)
        warning = await worker.wait(WarningMessage)
        assert "connections were lost" in warning.text
        for client in clients:
            client.close()
        await worker.wait_until(
            lambda: worker.count(Cell.TCP_ADOPTED) == worker.count(Cell.TCP_CLOSED) == 64
        )
        # It has not lost its way: the next one is served.
        assert await ask(worker, "/hello") == "Hello, world!"


async def test_orders_of_the_operator_are_obeyed(tmp_path):
    log = tmp_path / "log"
    options = {"error_log_file": str(log), "level": "info"}
    async with spawn_worker(APP + "logs_debug", log=options) as worker:
        await worker.wait(Ready)
        worker.control.send(SetLogLevel("debug"))
        worker.segment.clear_stacks()
        worker.control.send(DumpStacks())
        await worker.wait_until(lambda: worker.segment.count_stacks() > 0)
        assert b"in run\n" in worker.segment.read_stacks()  # the worker's own task
        await ask(worker, "/before")
        log.rename(tmp_path / "old")
        worker.control.send(ReopenLogs())
        await worker.wait_until(log.exists)
        await ask(worker, "/after")
        assert "debug: /before" in (tmp_path / "old").read_text()
        assert "debug: /after" in log.read_text()


async def test_reloaded_certificates_are_used_and_bad_ones_reported(tmp_path):
    files = certificates()
    good = {"certfile": (str(files.certfile),), "keyfile": (str(files.keyfile),)}
    bad = {"certfile": (str(tmp_path / "x"),), "keyfile": (str(tmp_path / "x"),)}
    async with spawn_worker(secure=True, tls=good) as worker:
        await worker.wait(Ready)
        for section in (good, bad):
            worker.control.send(ReloadCertificates(make_config(tls=section).to_json()))
            context = files.client_context("http/1.1")
            async with await worker.connect(ssl=context, server_hostname="localhost") as client:
                client.get("/hello")
                assert (await client.read_response())[0] == 200
        assert "certificates not reloaded" in (await worker.wait(WarningMessage)).text


async def test_shed_connection_ends_with_its_next_response():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/hello")
            await client.read_response()
            worker.control.send(Shed(1))
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                client.get("/hello")
                _, fields, _ = await client.read_response()
                if fields.get("connection") == "close":
                    break
                await asyncio.sleep(0.01)
            assert await client.read_to_end() == b""


async def test_who_is_asked_to_come_again_and_cannot_yet_is_not_asked_instead_of_others():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as busy, await worker.connect() as other:
            busy.get("/sleep?milliseconds=60000")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 1)
            # Who has asked nothing yet is not asked to come again.
            other.get("/hello")
            await other.read_response()
            for _ in range(2):
                worker.control.send(Shed(1))
            fields = {}
            async with asyncio.timeout(PATIENCE):
                while fields.get("connection") != "close":
                    other.get("/hello")
                    _, fields, _ = await other.read_response()


# The end


async def test_idle_worker_drains_at_once(tmp_path):
    notes = tmp_path / "notes"
    async with spawn_worker(environment={"TEST_LIFESPAN_FILE": str(notes)}) as worker:
        await worker.wait(Ready)
        worker.control.send(Drain(30))
        await worker.wait(Drained)
        assert await worker.wait_exit() == 0
        assert worker.count(Cell.STATE) == WorkerState.DRAINED
        assert [line.split()[0] for line in notes.read_text().splitlines()] == [
            "startup",
            "shutdown",
        ]


async def test_drain_finishes_what_runs_and_what_is_on_its_way():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as running:
            running.get("/sleep?milliseconds=300")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            async with await worker.connect() as late:
                worker.control.send(Drain(30))
                await worker.wait_until(lambda: worker.count(Cell.STATE) == WorkerState.DRAINING)
                late.get("/hello")
                for client in (late, running):
                    status, fields, _ = await client.read_response()
                    assert (status, fields["connection"]) == (200, "close")
        assert await worker.wait_exit() == 0
        assert isinstance(worker.messages[-1], Drained)


async def test_connections_sent_before_the_drain_are_served_although_they_come_late():
    async with spawn_worker(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as first:
            first.get("/block")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            async with await worker.connect() as second:
                worker.control.send(Drain(30))
                second.get("/")
                assert (await second.read_response())[0] == 200
        assert await worker.wait_exit() == 0


async def test_drain_gives_away_what_has_said_nothing_although_it_comes_late():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        Assignments(worker.segment.assignments).set(AssignmentCell.HAND_BACK, 1)
        async with await worker.connect() as running:
            running.get("/sleep?milliseconds=300")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            worker.control.send(Drain(30))
            await worker.wait_until(lambda: worker.count(Cell.STATE) == WorkerState.DRAINING)
            (late,) = worker.hand_over(1)
            assert (await running.read_response())[0] == 200
        await worker.wait(Drained)
        ((listener, fd, _),) = worker.connections.receive_aged()
        assert listener == 0
        with socket.socket(fileno=fd) as back:
            late.send(b"next")
            assert back.recv(10) == b"next"
        late.close()


async def test_drain_that_takes_too_long_cancels_what_runs():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/sleep?milliseconds=60000")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            worker.control.send(Drain(0.2))
            assert (await client.read_response())[0] == 503
        assert await worker.wait_exit() == 0


async def test_quit_ends_a_drain_at_once():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/sleep?milliseconds=60000")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            worker.control.send(Drain(60))
            await worker.wait_until(lambda: worker.count(Cell.STATE) == WorkerState.DRAINING)
            began = time.monotonic()
            worker.control.send(Quit())
            assert await worker.wait_exit() == 0
            assert time.monotonic() - began < 3
        assert "exception" not in worker.log


async def test_quit_is_nothing_to_warn_of_while_nothing_is_open():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        worker.control.send(Quit())
        assert await worker.wait_exit() == 0
        assert worker.log == ""


@pytest.mark.parametrize("how", ["eof", "sigterm"])
async def test_worker_without_a_master_finishes_what_runs_and_ends(how):
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/sleep?milliseconds=300")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            began = time.monotonic()
            if how == "eof":
                worker.control.close()
            else:
                os.kill(worker.pid, signal.SIGTERM)
            assert (await client.read_response())[0] == 200
        with contextlib.suppress(ChannelClosedError, OSError):
            await worker.wait_exit()
        assert worker.process.wait(10) == 0
        assert time.monotonic() - began < 7


async def test_worker_without_a_master_has_seconds_not_minutes():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/sleep?milliseconds=60000")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            worker.control.send(Drain(60))
            await worker.wait_until(lambda: worker.count(Cell.STATE) == WorkerState.DRAINING)
            began = time.monotonic()
            worker.control.close()
            with contextlib.suppress(ChannelClosedError, OSError):
                await worker.wait_exit()
            assert worker.process.wait(10) == 0
            assert time.monotonic() - began < 6


async def test_sigterm_means_what_the_master_says_it_does():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get(f"/sleep?milliseconds={MASTER_PATIENCE * 1200}")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            os.kill(worker.pid, signal.SIGTERM)
            worker.control.send(Drain(60))
            assert (await client.read_response())[0] == 200
        assert await worker.wait_exit() == 0
        assert "the master is gone" not in worker.log


async def test_blocked_worker_is_stopped_hard():
    async with spawn_worker(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/block-for-ever")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            began = time.monotonic()
            os.kill(worker.pid, signal.SIGTERM)
            assert await worker.wait_exit() == -signal.SIGALRM
            assert time.monotonic() - began < 10


async def test_sigterm_while_importing_ends_at_once():
    async with spawn_worker("tests.worker.sleeping_app:app") as worker:
        await worker.wait(Importing)
        began = time.monotonic()
        os.kill(worker.pid, signal.SIGTERM)
        assert await worker.wait_exit() == 0
        assert time.monotonic() - began < 3


async def test_signals_meant_for_the_master_do_nothing():
    async with spawn_worker() as worker:
        await worker.wait(Ready)
        for name in ("SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTTIN", "SIGTTOU"):
            # One by one: six at once overflow the stack that faulthandler of Python <= 3.13 gives
            # to handlers.
            os.kill(worker.pid, getattr(signal, name))
            assert await ask(worker, "/hello") == "Hello, world!"


async def test_sigabrt_prints_the_stacks_of_all_threads():
    async with spawn_worker(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/block-for-ever")
            await worker.wait_until(lambda: "blocks" in worker.log)
            os.kill(worker.pid, signal.SIGABRT)
            assert await worker.wait_exit() == -signal.SIGABRT
        assert "runtime_apps.py" in worker.log
        assert "in block" in worker.log


async def test_thread_of_the_application_does_not_keep_the_process():
    async with spawn_worker(APP + "starts_a_thread") as worker:
        await worker.wait(Ready)
        await ask(worker, "/")
        worker.control.send(Drain(5))
        assert await worker.wait_exit() == 0


async def test_tasks_left_by_the_application_are_cancelled():
    async with spawn_worker(APP + "leaves_a_task") as worker:
        await worker.wait(Ready)
        await ask(worker, "/")
        worker.control.send(Drain(5))
        assert await worker.wait_exit() == 0
        assert "left task: cancelled" in worker.log


async def test_programs_of_the_application_get_the_usual_signals():
    async with spawn_worker(APP + "starts_a_program") as worker:
        await worker.wait(Ready)
        ignored, blocked = (await ask(worker, "/")).split()
        inherited = {signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM}
        for number in inherited:
            assert not int(ignored, 16) >> (number - 1) & 1, number
            assert not int(blocked, 16) >> (number - 1) & 1, number


async def test_socket_of_a_client_is_not_inherited_by_programs():
    async with spawn_worker(APP + "surroundings") as worker:
        await worker.wait(Ready)
        assert "inheritable=[]" in await ask(worker, "/")
