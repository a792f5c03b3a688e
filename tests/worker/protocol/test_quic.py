"""aioquic's connection as we use it: connection IDs, credit, and what hostile peers make it do."""

from __future__ import annotations

import ast
import inspect
import os
import random
import re
from pathlib import Path
from typing import Any

import aioquic
import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.ipc.connection_id import CONNECTION_ID_LENGTH, ConnectionIdKind, ConnectionIdMint
from asgiri.ipc.scoreboard import Refusal
from asgiri.ipc.tokens import ResetTokens
from asgiri.worker.protocol import quic, quic_self_test
from asgiri.worker.protocol.events import ConnectionEnded, PeerViolation, ResponseHead
from asgiri.worker.protocol.http3_frames import DATA, frame, write_integer
from asgiri.worker.protocol.quic import (
    CHALLENGE_BURST,
    MAX_CRYPTO,
    MIN_GAPS,
    SteeredQuicConnection,
    parse_initial_untrusted,
)
from tests.support.quic_pair import POST, SERVER_ADDRESS, WORKER_ID, Pair, codec, secrets

VERSION = re.escape(aioquic.__version__)

OURS = (ConnectionIdKind.CONNECTION, WORKER_ID)
OTHER_ADDRESS = ("203.0.113.9", 40000)


@pytest.fixture
def pair() -> Pair:
    return Pair()


def reset_tokens() -> ResetTokens:
    return ResetTokens(secrets().reset_key)


def mint() -> ConnectionIdMint:
    return ConnectionIdMint(codec(), WORKER_ID, random=os.urandom)


# Connection IDs


def test_every_connection_id_that_a_client_learns_names_its_worker(pair: Pair):
    client = pair.client
    learned = {}
    for _ in range(12):
        for entry in (client._peer_cid, *client._peer_cid_available):
            learned[entry.cid] = entry.stateless_reset_token
        client.change_connection_id()
        pair.run()
    assert len(learned) == 8 + 12 - 1
    for connection_id, token in learned.items():
        assert codec().open_untrusted(connection_id) == OURS
        assert token == reset_tokens().token(connection_id)


def test_connection_ids_are_announced_as_they_come_and_go():
    pair = Pair(connect=False)
    known = set(pair.engine.connection_ids)
    assert len(known) == 1
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    for _ in range(3):
        pair.client.change_connection_id()
        pair.run()
    retired = set()
    for connection_id, is_new in pair.engine.take_connection_id_changes():
        if is_new:
            known.add(connection_id)
        else:
            known.remove(connection_id)
            retired.add(connection_id)
    assert known == set(pair.engine.connection_ids)
    assert len(retired) == 3
    assert pair.engine.take_connection_id_changes() == []


@pytest.mark.parametrize("version", [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2])
def test_both_versions_are_spoken(version: int):
    pair = Pair(client={"supported_versions": [version], "original_version": version})
    assert pair.client._version == version


