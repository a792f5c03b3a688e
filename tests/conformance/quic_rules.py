"""What a server must make of QUIC: RFC 9000, 9001 and 9368. Tables, by sections: what may be sent
once the handshake is complete, within it, and in its transport parameters and TLS messages.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aioquic.tls import Context, Epoch

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http3_frames import write_integer
from tests.conformance.quic_verdicts import Act, Closed, Ignored, Rule, Verdict, counter_of
from tests.support.quic_probe import Probe, crypto_frame, read_parameters, write_parameters

FLOW_CONTROL_ERROR: Final = 0x03
STREAM_LIMIT_ERROR: Final = 0x04
STREAM_STATE_ERROR: Final = 0x05
FINAL_SIZE_ERROR: Final = 0x06
FRAME_ENCODING_ERROR: Final = 0x07
TRANSPORT_PARAMETER_ERROR: Final = 0x08
CONNECTION_ID_LIMIT_ERROR: Final = 0x09
PROTOCOL_VIOLATION: Final = 0x0A
CRYPTO_BUFFER_EXCEEDED: Final = 0x0D
VERSION_NEGOTIATION_ERROR: Final = 0x11
CRYPTO_ERROR: Final = 0x100
UNEXPECTED_MESSAGE: Final = CRYPTO_ERROR + 10
ILLEGAL_PARAMETER: Final = CRYPTO_ERROR + 47
DECODE_ERROR: Final = CRYPTO_ERROR + 50
DECRYPT_ERROR: Final = CRYPTO_ERROR + 51
PROTOCOL_VERSION: Final = CRYPTO_ERROR + 70
MISSING_EXTENSION: Final = CRYPTO_ERROR + 109
NO_APPLICATION_PROTOCOL: Final = CRYPTO_ERROR + 120

LARGEST: Final = (1 << 62) - 1
TOO_MANY: Final = (1 << 60) + 1
"""Streams (RFC 9000 §4.6)."""
SERVERS_BIDI: Final = b"\x01"
SERVERS_UNI: Final = b"\x03"
"""The server's control stream."""
SERVERS_UNI_TO_COME: Final = b"\x0f"
CLIENTS_UNI: Final = b"\x02"
BEYOND_BIDI: Final = write_integer(4 * 100_000)
BEYOND_UNI: Final = write_integer(4 * 100_000 + 2)

RULES: list[Rule] = []


def number(*values: int) -> bytes:
    return b"".join(write_integer(value) for value in values)


def rule(section: str, name: str, verdict: Verdict, act: Act, **options: Any) -> None:
    RULES.append(Rule(section, name, act, verdict, options, counter_of(verdict)))


def frames(section: str, name: str, verdict: Verdict, *payloads: bytes, **options: Any) -> None:
    """One packet for each payload."""

    async def act(probe: Probe) -> None:
        await probe.silence()  # what every connection begins with is through
        for payload in payloads:
            probe.send_packet(payload)

    rule(section, name, verdict, act, **options)


def closes(section: str, name: str, code: int, *payloads: bytes, **options: Any) -> None:
    frames(section, name, Closed(code), *payloads, **options)


def ignores(section: str, name: str, *payloads: bytes, **options: Any) -> None:
    frames(section, name, Ignored(), *payloads, **options)


def new_id(
    sequence: int, retire: int = 0, connection_id: bytes | None = None, token: bytes | None = None
) -> bytes:
    """A NEW_CONNECTION_ID frame."""
    connection_id = bytes([0xC1, sequence % 256] * 4) if connection_id is None else connection_id
    token = bytes([sequence % 256]) * 16 if token is None else token
    return b"\x18" + number(sequence, retire) + bytes([len(connection_id)]) + connection_id + token


# --------------------------------------------------------------------------------------------------
# RFC 9000 §2 to §4: streams and flow control

