"""A file to a socket: nothing is copied, nothing is left behind."""

import asyncio
import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from asgiri.errors import AppError, ClientDisconnected
from asgiri.worker.transport.sendfile import FileSending, SendTimeoutError
from tests.support.apps import pattern

ON_BOTH_EVENT_LOOPS = True
WITHOUT_TRANSPORTS_TOO = True
pytestmark = pytest.mark.linux

SIZE = 8 << 20


@pytest.fixture(scope="module")
def threads():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pattern(SIZE))
    with open(path, "rb") as opened:
        yield opened


@pytest.fixture
def sockets():
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def sending(ours, file, threads, *, patience=10.0):
    loop = asyncio.get_running_loop()
    return FileSending(ours.fileno(), file.fileno(), loop=loop, threads=threads, patience=patience)


def open_files():
    return len(os.listdir("/proc/self/fd"))


async def wait_until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def read(theirs, size):
    received = bytearray()
    while len(received) < size:
        received += await asyncio.get_running_loop().sock_recv(theirs, size - len(received))
    return bytes(received)


@pytest.mark.parametrize(("offset", "count"), [(0, SIZE), (7, 1000), (SIZE - 5, 5), (0, 0)])
async def test_range_of_a_file_arrives(sockets, file, threads, offset, count):
    ours, theirs = sockets
    before = open_files()
    task = asyncio.create_task(sending(ours, file, threads).run(offset, count))
    assert await read(theirs, count) == pattern(SIZE)[offset : offset + count]
    await task
    assert open_files() == before
    assert file.tell() == 0


async def test_own_descriptors_may_be_closed_meanwhile(sockets, file, threads):
    ours, theirs = sockets
    task = asyncio.create_task(sending(ours, file, threads).run(0, SIZE))
    await asyncio.sleep(0)
    ours.close()
    file.close()
    assert await read(theirs, SIZE) == pattern(SIZE)
    await task


async def test_peer_that_goes_is_told_of(sockets, file, threads):
    ours, theirs = sockets
    task = asyncio.create_task(sending(ours, file, threads).run(0, SIZE))
    await read(theirs, 1000)
    theirs.close()
    with pytest.raises(ClientDisconnected):
        await task


async def test_peer_that_takes_nothing_is_not_waited_for(sockets, file, threads):
    ours, _ = sockets
    with pytest.raises(SendTimeoutError):
        await sending(ours, file, threads, patience=0.05).run(0, SIZE)


async def test_sending_can_be_stopped(sockets, file, threads):
    ours, theirs = sockets
    before = open_files()
    made = sending(ours, file, threads)
    task = asyncio.create_task(made.run(0, SIZE))
    await read(theirs, 1000)
    made.stop()
    with pytest.raises(ClientDisconnected):
        await task
    made.stop()
    assert open_files() == before


async def test_sending_is_stopped_although_the_socket_was_full(sockets, file, threads, monkeypatch):
    """Between a thread's answer and the wait that it asks for."""
    made = sending(sockets[0], file, threads)

    def full(*_):
        made.stop()
        raise BlockingIOError

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(ClientDisconnected):
        await made.run(0, SIZE)


async def test_sending_that_was_stopped_before_it_began(sockets, file, threads):
    made = sending(sockets[0], file, threads)
    made.stop()
    with pytest.raises(ClientDisconnected):
        await made.run(0, SIZE)


async def test_file_that_has_become_shorter_is_an_error_of_the_application(sockets, file, threads):
    ours, theirs = sockets
    task = asyncio.create_task(sending(ours, file, threads).run(0, SIZE + 10))
    await read(theirs, SIZE)
    with pytest.raises(AppError, match="10 bytes before its end"):
        await task


async def test_file_that_cannot_be_read_is_an_error_of_the_application(sockets, threads, tmp_path):
    with open(tmp_path / "unreadable", "wb") as file, pytest.raises(AppError, match="cannot be"):
        await sending(sockets[0], file, threads).run(0, 10)


async def test_cancelled_sending_leaves_nothing(sockets, file, threads):
    before = open_files()
    task = asyncio.create_task(sending(sockets[0], file, threads).run(0, SIZE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_until(lambda: open_files() == before)


async def test_thread_at_work_keeps_its_descriptors(sockets, file, threads, monkeypatch):
    """The application is cancelled, and its file closed, while a disk lets a thread wait."""
    before = open_files()
    go, began = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    system_sendfile = os.sendfile
    seen = []

    def slow(out, source, offset, count):
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result(10)
        seen.append(os.pread(source, 16, 0))
        return system_sendfile(out, source, offset, count)

    monkeypatch.setattr(os, "sendfile", slow)
    task = asyncio.create_task(sending(sockets[0], file, threads).run(0, SIZE))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    file.close()
    go.set()
    await wait_until(lambda: open_files() == before - 1)
    assert seen == [pattern(16)]


async def test_no_descriptor_is_lost_when_there_are_no_more(sockets, file, threads, monkeypatch):
    before = open_files()
    duplicate = os.dup

    def second_fails(fd):
        if fd == file.fileno():
            raise OSError(errno.EMFILE, "Too many open files")
        return duplicate(fd)

    monkeypatch.setattr(os, "dup", second_fails)
    with pytest.raises(OSError, match="Too many open files"):
        sending(sockets[0], file, threads)
    assert open_files() == before