def test_every_private_name_of_aioquic_that_we_use_is_still_there(pair: Pair):
    """Fails when one of them moves: then read aioquic's changes before anything else."""
    used = {
        node.attr
        for module in (quic, quic_self_test)
        for node in ast.walk(ast.parse(Path(inspect.getfile(module)).read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
    }
    stream = QuicStream(stream_id=0)
    theirs = {
        name
        for thing in (pair.client, pair.client._loss, stream.sender, stream.receiver)
        for name in (*vars(thing), *dir(type(thing)))
    }
    base = QuicConnection(configuration=pair.client.configuration)
    ours = (set(vars(pair.quic)) | set(vars(SteeredQuicConnection))) - set(vars(base))
    ours -= set(dir(QuicConnection))
    ours |= {"_inner"}  # of _RecordingMint
    assert used - ours - theirs == set()
    assert used & theirs >= {"_host_cids", "_replenish_connection_ids", "_local_max_data"}
    # None of our own names hides one of theirs.
    assert ours & set(vars(base)) == set()


@pytest.mark.parametrize(
    "name",
    [
        "close",
        "_get_or_create_stream",
        "_handle_ack_frame",
        "_handle_crypto_frame",
        "_handle_new_connection_id_frame",
        "_handle_path_challenge_frame",
        "_parse_transport_parameters",
        "_write_connection_limits",
        "_write_stream_limits",
    ],
)
def test_what_we_override_is_still_called_as_we_define_it(name: str):
    theirs = inspect.signature(getattr(QuicConnection, name))
    ours = inspect.signature(getattr(SteeredQuicConnection, name))
    assert list(theirs.parameters) == list(ours.parameters)


# Floods


def test_path_challenges_end_the_connection_when_they_are_many(pair: Pair):
    """CVE-2023-49295: answers that pile up, and each takes a datagram of full size."""
    for _ in range(CHALLENGE_BURST // 25):
        pair.to_server(pair.forge(b"\x1a12345678" * 25))
    assert pair.take_events() == []
    pair.to_server(pair.forge(b"\x1a12345678" * 25))
    pair.run()
    violation, ended = pair.take_events()
    assert isinstance(violation, PeerViolation)
    assert violation.reason is Refusal.QUIC_FRAME_FLOOD
    assert isinstance(ended, ConnectionEnded)


@pytest.mark.parametrize("size", [1200, 1452])
def test_datagrams_are_as_large_as_the_option_says(size: int):
    sizes = []

    def network(datagram: bytes) -> tuple[bytes]:
        sizes.append(len(datagram))
        return (datagram,)

    pair = Pair(http3={"max_datagram_size": size}, network=network)
    pair.request()
    pair.run()
    (request,) = pair.take_events()
    head = ResponseHead(200, [])
    pair.engine.send_response(request.stream_id, head, b"x" * 100_000, ended=True)
    pair.run()
    assert max(sizes) == size


# Paths


def first_flight(pair: Pair) -> list[bytes]:
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    return [datagram for datagram, _ in pair.client.datagrams_to_send(pair.now)]


@pytest.mark.parametrize("trusted", [True, False])
def test_an_address_that_a_token_proved_is_not_held_to_three_times_what_it_sent(trusted: bool):
    pair = Pair(connect=False)
    if trusted:
        pair.quic.trust_path(pair.client_address)
    sent = first_flight(pair)
    pair.to_server(*sent)
    assert pair.quic._network_paths[0].is_validated is trusted
    answer = sum(map(len, pair.from_server()))
    assert answer <= 3 * sum(map(len, sent))


def test_a_client_may_go_on_from_another_address(pair: Pair):
    pair.client_address = OTHER_ADDRESS
    stream = pair.request()
    pair.run()
    pair.engine.send_response(stream, ResponseHead(200, []), b"still here", ended=True)
    datagrams = pair.engine.datagrams_to_send(pair.now)
    assert datagrams[0][1] == OTHER_ADDRESS
    pair.client.receive_datagram(datagrams[0][0], ("192.0.2.1", 443), pair.now)
    pair.run()
    assert pair.received(stream).body == b"still here"


def test_a_new_address_counts_once_it_is_validated(pair: Pair):
    """Until then it may be somebody else's, to whom a packet was replayed."""
    pair.client_address = OTHER_ADDRESS
    pair.client.send_ping(1)
    pair.say()
    assert pair.quic._network_paths[0].addr == OTHER_ADDRESS
    assert not pair.quic.is_at(OTHER_ADDRESS)
    pair.run()
    assert pair.quic.is_at(OTHER_ADDRESS)
    assert not pair.quic.is_at(("198.51.100.7", 50000))


def test_an_address_that_packets_are_replayed_from_is_asked_and_not_flooded(pair: Pair):
    """RFC 9000 §9.3: until it is validated, three times what came from there, and no more."""
    stream = pair.request()
    pair.run()
    pair.engine.send_response(stream, ResponseHead(200, []), bytes(1_000_000), ended=True)
    pair.client_address = OTHER_ADDRESS  # of somebody who takes a packet on its way
    pair.client.send_ping(1)
    (taken,) = [datagram for datagram, _ in pair.client.datagrams_to_send(pair.now)]
    pair.to_server(taken)
    sent = []
    end = pair.now + 5
    while pair.now < end:
        sent += pair.engine.datagrams_to_send(pair.now)
        due = pair.engine.timer()
        if due is None:
            break
        pair.now = max(due, pair.now)
        pair.handle_timer(pair.now)
    there = [datagram for datagram, address in sent if address == OTHER_ADDRESS]
    assert there
    assert sum(map(len, there)) <= 3 * len(taken)


# Receive credit


def received_bytes(pair: Pair) -> int:
    return sum(len(event.data) for event in pair.take_events() if hasattr(event, "credit"))


def test_credit_is_announced_when_it_is_worth_a_frame():
    pair = Pair(http3={"stream_window": 100_000, "connection_window": 400_000})
    stream = pair.open(pair.section(POST) + frame(DATA, bytes(300_000)))
    pair.run(5.0)
    before = pair.client._streams[stream].max_stream_data_remote
    pair.engine.acknowledge(stream, 20_000)
    assert not pair.engine.output_is_due
    pair.engine.acknowledge(stream, 20_000)
    assert pair.engine.output_is_due
    pair.run(5.0)
    assert pair.client._streams[stream].max_stream_data_remote >= before + 40_000


def test_a_lost_announcement_is_repeated():
    pair = Pair(http3={"stream_window": 100_000, "connection_window": 400_000})
    stream = pair.open(pair.section(POST) + frame(DATA, bytes(300_000)))
    pair.run(5.0)
    pair.engine.acknowledge(stream, 90_000)
    lost = pair.from_server()
    assert lost
    pair.run(10.0)
    assert pair.client._streams[stream].max_stream_data_remote >= 190_000
    assert pair.client._remote_max_data >= 400_000


def test_no_credit_is_announced_for_a_stream_that_has_ended(pair: Pair):
    stream = pair.open(pair.section(POST) + frame(DATA, bytes(900_000)), ended=True)
    pair.run(5.0)
    before = pair.client._streams[stream].max_stream_data_remote
    pair.engine.acknowledge(stream, 900_000)
    pair.run(5.0)
    assert pair.client._streams[stream].max_stream_data_remote == before


def test_calls_on_streams_that_do_not_exist_do_nothing(pair: Pair):
    quic = pair.quic
    quic.send(400, b"x")
    quic.abort_sending(400, 1)
    quic.stop_receiving(400, 1)
    assert (quic.unsent(400), quic.held(400), quic.sending_is_over(400)) == (0, 0, True)
    assert quic.release(400, 0) is False
    pair.run()
    assert pair.closed is None


def test_sending_after_the_end_does_nothing(pair: Pair):
    """aioquic raises; hypercorn 0.18 then answers nobody any more."""
    ended, reset = pair.request(), pair.request()
    pair.run()
    pair.quic.send(ended, b"x", ended=True)
    pair.quic.send(ended, b"y")
    pair.client.stop_stream(reset, 1)
    pair.run()
    pair.quic.send(reset, b"z")
    assert pair.quic.unsent(reset) == 0
    pair.run()
    assert pair.closed is None


def test_what_is_held_goes_when_it_is_acknowledged(pair: Pair):
    stream = pair.request()
    pair.run()
    pair.quic.send(stream, bytes(2000))
    assert (pair.quic.unsent(stream), pair.quic.held(stream)) == (2000, 2000)
    sent = pair.from_server()
    assert (pair.quic.unsent(stream), pair.quic.held(stream)) == (0, 2000)
    assert pair.quic.has_unfinished_responses
    for datagram in sent:
        pair.client.receive_datagram(datagram, ("192.0.2.1", 443), pair.now)
    pair.run()
    assert pair.quic.held(stream) == 0


def test_the_cipher_suite_is_known_after_the_handshake(pair: Pair):
    assert pair.quic.tls_extension()["cipher_suite"] in (0x1301, 0x1302, 0x1303)


def test_the_handshakes_buffers_go_with_it(pair: Pair):
    assert pair.quic._crypto_buffers == {}


def test_what_is_under_way_is_bounded(pair: Pair):
    """Whatever a client has acknowledged before."""
    pair.quic._loss._cc.congestion_window = 1 << 30
    pair.from_server()
    assert pair.quic._loss._cc.congestion_window == quic.MAX_FLIGHT


def test_streams_are_stalled_when_nothing_of_them_can_be_sent():
    pair = Pair(client={"max_stream_data": 1000})
    pair.client.grants_itself = False
    stuck, moving, over = pair.request(), pair.request(), pair.request()
    pair.run()
    for stream in (stuck, moving, over):
        pair.quic.send(stream, bytes(5000))
    pair.run()
    pair.quic.abort_sending(over, 1)
    assert pair.quic.stalled_streams(1.0, 60.0) == []
    pair.client.grant(moving, 1000)
    pair.run()
    assert pair.quic.stalled_streams(30.0, 60.0) == []
    assert pair.quic.stalled_streams(61.0, 60.0) == [stuck]
    assert pair.quic.stalled_streams(90.0, 60.0) == [stuck, moving]


def test_priorities_of_streams_that_are_gone_are_forgotten(pair: Pair):
    for _ in range(60):
        stream = pair.request()
        pair.run()
        pair.quic.prioritize(stream, 1, incremental=False)
        pair.engine.send_response(stream, ResponseHead(200, []), b"x", ended=True)
        pair.engine.release(stream)
        pair.run()
    assert len(pair.quic._orders) < 40


# Silence


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.floats(0, 0.3))
def test_what_we_take_for_silence_aioquic_would_not_break(seed: int, loss: float):
    """`_is_quiet` must be right whatever happened before, or something would wait for ever."""
    randomness = random.Random(seed)
    pair = Pair(
        http3={"max_streams": 8, "stream_window": 20_000, "connection_window": 65_536},
        network=None,
    )
    quic = pair.quic
    quiet = type(quic)._is_quiet
    checked = 0

    def is_quiet(now: float) -> bool:
        nonlocal checked
        if not quiet(quic, now):
            return False
        checked += 1
        assert QuicConnection.datagrams_to_send(quic, now) == []
        return True

    quic._is_quiet = is_quiet
    pair.network = lambda datagram: () if randomness.random() < loss else (datagram,)
    for _ in range(randomness.randrange(5, 40)):
        match randomness.randrange(8):
            case 0 | 1:
                pair.open(pair.section(POST) + frame(DATA, bytes(randomness.randrange(30_000))))
            case 2:
                pair.client.change_connection_id()
            case 3:
                pair.client_address = ("198.51.100.7", randomness.randrange(1024, 65535))
            case 4:
                pair.client.send_ping(randomness.randrange(1 << 30))
            case 5 if pair.engine._requests:
                stream = randomness.choice(list(pair.engine._requests))
                pair.engine.send_response(
                    stream, ResponseHead(200, []), bytes(3000), ended=randomness.random() < 0.7
                )
                pair.engine.release(stream)
            case 6 if pair.engine._requests:
                stream = randomness.choice(list(pair.engine._requests))
                pair.engine.acknowledge(stream, 9000)
            case 7 if pair.engine._requests:
                stream = randomness.choice(list(pair.engine._requests))
                if stream in pair.client._streams:
                    pair.client.reset_stream(stream, 1)
        pair.run(randomness.choice([0.001, 0.02, 0.5]))
    assert checked
    assert pair.quic.fault is None


def test_streams_that_are_over_make_room_while_others_stay():
    pair = Pair(http3={"max_streams": 2})
    first, second = pair.request(), pair.request()
    pair.run()
    pair.quic.send(first, b"over", ended=True)
    pair.run()
    assert first not in pair.quic._streams
    assert second in pair.quic._streams
    pair.engine.release(first)
    third = pair.request()
    pair.run()
    assert third in pair.quic._streams


def test_a_timer_that_fires_early_changes_nothing(pair: Pair):
    pair.request()
    pair.say()
    at = pair.engine.timer()
    assert at is not None
    pair.quic.handle_timer(at - 0.0001)
    assert pair.engine.timer() == at


# Hostile peers


FRAMES = {
    "unknown type": b"\x40\xff",
    "a type cut off": b"\x01\x01\x01\x40",
    "STREAM on a stream of ours": b"\x08\x03x",
    "STREAM beyond the limit of streams": b"\x08" + write_integer(4 * 5000) + b"x",
    "STREAM beyond the window": b"\x0e\x00" + write_integer(1 << 30) + b"\x01x",
    "STREAM beyond 2^62": b"\x0e\x00" + write_integer((1 << 62) - 1) + b"\x05hello",
    "final size that changes": b"\x0f\x00\x00\x03abc\x0f\x00\x00\x02ab",
    "RESET_STREAM of a stream of ours": b"\x04\x03\x00\x00",
    "STOP_SENDING for a stream of the client's": b"\x05\x02\x00",
    "MAX_STREAM_DATA for a stream of the client's": b"\x11\x02\x00",
    "NEW_TOKEN": b"\x07\x01x",
    "DATAGRAM": b"\x31\x01x",
    "NEW_CONNECTION_ID of 21 bytes": b"\x18\x08\x00\x15" + bytes(21 + 16),
    "NEW_CONNECTION_ID that retires later ones": b"\x18\x01\x05\x08" + bytes(8 + 16),
    "RETIRE_CONNECTION_ID of none": b"\x19\x3f",
    "CRYPTO far ahead": b"\x06" + write_integer(1 << 25) + b"\x01x",
    "CRYPTO after the handshake": b"\x06\x00\x04\x01\x00\x00\x00",
    "ACK of less than nothing": b"\x02\x00\x00\x00\x05",
    "MAX_STREAMS of 2^61": b"\x12" + write_integer(1 << 61),
    "HANDSHAKE_DONE": b"\x1e",
    "ACK of what was never sent": b"\x02" + write_integer(1 << 30) + b"\0\0\0",
}


@pytest.mark.parametrize("case", FRAMES)
def test_a_frame_that_breaks_quic_ends_the_connection_with_a_counter(pair: Pair, case: str):
    pair.to_server(pair.forge(FRAMES[case]))
    pair.run()
    assert pair.closed is not None
    assert pair.closed.error_code != QuicErrorCode.NO_ERROR
    assert [type(event) for event in pair.events[-2:]] == [PeerViolation, ConnectionEnded]
    assert pair.quic.fault is None


@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.HANDSHAKE, Epoch.ONE_RTT])
def test_what_a_client_may_send_of_tls_is_bounded(epoch: Epoch):
    """aioquic 501, CVE-2024-1765: a message that announces 16 MiB, in order, byte by byte."""
    pair = Pair(connect=False)
    for datagram in first_flight(pair):
        if epoch is not Epoch.INITIAL:
            pair.to_server(datagram)
    if epoch is not Epoch.INITIAL:
        for datagram in pair.from_server():
            pair.client.receive_datagram(datagram, SERVER_ADDRESS, pair.now)
    if epoch is Epoch.ONE_RTT:
        pair.run()
    message = b"\x0b\xff\xff\xff" if epoch is Epoch.HANDSHAKE else b"\x01\xff\xff\xff"
    message += bytes(996)
    sent = 0
    while pair.quic.end_code == 0 and sent < 2 * MAX_CRYPTO:
        crypto = b"\x06" + write_integer(sent) + write_integer(1000) + message
        datagram = pair.forge(crypto, epoch)
        pair.to_server(datagram.ljust(1200, b"\0") if epoch is Epoch.INITIAL else datagram)
        message = bytes(1000)
        sent += 1000
    assert MAX_CRYPTO - 1000 < sent < MAX_CRYPTO + 1000
    assert pair.quic.end_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED
    assert pair.events[-2].reason is Refusal.QUIC_CRYPTO_BUFFER


