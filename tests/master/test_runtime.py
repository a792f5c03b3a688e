"""The whole master with real workers: what its wiring alone decides. The rest: tests/system."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support.certificates import certificates
from tests.support.server import APP, PATIENCE, PROJECT, ServerLog, session_members, wait_all_gone

pytestmark = pytest.mark.slow

ASGIRI = (sys.executable, "-m", "asgiri", APP)


class Running:
    """A master that was started in some unusual way."""

    def __init__(self, command: Sequence[str], **options) -> None:
        self.log = ServerLog()
        reading, writing = os.pipe()
        path = os.pathsep.join([str(PROJECT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
            **options,
        )
        os.close(writing)
        self.thread = self.log.follow(reading)

    def wait_listening(self) -> str:
        return self.log.wait_line(r"listening on (.*), \d+ workers?$")[1]

    def wait_port(self) -> int:
        """Of the one address, which is TCP."""
        return int(self.wait_listening().rpartition(":")[2].split()[0])

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(PATIENCE)
        assert wait_all_gone(session_members(self.process.pid), 5.0) == [], self.log.text
        return status

    def close(self) -> None:
        for pid in session_members(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.thread.join(PATIENCE)


@pytest.fixture
def start() -> Iterator[type[Running]]:
    running: list[Running] = []

    def start_one(command: Sequence[str], **options) -> Running:
        running.append(Running(command, **options))
        return running[-1]

    yield start_one
    for one in running:
        one.close()


REQUEST = b"GET /hello HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"


def ask(address: str | tuple[str, int]) -> bytes:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(REQUEST)
        return read_status(client)


def read_status(client: socket.socket) -> bytes:
    answer = b""
    while part := client.recv(65536):
        answer += part
    return answer.partition(b"\r\n")[0]


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_sockets_of_a_service_manager_are_served(start):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.set_inheritable(listener.fileno(), True)
        fd = listener.fileno()
        running = start([sys.executable, "-c", AS_SYSTEMD, str(fd), *ASGIRI], pass_fds=(fd,))
        address = listener.getsockname()
        assert running.wait_listening() == f"http://127.0.0.1:{address[1]} (http/1.1, h2)"
        assert ask(address) == b"HTTP/1.1 200 OK"
        environment = Path(f"/proc/{running.children()[0]}/environ").read_bytes()
        assert b"LISTEN_" not in environment
        assert running.stop() == 0


def test_an_open_descriptor_is_served(start):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        running = start([*ASGIRI, "--fd", str(fd)], pass_fds=(fd,))
        running.wait_listening()
        assert ask(listener.getsockname()) == b"HTTP/1.1 200 OK"
        assert running.stop() == 0


def test_pid_file_and_unix_socket_are_there_while_it_runs(start, tmp_path):
    path, pid_file = str(tmp_path / "a.sock"), tmp_path / "a.pid"
    options = ("--bind", f"unix:{path}", "--pid", str(pid_file), "--umask", "007")
    running = start([*ASGIRI, *options])
    assert running.wait_listening() == f"unix:{path} (http/1.1, h2)"
    assert pid_file.read_text() == f"{running.process.pid}\n"
    assert os.stat(path).st_mode & 0o777 == 0o660
    assert ask(path) == b"HTTP/1.1 200 OK"
    second = start([*ASGIRI, *options])
    assert second.wait() == 1
    assert "somebody listens there" in second.log.text
    assert running.stop() == 0
    assert list(tmp_path.iterdir()) == []


def nobody_may_run_python() -> bool:
    try:
        command = [sys.executable, "-c", "import aioquic"]
        return subprocess.run(command, user=65534, cwd="/", timeout=20).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(
    os.geteuid() != 0 or not nobody_may_run_python(),
    reason="takes root, and an interpreter that others may run",
)
def test_user_and_group_are_given_up_after_binding(start, tmp_path):
    tmp_path.chmod(0o755)
    path = str(tmp_path / "a.sock")
    running = start([*ASGIRI, "--bind", f"unix:{path}", "--user", "65534", "--group", "65534"])
    running.wait_listening()
    for pid in (running.process.pid, *running.children()):
        status = Path(f"/proc/{pid}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534\n" in status
        assert "Gid:\t65534\t65534\t65534\t65534\n" in status
    assert os.stat(path).st_uid == 65534
    assert ask(path) == b"HTTP/1.1 200 OK"
    assert running.stop() == 0


@pytest.mark.skipif(
    os.geteuid() != 0 or not nobody_may_run_python(),
    reason="takes root, and an interpreter that others may run",
)
def test_log_files_go_to_the_user_that_we_become(start):
    """In a folder where root alone makes files, as /var/log is."""
    # Not pytest's: nobody else may enter that.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        log, moved = Path(folder, "access.log"), Path(folder, "access.log.1")
        options = ("--bind", "127.0.0.1:0", "--user", "65534", "--group", "65534")
        running = start([*ASGIRI, *options, "--access-logfile", str(log)])
        address = "127.0.0.1", int(running.wait_listening().split(":")[2].split()[0])
        assert (log.stat().st_uid, log.stat().st_gid) == (65534, 65534)
        log.rename(moved)
        running.process.send_signal(signal.SIGUSR1)
        line = r"goes on in the old file: log file .*access\.log: Permission denied"
        running.log.wait_line(line)
        assert ask(address) == b"HTTP/1.1 200 OK"
        # As logrotate does with `create 0640 nobody`.
        log.touch(mode=0o640)
        os.chown(log, 65534, 65534)
        running.process.send_signal(signal.SIGUSR1)
        deadline = time.monotonic() + PATIENCE
        while not log.stat().st_size:
            assert ask(address) == b"HTTP/1.1 200 OK"
            assert time.monotonic() < deadline, running.log.text
        assert running.stop() == 0
        assert "GET /" in moved.read_text()


def test_a_reload_with_a_configuration_that_is_wrong_by_now_changes_nothing(start, tmp_path):
    files = certificates()
    certfile, keyfile = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(files.certfile, certfile)
    shutil.copy(files.keyfile, keyfile)
    tls = ("--certfile", str(certfile), "--keyfile", str(keyfile))
    running = start([*ASGIRI, "--bind", "127.0.0.1:0", *tls])
    running.wait_listening()
    workers = running.children()
    certfile.rename(tmp_path / "away.pem")
    running.process.send_signal(signal.SIGHUP)
    line = running.log.wait_line(r"reload refused, everything stays as it is: (.*)$")
    assert str(certfile) in line[1]
    assert running.children() == workers
    (tmp_path / "away.pem").rename(certfile)
    running.process.send_signal(signal.SIGHUP)
    running.log.wait_line("reloaded: generation 2 serves")
    assert set(running.children()).isdisjoint(workers) or len(running.children()) > 1
    assert running.stop() == 0


def test_signals_that_change_nothing_do_not_end_it(start):
    running = start([*ASGIRI, "--bind", "127.0.0.1:0"])
    running.wait_listening()
    running.process.send_signal(signal.SIGCHLD)
    running.process.send_signal(signal.SIGUSR1)
    assert running.stop() == 0


def test_only_its_command_can_exchange_the_program(start):
    code = """
