"""The command line: what can be written, what is answered, and with which exit code."""

import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asgiri
from asgiri.cli.listing import options_markdown
from asgiri.cli.peers import ELSEWHERE
from asgiri.cli.reading import UsageProblems, offered_options
from asgiri.cli.sources import read_config
from asgiri.config import Config, SourceOptions, all_options
from tests.support import readme

OFFERED = [declared for declared in offered_options() if declared.flags]
IN_CONFIG = [declared for declared in OFFERED if declared.owner is not SourceOptions]
SAMPLES = {
    # A value for each option that is neither its default nor refused.
    "app.app_dir": "src",
    "app.root_path": "/api",
    "http.headers": "x-a:b",
    "http.forwarded_allow_ips": "192.0.2.0/24",
    "listen.proxy_protocol_allow_ips": "192.0.2.0/24",
    "listen.bind": "127.0.0.1:9999",
    "listen.insecure_bind": "127.0.0.1:9997",
    "listen.quic_bind": "127.0.0.1:9998",
    "admin.bind": "127.0.0.1:9100",
    "admin.statsd_host": "127.0.0.1:8125",
    "listen.host": "localhost",
    "listen.port": "9999",
    "listen.uds": "/run/x.sock",
    "listen.fd": "3",
    "log.access_log_format": "%(h)s",
    "log.access_log_sampling": "0.25",
    "reload.delay": "0.5",
    "tls.certfile": "c.pem",
    "tls.keyfile": "k.pem",
    "process.umask": "027",
}
COMPANIONS = {
    "listen.quic_bind": ["--http3"],
    "tls.keyfile": ["--certfile", "c.pem"],
    "tls.cert_reqs": ["--ca-certs", "ca.pem"],
    "http.http1": ["--http2"],
    "http.redirect_https": ["--insecure-bind", ":80", "--certfile", "c.pem"],
}


def sample(declared):
    if declared.name in SAMPLES:
        return SAMPLES[declared.name]
    if declared.choices:
        return next((c for c in declared.choices if c != declared.default), declared.choices[0])
    if declared.base in (int, float):
        low = declared.option.minimum or 0
        default = declared.default or 0
        doubled = int(default * 2 or low + 1)
        high = declared.option.maximum
        return str(doubled if high is None or doubled <= high else int(high))
    return "text"


def read(*arguments, **environ):
    config = read_config(arguments, environ)
    assert isinstance(config, Config)
    return config


def problems(*arguments, **environ):
    with pytest.raises(UsageProblems) as caught:
        read_config(arguments, environ)
    return list(caught.value.lines)


def value_of(config, declared):
    return getattr(getattr(config, declared.section), declared.field)


# Every option


@pytest.mark.parametrize("declared", IN_CONFIG, ids=lambda declared: declared.name)
def test_every_option_is_taken_by_each_of_its_names_and_from_the_environment(declared):
    companions = COMPANIONS.get(declared.name, [])
    shorthand = declared.field in {"host", "port", "uds", "fd"} and declared.section == "listen"
    plain = read("main:app", *companions)
    results = []
    for name in (*declared.flags, *declared.aliases):
        if declared.base is bool:
            written = name if not declared.default else name.replace("--", "--no-", 1)
            results.append(read("main:app", *companions, written))
        else:
            results.append(read("main:app", *companions, name, sample(declared)))
    text = str(not declared.default) if declared.base is bool else sample(declared)
    results.append(read("main:app", *companions, **{declared.environment[0]: text}))
    assert all(result == results[0] for result in results)
    if shorthand:
        assert results[0].listen.bind != plain.listen.bind
    elif len(declared.choices) != 2 or declared.choices[0] != "auto":
        assert value_of(results[0], declared) != value_of(plain, declared)


@pytest.fixture(scope="module")
def help_text():
    return run("--help").stdout


@pytest.mark.parametrize("declared", OFFERED, ids=lambda declared: declared.name)
def test_help_shows_every_option(declared, help_text):
    name = declared.flags[0]
    if declared.base is bool:
        name = name.replace("--", "--[no-]", 1)
    assert re.search(rf"{re.escape(name)}\b", help_text)


def test_options_that_nothing_obeys_yet_are_not_offered(help_text):
    for declared in all_options():
        if declared.pending:
            (line,) = problems("main:app", declared.flags[0])
            assert line == f"{declared.flags[0]}: comes with a later version; leave it out"
            assert not re.search(rf"{declared.flags[0]}\s", help_text)


def test_no_option_of_another_server_is_also_ours():
    ours = {name for declared in all_options() for name in (*declared.flags, *declared.aliases)}
    assert not ours & ELSEWHERE.keys()


# Values


def test_durations_and_sizes_are_written_as_people_do():
    config = read("main:app", "--keep-alive", "2m", "--ring-size=1MiB")
    assert config.http1.keep_alive == 120
    assert config.ring.size == 1 << 20