@pytest.mark.parametrize("where", ["stream", "crypto"])
def test_gaps_in_what_came_are_bounded(pair: Pair, where: str):
    """RFC 9000 §21.7: each octet apart from the next, the last of them first."""
    offset, frames = 60_000, 0
    while pair.quic.end_code == 0 and offset > 0:
        payload = b""
        while len(payload) < 1000:
            kind = b"\x0e\x00" if where == "stream" else b"\x06"
            payload += kind + write_integer(offset) + b"\x01x"
            offset -= 2
            frames += 1
        pair.to_server(pair.forge(payload))
    assert MIN_GAPS < frames < MIN_GAPS + 500
    assert pair.quic.end_code == QuicErrorCode.INTERNAL_ERROR
    assert pair.quic.fault is None
    assert pair.events[-2].reason is Refusal.QUIC_FRAME_FLOOD


def test_a_connection_id_for_a_client_that_wants_none():
    """RFC 9000 §19.15. aioquic's client, given such a length, does just that."""
    pair = Pair(client={"connection_id_length": 0}, connect=False)
    pair.client.connect(SERVER_ADDRESS, now=pair.now)
    pair.run()
    assert pair.closed is not None
    assert pair.closed.error_code == QuicErrorCode.PROTOCOL_VIOLATION