S = "RFC 9000 §2.1"
closes(S, "STREAM on the server's unidirectional stream", STREAM_STATE_ERROR, b"\x08\x03x")
closes(S, "STREAM on a bidirectional stream of the server's", STREAM_STATE_ERROR, b"\x08\x01x")
S = "RFC 9000 §4.1"
closes(
    S,
    "STREAM beyond the stream's window",
    FLOW_CONTROL_ERROR,
    b"\x0e\x00" + number(1 << 30) + b"\x01x",
)
closes(
    S,
    "RESET_STREAM beyond the stream's window",
    FLOW_CONTROL_ERROR,
    b"\x04\x00\x00" + number(1 << 30),
)


def use_up_the_connection(probe: Probe) -> None:
    """Ends of streams that are each within their own window."""
    window = dict(probe.quic.server_parameters)
    of_stream = int.from_bytes(window[0x06], "big") & 0x3FFFFFFF
    for stream in range(100):
        probe.send_packet(b"\x0e" + number(4 * stream, of_stream - 1) + b"\x01x")


rule(S, "STREAM beyond the connection's window", Closed(FLOW_CONTROL_ERROR), use_up_the_connection)
ignores(S, "data that comes again takes no credit", *[b"\x08\x02" + b"\x00\x04\x00"] * 50)
S = "RFC 9000 §4.5"
closes(S, "data behind the end", FINAL_SIZE_ERROR, b"\x0f\x00\x05\x01a", b"\x0e\x00\x06\x01x")
closes(
    S,
    "an end that moves forward",
    FINAL_SIZE_ERROR,
    b"\x0f\x00\x02\x01a\x0f\x00\x03\x01b",
)
closes(
    S, "an end before what came", FINAL_SIZE_ERROR, b"\x0e\x00\x05\x03abc", b"\x0f\x00\x00\x02ab"
)
closes(S, "a reset before what came", FINAL_SIZE_ERROR, b"\x0e\x00\x05\x03abc", b"\x04\x00\x00\x02")
closes(S, "a reset that moves the end", FINAL_SIZE_ERROR, b"\x0f\x00\x01\x03abc\x04\x00\x00\x09")
closes(
    S,
    "two resets that disagree",
    FINAL_SIZE_ERROR,
    b"\x0e\x00\x05\x01a\x04\x00\x00\x06\x04\x00\x00\x07",
)
S = "RFC 9000 §4.6"
for beyond, kind in ((BEYOND_BIDI, "bidirectional"), (BEYOND_UNI, "unidirectional")):
    closes(
        S, f"STREAM beyond the limit of {kind} streams", STREAM_LIMIT_ERROR, b"\x08" + beyond + b"x"
    )
    closes(
        S,
        f"RESET_STREAM beyond the limit of {kind} streams",
        STREAM_LIMIT_ERROR,
        b"\x04" + beyond + b"\0\0",
    )
    closes(
        S,
        f"STREAM_DATA_BLOCKED beyond the limit of {kind} streams",
        STREAM_LIMIT_ERROR,
        b"\x15" + beyond + b"\0",
    )
closes(S, "STOP_SENDING beyond the limit", STREAM_LIMIT_ERROR, b"\x05" + BEYOND_BIDI + b"\0")
closes(S, "MAX_STREAM_DATA beyond the limit", STREAM_LIMIT_ERROR, b"\x11" + BEYOND_BIDI + b"\0")

# --------------------------------------------------------------------------------------------------
# RFC 9000 §12: packets and frames

