"""Steering, with the real codec, tokens and dispatcher, and aioquic on the other side."""

import itertools
import os
import random
from dataclasses import dataclass

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdKind, ConnectionIdMint
from asgiri.ipc.records import RecordFlag
from asgiri.ipc.scoreboard import PAGE_SIZE, Cell, Scoreboard
from asgiri.ipc.tokens import QuicSecrets, ResetTokens, RetryTokens
from asgiri.master import steering as module
from asgiri.master.admission import HANDSHAKE_RATE, UNVALIDATED_RATE, RetryMode
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.quic_header import LongHeader, parse_untrusted
from asgiri.master.quic_versions import PacketType, initial_token_untrusted
from asgiri.master.steering import DropReason, Steering, is_one_train
from tests.support.certificates import certificates

SECRETS = QuicSecrets.derive(b"a root secret of the tests")
CODEC = ConnectionIdCodec(SECRETS.connection_id_key, server_id=SECRETS.server_id)
CLIENT = ("192.0.2.1", 40_000)
SERVER = ("198.51.100.1", 443)
NOW = 1000.0
V1, V2 = 1, 0x6B3343CF
LONG, NEW, TOKEN, VALIDATED = (
    RecordFlag.LONG_HEADER,
    RecordFlag.NEW_CONNECTION,
    RecordFlag.TOKEN_PRESENT,
    RecordFlag.TOKEN_VALIDATED,
)


@dataclass(eq=False)
class Worker:
    """Destination and load of one worker, and what it mints."""

    worker_id: int
    mint: ConnectionIdMint
    half_open: int = 0
    ring_fill: float = 0.0


class Front:
    """A master's steering with ready workers 1, 2, ..."""

    def __init__(self, workers=2, retry=RetryMode.NEVER, randomness=os.urandom, **options):
        self.now = NOW
        self.dispatcher = Dispatcher(
            BalancePolicy.LEAST_LOADED, random=random.Random(1).random, hash_key=b"key"
        )
        self.steering = Steering(
            codec=CODEC,
            mint=ConnectionIdMint(CODEC, 0, random=os.urandom),
            reset_tokens=ResetTokens(SECRETS.reset_key),
            retry_tokens=RetryTokens(SECRETS.token_key, random=os.urandom),
            chooser=self.dispatcher,
            random=randomness,
            retry=retry,
            **options,
        )
        self.workers = {}
        for worker_id in range(1, workers + 1):
            self.add(worker_id)
        self.set_ready(*self.workers)

    def add(self, worker_id):
        worker = Worker(worker_id, ConnectionIdMint(CODEC, worker_id, random=os.urandom))
        page = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
        page.set(Cell.BEAT_NS, 1 << 62)  # it beats whenever somebody looks
        self.dispatcher.add_worker(worker_id, worker_id, page)
        self.steering.add_worker(worker_id, worker, worker)
        self.workers[worker_id] = worker
        return worker

    def remove(self, worker_id):
        self.dispatcher.remove_worker(worker_id)
        self.steering.remove_worker(worker_id)
        return self.workers.pop(worker_id)

    def set_ready(self, *worker_ids):
        self.dispatcher.set_ready(worker_ids)
        self.steering.set_ready(worker_ids)

    def steer(self, datagram, address=CLIENT):
        return self.steering.steer_untrusted(datagram, address, self.now)

    def begin(self, datagram, address=CLIENT):
        """Steer a datagram that has to reach a worker; return its number and the flags."""
        worker = self.steer(datagram, address)
        assert isinstance(worker, Worker), worker
        return worker.worker_id, RecordFlag(self.steering.flags)

    def dropped(self, reason):
        return self.steering.statistics().drops[reason.name.lower()]


def short_header(connection_id, size=1200, first_octet=0x40):
    return (bytes((first_octet,)) + connection_id).ljust(size, b"\0")


def long_header(destination, *, first=0xC0, version=V1, source=b"client", rest=b"", size=1200):
    head = (
        bytes((first,))
        + version.to_bytes(4, "big")
        + bytes((len(destination),))
        + destination
        + bytes((len(source),))
        + source
        + rest
    )
    return head + bytes(max(0, size - len(head)))


