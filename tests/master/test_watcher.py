"""The process that watches files, as the master sees it."""

from __future__ import annotations

import gc
import logging
import os
import signal

import psutil
import pytest

from asgiri.config import Config
from asgiri.errors import StartError
from asgiri.master.loop import EventLoop
from asgiri.master.watcher import Watcher, check_reload, describe, for_development
from tests.support.crew import turn_until


def make_config(*, workers=None, **reload) -> Config:
    reload = {"enabled": True, **reload}
    return Config.from_values(
        {"app": {"target": "shop:app"}, "reload": reload, "workers": workers or {}}
    )


def test_in_development_nobody_is_waited_for_long_and_nobody_is_killed_at_a_breakpoint():
    config = for_development(make_config(workers={"reload_surge": 1, "count": 3}))
    workers = config.workers
    assert (workers.graceful_timeout, workers.timeout, workers.reload_surge) == (2.0, 0.0, 0)
    assert workers.count == 3
    short = for_development(make_config(workers={"graceful_timeout": 0.5}))
    assert short.workers.graceful_timeout == 0.5


def test_otherwise_nothing_changes():
    config = make_config(enabled=False)
    assert for_development(config) is config
    check_reload(config)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    check_reload(make_config(dirs=(str(tmp_path),)))
    missing = tmp_path / "missing"
    with pytest.raises(StartError) as caught:
        check_reload(make_config(dirs=(str(tmp_path), str(missing))))
    assert str(caught.value) == (f"--reload-dir {missing}: no such folder; name one that exists")


def test_files_are_named_as_one_sees_them_and_many_are_counted():
    here = os.getcwd()
    assert describe([f"{here}/a.py", "/srv/b.py"]) == "a.py, /srv/b.py"
    assert describe([f"{here}/{n}.py" for n in range(5)]) == "0.py, 1.py, 2.py and 2 more"


class Scene:
    def __init__(self, **reload) -> None:
        self.loop = EventLoop()
        self.changes = 0
        self.bystanders = {}
        self.watcher = Watcher(self.loop, make_config(**reload), self.changed, self.bystanders)

    def changed(self) -> None:
        self.changes += 1

    def wait_change(self) -> None:
        before = self.changes
        turn_until(self.loop, lambda: self.changes > before)


@pytest.fixture
def make_scene():
    descriptors = set(os.listdir("/dev/fd"))
    children = {child.pid for child in psutil.Process().children()}
    scenes: list[Scene] = []

    def make(**reload) -> Scene:
        scenes.append(Scene(**reload))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.watcher.close()
        scene.watcher.close()
        scene.loop.close()
        assert scene.bystanders == {}
    gc.collect()
    assert set(os.listdir("/dev/fd")) == descriptors
    assert {child.pid for child in psutil.Process().children()} <= children


@pytest.mark.slow
class TestProcess:
    def test_changes_are_told_and_one_that_was_killed_is_replaced(
        self, make_scene, tmp_path, caplog
    ):
        caplog.set_level(logging.INFO, logger="asgiri.master")
        scene = make_scene(dirs=(str(tmp_path),))
        scene.watcher.start()
        begun = f"--reload: watching {tmp_path}"
        turn_until(scene.loop, lambda: begun in caplog.messages)
        module = tmp_path / "main.py"
        module.write_text("1")
        scene.wait_change()
        assert f"{module} changed: reloading" in caplog.messages
        (pid,) = scene.bystanders
        os.kill(pid, signal.SIGKILL)
        turn_until(scene.loop, lambda: caplog.messages.count(begun) == 2)
        assert pid not in scene.bystanders
        assert any("another one begins" in message for message in caplog.messages)
        module.write_text("2")
        scene.wait_change()

    def test_one_that_was_let_go_comes_back_if_the_master_stays(self, make_scene, tmp_path, caplog):
        caplog.set_level(logging.INFO, logger="asgiri.master")
        scene = make_scene(dirs=(str(tmp_path),))
        scene.watcher.start()
        begun = f"--reload: watching {tmp_path}"
        turn_until(scene.loop, lambda: begun in caplog.messages)
        scene.watcher.kill()
        turn_until(scene.loop, lambda: caplog.messages.count(begun) == 2)

    def test_one_that_cannot_watch_is_not_tried_again(self, make_scene, tmp_path, caplog):
        scene = make_scene(dirs=(str(tmp_path / "missing"),))
        scene.watcher.start()
        turn_until(scene.loop, lambda: len(caplog.messages) == 2)
        assert "--reload: changes are not seen: " in caplog.messages[0]
        assert "until the server is started again" in caplog.messages[1]
        assert scene.bystanders == {}