S = "RFC 9000 §12.4"
closes(S, "a frame of unknown type", FRAME_ENCODING_ERROR, b"\x40\xff")
closes(S, "a frame type of eight octets that is unknown", FRAME_ENCODING_ERROR, number(1 << 40))
closes(S, "a type cut off", FRAME_ENCODING_ERROR, b"\x01\x01\x01\x40")
closes(S, "a packet without frames", PROTOCOL_VIOLATION, b"")
for name, cut in (
    ("ACK", b"\x02\x00\x00"),
    ("ACK with ECN", b"\x03\x00\x00\x00\x00\x01"),
    ("RESET_STREAM", b"\x04\x00\x00"),
    ("STOP_SENDING", b"\x05\x00"),
    ("CRYPTO", b"\x06\x00\x05abc"),
    ("STREAM", b"\x0f\x00\x00\x05abc"),
    ("MAX_DATA", b"\x10"),
    ("MAX_STREAM_DATA", b"\x11\x00"),
    ("MAX_STREAMS", b"\x12\x40"),
    ("DATA_BLOCKED", b"\x14"),
    ("STREAM_DATA_BLOCKED", b"\x15\x00"),
    ("STREAMS_BLOCKED", b"\x16"),
    ("NEW_CONNECTION_ID", new_id(1)[:-1]),
    ("RETIRE_CONNECTION_ID", b"\x19"),
    ("PATH_CHALLENGE", b"\x1a1234567"),
    ("PATH_RESPONSE", b"\x1b1234567"),
    ("CONNECTION_CLOSE", b"\x1c\x00\x00\x05abc"),
):
    closes(S, f"{name} cut off", FRAME_ENCODING_ERROR, cut)
S = "RFC 9000 §12.3"


async def duplicates(probe: Probe) -> None:
    await probe.silence()
    datagram = probe.send_packet(b"\x1a12345678")
    for _ in range(20):
        probe.send_raw(datagram)
    await probe.wait_frame(0x1B)
    await probe.silence()
    assert len(probe.frames(0x1B)) == 1


rule(S, "a packet that comes again is not handled again", Ignored(), duplicates)
S = "RFC 9000 §12.2"


async def coalesced(probe: Probe) -> None:
    """What follows in the datagram is for another connection, which nobody has."""
    await probe.silence()
    stranger = bytearray(probe.send_packet(b"\x01"))
    probe.send_raw(b"\xe1\0\0\0\x01\x08strangerX\x00\x40\x20" + bytes(60) + bytes(stranger))


rule(S, "a datagram of somebody else's packets", Ignored(), coalesced)

# --------------------------------------------------------------------------------------------------
# RFC 9000 §13: acknowledgements

S = "RFC 9000 §13.1"
closes(
    S, "ACK of a packet that was never sent", PROTOCOL_VIOLATION, b"\x02" + number(1 << 40, 0, 0, 0)
)
S = "RFC 9000 §13.2.1"


async def acknowledgements_only(probe: Probe) -> None:
    """They are not acknowledged, or the two would never fall silent."""
    await probe.silence()
    probe.deaf_and_dumb = True
    before = len(probe.datagrams)
    for _ in range(20):
        probe.send_packet(b"\x02" + number(0, 0, 0, 0))
        await asyncio.sleep(0)
    probe.send_packet(b"\x1a12345678")
    await probe.wait_frame(0x1B)
    assert len(probe.datagrams) - before <= 3
    probe.deaf_and_dumb = False


rule(S, "packets of acknowledgements only", Ignored(), acknowledgements_only)

# --------------------------------------------------------------------------------------------------
# RFC 9000 §17: packet formats


def flipped(bits: int) -> Act:
    async def act(probe: Probe) -> None:
        await probe.silence()
        probe.send_packet(b"\x01", flip=bits)

    return act


rule("RFC 9000 §17.3.1", "reserved bits", Closed(PROTOCOL_VIOLATION), flipped(0x08))
rule("RFC 9000 §17.3.1", "the other reserved bit", Closed(PROTOCOL_VIOLATION), flipped(0x10))
rule("RFC 9000 §17.3.1", "fixed bit of 0: dropped", Ignored(), flipped(0x40))
rule("RFC 9000 §17.4", "spin bit", Ignored(), flipped(0x20))


async def forged_tag(probe: Probe) -> None:
    await probe.silence()
    datagram = bytearray(probe.send_packet(b"\x01"))
    for index in range(20, len(datagram)):
        datagram[index] ^= 1
        probe.send_raw(bytes(datagram))


rule("RFC 9001 §5.5", "packets that do not authenticate: dropped", Ignored(), forged_tag)


async def key_update(probe: Probe) -> None:
    await probe.silence()
    probe.quic.request_key_update()
    await probe.ping()
    await probe.assert_serves()
    assert probe.quic._cryptos[Epoch.ONE_RTT].recv.key_phase == 1
    probe.quic.request_key_update()
    await probe.ping()