def test_a_transport_parameter_comes_once():
    """RFC 9000 §7.4, also of one that nobody knows."""
    pair = Pair(connect=False)
    written = pair.client._serialize_transport_parameters
    pair.client._serialize_transport_parameters = lambda: written() + b"\x7f\xff\x00" * 2
    pair.client.connect(SERVER_ADDRESS, now=pair.now)
    pair.run()
    assert pair.closed is not None
    assert pair.closed.error_code == QuicErrorCode.TRANSPORT_PARAMETER_ERROR


def test_a_frame_type_that_is_cut_off_is_quics_affair(pair: Pair):
    """aioquic closes with HTTP/3's kind of close."""
    pair.to_server(pair.forge(b"\x01\x40"))
    pair.run()
    assert pair.closed is not None
    assert (pair.closed.error_code, pair.closed.frame_type) == (0x07, 0)


def test_what_aioquic_raises_ends_this_connection_only(pair: Pair):
    """A NEW_CONNECTION_ID that retires all and adds none makes it take from an empty list."""
    used = b"".join(
        b"\x18" + write_integer(number) + b"\x00\x08" + bytes([number] * 8) + bytes(16)
        for number in range(20, 22)
    )
    pair.to_server(pair.forge(used))
    pair.run()
    for number in (21, 40):
        retire = b"\x18" + write_integer(number) + write_integer(number) + b"\x08"
        pair.to_server(pair.forge(retire + bytes([number] * 8) + bytes(16)))
    again = b"\x18\x15" + write_integer(21) + b"\x08" + bytes(8 + 16)
    pair.to_server(pair.forge(again))
    pair.run()
    assert pair.events == [] or isinstance(pair.events[-1], ConnectionEnded)