def test_numbers_are_written_in_the_base_that_people_use():
    config = read("main:app", "--quic-server-id", "0xc0ffee", "--umask", "027")
    assert config.http3.quic_server_id == 0xC0FFEE
    assert config.process.umask == 0o027


def test_the_application_may_stand_anywhere():
    assert read("--workers", "2", "main:app", "--http3").app.target == "main:app"
    assert read(ASGIRI_APP="main:app").app.target == "main:app"
    assert read("other:app", ASGIRI_APP="main:app").app.target == "other:app"


def test_auto_workers_are_at_least_one():
    assert read("main:app", "--workers", "auto").workers.count >= 1


def test_an_argument_beats_our_variable_which_beats_one_that_programs_share():
    both = {"ASGIRI_WORKERS": "3", "WEB_CONCURRENCY": "4"}
    assert read("main:app", "-w", "2", **both).workers.count == 2
    assert read("main:app", **both).workers.count == 3
    assert read("main:app", WEB_CONCURRENCY="4").workers.count == 4


def test_an_empty_variable_is_none():
    assert read("main:app", WEB_CONCURRENCY="", PORT="", ASGIRI_BIND="") == read("main:app")


def test_the_variables_of_a_worker_are_no_options(capsys):
    read("main:app", ASGIRI_WORKER_SLOT="1", ASGIRI_WORKER_ID="7", ASGIRI_GENERATION="2")
    assert capsys.readouterr().err == ""


def test_a_misspelt_variable_is_told_but_does_not_stop_the_start(capsys):
    read("main:app", ASGIRI_WROKERS="3")
    assert capsys.readouterr().err == (
        "asgiri: ASGIRI_WROKERS: no such option, ignored; did you mean ASGIRI_WORKERS?\n"
    )


# Addresses


@pytest.mark.parametrize(
    ("arguments", "environ", "bind"),
    [
        ([], {}, ("127.0.0.1:8000",)),
        (["-b", ":1", "-b", "[::1]:2"], {}, (":1", "[::1]:2")),
        (["--host", "0.0.0.0"], {}, ("0.0.0.0:8000",)),
        (["--port", "0"], {}, ("127.0.0.1:0",)),
        (["--host", "::1", "--port", "80"], {}, ("[::1]:80",)),
        (["--uds", "/x"], {"PORT": "3000"}, ("unix:/x",)),
        (["--fd", "3"], {}, ("fd://3",)),
        ([], {"PORT": "3000"}, ("0.0.0.0:3000",)),
        (["--host", "localhost"], {"PORT": "3000"}, ("localhost:3000",)),
        ([], {"ASGIRI_PORT": "3001", "PORT": "3000"}, ("127.0.0.1:3001",)),
        (["--bind", ":1"], {"PORT": "3000"}, (":1",)),
        ([], {"ASGIRI_BIND": ":1,:2", "PORT": "3000"}, (":1", ":2")),
        (["--port", "5"], {"ASGIRI_BIND": ":1"}, ("127.0.0.1:5",)),
    ],
)
def test_addresses_come_from_the_strongest_place_that_names_one(arguments, environ, bind):
    assert read("main:app", *arguments, **environ).listen.bind == bind


def test_two_ways_to_name_an_address_are_refused():
    assert problems("main:app", "--host", "h", "--bind", ":1") == [
        "--host h: cannot go with --bind; give every address by it"
    ]
    assert problems("main:app", "--uds", "/x", "--fd", "3") == [
        "--uds /x: cannot go with --fd; give --bind for each"
    ]


# Problems


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--wrokers 3", "--wrokers: no such option; did you mean --workers?"),
        ("--no-htp3", "--no-htp3: no such option; did you mean --no-http3?"),
        ("--no-workers", "--no-workers: no such option; did you mean --workers?"),
        ("--qqq", "--qqq: no such option; see --help"),
        ("--workers 0", "--workers 0: must be between 1 and 1024"),
        ("--workers 10000", "--workers 10000: must be between 1 and 1024"),
        ("--workers many", "--workers many: must be a number of workers, or auto"),
        ("--keep-alive=soon", "--keep-alive soon: must be a duration such as 30, 30s, 5m or"),
        ("--log-level trace", "--log-level trace: must be one of critical, error, warning, info,"),
        ("--interface asg", "--interface asg: must be one of auto, asgi3, asgi2, wsgi; did you"),
        ("-k x.MyWorker", "--loop x.MyWorker: is no event loop; leave it out, every worker runs"),
        ("--ring-size 3MiB", "--ring-size 3MiB: must be a power of two"),
        ("--bind :1 --bind 8000", "--bind 8000: must name an address, such as 127.0.0.1:8000"),
        ("--quic-server-id x", "--quic-server-id x: must be a number such as 7 or 0x00c0ffee"),
        ("--umask 9", "--umask 9: must be an octal number such as 022"),
        ("--bind", "--bind: needs a value"),
        ("--http3=yes", "--http3: takes no value"),
        ("--no-http1 --no-http2", "--no-http1: leaves no version of HTTP; allow at least one"),
        ("--keyfile k", "--keyfile k: needs --certfile"),
        ("extra", "extra: one argument too many"),
        ("--reload-paths", "--reload-paths: is written --reload-dir"),
        ("--threads 4", "--threads: is written --wsgi-threads; for an ASGI application start"),
        ("-wx", "--workers x: must be a number of workers, or auto"),
        ("-Zx", "-Z: no such option; see --help"),
    ],
)
def test_a_mistake_is_one_line_with_option_value_and_remedy(arguments, line):
    (found,) = problems("main:app", *arguments.split())
    assert found.startswith(line)


