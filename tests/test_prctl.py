"""What Linux knows about parents and children, asked by processes that are ours to lose."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asgiri import prctl
from tests.support.server import PROJECT

PATIENCE = 20.0

pytestmark = pytest.mark.slow

LINUX = sys.platform == "linux"

ADOPTS = """
import os
from asgiri import prctl
print(prctl.is_subreaper(), prctl.become_subreaper(), prctl.is_subreaper(), flush=True)
reading, writing = os.pipe()
between = os.fork()
if not between:
    if os.fork():
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)  # until its grandparent has written
    os._exit(7)
os.waitpid(between, 0)
os.write(writing, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
"""

DIES = """
import os, signal
from asgiri import prctl
reading, writing = os.pipe()
middle = os.fork()
if not middle:
    told, tell = os.pipe()
    if os.fork():
        os.read(told, 1)
        os._exit(0)
    prctl.set_death_signal(signal.SIGKILL)
    os.write(tell, b"x")
    signal.pause()
os.close(writing)
print(os.read(reading, 1))  # its end is that of whoever held the pipe open
"""


def run(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, timeout=PATIENCE, check=True, capture_output=True
    )
    return done.stdout.decode().splitlines()


@pytest.mark.skipif(not LINUX, reason="Linux only")
def test_a_subreaper_is_the_parent_of_orphans():
    assert run(ADOPTS) == ["False True True", "7"]


@pytest.mark.skipif(not LINUX, reason="Linux only")
def test_a_child_can_die_with_its_parent():
    assert run(DIES) == ["b''"]


@pytest.mark.skipif(LINUX, reason="where it is not possible")
def test_elsewhere_the_answer_is_no():
    assert not prctl.become_subreaper()
    assert not prctl.is_subreaper()
    assert not prctl.set_death_signal(15)
