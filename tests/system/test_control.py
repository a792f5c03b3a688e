"""`asgiri ctl` and a running server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from asgiri.ctl import ControlClient, RefusedError, locate
from asgiri.errors import StartError
from asgiri.ipc.control import Reload, Request, Scale, SetLevel, Stacks, Stop
from asgiri.status import ProcessTable, build_status, read_board
from tests.support.fetch import fetch
from tests.support.server import PATIENCE, PROJECT, Server, run_to_end, serve

pytestmark = pytest.mark.slow

ANYWHERE = "127.0.0.1:0"


class Operator:
    """Somebody with a shell on the machine."""

    def __init__(self, server: Server, path: Path) -> None:
        self.server = server
        self.path = path

    async def ask(self, request: Request) -> str:
        def exchange() -> str:
            with contextlib.closing(ControlClient(self.path)) as client:
                return client.ask(request)

        return await asyncio.to_thread(exchange)

    async def run(self, *words: str, path: bool = True, **environment: str) -> tuple[int, str, str]:
        """Exit status, output and errors of `asgiri ctl`."""
        where = ["--control-socket", str(self.path)] if path else []
        command = [sys.executable, "-m", "asgiri", "ctl", *where, *words]
        done = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env={**os.environ, **environment},
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr


@contextlib.asynccontextmanager
async def operated(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[Server, Operator]]:
    path = tmp_path / "control.sock"
    async with serve(control_socket=path, **{"workers": 1, **options}) as server:
        yield server, Operator(server, path)


async def test_reload_waits_for_the_generation_that_was_asked_for(tmp_path: Path):
    async with operated(tmp_path) as (server, operator):
        first, second = await asyncio.gather(operator.ask(Reload()), operator.ask(Reload()))
        assert {first, second} == {"generation 2 serves", "generation 3 serves"}
        assert (await fetch(server)).status == 200


async def test_reload_says_why_it_failed(tmp_path: Path):
    app = tmp_path / "breaking.py"
    app.write_text("from tests.support.apps import app")
    async with operated(tmp_path, app="breaking:app", app_dir=tmp_path) as (server, operator):
        app.write_text("import nothing_of_that_name")
        server.allowed_in_log.append("nothing_of_that_name")
        status, output, errors = await operator.run("reload")
        assert (status, output) == (1, "")
        assert errors.startswith("asgiri: ctl reload: reload failed, the old workers stay: ")
        assert "No module named 'nothing_of_that_name'" in errors
        assert (await fetch(server)).status == 200


async def test_stop_waits_until_the_server_is_gone(tmp_path: Path):
    async with operated(tmp_path) as (server, operator):
        answer = asyncio.create_task(fetch(server, "/sleep?milliseconds=1000"))
        status, output, _ = await operator.run("stop")
        assert (status, output) == (0, "the server has stopped\n")
        assert await server.wait_exit() == 0
        assert (await answer).status == 200
        assert not operator.path.exists()
        status, _, errors = await operator.run("status")
        assert status == 1
        assert errors == (
            f"asgiri: control socket {operator.path}: No such file or directory; is the server"
            " running, and does it belong to you?\n"
        )


async def test_stop_at_once_finishes_nothing(tmp_path: Path):
    async with operated(tmp_path) as (server, operator):
        client = asyncio.create_task(fetch(server, "/sleep?milliseconds=60000"))
        await server.wait_line("listening")
        await operator.ask(Stop(at_once=True))
        assert await server.wait_exit() == 0
        (outcome,) = await asyncio.gather(client, return_exceptions=True)
        assert isinstance(outcome, Exception) or outcome.status >= 500


async def test_workers_come_and_go(tmp_path: Path):
    async with operated(tmp_path) as (server, operator):
        assert await operator.ask(Scale(2)) == "2 workers until the next reload"
        await server.wait_line(r"worker\[1\] pid=\d+ gen=1: ready")
        assert await operator.ask(Scale(1)) == "1 worker until the next reload"
        await server.wait_line(r"worker\[1\] pid=\d+ gen=1: exited with status 0")
        for count in (0, -1, 1025):
            with pytest.raises(RefusedError, match="must be between 1 and 1024"):
                await operator.ask(Scale(count))


async def test_stacks_show_where_a_worker_computes(tmp_path: Path):
    async with operated(tmp_path, workers=2) as (server, operator):
        blocked = asyncio.create_task(fetch(server, "/block?milliseconds=1500"))
        texts = []
        while not any("in block\n" in text for text in texts):
            texts = [await operator.ask(Stacks(slot)) for slot in (0, 1)]
        computing, waiting = sorted(texts, key=lambda text: "in block\n" not in text)
        assert "apps.py" in computing
        # The other one's loop turns, so it tells its tasks as well.
        assert "in block\n" not in waiting
        assert "Tasks: " in waiting
        assert f"worker[{int('worker[1]' in waiting)}] pid=" in waiting
        assert (await blocked).status == 200
        with pytest.raises(RefusedError, match="no worker 7; there are 0, 1"):
            await operator.ask(Stacks(7))


SLOW = """
import pathlib, time
while not pathlib.Path(__file__).with_name("go").exists():
    time.sleep(0.01)