def test_all_mistakes_are_told_at_once():
    lines = problems("main.py", "--wrokers", "3", "--ring-size", "3MiB", "--no-http1", "--no-http2",
                     WEB_CONCURRENCY="0", ASGIRI_KEEP_ALIVE="x")  # fmt: skip
    starts = ["--wrokers:", "ASGIRI_KEEP_ALIVE=x:", "WEB_CONCURRENCY=0:", "--ring-size 3MiB:",
              "--no-http1:"]  # fmt: skip
    for start in starts:
        assert [line.startswith(start) for line in lines].count(True) == 1
    assert len(lines) == len(starts) + 1  # and that there is no application


def test_a_missing_application_says_how_to_name_one():
    assert problems() == [
        "APP: missing; name the application as module:attribute, such as main:app"
    ]
    assert problems("main.py") == [
        "APP main.py: must be a module and an attribute, such as main:app"
    ]


@pytest.mark.parametrize("environ", [{}, {"ASGIRI_KEYFILE_PASSWORD": "hunter2"}])
def test_a_password_is_not_repeated_in_any_message(environ):
    arguments = [] if environ else ["--keyfile-password", "hunter2"]
    lines = problems("main:app", *arguments, "--keyfile", "k", "--workers", "0", **environ)
    assert "hunter2" not in "\n".join(lines)


WORDS = ["--bind", "-w", "--http3", "--no-", "--x", "-", "--", "a:b", "=", "1"]


@given(st.lists(st.sampled_from(WORDS)))
def test_no_command_line_ends_in_anything_but_a_configuration_or_problems(arguments):
    try:
        result = read_config(arguments, {})
    except UsageProblems as problems:
        result = problems.lines
    assert result


# The program


def run(*arguments, **environ):
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("ASGIRI_")
    }
    return subprocess.run(
        [sys.executable, "-m", "asgiri", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**inherited, "COLUMNS": "100", **environ},
    )


@pytest.mark.slow
def test_the_version_is_told():
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"asgiri {asgiri.__version__}\n")


@pytest.mark.slow
def test_wrong_usage_exits_with_2_and_prints_no_traceback():
    result = run("main:app", "--workers", "0", "--wrokers")
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "asgiri: --wrokers: no such option; did you mean --workers?",
        "asgiri: --workers 0: must be between 1 and 1024",
    ]


@pytest.mark.slow
def test_a_certificate_that_is_missing_exits_with_1_and_one_line():
    result = run("main:app", "--certfile", "/missing.pem")
    assert result.returncode == 1
    assert result.stderr.startswith("asgiri: /missing.pem: No such file or directory; check --cert")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_log_file_that_cannot_be_opened_exits_with_1_and_one_line():
    result = run("main:app", "--error-logfile", "/missing/x.log")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_wrong_access_log_format_is_told_with_all_other_mistakes():
    lines = problems("main:app", "--workers", "x", "--access-logformat", "%(x)s")
    assert [line.partition(":")[0] for line in lines] == ["--workers x", "--access-logformat %(x)s"]


def test_an_access_log_format_with_an_unknown_atom_exits_with_2():
    result = run("main:app", "--access-logformat", "%(x)s")
    assert result.returncode == 2
    assert result.stderr.startswith("asgiri: --access-logformat %(x)s: %(x)s is no atom; there are")


@pytest.mark.slow
def test_the_commands_streams_may_be_closed():
    command = f'exec "{sys.executable}" -m asgiri main:app --workers 0 <&- >&- 2>&-'
    assert subprocess.run(["/bin/sh", "-c", command], check=False, timeout=60).returncode == 2


# The README


def test_the_options_in_the_readme_are_those_there_are():
    _, table, _ = readme.split(readme.README.read_text())
    assert table.strip() == options_markdown().strip(), "run: python -m tests.support.readme"
