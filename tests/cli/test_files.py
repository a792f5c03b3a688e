"""Configuration files: keys, values, lines, and which place wins."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.cli.config_command import run as run_command
from asgiri.cli.config_command import show
from asgiri.cli.files import find_file, line_of
from asgiri.cli.peers import KEYS_ELSEWHERE
from asgiri.cli.reading import UsageProblems, settle
from asgiri.cli.sources import read_config, read_sources
from asgiri.config import Config, all_options
from tests.cli.test_cli import COMPANIONS, IN_CONFIG, sample

VISIBLE = [declared for declared in IN_CONFIG if not declared.option.secret]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text, name="asgiri.toml"):
    Path(name).write_text(text)


def read(*arguments, **environ):
    config = read_config(arguments, environ)
    assert isinstance(config, Config)
    return config


def problems(text, *arguments, name="asgiri.toml", **environ):
    write(text, name)
    with pytest.raises(UsageProblems) as caught:
        read_config(["main:app", *arguments], environ)
    return list(caught.value.lines)


# Keys and values


@pytest.mark.parametrize("declared", IN_CONFIG, ids=lambda declared: declared.name)
def test_every_option_is_taken_by_each_of_its_keys(declared):
    companions = COMPANIONS.get(declared.name, [])
    flag = declared.flags[0]
    if declared.base is bool:
        text = "false" if declared.default else "true"
        expected = read("main:app", *companions, f"--{'no-' * bool(declared.default)}{flag[2:]}")
    else:
        text = f'"{sample(declared)}"'.replace("\n", "\\n")
        expected = read("main:app", *companions, flag, sample(declared))
    for key in (*declared.keys, flag[2:]):
        write(f"{key} = {text}\n")
        assert read("main:app", *companions) == expected


def test_no_key_names_two_options_or_is_answered_elsewhere():
    keys = [key for declared in all_options() for key in declared.keys]
    assert len(keys) == len(set(keys))
    assert not KEYS_ELSEWHERE.keys() & set(keys)


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("workers = 3", ["--workers", "3"]),
        ('workers = "auto"', ["--workers", "auto"]),
        ("keep_alive = 7", ["--keep-alive", "7"]),
        ("keep_alive = 0.5", ["--keep-alive", "500ms"]),
        ("keep_alive = 30.0", ["--keep-alive", "30"]),
        ('keep_alive = "2m"', ["--keep-alive", "2m"]),
        ("ring_size = 1048576", ["--ring-size", "1MiB"]),
        ("tls_min_version = 1.3", ["--tls-min-version", "1.3"]),
        ("cert_reqs = 2\nca_certs = 'x'", ["--cert-reqs", "required", "--ca-certs", "x"]),
        ("umask = 0o027", ["--umask", "027"]),
        ('umask = "027"', ["--umask", "027"]),
        ("http3 = true", ["--http3"]),
        ("access_log = false", ["--no-access-log"]),
        ('bind = ":1"', ["--bind", ":1"]),
        ('bind = [":1", ":2"]', ["--bind", ":1", "--bind", ":2"]),
        ('host = "h"\nport = 1', ["--host", "h", "--port", "1"]),
        ('forwarded_allow_ips = "10.0.0.0/8,::1"', ["--forwarded-allow-ips", "10.0.0.0/8,::1"]),
        ('header = ["a:b, c", "d:e"]', ["--header", "a:b, c", "--header", "d:e"]),
        ("quic_server_id = 0xc0ffee", ["--quic-server-id", "0xc0ffee"]),
    ],
)
def test_values_are_written_as_toml_or_as_on_the_command_line(line, arguments):
    expected = read("main:app", *arguments)
    write(line)
    assert read("main:app") == expected


def test_the_application_may_stand_in_the_file():
    write('app = "main:app"')
    assert read().app.target == "main:app"
    assert read("other:app").app.target == "other:app"


# Which file


def test_files_are_found_in_the_current_folder(folder):
    assert find_file(folder) == ""
    write("[tool.other]\nx = 1\n", "pyproject.toml")
    assert find_file(folder) == ""
    write("[project]\nname = 'x'\n[tool.asgiri]\nworkers = 5\n", "pyproject.toml")
    assert read("main:app").workers.count == 5
    write("workers = 6")
    assert read("main:app").workers.count == 6
    write("workers = 7", "other.toml")
    assert read("main:app", "-c", "other.toml").workers.count == 7
    assert read("main:app", ASGIRI_CONFIG="other.toml").workers.count == 7
    assert read("main:app", "--config=/dev/null").workers.count == 1


def test_a_broken_project_file_of_others_is_not_ours(folder):
    write("not [ toml", "pyproject.toml")
    assert find_file(folder) == ""
    (folder / "pyproject.toml").write_bytes(b"\xff")
    assert find_file(folder) == ""


def test_an_argument_beats_the_environment_which_beats_the_file():
    write("workers = 2\nbind = ':1'")
    assert read("main:app").workers.count == 2
    assert read("main:app", WEB_CONCURRENCY="3").workers.count == 3
    assert read("main:app", ASGIRI_WORKERS="4", WEB_CONCURRENCY="3").workers.count == 4
    assert read("main:app", "-w5", ASGIRI_WORKERS="4").workers.count == 5
    assert read("main:app", PORT="80").listen.bind == ("0.0.0.0:80",)
    assert read("main:app", "--port", "80").listen.bind == ("127.0.0.1:80",)


# Problems


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nwrokers = 3", "asgiri.toml:2: wrokers: no such option; did you mean workers?"),
        ("qqq = 3", "asgiri.toml:1: qqq: no such option; see --help"),
        ("workers = 0", "asgiri.toml:1: workers = 0: must be between 1 and 1024"),
        ("workers = 2.5", "asgiri.toml:1: workers = 2.5: must be a number of workers, or auto"),
        ("workers = true", "asgiri.toml:1: workers = true: must be a whole number"),
        ("workers = []", "asgiri.toml:1: workers = []: must be a whole number"),
        ("http3 = 'perhaps'", "asgiri.toml:1: http3 = perhaps: must be true or false"),
        ("keep-alive = 'soon'", "asgiri.toml:1: keep-alive = soon: must be a duration such as"),
        ("keep_alive = 1979-05-27", "asgiri.toml:1: keep_alive = 1979-05-27: must be a duration"),
        ("ring_size = 1.5", "asgiri.toml:1: ring_size = 1.5: must be a whole number of bytes"),
        ("ring_size = 3", "asgiri.toml:1: ring_size = 3: must be between 128KiB and 1GiB"),
        ("log_level = 3", "asgiri.toml:1: log_level = 3: must be one of critical, error,"),
        ("bind = 8000", "asgiri.toml:1: bind = 8000: must be a text or a list of texts"),
        ("bind = [\n8000]", "asgiri.toml:1: bind = 8000: must be a text or a list of texts"),
        ("bind = ['a:b']", "asgiri.toml:1: bind = a:b: must end in a port between 0 and 65535"),
        ("[tls]\nx = 1", "asgiri.toml:1: tls: is a table; options stand by their own name, such"),
        ("config = 'x'", "asgiri.toml:1: config: names another file; write its options here"),
        ("http1 = false\nhttp2 = false", "asgiri.toml:1: http1 = false: leaves no version of HTT"),
        ("app = 'main.py'", "asgiri.toml:1: app = main.py: must be a module and an attribute, su"),
        ("host = 'a'\nbind = ':1'", "asgiri.toml:1: host = a: cannot go with --bind; give every"),
        (
            "keep_alive = 1\ntimeout_keep_alive = 2",
            "asgiri.toml:2: timeout_keep_alive: is the same as keep_alive in line 1",
        ),
        ("a = \n", "asgiri.toml:1: invalid value"),
        ("x = 1\n'", "asgiri.toml:2: "),
        ("x = 1\nx = 2", "asgiri.toml:2: cannot overwrite a value"),
    ],
)
def test_a_mistake_is_one_line_with_file_line_key_and_remedy(text, line):
    app = [] if text.startswith("app") else ["main:app"]
    write(text)
    with pytest.raises(UsageProblems) as caught:
        read_config(app, {})
    (found,) = caught.value.lines
    assert found.startswith(line)


def test_mistakes_of_all_places_are_told_at_once():
    lines = problems("workers = 0\nqqq = 1", "--wrokers", ASGIRI_KEEP_ALIVE="x")
    starts = ["--wrokers:", "ASGIRI_KEEP_ALIVE=x:", "asgiri.toml:1: workers = 0:", "asgiri.toml:2:"]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))


def test_a_file_that_cannot_be_read_is_told(folder):
    def refused(name):
        with pytest.raises(UsageProblems) as caught:
            read_config(["main:app", "-c", name], {})
        return caught.value.lines

    assert refused("a.toml") == ("a.toml: No such file or directory; name a file that can be read",)
    assert refused(".") == (".: Is a directory; name a file that can be read",)
    (folder / "b.toml").write_bytes(b"\xff")
    assert refused("b.toml") == ("b.toml: must be text in UTF-8",)
    write("[project]", "pyproject.toml")
    assert refused("pyproject.toml") == ("pyproject.toml: has no table [tool.asgiri]",)


def test_a_secret_is_not_repeated():
    (line,) = problems("keyfile_password = ['hunter2']")
    assert line == "asgiri.toml:1: keyfile_password = ***: must be a text"


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("a = 1\nb = 2\n", ("b",), 2),
        ("# b = 1\nb = 2\n", ("b",), 2),
        ('a = """\nb = 1\n"""\nb = 2\n', ("b",), 4),
        ("a = [\n'b', # b\n]\n'b' = [\n1,\n]\n", ("b",), 4),
        ("[x]\nb = 1\n[tool.asgiri]\nc = 1\nb = 2\n", ("tool", "asgiri", "b"), 5),
        ("tool.asgiri.b = 1\n", ("tool", "asgiri", "b"), 1),
        ("tool = { asgiri = { b = 1 } }\n", ("tool", "asgiri", "b"), 1),
        ('"\\u0062" = 1\n', ("b",), 0),
    ],
)
def test_the_line_of_a_key_is_where_its_statement_begins(text, path, line):
    assert line_of(text, path) == line


KEYS = st.sampled_from(["a", "b", "ab", "'b'", '"a"'])
VALUES = st.sampled_from(["1", "[\n'a',\n'b = 1'\n]", '"""\na = 1\nb = 1\n"""', "'b'", "1 # b"])


@given(st.lists(st.tuples(KEYS, VALUES), unique_by=lambda pair: pair[0].strip("'\"")))
def test_lines_are_told_in_every_document(pairs):
    number = 1
    text = ""
    expected = {}
    for key, value in pairs:
        expected[key.strip("'\"")] = number
        text += f"{key} = {value}\n"
        number = text.count("\n") + 1
    assert {key: line_of(text, (key,)) for key in tomllib.loads(text)} == expected


# Commands


def shown(*arguments, **environ):
    reading = read_sources(arguments, environ)
    return "\n".join(show(settle(reading), reading))


@pytest.mark.parametrize("declared", VISIBLE, ids=lambda declared: declared.name)
def test_what_is_shown_is_a_file_that_says_the_same(declared):
    companions = COMPANIONS.get(declared.name, [])
    words = [f"--{'no-' * bool(declared.default)}{declared.flags[0][2:]}"]
    if declared.base is not bool:
        words = [declared.flags[0], sample(declared)]
    expected = read("main:app", *companions, *words)
    text = shown("main:app", *companions, *words)
    write(text)
    assert read() == expected


def test_each_value_is_shown_with_its_place():
    write("workers = 3\nbacklog = 5")
    lines = shown("main:app", "--port=80", ASGIRI_KEEP_ALIVE="9").splitlines()
    places = dict(line.split("  # ") for line in lines if "  # " in line)
    places = {line.strip(): place for line, place in places.items()}
    assert places['app = "main:app"'] == "APP"
    assert places["workers = 3"] == "asgiri.toml:1"
    assert places['bind = ["127.0.0.1:80"]'] == "--port"
    assert places['keep_alive = "9s"'] == "ASGIRI_KEEP_ALIVE"
    assert places["http3 = false"] == "default"
    assert "# h2c_upgrade is not set" in lines


def test_a_secret_is_not_shown():
    text = shown("main:app", ASGIRI_KEYFILE_PASSWORD="hunter2")
    assert "hunter2" not in text
    assert "# keyfile_password = ***  # ASGIRI_KEYFILE_PASSWORD" in text.splitlines()


def test_a_check_says_which_file_was_read(capsys):
    assert run_command(["check"]) == 0
    write("workers = 3")
    assert run_command(["check"]) == 0
    assert capsys.readouterr().out == (
        "no problems found; no configuration file was read\n"
        "no problems found; asgiri.toml was read\n"
    )


def test_a_check_tells_every_problem():
    write("workers = 0")
    with pytest.raises(UsageProblems) as caught:
        run_command(["check", "--wrokers"])
    assert len(caught.value.lines) == 2


def test_the_command_without_a_verb_says_which_there_are():
    for words in ([], ["chekc"]):
        with pytest.raises(UsageProblems, match="say `config check` or `config show`"):
            run_command(words)
    assert run_command(["--help"]) == 0
