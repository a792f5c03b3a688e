"""`--log-config` in each of its forms, and what is said of one that is wrong."""

import json
import logging
import sys
from pathlib import Path

import pytest

from asgiri import logs
from asgiri.config import LogConfig
from asgiri.errors import ConfigError
from asgiri.logs import LineHandler
from asgiri.logs.file import apply

DOCUMENT = {
    "version": 1,
    "formatters": {"f": {"format": "%(levelname)s %(message)s"}},
    "handlers": {"h": {"class": "logging.FileHandler", "filename": "log", "formatter": "f"}},
    "loggers": {"asgiri": {"handlers": ["h"], "level": "WARNING", "propagate": False}},
}
TOML = """
version = 1
[formatters.f]
format = "%(levelname)s %(message)s"
[handlers.h]
class = "logging.FileHandler"
filename = "log"
formatter = "f"
[loggers.asgiri]
handlers = ["h"]
level = "WARNING"
propagate = false
"""
YAML = """
version: 1
formatters: {f: {format: "%(levelname)s %(message)s"}}
handlers:
  h: {class: logging.FileHandler, filename: log, formatter: f}
loggers:
  asgiri: {handlers: [h], level: WARNING, propagate: no}
"""
INI = """
[loggers]
keys=root,asgiri
[handlers]
keys=h
[formatters]
keys=f
[logger_root]
handlers=
[logger_asgiri]
qualname=asgiri
handlers=h
level=WARNING
propagate=0
[handler_h]
class=FileHandler
args=("log",)
formatter=f
[formatter_f]
format=%(levelname)s %(message)s
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    names = ("", "asgiri", "asgiri.access", "someone.else")
    loggers = [logging.getLogger(name) for name in names]
    before = [(found, found.level, found.propagate, found.handlers[:]) for found in loggers]
    yield tmp_path
    for logger, level, propagate, handlers in before:
        for handler in set(logger.handlers) - set(handlers):
            handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    logs._handlers.clear()
    logs._of_file.clear()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.json", json.dumps(DOCUMENT)),
        ("json:log.conf", json.dumps(DOCUMENT)),
        ("log.toml", TOML),
        ("toml:log.conf", TOML),
        ("log.yaml", YAML),
        ("log.yml", YAML),
        ("log.ini", INI),
        ("log.conf", INI),
        ("log.py", f"log_config = {DOCUMENT}"),
        ("log.py", f"logconfig_dict = {DOCUMENT}"),
    ],
)
def test_every_form_says_the_same(name, text):
    Path(name.rpartition(":")[2]).write_text(text)
    apply(name, "info")
    logging.getLogger("asgiri.worker").info("not wanted")
    logging.getLogger("asgiri.worker").warning("wanted")
    assert Path("log").read_text() == "WARNING wanted\n"


def test_loggers_that_are_not_mentioned_stay_on():
    logging.getLogger("someone.else")
    Path("log.ini").write_text(INI)
    apply("log.ini", "info")
    assert not logging.getLogger("someone.else").disabled
    Path("log.toml").write_text(TOML)
    apply("log.toml", "info")
    assert not logging.getLogger("someone.else").disabled


def test_our_level_is_for_a_configuration_that_names_none():
    Path("log.json").write_text("{}")
    apply("log.json", "debug")
    assert logging.getLogger("asgiri").level == logging.DEBUG
    Path("log.toml").write_text(TOML)
    apply("log.toml", "debug")
    assert logging.getLogger("asgiri").level == logging.WARNING


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("log.json", "{", "Expecting property name enclosed in double quotes"),
        ("log.json", "[]", "must hold a table of dictConfig"),
        ("log.toml", "x", "Expected '=' after a key"),
        ("log.yaml", "a: [", "while parsing a flow"),
        ("log.ini", "x", "File contains no section headers"),
        ("log.ini", "[loggers]\nkeys=root", "formatters"),
        ("log.json", '{"version": 2}', "Unsupported version: 2"),
        ("log.json", '{"handlers": {"h": {"class": "a.B"}}}', "handler 'h': "),
        ("log.json", '{"root": {"level": "LOUD"}}', "Unable to configure root logger: Unknown le"),
        ("log.json", "\udcff", "invalid start byte"),
    ],
)
def test_what_is_wrong_is_one_line(name, text, remedy):
    Path(name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        apply(name, "info")
    assert (caught.value.option, caught.value.value) == ("log.config", name)
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.remedy


def test_a_file_that_is_missing_or_may_not_be_written_is_told():
    with pytest.raises(ConfigError, match="No such file or directory; name files that can be used"):
        apply("missing.json", "info")
    document = DOCUMENT | {"handlers": {"h": {"class": "logging.FileHandler", "filename": "/x/y"}}}
    Path("log.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="No such file or directory: '/x/y'"):
        apply("log.json", "info")


def test_our_own_handlers_and_formatters_can_be_named():
    document = {
        "formatters": {"json": {"()": "asgiri.logs.JsonFormatter"}},
        "handlers": {"h": {"class": "asgiri.logs.LineHandler", "path": "l", "formatter": "json"}},
        "root": {"handlers": ["h"], "level": "INFO"},
    }
    Path("log.json").write_text(json.dumps(document))
    logs.configure(LogConfig(config="log.json", error_log_file="own"), "worker")
    logging.getLogger("someone.else").info("of the application")
    logging.getLogger("asgiri.worker").info("of ours")
    log = logs.open_access_log(LogConfig(config="log.json"), slot=0, worker_id=1)
    scope = {"path": "/", "query_string": b"", "http_version": "1.1", "headers": []}
    log(scope, 200, [], 0, 0.0, 1, 1)
    lines = [json.loads(line) for line in Path("l").read_text().splitlines()]
    assert [line["logger"] for line in lines] == ["someone.else", "asgiri.worker", "asgiri.access"]
    assert not Path("own").exists()
    Path("l").rename("old")
    logs.reopen()
    logging.getLogger("asgiri.worker").info("more")
    assert len(Path("l").read_text().splitlines()) == 1
    (handler,) = [found for found in logs._of_file if isinstance(found, LineHandler)]
    handler.dropped = 3
    assert logs.lines_dropped() == 3


def test_files_of_the_standard_handler_are_opened_anew():
    Path("log.toml").write_text(TOML)
    logs.configure(LogConfig(config="log.toml"), "worker")
    logging.getLogger("asgiri.worker").warning("old")
    Path("log").rename("old")
    logs.reopen()
    logging.getLogger("asgiri.worker").warning("new")
    assert (Path("old").read_text(), Path("log").read_text()) == ("WARNING old\n", "WARNING new\n")


def test_the_master_does_not_run_it():
    Path("log.toml").write_text("nonsense")
    logs.configure(LogConfig(config="log.toml", error_log_file="own"), "master")
    logging.getLogger("asgiri.master").warning("x")
    assert Path("own").exists()


def test_a_configuration_takes_the_place_of_our_own():
    logs.configure(LogConfig(error_log_file="own", access_log_file="access"), "worker")
    Path("log.toml").write_text(TOML)
    logs.configure(LogConfig(config="log.toml"), "worker")
    logging.getLogger("asgiri.worker").warning("x")
    assert Path("own").read_text() == ""
    assert logging.getLogger("asgiri.access").propagate
