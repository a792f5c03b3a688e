"""Hooks and logging configurations of a running server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fetch import fetch
from tests.support.server import Server, run_to_end, serve

pytestmark = pytest.mark.slow

APP = "tests.support.apps:app"
CONF = """
import json, os
app = "tests.support.apps:app"
workers = 2
header = ["x-version: {version}"]

def say(server, name, **facts):
    text = json.dumps(dict(hook=name, process=os.getpid(), generation=server.generation, **facts))
    server.log.info("hook %s", text)

def when_ready(server):
    say(server, "when_ready", master=server.pid, addresses=server.addresses)

async def worker_ready(server, worker):
    say(server, "worker_ready", slot=worker.slot, pid=worker.pid, master=server.pid)

def worker_exit(server, worker):
    say(server, "worker_exit", slot=worker.slot, pid=worker.pid, status=worker.status)

def on_reload(server):
    say(server, "on_reload", failure=server.failure)
"""


async def wait_hook(server: Server, name: str, start: int = 0) -> dict[str, Any]:
    match = await server.wait_line(r'hook (\{"hook": "' + name + r'".*\})$', start)
    facts: dict[str, Any] = json.loads(match[1])
    return facts


async def test_hooks_are_called_where_they_can_hold_up_nobody(tmp_path: Path):
    conf = tmp_path / "conf.py"
    conf.write_text(CONF.format(version=1))
    async with serve(None, workers=2, config=conf, pid=tmp_path / "pid") as server:
        assert (await fetch(server)).header("x-version") == "1"
        ready = await wait_hook(server, "when_ready")
        assert ready["master"] == server.pid
        assert f"http://127.0.0.1:{server.port}" in ready["addresses"]
        attendant = psutil.Process(ready["process"])
        assert attendant.ppid() == server.pid
        assert "asgiri: attendant" in " ".join(attendant.cmdline())
        in_worker = await wait_hook(server, "worker_ready")
        assert in_worker["process"] == in_worker["pid"] == server.workers[in_worker["slot"]]
        assert in_worker["master"] == server.pid

        killed = server.kill_worker(1)
        gone = await wait_hook(server, "worker_exit")
        assert (gone["slot"], gone["pid"], gone["status"]) == (1, killed, -signal.SIGKILL)
        await server.wait_replaced(1, killed)

        start = server.log.end
        conf.write_text(CONF.format(version=2))
        server.send_signal(signal.SIGHUP)
        reloaded = await wait_hook(server, "on_reload", start)
        assert (reloaded["failure"], reloaded["generation"]) == ("", 2)
        assert reloaded["process"] != attendant.pid
        assert (await fetch(server)).header("x-version") == "2"

        start = server.log.end
        conf.write_text("workers = 1 / 0")
        server.send_signal(signal.SIGHUP)
        refused = await wait_hook(server, "on_reload", start)
        assert "conf.py:1: ZeroDivisionError" in refused["failure"]
        assert (await fetch(server)).header("x-version") == "2"


def test_hooks_of_a_start_that_fails_do_not_keep_it(tmp_path: Path):
    conf = tmp_path / "conf.py"
    conf.write_text(CONF.format(version=1))
    status, output = run_to_end("tests.support.apps:missing", "-c", str(conf), "-b", "127.0.0.1:0")
    assert status == 3
    assert '"hook": "worker_exit"' in output
    assert '"hook": "when_ready"' not in output


async def test_a_configuration_that_hangs_in_a_reload_holds_up_nobody(tmp_path: Path):
    conf = tmp_path / "conf.py"
    conf.write_text(CONF.format(version=1))
    async with serve(None, workers=2, config=conf) as server:
        fifo = str(tmp_path / "fifo")
        conf.write_text(f"import os\nos.mkfifo({fifo!r})\nopen({fifo!r})")
        server.send_signal(signal.SIGHUP)
        while not (tmp_path / "fifo").exists():
            assert (await fetch(server)).status == 200
            await asyncio.sleep(0.01)
        assert (await fetch(server)).status == 200
        conf.write_text(CONF.format(version=2))
        server.send_signal(signal.SIGHUP)  # asked again while the first one hangs
        os.close(os.open(tmp_path / "fifo", os.O_WRONLY))
        await server.wait_line("reloaded: generation 2 serves")
        assert (await fetch(server)).header("x-version") == "2"


async def test_the_attendant_that_is_killed_comes_back(tmp_path: Path):
    conf = tmp_path / "conf.py"
    conf.write_text(CONF.format(version=1))
    async with serve(None, workers=1, config=conf) as server:
        ready = await wait_hook(server, "when_ready")
        os.kill(ready["process"], signal.SIGKILL)
        await server.wait_line(r"attendant pid=\d+: ended by itself; another one comes in 5 s")
        assert (await fetch(server)).status == 200


def children(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.pid).children()


async def test_hooks_and_logs_survive_an_upgrade_without_zombies(tmp_path: Path):
    conf = tmp_path / "conf.py"
    conf.write_text(CONF.format(version=1))
    async with serve(None, workers=2, config=conf) as server:
        before = (await wait_hook(server, "when_ready"))["process"]
        start = server.log.end
        server.send_signal(signal.SIGUSR2)
        after = (await wait_hook(server, "when_ready", start))["process"]
        assert after != before
        await wait_hook(server, "on_reload", start)
        server.kill_worker(0)
        await wait_hook(server, "worker_exit", start)
        while any(child.status() == psutil.STATUS_ZOMBIE for child in children(server)):
            await asyncio.sleep(0.01)


LOGGING = """
version = 1
[formatters.f]
format = "<%(levelname)s %(process)d %(name)s %(message)s>"
[handlers.h]
class = "logging.FileHandler"
filename = "all.log"
formatter = "f"
[root]
handlers = ["h"]
level = "INFO"
"""


async def test_a_logging_configuration_holds_for_every_process(tmp_path: Path):
    (tmp_path / "logging.toml").write_text(LOGGING)
    log = tmp_path / "all.log"
    # All lines go to the file, so a hook says to this test that the server is ready.
    options = {"log_config": "logging.toml", "access_log": True, "config": tmp_path / "conf.py"}
    (tmp_path / "conf.py").write_text("""
def when_ready(server):
    import sys
    print("worker[0] pid=0: ready", file=sys.stderr)
    print("listening on", server.addresses, file=sys.stderr, flush=True)
""")
    async with serve(APP, workers=1, directory=tmp_path, **options) as server:
        assert (await fetch(server, "/hello?x=1")).status == 200
    lines = log.read_text().splitlines()
    assert all(line.startswith("<") and line.endswith(">") for line in lines)
    text = "\n".join(lines)
    assert f"INFO {server.pid} asgiri.master worker[0]" in text
    assert "asgiri.master listening on http://127.0.0.1:" in text
    assert 'asgiri.access 127.0.0.1 "GET /hello?x=1 HTTP/1.1" 200' in text
    assert "exited with status 0" in lines[-1]


def test_a_logging_configuration_that_is_wrong_exits_with_2_and_one_line(tmp_path: Path):
    (tmp_path / "logging.toml").write_text("version = 2")
    file = tmp_path / "logging.toml"
    status, output = run_to_end(APP, "--log-config", str(file))
    assert output == f"asgiri: --log-config {file}: Unsupported version: 2\n"
    assert status == 2
