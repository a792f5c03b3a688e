"""What does the master's decision about one datagram, or one connection, cost, without I/O?

Steering is called with datagrams of each kind that a master meets; dispatching with ready workers
that take what they are given. Against it stands a call of nothing, which is in every row.
"""

import os
import random
import time
from collections.abc import Callable

from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdMint
from asgiri.ipc.scoreboard import PAGE_SIZE, Cell, Scoreboard
from asgiri.ipc.tokens import QuicSecrets, ResetTokens, RetryTokens
from asgiri.master.admission import RetryMode
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.steering import Steering

COUNT = 100_000
DIFFERENT = 1000
CLIENT = ("192.0.2.1", 40_000)
NOW = 1000.0
SECRETS = QuicSecrets.derive(os.urandom(32))
CODEC = ConnectionIdCodec(SECRETS.connection_id_key, server_id=SECRETS.server_id)


class Load:
    half_open = 0
    ring_fill = 0.0


def new_dispatcher(workers: int) -> tuple[Dispatcher, list[Scoreboard]]:
    dispatcher = Dispatcher(BalancePolicy.LEAST_LOADED, random=random.random, hash_key=b"key")
    pages = []
    for number in range(1, workers + 1):
        page = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
        page.set(Cell.BEAT_NS, int(NOW * 1e9))
        dispatcher.add_worker(number, number, page)
        pages.append(page)
    dispatcher.set_ready(range(1, workers + 1))
    return dispatcher, pages


def new_steering(retry: RetryMode) -> Steering[object]:
    dispatcher, _ = new_dispatcher(2)
    steering: Steering[object] = Steering(
        codec=CODEC,
        mint=ConnectionIdMint(CODEC, 0, random=os.urandom),
        reset_tokens=ResetTokens(SECRETS.reset_key),
        retry_tokens=RetryTokens(SECRETS.token_key, random=os.urandom),
        chooser=dispatcher,
        random=os.urandom,
        retry=retry,
    )
    for worker_id in (1, 2):
        steering.add_worker(worker_id, object(), Load())
    steering.set_ready([1, 2])
    return steering


def nanoseconds(
    call: Callable[[bytes, tuple[str, int], float], object], what: list[bytes]
) -> float:
    best = float("inf")
    for _ in range(7):
        begin = time.process_time()
        for _ in range(COUNT // len(what)):
            for datagram in what:
                call(datagram, CLIENT, NOW)
        best = min(best, time.process_time() - begin)
    return best / COUNT * 1e9


def short(mint: ConnectionIdMint) -> list[bytes]:
    return [b"\x40" + mint.mint() + bytes(1182) for _ in range(DIFFERENT)]


def long(first: int, version: bytes, destinations: list[bytes]) -> list[bytes]:
    return [
        bytes((first,)) + version + bytes((len(cid),)) + cid + b"\x06client\x00" + bytes(1200)
        for cid in destinations
    ]


def show_steering() -> None:
    auto, always = new_steering(RetryMode.AUTO), new_steering(RetryMode.ALWAYS)
    alive = ConnectionIdMint(CODEC, 1, random=os.urandom)
    dead = ConnectionIdMint(CODEC, 77, random=os.urandom)
    minted = [alive.mint() for _ in range(DIFFERENT)]
    random_ids = [os.urandom(8) for _ in range(DIFFERENT)]
    v1 = b"\x00\x00\x00\x01"
    rows = [
        ("a call of nothing", lambda *_: None, [b""]),
        ("short header, its worker lives", auto.steer_untrusted, short(alive)),
        ("short header, forged", auto.steer_untrusted, [b"\x40" + os.urandom(1199)] * DIFFERENT),
        ("short header, its worker died", auto.steer_untrusted, short(dead)),
        ("long header, connection ID is ours", auto.steer_untrusted, long(0xE0, v1, minted)),
        ("Initial of a connection begun", auto.steer_untrusted, long(0xC0, v1, random_ids[:1])),
        ("Initial answered by Retry", always.steer_untrusted, long(0xC0, v1, random_ids)),
        ("unknown version", auto.steer_untrusted, long(0xC0, b"\xff\x00\x00\x1d", random_ids)),
    ]
    print(f"{'datagram':<40} {'ns':>6}")
    for name, call, datagrams in rows:
        print(f"{name:<40} {nanoseconds(call, datagrams):>6.0f}")


def show_dispatching() -> None:
    print(f"\n{'workers':<10} {'choose and assign, ns':>22} {'read their pages, us':>22}")
    for count in (2, 4, 8, 16, 32):
        dispatcher, pages = new_dispatcher(count)
        choosing = reading = float("inf")
        for _ in range(7):
            begin = time.process_time()
            for _ in range(COUNT // 64):
                for _ in range(64):
                    worker_id = dispatcher.choose_tcp(NOW)
                    assert worker_id is not None
                    total = dispatcher.assigned_tcp(worker_id)
                    pages[worker_id - 1].set(Cell.TCP_ADOPTED, total)
                dispatcher.observe(NOW)
            choosing = min(choosing, time.process_time() - begin)
            begin = time.process_time()
            for _ in range(COUNT // 64):
                dispatcher.observe(NOW)
            reading = min(reading, time.process_time() - begin)
        choice = (choosing - reading) / (COUNT // 64 * 64) * 1e9
        print(f"{count:<10} {choice:>22.0f} {reading / (COUNT // 64) * 1e6:>22.1f}")


if __name__ == "__main__":
    show_steering()
    show_dispatching()
