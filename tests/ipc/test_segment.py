"""Segments: sealed, shared, gone with their last descriptor; and what follows a refusal."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile

import pytest

from asgiri.errors import IpcError, RingUnavailableError
from asgiri.ipc.scoreboard import PAGE_SIZE, Cell, Scoreboard
from asgiri.ipc.segment import RING_OFFSET, STACKS_SIZE, Segment, create_ring
from tests.support.memory import no_fd_leaks, open_fds

RING_SIZE = 1 << 17
linux = pytest.mark.linux


def refuse(monkeypatch, name: str, error: int, times: int = 1 << 30) -> None:
    """Make a call of the system fail, as seccomp, an old kernel or a full disk would."""
    real = getattr(os, name)
    calls = iter(range(times))

    def failing(*arguments):
        if next(calls, None) is None:
            return real(*arguments)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, name, failing)


@linux
def test_two_mappings_show_the_same_memory():
    with no_fd_leaks():
        master = Segment.create(RING_SIZE)
        worker = Segment.attach(os.dup(master.fd))
        assert [len(v) for v in (worker.scoreboard, worker.assignments, worker.ring)] == [
            PAGE_SIZE,
            PAGE_SIZE,
            RING_SIZE,
        ]
        worker.scoreboard[-1] = 1
        master.assignments[0] = 2
        master.assignments[-1] = 3
        master.ring[0] = 4
        master.ring[-1] = 5
        assert (master.scoreboard[-1], worker.assignments[0], worker.assignments[-1]) == (1, 2, 3)
        assert (worker.ring[0], worker.ring[-1]) == (4, 5)
        master.close()
        assert worker.ring[-1] == 5
        worker.close()


@linux
def test_nobody_can_change_the_size():
    segment = Segment.create(RING_SIZE)
    whole = RING_OFFSET + RING_SIZE + STACKS_SIZE
    for size in (0, RING_OFFSET, whole - 1, whole + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.fd, size)
    segment.close()


def test_without_http3_there_is_no_ring():
    segment = Segment.create(0)
    assert len(segment.ring) == 0
    assert os.fstat(segment.fd).st_size == RING_OFFSET + STACKS_SIZE
    segment.close()


def test_the_descriptor_is_not_inherited_and_is_closed_once():
    with no_fd_leaks():
        segment = Segment.create(0)
        assert not os.get_inheritable(segment.fd)
        segment.close()
        segment.close()
        assert segment.fd == -1


def test_a_page_in_use_outlives_its_segment():
    with no_fd_leaks():
        segment = Segment.create(0)
        board = Scoreboard(segment.scoreboard)
        segment.close()
        board.set(Cell.PID, 7)
        assert board.get(Cell.PID) == 7
        board.release()
        del segment, board


def test_what_is_too_small_is_no_segment_and_is_closed():
    with tempfile.TemporaryFile() as file, no_fd_leaks():
        file.truncate(RING_OFFSET + STACKS_SIZE - 1)
        with pytest.raises(IpcError, match="segment of 73727 bytes"):
            Segment.attach(os.dup(file.fileno()))


@linux
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EACCES])
def test_refused_memory_means_the_stream_channel_and_pages_in_a_file(monkeypatch, error):
    refuse(monkeypatch, "memfd_create", error)
    with no_fd_leaks():
        for create in (Segment.create, create_ring):
            with pytest.raises(RingUnavailableError, match=os.strerror(error)):
                create(RING_SIZE)
        segment = Segment.create(0)
        other = Segment.attach(os.dup(segment.fd))
        segment.scoreboard[7] = 7
        assert other.scoreboard[7] == 7
        assert os.fstat(segment.fd).st_nlink == 0
        segment.close()
        other.close()


@linux
def test_a_system_without_memfd_means_the_stream_channel(monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with no_fd_leaks(), pytest.raises(RingUnavailableError):
        create_ring(RING_SIZE)


@linux
@pytest.mark.parametrize("name", ["memfd_create", "pipe"])
def test_running_out_of_descriptors_is_not_taken_for_a_refusal(monkeypatch, name):
    refuse(monkeypatch, name, errno.EMFILE)
    with no_fd_leaks(), pytest.raises(OSError) as caught:
        create_ring(RING_SIZE)
    assert caught.value.errno == errno.EMFILE


@linux
def test_a_kernel_that_does_not_know_a_flag_is_asked_without_it(monkeypatch):
    refuse(monkeypatch, "memfd_create", errno.EINVAL, times=1)
    segment = Segment.create(RING_SIZE)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)
    segment.close()


@linux
@pytest.mark.parametrize(
    ("name", "create"), [("ftruncate", create_ring), ("write", Segment.create)]
)
def test_a_failure_half_way_leaves_nothing_open(monkeypatch, name, create):
    if name == "write":
        refuse(monkeypatch, "memfd_create", errno.EPERM)
    refuse(monkeypatch, name, errno.ENOSPC)
    before = open_fds()
    with pytest.raises((OSError, RingUnavailableError)):
        create(RING_SIZE if name == "ftruncate" else 0)
    monkeypatch.undo()
    assert open_fds() == before


@linux
def test_a_ring_comes_with_its_counters():
    with no_fd_leaks():
        segment, published, consumed = create_ring(RING_SIZE)
        published.add(1)
        assert (published.take(), consumed.take()) == (1, 0)
        for owner in (segment, published, consumed):
            owner.close()


STACKS = """
import faulthandler, os, sys
from asgiri.ipc.segment import Segment
segment = Segment.attach(int(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    faulthandler.dump_traceback(segment.fd)
"""


def ask_for_stacks(segment: Segment, times: int) -> str:
    segment.clear_stacks()
    command = [sys.executable, "-c", STACKS, str(segment.fd), str(times)]
    subprocess.run(command, pass_fds=[segment.fd], check=True)
    return segment.read_stacks().decode()


def test_stacks_that_another_process_writes_are_read():
    segment = Segment.create(0)
    for _ in range(2):  # the second ones take the place of the first
        text = ask_for_stacks(segment, 1)
        assert text.startswith("Current thread 0x")
        assert text.count("most recent call first") == 1
        assert segment.count_stacks() == len(text)
    segment.close()


@linux
def test_stacks_that_do_not_fit_leave_the_ring_alone():
    segment = Segment.create(RING_SIZE)
    text = ask_for_stacks(segment, 2000)
    assert len(text) > STACKS_SIZE - 200
    assert not any(segment.ring)
    assert os.fstat(segment.fd).st_size == RING_OFFSET + RING_SIZE + STACKS_SIZE
    segment.close()