rule("RFC 9001 §6", "two key updates are followed", Ignored(), key_update)

# --------------------------------------------------------------------------------------------------
# RFC 9000 §19: frames

closes(
    "RFC 9000 §19.3.1", "ACK of less than nothing", FRAME_ENCODING_ERROR, b"\x02\x00\x00\x00\x05"
)
closes(
    "RFC 9000 §19.3.1",
    "ACK whose gap leads below 0",
    FRAME_ENCODING_ERROR,
    b"\x02\x03\x00\x01\x00\x05\x00",
)
ignores("RFC 9000 §19.3.2", "ACK with ECN counts", b"\x03\x00\x00\x00\x00\x01\x02\x03")
S = "RFC 9000 §19.4"
closes(
    S, "RESET_STREAM of the server's stream", STREAM_STATE_ERROR, b"\x04" + SERVERS_UNI + b"\0\0"
)
closes(
    S,
    "RESET_STREAM of a stream to come of the server's",
    STREAM_STATE_ERROR,
    b"\x04" + SERVERS_BIDI + b"\0\0",
)
S = "RFC 9000 §19.5"
closes(
    S,
    "STOP_SENDING for a stream that only receives",
    STREAM_STATE_ERROR,
    b"\x05" + CLIENTS_UNI + b"\0",
)
closes(
    S,
    "STOP_SENDING for a stream to come of the server's",
    STREAM_STATE_ERROR,
    b"\x05" + SERVERS_UNI_TO_COME + b"\0",
)
S = "RFC 9000 §19.6"
for offset in (LARGEST, LARGEST - 1):
    closes(
        S,
        f"CRYPTO that ends behind 2^62 ({offset & 3})",
        CRYPTO_BUFFER_EXCEEDED,
        b"\x06" + number(offset) + b"\x05hello",
    )
closes("RFC 9000 §19.7", "NEW_TOKEN by a client", PROTOCOL_VIOLATION, b"\x07\x01x")
closes(
    "RFC 9000 §19.8",
    "STREAM on a stream to come of the server's",
    STREAM_STATE_ERROR,
    b"\x08" + SERVERS_UNI_TO_COME + b"x",
)
closes(
    "RFC 9000 §19.8",
    "STREAM that ends behind 2^62",
    FRAME_ENCODING_ERROR,
    b"\x0e\x00" + number(LARGEST) + b"\x05hello",
)
ignores("RFC 9000 §19.9", "MAX_DATA that shrinks", b"\x10\x00")
S = "RFC 9000 §19.10"
closes(
    S,
    "MAX_STREAM_DATA for a stream that only receives",
    STREAM_STATE_ERROR,
    b"\x11" + CLIENTS_UNI + b"\0",
)
closes(
    S,
    "MAX_STREAM_DATA for a stream to come of the server's",
    STREAM_STATE_ERROR,
    b"\x11" + SERVERS_UNI_TO_COME + b"\0",
)
ignores(S, "MAX_STREAM_DATA that shrinks", b"\x11" + SERVERS_UNI + b"\x00")
S = "RFC 9000 §19.11"
for kind in (0x12, 0x13):
    closes(
        S,
        f"MAX_STREAMS above 2^60 ({kind:#x})",
        FRAME_ENCODING_ERROR,
        bytes([kind]) + number(TOO_MANY),
    )
    ignores(S, f"MAX_STREAMS that shrink ({kind:#x})", bytes([kind]) + b"\x00")
    ignores(S, f"MAX_STREAMS of 2^60 ({kind:#x})", bytes([kind]) + number(1 << 60))