def initial(destination, *, token=b"", size=1200, version=V1, **options):
    first = 0xC0 if version == V1 else 0xD0
    token_field = (0x4000 | len(token)).to_bytes(2, "big") + token if token else b"\x00"
    options = {"rest": token_field, **options}
    return long_header(destination, first=first, version=version, size=size, **options)


def handshake(destination, version=V1, **options):
    first = 0xE0 if version == V1 else 0xF0
    return long_header(destination, first=first, version=version, **options)


def zero_rtt(destination, version=V1):
    return long_header(destination, first=0xD0 if version == V1 else 0xE0, version=version)


CID = b"clientid"


def assert_dropped(front, datagram, reason, address=CLIENT):
    before = front.dropped(reason)
    assert front.steer(datagram, address) is reason
    assert front.dropped(reason) == before + 1


# Short headers


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(22, 1500)), max_size=20))
def test_minted_connection_id_reaches_its_worker_from_any_address(datagrams):
    front = Front(workers=4)
    for port, (worker_id, size) in enumerate(datagrams):
        datagram = short_header(front.workers[worker_id].mint.mint(), size)
        assert front.steer(datagram, ("203.0.113.9", port)) is front.workers[worker_id]
        assert front.steering.flags == 0


def test_minted_connection_id_reaches_a_worker_that_is_not_ready():
    front = Front(workers=2)
    front.set_ready(2)
    assert front.begin(short_header(front.workers[1].mint.mint())) == (1, 0)


def test_forged_connection_ids_get_silence():
    front = Front()
    for _ in range(10_000):
        assert front.steer(short_header(os.urandom(17))) is DropReason.UNKNOWN_CONNECTION_ID
    assert front.dropped(DropReason.UNKNOWN_CONNECTION_ID) == 10_000


def test_connection_id_of_another_deployment_gets_silence():
    secrets = QuicSecrets.derive(b"some other root secret")
    theirs = ConnectionIdCodec(secrets.connection_id_key, server_id=secrets.server_id)
    mint = ConnectionIdMint(theirs, 1, random=os.urandom)
    assert_dropped(Front(), short_header(mint.mint()), DropReason.UNKNOWN_CONNECTION_ID)


@pytest.mark.parametrize("worker_id", [1, 77])
def test_connection_id_of_a_retry_never_causes_a_reset(worker_id):
    mint = ConnectionIdMint(CODEC, worker_id, random=os.urandom)
    datagram = short_header(mint.mint(ConnectionIdKind.RETRY))
    assert_dropped(Front(), datagram, DropReason.RETRY_ID_IN_SHORT_HEADER)


def test_fixed_bit_has_to_be_set():
    front = Front()
    minted = front.workers[1].mint.mint()
    assert_dropped(front, short_header(minted, first_octet=0x3F), DropReason.FIXED_BIT_CLEAR)
    assert_dropped(front, bytes((0x80,)) + initial(CID)[1:], DropReason.FIXED_BIT_CLEAR)


@pytest.mark.parametrize("size", range(22))
def test_short_datagrams_are_dropped(size):
    front = Front()
    for whole in (short_header(front.workers[1].mint.mint()), initial(CID)):
        assert_dropped(front, whole[:size], DropReason.TOO_SHORT)


# Stateless resets


@pytest.mark.parametrize("size", [43, 44, 45, 60, 1200, 1452])
def test_dead_worker_is_answered_by_a_reset_that_its_client_recognises(size):
    front = Front()
    connection_id = front.remove(1).mint.mint()
    lengths = set()
    for port in range(100):
        front.now += 0.01
        reset = front.steer(short_header(connection_id, size), ("192.0.2.1", port))
        assert isinstance(reset, bytes)
        assert reset[0] & 0xC0 == 0x40
        assert reset[-16:] == ResetTokens(SECRETS.reset_key).token(connection_id)
        lengths.add(len(reset))
    assert min(lengths) >= 22
    assert max(lengths) <= min(size - 1, 43)
    assert len(lengths) > 10
    assert front.steering.statistics().resets_sent == 100


def test_reset_looks_different_each_time():
    front = Front()
    connection_id = front.remove(1).mint.mint()
    resets = [front.steer(short_header(connection_id), ("192.0.2.1", port)) for port in range(50)]
    assert len({reset[1:6] for reset in resets}) == 50
    assert len({reset[0] for reset in resets}) > 10


