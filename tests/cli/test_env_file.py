"""Files of variables: how they are read, and which value wins."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.cli.env_file import EnvFileError, parse_env_file
from asgiri.cli.reading import UsageProblems
from asgiri.cli.sources import read_config, read_sources


def parse(text, **environ):
    return {variable.name: variable.value for variable in parse_env_file(text, environ)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("A=b", "b"),
        ("export A=b", "b"),
        ("A = b c ", "b c"),
        ("A=", ""),
        ("A=b # comment", "b"),
        ("A=b#c", "b#c"),
        ("A='b # c' # comment", "b # c"),
        ('A="b # c"', "b # c"),
        ('A="b\\nc\\t\\"\\\\\\d"', 'b\nc\t"\\\\d'),
        ("A='b\\n\\'c\\\\'", "b\\n'c\\"),
        ("A='b\nc'", "b\nc"),
        ('A="b\nc"', "b\nc"),
        ("A=b\\nc", "b\\nc"),
        ("A=b\r\n", "b"),
        ("# x\n\n  A=b\n", "b"),
        ("A=1\nA=2", "2"),
        ("A=$B", "$B"),
        ("A=ü", "ü"),
    ],
)
def test_values_are_read_as_others_read_them(text, value):
    assert parse(text) == {"A": value}


def test_references_name_what_stands_before_or_in_the_environment():
    assert parse("A=1\nB=${A}2${C}${D:-4}\nE='${A}'")["B"] == "124"
    assert parse("A='${B}'")["A"] == "${B}"
    assert parse("A=1\nB=${A}", A="9")["B"] == "9"
    assert parse('A="x${B:-}y"') == {"A": "xy"}


@pytest.mark.parametrize(
    ("text", "line", "remedy"),
    [
        ("A=1\nB", 2, "must be NAME=VALUE"),
        ("1A=1", 1, "must be NAME=VALUE"),
        ("=1", 1, "must be NAME=VALUE"),
        ("\nA='b\nc", 2, "A: must have its closing quote at the end"),
        ('A="b" c', 1, "A: must have its closing quote at the end"),
        ("A=\0", 1, "A: must not have a NUL in its value"),
    ],
)
def test_what_is_no_assignment_is_told_with_its_line(text, line, remedy):
    with pytest.raises(EnvFileError) as caught:
        parse_env_file(text, {})
    assert (caught.value.line, caught.value.remedy) == (line, remedy)


@given(st.text(alphabet="AB=='\"\\ n#${}:-\n\r\t\0"))
def test_no_text_ends_in_anything_but_variables_or_a_line_that_is_wrong(text):
    try:
        lines = [variable.line for variable in parse_env_file(text, {})]
    except EnvFileError as error:
        lines = [error.line]
    assert all(1 <= line <= text.count("\n") + 1 for line in lines)


@given(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])))
def test_every_value_can_be_quoted(value):
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    assert parse(f"A='{quoted}'") == {"A": value}


# As a place for options


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(*arguments, **environ):
    with pytest.raises(UsageProblems) as caught:
        read_config(["main:app", *arguments], environ)
    return list(caught.value.lines)


def test_the_application_gets_what_the_environment_does_not_have():
    Path("a.env").write_text("A=1\nB=2\n")
    Path("b.env").write_text("B=3\nC=${A}\n")
    words = ["main:app", "--env-file", "a.env", "--env-file=b.env"]
    reading = read_sources(words, {"A": "9"})
    assert reading.environment == {"B": "3", "C": "9"}


def test_options_in_a_file_of_variables_are_weaker_than_those_of_the_environment():
    Path(".env").write_text("ASGIRI_WORKERS=3\nWEB_CONCURRENCY=2\nASGIRI_BACKLOG=7\n")
    Path("asgiri.toml").write_text("env_file = '.env'\nworkers = 9\nbacklog = 9\n")

    def read(*arguments, **environ):
        return read_config(["main:app", *arguments], environ)

    assert read().workers.count == 3
    assert read().listen.backlog == 7
    assert read(ASGIRI_WORKERS="4").workers.count == 4
    assert read("-w5").workers.count == 5
    assert read("--env-file", "/dev/null").workers.count == 9
    assert read(ASGIRI_ENV_FILE="/dev/null").workers.count == 9


def test_a_mistake_in_a_file_of_variables_is_told_with_its_line(folder, capsys):
    Path(".env").write_text("\nASGIRI_WORKERS=0\nASGIRI_CONFIG=x\nASGIRI_WROKERS=1\n")
    assert problems("--env-file", ".env") == [
        ".env:3: ASGIRI_CONFIG: comes too late in a file; set it in the environment",
        ".env:2: ASGIRI_WORKERS=0: must be between 1 and 1024",
    ]
    assert capsys.readouterr().err == (
        "asgiri: .env:4: ASGIRI_WROKERS: no such option, ignored; did you mean ASGIRI_WORKERS?\n"
    )
    Path(".env").write_text("A=1\nB")
    assert problems("--env-file", ".env") == [".env:2: must be NAME=VALUE"]
    (folder / ".env").write_bytes(b"A=\xff")
    assert problems("--env-file", ".env") == [".env: must be text in UTF-8"]
    assert problems("--env-file", "x") == [
        "x: No such file or directory; name a file that can be read"
    ]