ignores("RFC 9000 §19.12", "DATA_BLOCKED", b"\x14\x05")
S = "RFC 9000 §19.13"
closes(
    S,
    "STREAM_DATA_BLOCKED of the server's stream",
    STREAM_STATE_ERROR,
    b"\x15" + SERVERS_UNI + b"\0",
)
ignores(S, "STREAM_DATA_BLOCKED of the client's stream", b"\x15" + CLIENTS_UNI + b"\x05")
for kind in (0x16, 0x17):
    closes(
        "RFC 9000 §19.14",
        f"STREAMS_BLOCKED above 2^60 ({kind:#x})",
        FRAME_ENCODING_ERROR,
        bytes([kind]) + number(TOO_MANY),
    )
    ignores("RFC 9000 §19.14", f"STREAMS_BLOCKED ({kind:#x})", bytes([kind]) + b"\x09")
S = "RFC 9000 §19.15"
for size in (0, 21, 255):
    closes(
        S,
        f"NEW_CONNECTION_ID of {size} bytes",
        FRAME_ENCODING_ERROR,
        new_id(8, connection_id=bytes(size)),
    )
closes(S, "NEW_CONNECTION_ID that retires later ones", FRAME_ENCODING_ERROR, new_id(8, retire=9))
closes(
    S,
    "NEW_CONNECTION_ID to a server that was given an empty one",
    PROTOCOL_VIOLATION,
    new_id(1),
    connection_id_length=0,
)
closes(
    "RFC 9000 §5.1.1",
    "more connection IDs than the limit",
    CONNECTION_ID_LIMIT_ERROR,
    *[new_id(8 + n) for n in range(8)],
)
S = "RFC 9000 §5.1.2"


async def retires_for_the_client(probe: Probe) -> None:
    """Retire Prior To: the server uses another and says that it has retired the first."""
    await probe.silence()
    wanted = probe.listen_to(bytes(range(8)), 20)
    probe.send_packet(new_id(20, retire=20, connection_id=wanted))
    await probe.wait_frame(0x19)
    await probe.silence()
    assert probe.datagrams[-1][1:9] == wanted


async def a_full_house(probe: Probe) -> None:
    """As many as the server allows, each of them in place of another."""
    await probe.silence()
    for sequence in range(20, 28):
        wanted = probe.listen_to(bytes([sequence] * 8), sequence)
        probe.send_packet(new_id(sequence, retire=20, connection_id=wanted))


rule(S, "connection IDs are retired on demand", Ignored(), retires_for_the_client)
rule("RFC 9000 §5.1.1", "as many connection IDs as the limit", Ignored(), a_full_house)
S = "RFC 9000 §19.16"
closes(S, "RETIRE_CONNECTION_ID of one that was not issued", PROTOCOL_VIOLATION, b"\x19\x3f")
closes(S, "RETIRE_CONNECTION_ID of the one that it came to", PROTOCOL_VIOLATION, b"\x19\x00")


async def replenished(probe: Probe) -> None:
    await probe.wait_frame(0x18)
    await probe.silence()
    before = len(probe.frames(0x18))
    await probe.change_connection_id()
    await probe.wait_until(lambda: len(probe.frames(0x18)) == before + 1)


rule("RFC 9000 §5.1.1", "a retired connection ID is replaced", Ignored(), replenished)
S = "RFC 9000 §8.2.2"


async def challenged(probe: Probe) -> None:
    await probe.silence()
    probe.send_packet(b"\x1aABCDEFGH")
    assert await probe.wait_frame(0x1B) == b"ABCDEFGH"
    answer = next(
        datagram
        for datagram, (_, payload) in zip(
            reversed(probe.datagrams), reversed(probe.quic.payloads), strict=False
        )
        if b"\x1bABCDEFGH" in payload
    )
    assert len(answer) >= 1200


rule(S, "PATH_CHALLENGE is answered in a full datagram", Ignored(), challenged)
ignores("RFC 9000 §19.18", "PATH_RESPONSE to nothing", b"\x1b12345678")
closes("RFC 9000 §19.20", "HANDSHAKE_DONE by a client", PROTOCOL_VIOLATION, b"\x1e")
# --------------------------------------------------------------------------------------------------
# RFC 9000 §7.5 and RFC 9001 §6: the handshake's bytes, when it is over

