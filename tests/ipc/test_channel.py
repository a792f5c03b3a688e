"""The channels: messages whole and in order, descriptors owned exactly once, the end noticed."""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asgiri.errors import ChannelClosedError, FdsLostError, LocalProtocolError
from asgiri.ipc.channel import MAX_FDS, ConnectionChannel, ControlChannel
from asgiri.ipc.messages import MAX_FRAME_SIZE, Drain, Failed, Quit, Ready
from tests.support.memory import no_fd_leaks, open_fds

ROOT = Path(__file__).parents[2]


def without_seqpacket(monkeypatch) -> None:
    """Refuse SOCK_SEQPACKET as macOS does, so that the pair is made of datagram sockets."""
    real = socket.socketpair

    def socketpair(family, kind):
        if kind == socket.SOCK_SEQPACKET:
            raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
        return real(family, kind)

    monkeypatch.setattr(socket, "socketpair", socketpair)


@pytest.fixture(params=["seqpacket", "dgram"])
def kind(request, monkeypatch):
    if request.param == "dgram":
        without_seqpacket(monkeypatch)
    return request.param


@pytest.fixture
def control(kind):
    with no_fd_leaks():
        ours, theirs = ControlChannel.pair()
        yield ours, theirs
        ours.close()
        theirs.close()


@pytest.fixture
def connections(kind):
    with no_fd_leaks():
        ours, theirs = ConnectionChannel.pair()
        yield ours, theirs
        ours.close()
        theirs.close()


