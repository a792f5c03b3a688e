from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.shaper import CALM, CUT, MOST_PATHS, TcpShaper, UdpShaper, Weather

HOST = "127.0.0.1"


@contextlib.asynccontextmanager
async def udp_echo() -> AsyncIterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind((HOST, 0))
        opened.setblocking(False)

        def answer() -> None:
            datagram, client = opened.recvfrom(65536)
            opened.sendto(datagram, client)

        asyncio.get_running_loop().add_reader(opened, answer)
        yield opened.getsockname()[1]
        asyncio.get_running_loop().remove_reader(opened)


@contextlib.contextmanager
def udp_client(port: int) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.connect((HOST, port))
        opened.setblocking(False)
        yield opened


async def receive(client: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(client, 65536)


async def test_in_calm_weather_each_client_hears_its_own_echo():
    async with udp_echo() as port, UdpShaper(port) as shaper:
        with udp_client(shaper.port) as one, udp_client(shaper.port) as other:
            for client, text in ((one, b"one"), (other, b"other"), (one, b"again")):
                client.send(text)
                assert await receive(client) == text
        assert shaper.passed == 6


async def test_what_is_lost_never_arrives_until_the_weather_changes():
    async with udp_echo() as port, UdpShaper(port, weather=CUT) as shaper:
        with udp_client(shaper.port) as client:
            for _ in range(5):
                client.send(b"lost")
            while shaper.lost < 5:
                await asyncio.sleep(0)
            shaper.weather = CALM
            client.send(b"found")
            assert await receive(client) == b"found"


async def test_datagrams_are_repeated_and_overtaken():
    async with udp_echo() as port, UdpShaper(port, weather=Weather(repeat=1.0)) as shaper:
        with udp_client(shaper.port) as client:
            client.send(b"4")
            assert [await receive(client) for _ in range(4)] == [b"4"] * 4
            shaper.weather = Weather(reorder=1.0)
            client.send(b"held")
            while not shaper.reordered:
                await asyncio.sleep(0)
            shaper.weather = CALM
            client.send(b"later")
            assert await receive(client) == b"later"
            assert await receive(client) == b"held"


async def test_the_same_seed_makes_the_same_weather():
    async def fate(seed: int) -> list[int]:
        async with UdpShaper(9, weather=Weather(loss=0.5), seed=seed) as shaper:
            fates = []
            for _ in range(64):
                shaper._carry(b"", len)
                fates.append(shaper.lost)
            return fates

    assert await fate(1) == await fate(1) != await fate(2)


async def test_it_forgets_who_was_silent_for_longest():
    async with udp_echo() as port, UdpShaper(port) as shaper:
        for _ in range(MOST_PATHS + 10):
            with udp_client(shaper.port) as client:
                client.send(b"x")
                assert await receive(client) == b"x"
        assert len(shaper._paths) == MOST_PATHS


@contextlib.asynccontextmanager
async def tcp_echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        yield server.sockets[0].getsockname()[1]


async def test_bytes_arrive_whole_in_small_pieces_and_ends_are_passed_on():
    text = b"0123456789" * 10
    async with tcp_echo() as port, TcpShaper(port, weather=Weather(piece=7)) as shaper:
        reader, writer = await asyncio.open_connection(HOST, shaper.port)
        writer.write(text)
        writer.write_eof()
        assert await reader.read() == text
        writer.close()


async def test_a_cut_resets_both_sides():
    async with tcp_echo() as port, TcpShaper(port) as shaper:
        reader, writer = await asyncio.open_connection(HOST, shaper.port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        shaper.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert shaper.cuts == 2
        writer.close()


async def test_a_standstill_ends_with_the_weather():
    async with tcp_echo() as port, TcpShaper(port, weather=CUT) as shaper:
        reader, writer = await asyncio.open_connection(HOST, shaper.port)
        writer.write(b"waits")
        answer = asyncio.create_task(reader.readexactly(5))
        assert not (await asyncio.wait([answer], timeout=0.05))[0]
        shaper.weather = CALM
        assert await answer == b"waits"
        writer.close()
