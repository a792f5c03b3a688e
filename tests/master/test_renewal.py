"""What a reload takes over from a new configuration, and what it leaves."""

from __future__ import annotations

import pytest

from asgiri.config import Config, options_in
from asgiri.errors import StartError
from asgiri.master.renewal import FIXED, check_encryption, renew


def config(**sections) -> Config:
    return Config.from_values({"app": {"target": "main:app"}, **sections})


def test_what_is_new_is_taken():
    wanted = config(
        workers={"count": 5}, http={"limit_concurrency": 3}, app={"target": "other:app"}
    )
    assert renew(config(), wanted) == (wanted, [])


def test_sockets_user_and_secret_wait_for_a_restart():
    present = config(listen={"bind": (":1",)}, process={"name": "one", "user": "me"})
    wanted = config(
        listen={"bind": (":2",), "backlog": 7},
        process={"name": "two", "user": "you"},
        http3={"quic_secret_file": "/new", "quic_retry": "always"},
        workers={"count": 5},
        reload={"enabled": True},
    )
    kept, waiting = renew(present, wanted)
    assert waiting == ["--bind", "--backlog", "--user", "--reload", "--quic-secret-file"]
    assert kept.listen == present.listen
    assert (kept.process.name, kept.process.user) == ("two", "me")
    assert (kept.http3.quic_secret_file, kept.http3.quic_retry) == ("", "always")
    assert kept.workers.count == 5


def test_every_fixed_option_exists():
    for section, fields in FIXED.items():
        assert fields <= {declared.field for declared in options_in(section)}


TLS = {"tls": {"self_signed": True}}
HTTP3 = {"http": {"http3": True}}


@pytest.mark.parametrize(
    ("present", "wanted", "reason"),
    [
        ({}, TLS, "TLS is off: to turn it on, restart"),
        (TLS, {}, "TLS is on: to turn it off, restart"),
        (TLS, {**TLS, **HTTP3}, "HTTP/3 is off: to turn it on, restart"),
        (HTTP3, TLS, "HTTP/3 is on: to turn it off, restart"),
    ],
)
def test_sockets_do_not_change_what_they_speak(present, wanted, reason):
    with pytest.raises(StartError, match=reason):
        renew(config(**present), config(**wanted))


def test_a_state_says_what_is_spoken():
    check_encryption(config(**HTTP3), http3=True, tls=True)
    with pytest.raises(StartError, match="TLS is on"):
        check_encryption(config(), http3=False, tls=True)
