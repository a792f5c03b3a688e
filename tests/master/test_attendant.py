"""The attendant as a real process: what it is told, what it does, and how it is replaced."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from asgiri import logs
from asgiri.config import Config
from asgiri.errors import ConfigError, StartError
from asgiri.hooks import ServerFacts, WorkerFacts
from asgiri.master import attendant as module
from asgiri.master.attendant import Attendance, AttendantOrder
from asgiri.master.loop import EventLoop
from tests.support.crew import PATIENCE, turn_until
from tests.support.server import PROJECT, wait_all_gone

pytestmark = pytest.mark.slow

FACTS = ServerFacts(pid=1, app="main:app", name="", workers=2, generation=3, addresses="here")
WORKER = WorkerFacts(pid=2, slot=1, worker_id=7, generation=3, status=-9)
HOOKS = ("when_ready", "worker_exit", "on_reload")

HOOKS_FILE = """
import os

def say(*words):
    with open({told!r}, "a") as file:
        print(os.getpid(), *words, file=file)

def when_ready(server):
    say("ready", server.generation, os.environ.get("SOME_VARIABLE"))

async def worker_exit(server, worker):
    say("exit", worker.slot, worker.status)

def on_reload(server):
    raise ValueError("a mistake of the operator")
"""
LOG_CONFIG = """
import logging
log_config = {{
    "version": 1,
    "formatters": {{"f": {{"format": "%(process)d %(levelname)s %(name)s %(message)s"}}}},
    "handlers": {{
        "h": {{"class": "logging.FileHandler", "filename": {log!r}, "formatter": "f"}}
    }},
    "loggers": {{"asgiri": {{"handlers": ["h"], "level": "DEBUG"}}}},
}}
"""


class Scene:
    """An attendance with a folder for what its attendants do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = EventLoop()
        self.attendance = Attendance(self.loop)
        (folder / "hooks.py").write_text(HOOKS_FILE.format(told=str(folder / "told")))
        (folder / "logging.py").write_text(LOG_CONFIG.format(log=str(folder / "log")))

    def order(self, *hooks: str, log: str = "", **environment: str) -> AttendantOrder:
        process = {"hooks": hooks, "hooks_file": str(self.folder / "hooks.py")}
        log_file = str(self.folder / "fallback.log")
        values: dict[str, Any] = {
            "app": {"target": "main:app"},
            "process": process,
            "log": {"config": log and str(self.folder / log), "error_log_file": log_file},
        }
        config = Config.from_values(values)
        logs.configure(config.log, "master")
        return AttendantOrder(config, environment, "")

    def read(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, condition: Callable[[], object]) -> None:
        turn_until(self.loop, condition)

    def wait_ready(self, before: int = 0) -> int:
        """Turn until another attendant than `before` has taken over, and no other is left."""
        self.wait(lambda: self.ready_pid not in (0, before))
        return self.ready_pid

    @property
    def ready_pid(self) -> int:
        current = self.attendance._current
        return 0 if current is None else current.process.pid


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(module, "RESTART_INTERVAL", 0.05)
    logger = logging.getLogger("asgiri")
    before = (logger.level, logger.propagate, logger.handlers[:])
    children = psutil.Process().children()  # servers that other tests share
    scene = Scene(tmp_path)
    yield scene
    scene.attendance.close()
    scene.loop.close()
    logs._remove(*logs._handlers)
    logger.level, logger.propagate, logger.handlers = before
    assert set(psutil.Process().children()) <= set(children)


def test_nobody_is_started_when_there_is_nothing_to_do(scene: Scene):
    scene.attendance.begin(scene.order())
    scene.attendance.hook("when_ready", FACTS)
    scene.attendance.reopen()
    assert scene.attendance.pids == []


def test_hooks_are_called_in_their_order_and_may_fail(scene: Scene):
    scene.attendance.begin(scene.order(*HOOKS, SOME_VARIABLE="value"))
    (pid,) = scene.attendance.pids
    scene.attendance.hook("on_reload", FACTS)
    scene.attendance.hook("when_ready", FACTS)
    scene.attendance.hook("worker_exit", FACTS, WORKER)
    scene.wait(lambda: len(scene.read("told")) == 2)
    assert scene.read("told") == [f"{pid} ready 3 value", f"{pid} exit 1 -9"]
    written = "\n".join(scene.read("fallback.log"))
    assert "on_reload failed" in written
    assert "ValueError: a mistake of the operator" in written


