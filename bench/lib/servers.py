"""The servers under comparison, and how to start one on a processor of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
APPS = Path(__file__).parent
APP = "apps:app"
START_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server shall listen, and with what certificate."""

    port: int
    certfile: str = ""
    keyfile: str = ""
    app: str = APP
    behind: int = 0
    """Port of the server proper when a front server listens on `port`."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def names(self) -> dict[str, object]:
        """What is filled into commands and configurations."""
        fields = ("address", "port", "behind", "certfile", "keyfile", "app")
        return {name: getattr(self, name) for name in fields}


@dataclass(frozen=True, slots=True)
class Contender:
    """A server that a script compares."""

    name: str
    program: str
    """Looked up in --peers and PATH; "" for the interpreter that runs the script."""
    arguments: Sequence[str]
    """`{address}`, `{port}`, `{behind}`, `{certfile}`, `{keyfile}` and `{app}` are filled in."""
    front: Sequence[str] = ()
    """Command of a front server; the path of its configuration is added."""
    front_configuration: str = ""
    """What that file says, with the same names filled in, and `{directory}`."""
    project: Path = PROJECT
    """Where `asgiri` is imported from."""

    def command(self, place: Place, peers: Path | None) -> list[str] | None:
        """None when the program is missing."""
        program = find_program(self.program, peers) if self.program else sys.executable
        if program is None:
            return None
        return [program, *(argument.format_map(place.names) for argument in self.arguments)]


def find_program(name: str, peers: Path | None = None) -> str | None:
    directories = [] if peers is None else [str(peers / "bin"), str(peers)]
    return shutil.which(name, path=os.pathsep.join([*directories, os.environ.get("PATH", "")]))


def asgiri(*options: str, name: str = "asgiri", log: bool = False) -> Contender:
    arguments = ("-m", "asgiri", "{app}", "--bind", "{address}", "--workers", "1")
    quiet = () if log else ("--no-access-log",)
    return Contender(name, "", (*arguments, *quiet, *options))


def free_port() -> int:
    """A port that is free for TCP and UDP now."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return int(port)


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, processor: int | None, *, project: Path = PROJECT
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on one processor, or on all for None, from when it answers a request."""
    processors = os.sched_getaffinity(0) if processor is None else {processor}
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{APPS}"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=APPS,
            env=environment,
            preexec_fn=lambda: os.sched_setaffinity(0, processors),
        )
        try:
            if not wait_answering(process, port):
                log.seek(0)
                text = log.read().decode(errors="replace")
                raise SystemExit(f"did not start: {' '.join(command)}\n{text}")
            yield process
        finally:
            stop(process)


def wait_answering(process: subprocess.Popen[bytes], port: int) -> bool:
    """A port that accepts says little: the kernel queues connections while workers start."""
    insecure = ssl.create_default_context()
    insecure.check_hostname = False
    insecure.verify_mode = ssl.CERT_NONE
    deadline = time.monotonic() + START_PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        for connection in (
            http.client.HTTPConnection("127.0.0.1", port, timeout=START_PATIENCE),
            http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=insecure),
        ):
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                connection.getresponse().read()
                return True
            connection.close()
        time.sleep(0.02)
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def certificate() -> Iterator[tuple[str, str]]:
    """A self-signed certificate for localhost: its file and its key's."""
    with tempfile.TemporaryDirectory() as directory:
        certfile, keyfile = f"{directory}/cert.pem", f"{directory}/key.pem"
        command = [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-out", certfile),
            *("-keyout", keyfile, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        yield certfile, keyfile