from tests.support.apps import app
"""


async def test_stacks_of_a_worker_that_still_imports(tmp_path: Path):
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "go").touch()
    async with operated(tmp_path, app="slow:app", app_dir=tmp_path) as (server, operator):
        (tmp_path / "go").unlink()
        start = server.log.end
        server.kill_worker(0)
        while True:
            with contextlib.suppress(RefusedError):  # between two workers there is none
                if "slow.py" in await operator.ask(Stacks(0)):
                    break
        (tmp_path / "go").touch()
        await server.wait_line(r"worker\[0\] pid=\d+ gen=1: ready", start)


async def test_the_log_level_of_all_processes_is_changed_until_a_reload(tmp_path: Path):
    async with operated(tmp_path, admin=ANYWHERE) as (server, operator):
        assert await operator.ask(SetLevel("debug")) == "log level debug until the next reload"
        start = server.log.end
        pid = server.kill_worker(0)
        await server.wait_line(r"debug .*worker\[0\] pid=\d+ gen=1: started", start)
        await server.wait_replaced(0, pid)
        await operator.ask(Reload())
        start = server.log.end
        pid = server.kill_worker(0)
        await server.wait_replaced(0, pid)
        assert " debug " not in server.log.text[start:]
        with pytest.raises(RefusedError, match="must be one of critical, error, warning, info"):
            await operator.ask(SetLevel("loud"))


async def test_the_status_is_the_same_for_people_and_machines(tmp_path: Path):
    async with operated(tmp_path, workers=2, name="shop") as (server, operator):
        await fetch(server)
        status, output, _ = await operator.run("status")
        assert status == 0
        lines = output.splitlines()
        assert lines[0].startswith("asgiri ")
        assert f": shop, process {server.pid}, up " in lines[0]
        assert psutil.Process(server.pid).cmdline()[0].startswith("asgiri: master [shop]")
        assert lines[1] == f"listening on http://127.0.0.1:{server.port} (http/1.1, h2)"
        assert lines[2] == "generation 1, 2 of 2 ready"
        assert [line.split()[:4] for line in lines[5:]] == [
            [str(slot), str(pid), "1", "ready"] for slot, pid in sorted(server.workers.items())
        ]
        status, output, _ = await operator.run("status", "--json")
        assert orjson.loads(output)["counts"]["ready"] == 2


async def test_watchers_see_the_server_live_and_when_it_ends(tmp_path: Path):
    seen = threading.Event()

    def watch(client: ControlClient) -> None:
        deadline = time.monotonic() + PATIENCE
        with client.watch() as reader:
            while not seen.is_set():
                assert time.monotonic() < deadline
                snapshot = read_board(reader)
                assert snapshot is not None
                status = build_status(snapshot, ProcessTable())
                if status["totals"]["requests"]["1"] == 3:
                    seen.set()
        client.wait_end()

    async with operated(tmp_path) as (server, operator):
        client = await asyncio.to_thread(ControlClient, operator.path)
        watching = asyncio.create_task(asyncio.to_thread(watch, client))
        for _ in range(3):
            await fetch(server)
        assert await asyncio.to_thread(seen.wait, PATIENCE)
        assert client.is_open
        server.send_signal(signal.SIGTERM)
        await watching
        assert server.process.poll() == 0
        client.close()


async def test_the_socket_stays_when_the_program_is_exchanged(tmp_path: Path):
    async with operated(tmp_path) as (server, operator):
        start = server.log.end
        server.send_signal(signal.SIGUSR2)
        await server.wait_line("reloaded: generation 2 serves", start)
        assert await operator.ask(Reload()) == "generation 3 serves"
    assert not operator.path.exists()


async def test_a_server_is_found_without_being_named():
    async with serve(workers=1) as server:
        path = await asyncio.to_thread(locate, "", server.pid, os.environ)
        assert path.name == f"asgiri-{server.pid}.sock"
        operator = Operator(server, path)
        status, output, _ = await operator.run("--pid", str(server.pid), "scale", "1", path=False)
        assert (status, output) == (0, "1 worker until the next reload\n")
        environment = {"ASGIRI_CONTROL_SOCKET": str(path)}
        status, _, _ = await operator.run("status", path=False, **environment)
        assert status == 0
        with pytest.raises(StartError, match="no server of process 1 was found"):
            locate("", 1, os.environ)
    assert not path.exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["scale", "many"], "ctl scale: invalid value for 'N': 'many' is not a valid integer"),
        (["scale"], "ctl scale: missing argument 'N'"),
        (["relaod"], "ctl: no such command 'relaod'"),
        (["reload", "now"], "ctl reload: got unexpected extra argument (now)"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(words, line):
    status, log = run_to_end("ctl", *words)
    assert status == 2
    assert log.startswith(f"asgiri: {line}")
    assert log.count("\n") == 1


def test_ctl_alone_tells_its_commands():
    status, log = run_to_end("ctl")
    assert status == 2
    for command in ("reload", "stop", "scale", "status", "stacks", "log-level"):
        assert f"\n  {command} " in log
