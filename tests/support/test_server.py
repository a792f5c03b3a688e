"""The watcher itself: what it collects from a log, and that it sees what a server leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import threading

import pytest

from tests.support.server import (
    Server,
    ServerFailed,
    ServerLog,
    ServerOptions,
    arguments,
    session_members,
    wait_all_gone,
)

OURS = """\
12:00 worker[0]: request failed
Traceback (most recent call last):
  File "x.py", line 1, in app
    raise BrokenAppError("before")
tests.support.apps.BrokenAppError: before
12:01 next line
"""
THEIRS = """\
Traceback (most recent call last):
  File "x.py", line 1, in run
    1 / 0
ZeroDivisionError: division by zero

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 1, in run
KeyError: 'slot'
12:01 next line
"""
INDENTED = """\
12:00 error [12] the application failed
    Traceback (most recent call last):
      File "x.py", line 1, in app
        raise ValueError
    ValueError

    During handling of the above exception, another exception occurred:

    Traceback (most recent call last):
      File "x.py", line 2, in app
    tests.support.apps.BrokenAppError: before
12:01 next line
"""


def log_of(*texts: str) -> ServerLog:
    log = ServerLog()
    for text in texts:
        log.append(text)
    return log


def server_of(script: str) -> Server:
    """A process that stands for a server whose log is what the script prints."""
    command = [sys.executable, "-u", "-c", textwrap.dedent(script)]
    return Server(command, ServerOptions())


def test_options_become_arguments():
    options = {"http3": True, "date_header": False, "bind": ("a:1", "b:2"), "uds": None, "n": 3}
    assert list(arguments(options)) == [
        *("--http3", "--no-date-header", "--bind", "a:1", "--bind", "b:2", "--n", "3"),
    ]


def test_a_deliberate_traceback_is_no_complaint():
    assert log_of(OURS).complaints([]) == []


def test_a_log_may_indent_a_traceback():
    assert log_of(INDENTED).complaints([]) == []
    (complaint,) = log_of(INDENTED.replace("BrokenApp", "Key")).complaints([])
    assert complaint.splitlines() == INDENTED.replace("BrokenApp", "Key").splitlines()[:-1]


def test_any_other_traceback_is_a_complaint_unless_it_is_announced():
    log = log_of(OURS, THEIRS)
    (complaint,) = log.complaints([])
    assert complaint.splitlines()[-1] == "KeyError: 'slot'"
    assert log.complaints(["KeyError"]) == []


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeWarning: coroutine 'x' was never awaited",
        "Task exception was never retrieved",
        "Exception ignored in: <function A.__del__>",
        "x.py:1: ResourceWarning: unclosed socket",
    ],
)
def test_warnings_of_the_interpreter_are_complaints(line: str):
    assert log_of("all is well\n", line + "\n").complaints([]) == [line]


def test_waiting_for_a_line_ends_when_it_comes():
    log = log_of("one\n")
    timer = threading.Timer(0.01, log.append, ["worker[1] pid=77 gen=1: ready\n"])
    timer.start()
    assert log.wait_line(r"^worker\[(\d)\]")[1] == "1"
    timer.join()


def test_waiting_for_a_line_fails_when_the_log_ends():
    log = ServerLog()
    reading, writing = os.pipe()
    os.write(writing, b"one\n")
    os.close(writing)
    thread = log.follow(reading)
    with pytest.raises(ServerFailed, match="the log ended"):
        log.wait_line("two")
    thread.join()


def test_a_line_before_the_start_position_does_not_count():
    log = log_of("ready\n")
    start = log.end
    log.append("ready again\n")
    assert log.wait_line("ready.*", start)[0] == "ready again"


async def test_a_server_that_stops_in_order_passes():
    server = server_of("print('up'); import signal; signal.sigwait([signal.SIGTERM])")
    await server.wait_line("up")
    server.expected_exit = (-signal.SIGTERM,)
    await asyncio.to_thread(server.stop)


async def test_a_wrong_exit_status_fails():
    server = server_of("print('up'); raise SystemExit(3)")
    await server.wait_exit()
    with pytest.raises(ServerFailed, match="exit status 3"):
        await asyncio.to_thread(server.stop)


async def test_a_traceback_in_the_log_fails():
    server = server_of("""
        import sys, traceback
        try: {}["slot"]
        except KeyError: traceback.print_exc()
    """)
    await server.wait_exit()
    with pytest.raises(ServerFailed, match="KeyError: 'slot'"):
        await asyncio.to_thread(server.stop)


async def test_a_server_dies_with_the_process_that_started_it():
    script = f"""
        import time
        from tests.support.server import Server, ServerOptions
        command = [{sys.executable!r}, "-c", "import time; time.sleep(60)"]
        print("child", Server(command, ServerOptions()).pid)
        time.sleep(60)
    """
    runner = server_of(script)
    child = int((await runner.wait_line(r"child (\d+)"))[1])
    runner.kill_master()
    await runner.wait_exit()
    assert await asyncio.to_thread(wait_all_gone, [child], 5) == []
    await asyncio.to_thread(runner.stop)


async def test_a_process_left_behind_fails_and_is_killed():
    server = server_of("""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print("child", child.pid)
    """)
    child = int((await server.wait_line(r"child (\d+)"))[1])
    await server.wait_exit()
    assert session_members(server.pid) == [child]
    with pytest.raises(ServerFailed, match=f"still there after 0.01 s: {child}"):
        await server.wait_workers_gone(0.01)
    server._destroy()
    assert wait_all_gone([child], 5) == []
    assert session_members(server.pid) == []