@pytest.mark.parametrize("size", [22, 42])
def test_short_header_too_small_for_a_shorter_reset_gets_silence(size):
    front = Front()
    datagram = short_header(front.remove(1).mint.mint(), size)
    assert_dropped(front, datagram, DropReason.WORKER_GONE)


def test_one_address_gets_one_reset_a_second():
    front = Front()
    datagram = short_header(front.remove(1).mint.mint())
    answered = 0
    for _ in range(100):
        front.now += 0.1
        answered += isinstance(front.steer(datagram), bytes)
    assert 5 <= answered <= 10
    assert front.dropped(DropReason.RESET_RATE) == 100 - answered


def test_all_addresses_together_get_a_hundred_resets_a_second():
    front = Front()
    datagram = short_header(front.remove(1).mint.mint())
    answered = 0
    for port in range(10_000):
        front.now += 0.001
        answered += isinstance(front.steer(datagram, ("192.0.2.1", port)), bytes)
    assert answered == pytest.approx(100 + 10 * 100, abs=2)


def test_long_header_to_a_dead_worker_gets_silence():
    front = Front()
    connection_id = front.remove(1).mint.mint()
    for datagram in (initial(connection_id), handshake(connection_id)):
        assert_dropped(front, datagram, DropReason.WORKER_GONE)


def test_respawned_worker_does_not_get_what_was_its_predecessors():
    front = Front(workers=1)
    before = front.remove(1).mint.mint()
    front.add(2)
    front.set_ready(2)
    assert isinstance(front.steer(short_header(before)), bytes)


# Long headers


@pytest.mark.parametrize("version", [V1, V2])
def test_long_header_with_a_minted_connection_id_reaches_its_worker(version):
    front = Front(workers=2)
    front.set_ready(2)
    minted = front.workers[1].mint.mint()
    assert front.begin(handshake(minted, version, size=60)) == (1, LONG)
    assert front.begin(initial(minted, version=version)) == (1, LONG)


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"\xc0\x00\x00\x00\x01" + b"\xff" * 60, DropReason.MALFORMED_LONG_HEADER),
        (initial(CID, rest=b"\xff" * 8), DropReason.MALFORMED_LONG_HEADER),
        (initial(b"7 bytes"), DropReason.CONNECTION_ID_LENGTH),
        (initial(b""), DropReason.CONNECTION_ID_LENGTH),
        (initial(bytes(21)), DropReason.CONNECTION_ID_LENGTH),
        (initial(CID, source=bytes(21)), DropReason.CONNECTION_ID_LENGTH),
        (handshake(bytes(21)), DropReason.CONNECTION_ID_LENGTH),
        (initial(CID, size=1199), DropReason.INITIAL_TOO_SHORT),
        (long_header(CID, first=0xF0), DropReason.PACKET_TYPE),
        (long_header(CID, first=0xC0, version=V2), DropReason.PACKET_TYPE),
        (zero_rtt(CID), DropReason.NO_INITIAL_BEFORE),
        (handshake(CID), DropReason.NO_INITIAL_BEFORE),
        (handshake(b"short"), DropReason.NO_INITIAL_BEFORE),
        (long_header(CID, version=0), DropReason.VERSION_NEGOTIATION),
        (long_header(CID, version=0xFF00001D, size=1199), DropReason.VERSION_UNKNOWN),
        (long_header(CID, version=0xFF00001D, size=22), DropReason.VERSION_UNKNOWN),
    ],
    ids=str,
)
def test_what_no_client_should_send_is_dropped_with_its_reason(datagram, reason):
    front = Front()
    assert_dropped(front, datagram, reason)
    assert front.steering.statistics().map_entries == 0


@pytest.mark.parametrize("size", [8, 16, 17, 20])
def test_connection_ids_of_every_legal_length_begin_a_connection(size):
    for source in (b"", bytes(20)):
        assert Front().begin(initial(b"c" * size, source=source))[1] == LONG | NEW


def test_initial_below_1200_bytes_is_dropped_even_to_a_minted_connection_id():
    front = Front()
    minted = front.workers[1].mint.mint()
    assert_dropped(front, initial(minted, size=1199), DropReason.INITIAL_TOO_SHORT)


# Version negotiation


