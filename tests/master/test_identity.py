"""Pid file, accounts, limits: real ones, in child processes where they change who we are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from asgiri.errors import StartError
from asgiri.master.identity import Account, PidFile

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody else")


def run_code(code: str, *arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


# Pid file


def test_pid_file_holds_our_pid_and_goes_at_the_end(tmp_path):
    path = tmp_path / "a.pid"
    pid_file = PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pid"]
    pid_file.remove()
    assert not path.exists()
    pid_file.remove()


def test_pid_file_of_a_running_process_keeps_us_from_starting(tmp_path):
    path = tmp_path / "a.pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(StartError, match=f"process {os.getppid()} runs already; stop it, or"):
        PidFile(path)
    assert path.read_text() == f"{os.getppid()}\n"


@pytest.mark.parametrize("content", ["", "rubbish\n", "-1\n", "0\n", "99999999999999999999\n"])
def test_pid_file_of_nobody_is_replaced(tmp_path, content):
    path = tmp_path / "a.pid"
    path.write_text(content)
    PidFile(path).remove()
    assert not path.exists()


def test_pid_file_of_a_process_that_is_gone_is_replaced(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    path = tmp_path / "a.pid"
    path.write_text(f"{process.pid}\n")
    PidFile(path)
    assert path.read_text() == f"{os.getpid()}\n"


def test_pid_file_never_follows_a_link_and_survives_a_leftover(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    path = tmp_path / "a.pid"
    path.symlink_to(precious)
    (tmp_path / f"a.pid.{os.getpid()}").write_text("left behind")
    PidFile(path)
    assert not path.is_symlink()
    assert precious.read_text() == "keep me"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.pid", "precious"]


def test_pid_file_of_another_server_is_not_removed(tmp_path):
    path = tmp_path / "a.pid"
    pid_file = PidFile(path)
    path.write_text("1\n")
    pid_file.remove()
    assert path.read_text() == "1\n"


def test_pid_file_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(StartError, match="No such file or directory; name one that") as info:
        PidFile(tmp_path / "missing" / "a.pid")
    assert "\n" not in str(info.value)


@needs_root
def test_pid_file_that_cannot_be_removed_is_said(tmp_path):
    code = """
import logging, os, sys
from pathlib import Path
from asgiri.master.identity import PidFile
logging.basicConfig()
pid_file = PidFile(Path(sys.argv[1]))
os.setuid(65534)
pid_file.remove()
"""
    tmp_path.chmod(0o755)
    done = run_code(code, str(tmp_path / "a.pid"), check=True)
    assert f"cannot remove the pid file {tmp_path}/a.pid: " in done.stderr
    assert "Traceback" not in done.stderr


# User and group


def test_no_user_and_no_group_change_nothing():
    assert Account.find("", "") is None


def test_unknown_names_say_where_to_look():
    with pytest.raises(StartError, match="--user no-such-user: no such user; see: getent passwd"):
        Account.find("no-such-user", "")
    with pytest.raises(StartError, match="--group no-such-group: no such group"):
        Account.find("", "no-such-group")


def test_names_and_numbers_are_both_found():
    root = Account.find("root", "")
    assert root is not None
    assert (root.uid, root.gid) == (0, 0)
    assert Account.find("0", "0") == root
    unlisted = Account.find("54321", "54322")
    assert unlisted is not None
    assert (unlisted.uid, unlisted.gid, unlisted.name) == (54321, 54322, "")


BECOME = """
import os, sys
from asgiri.errors import StartError
from asgiri.master.identity import Account
try:
    Account.find(sys.argv[1], sys.argv[2]).become()
except StartError as error:
    print(error)
print(os.getresuid(), os.getresgid(), os.getgroups())
try:
    os.setuid(0)
    print("root again")
except PermissionError:
    print("for good")
"""


@needs_root
@pytest.mark.parametrize(
    ("user", "group", "expected"),
    [
        ("54321", "54322", "(54321, 54321, 54321) (54322, 54322, 54322) [54322]\nfor good\n"),
        ("nobody", "54322", "(65534, 65534, 65534) (54322, 54322, 54322) [54322]\nfor good\n"),
    ],
)
def test_becoming_somebody_is_complete_and_for_good(user, group, expected):
    assert run_code(BECOME, user, group, check=True).stdout == expected


@needs_root
def test_becoming_somebody_without_permission_is_one_line():
    code = BECOME.replace("try:", "os.setuid(65534)\ntry:", 1)
    done = run_code(code, "54321", "", check=True)
    assert done.stdout.startswith("cannot become user 54321, group 0: Operation not permitted; ")


def test_becoming_who_we_are_needs_no_permission():
    Account(os.geteuid(), os.getegid(), "").become()


# Limits and title


def test_the_file_limit_is_raised_to_what_the_system_grants():
    code = """
import resource
from asgiri.master.identity import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
print(raise_file_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE), raise_file_limit())
"""
    assert run_code(code, check=True).stdout == "512 512 512 512\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_title_is_seen_in_the_process_list():
    code = """
from pathlib import Path
from asgiri.master.identity import set_title
set_title("asgiri: master [app:app]")
print(Path("/proc/self/cmdline").read_text())
"""
    assert run_code(code, check=True).stdout.startswith("asgiri: master [app:app]")
