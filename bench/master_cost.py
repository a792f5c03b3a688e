"""What does the master spend on one QUIC datagram, and on one TCP connection?

Per datagram: short-header datagrams of 1,200 bytes with connection IDs that lead to a live worker
are sent in bursts to a real server; the processor time of the master alone is divided by how many
it took. Beside it the same from a process that does nothing but recvfrom. Per connection: wrk with
`Connection: close`, master alone. Master and load generator have a processor each; the worker
shares the load generator's, and is fast at what it does not know.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

from lib.cpu import cpu_nanoseconds, process_tree, split_processors
from lib.load import wrk
from lib.report import Row, print_table
from lib.servers import APP, PROJECT, certificate, find_program, free_port, running

sys.path.insert(0, str(PROJECT))  # the interpreter may be the peers'
from asgiri.ipc.connection_id import (
    CONNECTION_ID_LENGTH,
    ConnectionIdCodec,
    ConnectionIdKind,
    ConnectionIdMint,
)
from asgiri.ipc.tokens import QuicSecrets

BURST = 64
SIZE = 1200
PAUSE = 0.0004
"""Between bursts, so that the socket buffer never overflows."""


def learn_worker(port: int, codec: ConnectionIdCodec) -> int:
    """Ask for a Retry: its source connection ID names a worker."""
    initial = struct.pack("!BIB8sB", 0xC0, 1, 8, secrets.token_bytes(8), 0) + b"\0\x44\x9e"
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        asking.connect(("127.0.0.1", port))
        asking.send(initial.ljust(SIZE, b"\0"))
        retry = asking.recv(2048)
    start = 6 + retry[5] + 1
    opened = codec.open_untrusted(retry[start : start + CONNECTION_ID_LENGTH])
    if opened is None:
        raise SystemExit("the server's connection IDs cannot be read")
    return opened[1]


def blast(port: int, datagram: bytes, count: int) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sending:
        sending.connect(("127.0.0.1", port))
        for _ in range(count // BURST):
            for _ in range(BURST):
                sending.send(datagram)
            time.sleep(PAUSE)


def drops(port: int) -> int:
    """Datagrams that the kernel threw away because the socket's buffer was full."""
    for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].split(":")[1], 16) == port:
            return int(fields[-1])
    return 0


def server_command(port: int, certfile: str, keyfile: str, secret: str) -> list[str]:
    return [
        *(sys.executable, "-m", "asgiri", APP, "--bind", f"127.0.0.1:{port}", "--workers", "1"),
        *("--certfile", certfile, "--keyfile", keyfile, "--http3", "--quic-retry", "always"),
        *("--quic-secret-file", secret, "--no-access-log", "--log-level", "error"),
    ]


def separate(master: int, processor: int, other: int) -> None:
    for pid in process_tree(master):
        os.sched_setaffinity(pid, {processor if pid == master else other})


def master_per_datagram(certfile: str, keyfile: str, secret: str, count: int) -> float:
    other, own = split_processors()
    keys = QuicSecrets.derive(Path(secret).read_bytes())
    codec = ConnectionIdCodec(keys.connection_id_key, server_id=keys.server_id)
    port = free_port()
    with running(server_command(port, certfile, keyfile, secret), port, own) as process:
        worker_id = learn_worker(port, codec)
        mint = ConnectionIdMint(codec, worker_id, random=os.urandom)
        datagram = b"\x40" + mint.mint(ConnectionIdKind.CONNECTION)
        datagram += secrets.token_bytes(SIZE - len(datagram))
        separate(process.pid, own, other)
        blast(port, datagram, BURST * 20)
        before, lost = cpu_nanoseconds([process.pid]), drops(port)
        blast(port, datagram, count)
        time.sleep(0.1)
        spent = cpu_nanoseconds([process.pid]) - before
        return spent / (count - (drops(port) - lost)) / 1000


def recvfrom_per_datagram(count: int) -> float:
    """The floor: a Python process that receives and forgets."""
    _, own = split_processors()
    receiving = socket.socket(type=socket.SOCK_DGRAM)
    receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    receiving.bind(("127.0.0.1", 0))
    port = receiving.getsockname()[1]
    child = os.fork()
    if not child:
        os.sched_setaffinity(0, {own})
        receive = receiving.recvfrom
        while True:
            receive(2048)
    receiving.close()
    datagram = secrets.token_bytes(SIZE)
    try:
        blast(port, datagram, BURST * 20)
        before, lost = cpu_nanoseconds([child]), drops(port)
        blast(port, datagram, count)
        time.sleep(0.1)
        spent = cpu_nanoseconds([child]) - before
        return spent / (count - (drops(port) - lost)) / 1000
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def master_per_connection(program: str, seconds: float) -> float:
    other, own = split_processors()
    port = free_port()
    command = [sys.executable, "-m", "asgiri", APP, "--bind", f"127.0.0.1:{port}"]
    command += ["--workers", "1", "--no-access-log", "--log-level", "error"]
    close = {"connections": 32, "options": ("-H", "Connection: close")}
    with running(command, port, own) as process:
        separate(process.pid, own, other)
        url = f"http://127.0.0.1:{port}/"
        wrk(program, url, other, seconds=1, **close)
        before = cpu_nanoseconds([process.pid])
        outcome = wrk(program, url, other, seconds=seconds, **close)
        return (cpu_nanoseconds([process.pid]) - before) / outcome.requests / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wrk", default="wrk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--datagrams", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=2)
    options = parser.parse_args()
    datagram, floor, connection = (
        Row("master, per datagram"),
        Row("bare recvfrom"),
        Row("master, per connection"),
    )
    if find_program(options.wrk) is None:
        connection.note = "wrk is missing"
    with certificate() as (certfile, keyfile), tempfile.NamedTemporaryFile() as secret:
        secret.write(secrets.token_hex(32).encode())
        secret.flush()
        for _ in range(options.rounds):
            floor.values.append(recvfrom_per_datagram(options.datagrams))
            datagram.values.append(
                master_per_datagram(certfile, keyfile, secret.name, options.datagrams)
            )
            if not connection.note:
                connection.values.append(master_per_connection(options.wrk, options.seconds))
    print_table(
        "The master's processor time", "us", [floor, datagram, connection], compare=floor.name
    )


if __name__ == "__main__":
    main()