@given(
    version=st.integers(1, 2**32 - 1).filter(lambda version: version not in (V1, V2)),
    destination=st.binary(max_size=255),
    source=st.binary(max_size=255),
    first=st.integers(0x80, 0xFF),
)
def test_unknown_version_is_answered_by_the_versions_we_speak(version, destination, source, first):
    front = Front()
    datagram = long_header(destination, first=first, version=version, source=source)
    answer = front.steer(datagram)
    header = parse_untrusted(answer)
    assert (header.version, header.destination_cid, header.source_cid) == (0, source, destination)
    offered = [
        int.from_bytes(answer[offset : offset + 4], "big")
        for offset in range(header.end, len(answer), 4)
    ]
    assert offered[1:] == [V1, V2]
    assert offered[0] & 0x0F0F0F0F == 0x0A0A0A0A
    assert version not in offered
    assert len(answer) < len(datagram)
    assert front.steering.statistics().versions_sent == 1


def test_reserved_version_is_never_the_one_that_the_client_tried():
    front = Front(randomness=lambda size: bytes.fromhex("1a2a3a4a00")[:size])
    answer = front.steer(long_header(CID, version=0x1A2A3A4A))
    assert b"\x1a\x2a\x3a\x4a" not in answer
    assert bytes.fromhex("0a2a3a4a") in answer


def test_version_negotiation_leads_a_client_to_a_version_we_speak():
    versions = [0x1A2A3A4A, V1]
    client = QuicConnection(configuration=client_configuration(supported_versions=versions))
    client.connect(SERVER, now=NOW)
    front = Front()
    answer = front.steer(client.datagrams_to_send(now=NOW)[0][0])
    client.receive_datagram(answer, SERVER, now=NOW)
    again = client.datagrams_to_send(now=NOW)[0][0]
    assert front.begin(again)[1] == LONG | NEW


# New connections


@pytest.mark.parametrize("version", [V1, V2])
def test_both_datagrams_of_a_beginning_reach_one_worker(version):
    front = Front(workers=4)
    datagram = initial(CID, version=version)
    worker_id, flags = front.begin(datagram)
    assert flags == LONG | NEW
    assert front.begin(datagram, ("203.0.113.77", 1)) == (worker_id, LONG)
    for follow_up in (handshake(CID, version), zero_rtt(CID, version)):
        assert front.begin(follow_up) == (worker_id, LONG)
    assert front.steering.statistics().new_connections == 1


def test_new_connections_spread_over_the_ready_workers():
    front = Front(workers=4)
    front.set_ready(2, 3, 4)
    begun = [front.begin(initial(os.urandom(8)))[0] for _ in range(30)]
    assert sorted(begun) == [2] * 10 + [3] * 10 + [4] * 10


def test_beginning_stays_with_a_worker_that_drains():
    front = Front(workers=1)
    front.begin(initial(CID))
    front.add(2)
    front.set_ready(2)
    assert front.begin(initial(CID)) == (1, LONG)


def test_beginning_at_a_worker_that_died_begins_anew():
    front = Front(workers=2)
    dead, _ = front.begin(initial(CID))
    front.remove(dead)
    assert_dropped(front, handshake(CID), DropReason.NO_INITIAL_BEFORE)
    assert front.begin(initial(CID)) == (3 - dead, LONG | NEW)
    assert front.begin(handshake(CID)) == (3 - dead, LONG)


def test_beginning_is_remembered_for_30_seconds_after_each_datagram():
    front = Front()
    worker_id, _ = front.begin(initial(CID))
    for _ in range(10):
        front.now += 29.9
        assert front.begin(initial(CID)) == (worker_id, LONG)
    front.now += 60
    assert front.begin(initial(CID))[1] == LONG | NEW


def test_nobody_ready_drops_what_is_new_and_serves_what_is_not():
    front = Front(workers=1)
    front.begin(initial(CID))
    front.set_ready()
    assert_dropped(front, initial(b"somebody else"), DropReason.NO_WORKER)
    assert front.begin(initial(CID)) == (1, LONG)


