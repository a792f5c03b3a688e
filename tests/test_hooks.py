"""Configuration files in Python: what running one gives, and where it says that it fails."""

import sys

import pytest

from asgiri.hooks import PythonFileError, lines_of, run_python


@pytest.fixture(autouse=True)
def _restore_path(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])


def test_a_file_is_run_with_its_folder_on_the_path(tmp_path):
    (tmp_path / "beside_it.py").write_text("value = 7")
    file = tmp_path / "conf.py"
    file.write_text("from beside_it import value\nname = __name__\nfile = __file__\n")
    names = run_python(str(file))
    assert (names["value"], names["name"], names["file"]) == (7, "__config__", str(file))


def test_a_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "conf_of_a_test.py").write_text("value = 7")
    monkeypatch.chdir(tmp_path)
    assert run_python("python:conf_of_a_test")["value"] == 7


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("\nx = 1/0", 2, "ZeroDivisionError: division by zero"),
        ("def f():\n    raise KeyError\nf()", 2, "KeyError"),
        ("import sys\nsys.exit('no')", 2, "SystemExit: no"),
        ("x = 1\ny = (", 2, "'(' was never closed"),
        ("import no_such_module", 1, "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_file_that_fails_says_in_which_line(tmp_path, text, line, problem):
    file = tmp_path / "conf.py"
    file.write_text(text)
    with pytest.raises(PythonFileError) as caught:
        run_python(str(file))
    assert (caught.value.line, caught.value.problem) == (line, problem)


def test_a_file_that_is_missing_says_so():
    with pytest.raises(PythonFileError) as caught:
        run_python("/nowhere/conf.py")
    assert caught.value.line == 0
    assert caught.value.problem == "No such file or directory; name a file that can be read"


def test_names_are_where_they_are_bound_last_outside_of_functions():
    source = """
workers = 1
if True:
    workers = 2
with open("x") as bind:
    pass
import multiprocessing as m
for i, port in []:
    pass
def when_ready(server):
    backlog = 3
class C:
    limit = 4
a = b = (lambda: (z := 1))
timeout: int = 3
[q for q in ()]
"""
    lines = lines_of(source)
    assert lines["workers"] == 4
    assert lines["bind"] == 5
    assert lines["m"] == 7
    assert lines["port"] == 8
    assert lines["when_ready"] == 10
    assert (lines["a"], lines["b"], lines["timeout"]) == (14, 14, 15)
    assert not {"backlog", "limit", "z"} & lines.keys()
