"""permessage-deflate: what is agreed, and that neither side of it can be made to hold too much."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, RsvBits

from asgiri.worker.protocol.websocket_deflate import Deflate, parse_offer

LIMIT = 100_000
PLAIN = RsvBits(False, False, False)
COMPRESSED = RsvBits(True, False, False)
TAIL = b"\x00\x00\xff\xff"
PROTO = FrameProtocol(client=False, extensions=[])


def agree(offer="permessage-deflate", limit=LIMIT):
    parameters = parse_offer(offer)
    assert parameters is not None
    return Deflate(parameters, max_message_size=limit)


# Negotiation

OFFERS = {
    "permessage-deflate": "permessage-deflate",
    "Permessage-Deflate": "permessage-deflate",
    "permessage-deflate; client_max_window_bits": "permessage-deflate; client_max_window_bits=12",
    "permessage-deflate; client_max_window_bits=10": (
        "permessage-deflate; client_max_window_bits=10"
    ),
    "permessage-deflate; client_max_window_bits=8": "permessage-deflate; client_max_window_bits=8",
    'permessage-deflate ; client_max_window_bits = "15"': (
        "permessage-deflate; client_max_window_bits=12"
    ),
    "permessage-deflate; server_max_window_bits=9": "permessage-deflate; server_max_window_bits=9",
    "permessage-deflate; server_max_window_bits=15": (
        "permessage-deflate; server_max_window_bits=12"
    ),
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover": (
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
    ),
}


@pytest.mark.parametrize(("offer", "response"), OFFERS.items())
def test_an_offer_is_answered_with_what_was_agreed(offer, response):
    """RFC 7692 §7.1: an answer holds nothing that the client did not offer."""
    assert agree(offer).response == response.encode()


@pytest.mark.parametrize(
    "offer",
    [
        "",
        "x-webkit-deflate-frame",
        "permessage-deflate; unknown",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",  # zlib can't
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; client_max_window_bits=7",
        'permessage-deflate; client_max_window_bits="9',
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover=10",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate;",
    ],
)
def test_an_offer_with_anything_wrong_is_declined(offer):
    """RFC 7692 §7.1: "a server MUST decline"."""
    assert parse_offer(offer) is None


@given(st.text(max_size=40))
def test_arbitrary_offers_never_raise(text):
    parse_offer(text)
    parse_offer(f"permessage-deflate; {text}")


# Sending


def inflate_each(messages, *, window=15, forget=False):
    inflater = zlib.decompressobj(-window)
    for message in messages:
        yield inflater.decompress(message + TAIL)
        if forget:
            inflater = zlib.decompressobj(-window)


@pytest.mark.parametrize("window", [9, 12])
def test_what_is_sent_fits_the_window_that_was_agreed(window):
    deflate = agree(f"permessage-deflate; server_max_window_bits={window}")
    messages = [bytes(range(256)) * 40, b"", b"abc" * 5000]
    sent = [deflate.compress(message) for message in messages]
    assert list(inflate_each(sent, window=window)) == messages


def test_messages_share_a_context_unless_agreed_otherwise():
    message = b"the same words again and again " * 5
    kept = agree()
    first, second = kept.compress(message), kept.compress(message)
    assert len(second) < len(first)
    assert list(inflate_each([first, second])) == [message, message]
    forgetting = agree("permessage-deflate; server_no_context_takeover")
    first, second = forgetting.compress(message), forgetting.compress(message)
    assert first == second
    assert list(inflate_each([first, second], forget=True)) == [message, message]


# Receiving


class Sender:
    """A client's side."""

    def __init__(self, *, window=15, forget=False):
        self._window = window
        self._forget = forget
        self._deflater = None

    def compress(self, message, flush=zlib.Z_SYNC_FLUSH):
        deflater = self._deflater or zlib.compressobj(wbits=-self._window)
        self._deflater = None if self._forget else deflater
        data = deflater.compress(message) + deflater.flush(flush)
        return data[:-4] if flush == zlib.Z_SYNC_FLUSH else data


def receive(deflate, *parts, opcode=Opcode.TEXT, rsv=COMPRESSED):
    """One message in frames; the first failure, or what it inflates to."""
    plain = b""
    for number, part in enumerate(parts):
        first, last = not number, number == len(parts) - 1
        kind = opcode if first else Opcode.CONTINUATION
        header = deflate.frame_inbound_header(PROTO, kind, rsv if first else PLAIN, len(part))
        assert isinstance(header, RsvBits)
        data = deflate.frame_inbound_payload_data(PROTO, part)
        if isinstance(data, CloseReason):
            return data
        rest = deflate.frame_inbound_complete(PROTO, last)
        if isinstance(rest, CloseReason):
            return rest
        plain += data + (rest or b"")
    return plain