def test_full_map_keeps_what_it_has_and_decides_the_rest_by_hash():
    front = Front(workers=4, map_capacity=8)
    known = [os.urandom(8) for _ in range(8)]
    places = [front.begin(initial(connection_id))[0] for connection_id in known]
    flood = [os.urandom(8) for _ in range(200)]
    first = [front.begin(initial(connection_id)) for connection_id in flood]
    assert {flags for _, flags in first} == {LONG}
    assert {worker_id for worker_id, _ in first} == {1, 2, 3, 4}
    assert [front.begin(initial(connection_id)) for connection_id in flood] == first
    assert [front.begin(initial(connection_id))[0] for connection_id in known] == places
    assert_dropped(front, handshake(flood[0]), DropReason.NO_INITIAL_BEFORE)
    statistics = front.steering.statistics()
    assert (statistics.map_entries, statistics.map_full) == (8, 400)
    assert statistics.new_connections == 8
    front.now += 61
    assert front.begin(initial(flood[0]))[1] == LONG | NEW


def test_full_map_and_nobody_ready():
    front = Front(workers=1, map_capacity=1)
    front.begin(initial(CID))
    front.set_ready()
    assert_dropped(front, initial(b"somebody else"), DropReason.NO_WORKER)


def test_crowded_ring_takes_no_initials_but_what_follows_them():
    front = Front(workers=1)
    front.begin(initial(CID))
    front.workers[1].ring_fill = 0.51
    assert_dropped(front, initial(CID), DropReason.RING_HALF_FULL)
    assert_dropped(front, initial(b"somebody else"), DropReason.RING_HALF_FULL)
    assert front.begin(handshake(CID)) == (1, LONG)
    assert front.begin(short_header(front.workers[1].mint.mint())) == (1, 0)
    front.workers[1].ring_fill = 0.5
    assert front.begin(initial(b"somebody else")) == (1, LONG | NEW)


# Retry


def retried(front, original=CID, source=b"client", version=V1, address=CLIENT):
    """Return connection ID and token of the Retry that answers a new Initial."""
    answer = front.steer(initial(original, source=source, version=version), address)
    assert isinstance(answer, bytes), answer
    assert len(answer) < 1200
    header = parse_untrusted(answer)
    assert isinstance(header, LongHeader)
    assert PacketType.of(header.version, header.first_octet) is PacketType.RETRY
    assert (header.version, header.destination_cid) == (version, source)
    return header.source_cid, answer[header.end : -16]


@pytest.mark.parametrize("version", [V1, V2])
def test_retry_names_the_worker_and_admits_who_comes_back_with_its_token(version):
    front = Front(workers=4, retry=RetryMode.ALWAYS)
    connection_id, token = retried(front, version=version)
    kind, worker_id = CODEC.open_untrusted(connection_id)
    assert kind == ConnectionIdKind.RETRY
    assert front.steering.statistics().map_entries == 0
    again = initial(connection_id, token=token, version=version)
    assert front.begin(again) == (worker_id, LONG | NEW | TOKEN | VALIDATED)
    assert front.begin(again) == (worker_id, LONG | TOKEN)
    statistics = front.steering.statistics()
    assert (statistics.retries_sent, statistics.tokens_valid) == (1, 1)


def test_retry_whose_worker_is_gone_or_drains_is_honoured_by_another():
    for leave in (lambda front, gone: front.remove(gone), lambda front, gone: None):
        front = Front(workers=3, retry=RetryMode.ALWAYS)
        connection_id, token = retried(front)
        named = CODEC.open_untrusted(connection_id)[1]
        leave(front, named)
        front.set_ready(*{1, 2, 3} - {named})
        worker_id, flags = front.begin(initial(connection_id, token=token))
        assert worker_id != named
        assert flags == LONG | NEW | TOKEN | VALIDATED
        assert front.begin(initial(connection_id, token=token)) == (worker_id, LONG | TOKEN)


def test_retry_is_honoured_while_the_map_is_full():
    front = Front(workers=3, retry=RetryMode.ALWAYS, map_capacity=0)
    connection_id, token = retried(front)
    named = CODEC.open_untrusted(connection_id)[1]
    again = initial(connection_id, token=token)
    assert front.begin(again) == (named, LONG | TOKEN | VALIDATED)
    assert front.begin(again) == (named, LONG | TOKEN | VALIDATED)