def test_hooks_that_are_not_defined_are_not_called(scene: Scene):
    scene.attendance.begin(scene.order("worker_exit"))
    scene.attendance.hook("when_ready", FACTS)
    scene.attendance.hook("worker_exit", FACTS, WORKER)
    scene.wait(lambda: scene.read("told"))
    assert len(scene.read("told")) == 1


def test_the_log_is_written_as_its_configuration_says(scene: Scene):
    logger = logging.getLogger("asgiri.master")
    scene.attendance.begin(scene.order(log="logging.py"))
    logger.debug("%d apples", 3)
    logger.error("%d apples", "no")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it")
    scene.attendance.close()
    logger.warning("after the end")
    me = os.getpid()
    first, second, third, *rest = scene.read("log")
    assert first == f"{me} DEBUG asgiri.master 3 apples"
    assert second == (f"{me} ERROR asgiri.master unprintable log message '%d apples': TypeError")
    assert third == f"{me} ERROR asgiri.master it"
    assert rest[-1] == "ValueError: broken"
    assert [line.split()[-1] for line in scene.read("fallback.log")] == ["end"]


def test_log_files_are_opened_anew(scene: Scene):
    scene.attendance.begin(scene.order(log="logging.py"))
    logging.getLogger("asgiri.master").info("old")
    scene.wait(lambda: scene.read("log"))
    os.rename(scene.folder / "log", scene.folder / "old.log")
    scene.attendance.reopen()
    logging.getLogger("asgiri.master").info("new")
    scene.wait(lambda: scene.read("log"))
    assert len(scene.read("old.log")) == 1


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("log_config = {'version': 2}", "Unsupported version: 2"),
        ("log_config = {'handlers': {'h': {'class': 'no.such'}}}", "Unable to configure handler"),
        ("x = 1", "must hold a table of dictConfig"),
        ("x = 1/0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_log_configuration_that_is_wrong_keeps_the_server_from_starting(
    scene: Scene, text: str, remedy: str
):
    order = scene.order(log="logging.py")
    (scene.folder / "logging.py").write_text(text)
    with pytest.raises(ConfigError, match=remedy) as caught:
        scene.attendance.begin(order)
    assert caught.value.option == "log.config"


def test_hooks_that_cannot_be_loaded_keep_the_server_from_starting(scene: Scene):
    (scene.folder / "hooks.py").write_text("import os; os._exit(0)")
    with pytest.raises(StartError, match="ended or hung before it was ready"):
        scene.attendance.begin(scene.order(*HOOKS))
    (scene.folder / "hooks.py").write_text("\nx = 1/0")
    with pytest.raises(StartError, match="division by zero"):
        scene.attendance.begin(scene.order(*HOOKS))


def test_one_that_hangs_while_it_starts_is_given_up(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "START_PATIENCE", 0.05)
    (scene.folder / "hooks.py").write_text("import time; time.sleep(3600)")
    with pytest.raises(StartError, match="ended or hung"):
        scene.attendance.begin(scene.order(*HOOKS))


def test_one_that_dies_is_replaced_and_the_log_goes_on(scene: Scene):
    scene.attendance.begin(scene.order(*HOOKS, log="logging.py"))
    pid = scene.ready_pid
    os.kill(pid, signal.SIGKILL)
    scene.wait(lambda: scene.ready_pid != pid)
    logging.getLogger("asgiri.master").info("without one")
    scene.attendance.hook("when_ready", FACTS)
    assert "without one" in scene.read("fallback.log")[-2]
    assert "when_ready was not called" in scene.read("fallback.log")[-1]
    scene.wait_ready(pid)
    logging.getLogger("asgiri.master").info("with one")
    scene.wait(lambda: scene.read("log"))
    scene.wait(lambda: scene.attendance.reap() or scene.attendance.pids == [scene.ready_pid])


@pytest.mark.parametrize("rubbish", [b"rubbish\n", b"[]\n", b"{}\n", b'{"problem": [1]}\n'])
def test_one_whose_hooks_write_to_us_is_replaced(scene: Scene, rubbish: bytes):
    (scene.folder / "hooks.py").write_text(
        "import os\n"
        "def when_ready(server):\n"
        "    for fd in range(3, 64):\n"
        "        try:\n"
        f"            os.write(fd, {rubbish!r})\n"
        "        except OSError:\n"
        "            pass\n"
    )
    scene.attendance.begin(scene.order("when_ready"))
    pid = scene.ready_pid
    scene.attendance.hook("when_ready", FACTS)
    scene.wait_ready(pid)


