"""--preload: workers are forked from a mold, and everything else is as without."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.descriptors import memory_files, open_files
from tests.support.fetch import fetch
from tests.support.load import (
    Http2,
    Http3,
    KeepAlive,
    SecureKeepAlive,
    WebSockets,
    assert_nothing_failed,
    load,
    summary,
)
from tests.support.server import PROJECT, Server, run_to_end, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_CHILD_SUBREAPER"),
]

EVERYBODY = (KeepAlive, SecureKeepAlive, Http2, Http3, WebSockets)
GOOD = "from tests.support.apps import app"
FRESH_CODE = {"PYTHONDONTWRITEBYTECODE": "1"}
"""A file that is written twice in a second must not be taken for what was compiled before."""


def mold_pids(server: Server) -> list[int]:
    return [int(m[1]) for m in re.finditer(r"mold pid=(\d+) gen=\d+: ready", server.log.text)]


def children(server: Server) -> set[int]:
    return {child.pid for child in psutil.Process(server.pid).children()}


async def wait_children(server: Server, pids: set[int]) -> None:
    async with asyncio.timeout(20):
        while children(server) != pids:
            await asyncio.sleep(0.02)


async def test_nothing_fails_in_reloads_an_upgrade_and_kills(tmp_path):
    module = tmp_path / "shop.py"
    module.write_text(GOOD)
    async with serve(
        "shop:app",
        workers=2,
        preload=True,
        tls=True,
        http3=True,
        insecure_bind="127.0.0.1:0",
        app_dir=tmp_path,
        environment=FRESH_CODE,
    ) as server:
        async with load(server, EVERYBODY) as clients:
            server.send_signal(signal.SIGHUP)
            await server.wait_line("reloaded: generation 2 serves")
            server.send_signal(signal.SIGUSR2)
            await server.wait_line("upgraded: asgiri .* goes on with the workers")
            await server.wait_line("reloaded: generation 3 serves")
            module.write_text("import nothing_of_that_name")
            server.send_signal(signal.SIGHUP)
            failed = await server.wait_line("reload failed, the old workers stay: .*")
            assert "failed (import)" in failed[0]
            module.write_text("import os; os._exit(7)")
            server.send_signal(signal.SIGHUP)
            await server.wait_line("stay: .* exited with status 7 before it was ready")
            newest = set(server.worker_pids)
        print(summary(clients))
        assert_nothing_failed(clients)
        server.allowed_in_log.append("nothing_of_that_name")
        await wait_children(server, {*newest, mold_pids(server)[-1]})


CODE = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%s"})
"""


async def test_a_reload_brings_new_code(tmp_path):
    module = tmp_path / "shop.py"
    module.write_text(CODE % "old")
    async with serve(
        "shop:app", workers=2, preload=True, app_dir=tmp_path, environment=FRESH_CODE
    ) as server:
        assert (await fetch(server)).body == b"old"
        module.write_text(CODE % "new")
        server.send_signal(signal.SIGHUP)
        await server.wait_line("reloaded: generation 2 serves")
        assert (await fetch(server)).body == b"new"


async def test_workers_come_back_with_and_without_their_mold():
    async with serve(workers=2, preload=True) as server:
        first = server.kill_worker(0)
        second = await server.wait_replaced(0, first)
        assert len(mold_pids(server)) == 1
        (mold,) = mold_pids(server)
        os.kill(mold, signal.SIGKILL)
        await server.wait_line(rf"mold pid={mold} gen=1: was killed by SIGKILL")
        server.kill_worker(0)
        third = await server.wait_replaced(0, second)
        assert mold_pids(server)[-1] != mold
        server.send_signal(signal.SIGTTIN)
        await server.wait_line(r"worker\[2\] pid=\d+.*: ready")
        pids = set(server.worker_pids)
        assert third in pids
        await wait_children(server, {*pids, mold_pids(server)[-1]})
        served = set()
        while served != pids:
            responses = await asyncio.gather(*(fetch(server, "/pid") for _ in range(8)))
            served |= {int(response.body) for response in responses}


async def test_recycling_loses_nothing():
    async with serve(workers=2, preload=True, max_requests=200) as server:
        async with load(server, [KeepAlive, KeepAlive], pause=0.001) as clients:
            for slot, pid in server.workers.items():
                await server.wait_replaced(slot, pid)
        assert_nothing_failed(clients)
        assert len(mold_pids(server)) == 1


async def test_nobody_outlives_a_killed_master():
    async with serve(workers=2, preload=True) as server:
        assert len(children(server)) == 3
        server.kill_master()
        await server.wait_workers_gone(6)


async def test_workers_share_nothing_that_belongs_to_one():
    async with serve(workers=3, preload=True, tls=True, http3=True) as server:
        memory = {}
        for pid in server.worker_pids:
            memory[pid] = memory_files(pid)
            assert len(memory[pid]) == 1
        assert len(set.union(*memory.values())) == 3
        (mold,) = mold_pids(server)
        targets = [file.target for file in open_files(mold)]
        assert sum(target.startswith("socket:") for target in targets) == 1, targets
        assert not any("memfd" in target for target in targets)


async def test_threads_and_loops_of_an_import_are_warned_of_in_one_line(tmp_path):
    (tmp_path / "shop.py").write_text(
        "import asyncio, threading\n"
        "threading.Thread(target=threading.Event().wait, name='refresher', daemon=True).start()\n"
        "loop = asyncio.new_event_loop()\n" + GOOD
    )
    async with serve("shop:app", workers=2, preload=True, app_dir=tmp_path) as server:
        await server.wait_line(
            r"warning .*mold pid=\d+ gen=1: importing the application has left "
            r"1 thread \(refresher\) and 1 event loop behind: .*--preload"
        )
        assert (await fetch(server)).status == 200
    assert "DeprecationWarning" not in server.log.text


async def test_orphans_of_workers_are_reaped(tmp_path):
    """They are left to the master, which is a subreaper."""
    (tmp_path / "shop.py").write_text(
        "import subprocess\n" + GOOD + "\n"
        "subprocess.run(['sh', '-c', '(sleep 0.2; exit 7) &'], check=True)\n"
    )
    async with serve("shop:app", workers=1, preload=True, app_dir=tmp_path) as server:
        await wait_children(server, {server.workers[0], mold_pids(server)[0]})


async def test_a_broken_first_generation_ends_the_server(tmp_path):
    (tmp_path / "shop.py").write_text("import nothing_of_that_name")
    status, text = await asyncio.to_thread(
        run_to_end, "shop:app", "--preload", "--workers", "3", "--app-dir", str(tmp_path)
    )
    assert status == 3
    assert text.count("the server does not start") == 1
    assert text.count("ModuleNotFoundError: No module named 'nothing_of_that_name'") == 2
    assert "exited with status" not in text


ELSEWHERE = """
import sys
from asgiri import cli
sys.platform = "darwin"
sys.exit(cli.main(["--preload", "--bind", "127.0.0.1:0", "tests.support.apps:app"]))
"""


def test_a_system_without_subreapers_refuses_it():
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=PROJECT, timeout=20, check=False, capture_output=True
    )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "asgiri: --preload: this system has no PR_SET_CHILD_SUBREAPER (Linux 3.4); leave it out"
    ]