@pytest.mark.parametrize("retry", list(RetryMode))
def test_connection_id_of_a_retry_without_its_token_is_dropped(retry):
    always = Front(retry=RetryMode.ALWAYS)
    connection_id, token = retried(always)
    _, another_token = retried(always, original=b"somebody else")
    front = Front(retry=retry)
    damaged = token[:-1] + bytes((token[-1] ^ 1,))
    for useless in (b"", b"nonsense", damaged, another_token):
        assert_dropped(front, initial(connection_id, token=useless), DropReason.TOKEN_INVALID)
    stolen = initial(connection_id, token=token)
    assert_dropped(front, stolen, DropReason.TOKEN_INVALID, ("192.0.2.2", CLIENT[1]))
    assert_dropped(front, stolen, DropReason.TOKEN_INVALID, (CLIENT[0], 1))
    front.now += 31
    assert_dropped(front, stolen, DropReason.TOKEN_INVALID)


def test_a_reload_may_change_when_addresses_are_validated():
    front = Front(retry=RetryMode.NEVER)
    front.begin(initial(b"original"))
    front.steering.set_retry(RetryMode.ALWAYS)
    retried(front, original=b"somebody else")


def test_token_that_is_not_ours_counts_as_none():
    front = Front(retry=RetryMode.AUTO)
    assert front.begin(initial(CID, token=b"of another server"))[1] == LONG | NEW | TOKEN
    _, token = retried(Front(retry=RetryMode.ALWAYS))
    always = Front(retry=RetryMode.ALWAYS)
    retried_again = always.steer(initial(CID, token=token))
    assert isinstance(retried_again, bytes)


@pytest.mark.parametrize("pressure", [{"half_open": 65}, {"ring_fill": 0.51}])
def test_auto_validates_addresses_while_a_worker_is_under_pressure(pressure):
    front = Front(workers=1, retry=RetryMode.AUTO)
    assert front.begin(initial(CID))[1] == LONG | NEW
    for name, value in pressure.items():
        setattr(front.workers[1], name, value)
    retried(front, original=b"another one")
    setattr(front.workers[1], next(iter(pressure)), 0)
    retried(front, original=b"a third one")
    front.now += 1.0
    assert front.begin(initial(b"a fourth one"))[1] == LONG | NEW


def test_auto_validates_addresses_above_the_rate_and_still_serves_who_proves_its_own():
    front = Front(workers=2, retry=RetryMode.AUTO)
    answers = [front.steer(initial(os.urandom(8))) for _ in range(300)]
    admitted = [answer for answer in answers if isinstance(answer, Worker)]
    assert len(admitted) == 2 * UNVALIDATED_RATE
    connection_id, token = retried(front)
    assert front.begin(initial(connection_id, token=token))[1] & VALIDATED


def test_crowded_ring_takes_no_proven_address_either():
    front = Front(workers=1, retry=RetryMode.ALWAYS)
    connection_id, token = retried(front)
    front.workers[1].ring_fill = 0.51
    assert_dropped(front, initial(connection_id, token=token), DropReason.RING_HALF_FULL)


def test_network_that_begins_more_than_its_share_is_dropped():
    front = Front(workers=1, retry=RetryMode.ALWAYS)
    for number in range(int(HANDSHAKE_RATE) + 50):
        connection_id, token = retried(front, original=number.to_bytes(8, "big"))
        assert front.begin(initial(connection_id, token=token))[1] & VALIDATED
    connection_id, token = retried(front)
    assert_dropped(front, initial(connection_id, token=token), DropReason.NETWORK_RATE)


# Real clients


def client_configuration(**options):
    return QuicConfiguration(
        is_client=True, alpn_protocols=["h3"], server_name="localhost", **options
    )


def long_hello(**options):
    """A client whose ClientHello fills two datagrams, as those with post-quantum keys do."""
    options = {"supported_versions": [V1], "original_version": V1, **options}
    configuration = client_configuration(**options, cafile=str(certificates().authority))
    configuration.alpn_protocols = ["h3", *(f"protocol-{number:0200}" for number in range(5))]
    client = QuicConnection(configuration=configuration)
    client.connect(SERVER, now=NOW)
    return client


def first_flight(client, now=NOW):
    return [datagram for datagram, _ in client.datagrams_to_send(now=now)]


