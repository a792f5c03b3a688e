"""A worker's first steps; the whole boot is tested in `test_runtime`."""

from __future__ import annotations

import asyncio
import errno
import os

import pytest

from asgiri.worker.boot import BootError, event_loop_maker
from tests.support.worker import make_config

uvloop = pytest.importorskip("uvloop")


def make(loop: str):
    return event_loop_maker(make_config(app={"loop": loop}))


def test_the_event_loop_is_uvloop_where_it_is_installed():
    assert make("auto") is make("uvloop") is uvloop.new_event_loop
    assert make("asyncio") is asyncio.new_event_loop


@pytest.mark.linux
def test_where_uvloop_cannot_run_asyncio_does(monkeypatch: pytest.MonkeyPatch):
    def eventfd(*_arguments: int) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "eventfd", eventfd)
    assert make("auto") is asyncio.new_event_loop
    with pytest.raises(BootError, match="--loop uvloop: needs an eventfd: Operation not"):
        make("uvloop")
