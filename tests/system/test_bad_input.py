"""What cannot start says why in one line, exits with the documented status, and leaves nothing."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificates import certificates
from tests.support.server import run_to_end

APP = "tests.support.apps:app"
ANYWHERE = ("--bind", "127.0.0.1:0", "--workers", "2")


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def complaint(output: str) -> str:
    """The one line of a refusal."""
    lines = output.splitlines()
    assert len(lines) == 1, output
    return lines[0]


USAGE = {
    "unknown option": (["--no-such-option", APP], "no-such-option"),
    "unknown option, nearly right": (["--worker", "2", APP], "--workers"),
    "no application": ([], "APP"),
    "workers is no number": (["--workers", "many", APP], "--workers many"),
    "no workers": (["--workers", "0", APP], "--workers 0"),
    "bad address": (["--bind", "127.0.0.1:70000", APP], "70000"),
    "bad duration": (["--keep-alive", "soon", APP], "--keep-alive soon"),
    "key without certificate": (["--keyfile", "key.pem", APP], "certfile"),
    "unknown choice": (["--http1-parser", "nginx", APP], "nginx"),
    "application without attribute": (["tests.support.apps", *ANYWHERE], "tests.support.apps"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "named"), USAGE.values(), ids=USAGE.keys())
def test_wrong_usage_exits_with_2(arguments: list[str], named: str):
    status, output = run_to_end(*arguments)
    assert named in complaint(output)
    assert status == 2, output


@pytest.mark.slow
def test_a_wrong_environment_variable_exits_with_2():
    status, output = run_to_end(APP, *ANYWHERE[:2], environment={"ASGIRI_WORKERS": "many"})
    assert "ASGIRI_WORKERS=many" in complaint(output)
    assert status == 2


@pytest.mark.slow
def test_a_port_in_use_exits_with_1(used_port: int):
    status, output = run_to_end(APP, "--bind", f"127.0.0.1:{used_port}")
    assert str(used_port) in complaint(output)
    assert status == 1


@pytest.mark.slow
def test_a_udp_port_in_use_exits_with_1():
    files = certificates()
    with socket.socket(type=socket.SOCK_DGRAM) as occupant:
        occupant.bind(("127.0.0.1", 0))
        port = occupant.getsockname()[1]
        status, output = run_to_end(
            *(APP, "--bind", f"127.0.0.1:{port}", "--http3"),
            *("--certfile", str(files.certfile), "--keyfile", str(files.keyfile)),
        )
    assert str(port) in complaint(output)
    assert status == 1


@pytest.mark.slow
@pytest.mark.skipif(
    Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip() != "1024",
    reason="this machine lets everybody bind every port",
)
@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root, and setpriv is missing"
)
def test_a_privileged_port_exits_with_1():
    drop = ["setpriv", "--bounding-set=-net_bind_service"] if os.geteuid() == 0 else []
    status, output = run_to_end(APP, "--bind", "127.0.0.1:443", prefix=drop)
    assert re.search("443.*[Pp]ermission", complaint(output))
    assert status == 1


def tls_arguments() -> dict[str, tuple[list[str], str]]:
    files = certificates()
    good, key = str(files.certfile), str(files.keyfile)
    return {
        "no such certificate": (["--certfile", "/nowhere.pem", "--keyfile", key], "/nowhere.pem"),
        "no such key": (["--certfile", good, "--keyfile", "/nowhere.key"], "/nowhere.key"),
        "another's key": (["--certfile", good, "--keyfile", str(files.other_keyfile)], "other.key"),
        "certificate without key": (["--certfile", good], "server.pem"),
        "no certificate at all": (["--certfile", __file__, "--keyfile", key], "test_bad_input.py"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", tls_arguments())
def test_a_certificate_that_cannot_be_used_exits_with_1(case: str):
    arguments, named = tls_arguments()[case]
    status, output = run_to_end(APP, *ANYWHERE, *arguments)
    assert named in complaint(output)
    assert status == 1


@pytest.mark.slow
def test_a_unix_socket_in_a_missing_directory_exits_with_1(tmp_path: Path):
    status, output = run_to_end(APP, "--bind", f"unix:{tmp_path}/missing/socket")
    assert f"{tmp_path}/missing" in complaint(output)
    assert status == 1


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root, and setpriv is missing"
)
def test_a_unix_socket_without_permission_exits_with_1(tmp_path: Path):
    directory = tmp_path / "closed"
    directory.mkdir(mode=0o500)
    drop = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    status, output = run_to_end(APP, "--bind", f"unix:{directory}/socket", prefix=drop)
    assert str(directory) in complaint(output)
    assert status == 1


@pytest.mark.slow
def test_a_file_that_is_no_socket_is_not_replaced(tmp_path: Path):
    file = tmp_path / "precious"
    file.write_text("content")
    status, output = run_to_end(APP, "--bind", f"unix:{file}")
    assert str(file) in complaint(output)
    assert (status, file.read_text()) == (1, "content")


BROKEN_APPS = {
    "no such module": ("no_such_module:app", "no_such_module"),
    "no such attribute": ("tests.support.apps:missing", "missing"),
    "not callable": ("tests.support.apps:not_callable", "not_callable"),
    "error while importing": ("tests.support.broken_app:app", "broken_app"),
    "exit while importing": ("tests.support.exiting_app:app", "exiting_app"),
    "startup failed": ("tests.support.apps:failing_lifespan", "no database"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("app", "named"), BROKEN_APPS.values(), ids=BROKEN_APPS.keys())
def test_an_application_that_cannot_start_exits_with_3(app: str, named: str):
    status, output = run_to_end(app, *ANYWHERE)
    assert named in output
    assert output.count(named) < 8, output  # told once, not by every worker
    assert status == 3, output


@pytest.mark.slow
def test_an_error_in_startup_exits_with_3_when_lifespan_is_on():
    status, output = run_to_end("tests.support.apps:raising_lifespan", *ANYWHERE, "--lifespan=on")
    assert "startup broke" in output
    assert status == 3
