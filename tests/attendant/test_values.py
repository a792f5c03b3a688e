"""What a configuration file in Python tells of itself."""

import sys

import orjson
import pytest

from asgiri.attendant.values import read_values


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])

    def read_text(text):
        file = tmp_path / "conf.py"
        file.write_text(text)
        document = read_values(str(file))
        return orjson.loads(orjson.dumps(document)), str(file)

    return read_text


def test_values_become_what_json_has(read):
    document, _ = read("""
import ssl, enum, pathlib
workers = 3
keepalive = 0.5
never = float("inf")
huge = 1 << 70
bind = [":1", ":2"]
networks = ("10.0.0.0/8",)
ports = [8000]
reload = False
cert_reqs = ssl.CERT_REQUIRED
certfile = pathlib.Path("/x")
keyfile = None
_private = 5
thing = object()
""")
    assert document["values"] == {
        "workers": 3,
        "keepalive": 0.5,
        "never": "inf",
        "huge": str(1 << 70),
        "bind": [":1", ":2"],
        "networks": ["10.0.0.0/8"],
        "ports": ["8000"],
        "reload": False,
        "cert_reqs": 2,
        "certfile": "/x",
    }
    assert document["lines"]["bind"] == 7


def test_functions_are_told_by_name(read):
    document, _ = read("from os import getcwd\ndef when_ready(server): ...\nclass Handler: ...\n")
    assert sorted(document["functions"]) == ["Handler", "getcwd", "when_ready"]
    assert document["values"] == {}


@pytest.mark.parametrize("name", ["log_config", "logconfig_dict"])
def test_a_logging_configuration_in_it_makes_it_the_logging_configuration(read, name):
    document, file = read(f"{name} = {{'version': 1}}")
    assert document["values"] == {"log_config": file}


def test_a_failure_is_told_with_its_line(read):
    document, _ = read("\nx = 1/0")
    assert document == {"line": 2, "problem": "ZeroDivisionError: division by zero"}


def test_a_module_is_told_with_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "values_of_a_test.py").write_text("\nworkers = 3")
    document = read_values("python:values_of_a_test")
    assert (document["values"], document["lines"]) == ({"workers": 3}, {"workers": 2})