import sys
from asgiri import logs
from asgiri.cli.sources import read_config
from asgiri.master import runtime
config = read_config(sys.argv[1:], {})
logs.configure(config.log, "master")
sys.exit(runtime.run(config))
"""
    running = start(
        [sys.executable, "-c", code, *ASGIRI[ASGIRI.index("asgiri") + 1 :], "--bind", "127.0.0.1:0"]
    )
    running.wait_listening()
    running.process.send_signal(signal.SIGUSR2)
    running.log.wait_line("upgrade refused: the server was not started by its command")
    assert running.stop() == 0


FAILING = """
import sys
from asgiri import cli
from asgiri.master import runtime
from asgiri.master.loop import EventLoop

class Failing(EventLoop):
    failures = int(sys.argv.pop())

    def __init__(self):
        super().__init__()
        self.call_later(0, self.fail)

    def fail(self):
        if Failing.failures:
            Failing.failures -= 1
            self.call_later(0, self.fail)
            raise ZeroDivisionError("a bug of ours")

runtime.EventLoop = Failing
sys.exit(cli.main())
"""


def test_a_bug_in_a_callback_is_logged_and_survived(start):
    code = textwrap.dedent(FAILING)
    running = start([sys.executable, "-c", code, APP, "--bind", "127.0.0.1:0", "5"])
    running.wait_listening()
    assert running.log.text.count("ZeroDivisionError: a bug of ours") == 5
    assert "error in the master; it goes on" in running.log.text
    assert running.stop() == 0


def test_a_bug_that_comes_again_and_again_ends_the_master_and_its_workers(start):
    code = textwrap.dedent(FAILING)
    running = start([sys.executable, "-c", code, APP, "--bind", "127.0.0.1:0", "1000000"])
    assert running.wait() == 1
    assert "too many errors in the master; it stops" in running.log.text
    assert running.log.text.count("ZeroDivisionError: a bug of ours") == 11


FEW_FILES = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *ASGIRI, "--bind", "127.0.0.1:0")


@pytest.fixture
def crowd() -> Iterator[Callable[[int], list[socket.socket]]]:
    """Clients of a port: more than a master and a worker of FEW_FILES can hold together."""
    clients: list[socket.socket] = []

    def connect(port: int) -> list[socket.socket]:
        while len(clients) < 150:
            clients.append(socket.create_connection(("127.0.0.1", port), PATIENCE))
        return clients

    yield connect
    for client in clients:
        client.close()


@pytest.mark.linux
def test_few_descriptors_slow_it_and_never_wedge_it(start, crowd):
    # The worker is full of clients that say nothing until this is over, and their lingering.
    running = start([*FEW_FILES, "--header-timeout", "2"])
    port = running.wait_port()
    clients = crowd(port)
    for client in clients[50:]:
        client.close()
    assert ask(("127.0.0.1", port)) == b"HTTP/1.1 200 OK"
    for client in clients:
        client.close()
    assert running.stop() == 0


@pytest.mark.linux
def test_few_descriptors_are_enough_to_replace_a_worker_and_lose_nobody(start, crowd):
    """A master whose files were all connections that wait for a worker could not start one."""
    running = start(FEW_FILES)
    port = running.wait_port()
    (worker,) = running.children()
    os.kill(worker, signal.SIGSTOP)
    clients = crowd(port)
    for client in clients:
        client.sendall(REQUEST)
    os.kill(worker, signal.SIGKILL)
    assert {read_status(client) for client in clients} == {b"HTTP/1.1 200 OK"}
    assert running.stop() == 0
    assert "too many open files" not in running.log.text.lower()
