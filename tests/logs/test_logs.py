"""Logs: formats, escapes, files, and that writing never blocks or raises."""

import fcntl
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgiri import logs
from asgiri.config import LogConfig
from asgiri.errors import ConfigError, StartError
from asgiri.logs import LineHandler, TextFormatter
from asgiri.logs.access import ATOMS, Access, compile_format
from asgiri.logs.handlers import MAX_LINE

PROJECT = Path(__file__).parents[2]
master = logging.getLogger("asgiri.master")


@pytest.fixture(autouse=True)
def _restore_loggers():
    """`configure` is for a whole process; undo it."""
    loggers = [logging.getLogger(name) for name in ("asgiri", "asgiri.access")]
    before = [(logger, logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, propagate, handlers in before:
        for handler in set(logger.handlers) - set(handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(level)
        logger.propagate = propagate
    logs._handlers.clear()
    logs._sampled.clear()


@pytest.fixture
def files(tmp_path):
    return {
        "error_log_file": str(tmp_path / "error.log"),
        "access_log_file": str(tmp_path / "access.log"),
    }


def lines_of(path):
    with open(path) as file:
        return file.read().splitlines()


SCOPE = {
    "type": "http",
    "http_version": "1.1",
    "scheme": "https",
    "method": "GET",
    "path": "/a b",
    "raw_path": b"/a%20b",
    "query_string": b"x=1",
    "client": ("192.0.2.7", 50123),
    "headers": [(b"host", b"example.org"), (b"user-agent", b"test/1"), (b"x-id", b"7")],
}


def access(**changes):
    given = {"status": 200, "headers": [], "body_size": 12, "duration": 0.25, "worker": "3"}
    given |= {"prefix": "0a1b2c3d-", "connection": 31, "stream_id": 4}
    scope = {**SCOPE, **changes.pop("scope", {})}
    return Access(scope, **{**given, **changes})


def open_log(config):
    return logs.open_access_log(config, slot=3, worker_id=0x0A1B2C3D)


def formatted(template, **changes):
    return compile_format(template)(access(**changes))


# Lines for people


def test_a_line_tells_time_level_process_and_message(files):
    logs.configure(LogConfig(**files), "master")
    master.info("worker[%d] pid=%d: ready", 3, 4711)
    (line,) = lines_of(files["error_log_file"])
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) info     \[(\d+)\] worker\[3\] pid=4711: ready",
        line,
    )
    assert match
    assert abs(datetime.fromisoformat(match[1]).timestamp() - time.time()) < 60
    assert int(match[2]) == os.getpid()


def test_messages_below_the_level_are_not_written(files):
    logs.configure(LogConfig(level="warning", **files), "worker")
    logging.getLogger("asgiri.worker").info("quiet")
    logging.getLogger("asgiri.worker").warning("loud")
    (line,) = lines_of(files["error_log_file"])
    assert line.endswith("loud")


def test_an_application_that_configures_the_root_logger_does_not_double_the_lines(files, caplog):
    logs.configure(LogConfig(**files), "master")
    master.warning("once")
    assert caplog.messages == []
    assert len(lines_of(files["error_log_file"])) == 1


def record(message, *arguments, exc_info=None):
    return logging.LogRecord("asgiri.master", logging.ERROR, "", 0, message, arguments, exc_info)


@given(st.text())
def test_what_a_peer_sends_can_neither_end_a_line_nor_move_the_cursor(text):
    line = TextFormatter(color=False).format(record("%s", text))
    first, *others = line.split("\n")
    assert all(other.startswith("    ") for other in others)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", line)
    assert "error" in first


def test_a_traceback_is_written_below_its_message():
    try:
        raise ValueError("broken\x1b[2J")
    except ValueError:
        line = TextFormatter(color=False).format(record("failed", exc_info=sys.exc_info()))
    first, second, *_, last = line.split("\n")
    assert first.endswith("failed")
    assert second == "    Traceback (most recent call last):"
    assert last == "    ValueError: broken\\x1b[2J"


def test_arguments_that_do_not_fit_the_message_do_not_raise(files):
    logs.configure(LogConfig(**files), "master")
    master.error("%d apples", "no")
    (line,) = lines_of(files["error_log_file"])
    assert line == "unprintable log message '%d apples': TypeError"


def test_colours_are_for_terminals_only(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in written_through_pipe("auto")
    assert "\x1b[31m" in written_through_pipe("on")
    assert "\x1b[31m" in written_to_terminal("auto")
    assert "\x1b[" not in written_to_terminal("off")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in written_to_terminal("auto")


def written_through_pipe(color):
    reading, writing = os.pipe()
    return written(reading, writing, color)


def written_to_terminal(color):
    reading, writing = pty.openpty()
    return written(reading, writing, color)


def written(reading, writing, color):
    handler = LineHandler("", writing)
    handler.setFormatter(logs._formatter(LogConfig(color=color), handler))
    handler.emit(record("hello"))
    try:
        return os.read(reading, 4096).decode()
    finally:
        os.close(reading)
        os.close(writing)


# Lines for machines


def test_json_has_one_object_per_line_with_stable_keys(files):
    logs.configure(LogConfig(format="json", **files), "master")
    try:
        raise ValueError("broken")
    except ValueError:
        master.exception("first\nsecond")
    (line,) = lines_of(files["error_log_file"])
    document = orjson.loads(line)
    assert list(document) == ["time", "level", "logger", "pid", "message", "exception"]
    assert document["message"] == "first\nsecond"
    assert document["level"] == "error"
    assert document["exception"].endswith("ValueError: broken")
    assert datetime.fromisoformat(document["time"]).tzinfo is not None


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=20))
@example("file name \udcff")
def test_json_takes_every_text_also_what_is_no_unicode(text):
    line = logs.JsonFormatter().format(record("%s", text))
    assert "\n" not in line
    assert orjson.loads(line)["logger"] == "asgiri.master"