def break_it(pair: Pair, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Stand in for a bug of aioquic that a peer has found."""

    def fail(*_: Any, **__: Any) -> None:
        raise IndexError("pop from empty list")

    monkeypatch.setattr(QuicConnection, name, fail)


def test_a_fault_while_receiving_closes_with_internal_error(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    datagram = pair.forge(b"\x01")
    with monkeypatch.context() as broken:
        break_it(pair, broken, "_payload_received")
        pair.to_server(datagram)
    violation, ended = pair.take_events()
    assert violation.detail == ended.reason == "IndexError: pop from empty list"
    pair.run()
    assert pair.closed is not None
    assert pair.closed.error_code == QuicErrorCode.INTERNAL_ERROR
    assert pair.engine.is_closed


@pytest.mark.parametrize("when", ["_write_application", "_flush_builder"])
def test_a_fault_while_sending_gives_up_in_silence_when_it_must(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, when: str
):
    stream = pair.request()
    pair.run()
    pair.engine.send_response(stream, ResponseHead(200, []), b"x", ended=True)
    pair.take_events()
    with monkeypatch.context() as broken:
        break_it(pair, broken, when)
        assert pair.from_server() == []
        assert isinstance(pair.take_events()[-1], ConnectionEnded)
        goodbye = pair.from_server()
    assert len(goodbye) == (0 if when == "_flush_builder" else 1)
    assert pair.engine.is_closed
    assert pair.from_server() == []


def test_a_fault_in_a_timer_closes(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    at = pair.engine.timer()
    assert at is not None
    with monkeypatch.context() as broken:
        break_it(pair, broken, "_close_end")
        pair.handle_timer(at)
    assert isinstance(pair.take_events()[-1], ConnectionEnded)


def test_a_timer_that_is_not_set_does_nothing(pair: Pair):
    pair.client.close()
    pair.say()
    while (at := pair.engine.timer()) is not None:
        pair.handle_timer(at)
    pair.quic.handle_timer(pair.now + 100)
    assert pair.engine.is_closed


def test_nothing_is_sent_before_something_was_received():
    pair = Pair(connect=False)
    assert not pair.engine.has_begun
    pair.engine.close()
    assert pair.from_server() == []


def test_garbage_begins_nothing():
    pair = Pair(connect=False)
    (first, *_) = first_flight(pair)
    pair.to_server(first[:60] + bytes([first[60] ^ 1]) + first[61:])
    assert not pair.engine.has_begun
    assert pair.from_server() == []
    pair.to_server(first)
    assert pair.engine.has_begun


@pytest.mark.slow
@settings(max_examples=100)
@given(st.data())
def test_no_frames_raise_out_of_the_connection(data: st.DataObject):
    pair = Pair()
    integer = st.integers(0, 70).map(write_integer) | st.integers(0, (1 << 62) - 1).map(
        write_integer
    )
    kind = st.integers(0, 0x31).map(write_integer)
    one = st.tuples(kind, st.lists(integer, max_size=6), st.binary(max_size=40)).map(
        lambda parts: parts[0] + b"".join(parts[1]) + parts[2]
    )
    for _ in range(data.draw(st.integers(1, 5))):
        payload = b"".join(data.draw(st.lists(one, min_size=1, max_size=5)))
        pair.to_server(pair.forge(payload[:1000]))
        pair.run(0.05)
        if pair.closed:
            break


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.binary(max_size=200), max_size=4), st.booleans())
def test_no_handshake_messages_raise(messages: list[bytes], framed: bool):
    pair = Pair(connect=False)
    first_flight(pair)
    for message in messages:
        body = b"\x01" + len(message).to_bytes(3, "big") + message if framed else message
        crypto = b"\x06\x00" + write_integer(len(body)) + body
        datagram = pair.forge(crypto, Epoch.INITIAL)
        pair.to_server(datagram.ljust(1200, b"\0"))
        pair.from_server()
    assert pair.quic.fault is None or isinstance(pair.events[-1], ConnectionEnded)


@given(st.binary(max_size=100))
def test_no_datagram_raises(datagram: bytes):
    server = Pair(connect=False)
    server.to_server(datagram)
    assert server.from_server() == []


@given(st.binary(max_size=60))
def test_parsing_initials_never_raises(datagram: bytes):
    parse_initial_untrusted(datagram)
    parse_initial_untrusted(b"\xc0\x00\x00\x00\x01" + datagram)


def test_an_initial_is_read_to_its_token():
    pair = Pair(connect=False)
    pair.client._peer_token = b"token"
    (first, *_) = first_flight(pair)
    initial = parse_initial_untrusted(first)
    assert initial is not None
    assert initial.destination_cid == pair.client.original_destination_connection_id
    assert initial.source_cid == pair.client.host_cid
    assert (initial.version, initial.token) == (QuicProtocolVersion.VERSION_1, b"token")


@pytest.mark.parametrize("first", [b"\xd0", b"\xe0", b"\xf0", b"\x40"])
def test_other_packets_are_no_initials(first: bytes):
    rest = b"\x00\x00\x00\x01\x08" + bytes(8) + b"\x00\x40\x10" + bytes(40)
    assert parse_initial_untrusted(first + rest) is None


def test_an_unknown_version_is_no_initial():
    assert parse_initial_untrusted(b"\xc0\x0a\x0a\x0a\x0a\x00\x00\x00\x10" + bytes(40)) is None


def test_connection_ids_have_the_length_that_the_master_expects(pair: Pair):
    assert {len(entry) for entry in pair.engine.connection_ids} == {CONNECTION_ID_LENGTH}
