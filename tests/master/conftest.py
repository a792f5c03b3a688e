"""What tests of the master's acting side share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from asgiri.master.loop import EventLoop
from tests.support.crew import Crew


@pytest.fixture
def crew() -> Iterator[Crew]:
    descriptors = set(os.listdir("/dev/fd"))
    crew = Crew()
    yield crew
    crew.close()
    gc.collect()
    assert set(os.listdir("/dev/fd")) == descriptors


@pytest.fixture
def loop(crew: Crew) -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()
