"""Commands that are run for what they write, with and without a loop to wait in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import psutil
import pytest

from asgiri.master.errand import Errand, run_errand
from asgiri.master.loop import EventLoop
from tests.support.crew import turn_until

pytestmark = pytest.mark.slow

WRITE = "import os, sys; os.write(int(sys.argv[1]), b'x' * 200_000 + os.getcwd().encode())"
HANG = "import os, sys, time; os.write(int(sys.argv[1]), b'begun'); time.sleep(3600)"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    children = psutil.Process().children()  # servers that other tests share
    loop = EventLoop()
    yield loop
    loop.close()
    assert set(psutil.Process().children()) <= set(children)


def test_all_that_is_written_comes_back(loop: EventLoop):
    results: list[bytes] = []
    Errand(loop, python(WRITE), results.append, folder="/")
    turn_until(loop, lambda: results)
    assert results == [b"x" * 200_000 + b"/"]
    assert run_errand(python(WRITE), folder="/") == results[0]


def test_one_that_hangs_is_ended_with_what_it_had_written(loop: EventLoop):
    results: list[bytes] = []
    Errand(loop, python(HANG), results.append, patience=1.0)
    turn_until(loop, lambda: results)
    assert results in ([b"begun"], [b""])  # a busy machine may not have started it
    assert run_errand(python(HANG), patience=0.01) in (b"begun", b"")


def test_one_that_is_cancelled_says_nothing(loop: EventLoop):
    results: list[bytes] = []
    errand = Errand(loop, python(HANG), results.append)
    errand.cancel()
    loop.turn(0)
    assert results == []


def test_one_that_cannot_be_started_raises(loop: EventLoop):
    before = os.listdir("/proc/self/fd") if sys.platform == "linux" else []
    with pytest.raises(FileNotFoundError):
        Errand(loop, ["/nowhere/command"], lambda _: None)
    with pytest.raises(FileNotFoundError):
        run_errand(["/nowhere/command"])
    if sys.platform == "linux":
        assert os.listdir("/proc/self/fd") == before
