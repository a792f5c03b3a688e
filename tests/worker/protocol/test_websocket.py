"""WebSocket frames and messages, against frames written out by hand; close codes; bounds."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.websocket import (
    JOINED_PAYLOAD,
    MAX_FRAGMENTS,
    MAX_REASON,
    NO_CODE,
    CloseReceived,
    MessageReceived,
    PingReceived,
    PongReceived,
    WebSocketCodec,
    WebSocketViolation,
    close_code_is_valid,
    negotiate_untrusted,
)
from asgiri.worker.protocol.websocket_deflate import Deflate
from tests.support.websocket_client import FrameReader, Opcode, encode_frame

LIMIT = 16 << 20


def codec(limit=LIMIT, *, deflate=False):
    extension = Deflate({}, max_message_size=limit) if deflate else None
    return WebSocketCodec(max_message_size=limit, deflate=extension)


def drain(made):
    events = []
    while (event := made.next_event()) is not None:
        events.append(event)
    return events


def receive(*frames, made=None):
    made = made or codec()
    made.receive_data(b"".join(frames))
    return drain(made)


def text(content, **options):
    return encode_frame(Opcode.TEXT, content.encode(), **options)


def close(code, reason=b""):
    return encode_frame(Opcode.CLOSE, struct.pack("!H", code) + reason)


def violation(events):
    assert len(events) == 1
    assert isinstance(events[0], WebSocketViolation), events
    return events[0].code, events[0].reason


# Messages


def test_messages_of_both_kinds():
    frames = [text("grüße"), encode_frame(Opcode.BINARY, b"\x00\xff"), text("")]
    assert receive(*frames) == [
        MessageReceived("grüße", 7),
        MessageReceived(b"\x00\xff", 2),
        MessageReceived("", 0),
    ]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_each_form_of_length(size):
    content = bytes(size)
    assert receive(encode_frame(Opcode.BINARY, content)) == [MessageReceived(content, size)]


def test_fragments_are_joined():
    frames = [
        text("a", fin=False),
        encode_frame(Opcode.CONTINUATION, b"", fin=False),
        encode_frame(Opcode.CONTINUATION, b"b"),
    ]
    assert receive(*frames) == [MessageReceived("ab", 2)]


def test_control_frames_come_between_fragments():
    frames = [
        text("a", fin=False),
        encode_frame(Opcode.PING, b"p"),
        encode_frame(Opcode.PONG, b"q"),
        encode_frame(Opcode.CONTINUATION, b"b"),
    ]
    assert receive(*frames) == [PingReceived(b"p"), PongReceived(b"q"), MessageReceived("ab", 2)]


def test_a_character_may_be_cut_across_frames():
    frames = [
        encode_frame(Opcode.TEXT, "€".encode()[:1], fin=False),
        encode_frame(Opcode.CONTINUATION, "€".encode()[1:2], fin=False),
        encode_frame(Opcode.PING),
        encode_frame(Opcode.CONTINUATION, "€".encode()[2:]),
    ]
    assert receive(*frames) == [PingReceived(b""), MessageReceived("€", 3)]


def test_events_are_parsed_one_by_one():
    """A reader who is behind holds bytes, not messages; what comes meanwhile is in line."""
    made = codec()
    made.receive_data(text("one") + text("two"))
    assert made.next_event() == MessageReceived("one", 3)
    made.receive_data(text("three"))
    assert drain(made) == [MessageReceived("two", 3), MessageReceived("three", 5)]


messages = st.lists(
    st.tuples(st.one_of(st.text(max_size=200), st.binary(max_size=200)), st.integers(1, 5)),
    max_size=6,
)


def frames_of(content, count):
    opcode = Opcode.TEXT if isinstance(content, str) else Opcode.BINARY
    payload = content.encode() if isinstance(content, str) else content
    size = len(payload) // count + 1
    parts = [payload[start : start + size] for start in range(0, len(payload), size)] or [b""]
    for number, part in enumerate(parts):
        kind = opcode if number == 0 else Opcode.CONTINUATION
        yield encode_frame(kind, part, fin=number == len(parts) - 1, mask=b"mask")


@settings(max_examples=150)
@given(messages, st.lists(st.integers(1, 50), max_size=60))
def test_events_do_not_depend_on_how_bytes_arrive(sent, cuts):
    raw = b"".join(frame for content, count in sent for frame in frames_of(content, count))
    raw += close(1000, b"bye")
    made = codec()
    events, offset = [], 0
    for cut in [*cuts, len(raw)]:
        made.receive_data(raw[offset : offset + cut])
        events += drain(made)
        offset += cut
    assert [event.content for event in events[:-1]] == [content for content, _ in sent]
    assert events[-1] == CloseReceived(1000, "bye")


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_never_raise(noise, deflate):
    made = codec(1000, deflate=deflate)
    made.receive_data(text("x", fin=False, mask=b"mask") + noise)
    drain(made)
    made.receive_data(noise)
    drain(made)


# Compression


def compressor():
    return zlib.compressobj(wbits=-15)


def compressed(deflater, content, opcode=Opcode.TEXT, **options):
    data = deflater.compress(content) + deflater.flush(zlib.Z_SYNC_FLUSH)
    return encode_frame(opcode, data[:-4], rsv=4, **options)


def test_compressed_messages_with_a_ping_between_their_fragments():
    made = codec(deflate=True)
    deflater = compressor()
    data = deflater.compress(b"hello " * 50) + deflater.flush(zlib.Z_SYNC_FLUSH)
    frames = [
        encode_frame(Opcode.TEXT, data[:4], rsv=4, fin=False),
        encode_frame(Opcode.PING, b"p"),
        encode_frame(Opcode.CONTINUATION, data[4:-4]),
        compressed(deflater, b"hello "),
    ]
    assert receive(*frames, made=made) == [
        PingReceived(b"p"),
        MessageReceived("hello " * 50, 300),
        MessageReceived("hello ", 6),
    ]


def test_a_bomb_is_too_big_before_it_is_inflated():
    made = codec(1000, deflate=True)
    bomb = compressed(compressor(), bytes(10 << 20), Opcode.BINARY)
    assert violation(receive(bomb, made=made)) == (1009, Refusal.WEBSOCKET_TOO_BIG)


def test_the_bit_of_an_extension_that_was_not_agreed_is_a_violation():
    frame = encode_frame(Opcode.TEXT, b"x", rsv=4)
    assert violation(receive(frame)) == (1002, Refusal.WEBSOCKET_PROTOCOL_ERROR)


# Bounds


@pytest.mark.slow
def test_a_message_of_just_the_limit_passes():
    [message] = receive(encode_frame(Opcode.BINARY, bytes(LIMIT)))
    assert len(message.content) == message.size == LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("fragments", [1, 10])
def test_one_byte_more_is_too_big(fragments):
    made = codec()
    frames = list(frames_of(bytes(LIMIT + 1), fragments))
    assert violation(receive(*frames, made=made)) == (1009, Refusal.WEBSOCKET_TOO_BIG)


def test_the_limit_counts_bytes_not_characters():
    made = codec(100)
    assert len(receive(text("é" * 50), made=made)) == 1
    assert violation(receive(text("é" * 51), made=made)) == (1009, Refusal.WEBSOCKET_TOO_BIG)


def test_a_message_that_is_too_big_is_noticed_before_it_is_complete():
    made = codec(1000)
    half = encode_frame(Opcode.BINARY, bytes(1 << 20))[: 1 << 19]
    assert violation(receive(half, made=made)) == (1009, Refusal.WEBSOCKET_TOO_BIG)


@pytest.mark.parametrize("first", [b"", encode_frame(Opcode.BINARY, bytes(900), fin=False)])
@pytest.mark.parametrize("fin", [True, False])
def test_a_frame_that_announces_too_much_is_refused_by_its_header(first, fin):
    made = codec(1000)
    opcode = Opcode.CONTINUATION if first else Opcode.BINARY
    size = 101 if first else 1001
    header = encode_frame(opcode, bytes(size), fin=fin)[:-size]
    assert receive(first, header[:-5], made=made) == []
    assert violation(receive(header[-5:], made=made)) == (1009, Refusal.WEBSOCKET_TOO_BIG)


@pytest.mark.slow
def test_endless_fragments_are_ended():
    made = codec()
    frame = encode_frame(Opcode.CONTINUATION, b"", fin=False, mask=b"mask")
    made.receive_data(text("x", fin=False) + frame * MAX_FRAGMENTS)
    assert violation(drain(made)) == (1008, Refusal.WEBSOCKET_FRAGMENT_FLOOD)


# Violations

PROTOCOL_ERRORS = {
    "unmasked": encode_frame(Opcode.TEXT, b"x", masked=False),
    "reserved opcode": encode_frame(3, b"x"),
    "reserved control opcode": encode_frame(11, b""),
    "reserved bit 2": encode_frame(Opcode.TEXT, b"x", rsv=2),
    "reserved bit 3": encode_frame(Opcode.TEXT, b"x", rsv=1),
    "continuation of nothing": encode_frame(Opcode.CONTINUATION, b"x"),
    "message within a message": text("a", fin=False) + text("b"),
    "fragmented ping": encode_frame(Opcode.PING, b"", fin=False),
    "long ping": encode_frame(Opcode.PING, bytes(126)),
    "length not in its shortest form": b"\x82\xfe\x00\x05mask12345",
    "length with its first bit": b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00mask",
    "close of one byte": encode_frame(Opcode.CLOSE, b"x"),
    "close with 0": close(0),
    "close with 999": close(999),
    "close with 1004": close(1004),
    "close with 1005": close(1005),
    "close with 1006": close(1006),
    "close with 1015": close(1015),
    "close with 1016": close(1016),
    "close with 2999": close(2999),
    "close with 5000": close(5000),
}


@pytest.mark.parametrize("raw", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS)
def test_protocol_errors(raw):
    assert violation(receive(raw)) == (1002, Refusal.WEBSOCKET_PROTOCOL_ERROR)


BAD_TEXT = {
    "lone continuation byte": encode_frame(Opcode.TEXT, b"\x80"),
    "overlong": encode_frame(Opcode.TEXT, b"\xc0\xaf"),
    "surrogate": encode_frame(Opcode.TEXT, b"\xed\xa0\x80"),
    "ends within a character": encode_frame(Opcode.TEXT, b"\xe2\x82"),
    "before the message is complete": encode_frame(Opcode.TEXT, b"\xff", fin=False),
    "reason of a close": close(1000, b"\xff"),
}


@pytest.mark.parametrize("raw", BAD_TEXT.values(), ids=BAD_TEXT)
def test_text_that_is_no_utf8(raw):
    assert violation(receive(raw)) == (1007, Refusal.WEBSOCKET_BAD_TEXT)


def test_nothing_follows_a_violation_or_a_close():
    for end in (encode_frame(3), close(1000)):
        made = codec()
        assert len(receive(end, text("more"), made=made)) == 1
        assert receive(text("still more"), made=made) == []


# Closing


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1012, 1013, 3000, 4999])
def test_a_close_with_its_code_and_reason(code):
    assert receive(close(code, "adiós".encode())) == [CloseReceived(code, "adiós")]


def test_a_close_without_a_code():
    assert receive(encode_frame(Opcode.CLOSE)) == [CloseReceived(NO_CODE, "")]


def test_codes_that_may_be_sent():
    """RFC 6455 §7.4: 1004 to 1006 and 1015 stand for what is never sent, 1016 to 2999 wait."""
    valid = {code for code in range(6000) if close_code_is_valid(code)}
    assert valid == {
        *(1000, 1001, 1002, 1003),
        *range(1007, 1015),
        *range(3000, 5000),
    }


def sent(*parts, deflate=False):
    reader = FrameReader(deflate=deflate)
    reader.feed(b"".join(parts))
    frame = reader.next_frame()
    assert reader.buffered == b""
    return frame


def test_a_close_frame_is_written_with_code_and_reason():
    assert sent(codec().send_close(1000, "adiós")).payload == b"\x03\xe8" + "adiós".encode()
    assert sent(codec().send_close(NO_CODE, "unsaid")).payload == b""


@given(st.integers(100, 130), st.sampled_from("aé€😀"))
def test_a_reason_is_cut_between_characters(ascii_size, last):
    reason = "x" * ascii_size + last * 20
    payload = sent(codec().send_close(4000, reason)).payload
    assert len(payload) <= 2 + MAX_REASON
    assert reason.startswith(payload[2:].decode())
    assert len(payload) > MAX_REASON - 2 or payload[2:].decode() == reason


# Sending


@pytest.mark.parametrize(
    "size", [0, 1, 125, 126, JOINED_PAYLOAD, JOINED_PAYLOAD + 1, 65535, 65536, 70000]
)
@pytest.mark.parametrize("deflate", [False, True])
def test_messages_are_written_in_one_frame_of_the_shortest_form(size, deflate):
    content = bytes(i * i % 251 for i in range(size))
    frame = sent(*codec(deflate=deflate).send_message(content), deflate=deflate)
    assert (frame.opcode, frame.fin, frame.compressed) == (Opcode.BINARY, True, deflate)
    payload = frame.payload
    if deflate:
        payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
    assert payload == content


def test_a_long_payload_is_not_copied():
    content = bytes(100_000)
    assert codec().send_message(content)[1] is content


def test_text_is_written_as_utf8():
    frame = sent(*codec().send_message("grüße"))
    assert (frame.opcode, frame.payload) == (Opcode.TEXT, "grüße".encode())


def test_pings_and_pongs():
    made = codec(deflate=True)
    assert sent(made.send_ping(b"p")) == sent(encode_frame(Opcode.PING, b"p", masked=False))
    assert sent(made.send_pong(b"q")) == sent(encode_frame(Opcode.PONG, b"q", masked=False))


# Negotiation


def negotiate(*fields, deflate=True):
    return negotiate_untrusted(list(fields), deflate=deflate, max_message_size=1000)


def test_subprotocols_are_listed_in_the_clients_order():
    made = negotiate(
        (b"sec-websocket-protocol", b"chat, superchat"),
        (b"host", b"x"),
        (b"sec-websocket-protocol", b"\tv2 ,, \xff,v1"),
    )
    assert made.subprotocols == ["chat", "superchat", "v2", "v1"]
    assert made.deflate is None


def test_the_first_offer_that_fits_is_taken():
    offers = (
        b"sec-websocket-extensions",
        (
            b"permessage-deflate; server_max_window_bits=8,"
            b"permessage-deflate; server_max_window_bits=9"
        ),
    )
    assert negotiate(offers).deflate.response == b"permessage-deflate; server_max_window_bits=9"
    assert negotiate(offers, deflate=False).deflate is None
    assert negotiate((b"sec-websocket-extensions", b"foo, permessage-deflate; foo")).deflate is None


@pytest.mark.parametrize(
    ("versions", "known"), [([b"13"], True), ([], False), ([b"8"], False), ([b"13", b"13"], False)]
)
def test_the_version_is_13(versions, known):
    fields = [(b"sec-websocket-version", version) for version in versions]
    assert negotiate(*fields).version_is_known is known