@pytest.mark.parametrize("retry", list(RetryMode))
@pytest.mark.parametrize("order", list(itertools.permutations(range(2))), ids=str)
def test_both_halves_of_a_client_hello_meet_the_same_fate(retry, order):
    front = Front(workers=4, retry=retry)
    client = long_hello()
    datagrams = first_flight(client)
    assert len(datagrams) == 2
    answers = [front.steer(datagrams[index]) for index in order]
    if retry is RetryMode.ALWAYS:
        assert all(isinstance(answer, bytes) for answer in answers)
        client.receive_datagram(answers[0], SERVER, now=NOW)
        client.receive_datagram(answers[1], SERVER, now=NOW)
        datagrams = first_flight(client)
        assert len(datagrams) == 2
        answers = [front.steer(datagrams[index]) for index in order]
    assert isinstance(answers[0], Worker)
    assert answers[0] is answers[1]


@pytest.mark.parametrize("initials_before", [0, 99, 100, 101])
def test_both_halves_meet_the_same_fate_where_the_budget_ends(initials_before):
    front = Front(workers=1, retry=RetryMode.AUTO)
    for _ in range(initials_before):
        front.steer(initial(os.urandom(8)))
    first, second = (front.steer(datagram) for datagram in first_flight(long_hello()))
    assert type(first) is type(second)
    assert isinstance(first, Worker if initials_before < 100 else bytes)


@pytest.mark.parametrize("version", [V1, V2])
def test_handshake_completes_through_a_retry(version):
    front = Front(workers=2, retry=RetryMode.ALWAYS)
    client = long_hello(supported_versions=[version], original_version=version)
    answer = front.steer(first_flight(client)[0])
    client.receive_datagram(answer, SERVER, now=NOW)
    datagrams = first_flight(client)
    worker_id, flags = front.begin(datagrams[0])
    assert flags == LONG | NEW | TOKEN | VALIDATED
    header = parse_untrusted(datagrams[0])
    token = initial_token_untrusted(datagrams[0], header.end)
    opened = RetryTokens(SECRETS.token_key, random=os.urandom).open_untrusted(token, CLIENT, NOW)
    configuration = QuicConfiguration(
        is_client=False,
        alpn_protocols=["h3"],
        connection_id_length=17,
        supported_versions=[version],
    )
    configuration.load_cert_chain(certificates().certfile, certificates().keyfile)
    server = QuicConnection(
        configuration=configuration,
        original_destination_connection_id=opened.original_destination_cid,
        retry_source_connection_id=opened.retry_source_cid,
    )
    for datagram in datagrams:
        assert front.steer(datagram) is front.workers[worker_id]
        server.receive_datagram(datagram, CLIENT, now=NOW)
    exchange(client, server)
    assert any(isinstance(event, HandshakeCompleted) for event in events(client))


def exchange(client, server):
    for _ in range(10):
        for datagram, _ in server.datagrams_to_send(now=NOW):
            client.receive_datagram(datagram, SERVER, now=NOW)
        for datagram, _ in client.datagrams_to_send(now=NOW):
            server.receive_datagram(datagram, CLIENT, now=NOW)


def events(connection):
    while (event := connection.next_event()) is not None:
        yield event


# Whatever comes