def test_the_access_log_in_json_has_stable_keys(files):
    config = LogConfig(format="json", **files)
    logs.configure(config, "worker")
    open_log(config)(SCOPE, 404, [], 12, 0.25, 31, 4)
    (line,) = lines_of(files["access_log_file"])
    document = orjson.loads(line)
    del document["time"]
    assert document == {
        "level": "info",
        "logger": "asgiri.access",
        "worker": 3,
        "connection_id": "0a1b2c3d-1f",
        "request_id": "0a1b2c3d-1f.4",
        "client": "192.0.2.7",
        "method": "GET",
        "path": "/a%20b",
        "query": "x=1",
        "http_version": "1.1",
        "scheme": "https",
        "status": 404,
        "bytes": 12,
        "duration": 0.25,
        "referer": "-",
        "user_agent": "test/1",
    }


# Where lines go


def test_a_moved_file_is_let_go_on_reopening(files, tmp_path):
    logs.configure(LogConfig(**files), "worker")
    master.warning("old")
    os.rename(files["error_log_file"], tmp_path / "old.log")
    master.warning("still old")
    logs.reopen()
    master.warning("new")
    assert [line.split()[-1] for line in lines_of(tmp_path / "old.log")] == ["old", "old"]
    assert len(lines_of(files["error_log_file"])) == 1