@contextmanager
def pipes(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Write ends, which can be told apart by what their read ends receive."""
    ends = [os.pipe() for _ in range(count)]
    reads, writes = [read for read, _ in ends], [write for _, write in ends]
    yield reads, writes
    for fd in (*reads, *writes):
        os.close(fd)


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


def close_all(fds) -> None:
    for fd in fds:
        os.close(fd)


@contextmanager
def room_for(count: int) -> Iterator[None]:
    """Let this process open `count` more files."""
    before = open_fds()
    free = [fd for fd in range(max(before)) if fd not in before]
    spare = [os.dup(0) for _ in free]  # no gaps below the limit
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        close_all(spare)


# Control messages


def test_messages_arrive_whole_and_in_order_both_ways(control):
    ours, theirs = control
    assert theirs.receive() is None
    for message in (Drain(1.5), Quit()):
        assert ours.send(message)
    assert theirs.send(Ready(7))
    assert [theirs.receive(), theirs.receive(), theirs.receive()] == [
        (Drain(1.5), []),
        (Quit(), []),
        None,
    ]
    assert ours.receive() == (Ready(7), [])


def test_the_largest_message_passes(control):
    ours, theirs = control
    failed = Failed("import", "boom", "x" * (MAX_FRAME_SIZE * 2))
    assert theirs.send(failed)
    received = ours.receive()
    assert received is not None
    message, _ = received
    assert isinstance(message, Failed)
    assert len(message.traceback) > MAX_FRAME_SIZE // 3


def test_a_message_carries_descriptors_that_are_not_inherited(control):
    ours, theirs = control
    with pipes(3) as (_, writes):
        assert ours.send(Quit(), writes)
        received = theirs.receive()
        assert received is not None
        message, fds = received
        assert message == Quit()
        assert all(map(same_file, writes, fds))
        assert not any(map(os.get_inheritable, fds))
        close_all(fds)


def test_where_the_kernel_cannot_close_on_exec_we_do(control, monkeypatch):
    monkeypatch.setattr("asgiri.ipc.channel._CLOSE_ON_EXEC", 0)
    monkeypatch.setattr("asgiri.ipc.channel._RECEIVE_FLAGS", socket.MSG_DONTWAIT)
    ours, theirs = control
    assert ours.send(Quit(), [0])
    received = theirs.receive()
    assert received is not None
    assert not os.get_inheritable(received[1][0])
    close_all(received[1])


def test_a_full_channel_refuses_and_takes_again_once_read(control):
    ours, theirs = control
    sent = 0
    while ours.send(Drain(float(sent))):
        sent += 1
    assert sent > 8
    received = [theirs.receive() for _ in range(sent)]
    assert received == [(Drain(float(number)), []) for number in range(sent)]
    assert theirs.receive() is None
    assert ours.send(Quit())


@pytest.mark.parametrize("frame", [b"?", b"R[]", b"\xff" * 100, b"R" + b"x" * MAX_FRAME_SIZE])
def test_rubbish_is_counted_and_the_channel_goes_on(control, frame):
    ours, theirs = control
    with socket.socket(fileno=os.dup(theirs.fileno())) as raw, pipes(1) as (_, writes):
        socket.send_fds(raw, [frame], writes)
        raw.send(frame)
    assert theirs.send(Ready(1))
    before = open_fds()
    assert [ours.receive(), ours.receive()] == [(None, []), (None, [])]
    assert open_fds() == before
    assert ours.refused == 2
    assert ours.receive() == (Ready(1), [])


def test_more_descriptors_than_a_message_takes_are_our_bug(control):
    with pytest.raises(LocalProtocolError, match="65 descriptors"):
        control[0].send(Quit(), [0] * (MAX_FDS + 1))


def test_a_descriptor_that_is_closed_is_our_bug_and_not_a_full_channel(control):
    read, write = os.pipe()
    close_all([read, write])
    with pytest.raises(OSError) as caught:
        control[0].send(Quit(), [read])
    assert caught.value.errno == errno.EBADF


def test_using_a_closed_channel_is_our_bug(control):
    control[0].close()
    assert control[0].fileno() == -1
    with pytest.raises(OSError) as caught:
        control[0].receive()
    assert caught.value.errno == errno.EBADF


def test_an_end_can_be_handed_over_as_a_descriptor(control):
    ours, theirs = control
    adopted = ControlChannel.adopt(os.dup(theirs.fileno()))
    assert adopted.signals_eof == theirs.signals_eof
    theirs.close()
    assert ours.send(Quit())
    assert adopted.receive() == (Quit(), [])
    adopted.close()


# The end


def test_the_end_is_readable_after_the_last_message():
    ours, theirs = ControlChannel.pair()
    assert ours.signals_eof
    theirs.send(Ready(1))
    theirs.close()
    assert ours.receive() == (Ready(1), [])
    assert select.select([ours], [], [], 0)[0]
    for _ in range(2):
        with pytest.raises(ChannelClosedError):
            ours.receive()
    with pytest.raises(ChannelClosedError):
        ours.send(Quit())
    ours.close()


def test_an_end_with_unread_messages_is_noticed():
    ours, theirs = ControlChannel.pair()
    ours.send(Quit())
    theirs.close()
    for _ in range(2):
        with pytest.raises(ChannelClosedError):
            ours.receive()
    ours.close()


def test_without_seqpacket_only_sending_tells_the_end(monkeypatch):
    without_seqpacket(monkeypatch)
    ours, theirs = ControlChannel.pair()
    assert not ours.signals_eof
    theirs.close()
    assert not select.select([ours], [], [], 0)[0]
    with pytest.raises(ChannelClosedError):
        ours.send(Quit())
    ours.close()


def test_another_failure_of_socketpair_is_not_hidden(monkeypatch):
    def socketpair(family, kind):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", socketpair)
    with pytest.raises(OSError) as caught:
        ControlChannel.pair()
    assert caught.value.errno == errno.EMFILE


# Connections


@pytest.mark.parametrize("count", [1, 2, MAX_FDS])
def test_connections_arrive_with_their_listeners(connections, count):
    ours, theirs = connections
    assert theirs.receive() == []
    with pipes(count) as (_, writes):
        listeners = bytes(range(255, 255 - count, -1))
        assert ours.send(listeners, writes) == count
        received = theirs.receive()
        assert bytes(listener for listener, _ in received) == listeners
        fds = [fd for _, fd in received]
        assert all(map(same_file, writes, fds))
        assert not any(map(os.get_inheritable, fds))
        close_all(fds)
    assert theirs.receive() == []


def test_connections_can_be_handed_back(connections):
    ours, theirs = connections
    assert theirs.send(b"\3", [0]) == 1
    ((listener, fd),) = ours.receive()
    assert (listener, same_file(fd, 0)) == (3, True)
    os.close(fd)


def test_what_is_handed_back_says_how_long_it_was_idle(connections):
    ours, theirs = connections
    assert theirs.send(b"\3\4", [0, 0], b"\x80\xff") == 2
    received = ours.receive_aged()
    assert [(listener, age) for listener, _, age in received] == [(3, 128), (4, 255)]
    close_all(fd for _, fd, _ in received)
    assert theirs.send(b"\5", [0]) == 1
    ((listener, fd, age),) = ours.receive_aged()
    assert (listener, age) == (5, 0)
    os.close(fd)
    with pytest.raises(LocalProtocolError):
        ours.send(b"\1", [0], b"\1\2")


def test_nothing_to_send_sends_nothing(connections):
    ours, theirs = connections
    assert ours.send(b"", []) == 0
    assert theirs.receive() == []  # an empty message would look like the end


def test_a_full_channel_sends_none_of_them(connections):
    ours, theirs = connections
    sent = 0
    while count := ours.send(bytes(2), [0, 0]):
        sent += count
    assert sent >= 20
    received = 0
    while pairs := theirs.receive():
        received += len(pairs)
        close_all(fd for _, fd in pairs)
    assert received == sent
    assert ours.send(bytes(2), [0, 0]) == 2
    close_all(fd for _, fd in theirs.receive())


@pytest.mark.linux
def test_too_many_descriptors_under_way_count_as_a_full_channel():
    ours, theirs = ConnectionChannel.pair()
    before = open_fds()
    # Root may exceed the limit, so a process without that right tries.
    script = (
        "import os, resource, sys; from asgiri.ipc.channel import ConnectionChannel\n"
        "channel = ConnectionChannel.adopt(int(sys.argv[1]))\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "sent = [channel.send(bytes(32), [0] * 32) for _ in range(4)]\n"
        "print(sent)\n"
    )
    command = [sys.executable, "-c", script, str(ours.fileno())]
    result = subprocess.run(
        command, pass_fds=[ours.fileno()], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    sent = json.loads(result.stdout)
    assert (sent[0], sent[-1]) == (32, 0)
    recovered = theirs.recover()
    assert len(recovered) == sum(sent)
    close_all(fd for _, fd in recovered)
    assert open_fds() == before
    ours.close()
    theirs.close()


def test_listeners_and_descriptors_must_match(connections):
    with pytest.raises(LocalProtocolError, match="2 listeners for 1 descriptors"):
        connections[0].send(bytes(2), [0])
    with pytest.raises(LocalProtocolError, match="65 descriptors"):
        connections[0].send(bytes(65), [0] * 65)


@pytest.mark.parametrize("channel", [ControlChannel, ConnectionChannel])
def test_closing_what_came_with_rubbish_waits_for_nobody(channel):
    ours, theirs = channel.pair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        carried, _ = listener.accept()
    carried.setblocking(False)
    while select.select([], [carried], [], 0)[1]:
        carried.send(bytes(1 << 16))  # nobody reads it
    carried.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
        socket.send_fds(raw, [b"rubbish"], [carried.fileno()])
    carried.close()
    ours.receive()  # for an hour, otherwise
    assert ours.refused == 1
    for owner in (ours, theirs, peer):
        owner.close()


@pytest.mark.parametrize(
    ("frame", "fds"), [(b"x", []), (b"xxx", [0]), (b"x" * 65, [0]), (b"x", [0, 0])]
)
def test_rubbish_among_connections_is_counted_and_closed(connections, frame, fds):
    ours, theirs = connections
    with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
        socket.send_fds(raw, [frame], fds)
    theirs.send(b"\1", [0])
    before = open_fds()
    assert ours.receive() == []
    assert (ours.refused, open_fds()) == (1, before)
    ((listener, fd),) = ours.receive()
    assert listener == 1
    os.close(fd)


@pytest.mark.linux
def test_other_ancillary_data_is_no_descriptor(connections):
    ours, theirs = connections
    with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.send(b"\1", [0])
        ((listener, fd),) = theirs.receive()
        assert (listener, same_file(fd, 0)) == (1, True)
        os.close(fd)


@pytest.mark.linux
def test_more_descriptors_than_there_is_room_for_are_closed_and_reported(connections):
    ours, theirs = connections
    with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
        socket.send_fds(raw, [bytes(64)], [0] * (MAX_FDS + 1))
    before = open_fds()
    with pytest.raises(FdsLostError):
        ours.receive()
    assert open_fds() == before


@pytest.mark.linux
@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_process_out_of_descriptors_loses_and_leaks_none(connections, room):
    ours, theirs = connections
    assert ours.send(bytes(3), [0, 0, 0]) == 3
    assert ours.send(b"\7", [0]) == 1
    before = open_fds()
    with room_for(room), pytest.raises(FdsLostError) as lost:
        theirs.receive()
    assert len(lost.value.frame) == 3
    assert open_fds() == before
    ((listener, fd),) = theirs.receive()
    assert listener == 7
    os.close(fd)


# Recovery


def test_what_was_not_read_is_recovered_once_and_in_order(connections):
    ours, theirs = connections
    with pipes(5) as (_, writes):
        ours.send(b"\0\1", writes[:2])
        ours.send(b"\2", writes[2:3])
        taken = theirs.receive()
        ours.send(b"\3\4", writes[3:])
        recovered = theirs.recover()
        assert [listener for listener, _ in taken] == [0, 1]
        assert [listener for listener, _ in recovered] == [2, 3, 4]
        for listener, fd in (*taken, *recovered):
            assert same_file(fd, writes[listener])
            os.close(fd)
        assert theirs.recover() == []


def test_recovery_goes_past_rubbish_and_ends_with_the_channel(connections):
    ours, theirs = connections
    with socket.socket(fileno=os.dup(ours.fileno())) as raw:
        raw.send(b"rubbish")
    ours.send(b"\1", [0])
    if ours.signals_eof:
        ours.close()
    ((listener, fd),) = theirs.recover()
    assert (listener, theirs.refused) == (1, 1)
    os.close(fd)


@pytest.mark.linux
def test_recovery_leaves_what_this_process_cannot_hold(connections):
    ours, theirs = connections
    assert not theirs.has_message
    ours.send(b"\1", [0])
    ours.send(bytes(MAX_FDS), [0] * MAX_FDS)
    before = open_fds()
    with room_for(0):
        assert theirs.recover() == []
    with room_for(MAX_FDS):
        ((listener, fd),) = theirs.recover()
    assert listener == 1
    assert theirs.has_message
    os.close(fd)
    with room_for(MAX_FDS):
        recovered = theirs.recover()
        close_all(fd for _, fd in recovered)
    assert len(recovered) == MAX_FDS
    assert not theirs.has_message
    assert (open_fds(), theirs.refused) == (before, 0)


TAKE_ONE = """
import select, signal, sys
from asgiri.ipc.channel import ConnectionChannel
channel = ConnectionChannel.adopt(int(sys.argv[1]))
select.select([channel], [], [])
(listener, fd), = channel.receive()
print(listener, flush=True)
signal.pause()
"""


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_connections_of_a_dead_or_stopped_worker_are_served_by_another(fate):
    with no_fd_leaks(), socket.create_server(("127.0.0.1", 0)) as listener:
        ours, theirs = ConnectionChannel.pair()
        command = [sys.executable, "-c", TAKE_ONE, str(theirs.fileno())]
        with subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=ROOT, stdout=subprocess.PIPE
        ) as worker:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(21)]
            for number, client in enumerate(clients):
                client.sendall(b"request %d" % number)
                accepted, _ = listener.accept()
                with accepted:
                    assert ours.send(bytes([number]), [accepted.fileno()]) == 1
                if number == 0:
                    assert worker.stdout is not None
                    assert worker.stdout.readline() == b"0\n"
                    worker.send_signal(fate)
                    flags = os.WEXITED | os.WSTOPPED | os.WNOWAIT
                    os.waitid(os.P_PID, worker.pid, flags)
            recovered = theirs.recover()
            assert [number for number, _ in recovered] == list(range(1, 21))
            for number, fd in recovered:
                with socket.socket(fileno=fd) as connection:
                    assert connection.recv(100) == b"request %d" % number
                    connection.sendall(b"answer %d" % number)
                assert clients[number].recv(100) == b"answer %d" % number
            assert theirs.recover() == []
            worker.kill()
        for end in (ours, theirs, *clients):
            end.close()