S = "RFC 9000 §7.5"
ignores(
    S,
    "4,096 bytes of CRYPTO out of order",
    b"\x06\x01\x40\x64" + bytes(100),
    b"\x06" + number(4000) + b"\x40\x50" + bytes(80),
)
closes(S, "CRYPTO far ahead", CRYPTO_BUFFER_EXCEEDED, b"\x06" + number(1 << 25) + b"\x01x")
closes("RFC 9001 §6", "TLS KeyUpdate", UNEXPECTED_MESSAGE, crypto_frame(b"\x18\0\0\1\0"))
closes("RFC 9001 §8.3", "TLS EndOfEarlyData", UNEXPECTED_MESSAGE, crypto_frame(b"\x05\0\0\0"))
closes(
    "RFC 9001 §4.4",
    "TLS Certificate after the handshake",
    UNEXPECTED_MESSAGE,
    crypto_frame(b"\x0b\0\0\4\0\0\0\0"),
)
closes("RFC 8446 §4.1.2", "a second ClientHello", UNEXPECTED_MESSAGE, crypto_frame(b"\1\0\0\0"))
closes(
    "RFC 8446 §4.6.1", "a session ticket by a client", UNEXPECTED_MESSAGE, crypto_frame(b"\4\0\0\0")
)

# --------------------------------------------------------------------------------------------------
# Within the handshake


HANDSHAKE_RULES: list[Rule] = []
HANDSHAKE_FRAMES: Final = {
    # RFC 9000 §12.4, table 3: what Initial and Handshake packets may not carry.
    "RESET_STREAM": b"\x04\x00\x00\x00",
    "STOP_SENDING": b"\x05\x00\x00",
    "NEW_TOKEN": b"\x07\x01x",
    "STREAM": b"\x08\x00x",
    "MAX_DATA": b"\x10\x05",
    "MAX_STREAM_DATA": b"\x11\x00\x05",
    "MAX_STREAMS": b"\x12\x05",
    "MAX_STREAMS of the other kind": b"\x13\x05",
    "DATA_BLOCKED": b"\x14\x05",
    "STREAM_DATA_BLOCKED": b"\x15\x00\x05",
    "STREAMS_BLOCKED": b"\x16\x05",
    "STREAMS_BLOCKED of the other kind": b"\x17\x05",
    "NEW_CONNECTION_ID": new_id(1),
    "RETIRE_CONNECTION_ID": b"\x19\x00",
    "PATH_CHALLENGE": b"\x1a12345678",
    "PATH_RESPONSE": b"\x1b12345678",
    "CONNECTION_CLOSE of the application": b"\x1d\x00\x00",
    "HANDSHAKE_DONE": b"\x1e",
    "DATAGRAM": b"\x31\x01x",
}


def handshake_rule(
    section: str,
    name: str,
    verdict: Verdict,
    act: Act,
    counted: Refusal | None = Refusal.QUIC_HANDSHAKE_FAILED,
) -> None:
    """`act` is given a client that has not said anything."""
    HANDSHAKE_RULES.append(Rule(section, name, act, verdict, {}, counted))


def in_initial(payload: bytes, **how: Any) -> Act:
    """Instead of the ClientHello, or behind it, in an Initial packet of its own."""

    def act(probe: Probe) -> None:
        probe.deaf_and_dumb = True
        for datagram in probe.first_flight():
            probe.send_raw(datagram)
        probe.send_packet(payload, Epoch.INITIAL, **how)

    return act


def in_handshake(payload: bytes, **how: Any) -> Act:
    """In a Handshake packet, before the client's Finished."""

    async def act(probe: Probe) -> None:
        flight = probe.first_flight()
        probe.deaf_and_dumb = True
        for datagram in flight:
            probe.send_raw(datagram)
        await probe.wait_until(lambda: probe.quic._cryptos[Epoch.HANDSHAKE].send.is_valid())
        probe.send_packet(payload, Epoch.HANDSHAKE, **how)

    return act


for name, payload in HANDSHAKE_FRAMES.items():
    for packet, act in (("Initial", in_initial(payload)), ("Handshake", in_handshake(payload))):
        handshake_rule("RFC 9000 §12.4", f"{name} in {packet}", Closed(PROTOCOL_VIOLATION), act)
