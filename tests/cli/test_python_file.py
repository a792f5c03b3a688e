"""Options in a configuration file that is written in Python."""

from pathlib import Path

import pytest

from asgiri.cli.python_file import is_python
from asgiri.cli.reading import UsageProblems, settle
from asgiri.cli.sources import read_config, read_sources

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text, name="conf.py"):
    Path(name).write_text(text)


def problems(*arguments):
    with pytest.raises(UsageProblems) as caught:
        read_config(arguments, {})
    return list(caught.value.lines)


def test_python_is_told_by_its_name():
    assert is_python("x.py")
    assert is_python("file:x.conf")
    assert is_python("python:package.module")
    assert not is_python("x.toml")


def test_values_hooks_and_names_of_other_servers_are_taken():
    write("""
import multiprocessing, os
cores = max(1, 2)
workers = cores * 2 + 1
bind = "127.0.0.1:" + os.environ.get("SOME_PORT", "9000")
wsgi_app = "main:app"
graceful_timeout = 7

def helper():
    pass

def when_ready(server):
    pass

async def worker_ready(server, worker):
    pass
""")
    config = read_config(["-c", "conf.py", "--graceful-timeout", "8"], {"PORT": ""})
    assert config.workers.count == 5
    assert config.listen.bind == ("127.0.0.1:9000",)
    assert config.app.target == "main:app"
    assert config.workers.graceful_timeout == 8
    assert sorted(config.process.hooks) == ["when_ready", "worker_ready"]
    assert config.process.hooks_file == str(Path("conf.py").absolute())


def test_prefixes_of_other_servers_say_that_it_is_python():
    write("workers = 3", "settings.conf")
    write("workers = 4", "settings_of_a_test.py")
    assert read_config(["main:app", "-c", "file:settings.conf"], {}).workers.count == 3
    assert read_config(["main:app", "-c", "python:settings_of_a_test"], {}).workers.count == 4


def test_a_logging_configuration_may_stand_in_it():
    write("logconfig_dict = {'version': 1}")
    config = read_config(["main:app", "-c", "conf.py"], {})
    assert config.log.config == str(Path("conf.py").absolute())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nworkers = 0", "conf.py:2: workers = 0: must be between 1 and 1024"),
        ("import sys\nworkers = 1/0", "conf.py:2: ZeroDivisionError: division by zero"),
        ("workers = (", "conf.py:1: '(' was never closed"),
        ("import os\nos._exit(0)", "conf.py: ended or hung before it had said all"),
        ("def post_fork(server, worker): ...", "conf.py:1: post_fork: "),
    ],
)
def test_a_mistake_is_one_line_with_file_line_and_remedy(text, line):
    write(text)
    (found,) = problems("main:app", "-c", "conf.py")
    assert found.startswith(line)


def test_a_file_that_cannot_be_read_leaves_nothing_else_to_say():
    assert problems("-c", "missing.py") == [
        "missing.py: No such file or directory; name a file that can be read"
    ]


def test_what_looks_like_a_slip_is_told_and_other_names_are_left_alone(capsys):
    write("wrokers = 3\ncores = 8\nbase_name = 'x'\n")
    assert read_config(["main:app", "-c", "conf.py"], {}).workers.count == 1
    assert capsys.readouterr().err == (
        "asgiri: conf.py:1: wrokers: no such option, ignored; did you mean workers?\n"
    )


def test_what_the_file_prints_is_not_taken_for_its_values():
    write("print('{}')\nworkers = 3")
    assert read_config(["main:app", "-c", "conf.py"], {}).workers.count == 3


def test_the_path_is_from_where_the_command_was_given(tmp_path):
    (tmp_path / "below").mkdir()
    write("workers = 3", "below/conf.py")
    reading = read_sources(["main:app", "-c", "conf.py"], {}, str(tmp_path / "below"))
    assert settle(reading).workers.count == 3
    assert reading.program == str(tmp_path / "below" / "conf.py")
