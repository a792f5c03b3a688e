"""Which files matter to --reload, and the process that watches them."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.config import ReloadConfig
from asgiri.watch import FileFilter, folders_to_watch
from tests.support.server import PATIENCE, PROJECT, wait_all_gone

ROOT = PurePosixPath("/srv/shop")


@pytest.mark.parametrize(
    ("include", "exclude", "matters", "does_not"),
    [
        ([], [], ["main.py", "a/b/c.py"], ["main.pyc", "a.html", ".hidden.py", "~a.py", ".sw.py"]),
        (["*.html"], [], ["main.py", "t/index.html"], ["a.css", ".a.html"]),
        ([".env"], [], [".env", "sub/.env", "main.py"], [".other"]),
        ([".*"], [], ["main.py", ".env", ".a.py"], ["a.html"]),
        (["pyproject.toml"], ["*.toml"], ["pyproject.toml"], ["other.toml"]),
        ([], ["*.py"], [], ["main.py"]),
        (["*.html"], ["*.py"], ["index.html"], ["main.py"]),
        ([], ["test_*.py"], ["main.py"], ["test_main.py", "tests/test_main.py"]),
        (["*.py"], ["*.py"], [], ["main.py"]),
        ([""], [""], ["main.py"], ["index.html"]),
        (["*"], [], ["main.py", "index.html"], [".hidden", "~x"]),
        ([], ["migrations/*.py"], ["main.py"], ["migrations/0001.py"]),
    ],
)
def test_files_that_matter(include, exclude, matters, does_not):
    found = FileFilter(include, exclude)
    assert [name for name in matters if not found(ROOT / name)] == []
    assert [name for name in does_not if found(ROOT / name)] == []


@given(st.lists(st.text("*.py?[]ab/", max_size=6)), st.text("abp.y/", min_size=1, max_size=12))
def test_no_pattern_is_a_mistake(patterns, name):
    path = ROOT / name.strip("/")
    assert FileFilter(patterns, [])(path) in (True, False)
    assert FileFilter([], patterns)(path) in (True, False)


def make_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def watched(root: Path, **options) -> list[str]:
    config = ReloadConfig(enabled=True, **{"dirs": (".",), **options})
    return [str(folder.relative_to(root)) for folder in folders_to_watch(config)]


def test_folders_are_watched_once_and_excluded_ones_not(tmp_path, monkeypatch):
    root = tmp_path / "shop"
    make_folders(tmp_path, "shop/a/b", "shop/c", "shop/d", "other/templates")
    monkeypatch.chdir(root)
    assert watched(tmp_path) == ["shop"]
    assert watched(tmp_path, dirs=("a", "a/b", "c")) == ["shop/a", "shop/c"]
    assert watched(tmp_path, include=("../other",)) == ["other", "shop"]
    assert watched(tmp_path, include=("../other/temp*", "*.html")) == ["other/templates", "shop"]
    assert watched(tmp_path, dirs=("a", "c", "d"), exclude=("c",)) == ["shop/a", "shop/d"]
    assert watched(tmp_path, dirs=("a/b", "c"), exclude=("a",)) == ["shop/c"]
    assert watched(tmp_path, dirs=("a", "c"), exclude=("[c]",)) == ["shop/a"]
    # Hidden files are meant, not all that is in hidden folders.
    assert watched(tmp_path, include=(".*",), exclude=(str(root / "*"),)) == ["shop"]


def test_files_in_an_excluded_folder_do_not_matter(tmp_path, monkeypatch):
    make_folders(tmp_path, "venv/lib", "node_modules")
    monkeypatch.chdir(tmp_path)
    found = FileFilter([], ["venv", "node_*"])
    assert found(tmp_path / "main.py")
    assert not found(tmp_path / "venv" / "lib" / "x.py")
    assert not found(tmp_path / "node_modules" / "x.py")
    assert not FileFilter([], [str(tmp_path / "venv")])(tmp_path / "venv" / "x.py")


# The process


class WatchProcess:
    def __init__(self, folder: Path, *, prefix: Sequence[str] = (), **options) -> None:
        config = ReloadConfig(enabled=True, **{"dirs": (".",), "delay": 0.05, **options})
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "asgiri.watch", json.dumps(asdict(config))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
        self._text = b""

    def read(self) -> dict[str, list[str]]:
        """The next line that it writes."""
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._text:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], left)[0], "nothing came"
            part = os.read(self.process.stdout.fileno(), 65536)
            assert part, "it has ended"
            self._text += part
        line, self._text = self._text.split(b"\n", 1)
        return json.loads(line)

    def changed(self) -> set[str]:
        return {Path(path).name for path in self.read()["changed"]}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def watch():
    processes: list[WatchProcess] = []

    def start(folder: Path, **options) -> WatchProcess:
        processes.append(WatchProcess(folder, **options))
        return processes[-1]

    yield start
    for one in processes:
        one.close()


def can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-Ur", "test", "-w", "/proc/sys/user/max_inotify_watches"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.slow
class TestProcess:
    def test_it_tells_of_changes_however_they_are_written(self, watch, tmp_path):
        module = tmp_path / "main.py"
        module.write_text("1")
        make_folders(tmp_path, "sub")
        one = watch(tmp_path)
        assert one.read() == {"watching": [str(tmp_path)]}
        module.write_text("2")
        assert one.changed() == {"main.py"}
        draft = tmp_path / ".main.py.swp"
        draft.write_text("3")
        draft.replace(module)
        assert one.changed() == {"main.py"}
        (tmp_path / "sub" / "new.py").write_text("4")
        assert one.changed() == {"new.py"}
        module.unlink()
        assert one.changed() == {"main.py"}
        # Nobody watches a new folder before its files are made.
        make_folders(tmp_path, "fresh/deep")
        (tmp_path / "fresh" / "inside.py").write_text("5")
        (tmp_path / "fresh" / "deep" / "deeper.py").write_text("5")
        found = set()
        while found != {"inside.py", "deeper.py"}:
            found |= one.changed()
        (tmp_path / "notes.txt").write_text("6")
        (tmp_path / "main.pyc").write_text("7")
        (tmp_path / "last.py").write_text("8")
        assert one.changed() == {"last.py"}

    def test_changes_in_quick_succession_are_told_together(self, watch, tmp_path):
        one = watch(tmp_path, delay=1.0)
        one.read()
        for number in range(20):
            (tmp_path / f"module{number}.py").write_text("1")
        told = [one.changed()]
        while len(set.union(*told)) < 20:  # this process may have been kept from running
            told.append(one.changed())
        assert len(told) < 5

    def test_it_says_when_it_cannot_watch(self, watch, tmp_path):
        one = watch(tmp_path, dirs=("missing",))
        assert "missing" in one.read()["failed"]
        assert one.process.wait(PATIENCE) == 1

    @pytest.mark.skipif(not can_unshare(), reason="takes a user namespace")
    @pytest.mark.parametrize(
        ("limit", "remedy"),
        [("watches", "Raise fs.inotify.max_user_watches"), ("instances", "max_user_instances")],
    )
    def test_limits_of_the_system_are_told_with_a_remedy(self, watch, tmp_path, limit, remedy):
        command = f'echo 0 >/proc/sys/user/max_inotify_{limit} && exec "$@"'
        one = watch(tmp_path, prefix=["unshare", "-Ur", "sh", "-c", command, "sh"])
        assert remedy in one.read()["failed"]

    @pytest.mark.skipif(not can_unshare(), reason="takes a user namespace")
    def test_folders_that_may_not_be_read_are_passed_over(self, watch, tmp_path):
        make_folders(tmp_path, "secret/inside", "open")
        if os.geteuid() == 0:
            os.chown(tmp_path / "secret", 1, 1)
        (tmp_path / "secret").chmod(0o700 if os.geteuid() == 0 else 0)
        one = watch(tmp_path, prefix=["unshare", "-Ur"])
        assert one.read() == {"watching": [str(tmp_path)]}
        (tmp_path / "open" / "main.py").write_text("1")
        assert one.changed() == {"main.py"}
        (tmp_path / "secret").chmod(0o700)

    def test_it_ends_with_its_master(self, tmp_path):
        config = json.dumps(asdict(ReloadConfig(enabled=True, dirs=(str(tmp_path),))))
        code = (
            "import subprocess, sys, time\n"
            f"watch = subprocess.Popen([sys.executable, '-m', 'asgiri.watch', {config!r}],"
            " stdout=subprocess.PIPE)\n"
            "watch.stdout.readline()\n"
            "print(watch.pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        master = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE)
        pid = int(master.stdout.readline())
        master.send_signal(signal.SIGKILL)
        master.wait()
        master.stdout.close()
        assert wait_all_gone([pid], PATIENCE) == []