for packet, act in (("Initial", in_initial), ("Handshake", in_handshake)):
    handshake_rule("RFC 9000 §12.4", f"no frames in {packet}", Closed(PROTOCOL_VIOLATION), act(b""))
    handshake_rule(
        "RFC 9000 §17.2",
        f"reserved bits in {packet}",
        Closed(PROTOCOL_VIOLATION),
        act(b"\x01", flip=0x0C),
    )
    handshake_rule(
        "RFC 9000 §12.4",
        f"unknown frame in {packet}",
        Closed(FRAME_ENCODING_ERROR),
        act(b"\x40\xff"),
    )
    handshake_rule(
        "RFC 9000 §7.5",
        f"CRYPTO far ahead in {packet}",
        Closed(CRYPTO_BUFFER_EXCEEDED),
        act(b"\x06" + number(1 << 25) + b"\x01x"),
        Refusal.QUIC_CRYPTO_BUFFER,
    )
    handshake_rule(
        "RFC 9000 §13.1",
        f"ACK of what was never sent in {packet}",
        Closed(PROTOCOL_VIOLATION),
        act(b"\x02" + number(1 << 30, 0, 0, 0)),
    )


def first(payload: bytes) -> Act:
    """An Initial that begins with this instead of a ClientHello."""

    def act(probe: Probe) -> None:
        probe.first_flight()
        probe.deaf_and_dumb = True
        probe.send_packet(payload, Epoch.INITIAL)

    return act


handshake_rule(
    "RFC 9000 §17.2.2", "a first Initial without CRYPTO", Closed(PROTOCOL_VIOLATION), first(b"\x01")
)
handshake_rule(
    "RFC 8446 §4",
    "a first message that is no ClientHello",
    Closed(UNEXPECTED_MESSAGE),
    first(crypto_frame(b"\x02\0\0\0")),
)
handshake_rule(
    "RFC 8446 §4.1.2",
    "an empty ClientHello",
    Closed(DECODE_ERROR),
    first(crypto_frame(b"\x01\0\0\0")),
)
handshake_rule(
    "RFC 8446 §4.1.2",
    "a ClientHello cut off",
    Closed(DECODE_ERROR),
    first(crypto_frame(b"\x01\0\0\x05\x03\x03abc")),
)
handshake_rule(
    "RFC 8446 §4.4.4",
    "a Finished that is wrong",
    Closed(DECRYPT_ERROR),
    in_handshake(crypto_frame(b"\x14\0\0\x20" + bytes(32))),
)
handshake_rule(
    "RFC 9001 §8.2",
    "a Certificate nobody asked for",
    Closed(UNEXPECTED_MESSAGE),
    in_handshake(crypto_frame(b"\x0b\0\0\4\0\0\0\0")),
)

# --------------------------------------------------------------------------------------------------
# RFC 9000 §7.4, §18: transport parameters; RFC 9001 §8: TLS


PARAMETER_RULES: list[tuple[str, str, int | None, Any]] = []
"""Section, name, the code that the connection ends with (None: it is served), how to edit."""


def parameter(section: str, name: str, code: int | None, key: int, value: bytes | None) -> None:
    """The parameter with this value, or left out."""

    def edit(data: bytes) -> bytes:
        kept = [(other, old) for other, old in read_parameters(data) if other != key]
        return write_parameters(kept if value is None else [*kept, (key, value)])

    PARAMETER_RULES.append((section, name, code, {"parameters": edit}))


def tail(section: str, name: str, code: int | None, added: bytes) -> None:
    """These bytes behind the parameters."""
    PARAMETER_RULES.append((section, name, code, {"parameters": lambda data: data + added}))


def hello(section: str, name: str, code: int | None, edit: Any) -> None:
    PARAMETER_RULES.append((section, name, code, {"tls": edit}))