def test_a_file_that_cannot_be_opened_anew_is_gone_on_with_and_says_so(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "error.log"
    logs.configure(LogConfig(error_log_file=str(path), access_log=False), "worker")
    moved = tmp_path / "moved"
    path.rename(moved)
    folder.rmdir()
    logs.reopen()
    master.warning("more")
    first, second = lines_of(moved)
    remedy = "No such file or directory; name a file that can be written"
    assert first.endswith(f"goes on in the old file: log file {path}: {remedy}")
    assert second.endswith("more")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give files away")
def test_files_that_we_have_made_and_no_others_are_given_to_another_user(files):
    theirs = Path(files["access_log_file"])
    theirs.touch()
    logs.configure(LogConfig(**files), "master")
    logs.give_files_to(65534, 65533)
    ours = os.stat(files["error_log_file"])
    assert (ours.st_uid, ours.st_gid) == (65534, 65533)
    assert theirs.stat().st_uid == 0


def test_configuring_again_leaves_no_descriptor_open(files):
    logs.configure(LogConfig(**files), "worker")
    before = sorted(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    for _ in range(3):
        logs.configure(LogConfig(**files), "worker")
    assert sorted(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")) == before


@pytest.mark.parametrize("name", ["error_log_file", "access_log_file"])
def test_a_file_that_cannot_be_opened_stops_the_start_with_one_line(files, name):
    files[name] = "/missing/folder/file.log"
    expected = "log file /missing/folder/file.log: No such file or directory; "
    with pytest.raises(StartError, match=expected):
        logs.configure(LogConfig(**files), "master")


def test_files_are_not_inherited_by_other_programs(files):
    logs.configure(LogConfig(**files), "worker")
    for handler in logs._handlers.values():
        assert fcntl.fcntl(handler._fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_lines_of_many_processes_in_one_file_stay_whole(files):
    script = (
        "import logging, sys; from asgiri import logs; from asgiri.config import LogConfig\n"
        "logs.configure(LogConfig(error_log_file=sys.argv[1], access_log=False), 'worker')\n"
        "for n in range(200): logging.getLogger('asgiri.worker').info('%s', sys.argv[2] * 300)\n"
    )
    command = [sys.executable, "-c", script, files["error_log_file"]]
    children = [subprocess.Popen([*command, letter]) for letter in "ab"]
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    texts = [line.rsplit(" ", 1)[1] for line in lines_of(files["error_log_file"])]
    assert sorted(texts) == ["a" * 300] * 200 + ["b" * 300] * 200


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        try:
            os.close(descriptor)
        except OSError:
            pass


def read_all(reading):
    text = b""
    while select.select([reading], [], [], 0)[0]:
        text += os.read(reading, 1 << 20)
    return text.decode()


def test_a_pipe_that_nobody_reads_costs_lines_but_never_blocks(pipe):
    reading, writing = pipe
    handler = LineHandler("", writing)
    for number in range(2000):
        handler.write_line(f"{number} {'x' * 100}")
    assert handler.dropped > 0
    kept = read_all(reading).splitlines()
    assert len(kept) + handler.dropped == 2000
    handler.write_line("back again")
    assert read_all(reading).splitlines() == [
        f"{handler.dropped} log lines were dropped before this one",
        "back again",
    ]
    handler.write_line("as usual")
    assert read_all(reading) == "as usual\n"


@pytest.mark.linux
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
def test_a_pipe_stays_blocking_for_those_who_share_it_but_never_blocks_us(pipe):
    """Between poll(2) and write(2) another worker may have filled it."""
    _, writing = pipe
    handler = LineHandler("", writing)
    handler.write_line("x")
    assert os.get_blocking(writing)
    assert not os.get_blocking(handler._fd)
    handler.close()


@pytest.mark.linux
@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="Linux sizes pipes")
def test_a_long_line_goes_through_a_pipe_in_pieces_and_is_cut_at_the_limit(pipe):
    reading, writing = pipe
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
    handler = LineHandler("", writing)
    handler.write_line("x" * 20_000)
    assert read_all(reading) == "x" * 20_000 + "\n"
    handler.write_line("x" * 100_000)
    assert len(line := read_all(reading)) == MAX_LINE
    assert line.endswith("x ...\n")


def test_a_reader_that_went_away_costs_lines_but_no_exception(pipe):
    reading, writing = pipe
    handler = LineHandler("", writing)
    os.close(reading)
    handler.write_line("x")
    handler.write_line("x")
    assert handler.dropped == 2


def test_a_closed_standard_error_costs_lines_but_no_exception(pipe):
    _, writing = pipe
    os.close(writing)
    handler = LineHandler("", writing)
    handler.write_line("x")
    assert handler.dropped == 1


@pytest.mark.linux
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_a_full_disk_costs_lines_but_no_exception():
    handler = LineHandler("/dev/full", 2)
    handler.write_line("x")
    assert handler.dropped == 1
    handler.close()
    handler.close()


# The access log


def test_the_default_line_tells_who_asked_what_and_what_became_of_it(files):
    config = LogConfig(**files)
    logs.configure(config, "worker")
    open_log(config)(SCOPE, 200, [], 12, 0.25, 31, 4)
    assert lines_of(files["access_log_file"]) == [
        '192.0.2.7 "GET /a%20b?x=1 HTTP/1.1" 200 12 250.0ms worker=3'
    ]


def test_an_access_log_that_is_off_opens_no_file(files):
    config = LogConfig(access_log=False, **files)
    logs.configure(config, "worker")
    assert open_log(config) is None
    assert not os.path.exists(files["access_log_file"])


def test_a_handler_of_the_applications_own_gets_each_line_too(files):
    config = LogConfig(**files)
    logs.configure(config, "worker")
    log = open_log(config)
    seen = []
    own = logging.Handler()
    own.emit = lambda record: seen.append(record.getMessage())
    logging.getLogger("asgiri.access").addHandler(own)
    log(SCOPE, 200, [], 12, 0.25, 31, 4)
    assert seen == lines_of(files["access_log_file"])
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("atom", "text"),
    [
        ("h", "192.0.2.7"),
        ("l", "-"),
        ("u", "-"),
        ("r", "GET /a%20b?x=1 HTTP/1.1"),
        ("m", "GET"),
        ("U", "/a%20b"),
        ("q", "x=1"),
        ("Uq", "/a%20b?x=1"),
        ("H", "HTTP/1.1"),
        ("S", "https"),
        ("s", "200"),
        ("st", "OK"),
        ("B", "12"),
        ("b", "12"),
        ("f", "-"),
        ("a", "test/1"),
        ("T", "0"),
        ("D", "250000"),
        ("M", "250.0"),
        ("L", "0.250000"),
        pytest.param("p", f"<{os.getpid()}>", id="p"),
        ("w", "3"),
        ("c", "0a1b2c3d-1f"),
        ("i", "0a1b2c3d-1f.4"),
        ("R", "GET /a%20b?x=1 HTTP/1.1"),
        ("{X-Id}i", "7"),
        ("{missing}i", "-"),
        ("{Server}o", "asgiri"),
        ("{missing}o", "-"),
    ],
    ids=lambda value: "" if value.startswith("<") else None,
)
def test_each_atom_means_what_gunicorn_says(atom, text):
    assert formatted(f"[%({atom})s]", headers=[(b"server", b"asgiri")]) == f"[{text}]"


def test_sampling_leaves_a_part_out_and_counts_it_but_never_what_failed(files):
    config = LogConfig(access_log_sampling=0.25, **files)
    logs.configure(config, "worker")
    log = open_log(config)
    for number in range(1000):
        log(SCOPE, 200 if number % 2 else 404, [], 12, 0.25, 1, number)
        log(SCOPE, 500, [], 12, 0.25, 1, number)
    lines = lines_of(files["access_log_file"])
    failed = [line for line in lines if " 500 " in line]
    assert len(failed) == 1000
    assert 150 < len(lines) - 1000 < 350  # 7 standard deviations
    assert logs.lines_left_out() == 2000 - len(lines)


def test_sampling_can_leave_all_out(files):
    config = LogConfig(access_log_sampling=0.0, **files)
    logs.configure(config, "worker")
    open_log(config)(SCOPE, 200, [], 12, 0.25, 1, 1)
    open_log(config)(SCOPE, 503, [], 12, 0.25, 1, 2)
    (line,) = lines_of(files["access_log_file"])
    assert " 503 " in line


def readme_section():
    text = (PROJECT / "README.md").read_text()
    return text.split("\n## Logs\n")[1].split("\n## ")[0]


def test_the_readme_names_every_atom_and_every_key(files):
    section = readme_section()
    atoms = set(re.findall(r"%\(([A-Za-z]+)\)s", section))
    assert atoms == ATOMS.keys()
    config = LogConfig(format="json", **files)
    logs.configure(config, "worker")
    open_log(config)(SCOPE, 200, [], 12, 0.25, 31, 4)
    (line,) = lines_of(files["access_log_file"])
    row = next(line for line in section.splitlines() if line.startswith("| access |"))
    assert re.findall(r"`(\w+)`", row) == list(orjson.loads(line))


def test_the_readme_s_configuration_for_logging_works(tmp_path):
    """In a process of its own: handlers of --log-config stay."""
    (tmp_path / "logging.toml").write_text(readme_section().split("```toml\n")[1].split("```")[0])
    script = (
        "import logging; from asgiri import logs; from asgiri.config import LogConfig\n"
        "logs.configure(LogConfig(config='logging.toml'), 'worker')\n"
        "logging.getLogger('asgiri.worker').info('ready')\n"
        "logging.getLogger('asgiri.access').info('GET /')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == b"GET /\n"
    assert orjson.loads(done.stderr)["message"] == "ready"


def test_environment_atoms_are_read_once(monkeypatch):
    monkeypatch.setenv("REGION", "north")
    line = compile_format("%({REGION}e)s %({MISSING}e)s")
    monkeypatch.setenv("REGION", "south")
    assert line(access()) == "north -"


def test_the_apache_time_is_local_and_english():
    text = formatted("%(t)s")
    moment = datetime.strptime(text, "[%d/%b/%Y:%H:%M:%S %z]")
    assert abs(moment.timestamp() - time.time()) < 60


@pytest.mark.parametrize(
    ("scope", "atom", "text"),
    [
        ({"client": None}, "h", "-"),
        ({"query_string": b""}, "r", "GET /a%20b HTTP/1.1"),
        ({"query_string": b""}, "Uq", "/a%20b"),
        ({"raw_path": None}, "U", "/a b"),
        ({"http_version": "3"}, "H", "HTTP/3"),
    ],
)
def test_scopes_without_a_part_leave_it_out(scope, atom, text):
    assert formatted(f"%({atom})s", scope=scope) == text


def test_the_scope_of_a_websocket_has_no_method():
    scope = {name: value for name, value in SCOPE.items() if name != "method"}
    websocket = Access(scope, 101, [], 0, 0.0, "0", "", 1, 1)
    assert compile_format("%(m)s %(r)s %(b)s")(websocket) == "GET GET /a%20b?x=1 HTTP/1.1 -"


def test_a_status_without_a_name_has_an_empty_phrase():
    assert formatted("%(s)s%(st)s", status=799) == "799"


def test_text_around_atoms_is_kept_also_percent_signs():
    assert formatted("a %% 100% %(s)s%%") == "a % 100% 200%"


def test_an_unknown_atom_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"%\(x\)s is no atom; there are h, l, u, t, r"):
        compile_format("%(h)s %(x)s")


def test_a_wrong_access_log_format_stops_the_start(files):
    with pytest.raises(ConfigError, match=r"log.access_log_format=%\(x\)s: "):
        logs.configure(LogConfig(access_log_format="%(x)s", **files), "master")


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40))
def test_no_bytes_of_a_peer_leave_the_quotes_of_their_field(path, query, agent):
    scope = {"raw_path": path, "query_string": query, "headers": [(b"user-agent", agent)]}
    for atom in ("r", "U", "q", "Uq", "a", "{User-Agent}i"):
        line = formatted(f'"%({atom})s"', scope=scope)
        assert re.fullmatch(r'"([\x20\x21\x23-\x5b\x5d-\x7e]|\\x[0-9a-f]{2})*"', line)
