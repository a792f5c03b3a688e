"""`asgiri top`: what it draws, and what it says when it cannot."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import deque

import pytest
from rich.console import Console

from asgiri.cli import top_command
from asgiri.cli.top_screen import BARS, WIDE, Pace, draw, sparkline
from asgiri.errors import StartError
from asgiri.ipc.scoreboard import Cell
from tests.support.board import Worker, status_of
from tests.support.server import PROJECT, serve


def drawn(status, pace, width):
    output = io.StringIO()
    Console(file=output, width=width).print(draw(status, pace, width))
    return output.getvalue()


def test_a_curve_has_eight_heights():
    assert sparkline(deque([0, 1, 4, 8]), 8) == f"{BARS[0]}{BARS[1]}{BARS[4]}{BARS[8]}"
    assert sparkline(deque([0]), 0) == " "


def test_requests_are_told_for_each_second():
    pace = Pace()
    before = status_of(Worker(cells={Cell.REQUESTS_HTTP1: 10}))
    after = status_of(Worker(cells={Cell.REQUESTS_HTTP1: 30}))
    after["time"] = before["time"] + 2
    pace.look(before)
    pace.look(after)
    assert list(pace.rates[7]) == [0, 10]


@pytest.mark.parametrize("width", [80, WIDE, 200])
def test_every_worker_is_a_row_that_fits(width):
    status = status_of(Worker(0, worker_id=1), Worker(1, worker_id=2), ready=2, target=2)
    pace = Pace()
    pace.look(status)
    text = drawn(status, pace, width)
    assert "…" not in text
    assert text.count(" ready ") == 2
    assert "0 requests/s" in text


def test_without_rich_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "asgiri.cli.top_screen", raising=False)
    with pytest.raises(
        StartError, match=r"top: rich is not installed; pip install 'asgiri\[top\]'"
    ):
        top_command.run([])


@pytest.mark.slow
async def test_a_running_server_is_shown(tmp_path):
    path = tmp_path / "control.sock"
    async with serve(workers=2, control_socket=path) as server:
        command = [sys.executable, "-m", "asgiri", "top", "--once", "--control-socket", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        for slot, pid in server.workers.items():
            assert f"{slot}" in done.stdout
            assert f" {pid} " in done.stdout