P = TRANSPORT_PARAMETER_ERROR
S = "RFC 9000 §18.2"
for key, name, value in (
    (0x00, "original_destination_connection_id", bytes(8)),
    (0x02, "stateless_reset_token", bytes(16)),
    (0x0D, "preferred_address", bytes(4 + 2 + 16 + 2) + b"\x04" + bytes(4 + 16)),
    (0x10, "retry_source_connection_id", bytes(8)),
):
    parameter(S, f"{name} by a client", P, key, value)
parameter(S, "max_udp_payload_size of 1,199", P, 0x03, number(1199))
parameter(S, "max_udp_payload_size of 1,200", None, 0x03, number(1200))
parameter(S, "ack_delay_exponent of 21", P, 0x0A, number(21))
parameter(S, "ack_delay_exponent of 20", None, 0x0A, number(20))
parameter(S, "max_ack_delay of 2^14", P, 0x0B, number(1 << 14))
parameter(S, "active_connection_id_limit of 1", P, 0x0E, number(1))
parameter(S, "active_connection_id_limit of 2", None, 0x0E, number(2))
parameter(S, "disable_active_migration with a value", P, 0x0C, b"\x01")
parameter("RFC 9000 §4.6", "initial_max_streams_bidi above 2^60", P, 0x08, number(TOO_MANY))
parameter("RFC 9000 §4.6", "initial_max_streams_uni above 2^60", P, 0x09, number(TOO_MANY))
parameter("RFC 9000 §7.3", "no initial_source_connection_id", P, 0x0F, None)
parameter("RFC 9000 §7.3", "another initial_source_connection_id", P, 0x0F, bytes(8))
parameter("RFC 9000 §7.4", "a parameter nobody knows", None, 31 * 99 + 27, b"grease")
parameter("RFC 9000 §18", "an integer with a tail", P, 0x04, number(1 << 20) + b"\0")
parameter("RFC 9000 §18", "an integer cut off", P, 0x04, b"\x80\x00")
parameter("RFC 9000 §10.1", "no idle timeout", None, 0x01, None)
parameter(
    "RFC 9114 §6.2", "no unidirectional streams for the server at first", None, 0x09, number(0)
)
parameter(
    "RFC 9368 §4", "a chosen version that is not available", P, 0x11, b"\0\0\0\1\x6b\x33\x43\xcf"
)
parameter(
    "RFC 9368 §4",
    "a chosen version that is not in use",
    VERSION_NEGOTIATION_ERROR,
    0x11,
    b"\x6b\x33\x43\xcf" * 2,
)
parameter("RFC 9368 §3", "version information of odd length", P, 0x11, b"\0\0\0\1\0\0\0")
parameter("RFC 9221 §3", "max_datagram_frame_size", None, 0x20, number(65535))
tail("RFC 9000 §7.4", "a parameter that comes twice", P, b"\x04\x01\x05")
tail("RFC 9000 §7.4", "a parameter nobody knows that comes twice", P, b"\x7f\xff\x00" * 2)
tail("RFC 9000 §18", "a parameter cut off", P, b"\x7f\xff\x05abc")
tail("RFC 9000 §18", "a parameter without its length", P, b"\x7f\xff")


def no_transport_parameters(context: Context) -> None:
    context.handshake_extensions = []


def no_alpn(context: Context) -> None:
    context._alpn_protocols = None


def other_alpn(context: Context) -> None:
    context._alpn_protocols = ["h2", "http/1.1"]


def tls_1_2_only(context: Context) -> None:
    context._supported_versions = [0x0303]


def session_id(context: Context) -> None:
    context.legacy_session_id = bytes(32)


hello("RFC 9001 §8.2", "no transport parameters", MISSING_EXTENSION, no_transport_parameters)
hello("RFC 9001 §8.1", "no ALPN", NO_APPLICATION_PROTOCOL, no_alpn)
hello("RFC 9001 §8.1", "another ALPN", NO_APPLICATION_PROTOCOL, other_alpn)
hello("RFC 9001 §4.2", "TLS 1.2", PROTOCOL_VERSION, tls_1_2_only)
hello("RFC 9001 §8.4", "a legacy session ID", PROTOCOL_VIOLATION, session_id)
