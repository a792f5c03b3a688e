"""The boot self-test, with aioquic as it is and as it might become."""

from __future__ import annotations

import os
import re
from typing import Any

import aioquic
import pytest
from aioquic.quic.connection import QuicConnection

from asgiri.errors import LocalProtocolError
from asgiri.ipc.connection_id import ConnectionIdMint
from asgiri.ipc.tokens import ResetTokens
from asgiri.worker.protocol import quic_self_test
from asgiri.worker.protocol.quic import SteeredQuicConnection
from asgiri.worker.protocol.quic_self_test import check_steering
from tests.support.quic_pair import WORKER_ID, codec, secrets

VERSION = re.escape(aioquic.__version__)


def reset_tokens() -> ResetTokens:
    return ResetTokens(secrets().reset_key)


def mint() -> ConnectionIdMint:
    return ConnectionIdMint(codec(), WORKER_ID, random=os.urandom)


def test_it_passes_with_this_aioquic():
    check_steering(mint(), reset_tokens())


def test_it_notices_connection_ids_that_are_not_ours(monkeypatch: pytest.MonkeyPatch):
    """As if a new aioquic made them under another name."""
    monkeypatch.setattr(
        SteeredQuicConnection,
        "_replenish_connection_ids",
        QuicConnection._replenish_connection_ids,
    )
    with pytest.raises(
        LocalProtocolError, match=f"aioquic {VERSION} .*: it issues some of its own; install"
    ):
        check_steering(mint(), reset_tokens())


def test_it_notices_tokens_that_are_not_ours():
    class OtherTokens(ResetTokens):
        """Differ each time they are asked for."""

        def token(self, connection_id: bytes) -> bytes:
            return os.urandom(16)

    with pytest.raises(LocalProtocolError, match="reset tokens of its own"):
        check_steering(mint(), OtherTokens(bytes(16)))


def test_it_notices_that_too_few_are_issued(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SteeredQuicConnection, "_replenish_connection_ids", lambda self: None)
    with pytest.raises(LocalProtocolError, match="only 1 were issued"):
        check_steering(mint(), reset_tokens())


def test_it_notices_a_name_that_moved(monkeypatch: pytest.MonkeyPatch):
    def without(connection: Any, name: str) -> Any:
        return object.__getattribute__(connection, "_cids" if name == "_host_cids" else name)

    monkeypatch.setattr(SteeredQuicConnection, "__getattribute__", without)
    with pytest.raises(LocalProtocolError, match=r"AttributeError: .*_cids"):
        check_steering(mint(), reset_tokens())


def test_it_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quic_self_test, "SELF_TEST_FLIGHTS", 1)
    with pytest.raises(LocalProtocolError, match="only 8 were issued"):
        check_steering(mint(), reset_tokens())


def test_it_notices_a_handshake_that_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quic_self_test, "ALPN", "h3")
    original = quic_self_test._throw_away_configuration

    def other_protocol() -> Any:
        configuration = original()
        configuration.alpn_protocols = ["other"]
        return configuration

    monkeypatch.setattr(quic_self_test, "_throw_away_configuration", other_protocol)
    with pytest.raises(LocalProtocolError, match="no handshake"):
        check_steering(mint(), reset_tokens())