@pytest.mark.parametrize("forget", [False, True])
def test_messages_are_inflated_in_the_context_that_was_agreed(forget):
    deflate = agree("permessage-deflate" + "; client_no_context_takeover" * forget)
    sender = Sender(forget=forget)
    messages = [b"hello hello hello", b"", b"hello hello hello", bytes(1000)]
    for message in messages:
        assert receive(deflate, sender.compress(message)) == message


def test_plain_messages_pass_between_compressed_ones():
    deflate = agree()
    sender = Sender()
    assert receive(deflate, sender.compress(b"one")) == b"one"
    assert receive(deflate, b"two", rsv=PLAIN) == b"two"
    assert receive(deflate, sender.compress(b"one")) == b"one"


@given(st.binary(max_size=300), st.lists(st.integers(0, 40), max_size=10))
def test_the_cut_of_a_message_into_frames_does_not_matter(message, cuts):
    data = Sender().compress(message)
    parts, start = [], 0
    for cut in cuts:
        parts.append(data[start : start + cut])
        start += cut
    parts.append(data[start:])
    assert receive(agree(), *parts) == message


def test_a_control_frame_between_fragments_changes_nothing():
    """What wsproto's own extension gets wrong."""
    deflate = agree()
    data = Sender().compress(b"hello " * 100)
    deflate.frame_inbound_header(PROTO, Opcode.TEXT, COMPRESSED, 5)
    plain = deflate.frame_inbound_payload_data(PROTO, data[:5])
    assert deflate.frame_inbound_complete(PROTO, False) is None
    deflate.frame_inbound_header(PROTO, Opcode.PING, PLAIN, 4)
    assert deflate.frame_inbound_payload_data(PROTO, b"ping") == b"ping"
    assert deflate.frame_inbound_complete(PROTO, True) is None
    deflate.frame_inbound_header(PROTO, Opcode.CONTINUATION, PLAIN, 5)
    plain += deflate.frame_inbound_payload_data(PROTO, data[5:])
    plain += deflate.frame_inbound_complete(PROTO, True)
    assert plain == b"hello " * 100


@pytest.mark.parametrize("opcode", [Opcode.CONTINUATION, Opcode.PING, Opcode.CLOSE])
def test_only_the_first_frame_of_a_message_may_carry_the_bit(opcode):
    """RFC 7692 §6.1, §6.2.3."""
    answer = agree().frame_inbound_header(PROTO, opcode, COMPRESSED, 1)
    assert answer is CloseReason.PROTOCOL_ERROR


def test_what_is_no_deflate_stream_fails_the_connection():
    assert receive(agree(), b"\xff" * 20) is CloseReason.INVALID_FRAME_PAYLOAD_DATA


def test_a_message_of_just_the_limit_passes_and_one_byte_more_does_not():
    for size, outcome in ((LIMIT, b"a" * LIMIT), (LIMIT + 1, CloseReason.MESSAGE_TOO_BIG)):
        assert receive(agree(), Sender().compress(b"a" * size)) == outcome


@pytest.mark.slow
def test_a_bomb_is_not_inflated_beyond_the_limit():
    """CVE-2018-1000518: 100 KiB that would be 100 MiB."""
    deflate = agree()
    bomb = Sender().compress(bytes(100 << 20))
    assert len(bomb) < 110_000
    deflate.frame_inbound_header(PROTO, Opcode.BINARY, COMPRESSED, len(bomb))
    inflated = 0
    for start in range(0, len(bomb), 1000):
        part = deflate.frame_inbound_payload_data(PROTO, bomb[start : start + 1000])
        if isinstance(part, CloseReason):
            assert part is CloseReason.MESSAGE_TOO_BIG
            break
        inflated += len(part)
    assert inflated <= LIMIT


def test_the_limit_counts_for_each_message():
    deflate = agree()
    sender = Sender()
    for _ in range(5):
        assert receive(deflate, sender.compress(bytes(LIMIT))) == bytes(LIMIT)


@pytest.mark.parametrize("padding", [b"", b"\x00"])
def test_a_final_block_ends_a_message(padding):
    """RFC 7692 §7.2.3.4."""
    deflate = agree()
    data = Sender().compress(b"Hello", flush=zlib.Z_FINISH) + padding
    assert receive(deflate, data) == b"Hello"
    assert receive(deflate, Sender().compress(b"again")) == b"again"


def test_nothing_may_follow_a_final_block():
    data = Sender().compress(b"Hello", flush=zlib.Z_FINISH)
    assert receive(agree(), data + data) is CloseReason.INVALID_FRAME_PAYLOAD_DATA


def test_a_server_makes_no_offer():
    assert agree().enabled()
    assert agree().offer() is False
