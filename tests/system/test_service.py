"""Under a service manager: the test is the manager."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from dataclasses import replace

import pytest

from tests.support.client import ExchangeFailed, request
from tests.support.fetch import fetch
from tests.support.http1_client import Http1Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import PATIENCE, PROJECT, Server, ServerOptions, serve
from tests.support.stream import ByteStream

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]


async def test_the_manager_is_told_of_each_step(manager, tmp_path):
    (tmp_path / "shop.py").write_text("from tests.support.apps import app")
    environment = {**manager.environment, "WATCHDOG_USEC": "600000"}
    async with serve("shop:app", app_dir=tmp_path, environment=environment) as server:
        ready = await manager.wait_for("READY")
        assert ready["STATUS"] == "generation 1 serves, 2 workers"
        for _ in range(3):
            assert await manager.wait_for("WATCHDOG")
        for pid in server.worker_pids:
            with open(f"/proc/{pid}/environ", "rb") as file:
                assert b"NOTIFY_SOCKET" not in file.read()
        server.send_signal(signal.SIGHUP)
        reloading = await manager.wait_for("RELOADING")
        assert int(reloading["MONOTONIC_USEC"]) > 0
        ready = await manager.wait_for("READY")
        assert ready["STATUS"] == "generation 2 serves, 2 workers"
        (tmp_path / "shop.py").write_text("import nothing_of_that_name")
        server.allowed_in_log.append("nothing_of_that_name")
        server.send_signal(signal.SIGHUP)
        await manager.wait_for("RELOADING")
        ready = await manager.wait_for("READY")
        assert ready["STATUS"].startswith("reload failed, the old workers stay: worker[0] failed")
        (tmp_path / "shop.py").write_text("from tests.support.apps import app")
        server.send_signal(signal.SIGUSR2)
        await server.wait_line("upgraded: asgiri")
        await manager.wait_for("READY")  # the new program tells the same manager
        server.send_signal(signal.SIGTERM)
        stopping = await manager.wait_for("STOPPING")
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) >= 30_000_000
        assert await server.wait_exit() == 0


async def test_a_reload_that_follows_another_is_one_for_the_manager(manager):
    async with serve(workers=1, environment=manager.environment) as server:
        await manager.wait_for("READY")
        server.send_signal(signal.SIGHUP)
        while len(server.live_pids()) < 3:
            await asyncio.sleep(0.01)
        server.send_signal(signal.SIGHUP)
        assert (await manager.wait_for("READY"))["STATUS"] == "generation 3 serves, 1 worker"
        server.send_signal(signal.SIGTTIN)
        assert (await manager.wait_for("STATUS"))["STATUS"] == "generation 3 serves, 2 workers"


async def test_sockets_that_the_manager_keeps_outlive_a_crash(manager, tmp_path):
    """Who comes while no master lives waits, and is served by the next one on the same sockets."""
    unix = tmp_path / "socket"
    options = ServerOptions(
        workers=2,
        tls=True,
        options={"http3": True, "insecure_bind": f"unix:{unix}"},
        environment=manager.environment,
    )
    first = await asyncio.to_thread(Server.start, options)
    try:
        await manager.wait_for("READY")
        assert len(manager.kept) == 3
        addresses = first.addresses(), first.addresses("udp")
        quic = await Http3Connection.connect("127.0.0.1", first.port)
        assert (await request(quic, "GET", "/hello")).status == 200
        first.kill_master()
        await first.wait_exit()
        tls = first.client_context("http/1.1")
        waiting = asyncio.create_task(Http1Connection.connect("127.0.0.1", first.port, tls=tls))
        datagram = asyncio.create_task(request(quic, "GET", "/hello"))
    finally:
        first._destroy()  # as KillMode=mixed
    second = await asyncio.to_thread(
        lambda: Server.start(options, prefix=manager.activation(), pass_fds=manager.kept_fds)
    )
    try:
        assert (second.addresses(), second.addresses("udp")) == addresses
        connection = await waiting
        assert (await request(connection, "GET", "/hello")).status == 200
        await connection.close()
        with pytest.raises((ConnectionError, ExchangeFailed)):
            await datagram
        assert quic.stateless_reset
        await quic.close()
        async with await ByteStream.connect_unix(unix) as stream:
            assert (await request(Http1Connection(stream), "GET", "/hello")).status == 200
        await manager.wait_for("READY")
        assert len(manager.kept) == 3  # those of the second
    finally:
        await asyncio.to_thread(second.stop)
    assert not unix.exists()


async def test_kept_sockets_that_nobody_wants_any_more_are_closed(manager):
    start = ServerOptions(
        workers=1,
        tls=True,
        options={"bind": ("127.0.0.1:0", "127.0.0.2:0"), "http3": True},
        environment=manager.environment,
    )
    first = await asyncio.to_thread(Server.start, start)
    port = first.port
    await manager.wait_for("READY")
    assert len(manager.kept) == 4
    await asyncio.to_thread(first.stop)
    start = replace(start, tls=False, options={"bind": f"127.0.0.1:{port}"})
    second = await asyncio.to_thread(
        lambda: Server.start(start, prefix=manager.activation(), pass_fds=manager.kept_fds)
    )
    try:
        assert "sockets of an earlier configuration, closed: 3" in second.log.text
        assert second.addresses() == [("127.0.0.1", port)]
        assert second.addresses("udp") == []
        await manager.wait_for("READY")
        assert len(manager.kept) == 1
        assert (await fetch(second)).status == 200
    finally:
        await asyncio.to_thread(second.stop)


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is missing"
)
async def test_systemd_passes_the_sockets():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=web"]
    command += ServerOptions(workers=1, options={"bind": None}).command()
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        env=ServerOptions().full_environment(),
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        await asyncio.to_thread(wait_text, process.stderr, b"Listening on")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            assert b"Hello, world!" in await reader.read()
        writer.close()
    finally:
        process.terminate()
        process.communicate()


def wait_text(file, text: bytes) -> None:
    seen = b""
    while text not in seen:
        part = os.read(file.fileno(), 4096)
        assert part, seen
        seen += part


async def test_as_the_first_process_of_a_container(tmp_path):
    """Orphans are reaped, SIGTERM is honoured, children that die are replaced."""
    unshare = shutil.which("unshare")
    probe = unshare and subprocess.run([unshare, "-rpf", "--mount-proc", "true"], check=False)
    if probe is None or probe.returncode:
        pytest.skip("no PID namespaces here")
    (tmp_path / "orphans.py").write_text(
        "import asyncio, subprocess, sys\n"
        "from tests.support.apps import app as inner, respond\n"
        "async def app(scope, receive, send):\n"
        "    if scope.get('path') == '/orphan':\n"
        "        code = 'import os, time\\nif not os.fork(): time.sleep(0.2)'\n"
        "        await asyncio.to_thread(subprocess.run, [sys.executable, '-c', code])\n"
        "        await respond(send, b'done')\n"
        "    elif scope.get('path') == '/zombies':\n"
        "        states = subprocess.run(['ps', '-eo', 'stat='], capture_output=True).stdout\n"
        "        await respond(send, b'%d' % states.count(b'Z'))\n"
        "    else:\n"
        "        await inner(scope, receive, send)\n"
    )
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        port = probe_socket.getsockname()[1]
    options = ServerOptions(
        app="orphans:app",
        workers=2,
        options={"app_dir": tmp_path, "bind": f"127.0.0.1:{port}"},
    )
    process = subprocess.Popen(
        [unshare, "-rpf", "--mount-proc", "--kill-child", *options.command()],
        cwd=PROJECT,
        env=options.full_environment(),
        stderr=subprocess.PIPE,
    )
    try:
        await asyncio.to_thread(wait_text, process.stderr, b"listening on")
        for _ in range(5):
            assert await ask(port, "/orphan") == b"done"
        await wait_no_zombies(port)
        [first] = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, check=True
        ).stdout.split()
        os.kill(int(first), signal.SIGUSR2)  # its check is a child like others
        await asyncio.to_thread(wait_text, process.stderr, b"reloaded: generation 2")
        await wait_no_zombies(port)
        os.kill(int(first), signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


async def wait_no_zombies(port: int) -> None:
    """One that has just ended is one for a moment."""
    async with asyncio.timeout(PATIENCE):
        while await ask(port, "/zombies") != b"0":
            await asyncio.sleep(0.1)


async def ask(port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
    async with asyncio.timeout(PATIENCE):
        response = await reader.read()
    writer.close()
    return response.partition(b"\r\n\r\n")[2]


async def test_few_descriptors_slow_it_down_but_never_wedge_it():
    """64 open files, and 150 clients that hold their connections."""
    command = [shutil.which("prlimit") or pytest.skip("no prlimit"), "--nofile=64:64"]
    options = ServerOptions(workers=1)

    server = Server([*command, *options.command()], options)
    try:
        await asyncio.to_thread(server._wait_workers, 1)
        clients = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(150)]
        for _, writer in clients:
            writer.write(b"GET /hello HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*(reader.read() for reader, _ in clients))
        for _, writer in clients:
            writer.close()
        assert sum(b"Hello" in answer for answer in answers) == 150
        assert (await fetch(server)).status == 200
        await asyncio.to_thread(server.stop)
    finally:
        server._destroy()
