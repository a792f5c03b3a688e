"""Where the real server is told from: files, variables, folders, and anew at each reload."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fetch import fetch
from tests.support.server import (
    PATIENCE,
    Server,
    ServerLog,
    ServerOptions,
    run_to_end,
    serve,
    session_members,
    wait_all_gone,
)

pytestmark = pytest.mark.slow

APP = """
import json, os
from tests.support.apps import app as inner

MARK = {mark!r}

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/facts":
        facts = {{"cwd": os.getcwd(), "mark": MARK, "environment": dict(os.environ)}}
        body = json.dumps(facts).encode()
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": body}})
    else:
        await inner(scope, receive, send)
"""


def write_app(folder: Path, mark: str = "") -> None:
    folder.mkdir(exist_ok=True)
    (folder / "facts.py").write_text(APP.format(mark=mark))


async def facts(server: Server) -> dict[str, Any]:
    response = await fetch(server, "/facts")
    found: dict[str, Any] = json.loads(response.body)
    return found


@contextlib.asynccontextmanager
async def serve_facts(folder: Path, **options: Any) -> AsyncIterator[Server]:
    """What `options` do not say, the files in the folder do."""
    async with serve(options.pop("app", None), workers=1, directory=folder, **options) as server:
        yield server


async def reloaded(server: Server, number: int = signal.SIGHUP) -> None:
    start = server.log.end
    server.send_signal(number)
    await server.wait_line(r"reloaded: generation \d+ serves", start)


async def test_a_file_says_what_to_serve_and_is_read_again_on_sighup(tmp_path: Path):
    write_app(tmp_path)
    file = tmp_path / "asgiri.toml"
    file.write_text('app = "facts:app"\nheader = "x-version: 1"\n')
    async with serve_facts(tmp_path) as server:
        assert (await fetch(server)).header("x-version") == "1"
        file.write_text('app = "facts:app"\nheader = "x-version: 2"\n')
        await reloaded(server)
        assert (await fetch(server)).header("x-version") == "2"
        file.write_text('app = "facts:app"\nheader = 3\nworkers = 0')
        start = server.log.end
        server.send_signal(signal.SIGHUP)
        await server.wait_line(
            "reload refused.*asgiri.toml:2: header = 3: must be .*; asgiri.toml:3: workers", start
        )
        assert (await fetch(server)).header("x-version") == "2"


async def test_variables_of_a_file_reach_the_application_and_change_with_a_reload(tmp_path: Path):
    write_app(tmp_path)
    (tmp_path / "prod.env").write_text("DATABASE_URL=one\nHOME=elsewhere\nASGIRI_WORKERS=9")
    options = {"env_file": "prod.env", "app": "facts:app", "environment": {"HOME": "/"}}
    async with serve_facts(tmp_path, **options) as server:
        environment = (await facts(server))["environment"]
        assert (environment["DATABASE_URL"], environment["HOME"]) == ("one", "/")
        assert "DATABASE_URL" not in psutil.Process(server.pid).environ()
        (tmp_path / "prod.env").write_text("DATABASE_URL=two")
        await reloaded(server)
        assert (await facts(server))["environment"]["DATABASE_URL"] == "two"


async def test_chdir_follows_a_link_anew_at_each_reload_and_upgrade(tmp_path: Path):
    for release in ("1", "2", "3"):
        write_app(tmp_path / release, release)
    link = tmp_path / "current"
    link.symlink_to("1")

    def deploy(release: str) -> None:
        (tmp_path / "next").symlink_to(release)
        (tmp_path / "next").rename(link)

    # A path from the folder in which the command is given, also when that was left.
    options = {"chdir": "current", "app": "facts:app", "pid": "pid"}
    async with serve_facts(tmp_path, **options) as server:
        assert (await facts(server))["mark"] == "1"
        assert (tmp_path / "1" / "pid").exists()
        deploy("2")
        server.kill_worker(0)
        await server.wait_replaced(0, server.workers[0])
        found = await facts(server)
        assert (found["mark"], found["cwd"]) == ("1", str(tmp_path / "1"))
        await reloaded(server)
        found = await facts(server)
        assert (found["mark"], found["cwd"]) == ("2", str(tmp_path / "2"))
        deploy("3")
        await reloaded(server, signal.SIGUSR2)
        assert (await facts(server))["mark"] == "3"


def test_a_folder_that_cannot_be_entered_exits_with_1():
    status, output = run_to_end("tests.support.apps:app", "--chdir", "/nowhere")
    assert output == (
        "asgiri: --chdir /nowhere: No such file or directory; name a folder that can be entered\n"
    )
    assert status == 1


# In the background


@pytest.fixture(autouse=True)
def _no_daemon_is_left(tmp_path: Path) -> Iterator[None]:
    """A test that fails must not leave a server that nobody waits for."""
    yield
    with contextlib.suppress(FileNotFoundError):
        for pid in session_members(int((tmp_path / "pid").read_text())):
            os.kill(pid, signal.SIGKILL)


def run_daemon(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What the command says and exits with, once the server is ready or has failed."""
    command = [sys.executable, "-m", "asgiri", "-D", "--pid", "pid", *words]
    return subprocess.run(
        command,
        cwd=folder,
        env=ServerOptions().full_environment(),
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )


def stop_daemon(folder: Path) -> None:
    pid = int((folder / "pid").read_text())
    members = session_members(pid)
    os.kill(pid, signal.SIGTERM)
    assert wait_all_gone(members, PATIENCE) == []
    assert not (folder / "pid").exists()


def test_a_daemon_is_ready_when_its_command_exits_and_has_no_terminal(tmp_path: Path):
    socket = tmp_path / "socket"
    words = ["tests.support.apps:app", "--bind", f"unix:{socket}", "--error-logfile", "error.log"]
    result = run_daemon(tmp_path, *words)
    try:
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert ": ready\n" in (tmp_path / "error.log").read_text()
        master = psutil.Process(int((tmp_path / "pid").read_text()))
        assert (os.getsid(master.pid), master.terminal()) == (master.pid, None)
        for process in (master, *master.children()):
            streams = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in range(3)}
            assert streams == {"/dev/null"}
        # A second one is not started by mistake.
        again = run_daemon(tmp_path, words[0], "--bind", "127.0.0.1:0")
        assert again.returncode == 1
        assert f"process {master.pid} runs already" in again.stderr
    finally:
        stop_daemon(tmp_path)


def test_a_daemon_that_does_not_start_says_why_and_exits_as_the_server_would(tmp_path: Path):
    bind = ["--bind", "127.0.0.1:0"]
    result = run_daemon(tmp_path, "tests.support.apps:missing", *bind)
    assert result.returncode == 3
    assert "has no attribute 'missing'" in result.stderr
    assert "--daemon: the log ends with the start; give --error-logfile" in result.stderr
    result = run_daemon(tmp_path, "tests.support.apps:missing", *bind, "--error-logfile", "x")
    assert (result.returncode, result.stderr) == (3, "asgiri: not started; see also x\n")
    assert run_daemon(tmp_path, "tests.support.apps:app", "--workers", "0").returncode == 2
    assert not (tmp_path / "pid").exists()


def test_a_daemon_can_be_upgraded(tmp_path: Path):
    os.mkfifo(tmp_path / "log")
    reading = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    bind = ["--bind", f"unix:{tmp_path / 'socket'}", "--error-logfile", "log"]
    assert run_daemon(tmp_path, "tests.support.apps:app", *bind).returncode == 0
    try:
        os.set_blocking(reading, True)
        log = ServerLog()
        log.follow(reading)
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, signal.SIGUSR2)
        log.wait_line("reloaded: generation 2 serves")
        assert int((tmp_path / "pid").read_text()) == pid
    finally:
        stop_daemon(tmp_path)