def test_a_new_configuration_is_for_a_new_one(scene: Scene):
    scene.attendance.begin(scene.order(*HOOKS))
    before = scene.ready_pid
    scene.attendance.renew(scene.order("when_ready"))
    scene.attendance.hook("when_ready", FACTS)  # it has just been started
    after = scene.wait_ready(before)
    scene.wait(lambda: scene.read("told"))
    assert scene.read("told") == [f"{after} ready 3 None"]
    scene.attendance.renew(scene.order())
    assert scene.ready_pid == 0
    scene.wait(lambda: scene.attendance.reap() or not scene.attendance.pids)


def test_a_new_configuration_that_is_wrong_leaves_the_old_one(scene: Scene):
    scene.attendance.begin(scene.order(*HOOKS))
    before = scene.ready_pid
    (scene.folder / "hooks.py").write_text("x = 1/0")
    scene.attendance.renew(scene.order(*HOOKS))
    scene.wait(lambda: scene.attendance._next is None)
    assert scene.ready_pid == before
    assert "the log and the hooks stay as they are" in scene.read("fallback.log")[-1]
    scene.attendance.hook("when_ready", FACTS)
    scene.wait(lambda: scene.read("told"))


def test_one_that_does_not_read_costs_lines_but_nobody_waits(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "MAX_WAITING", 10_000)
    scene.attendance.begin(scene.order(*HOOKS, log="logging.py"))
    process = psutil.Process(scene.ready_pid)
    process.suspend()
    logger = logging.getLogger("asgiri.master")
    handler = next(iter(logging.getLogger("asgiri").handlers))
    sent = 0
    while not handler.dropped:
        sent += 1
        logger.info("line %d %s", sent, "x" * 1000)
    for _ in range(9):
        logger.info("line %s", "x" * 1000)
    process.resume()
    logger.info("back again")
    scene.wait(lambda: scene.read("log")[-1:] and scene.read("log")[-1].endswith("back again"))
    told = [line for line in scene.read("log") if "dropped before this one" in line]
    dropped = logs.lines_dropped()
    assert dropped >= 10
    assert [line.split()[3] for line in told] == [str(dropped)]


def test_hooks_that_find_no_room_are_told_in_the_log(scene: Scene, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 10_000)
    scene.attendance.begin(scene.order(*HOOKS))
    process = psutil.Process(scene.ready_pid)
    process.suspend()
    called = 0
    while not scene.read("fallback.log"):
        scene.attendance.hook("when_ready", FACTS)
        called += 1
    assert "when_ready was not called" in scene.read("fallback.log")[0]
    process.resume()
    scene.wait(lambda: len(scene.read("told")) == called - 1)


def test_what_is_sent_to_the_group_does_not_end_it(scene: Scene):
    scene.attendance.begin(scene.order(*HOOKS))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT):
        os.kill(scene.ready_pid, number)
    scene.attendance.hook("when_ready", FACTS)
    scene.wait(lambda: scene.read("told"))


def test_a_program_that_goes_leaves_what_it_had_to_say(scene: Scene):
    scene.attendance.begin(scene.order(*HOOKS, log="logging.py"))
    pid = scene.ready_pid
    logging.getLogger("asgiri.master").info("last words")
    scene.attendance.release()
    assert scene.attendance.pids == [pid]
    next_one = Attendance(scene.loop, [pid])
    scene.wait(lambda: next_one.reap() or not next_one.pids)
    assert scene.read("log")[-1].endswith("last words")
    scene.wait_ready(pid)  # nothing came of it: another one is started


DYING_MASTER = """
import os, sys
from pathlib import Path
from tests.master.test_attendant import HOOKS, Scene
scene = Scene(Path(sys.argv[1]))
scene.attendance.begin(scene.order(*HOOKS))
print(scene.ready_pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_master_that_dies_takes_it_along(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-c", DYING_MASTER, str(tmp_path)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    assert wait_all_gone([int(result.stdout)], PATIENCE) == []
