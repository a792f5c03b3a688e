"""The table of HTTP/2, through a master and two workers, and what no table can say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.conformance.http2_cases import CASES, Case, Code
from tests.support.http2_frames import (
    END_HEADERS,
    PING,
    PREFACE,
    PROBE,
    SETTINGS,
    FrameClient,
    data,
    frame,
    goaway,
    headers,
    ping,
    request,
    rst_stream,
    settings,
    window_update,
)
from tests.support.reflecting_app import SIZE
from tests.support.server import PATIENCE, Server


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_case(case: Case, cleartext_server: Server):
    client = await FrameClient.connect(cleartext_server.host, cleartext_server.port)
    try:
        async with asyncio.timeout(PATIENCE):
            await client.send((b"" if case.raw else PREFACE + settings()) + case.sent)
            if case.goaway is None:
                await client.send(headers(PROBE))
                seen = await client.read_until_answered(PROBE, *case.answers, *case.resets)
            else:
                seen = await client.read_to_end()
    finally:
        client.close()
    assert (None if seen.goaway is None else seen.goaway[1]) == case.goaway
    assert seen.closed is (case.goaway is not None)
    if case.goaway is None:
        assert seen.resets == case.resets
        assert seen.answers == {**case.answers, PROBE: 200}
        assert tuple(seen.pongs) == case.pongs


# What needs more than one look


async def test_what_begins_like_a_preface_is_closed(cleartext_server: Server):
    """§3.4: "A GOAWAY frame MAY be omitted in this case"."""
    client = await FrameClient.connect(cleartext_server.host, cleartext_server.port)
    await client.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + settings())
    assert await client.stream.wait_closed()
    client.close()


@pytest.fixture
async def client(cleartext_server: Server) -> AsyncIterator[FrameClient]:
    """A client that has not begun yet."""
    client = await FrameClient.connect(cleartext_server.host, cleartext_server.port)
    async with asyncio.timeout(PATIENCE):
        yield client
    client.close()


async def test_settings_come_first_and_are_acknowledged_each(client: FrameClient):
    """§3.4, §6.5.3."""
    await client.begin()
    await client.send(settings((4, 100)) + settings() + headers())
    seen = await client.read_until_answered(1)
    assert (seen.frames[0].kind, seen.frames[0].flags) == (SETTINGS, 0)
    assert seen.settings_acks == 3


async def test_goaway_names_the_last_stream_that_may_have_been_processed(client: FrameClient):
    """§6.8."""
    await client.begin()
    await client.send(headers(5) + headers(7) + frame(PING, 1, bytes(8)) + headers(9))
    seen = await client.read_to_end()
    assert seen.goaway == (7, Code.PROTOCOL_ERROR)


async def test_who_says_goodbye_gets_its_answers(client: FrameClient):
    """§6.8."""
    await client.begin()
    await client.send(headers(1, request(path=b"/_large")) + goaway(0, 0, b"bye"))
    await client.send(window_update(0, 1 << 24) + window_update(1, 1 << 24))
    seen = await client.read_to_end()
    assert (seen.answers, seen.bodies) == ({1: 200}, {1: SIZE})
    assert seen.goaway == (1, Code.NO_ERROR)


async def test_streams_beyond_the_limit_are_refused(client: FrameClient):
    """§5.1.2."""
    await client.begin()
    waiting = [headers(number, request(path=b"/_wait")) for number in range(1, 201, 2)]
    await client.send(b"".join(waiting) + headers(201) + headers(203) + ping())
    seen = await client.read_until_answered(201, 203)
    assert seen.resets == {201: Code.REFUSED_STREAM, 203: Code.REFUSED_STREAM}
    assert (seen.answers, seen.goaway) == ({}, None)


async def test_a_stream_that_was_reset_makes_room(client: FrameClient):
    """§5.1.2; not before its handler has ended (CVE-2023-44487), which takes a turn of its loop."""
    await client.begin()
    waiting = [headers(number, request(path=b"/_wait")) for number in range(1, 201, 2)]
    await client.send(b"".join(waiting) + rst_stream(1))
    number = 201
    while number not in client.seen.answers:
        number += 2
        await client.send(headers(number))
        await client.read_until_answered(number)
    assert set(client.seen.resets.values()) <= {Code.REFUSED_STREAM}


@pytest.mark.parametrize("window", [0, 1, 2, 100])
async def test_no_more_than_the_window_is_sent(client: FrameClient, window: int):
    """§6.9.1, §6.9.2."""
    await client.begin((4, window))
    await client.send(headers(1, request(path=b"/_large")) + headers(3, request(b"HEAD")))
    seen = await client.read_until_answered(3)  # which needs no window
    while seen.bodies.get(1, 0) < window:
        await client.read_frame()
    await client.send(window_update(1, 3) + ping())
    while not seen.pongs or seen.bodies.get(1, 0) < window + 3:
        await client.read_frame()
    assert seen.bodies == {1: window + 3}


async def test_the_window_of_the_connection_is_shared(client: FrameClient):
    """§6.9.1."""
    await client.begin((4, 1 << 20))
    await client.send(headers(1, request(path=b"/_large")) + headers(3, request(path=b"/_large")))
    while sum(client.seen.bodies.values()) < 65535:
        await client.read_frame()
    await client.send(ping())
    while not client.seen.pongs:
        await client.read_frame()
    assert sum(client.seen.bodies.values()) == 65535
    await client.send(window_update(0, 1 << 30))
    seen = await client.read_until_answered(1, 3)
    assert seen.bodies == {1: SIZE, 3: SIZE}


async def test_settings_make_a_window_negative(client: FrameClient):
    """§6.9.2: "a sender MUST NOT send new flow-controlled frames until it becomes positive"."""
    await client.begin((4, 10))
    await client.send(headers(1, request(path=b"/_large")))
    while client.seen.bodies.get(1, 0) < 10:
        await client.read_frame()
    await client.send(settings((4, 2)) + window_update(1, 8) + ping())
    while not client.seen.pongs:
        await client.read_frame()
    assert client.seen.bodies == {1: 10}  # 10 - 8 + 8 - 10 = 0
    await client.send(window_update(1, 1))
    while client.seen.bodies == {1: 10}:
        await client.read_frame()
    assert client.seen.bodies == {1: 11}


@pytest.mark.parametrize("size", [16384, 20000, (1 << 24) - 1])
async def test_frames_are_no_longer_than_the_client_allows(client: FrameClient, size: int):
    """§4.2."""
    await client.begin((4, 1 << 30), (5, size))
    await client.send(window_update(0, 1 << 30) + headers(1, request(path=b"/_large")))
    seen = await client.read_until_answered(1)
    assert seen.bodies == {1: SIZE}
    assert max(len(received.payload) for received in seen.frames) <= size


@pytest.mark.parametrize("size", [0, 100, 4096, (1 << 32) - 1])
async def test_the_clients_compression_table_is_respected(client: FrameClient, size: int):
    """RFC 7541 §4.2: hpack, as the decoder, refuses what is not announced."""
    client.decoder.max_allowed_table_size = min(size, 4096)
    client.decoder.header_table_size = min(size, 4096)
    await client.begin((1, size))
    for number in (1, 3, 5):
        await client.send(headers(number, request(b"GET", b"/", (b"x", b"%d" % number))))
        assert (await client.read_until_answered(number)).answers[number] == 200


async def test_a_body_has_no_end_but_its_own(client: FrameClient):
    """§8.1: a stream that is reset is seen to be incomplete by the application, not ended."""
    await client.begin()
    length = (b"content-length", b"10")
    await client.send(headers(1, request(b"POST", b"/", length), END_HEADERS) + data(1, b"x", 0))
    await client.send(rst_stream(1) + headers(PROBE))
    assert (await client.read_until_answered(PROBE)).answers == {PROBE: 200}


async def test_responses_keep_the_rules_of_fields(client: FrameClient):
    """§8.2, §8.3.2: names in lower case, one status first, nothing connection-specific."""
    await client.begin()
    await client.send(headers())
    names = [*(await client.read_until_answered(1)).fields[1]]
    assert names[0] == b":status"
    assert not any(name.startswith(b":") for name in names[1:])
    assert not {b"connection", b"transfer-encoding", b"keep-alive", b"upgrade"} & {*names}
    assert names == [name.lower() for name in names]


async def test_cookies_are_joined(client: FrameClient):
    """§8.2.3."""
    await client.begin()
    await client.send(headers(1, request(b"GET", b"/", (b"cookie", b"a=1"), (b"cookie", b"b=2"))))
    seen = (await client.read_until_answered(1)).fields[1]
    assert ["cookie", "a=1; b=2"] in json.loads(seen[b"x-seen"])["headers"]
