"""Where the control socket is, for both who open it and who look for it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from asgiri.ipc.control_path import Found, default_directory, find_sockets, socket_name


def test_a_service_has_it_in_its_runtime_directory(tmp_path):
    environ = {"RUNTIME_DIRECTORY": f"{tmp_path}/one:{tmp_path}/two", "XDG_RUNTIME_DIR": "/x"}
    assert default_directory(environ, 7) == tmp_path / "one"


def test_a_user_has_it_in_the_session_if_that_is_theirs(tmp_path):
    environ = {"XDG_RUNTIME_DIR": str(tmp_path)}
    uid = tmp_path.stat().st_uid
    assert default_directory(environ, uid) == tmp_path / "asgiri"
    assert default_directory(environ, uid + 1) != tmp_path / "asgiri"


def test_otherwise_the_user_is_part_of_its_name():
    folder = default_directory({}, 4711)
    assert folder.name == "asgiri-4711"
    assert folder.parent in {Path("/run"), Path(os.environ.get("TMPDIR", "/tmp"))}


@pytest.fixture
def listener(tmp_path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / socket_name(123)))
        bound.listen()
        yield bound


@pytest.mark.linux
def test_sockets_are_found_wherever_they_are(listener, tmp_path):
    (tmp_path / "asgiri-x.sock").touch()
    path = tmp_path / "asgiri-123.sock"
    assert Found(123, path) in find_sockets({})
    assert all(found.path.name != "asgiri-x.sock" for found in find_sockets({}))


def test_without_a_table_those_in_the_default_folder_are(tmp_path):
    environ = {"RUNTIME_DIRECTORY": str(tmp_path)}
    for name in ("asgiri-12.sock", "asgiri-9.sock", "other.sock"):
        (tmp_path / name).touch()
    found = find_sockets(environ, table=tmp_path / "missing")
    assert found == [Found(9, tmp_path / "asgiri-9.sock"), Found(12, tmp_path / "asgiri-12.sock")]
