"""Asking for the configuration again: at once, or by an errand, once at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgiri.config import Config
from asgiri.errors import ConfigError, StartError
from asgiri.master.loop import EventLoop
from asgiri.master.settings import Reread, Rereading, Settings
from tests.support.crew import turn_until

SETTINGS = Settings(Config.from_values({"app": {"target": "main:app"}}))


class Scene:
    """A rereading and what became of it."""

    def __init__(self, loop: EventLoop, command: tuple[str, ...] = ()) -> None:
        self.outputs: list[bytes] = []
        self.error: ConfigError | StartError | None = None
        self.done: list[Settings] = []
        self.refused: list[str] = []
        reread = Reread(self.read, command)
        self.rereading = Rereading(loop, reread, self.done.append, self.refused.append)

    def read(self, output: bytes) -> Settings:
        self.outputs.append(output)
        if self.error is not None:
            raise self.error
        return SETTINGS


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop()
    yield loop
    loop.close()


def test_without_a_command_the_answer_comes_at_once(loop: EventLoop):
    scene = Scene(loop)
    scene.rereading.begin()
    assert scene.done == [SETTINGS]


@pytest.mark.parametrize("error", [ConfigError("ring.size", 3, "no"), StartError("no file")])
def test_what_is_wrong_is_told_and_may_be_asked_again(
    loop: EventLoop, error: ConfigError | StartError
):
    scene = Scene(loop)
    scene.error = error
    scene.rereading.begin()
    assert scene.refused == [str(error)]
    scene.error = None
    scene.rereading.begin()
    assert scene.done == [SETTINGS]


COUNT = """
import os, sys
with open("count", "a") as file:
    file.write("x")
os.write(int(sys.argv[1]), str(os.path.getsize("count")).encode())
"""


@pytest.mark.slow
def test_a_file_that_is_run_is_run_again_when_it_may_have_changed_meanwhile(
    loop: EventLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    scene = Scene(loop, (sys.executable, "-c", COUNT))
    for _ in range(5):
        scene.rereading.begin()
    turn_until(loop, lambda: scene.done)
    # Once for the first call, once for the others.
    assert (scene.outputs, scene.done) == ([b"2"], [SETTINGS])
    scene.rereading.begin()
    turn_until(loop, lambda: len(scene.done) == 2)
    assert scene.outputs == [b"2", b"3"]


@pytest.mark.slow
def test_what_is_cancelled_is_not_answered(loop: EventLoop):
    scene = Scene(loop, (sys.executable, "-c", "import time; time.sleep(3600)"))
    scene.rereading.cancel()
    scene.rereading.begin()
    scene.rereading.cancel()
    loop.turn(0)
    assert (scene.done, scene.refused) == ([], [])


def test_a_command_that_cannot_be_started_is_told(loop: EventLoop):
    scene = Scene(loop, ("/nowhere/python",))
    scene.rereading.begin()
    assert scene.refused[0].startswith("the configuration cannot be read: ")