def any_datagram():
    """Bytes, and bytes that come far: real connection IDs, versions, lengths, tokens."""
    randbytes = random.Random(3).randbytes  # the same in each run, or no failure could be replayed
    minted = [
        ConnectionIdMint(CODEC, worker_id, random=randbytes).mint(kind)
        for worker_id in (1, 2, 99)
        for kind in ConnectionIdKind
    ]
    connection_id = st.one_of(st.binary(max_size=24), st.sampled_from([CID, *minted]))
    token = RetryTokens(SECRETS.token_key, random=randbytes).seal(CLIENT, CID, minted[1], NOW)
    rest = st.one_of(
        st.binary(max_size=60),
        st.just(b"\x00"),
        st.just((0x4000 | len(token)).to_bytes(2, "big") + token),
    )
    size = st.one_of(st.integers(0, 80), st.sampled_from([1199, 1200, 1452, 65_507]))
    shorts = st.builds(short_header, connection_id, st.integers(22, 1500), st.integers(0, 127))
    longs = st.builds(
        long_header,
        connection_id,
        first=st.integers(0x80, 0xFF),
        version=st.one_of(st.sampled_from([0, V1, V2]), st.integers(0, 2**32 - 1)),
        source=st.binary(max_size=255),
        rest=rest,
        size=size,
    )
    cut = st.builds(lambda whole, end: whole[:end], st.one_of(shorts, longs), st.integers(0, 300))
    return st.one_of(st.binary(max_size=100), shorts, longs, cut)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    datagrams=st.lists(st.tuples(any_datagram(), st.integers(1, 3)), max_size=25),
    retry=st.sampled_from(RetryMode),
    ready=st.sets(st.sampled_from([1, 2])),
    ring_fill=st.sampled_from([0.0, 0.9]),
    map_capacity=st.sampled_from([0, 1, 1000]),
)
def test_any_datagram_is_steered_counted_and_never_outgrown(
    datagrams, retry, ready, ring_fill, map_capacity
):
    front = Front(workers=2, retry=retry, map_capacity=map_capacity)
    front.set_ready(*ready)
    front.workers[1].ring_fill = ring_fill
    steered = 0
    for datagram, port in datagrams:
        front.now += 0.01
        answer = front.steer(datagram, ("192.0.2.1", port))
        if isinstance(answer, bytes):
            assert len(answer) < len(datagram)
        elif isinstance(answer, Worker):
            assert answer in front.workers.values()
            steered += 1
        else:
            assert isinstance(answer, DropReason)
    statistics = front.steering.statistics()
    answered = statistics.versions_sent + statistics.retries_sent + statistics.resets_sent
    assert sum(statistics.drops.values()) + answered + steered == len(datagrams)
    assert statistics.map_entries <= map_capacity


def test_drops_after_steering_are_counted_with_the_others():
    front = Front()
    front.steering.count_drop(DropReason.RING_FULL)
    assert front.dropped(DropReason.RING_FULL) == 1


def test_drop_reasons_are_numbered_without_gaps():
    assert [int(reason) for reason in DropReason] == list(range(len(DropReason)))


def test_limits_of_resets_can_hold_what_their_rate_lets_in():
    longest = 2 * module.RESET_DESTINATION_PAUSE
    assert module.RESET_RATE * (1 + longest) <= module.RESET_DESTINATIONS


# Trains


def train(connection_ids, size, last=None):
    segments = [short_header(connection_id, size) for connection_id in connection_ids]
    return b"".join(segments)[: None if last is None else last - size]


@given(
    ids=st.lists(st.sampled_from([b"a" * 17, b"b" * 17]), min_size=1, max_size=6),
    size=st.integers(18, 100),
    cut=st.integers(0, 81),
)
def test_train_is_one_exactly_when_each_segment_has_the_same_connection_id(ids, size, cut):
    buffer = train(ids, size)
    buffer = buffer[: len(buffer) - min(cut, size - 1)]
    segments = [buffer[offset : offset + size] for offset in range(0, len(buffer), size)]
    same = all(segment[1:18] == ids[0] and len(segment) >= 18 for segment in segments)
    assert is_one_train(buffer, size) is same


@pytest.mark.parametrize("position", range(3))
def test_train_with_a_long_header_in_it_is_none(position):
    buffer = bytearray(train([CID * 2 + b"x"] * 3, 50))
    assert is_one_train(bytes(buffer), 50)
    buffer[50 * position] |= 0x80
    assert not is_one_train(bytes(buffer), 50)


@given(st.binary(max_size=200), st.integers(0, 70_000))
def test_train_check_never_raises(buffer, size):
    is_one_train(buffer, size)


def test_train_is_steered_by_its_head():
    front = Front()
    connection_id = front.workers[2].mint.mint()
    buffer = train([connection_id] * 5, 1200, last=100)
    assert is_one_train(buffer, 1200)
    assert front.steer(buffer) is front.workers[2]


def test_another_master_knows_which_connections_have_begun():
    front, cid = Front(workers=4), os.urandom(8)
    worker_id, _ = front.begin(initial(cid))
    begun = front.steering.begun(front.now)
    assert begun == [(cid, worker_id)]
    successor = Front(workers=4)
    successor.steering.restore_begun(begun, successor.now)
    again, flags = successor.begin(handshake(cid))
    assert again == worker_id
    assert not flags & RecordFlag.NEW_CONNECTION
